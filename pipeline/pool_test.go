package pipeline

import (
	"context"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/message"
)

// TestPoolIsInTheOrigin has the pool chosen for the message as the filters leave it,
// and kept with its origin.
func TestPoolIsInTheOrigin(t *testing.T) {
	questions := 0
	o := ChainOptions{Pool: func(tx *Transaction, m message.Message) string {
		questions++
		if strings.Contains(string(m.HeadText()), "X-Campaign: 1") && tx.Envelope.Sender == "a@example.org" {
			return "news"
		}
		return ""
	}}
	edits := at(AtMessage, each(func(n int) Verdict {
		if n == 0 {
			return Verdict{Edits: []Edit{addField("X-Campaign", "1")}}
		}
		return Verdict{}
	}))
	runIn(t, context.Background(), newChain(t, o, Step{Filter: edits}), txTo(rcpts(2)...), func(out *Outcome) {
		var got []string
		for _, m := range out.Outgoing {
			b, err := m.Origin.Encode()
			if err != nil {
				t.Fatal(err)
			}
			back, err := DecodeOrigin(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, m.Envelope.Recipients[0].Address+" "+back.Pool)
		}
		if want := "r1@example.org , r0@example.org news"; strings.Join(got, ", ") != want || questions != 2 {
			t.Errorf("%q after %d questions, want %q", strings.Join(got, ", "), questions, want)
		}
	})
	refuses := at(AtMessage, func(asked) (Verdict, error) { return Verdict{Action: Reject}, nil })
	runIn(t, context.Background(), newChain(t, o, Step{Filter: refuses}), txTo(rcpts(2)...), func(*Outcome) {
		if questions != 2 {
			t.Error("questions for a message that nobody gets")
		}
	})
}
