package milter

import (
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
)

// The suite that every filter passes, with each answer and each modification.
func TestSuite(t *testing.T) {
	with := func(says map[string]string) string { return "address = [\"" + newFake(says).start(t).Address + "\"]\n" }
	one := func(at, packets string) string { return with(map[string]string{at: packets}) }
	const text = "Received: 1\nSubject:x\nX-A: 1\nx-a:\t2\n fold\nX-A : 3\nFrom: a\n\nbody\n"
	type edge struct{ name, packets, want string }
	var cases []filtertest.Case
	for _, e := range []edge{
		{"addheader", packet('h', "X-B\x00b\r\n c\x00"), strings.Replace(text, "\n\n", "\nX-B: b\n c\n\n", 1)},
		{"insheader on top", indexed('i', 0, "X-B", "b"), "X-B: b\n" + text},
		{"insheader below Received", indexed('i', 1, "X-B", "b"), strings.Replace(text, "Subject", "X-B: b\nSubject", 1)},
		{"insheader below the fourth", indexed('i', 4, "X-B", "b"), strings.Replace(text, "X-A :", "X-B: b\nX-A :", 1)},
		{"insheader below all", indexed('i', 6, "X-B", "b"), strings.Replace(text, "\n\n", "\nX-B: b\n\n", 1)},
		{"insheader far below", indexed('i', 1<<31, "X-B", "b"), strings.Replace(text, "\n\n", "\nX-B: b\n\n", 1)},
		{"two insheaders", indexed('i', 1, "X-B", "b") + indexed('i', 1, "X-C", "c"), strings.Replace(text, "Subject", "X-C: c\nX-B: b\nSubject", 1)},
		{"chgheader", indexed('m', 1, "subject", "y"), strings.Replace(text, "Subject:x", "subject: y", 1)},
		{"chgheader of none", indexed('m', 0, "Subject", "y"), strings.Replace(text, "Subject:x", "Subject: y", 1)},
		{"chgheader of the second", indexed('m', 2, "X-A", "y"), strings.Replace(text, "x-a:\t2\n fold", "X-A: y", 1)},
		{"chgheader of one that is not there", indexed('m', 4, "X-A", "y"), strings.Replace(text, "\n\n", "\nX-A: y\n\n", 1)},
		{"chgheader that deletes", indexed('m', 2, "X-A", ""), strings.Replace(text, "x-a:\t2\n fold\n", "", 1)},
		{"chgheader that deletes nothing", indexed('m', 9, "X-A", "") + indexed('m', 1, "X-B", ""), text},
		{"deleting all, backwards", indexed('m', 3, "X-A", "") + indexed('m', 2, "X-A", "") + indexed('m', 1, "X-A", ""), "Received: 1\nSubject:x\nFrom: a\n\nbody\n"},
		{"deleted, then the next", indexed('m', 1, "X-A", "") + indexed('m', 1, "X-A", "y"), strings.Replace(text, "X-A: 1\nx-a:\t2\n fold", "X-A: y", 1)},
		{"evil value", packet('h', "X-B\x00b\r\nX-Evil: c\r\n\r\n\x1b[2J\nbody\x00"), strings.Replace(text, "\n\n", "\nX-B: b\n\tX-Evil: c\n\t?[2J\n\tbody\n\n", 1)},
		{"a long line", packet('h', "X-B\x00"+strings.Repeat("word ", 300)+"\x00"), ""},
		{"replbody", packet('b', "new\r\nbody\r") + packet('b', "\nwith\rCR\x00 and no end"), strings.Replace(text, "\nbody\n", "\nnew\nbody\nwith\nCR and no end\n", 1)},
		{"an empty replbody", packet('b', ""), strings.Replace(text, "\nbody\n", "\n", 1)},
		{"progress", packet('p', "") + packet('p', "") + packet('h', "X-B\x00b\x00") + packet('p', ""), strings.Replace(text, "\n\n", "\nX-B: b\n\n", 1)},
	} {
		c := filtertest.Case{Name: e.name, Config: with(eom(e.packets)), Message: text, WantMessage: e.want, WantReason: "accepted"}
		if e.want == "" {
			c.WantMessage = strings.Replace(text, "\n\n", "\nX-B: "+strings.Repeat("word ", 197)+"word\n "+strings.Repeat("word ", 102)+"\n\n", 1)
		}
		cases = append(cases, c)
	}
	both := []string{"a@example.org", "b@example.org"}
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: with(nil), Cases: append(cases, []filtertest.Case{
			{Name: "continue", WantReason: "goes on"},
			{Name: "insheader of a local program", Config: with(eom(indexed('i', 1, "X-B", "b") + indexed('i', 3, "X-C", "c"))), Message: "Subject: x\nTo: y\n\n", WantMessage: "X-B: b\nSubject: x\nX-C: c\nTo: y\n\n"},
			{Name: "reject at connect", Config: one("C", packet('r', "")), WantAction: pipeline.Reject, WantReply: "554 5.7.1 message refused", WantReason: "at connect: refused", WantEnvelopes: []string{}},
			{Name: "tempfail at helo", Config: one("H", packet('t', "")), WantAction: pipeline.Defer, WantReply: "451 4.7.1", WantEnvelopes: []string{}},
			{Name: "accept at connect", Config: with(map[string]string{"C": packet('a', ""), "M": packet('r', "")}), WantReason: "at connect: accepted"},
			{Name: "discard at connect", Config: one("C", packet('d', "")), WantAction: pipeline.Discard, WantEnvelopes: []string{}},
			{Name: "reply at mail", Config: one("M", packet('y', "553 5.1.8 no such 100%% sender\x00")), WantAction: pipeline.Reject, WantReply: "553 5.1.8 no such 100% sender", WantEnvelopes: []string{}},
			{Name: "lines of a reply", Config: one("E", packet('y', "451-4.7.1 one\r\n451-4.7.1 two\r\n451 4.7.1 three\r\n\x00")), WantAction: pipeline.Defer, WantReply: "451 4.7.1 one two three", WantEnvelopes: []string{}},
			{Name: "bare lines of a reply", Config: one("E", packet('y', "550-one\n550 two\x00")), WantAction: pipeline.Reject, WantReply: "550 5.7.1 one two", WantEnvelopes: []string{}},
			{Name: "a reply that hangs up", Config: one("M", packet('y', "421 4.3.2 going down\x00")), WantAction: pipeline.Defer, WantReply: "421 4.3.2 going down", WantEnvelopes: []string{}},
			{Name: "shutdown", Config: one("M", packet('4', "")), WantAction: pipeline.Defer, WantReply: "421 4.7.0 service not available", WantEnvelopes: []string{}},
			{Name: "connection to fail", Config: one("C", packet('f', "")), WantAction: pipeline.Defer, WantReply: "421 4.7.0", WantEnvelopes: []string{}},
			{Name: "a recipient", From: "a@example.net", Config: one("R<b@example.org>", packet('r', "")), To: both, WantActions: []pipeline.Action{pipeline.Continue, pipeline.Reject}, WantEnvelopes: []string{"a@example.net -> a@example.org"}},
			{Name: "discard at rcpt", Config: one("R<b@example.org>", packet('d', "")), To: both, WantAction: pipeline.Discard, WantEnvelopes: []string{}},
			{Name: "accept at rcpt", Config: with(map[string]string{"R<b@example.org>": packet('a', ""), "E": packet('r', "")}), To: both, WantReason: "at rcpt: accepted"},
			{Name: "data", Config: one("T", packet('r', "")), WantAction: pipeline.Reject, WantReason: "at data", WantEnvelopes: []string{}},
			{Name: "header", Config: one("LSubject", packet('r', "")), Message: text, WantAction: pipeline.Reject, WantReason: "at header", WantEnvelopes: []string{}},
			{Name: "end of header", Config: one("N", packet('t', "")), WantAction: pipeline.Defer, WantReason: "at end of header", WantEnvelopes: []string{}},
			{Name: "body", Config: one("B", packet('d', "")), WantAction: pipeline.Discard, WantReason: "at body", WantEnvelopes: []string{}},
			{Name: "accept in the body", Config: with(map[string]string{"B": packet('a', ""), "E": packet('r', "")}), WantReason: "at body: accepted"},
			{Name: "continue at the end", Config: one("E", packet('h', "X-B\x00b\x00")+packet('c', "")), Message: "Subject: x\n\n", WantMessage: "Subject: x\nX-B: b\n\n"},
			{Name: "refused all the same", Config: one("E", packet('h', "X-B\x00b\x00")+packet('b', "x")+packet('r', "")), WantAction: pipeline.Reject, WantReason: "at end of message: refused", WantEnvelopes: []string{}},
			{Name: "quarantine", Config: with(eom(packet('q', "looks bad\x00"), packet('h', "X-B\x00b\x00"))), Message: "Subject: x\n\n", WantAction: pipeline.Quarantine, WantReason: "held: looks bad", WantMessage: "Subject: x\nX-B: b\n\n"},
			{Name: "chgfrom", From: "a@example.net", Config: with(eom(packet('e', "<b@example.net>\x00SIZE=5\x00"))), WantEdits: []string{"sender <b@example.net>"}, WantEnvelopes: []string{"b@example.net -> r@example.org"}},
			{Name: "chgfrom to nobody", From: "a@example.net", Config: with(eom(packet('e', "<>\x00"))), WantEdits: []string{"sender <>"}, WantEnvelopes: []string{" -> r@example.org"}},
			{Name: "addrcpt", From: "a@example.net", Config: with(eom(packet('+', "<b@example.org>\x00"), packet('+', "<r@EXAMPLE.org>\x00"))), WantEdits: []string{"add recipient <b@example.org>"}, WantEnvelopes: []string{"a@example.net -> r@example.org b@example.org"}},
			{Name: "addrcpt_par", From: "a@example.net", Config: with(eom(packet('2', "<b@example.org>\x00NOTIFY=NEVER\x00"))), WantEdits: []string{"add recipient <b@example.org>"}, WantEnvelopes: []string{"a@example.net -> r@example.org b@example.org"}},
			{Name: "delrcpt", From: "a@example.net", Config: with(eom(packet('-', "<b@Example.org>\x00"))), To: both, WantActions: []pipeline.Action{pipeline.Continue, pipeline.Discard}, WantEdits: []string{}, WantEnvelopes: []string{"a@example.net -> a@example.org"}},
			{Name: "delrcpt of all", Config: with(eom(packet('-', "<a@example.org>\x00"), packet('-', "b@example.org\x00"))), To: both, WantAction: pipeline.Discard, WantEnvelopes: []string{}},
			{
				Name: "others in their place", From: "a@example.net", Config: with(eom(packet('-', "<a@example.org>\x00"), packet('-', "<b@example.org>\x00"), packet('+', "<c@example.org>\x00"), packet('+', "<d@example.org>\x00"))), To: both,
				WantEdits: []string{"recipient <c@example.org>", "add recipient <d@example.org>"}, WantEnvelopes: []string{"a@example.net -> c@example.org d@example.org"},
			},
			{Name: "removed and back", From: "a@example.net", Config: with(eom(packet('-', "<r@example.org>\x00"), packet('+', "<r@example.org>\x00"), packet('+', "<x@example.org>\x00"), packet('-', "<x@example.org>\x00"))), WantEdits: []string{}, WantEnvelopes: []string{"a@example.net -> r@example.org"}},
			{Name: "an evil address", Config: with(eom(packet('+', "<x\r\ny@example.org>\x00"))), WantAction: pipeline.Defer, WantErr: "control character", WantEnvelopes: []string{}},
			{Name: "an evil name", Config: with(eom(packet('h', "X Y\x00b\x00"))), WantAction: pipeline.Defer, WantErr: "a header field that cannot be", WantEnvelopes: []string{}},
			{Name: "a body that is too large", Config: with(eom(packet('b', "twelve bytes"))) + "body = 11", WantAction: pipeline.Defer, WantErr: `see the option "body"`, WantEnvelopes: []string{}},
			{Name: "no milter", Config: "address = [\"unix:/nonexistent/milter\"]", WantAction: pipeline.Defer, WantErr: "unix:/nonexistent/milter", WantEnvelopes: []string{}},
		}...),
	})
}
