package rspamd

import (
	"context"
	"fmt"
	"math"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
	"github.com/postern-mta/postern/pipeline/spam"
)

// deed is what is done with a message.
type deed struct {
	action pipeline.Action
	// spam is whether the message is called so in its header, subject whether its
	// subject is marked too.
	spam, subject bool
}

// parseDeed reads the word for a deed.
func parseDeed(word string) (deed, bool) {
	for _, d := range [...]struct {
		word string
		deed
	}{
		{"refuse", deed{pipeline.Reject, true, false}},
		{"defer", deed{pipeline.Defer, false, false}},
		{"quarantine", deed{pipeline.Quarantine, true, false}},
		{"discard", deed{pipeline.Discard, true, false}},
		{"header", deed{pipeline.Continue, true, false}},
		{"subject", deed{pipeline.Continue, true, true}},
		{"pass", deed{}},
	} {
		if d.word == word {
			return d.deed, true
		}
	}
	return deed{}, false
}

// Message has a rspamd judge the message.
func (f *Filter) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	size := m.Size()
	part := ""
	if size > f.o.Max {
		if f.o.Large == "skip" {
			why := fmt.Sprintf("larger than %d bytes", f.o.Max)
			v := pipeline.Verdict{Reason: "not judged: " + why, Symbols: []pipeline.Symbol{{Name: symbolSkipped, Detail: why}}}
			v.Edits = edits(nil, f.o.Strip(m.Head()))
			return v, nil
		}
		part = fmt.Sprintf(", of its first %d bytes", f.o.Max)
		size = f.o.Max
	}
	head := f.request(tx, size)
	var a answer
	err := f.rspamds.Do(ctx, func(ctx context.Context, s *servers.Server) (err error) {
		if a, err = ask(ctx, s, head, m.Reader(), size); err == nil {
			if _, known := f.does[a.action]; !known {
				err = servers.Refused(fmt.Errorf("rspamd answers the action %q, which is not under \"custom\"", reply.Clean(a.action, maxTold)))
			}
		}
		return err
	})
	if err != nil {
		return pipeline.Verdict{}, fmt.Errorf("not judged: %w", err)
	}
	return f.verdict(m, &a, part), nil
}

// verdict is what becomes of a message with that answer.
func (f *Filter) verdict(m message.Message, a *answer, part string) pipeline.Verdict {
	d := f.does[a.action]
	v := pipeline.Verdict{Action: d.action, Reason: reply.Clean(a.action, maxTold) + ", score " + spam.Number(a.score) + part}
	v.Symbols = append(v.Symbols, pipeline.Symbol{Name: symbolScore, Score: a.score, Detail: reply.Clean(a.action, maxTold)})
	tests := make([]string, 0, len(a.symbols))
	for i, s := range a.symbols {
		v.Symbols = append(v.Symbols, pipeline.Symbol{Name: symbolPrefix + s.name, Detail: spam.Number(s.score)})
		tests = append(tests, s.name+"="+spam.Number(s.score))
		if i == 0 {
			v.Reason += ":"
		}
		v.Reason += " " + tests[i]
	}
	switch d.action {
	case pipeline.Reject:
		v.Reply = reply.Make(554, reply.Refused.Enhanced, f.telling(a, "this message looks like spam"))
	case pipeline.Defer:
		v.Reply = reply.Make(451, reply.Deferred.Enhanced, f.telling(a, "please try again later"))
	}
	// What rspamd lists comes first, so that it cannot take our own marks off.
	if f.o.Milter {
		v.Edits = edits(v.Edits, a.edits)
	}
	required := a.required
	if !a.limited {
		required = math.NaN()
	}
	head := m.Head()
	tag := d.subject && !replaces(a.edits, "Subject", f.o.Milter)
	if tag && a.subject != "" {
		v.Edits = edits(v.Edits, []message.FieldEdit{{Op: message.Replace, Name: "Subject", Nth: 1, Value: a.subject}})
		tag = false
	}
	v.Edits = edits(v.Edits, f.o.Edits(head, spam.Report{Spam: d.spam, Tag: tag, Score: a.score, Required: required, Tests: tests, By: Name}))
	return v
}

// replaces reports whether a field is among those that rspamd changes.
func replaces(all []message.FieldEdit, name string, asked bool) bool {
	for _, e := range all {
		if asked && e.Op != message.Remove && e.Name == name {
			return true
		}
	}
	return false
}

// telling is what the sender hears.
func (f *Filter) telling(a *answer, otherwise string) string {
	switch {
	case f.o.Text != "":
		return f.o.Text
	case a.message != "":
		return a.message
	}
	return otherwise
}

func edits(list []pipeline.Edit, more []message.FieldEdit) []pipeline.Edit {
	for _, e := range more {
		list = append(list, pipeline.Field(e))
	}
	return list
}
