package pipeline

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

// TestTrace: what a trace tells of a message.
func TestTrace(t *testing.T) {
	now := time.Unix(0, 0)
	clock := func() time.Time { now = now.Add(time.Second); return now }
	var spool memorySpool
	c := newChain(t, ChainOptions{Now: clock},
		Step{Name: "rcptcheck", Filter: at(AtRecipient, func(a asked) (Verdict, error) {
			if a.rcpt.Address == "r1@example.org" {
				return Verdict{Action: Reject, Reason: "no\nmailbox", Reply: reply.Make(550, reply.Enhanced{Subject: 1, Detail: 1}, "no mailbox")}, nil
			}
			return Verdict{}, nil
		})},
		Step{Name: "shadow", Filter: says(AtRecipient, Verdict{Action: Defer}), Mode: Shadow},
		Step{Name: "off", Filter: says(AtMessage, Verdict{}), Mode: Off},
		Step{Name: "when", Filter: says(AtMessage, Verdict{}), When: rule(t, "size > 1000")},
		Step{Name: "edits", Filter: at(AtMessage, func(asked) (Verdict, error) {
			v := Verdict{Body: spool.body(t, "x\n"), Only: []int{0}, Others: []Verdict{{Only: []int{2}, Action: Discard, Reason: "why", Edits: []Edit{copyTo("c")}}}}
			for range 30 {
				v.Edits = append(v.Edits, addField("X-A", "1"))
			}
			return v, nil
		})},
		Step{Name: "adds", Filter: says(AtMessage, Verdict{Edits: []Edit{addField("X-B", "2")}})},
		Step{Name: "fails", Filter: at(AtMessage, func(asked) (Verdict, error) { return Verdict{}, errBroken }), OnError: ErrorContinues},
	)
	edits := append(slices.Repeat([]string{"add X-A: 1"}, maxEdits), "and 12 more")
	want := Trace{
		{Filter: "rcptcheck", Stage: "recipient", Action: "continue", Recipients: 3, Took: 3 * time.Second},
		{Filter: "shadow", Stage: "recipient", Action: "defer", Reply: "451 4.7.1 message deferred, please try again later", Shadow: true, Recipients: 3, Took: 3 * time.Second},
		{Filter: "rcptcheck", Stage: "recipient", Action: "reject", Reply: "550 5.1.1 no mailbox", Reason: "no mailbox", Recipients: 1, Took: time.Second},
		{Filter: "off", Stage: "message", Skipped: "off", Recipients: 3},
		{Filter: "when", Stage: "message", Skipped: "when", Recipients: 3},
		{Filter: "edits", Stage: "message", Action: "continue", Reason: "; discard for 1 others: why", Recipients: 3, Took: time.Second, Edits: edits, Split: []Part{{"continue", 1}, {"discard", 1}}},
		{Filter: "adds", Stage: "message", Action: "continue", Recipients: 2, Took: 2 * time.Second, Edits: []string{"add X-B: 2"}},
		{Filter: "fails", Stage: "message", Action: "continue", Err: "broken?line of clamd", Recipients: 2, Took: 2 * time.Second},
	}
	tx := txTo(rcpts(4)...)
	tx.Session.Standing = Local
	runWith(t, context.Background(), &spool, c, tx, func(o *Outcome) {
		for i := range max(len(want), len(o.Trace)) {
			if i >= len(want) || i >= len(o.Trace) || !reflect.DeepEqual(o.Trace[i], want[i]) {
				t.Errorf("trace\n%+v\nwant\n%+v", o.Trace, want)
				break
			}
		}
	})
}

// TestTraceRoom: what many recipients make a filter say does not crowd out what
// is said of the message, and is counted.
func TestTraceRoom(t *testing.T) {
	f := &fake{on: map[Stage]func(asked) (Verdict, error){
		AtRecipient: func(a asked) (Verdict, error) { return Verdict{Reason: a.rcpt.Address}, nil },
		AtMessage: func(a asked) (Verdict, error) {
			return Verdict{Reason: fmt.Sprint(a.tx.Active), Edits: []Edit{addField("X-A", fmt.Sprint(a.tx.Active))}}, nil
		},
	}}
	split := at(AtMessage, each(func(n int) Verdict {
		if n < 60 {
			return Verdict{Edits: []Edit{addField("X-N", fmt.Sprint(n))}}
		}
		return Verdict{}
	}))
	steps := []Step{{Filter: f}, {Filter: split}}
	for range 8 {
		steps = append(steps, Step{Filter: f})
	}
	runIn(t, context.Background(), newChain(t, ChainOptions{}, steps...), txTo(rcpts(1000)...), func(o *Outcome) {
		if len(o.Trace) > maxTrace+Stages {
			t.Errorf("%d entries", len(o.Trace))
		}
		counted := map[string]int{}
		for _, e := range o.Trace {
			if counted[e.Stage] += e.Recipients; e.Skipped == "no more room" && e.Filter != "chain" {
				t.Errorf("%+v", e)
			}
		}
		if counted["recipient"] != 9000 || counted["message"] != 10_000 {
			t.Errorf("counted %v", counted)
		}
	})
}

// TestOrigin: an origin comes back as it was, and fits its bound however much
// was said.
func TestOrigin(t *testing.T) {
	tx := txTo("r@example.org")
	tx.Session.Standing, tx.Session.Start = Authenticated, time.Unix(5, 0).UTC()
	o := OriginOf(tx.Session, tx)
	o.Results = []AuthResult{{Method: "dkim", Result: "pass", Props: []Prop{{"header.d", "example.org"}}}}
	o.Trace = Trace{{Filter: "f", Stage: "message", Action: "continue", Edits: []string{"add X: y"}, Took: 5}}
	b, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := DecodeOrigin(b); err != nil || !reflect.DeepEqual(back, o) || back.IsExternal() {
		t.Errorf("%+v, %v, want %+v", back, err, o)
	}
	if back, err := DecodeOrigin([]byte(`{"standing":"relay","later":[1]}`)); err != nil || back.Standing != "relay" {
		t.Errorf("%+v, %v", back, err)
	}
	big := strings.Repeat("<", maxReason)
	o.Results, o.Trace = nil, nil
	for range maxFindings {
		o.Results = append(o.Results, AuthResult{Method: "dkim", Reason: big})
		o.Trace = append(o.Trace, Entry{Filter: "f", Reason: big, Err: big})
	}
	if b, err = o.Encode(); err != nil || len(b) > maxOrigin {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if back, err := DecodeOrigin(b); err != nil || back.Transaction != "t1" || len(back.Results) == 0 {
		t.Errorf("%v, %d results", err, len(back.Results))
	}
	o.Helo = strings.Repeat("x", maxOrigin)
	if _, err = o.Encode(); err == nil {
		t.Error("an origin that nobody can read")
	}
	for _, bad := range []string{"", "[]", strings.Repeat(" ", maxOrigin+1)} {
		if _, err := DecodeOrigin([]byte(bad)); err == nil {
			t.Errorf("%.10q is an origin", bad)
		}
	}
}
