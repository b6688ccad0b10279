package pipeline

import (
	"encoding/json"
	"log/slog"

	"github.com/postern-mta/postern/pipeline/reply"
)

// LogShadow is what the filters in shadow said of a transaction, as a log line
// has it: a list in JSON, and the same list as a text, which is quoted, in the
// text format. Unlike LogList it is for programs: whatever a filter's reason
// holds, nobody can take it for another filter's verdict.
type LogShadow []ShadowVerdict

// ShadowVerdict is what one filter in shadow said at one stage: for those
// recipients of whom it said the same.
type ShadowVerdict struct {
	Filter string `json:"filter"`
	Stage  string `json:"stage"`
	Action string `json:"action"`
	// Recipients is how many it is about, Edits how many changes it would make.
	Recipients int `json:"recipients,omitempty"`
	Edits      int `json:"edits,omitempty"`
	// Reason is its own explanation, else its first edit, in one clean line of at
	// most 200 bytes; of a filter that failed it is the error, and Failed is set.
	Reason string `json:"reason,omitempty"`
	Failed bool   `json:"failed,omitempty"`
}

// The keys of a log line about filters in shadow. A line has both, or neither.
const (
	LogKeyShadow = "shadow"
	// LogKeyEnforced is the most severe verdict that counted: an action's word.
	LogKeyEnforced = "enforced"
)

// MarshalText is encoding.TextMarshaler.
func (l LogShadow) MarshalText() ([]byte, error) { return json.Marshal([]ShadowVerdict(l)) }

// MarshalJSON is json.Marshaler.
func (l LogShadow) MarshalJSON() ([]byte, error) { return json.Marshal([]ShadowVerdict(l)) }

// severity orders actions by how much they keep from a recipient.
var severity = [...]int{Continue: 0, Accept: 1, Discard: 2, Quarantine: 3, Defer: 4, Reject: 5}

// Severer reports whether an action keeps more from a recipient than another.
func Severer(a, than Action) bool {
	return int(a) < len(severity) && int(than) < len(severity) && severity[a] > severity[than]
}

// LogShadow appends to the attributes of a log line what filters in shadow said,
// and the most severe verdict that counted; nothing if there was none in shadow.
func (t Trace) LogShadow(attrs []slog.Attr) []slog.Attr {
	list, enforced := t.shadow()
	if len(list) == 0 {
		return attrs
	}
	return append(attrs, slog.Any(LogKeyShadow, list), slog.String(LogKeyEnforced, enforced.String()))
}

func (t Trace) shadow() (list LogShadow, enforced Action) {
	for i := range t {
		e := &t[i]
		if e.Skipped != "" {
			continue
		}
		if !e.Shadow {
			for _, part := range e.parts() {
				if a, ok := reply.ParseAction(part.Action); ok && Severer(a, enforced) {
					enforced = a
				}
			}
			continue
		}
		for n, part := range e.parts() {
			v := ShadowVerdict{Filter: e.Filter, Stage: e.Stage, Action: part.Action, Recipients: part.Recipients, Failed: e.Err != ""}
			if n == 0 {
				v.Edits = len(e.Edits)
			}
			list = list.add(v, e)
		}
	}
	return list, enforced
}

// add appends a verdict, or counts it with one that is alike but for the reason:
// a line is bounded by the filters, and not by the recipients.
func (l LogShadow) add(v ShadowVerdict, e *Entry) LogShadow {
	for i := range l {
		o := &l[i]
		if o.Filter == v.Filter && o.Stage == v.Stage && o.Action == v.Action && o.Failed == v.Failed {
			o.Recipients, o.Edits = o.Recipients+v.Recipients, max(o.Edits, v.Edits)
			return l
		}
	}
	if len(l) == maxLoggedFilters {
		return l
	}
	switch {
	case e.Err != "":
		v.Reason = e.Err
	case e.Reason != "":
		v.Reason = e.Reason
	case len(e.Edits) > 0:
		v.Reason = e.Edits[0]
	}
	v.Reason = LogText(v.Reason, maxLogged)
	return append(l, v)
}

// parts are an entry's verdicts, one an action.
func (e *Entry) parts() []Part {
	if len(e.Split) > 0 {
		return e.Split
	}
	return []Part{{e.Action, e.Recipients}}
}
