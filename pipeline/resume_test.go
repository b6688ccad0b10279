package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// heldChain is a chain in which a filter holds what has X-Bad.
func heldChain(t *testing.T, order *[]string, last Verdict) *Chain {
	t.Helper()
	note := func(name string, v Verdict) *fake {
		return at(AtMessage, func(asked) (Verdict, error) {
			*order = append(*order, name)
			return v, nil
		})
	}
	early := &fake{on: map[Stage]func(asked) (Verdict, error){
		AtConnect: func(asked) (Verdict, error) { *order = append(*order, "connect"); return Verdict{}, nil },
		AtRecipient: func(asked) (Verdict, error) {
			*order = append(*order, "recipient")
			return Verdict{Action: Defer}, nil
		},
	}}
	holds := note("holds", Verdict{Action: Quarantine, Reason: "bad"})
	return newChain(
		t, ChainOptions{},
		Step{Name: "first", Filter: note("first", Verdict{Symbols: []Symbol{{Name: "A", Score: 2}}, Results: []AuthResult{{Method: "spf", Result: "pass"}}})},
		Step{Name: "holds", Filter: holds, Always: true},
		Step{Name: "marks", Filter: note("marks", Verdict{Edits: []Edit{addField("X-M", "1")}})},
		Step{Name: "early", Filter: early},
		Step{Name: "archive", Filter: note("archive", Verdict{Edits: []Edit{copyTo("c")}}), Always: true},
		Step{Name: "last", Filter: note("last", last)},
	)
}

// TestResume: a message goes on behind the filter that held it, with what was
// found before; the stages of its session are over.
func TestResume(t *testing.T) {
	var order []string
	c := heldChain(t, &order, Verdict{Others: []Verdict{only(Quarantine, 0), only(Reject, 1)}})
	for _, k := range []struct {
		name  string
		r     Resume
		order string
		out   string
	}{
		{"after", Resume{After: "holds"}, "marks archive last", "a@example.org -> r0@example.org hold(last: ) X-M=1\na@example.org -> r2@example.org X-M=1\n -> c copy X-M=1\n"},
		{"accepted before", Resume{After: "holds", Accepted: true}, "archive", "a@example.org -> r0@example.org r1@example.org r2@example.org\n -> c copy\n"},
		{"from", Resume{After: "holds", From: "archive", Accepted: true}, "archive last", "a@example.org -> r0@example.org hold(last: )\na@example.org -> r2@example.org\n -> c copy\n"},
		{"from the one that held it", Resume{After: "marks", From: "holds"}, "holds", "a@example.org -> r0@example.org r1@example.org r2@example.org hold(holds: bad)\n"},
		{"behind one of other stages", Resume{After: "early"}, "archive last", "a@example.org -> r0@example.org hold(last: )\na@example.org -> r2@example.org\n -> c copy\n"},
		{"behind the last", Resume{After: "last"}, "", "a@example.org -> r0@example.org r1@example.org r2@example.org\n"},
	} {
		t.Run(k.name, func(t *testing.T) {
			order = nil
			tx := txTo("r0@example.org", "r1@example.org", "r2@example.org")
			o, err := c.Resume(t.Context(), tx, message.FromString("Subject: x\n\nbody\n"), k.r)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Release()
			if got := strings.Join(order, " "); got != k.order {
				t.Errorf("asked: %q, not %q", got, k.order)
			}
			if got := outgoing(o); got != k.out {
				t.Errorf("outgoing:\n%snot\n%s", got, k.out)
			}
			if len(o.Refused) > 0 {
				t.Errorf("somebody would be told: %+v", o.Refused)
			}
			rest, err := c.Rest(k.r)
			if err != nil || k.name != "accepted before" && k.name != "from the one that held it" && strings.Join(rest, " ") != k.order {
				t.Errorf("the rest is %q: %v", rest, err)
			}
			if tx.Session.AnswersEach {
				t.Error("the session was changed")
			}
		})
	}
}

