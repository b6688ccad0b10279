package handoff

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
)

// What a hostile client says stays in its place in the log.
func TestLogIsClean(t *testing.T) {
	evil := "x\x1b[2J\u202e\r\nmsg=forged"
	d := newDaemon(t, nil)
	content := "Message-ID: <" + strings.ReplaceAll(evil, "\r\n", "") + ">\n\n"
	r := d.call([]string{"TCPREMOTEIP=192.0.2.1", "SMTPHELOHOST=" + evil, "TCPREMOTEHOST=" + evil, "SMTPAUTHUSER=" + evil}, content, "F\u202e\xff@x\x00T\u0085@x\x00\x00")
	if r.exit == nil {
		t.Fatal(r)
	}
	line := d.log.line(t)
	for _, key := range []string{"helo", "peer_name", "user"} {
		if line[key] != "x?[2J???msg=forged" {
			t.Errorf("%s = %q", key, line[key])
		}
	}
	if line["message_id"] != "<x?[2J?msg=forged>" || line["from"] != "??@x" || line["to"] != "?@x" {
		t.Errorf("%q %q %q", line["message_id"], line["from"], line["to"])
	}
	if pipeline.LogText(strings.Repeat("é", 10), 5) != "éé" {
		t.Error(pipeline.LogText(strings.Repeat("é", 10), 5))
	}
}

// The text handler writes one line too, whatever is in it.
func TestLogAsText(t *testing.T) {
	var out bytes.Buffer
	d := newDaemon(t, nil)
	n := newSession(d.srv, nil, peer{uid: 5, pid: 6})
	n.srv.o.Log = slog.New(slog.NewTextHandler(&out, nil))
	n.rec.trace = pipeline.Trace{
		{Filter: "tap", Action: "continue", Took: 12 * time.Microsecond},
		{Filter: "off", Skipped: "off"},
		{Filter: "spf", Action: "reject", Shadow: true, Reason: "not\npermitted", Took: time.Millisecond},
		{Filter: "clamav", Action: "defer", Err: "down", Took: time.Second},
	}
	n.rec.session, n.rec.tx = &pipeline.Session{}, &pipeline.Transaction{}
	for range 12 {
		n.rec.tx.Envelope.Recipients = append(n.rec.tx.Envelope.Recipients, envelope.Recipient{Address: "a@x"})
	}
	n.rec.err = errors.New("two\nlines")
	n.log()
	if to := n.rec.tx.LogRecipients(); to != strings.Repeat("a@x ", 10)+"and 2 more" {
		t.Error(to)
	}
	if line := out.String(); strings.Count(line, "\n") != 1 || !strings.Contains(line, `filters="[tap=continue 0.012ms spf=reject (shadow) (not?permitted) 1.0ms clamav=defer (failed: down) 1000ms]"`) {
		t.Error(line)
	}
}

// Times are in one unit, which a program and an eye can compare.
func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.000ms", 312 * time.Microsecond: "0.312ms", 12345 * time.Microsecond: "12.3ms", 4502 * time.Millisecond: "4502ms", 24 * time.Hour: "86400000ms",
	} {
		if got := pipeline.LogSpan(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
