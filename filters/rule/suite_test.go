package rule

import (
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
)

// The suite that every filter passes, and each action.
func TestSuite(t *testing.T) {
	const each = "[[rule]]\nwhen = '\"gone@example.org\" in recipients'\neach = true\naction = \"reject\"\nreply = \"550 5.1.1 gone\"\n"
	answer := func(action, more string) string {
		return "[[rule]]\nwhen = 'header(\"Subject\") == \"x\"'\naction = \"" + action + "\"\n" + more
	}
	const message = "Subject: x\n\nbody\n"
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: each + answer("reject", ""),
		Cases: []filtertest.Case{
			{Name: "no match", Message: "Subject: y\n\nbody\n"},
			{Name: "accept", Config: answer("accept", ""), Message: message, WantReason: "rule 1", WantAction: pipeline.Accept},
			{Name: "reject", Config: answer("reject", "reply = \"554 5.7.1 no\"\n"), Message: message, WantReason: "rule 1", WantAction: pipeline.Reject, WantReply: "554 5.7.1 no", WantEnvelopes: []string{}},
			{Name: "defer", Config: answer("defer", "reason = \"full moon\"\n"), Message: message, WantReason: "full moon", WantAction: pipeline.Defer, WantReply: "451 4.7.1", WantEnvelopes: []string{}},
			{Name: "discard", Config: answer("discard", ""), Message: message, WantReason: "rule 1", WantAction: pipeline.Discard, WantReply: "250", WantEnvelopes: []string{}},
			{Name: "quarantine", Config: answer("quarantine", ""), Message: message, WantReason: "rule 1", WantAction: pipeline.Quarantine},
			{
				Name: "one of two", Message: "Subject: y\n\nbody\n", From: "a@example.net", To: []string{"joe@example.org", "gone@example.org"},
				WantReason: "rule 1", WantActions: []pipeline.Action{pipeline.Continue, pipeline.Reject}, WantReply: "250", WantEnvelopes: []string{"a@example.net -> joe@example.org"},
			},
			{Name: "a rule that cannot be answered", Config: "[[rule]]\nwhen = '1 % (size - size) > 0'\naction = \"accept\"\n", WantAction: pipeline.Defer, WantErr: "rule 1: ", WantEnvelopes: []string{}},
		},
	})
}
