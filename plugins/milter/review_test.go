package milter

import (
	"io"
	"strings"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

// A milter that says more than it is asked, and late, says nothing about the next
// message: neither on a connection that was kept, nor in the same session.
func TestLateWords(t *testing.T) {
	for _, same := range []bool{false, true} {
		first := true
		late := make(chan struct{})
		s := serverstest.Start(t, "unix", func(c *serverstest.Conn) {
			f := newFake(nil)
			for {
				code, _, err := next(c.R)
				if err != nil || code == 'Q' {
					return
				}
				answer := packet('c', "")
				switch code {
				case 'O':
					answer = f.terms()
				case 'D', 'A', 'K':
					continue
				case 'E':
					if answer = packet('r', ""); first {
						first = false
						io.WriteString(c, packet('a', "")) //nolint:errcheck // the test fails then
						time.Sleep(50 * time.Millisecond)
						io.WriteString(c, packet('a', "")) //nolint:errcheck // as above
						close(late)
						continue
					}
				}
				if _, err := io.WriteString(c, answer); err != nil {
					return
				}
			}
		})
		f := newFilter(t, "", s.Address)
		i := f.open(t)
		judge := func() (pipeline.Verdict, error) {
			return i.Message(t.Context(), filtertest.Transaction("r@example.org"), message.FromString(small))
		}
		if v, err := judge(); err != nil || v.Action != pipeline.Continue {
			t.Fatal(v, err)
		}
		if !same {
			i.Close()
			i = f.open(t)
		}
		<-late
		if v, err := judge(); err == nil && v.Action != pipeline.Reject {
			t.Errorf("in the same session %v: a message that the milter refuses passes: %+v", same, v)
		}
		i.Close()
	}
}

// through has a milter of that script judge a message in a chain.
func through(t *testing.T, says map[string]string, text string, to ...string) *pipeline.Outcome {
	t.Helper()
	f := newFilter(t, "", newFake(says).start(t).Address)
	c, err := pipeline.NewChain("inbound", []pipeline.Step{{Name: "milter", Filter: f, OnError: pipeline.ErrorDefers}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tx := &pipeline.Transaction{ID: "t1", Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", to...), Chain: "inbound"}
	tx.Session.AnswersEach = true
	o := c.Run(t.Context(), tx, message.FromString(text))
	t.Cleanup(o.Release)
	t.Cleanup(func() { c.Close() })
	return o
}

// Several changes together are made one after the other, each to what those before
// have left; places and numbers count what was added and deleted.
func TestChangesTogether(t *testing.T) {
	add, insert, change := byte(gomilter.ActAddHeader), byte(gomilter.ActInsertHeader), byte(gomilter.ActChangeHeader)
	o := through(t, eom(
		indexed(insert, 0, "A", "top"),
		indexed(change, 2, "A", ""),
		indexed(change, 2, "A", "changed"),
		indexed(change, 9, "C", "new"),
		packet(add, "A\x00last\x00"),
		indexed(change, 3, "a", "very last"),
		indexed(insert, 1, "D", "below"),
		packet('b', "one\r"), packet('b', "\ntwo\r\n\x00three\rfour"),
		packet('+', "<more@example.org>\x00"), packet('-', "<GONE@example.org>\x00"), packet('-', "gone@EXAMPLE.org\x00"),
		packet('e', "<new@example.net>\x00"),
	), "Received: 1\nA: 1\nB: x\nA: 2\nE: y\n\nold\n", "stays@example.org", "gone@example.org")
	if len(o.Outgoing) != 1 {
		t.Fatalf("%v %+v", o.Reply, o.Trace)
	}
	out := o.Outgoing[0]
	text, err := io.ReadAll(out.Message.Reader())
	if want := "A: top\nD: below\nReceived: 1\nB: x\nA: changed\nE: y\nC: new\na: very last\n\none\ntwo\nthree\nfour\n"; err != nil || string(text) != want {
		t.Errorf("%q, want %q, %v", text, want, err)
	}
	var to []string
	for _, r := range out.Envelope.Recipients {
		to = append(to, r.Address)
	}
	if got := out.Envelope.Sender + " " + strings.Join(to, " "); got != "new@example.net stays@example.org more@example.org" {
		t.Error(got)
	}
}

// What a milter says of one recipient holds beside what it says of the message.
func TestRecipientAndMessage(t *testing.T) {
	for _, c := range []struct {
		name, end string
		other     pipeline.Action // of the recipient that was not refused
	}{
		{"accept", packet('h', "X-A\x00b\x00") + packet('a', ""), pipeline.Accept},
		{"continue", packet('c', ""), pipeline.Accept},
		{"discard", packet('d', ""), pipeline.Discard},
		{"tempfail", packet('t', ""), pipeline.Defer},
		{"quarantine", packet('q', "look\x00") + packet('a', ""), pipeline.Quarantine},
		{"quarantine and reject", packet('q', "look\x00") + packet('b', "new\r\n") + packet('y', "554 5.7.1 no\x00"), pipeline.Reject},
	} {
		o := through(t, map[string]string{"R<bad@example.org>": packet('y', "550 5.1.1 nobody\x00"), "E": c.end}, small, "bad@example.org", "good@example.org")
		bad, good := o.Fates[0], o.Fates[1]
		if bad.Action != pipeline.Reject || bad.Reply.Code != 550 {
			t.Errorf("%s: the refused: %+v", c.name, bad)
		}
		if good.Action != c.other && !(c.other == pipeline.Accept && good.Action == pipeline.Continue) {
			t.Errorf("%s: the other: %+v", c.name, good)
		}
		for _, out := range o.Outgoing {
			if len(out.Envelope.Recipients) != 1 || out.Envelope.Recipients[0].Address != "good@example.org" {
				t.Errorf("%s: %+v", c.name, out.Envelope)
			}
		}
	}
}

// A reason is one clean line of bounded length wherever it goes.
func TestLongReason(t *testing.T) {
	o := through(t, eom(packet('q', strings.Repeat("bad\x1b[31m\nlevel=ERROR ", 3000)+"\x00")), small, "r@example.org")
	if len(o.Outgoing) != 1 || o.Outgoing[0].Hold == "" {
		t.Fatalf("%+v", o)
	}
	for _, text := range append([]string{o.Outgoing[0].Hold}, reasons(o.Trace)...) {
		if len(text) > 1000 || strings.ContainsAny(text, "\n\x1b") {
			t.Errorf("%d bytes: %.100q", len(text), text)
		}
	}
}

func reasons(trace pipeline.Trace) (all []string) {
	for _, e := range trace {
		all = append(all, e.Reason, e.Reply, e.Err)
	}
	return all
}
