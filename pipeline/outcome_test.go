package pipeline

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/reply"
)

// mixedTable is the design's "mixed": what becomes of a message whose
// recipients have come to S(tored), R(efused), D(eferred) in these
// combinations. "R+DSN" stores for the accepted and reports the refused.
var mixedTable = []struct {
	fates           string
	bounce, reject  string // one answer
	eachly          string // a protocol that answers each recipient
	refusalMentions string
}{
	{"S", "store", "store", "store", ""},
	{"R", "refuse", "refuse", "refuse", ""},
	{"D", "defer", "defer", "defer", ""},
	{"SR", "store+DSN", "refuse", "store", "refused for <r1@example.org>: no"},
	{"SD", "defer", "defer", "store", ""},
	{"RD", "defer", "refuse", "", "refused for <r0@example.org>: no"},
	{"SRD", "defer", "defer", "store", ""},
	{"XX", "nothing", "nothing", "nothing", ""}, // discarded
	{"XR", "nothing+DSN", "refuse", "nothing", "refused for <r1@example.org>: no"},
	{"XD", "defer", "defer", "nothing", ""},
	{"QR", "store+DSN", "refuse", "store", "refused for <r1@example.org>: no"}, // quarantined
	{"SSSRRRRRRR", "store+DSN", "refuse", "store", "<r7@example.org> and 2 more: no"},
}

var fateLetters = map[byte]Verdict{
	'S': {}, 'X': {Action: Discard}, 'Q': {Action: Quarantine},
	'R': {Action: Reject, Reply: reply.Make(550, reply.Enhanced{Subject: 1, Detail: 1}, "no")},
	'D': {Action: Defer},
}

func TestMixed(t *testing.T) {
	for _, row := range mixedTable {
		for mixed := MixedByStanding; mixed <= MixedReject; mixed++ {
			for standing := Stranger; standing <= Local; standing++ {
				for _, answersEach := range []bool{false, true} {
					want := row.bounce
					if mixed == MixedReject || mixed == MixedByStanding && standing == Stranger {
						want = row.reject
					}
					if answersEach && row.eachly != "" {
						want = row.eachly
					}
					t.Run(fmt.Sprintf("%s/%v/%v/%v", row.fates, mixed, standing, answersEach), func(t *testing.T) {
						f := at(AtMessage, each(func(n int) Verdict { return fateLetters[row.fates[n]] }))
						tx := txTo(rcpts(len(row.fates))...)
						tx.Session.Standing, tx.Session.AnswersEach = standing, answersEach
						runIn(t, context.Background(), newChain(t, ChainOptions{Mixed: mixed}, Step{Filter: f}), tx, func(o *Outcome) {
							checkMixed(t, row.fates, want, row.refusalMentions, o)
						})
					})
				}
			}
		}
	}
}

func checkMixed(t *testing.T, fates, want, mentions string, o *Outcome) {
	t.Helper()
	got := map[reply.Class]string{reply.Success: "store", reply.Temporary: "defer", reply.Permanent: "refuse"}[o.Reply.Class]
	if got == "store" && len(o.Outgoing) == 0 {
		got = "nothing"
	}
	if len(o.Refused) > 0 {
		got += "+DSN"
	}
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if (len(o.Outgoing) > 0) != strings.HasPrefix(want, "store") {
		t.Errorf("%d outgoing", len(o.Outgoing))
	}
	if want == "refuse" && !strings.Contains(o.Reply.SMTP(), mentions) || strings.HasPrefix(want, "refuse") && !strings.HasPrefix(o.Reply.SMTP(), "550 5.1.1 ") {
		t.Errorf("reply %q lacks %q", o.Reply, mentions)
	}
	refused := map[string]bool{}
	for _, r := range o.Refused {
		if refused[r.Recipient.Address] = true; r.Reply.SMTP() != "550 5.1.1 no" {
			t.Errorf("refusal %+v", r)
		}
	}
	stored := map[string]bool{}
	for _, out := range o.Outgoing {
		for _, r := range out.Envelope.Recipients {
			stored[r.Address] = true
		}
	}
	for n, address := range rcpts(len(fates)) {
		f := fateLetters[fates[n]].Action
		if o.Fates[n].Action != f || o.Fates[n].Reply.Class != reply.For(f, reply.Reply{}).Class {
			t.Errorf("%s: fate %+v", address, o.Fates[n])
		}
		if taken := strings.HasPrefix(want, "store"); stored[address] != (taken && stores(f)) {
			t.Errorf("%s stored: %v", address, stored[address])
		}
		if refused[address] != (strings.HasSuffix(want, "DSN") && f == Reject) {
			t.Errorf("%s reported: %v", address, refused[address])
		}
	}
}

// TestRefusalFits: long and odd addresses do not crowd the words out of a
// refusal.
func TestRefusalFits(t *testing.T) {
	var to []string
	for i := range 9 {
		to = append(to, fmt.Sprintf("r%d", i)+strings.Repeat("\xffx", 400)+"@example.org")
	}
	f := at(AtMessage, each(func(n int) Verdict { return fateLetters["SRRRRRRRR"[n]] }))
	runIn(t, context.Background(), newChain(t, ChainOptions{}, Step{Filter: f}), txTo(to...), func(o *Outcome) {
		if s := o.Reply.SMTP(); !strings.HasSuffix(s, " and 3 more: no") || len(s) > 512 {
			t.Errorf("%q", s)
		}
	})
}

func TestParseWords(t *testing.T) {
	for m := MixedByStanding; m <= MixedReject; m++ {
		if got, ok := ParseMixed(m.String()); !ok || got != m {
			t.Errorf("%v", m)
		}
	}
	for o := ErrorDefers; o <= ErrorContinues; o++ {
		if got, ok := ParseOnError(o.String()); !ok || got != o {
			t.Errorf("%v", o)
		}
	}
	for s := Stranger; s <= Local; s++ {
		if ParseStanding(s.String()) != s {
			t.Errorf("%v", s)
		}
	}
	if _, ok := ParseMixed("?"); ok {
		t.Error("mixed")
	}
	if _, ok := ParseOnError("?"); ok {
		t.Error("on_error")
	}
	for _, s := range []fmt.Stringer{Mixed(9), OnError(9), Stage(9)} {
		if s.String() != "invalid" {
			t.Errorf("%T", s)
		}
	}
	if ParseStanding("root") != Stranger || Standing(9).String() != "external" {
		t.Error("an unknown standing is not a stranger's")
	}
}
