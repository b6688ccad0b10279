package milter

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// deaf is a milter that says what was written down before, a packet at a time, and
// hears nothing.
type deaf struct {
	says []byte
	left int // of the packet that it is saying
}

func (d *deaf) Read(p []byte) (int, error) {
	if len(d.says) == 0 {
		return 0, io.EOF
	}
	if d.left == 0 {
		if d.left = len(d.says); d.left > 4 {
			d.left = min(d.left, 4+int(binary.BigEndian.Uint32(d.says)))
		}
	}
	n := copy(p, d.says[:d.left])
	d.says, d.left = d.says[n:], d.left-n
	return n, nil
}

func (d *deaf) Write(p []byte) (int, error)      { return len(p), nil }
func (d *deaf) Close() error                     { return nil }
func (d *deaf) LocalAddr() net.Addr              { return nil }
func (d *deaf) RemoteAddr() net.Addr             { return nil }
func (d *deaf) SetDeadline(time.Time) error      { return nil }
func (d *deaf) SetReadDeadline(time.Time) error  { return nil }
func (d *deaf) SetWriteDeadline(time.Time) error { return nil }

// FuzzReplies: whatever a milter says from the first byte to the last, what is
// made of it is within bounds and clean, and what cannot be is an error.
func FuzzReplies(f *testing.F) {
	all := newFake(nil)
	c := packet('c', "")
	upTo := func(last string) []byte { return []byte(all.terms() + strings.Repeat(c, 10) + last) }
	mute := &fake{version: 6, actions: allActions, flags: allFlags, lists: "\x00\x00\x00\x02i {auth_type}\x00"}
	for _, seed := range [][]byte{
		nil, upTo(c), upTo(packet('y', "550-5.7.1 a\r\n550 5.7.1 b%%\x00")), upTo(packet('4', "")),
		upTo(packet('h', "X\x00b\x00") + indexed('i', 1, "X-B", "b\n c") + indexed('m', 1, "Subject", "") + indexed('m', 2, "X-C", "\x1b") + packet('a', "")),
		upTo(packet('e', "<x@y>\x00A\x00") + packet('+', "<b@c>\x00") + packet('-', "<r@example.org>\x00") + packet('2', "d\x00NOTIFY=NEVER\x00") + packet('q', "why\x00") + c),
		upTo(packet('b', "new\r\n") + packet('p', "") + packet('b', "\rbody") + c),
		[]byte(mute.terms() + packet('h', "X\x00"+strings.Repeat("word ", 400)+"\x00") + packet('s', "") + c),
		[]byte(all.terms() + c + c + packet('d', "")), []byte(all.terms() + packet('r', "")), []byte(all.terms() + c + c + c + packet('t', "") + c + c + c),
		[]byte("220 mail.example.org ESMTP\r\n"), []byte("\xff\xff\xff\xffb"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, says []byte) {
		filter, err := New(pipeline.Env{Host: "mx.example.org"}, Options{Address: []string{"unix:/nonexistent/milter"}, Body: 100_000})
		if err != nil {
			t.Fatal(err)
		}
		i := filter.open(t)
		d := &deaf{says: says}
		i.talk = &talk{conn: d, r: bufio.NewReader(d), w: bufio.NewWriter(io.Discard)}
		if err := i.talk.negotiate(); err != nil {
			i.lose()
			return
		}
		m := message.FromString("Received: x\nSubject: y\n\nbody\n")
		tx := filtertest.Transaction("r@example.org", "s@example.org")
		v, err := i.Message(t.Context(), tx, m)
		if err != nil {
			if v.Body != nil || v.Edits != nil || strings.ContainsAny(err.Error(), "\r\n\x00") {
				t.Errorf("%+v, %q", v, err)
			}
			return
		}
		i.Close()
		sound(t, tx, v)
		for _, o := range v.Others {
			if len(o.Only) == 0 || len(o.Edits) > 0 {
				t.Errorf("%+v", o)
			}
			sound(t, tx, o)
		}
		if v.Body != nil {
			b, err := io.ReadAll(io.NewSectionReader(v.Body, 0, v.Body.Size()))
			if err != nil || bytes.ContainsAny(b, "\r\x00") || len(b) > 0 && b[len(b)-1] != '\n' || len(b) > 100_001 {
				t.Errorf("a body %q, %v", b, err)
			}
			v.Body.Release()
		}
	})
}

// sound holds a verdict against what any verdict must be.
func sound(t *testing.T, tx *pipeline.Transaction, v pipeline.Verdict) {
	t.Helper()
	if !pipeline.Legal(pipeline.AtMessage, v.Action) || v.HangUp != pipeline.StayOn && v.Action != pipeline.Reject && v.Action != pipeline.Defer {
		t.Errorf("%+v", v)
	}
	if said := v.Reply.Text; len(said) > reply.MaxText || reply.Clean(said, reply.MaxText) != said {
		t.Errorf("reply %q", said)
	}
	if v.Action == pipeline.Reject && v.Reply.Class != reply.Permanent && v.Reply != (reply.Reply{}) {
		t.Errorf("%v with %+v", v.Action, v.Reply)
	}
	for _, n := range v.Only {
		if n < 0 || n >= len(tx.Envelope.Recipients) {
			t.Errorf("recipient %d", n)
		}
	}
	for _, e := range v.Edits {
		switch e.Kind {
		case pipeline.EditField:
			if err := e.Field.Check(); err != nil {
				t.Error(err)
			}
		case pipeline.EditSender, pipeline.EditRecipient, pipeline.EditAddRecipient:
			if !envelope.ValidBytes(e.Address) || len(e.Address) > envelope.MaxAddress || e.Kind != pipeline.EditSender && e.Address == "" {
				t.Errorf("address %q", e.Address)
			}
		default:
			t.Errorf("edit %v", e)
		}
	}
}

// FuzzField: a value that a milter gives can stand in a head, unless it has a line
// that cannot be folded; one that can stand there as it is keeps its bytes.
func FuzzField(f *testing.F) {
	for _, s := range []string{"", "b", " b", "a\r\n b", "a\nb", "\n\n", "a\n \n b", "\x00\x1b", strings.Repeat("x ", 900), strings.Repeat("x", 2000), "\r\r\n a"} {
		f.Add("X-A", s, true)
		f.Add("X-A", s, false)
	}
	f.Fuzz(func(t *testing.T, name, value string, leading bool) {
		if (message.FieldEdit{Op: message.Remove, Name: name}).Check() != nil || len(value) > 60_000 {
			return
		}
		given := value
		if leading {
			given = strings.TrimPrefix(given, " ")
		}
		made := fieldValue(name, value, leading)
		err := message.FieldEdit{Name: name, Value: made}.Check()
		asItIs := message.FieldEdit{Name: name, Value: given}.Check()
		if asItIs == nil && made != given && !strings.HasSuffix(given, "\n") {
			t.Errorf("%q becomes %q", given, made)
		}
		if err != nil && (asItIs == nil || !strings.Contains(err.Error(), "fold it")) {
			t.Errorf("%q: %v", made, err)
		}
	})
}
