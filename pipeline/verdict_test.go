package pipeline

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// TestLegal holds the table of actions against the design: before there is an
// envelope nothing can be discarded, before there is a message nothing
// quarantined, and at the exit nothing is dropped without a word.
func TestLegal(t *testing.T) {
	const want = `
            continue accept reject defer discard quarantine
connect     yes      yes    yes    yes   -       -
helo        yes      yes    yes    yes   -       -
sender      yes      yes    yes    yes   yes     -
recipient   yes      yes    yes    yes   yes     -
message     yes      yes    yes    yes   yes     yes
delivery    yes      yes    yes    yes   -       yes
`
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-11s", "")
	for a := Continue; int(a) < reply.Actions; a++ {
		b.WriteString(" " + a.String())
	}
	b.WriteString("\n")
	for s := AtConnect; int(s) < Stages; s++ {
		line := fmt.Sprintf("%-11s", s)
		for a := Continue; int(a) < reply.Actions; a++ {
			word := "-"
			if Legal(s, a) {
				word = "yes"
			}
			line += fmt.Sprintf(" %-*s", len(a.String()), word)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	if got := b.String(); got != want {
		t.Errorf("legal actions:\n%s\nwant:\n%s", got, want)
	}
	if Legal(Stage(99), Continue) || Legal(AtMessage, Action(99)) {
		t.Error("a stage or an action that there is not is legal")
	}
}

// TestIllegal has a filter break each rule for verdicts; each is the filter's
// error, and then on_error's.
func TestIllegal(t *testing.T) {
	long := strings.Repeat("a", envelope.MaxAddress+1)
	tests := []struct {
		name  string
		stage Stage
		v     Verdict
		err   string
	}{
		{"a score that is no number", AtMessage, Verdict{Symbols: []Symbol{{Name: "A", Score: 1}, {Name: "B", Score: math.NaN()}}}, "the score of symbol \"B\" is no number"},
		{"an infinite score", AtConnect, Verdict{Symbols: []Symbol{{Name: "A", Score: math.Inf(-1)}}}, "the score of symbol \"A\" is no number"},
		{"discard at connect", AtConnect, Verdict{Action: Discard}, "not allowed at the connect stage"},
		{"quarantine at recipient", AtRecipient, Verdict{Action: Quarantine}, "not allowed at the recipient stage"},
		{"no action", AtMessage, Verdict{Action: 77}, "verdict invalid"},
		{"edit at sender", AtSender, Verdict{Edits: []Edit{addField("X-A", "b")}}, "edits are not allowed"},
		{"only at recipient", AtRecipient, Verdict{Action: Reject, Only: []int{0}}, "for some recipients at the recipient stage"},
		{"others at helo", AtHelo, Verdict{Others: []Verdict{{Only: []int{0}}}}, "for some recipients at the helo stage"},
		{"others without only", AtMessage, Verdict{Others: []Verdict{{Action: Reject}}}, "must name them"},
		{"others in others", AtMessage, Verdict{Others: []Verdict{{Only: []int{0}, Others: []Verdict{{Only: []int{1}}}}}}, "must name them"},
		{"others illegal", AtMessage, Verdict{Others: []Verdict{{Only: []int{0}, Action: 77}}}, "verdict invalid"},
		{"unknown recipient", AtMessage, Verdict{Action: Reject, Only: []int{2}}, "about recipient 2"},
		{"negative recipient", AtMessage, Verdict{Action: Reject, Only: []int{-1}}, "about recipient -1"},
		{"recipient twice", AtMessage, Verdict{Only: []int{0}, Others: []Verdict{{Only: []int{0}}}}, "about recipient 0"},
		{"recipient twice in one", AtMessage, Verdict{Only: []int{1, 1}}, "about recipient 1"},
		{"unknown edit", AtMessage, Verdict{Edits: []Edit{{Kind: 99}}}, "unknown edit"},
		{"field name", AtMessage, Verdict{Edits: []Edit{addField("X A", "b")}}, "field name"},
		{"field value", AtMessage, Verdict{Edits: []Edit{addField("X-A", "b\nTo: me")}}, "does not continue"},
		{"second edit", AtMessage, Verdict{Edits: []Edit{addField("X-A", "b"), addField("", "")}}, "field name"},
		{"sender", AtMessage, Verdict{Edits: []Edit{{Kind: EditSender, Address: "a\nb"}}}, "control character"},
		{"long sender", AtMessage, Verdict{Edits: []Edit{{Kind: EditSender, Address: long}}}, "1003 bytes"},
		{"empty recipient", AtMessage, Verdict{Edits: []Edit{{Kind: EditRecipient}}}, "empty recipient"},
		{"empty added recipient", AtMessage, Verdict{Edits: []Edit{{Kind: EditAddRecipient}}}, "empty recipient"},
		{"copy of nothing", AtMessage, Verdict{Edits: []Edit{{Kind: EditCopy}}}, "without a recipient"},
		{"copy to nobody", AtMessage, Verdict{Edits: []Edit{{Kind: EditCopy, Copy: &Copy{}}}}, "without a recipient"},
		{"copy to NUL", AtMessage, Verdict{Edits: []Edit{copyTo("a\x00b")}}, "control character"},
		{"copy's sender", AtMessage, Verdict{Edits: []Edit{{Kind: EditCopy, Copy: &Copy{Envelope: envelope.To("\r", "a")}}}}, "control character"},
		{"hanging up on nobody refused", AtConnect, Verdict{HangUp: HangUpAfter}, "cannot end the connection"},
		{"an end that there is not", AtSender, Verdict{Action: Reject, HangUp: 3}, "cannot end the connection"},
		{"for one stage only, of the message", AtMessage, Verdict{Action: Accept, StageOnly: true}, "for the message stage only"},
		{"for one stage only, a no", AtSender, Verdict{Action: Reject, StageOnly: true}, "for the sender stage only"},
		{"too many remarks", AtHelo, Verdict{Remarks: make([]string, MaxRemarks+1)}, "33 remarks"},
		{"no new head", AtMessage, Verdict{Edits: []Edit{{Kind: EditHead}}}, "is not there"},
		{"copy's field", AtMessage, Verdict{Edits: []Edit{copyTo("a", message.FieldEdit{Name: ":"})}}, "field name"},
	}
	for _, test := range tests {
		for _, onError := range []OnError{ErrorDefers, ErrorContinues} {
			for _, mode := range []Mode{Enforce, Shadow} {
				t.Run(fmt.Sprintf("%s/%v/%v", test.name, onError, mode), func(t *testing.T) {
					var spool memorySpool
					f := at(test.stage, func(asked) (Verdict, error) {
						v := test.v
						v.Body = spool.body(t, "new\n")
						v.Others = append([]Verdict(nil), v.Others...)
						for i := range v.Others {
							v.Others[i].Body = spool.body(t, "new\n")
						}
						return v, nil
					})
					c := newChain(t, ChainOptions{}, Step{Filter: f, OnError: onError, Mode: mode})
					runWith(t, context.Background(), &spool, c, txTo(rcpts(2)...), func(o *Outcome) {
						want := Continue
						if mode == Enforce && onError == ErrorDefers {
							want = Defer
						}
						for n, f := range o.Fates {
							if f.Action != want {
								t.Errorf("recipient %d: %v, want %v", n, f.Action, want)
							}
						}
						if want == Continue && outgoing(o) != "a@example.org -> r0@example.org r1@example.org\n" {
							t.Errorf("outgoing %s", outgoing(o))
						}
						e := entries(o.Trace, "f0", test.stage)
						if len(e) != 1 || !strings.Contains(e[0].Err, test.err) && !strings.Contains(e[0].Err, "edits are not allowed") || len(e[0].Edits) > 0 {
							t.Errorf("trace %+v, want error %q", e, test.err)
						}
					})
				})
			}
		}
	}
}

// TestHangUp: how the connection ends is the fate's for as long as the fate
// holds, and what is said in front of an answer is said once.
func TestHangUp(t *testing.T) {
	ctx, tx := context.Background(), txTo("a@example.org")
	c := newChain(t, ChainOptions{},
		Step{Filter: says(AtConnect, Verdict{Remarks: []string{"one"}})},
		Step{Filter: says(AtConnect, Verdict{Remarks: []string{"shadow"}}), Mode: Shadow},
		Step{Filter: says(AtConnect, Verdict{Action: Reject, HangUp: HangUpAfter, Remarks: []string{"two"}})},
		Step{Filter: says(AtConnect, Verdict{Remarks: []string{"never asked"}})},
	)
	j := c.Begin()
	defer j.Close()
	f := j.Connect(ctx, tx.Session)
	if f.Action != Reject || f.HangUp != HangUpAfter || strings.Join(f.Remarks, " ") != "one two" {
		t.Errorf("at connect: %+v", f)
	}
	for _, f := range []Fate{j.Helo(ctx, tx.Session), j.Sender(ctx, tx), j.Recipient(ctx, tx, tx.Envelope.Recipients[0])} {
		if f.Action != Reject || f.HangUp != HangUpAfter || f.Remarks != nil {
			t.Errorf("later: %+v", f)
		}
	}
	c = newChain(t, ChainOptions{},
		Step{Filter: says(AtMessage, Verdict{Remarks: []string{"three"}, Only: []int{0}})},
		Step{Filter: says(AtMessage, Verdict{Action: Defer, HangUp: HangUpAtOnce})},
	)
	var spool memorySpool
	runWith(t, ctx, &spool, c, tx, func(o *Outcome) {
		if o.HangUp != HangUpAtOnce || strings.Join(o.Remarks, " ") != "three" {
			t.Errorf("the message: %v %q", o.HangUp, o.Remarks)
		}
	})
}

// TestStageOnly: an Accept for one stage leaves out what follows there, but for
// what always runs, and nothing of the stages behind.
func TestStageOnly(t *testing.T) {
	each := func() *fake {
		f := &fake{on: map[Stage]func(asked) (Verdict, error){}}
		for s := AtConnect; s <= AtMessage; s++ {
			f.on[s] = func(asked) (Verdict, error) { return Verdict{}, nil }
		}
		return f
	}
	for _, mode := range []Mode{Enforce, Shadow} {
		behind, always := each(), each()
		c := newChain(t, ChainOptions{},
			Step{Filter: says(AtSender, Verdict{Action: Accept, StageOnly: true}), Mode: mode},
			Step{Filter: behind}, Step{Filter: always, Always: true},
		)
		var spool memorySpool
		runWith(t, context.Background(), &spool, c, txTo("a@example.org"), func(o *Outcome) {
			if o.Fates[0].Action != Continue {
				t.Errorf("%v: %+v", mode, o.Fates[0])
			}
		})
		all := fmt.Sprint([]Stage{AtConnect, AtHelo, AtSender, AtRecipient, AtMessage})
		want := fmt.Sprint([]Stage{AtConnect, AtHelo, AtRecipient, AtMessage})
		if mode == Shadow {
			want = all
		}
		if got := fmt.Sprint(behind.called()); got != want {
			t.Errorf("%v: what follows was called at %s", mode, got)
		}
		if got := fmt.Sprint(always.called()); got != all {
			t.Errorf("%v: what always runs was called at %s", mode, got)
		}
	}
}

func TestEditString(t *testing.T) {
	for _, test := range []struct {
		edit Edit
		want string
	}{
		{addField("X-A", "b"), "add X-A: b"},
		{Edit{Kind: EditSender, Address: "a\nb"}, "sender <a b>"},
		{Edit{Kind: EditRecipient, Address: "a"}, "recipient <a>"},
		{Edit{Kind: EditAddRecipient, Address: "a"}, "add recipient <a>"},
		{copyTo("a"), "copy to <a> from <>"},
		{Edit{Kind: EditCopy}, "copy of nothing"},
		{Edit{Kind: EditHead}, "head of nothing"},
		{newHead("A: b\nC: d\n\n"), "a new head of 2 fields"},
		{Edit{Kind: 99}, "invalid"},
	} {
		if got := test.edit.String(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

func newHead(text string) Edit {
	h, _ := message.ParseHead(text)
	return Edit{Kind: EditHead, Head: &h}
}

// A new head is stored as it stands, with the body that it belongs to.
func TestNewHead(t *testing.T) {
	const old = "Subject: x\nFrom: y\n\nbody\n"
	for name, c := range map[string]struct {
		edits      []Edit
		body, want string
	}{
		"alone":           {[]Edit{newHead("subject:z\n\n")}, "", "subject:z\n\nbody\n"},
		"with a body":     {[]Edit{newHead("A: b\n\n")}, "new\n", "A: b\n\nnew\n"},
		"nothing between": {[]Edit{newHead("A: b\n")}, "new\n", "A: b\nnew\n"},
		"none":            {[]Edit{newHead("")}, "new\n", "new\n"},
		"empty":           {[]Edit{newHead("\n")}, "", "\nbody\n"},
		"fields":          {[]Edit{addField("X-A", "1"), newHead("A: b\n\n"), addField("X-B", "2")}, "", "X-B: 2\nA: b\n\nbody\n"},
		"the last counts": {[]Edit{newHead("A: b\n\n"), newHead("C: d\n\n")}, "", "C: d\n\nbody\n"},
	} {
		v := Verdict{Edits: c.edits}
		if c.body != "" {
			v.Body = message.BytesBody([]byte(c.body))
		}
		chain := newChain(t, ChainOptions{}, Step{Filter: at(AtMessage, func(asked) (Verdict, error) { return v, nil })})
		m := message.FromString(old)
		o := chain.Run(context.Background(), txTo("r@example.org"), m)
		if len(o.Outgoing) != 1 || string(o.Outgoing[0].Message.Bytes()) != c.want {
			t.Errorf("%s: %+v %v", name, o.Outgoing, o.Trace)
		}
		o.Release()
		m.Body().Release() //nolint:errcheck // it is in memory
	}
}
