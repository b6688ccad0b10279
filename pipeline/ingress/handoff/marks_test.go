package handoff

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/mark"
	"github.com/postern-mta/postern/pipeline/message"
)

// TestMarks: what goes to a next program bears its origin; what a stranger sent
// stays a stranger's when a user forwards it; and a message of ours that comes
// back from outside is a stranger's.
func TestMarks(t *testing.T) {
	k, err := mark.New(bytes.Repeat([]byte("k"), mark.KeySize), mark.Options{})
	check(t, err)
	d := newDaemon(t, func(o *Options) {
		o.Sink, o.Next, o.NextMode, o.Marks = nil, "/bin/true", NextExec, k
		keep := message.Keep
		o.Lines = &keep
	}, says(pipeline.Verdict{}))
	through := func(env []string, text string) (string, *pipeline.Origin) {
		t.Helper()
		c := d.connect()
		content, envelope := d.fed(text), d.fed(list)
		check(t, c.hello(env, 0, int(content.Fd()), int(envelope.Fd())))
		r, err := c.converse()
		check(t, err)
		defer r.close()
		defer c.conn.Close()
		got, err := io.ReadAll(r.pairs[0].message)
		check(t, err)
		out, origin, why, err := k.Take(message.FromString(string(got)))
		if err != nil || why != nil || string(out.Bytes()) != strings.ReplaceAll(text, "\r", "") && !strings.HasSuffix(string(out.Bytes()), mail) {
			t.Errorf("%v, %v, %q", why, err, out.Bytes())
		}
		return string(got), origin
	}
	stranger := []string{"TCPREMOTEIP=192.0.2.1"}
	user := []string{"TCPREMOTEIP=192.0.2.1", "SMTPAUTHUSER=ann@example.org"}
	first, o := through(stranger, mail)
	if o == nil || o.Standing != "external" || o.Peer != "192.0.2.1" {
		t.Fatalf("%+v", o)
	}
	forwarded, o := through(nil, "Delivered-To: joe@example.org\nReceived: (qmail 1 invoked from network); x\n"+first)
	if o == nil || o.Standing != "external" || strings.Count(forwarded, mark.FieldName) != 1 {
		t.Errorf("%+v", o)
	}
	if _, o = through(nil, mail); o == nil || o.Standing != "local" || o.UID != os.Getuid() {
		t.Errorf("%+v", o)
	}
	ours, o := through(user, mail)
	if o == nil || o.Standing != "auth" || o.User != "ann@example.org" {
		t.Errorf("%+v", o)
	}
	if _, o = through(stranger, ours); o == nil || o.Standing != "external" || o.User != "" {
		t.Errorf("%+v", o)
	}
	// A mark that does not count makes nothing ours: a list that puts its own
	// fields on a stranger's message does not vouch for who wrote it, nor does a
	// user who sends such a message on from a mail program.
	for name, text := range map[string]string{
		"forged":  mark.FieldName + ": AAAA\n" + mail,
		"list":    "List-Id: <joe.example.org>\n" + first,
		"changed": first + "-- \nfooter\n" + mail,
	} {
		for _, env := range [][]string{nil, user} {
			if _, o = through(env, text); o == nil || o.Standing != "external" || o.User != "" {
				t.Errorf("%s: %+v", name, o)
			}
		}
	}
	if !d.log.has("a mark does not count") {
		t.Error("nothing was said of the forged mark")
	}
}
