package tap

import (
	"testing"

	"github.com/postern-mta/postern/pipeline/filtertest"
)

// The suite that every filter passes, on a tap of either kind.
func TestSuite(t *testing.T) {
	cases := []filtertest.Case{
		{Name: "no match", From: "a@example.net", To: []string{"joe@example.org"}},
		{
			Name: "recipient", From: "a@example.net", To: []string{"joe@example.org", "SALES@example.org"},
			WantReason: "copied to <crm@example.org>: rule 2 (recipient) matches <SALES@example.org>", WantCopies: []string{" -> crm@example.org"},
		},
		{Name: "sender", From: "joe@example.org", WantReason: "rule 1 (sender)", WantCopies: []string{" -> archive@example.org"}},
		{Name: "the sender comes first", From: "joe@example.org", To: []string{"sales@example.org"}, WantReason: "rule 1 (sender)", WantCopies: []string{" -> archive@example.org"}},
		{
			Name: "a bounce", To: []string{"sales@example.org"}, Message: "From: <>\n\nno such user\n",
			WantReason: "rule 2 (recipient)", WantCopies: []string{" -> crm@example.org"},
		},
		{
			Name: "forged mark", From: "joe@example.org", Message: "Postern-Tap: v=1; of nobody\nSubject: x\n\nbody\n", WantMessage: "Subject: x\n\nbody\n",
			WantReason: "1 bad tap marks removed", WantEdits: []string{"remove Postern-Tap", "copy to <archive@example.org> from <>"}, WantCopies: []string{" -> archive@example.org"},
		},
		{
			Name: "reports to a mailbox of ours", From: "joe@example.org", Config: "bounces = \"tapmaster@example.org\"\nrules = [\"F:^joe@:archive@example.org\"]",
			WantReason: "rule 1 (sender)", WantCopies: []string{"tapmaster@example.org -> archive@example.org"},
		},
		{
			Name: "qmail's way", From: "joe@example.org", Config: "compat = true\nrules = [\"F:^joe@:archive@example.org\"]",
			WantReason: "rule 1 (sender)", WantEnvelopes: []string{"joe@example.org -> r@example.org archive@example.org"},
		},
		{
			Name: "every rule", From: "joe@example.org", To: []string{"sales@example.org"}, Config: "all = true\nrules = [\"F:^joe@:one@x.example\", \"T:^sales@:two@x.example\", \"A:example:one@x.example\"]",
			WantCopies: []string{" -> one@x.example", " -> two@x.example"},
		},
	}
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: "rules = [\"F:^joe@example\\\\.org$:archive@example.org\", \"T:^sales@:crm@example.org\"]", Cases: cases,
	})
	t.Run("everything", func(t *testing.T) {
		filtertest.Run(t, filtertest.Suite{Kind: Kind(), Config: "rules = [\"A:.*:archive@example.org\"]\n[[rule]]\nany = \"x\"\nnot = true\ncopy = [\"a@example.org\", \"b@example.org\"]"})
	})
}
