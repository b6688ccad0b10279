package pipeline

import (
	"fmt"
	"slices"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Trace is what every filter did with a message, in order. What a filter said
// several times at one stage is one entry.
type Trace []Entry

// Entry is what one filter did at one stage.
type Entry struct {
	Filter string `json:"filter"`
	Stage  string `json:"stage"`
	// Action is the verdict's word, "" if the filter did not run.
	Action string `json:"action,omitempty"`
	// Reply is what the peer would hear of a verdict that decides.
	Reply string `json:"reply,omitempty"`
	// Reason is the filter's own explanation, Err its error or the chain's.
	Reason string `json:"reason,omitempty"`
	Err    string `json:"error,omitempty"`
	// Skipped says why it did not run: "when", "off", "not for our own",
	// "decided". The entry of a filter "chain" with "no more room" counts the
	// consultations of a stage that are left out.
	Skipped string `json:"skipped,omitempty"`
	// Shadow is set where the verdict was recorded only.
	Shadow bool `json:"shadow,omitempty"`
	// Recipients is for how many recipients the entry speaks.
	Recipients int `json:"recipients,omitempty"`
	// Edits describe what it changed.
	Edits []string `json:"edits,omitempty"`
	// Split is how many recipients each action is for, where there are several.
	Split []Part `json:"split,omitempty"`
	// Took is the filter's time.
	Took time.Duration `json:"took,omitempty"`
}

// Part is the part of a verdict that has one action, and for how many recipients.
type Part struct {
	Action     string `json:"action"`
	Recipients int    `json:"recipients"`
}

// The bounds of a trace: its entries, how many of them may belong to stages
// before the message (a hundred thousand recipients must not crowd out what
// was said of the message), how far back equal entries are looked for, the
// bytes of a text, and the edits that an entry lists.
const (
	maxTrace  = 256
	maxEarly  = 128
	lookBack  = 32
	maxReason = 500
	maxEdits  = 20
)

// add appends an entry, or adds it to a recent one that says the same about
// other recipients.
func (t Trace) add(e Entry) Trace {
	e.Reason = reply.Clean(e.Reason, maxReason)
	e.Err = reply.Clean(e.Err, maxReason)
	if t.merge(e) {
		return t
	}
	room := maxTrace
	if e.Stage != AtMessage.String() && e.Stage != AtDelivery.String() {
		room = maxEarly
	}
	if len(t) < room {
		return append(t, e)
	}
	left := Entry{Filter: "chain", Stage: e.Stage, Skipped: "no more room", Recipients: e.Recipients}
	if t.merge(left) {
		return t
	}
	return append(t, left) // one a stage
}

func (t Trace) merge(e Entry) bool {
	for i := len(t) - 1; i >= max(0, len(t)-lookBack) && t[i].Stage == e.Stage; i-- {
		if t[i].same(&e) {
			t[i].Recipients += e.Recipients
			t[i].Took += e.Took
			return true
		}
	}
	return false
}

func (e *Entry) same(o *Entry) bool {
	return e.Filter == o.Filter && e.Stage == o.Stage && e.Action == o.Action && e.Reply == o.Reply &&
		e.Reason == o.Reason && e.Err == o.Err && e.Skipped == o.Skipped && e.Shadow == o.Shadow &&
		len(e.Split) == 0 && len(o.Split) == 0 && slices.Equal(e.Edits, o.Edits)
}

// say fills in what the verdict was.
func (e *Entry) say(v *Verdict) {
	e.Action, e.Reason, e.Reply, e.Edits, e.Split = v.Action.String(), v.Reason, "", nil, e.split(v)
	if v.Action != Continue && v.Action != Accept {
		e.Reply = reply.For(v.Action, v.Reply).SMTP()
	}
	more := e.list(v)
	for i := range v.Others {
		o := &v.Others[i]
		more += e.list(o)
		if len(e.Reason) <= maxReason {
			e.Reason += fmt.Sprintf("; %v for %d others: %s", o.Action, len(o.Only), reply.Clean(o.Reason, maxReason))
		}
	}
	if more > 0 {
		e.Edits = append(e.Edits, fmt.Sprintf("and %d more", more))
	}
}

// split counts the recipients of each action; nil if there is only one.
func (e *Entry) split(v *Verdict) []Part {
	if len(v.Others) == 0 {
		return nil
	}
	var counts [reply.Actions]int
	rest := e.Recipients
	for i := range v.Others {
		o := &v.Others[i]
		counts[o.Action] += len(o.Only)
		rest -= len(o.Only)
	}
	if v.Only != nil {
		rest = len(v.Only)
	}
	counts[v.Action] += max(rest, 0)
	parts := []Part{{v.Action.String(), counts[v.Action]}}
	for a, n := range counts {
		if n > 0 && Action(a) != v.Action {
			parts = append(parts, Part{Action(a).String(), n})
		}
	}
	if len(parts) == 1 {
		return nil
	}
	return parts
}

// list adds a verdict's edits, and tells how many found no room.
func (e *Entry) list(v *Verdict) (more int) {
	for i, edit := range v.Edits {
		if len(e.Edits) == maxEdits {
			more = len(v.Edits) - i
			break
		}
		e.Edits = append(e.Edits, edit.String())
	}
	switch {
	case v.Body == nil:
	case len(e.Edits) == maxEdits:
		more++
	default:
		e.Edits = append(e.Edits, "new body")
	}
	return more
}
