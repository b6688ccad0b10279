package execban

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// worst is the order of actions: the first that a finding has is the message's.
var worst = [...]pipeline.Action{pipeline.Reject, pipeline.Quarantine, pipeline.Defer, pipeline.Continue}

// judge is what becomes of a message. An error is one of a rule.
func (p *policy) judge(a *answer, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	if len(a.findings) == 0 {
		return pipeline.Verdict{Reason: "nothing found in " + a.looked()}, nil
	}
	excepted, err := p.excepted(tx, m)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	actions := make([]pipeline.Action, len(a.findings))
	for i, f := range a.findings {
		if !excepted(f.class) {
			actions[i] = p.actions[f.class]
		}
	}
	v := pipeline.Verdict{Symbols: symbols(a.findings)}
	deciding := -1
	for _, action := range worst {
		if deciding = slices.Index(actions, action); deciding >= 0 {
			v.Action = action
			break
		}
	}
	v.Reason = a.reason(actions, deciding)
	text := a.findings[deciding].told()
	if p.text != "" {
		text += "; " + p.text
	}
	switch v.Action {
	case pipeline.Reject:
		v.Reply = reply.Make(554, reply.Refused.Enhanced, text)
	case pipeline.Defer:
		v.Reply = reply.Make(451, reply.Deferred.Enhanced, text)
	}
	return v, nil
}

// excepted tells which classes pass for this message.
func (p *policy) excepted(tx *pipeline.Transaction, m message.Message) (func(class string) bool, error) {
	var matching []exception
	facts := pipeline.FactsAt(tx, m)
	for i, e := range p.except {
		match, err := e.when.Match(facts)
		if err != nil {
			return nil, fmt.Errorf("exception %d: %w", i+1, err)
		}
		if match {
			matching = append(matching, e)
		}
	}
	return func(class string) bool {
		return slices.ContainsFunc(matching, func(e exception) bool { return e.classes == nil || slices.Contains(e.classes, class) })
	}, nil
}

func (a *answer) looked() string {
	s := plural(a.parts, "part")
	if a.members > 0 {
		s += " and " + plural(a.members, "member") + " of archives"
	}
	return s
}

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// maxTold is how many findings a reason names.
const maxTold = 5

// reason says for the log what was found, the finding that decided first.
func (a *answer) reason(actions []pipeline.Action, deciding int) string {
	var b strings.Builder
	order := []int{deciding}
	for i := range a.findings {
		if i != deciding {
			order = append(order, i)
		}
	}
	for n, i := range order {
		if n == maxTold {
			break
		}
		if n > 0 {
			b.WriteString("; ")
		}
		b.WriteString(a.findings[i].logged())
		if actions[i] == pipeline.Continue {
			b.WriteString(" (passes)")
		}
	}
	if more := uint64(max(len(order)-maxTold, 0)) + a.omitted; more > 0 {
		fmt.Fprintf(&b, "; and %d more", more)
	}
	b.WriteString("; of " + a.looked())
	return b.String()
}

// logged is a finding for the log: which part, in which reading.
func (f *finding) logged() string {
	s := f.class + ": part " + f.part
	if f.file != "" {
		s += fmt.Sprintf(" %q", f.file)
	}
	s += " [" + f.reading + "] " + basisNames[f.basis] + ": " + f.what
	if f.disguise != "" {
		s += ", hidden by " + f.disguise
	}
	return s
}

// maxToldName bounds the name of an attachment in what the sender hears.
const maxToldName = 120

// told is a finding for the sender: one line, which begins with the
// attachment's name.
func (f *finding) told() string {
	subject := "attachment"
	switch {
	case f.file != "":
		name := f.file
		if len(name) > maxToldName {
			name = "..." + name[len(name)-maxToldName+3:]
		}
		subject += ` "` + strings.ReplaceAll(name, `"`, "'") + `"`
	case f.part == "1":
		subject = "the message"
	default:
		subject += " without a name"
	}
	var says string
	switch f.basis {
	case byName:
		says = `is called "` + f.what + `"`
		if f.disguise != "" {
			says += " behind " + f.disguise
		}
	case bySignature:
		says = "begins with what is banned here"
	case byScan:
		says = "cannot be checked: " + f.what
	default:
		says = "looks like " + f.what
	}
	return subject + " " + says + " (" + f.class + ")"
}

// symbols are one for each class that was found.
func symbols(findings []finding) (all []pipeline.Symbol) {
	for _, f := range findings {
		name := "EXECBAN_" + strings.ToUpper(strings.ReplaceAll(f.class, "-", "_"))
		if !slices.ContainsFunc(all, func(s pipeline.Symbol) bool { return s.Name == name }) {
			all = append(all, pipeline.Symbol{Name: name, Detail: f.file})
		}
	}
	return all
}