// TestResumeNowhere: a filter that is gone is no place to go on from.
func TestResumeNowhere(t *testing.T) {
	var order []string
	c := heldChain(t, &order, Verdict{})
	for _, r := range []Resume{{After: "gone"}, {After: "holds", From: "gone"}, {From: "early"}, {}} {
		_, err := c.Resume(t.Context(), txTo("r@example.org"), message.FromString("\n"), r)
		no := new(NoStepError)
		if !errors.As(err, &no) || !slices.Equal(no.Names, []string{"first", "holds", "marks", "archive", "last"}) || no.Elsewhere != (r.From == "early") {
			t.Errorf("%+v: %v", r, err)
		}
		if _, err := c.Rest(r); err == nil || strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if order != nil {
		t.Errorf("asked: %v", order)
	}
}

// TestHeldFindings: what a filter that judges a released message may ask for is
// in the held message's origin, also after it was stored; others do not carry it.
func TestHeldFindings(t *testing.T) {
	var seen asked
	c := newChain(
		t, ChainOptions{},
		Step{Name: "finds", Filter: says(AtMessage, Verdict{Symbols: []Symbol{{Name: "A", Score: 2}}, Results: []AuthResult{{Method: "spf", Result: "pass"}}})},
		Step{Name: "allows", Filter: says(AtMessage, only(Accept, 1, 2))},
		Step{Name: "holds", Filter: says(AtMessage, only(Quarantine, 0, 1)), Always: true},
		Step{Name: "sums", Filter: at(AtMessage, func(a asked) (Verdict, error) { seen = a; return Verdict{}, nil })},
	)
	tx := txTo("r0@example.org", "r1@example.org", "r2@example.org")
	m := message.FromString("\nbody\n")
	o := c.Run(t.Context(), tx, m)
	defer o.Release()
	if len(o.Outgoing) != 3 {
		t.Fatal(outgoing(o))
	}
	for i, want := range []struct{ held, accepted bool }{{true, false}, {true, true}, {false, false}} {
		b, err := o.Outgoing[i].Origin.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeOrigin(b)
		if err != nil || got.Accepted != want.accepted || (len(got.Symbols) == 1) != want.held || (o.Outgoing[i].Hold != "") != want.held {
			t.Errorf("%d: %+v %v", i, got, err)
		}
		if !want.held {
			continue
		}
		seen = asked{}
		again, err := c.Resume(t.Context(), txTo("r0@example.org"), m, Resume{After: "holds", Accepted: got.Accepted, Results: got.Results, Symbols: got.Symbols})
		if err != nil {
			t.Fatal(err)
		}
		again.Release()
		if want.accepted != (seen.tx == nil) {
			t.Errorf("%d: asked: %v", i, seen.tx != nil)
		}
		if seen.tx != nil && (seen.tx.Score() != 2 || len(seen.tx.Results) != 1) {
			t.Errorf("%d: found before: %+v %+v", i, seen.tx.Symbols, seen.tx.Results)
		}
	}
}

// TestManyHoldsApart: those who are held for one reason too many are held with
// others whom the same filter holds, with or without its having been accepted: no
// filter behind is left out when they go on.
func TestManyHoldsApart(t *testing.T) {
	const n = 3 * maxHolds
	holder := func(mine func(n int) bool) *fake {
		return at(AtMessage, each(func(n int) Verdict {
			if !mine(n) {
				return Verdict{}
			}
			return Verdict{Action: Quarantine, Reason: fmt.Sprint(n)}
		}))
	}
	accepts := at(AtMessage, each(func(n int) Verdict {
		if n%3 == 0 {
			return Verdict{Action: Accept}
		}
		return Verdict{}
	}))
	c := newChain(t, ChainOptions{},
		Step{Name: "accepts", Filter: accepts},
		Step{Name: "late", Filter: holder(func(n int) bool { return n%3 < 2 }), Always: true},
		Step{Name: "last", Filter: holder(func(int) bool { return true })})
	runIn(t, t.Context(), c, txTo(rcpts(n)...), func(o *Outcome) {
		recipients := 0
		for _, out := range o.Outgoing {
			filter, _, _ := strings.Cut(out.Hold, ": ")
			for _, r := range out.Envelope.Recipients {
				recipients++
				n := slices.Index(rcpts(n), r.Address)
				want := "late"
				if n%3 == 2 {
					want = "last"
				}
				if filter != want || out.Origin.Accepted != (n%3 == 0) {
					t.Errorf("%s is held by %s, accepted %v", r.Address, filter, out.Origin.Accepted)
				}
			}
		}
		if recipients != n || len(o.Outgoing) > maxHolds+2 {
			t.Errorf("%d messages for %d recipients", len(o.Outgoing), recipients)
		}
	})
}

// TestOnceReports: where several recipients become one, whoever wants to hear of
// its failure is heard; those with another fate stay apart.
func TestOnceReports(t *testing.T) {
	never, success := &envelope.DSN{Notify: envelope.NotifyNever, ORcpt: "rfc822;a"}, &envelope.DSN{Notify: envelope.NotifySuccess}
	for _, k := range []struct {
		dsn  []*envelope.DSN
		want envelope.Notify
	}{
		{[]*envelope.DSN{never, nil}, envelope.NotifyFailure | envelope.NotifyDelay},
		{[]*envelope.DSN{never, never}, envelope.NotifyNever},
		{[]*envelope.DSN{nil, never}, 0},
		{[]*envelope.DSN{never, success, nil}, envelope.NotifySuccess | envelope.NotifyFailure | envelope.NotifyDelay},
	} {
		tx := txTo(append(rcpts(len(k.dsn)), "held@example.org")...)
		for n, d := range k.dsn {
			tx.Envelope.Recipients[n].DSN = d
		}
		rename := says(AtMessage, Verdict{Edits: []Edit{{Kind: EditRecipient, Address: "one@example.net"}}})
		hold := says(AtMessage, only(Quarantine, len(k.dsn)))
		runIn(t, t.Context(), newChain(t, ChainOptions{}, Step{Filter: rename}, Step{Name: "h", Filter: hold}), tx, func(o *Outcome) {
			if len(o.Outgoing) != 2 || len(o.Outgoing[0].Envelope.Recipients) != 1 || len(o.Outgoing[1].Envelope.Recipients) != 1 || (o.Outgoing[0].Hold == "") == (o.Outgoing[1].Hold == "") {
				t.Fatalf("%v: %s", k.dsn, outgoing(o))
			}
			got := envelope.Notify(0)
			if d := o.Outgoing[0].Envelope.Recipients[0].DSN; d != nil {
				got = d.Notify
			}
			if got != k.want {
				t.Errorf("%v: NOTIFY %d, not %d", k.dsn, got, k.want)
			}
		})
		if never.Notify != envelope.NotifyNever {
			t.Fatal("what the client gave was changed")
		}
	}
}
