package pipeline

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// TestSession takes one judge through a session as an SMTP server does: two
// transactions, the first of which is reset.
func TestSession(t *testing.T) {
	ctx := context.Background()
	f := &fake{on: map[Stage]func(asked) (Verdict, error){
		AtConnect: func(asked) (Verdict, error) { return Verdict{Symbols: []Symbol{{Name: "C"}}}, nil },
		AtHelo:    func(asked) (Verdict, error) { return Verdict{}, nil },
		AtSender: func(a asked) (Verdict, error) {
			if len(a.tx.Symbols) != 1 {
				t.Errorf("symbols of another transaction: %v", a.tx.Symbols)
			}
			return Verdict{Symbols: []Symbol{{Name: "S"}}}, nil
		},
		AtRecipient: func(a asked) (Verdict, error) {
			if strings.HasPrefix(a.rcpt.Address, "bad") {
				return Verdict{Action: Reject, Reply: reply.Make(550, reply.Enhanced{Subject: 1, Detail: 1}, "no such user")}, nil
			}
			return Verdict{Action: map[bool]Action{true: Discard}[strings.HasPrefix(a.rcpt.Address, "hole")]}, nil
		},
		AtMessage: func(asked) (Verdict, error) { return Verdict{Edits: []Edit{addField("X-A", "1")}}, nil },
	}}
	j := newChain(t, ChainOptions{}, Step{Filter: f}).Begin()
	s := &Session{}
	if c, h := j.Connect(ctx, s), j.Helo(ctx, s); c.Action != Continue || h.Action != Continue {
		t.Errorf("%v %v", c, h)
	}
	transaction := func(recipients ...string) *Outcome {
		tx := &Transaction{Session: s, Envelope: envelope.To("a@example.org")}
		j.Sender(ctx, tx)
		for _, r := range recipients {
			fate := j.Recipient(ctx, tx, envelope.Recipient{Address: r})
			if want := strings.HasPrefix(r, "bad"); (fate.Action == Reject) != want || want && fate.Reply.SMTP() != "550 5.1.1 no such user" {
				t.Errorf("%s: %+v", r, fate)
			} else if !want {
				tx.Envelope.Recipients = append(tx.Envelope.Recipients, envelope.Recipient{Address: r})
			}
		}
		return j.Message(ctx, tx, message.FromString(plain))
	}
	first := transaction("bad@x", "one@x", "hole@x", "two@x")
	before := fmt.Sprint(first.Trace)
	if got := outgoing(first); got != "a@example.org -> one@x two@x X-A=1\n" {
		t.Errorf("first: %s", got)
	}
	j.Reset()
	if n := len(j.Trace()); n != 2 {
		t.Errorf("%d entries after Reset", n)
	}
	j.Helo(ctx, s)
	second := transaction("hole@x", "bad@x", "three@x")
	if got := outgoing(second); got != "a@example.org -> three@x X-A=1\n" {
		t.Errorf("second: %s", got)
	}
	third := transaction("four@x") // without Reset: MAIL begins a transaction
	if got := outgoing(third); got != "a@example.org -> four@x X-A=1\n" {
		t.Errorf("third: %s", got)
	}
	if after := fmt.Sprint(first.Trace); after != before {
		t.Errorf("the first outcome's trace has become\n%s\nfrom\n%s", after, before)
	}
	for _, o := range []*Outcome{first, second, third} {
		o.Release()
	}
	j.Close()
	if n := f.counts(); n != [3]int{1, 1, 1} {
		t.Errorf("opened, closed, reset %v", n)
	}
}

// TestSessionFates: what connect or sender decided holds for who comes after,
// also if an entrance leaves a stage out.
func TestSessionFates(t *testing.T) {
	ctx := context.Background()
	j := newChain(t, ChainOptions{}, Step{Filter: says(AtConnect, Verdict{Action: Reject})}).Begin()
	defer j.Close()
	tx := txTo("r@example.org")
	j.Connect(ctx, tx.Session)
	if f := j.Recipient(ctx, tx, envelope.Recipient{Address: "r"}); f.Action != Reject {
		t.Errorf("%+v", f)
	}
	o := j.Message(ctx, tx, message.FromString(plain))
	defer o.Release()
	if o.Reply.SMTPCode() != 554 || len(o.Outgoing) > 0 {
		t.Errorf("%+v", o)
	}
}
