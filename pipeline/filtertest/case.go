package filtertest

import (
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
)

// Case is one message and what the filter is to make of it. A field that is
// left out wants nothing special: no action, no change, no copy, no failure.
type Case struct {
	Name string
	// Config replaces the Suite's, Session its session.
	Config  string
	Session *pipeline.Session
	// From is the envelope sender, To the recipients; nil means one,
	// r@example.org. Message is the text, in canonical form; "" means a plain one.
	From    string
	To      []string
	Message string

	// WantAction is every recipient's, WantActions each one's.
	WantAction  pipeline.Action
	WantActions []pipeline.Action
	// WantReply is contained in what the peer hears, WantReason in what the trace
	// says, WantErr in the filter's error.
	WantReply, WantReason, WantErr string
	// WantMessage is the message as it is stored for the first recipient that is
	// delivered or held. Where it is "" and there are no WantEdits, it is stored
	// as it came.
	WantMessage string
	// WantEdits are the edits as the trace lists them; nil does not look.
	WantEdits []string
	// WantEnvelopes are the messages stored, "sender -> recipient recipient",
	// without copies; nil wants the envelope as it came, less who is not stored.
	WantEnvelopes []string
	// WantCopies are the copies, likewise.
	WantCopies []string
}

func (c Case) check(t testing.TB, s Suite) {
	t.Helper()
	if c.Config != "" {
		s.Config = c.Config
	}
	session := c.Session
	if session == nil {
		session = s.session()
	}
	each := *session
	each.AnswersEach = true // each recipient's fate for itself
	to := c.To
	if to == nil {
		to = []string{"r@example.org"}
	}
	text := c.Message
	if text == "" {
		text = plainText
	}
	b := newBench(t, s, pipeline.Enforce)
	h := Hostile{"case", envelope.To(c.From, to...), text}
	r := b.run(t, &each, h)
	if r == nil {
		return
	}
	if c.WantErr == "" {
		r.checkAnswers(t, h.Name, false)
	}
	c.checkFates(t, r)
	c.checkTrace(t, r)
	c.checkStored(t, h, r)
}

func (c Case) checkFates(t testing.TB, r *result) {
	t.Helper()
	for n, f := range r.fates {
		want := c.WantAction
		if c.WantActions != nil {
			if n >= len(c.WantActions) {
				t.Errorf("WantActions lacks recipient %d", n)
				continue
			}
			want = c.WantActions[n]
		}
		if f.Action != want {
			t.Errorf("recipient %d: %v (%s), want %v", n, f.Action, f.Reason, want)
		}
	}
	if !strings.Contains(r.reply.SMTP(), c.WantReply) {
		t.Errorf("reply %q, want %q", r.reply, c.WantReply)
	}
}

func (c Case) checkTrace(t testing.TB, r *result) {
	t.Helper()
	var reasons, errs, edits []string
	for _, e := range r.trace {
		if reasons = append(reasons, e.Reason); e.Err != "" {
			errs = append(errs, e.Err)
		}
		edits = append(edits, e.Edits...)
	}
	if all := strings.Join(reasons, "\n"); !strings.Contains(all, c.WantReason) {
		t.Errorf("reason %q, want %q", all, c.WantReason)
	}
	if all := strings.Join(errs, "\n"); !strings.Contains(all, c.WantErr) || all != "" && c.WantErr == "" {
		t.Errorf("error %q, want %q", all, c.WantErr)
	}
	if c.WantEdits != nil && !slices.Equal(edits, c.WantEdits) {
		t.Errorf("edits %q, want %q", edits, c.WantEdits)
	}
}

func (c Case) checkStored(t testing.TB, h Hostile, r *result) {
	t.Helper()
	var envelopes, copies []string
	text, stored := "", false
	for _, m := range r.stored {
		line := m.Envelope.Sender + " -> " + strings.Join(m.Envelope.Addresses(), " ")
		if m.Copy {
			copies = append(copies, line)
			continue
		}
		if envelopes = append(envelopes, line); !stored {
			text, stored = m.text, true
		}
	}
	want := c.WantMessage
	if want == "" {
		want = h.Text
	}
	switch {
	case c.WantMessage == "" && (!stored || c.WantEdits != nil):
	case !stored:
		t.Error("no message is stored")
	case text != want:
		t.Errorf("message %s", difference(text, want))
	}
	if wantEnvelopes := c.envelopes(h, r); !slices.Equal(envelopes, wantEnvelopes) {
		t.Errorf("stored %q, want %q", envelopes, wantEnvelopes)
	}
	if !slices.Equal(copies, c.WantCopies) {
		t.Errorf("copies %q, want %q", copies, c.WantCopies)
	}
}

// envelopes are those that the case wants stored: without its word the one that
// came, and one for who is held.
func (c Case) envelopes(h Hostile, r *result) []string {
	if c.WantEnvelopes != nil {
		return c.WantEnvelopes
	}
	var all []string
	var holds []string
	lines := map[string][]string{}
	for n, f := range r.fates {
		hold := ""
		switch f.Action {
		case pipeline.Continue, pipeline.Accept:
		case pipeline.Quarantine:
			hold = "held: " + f.Reason
		default:
			continue
		}
		if lines[hold] == nil {
			holds = append(holds, hold)
		}
		lines[hold] = append(lines[hold], h.Recipients[n].Address)
	}
	for _, hold := range holds {
		all = append(all, h.Sender+" -> "+strings.Join(lines[hold], " "))
	}
	if len(h.Recipients) == 0 && len(r.stored) > 0 {
		all = append(all, h.Sender+" -> ")
	}
	return all
}
