package sdk

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postern-mta/postern/plugins/wire"
)

// legal is what may be answered at which stage.
var legal = [stages][]wire.Action{
	AtConnect:   {wire.Action_ACTION_ACCEPT, wire.Action_ACTION_REJECT, wire.Action_ACTION_DEFER},
	AtHelo:      {wire.Action_ACTION_ACCEPT, wire.Action_ACTION_REJECT, wire.Action_ACTION_DEFER},
	AtSender:    {wire.Action_ACTION_ACCEPT, wire.Action_ACTION_REJECT, wire.Action_ACTION_DEFER, wire.Action_ACTION_DISCARD},
	AtRecipient: {wire.Action_ACTION_ACCEPT, wire.Action_ACTION_REJECT, wire.Action_ACTION_DEFER, wire.Action_ACTION_DISCARD},
	AtMessage:   {wire.Action_ACTION_ACCEPT, wire.Action_ACTION_REJECT, wire.Action_ACTION_DEFER, wire.Action_ACTION_DISCARD, wire.Action_ACTION_QUARANTINE},
	AtDelivery:  {wire.Action_ACTION_ACCEPT, wire.Action_ACTION_REJECT, wire.Action_ACTION_DEFER, wire.Action_ACTION_QUARANTINE},
}

// answer is one call on its way to a reply.
type answer struct {
	g     *program
	at    Stage
	tx    *Transaction
	body  *body
	files []string
	// named are the recipients whom a verdict has named, byName the indexes of those
	// who are asked about.
	named  []bool
	byName map[string][]uint32
}

// reply is what goes back for a verdict.
func (a *answer) reply(v Verdict) (*wire.JudgeReply, error) {
	all := flatten(v)
	if a.tx != nil {
		a.named = make([]bool, len(a.tx.All))
	}
	r := new(wire.JudgeReply)
	for _, one := range all {
		if err := a.check(one); err != nil {
			return nil, err
		}
		w := one.wire(a.at)
		if one.limited || len(all) > 1 {
			var err error
			if w.Recipients, err = a.recipients(one); err != nil {
				return nil, err
			}
			if len(w.Recipients) == 0 {
				continue
			}
		}
		if err := a.setBody(w, one); err != nil {
			return nil, err
		}
		r.Verdicts = append(r.Verdicts, w)
	}
	return r, nil
}

// flatten are a verdict and those that it joins, in order.
func flatten(v Verdict) []Verdict {
	var others []Verdict
	for j := v.others; j != nil; j = j.before {
		others = append(others, j.verdict)
	}
	all := []Verdict{v}
	for _, o := range slices.Backward(others) {
		all = append(all, flatten(o)...)
	}
	return all
}

// check says what Postern would not take, in words that the author can use.
func (a *answer) check(v Verdict) error {
	if len(v.mistakes) > 0 {
		return errors.Join(v.mistakes...)
	}
	if v.action != wire.Action_ACTION_CONTINUE && !slices.Contains(legal[a.at], v.action) {
		return fmt.Errorf("a plugin may not answer %s at the stage %s", word(v.action), a.at)
	}
	if v.changes != 0 && a.at < AtMessage {
		return fmt.Errorf("there is nothing to edit at the stage %s", a.at)
	}
	for _, e := range editsWords {
		if v.changes&e.edit&^a.g.edits != 0 {
			return fmt.Errorf("the verdict edits %s, and the plugin's Edits lack sdk.%s", e.word, e.name)
		}
	}
	if v.changes&EditsEnvelope != 0 && a.at == AtDelivery {
		return errors.New("the envelope cannot be edited at the stage delivery")
	}
	if (v.limited || v.others != nil) && a.at != AtMessage {
		return fmt.Errorf("only the stage message has recipients to choose from, not %s", a.at)
	}
	return nil
}

// word is an action's word, "reject".
func word(a wire.Action) string {
	return strings.ToLower(strings.TrimPrefix(a.String(), "ACTION_"))
}

// recipients are the indexes of those whom the verdict is for, and whom none
// before it named.
func (a *answer) recipients(v Verdict) (all []uint32, err error) {
	if !v.limited {
		for _, n := range a.tx.active {
			all = a.name(n, all)
		}
		return all, nil
	}
	if a.byName == nil {
		a.byName = make(map[string][]uint32, len(a.tx.active))
		for _, n := range a.tx.active {
			a.byName[a.tx.All[n]] = append(a.byName[a.tx.All[n]], n)
		}
	}
	for _, r := range v.only {
		found, ok := a.byName[r]
		if !ok {
			return nil, fmt.Errorf("%q is none of the recipients that the plugin is asked about", r)
		}
		for _, n := range found {
			all = a.name(n, all)
		}
	}
	return all, nil
}

// name appends a recipient whom no verdict has named so far.
func (a *answer) name(n uint32, all []uint32) []uint32 {
	if a.named[n] {
		return all
	}
	a.named[n] = true
	return append(all, n)
}

// inlineSpare is the greatest body that goes within a reply where there is no
// directory for a file.
const inlineSpare = wire.MaxReply / 2

func (a *answer) setBody(w *wire.Verdict, v Verdict) error {
	switch {
	case v.changes&EditsBody == 0:
		return nil
	case v.bodyFile != "":
		if !isFile(v.bodyFile) {
			return fmt.Errorf("the new body %s is no file", v.bodyFile)
		}
		a.files = append(a.files, v.bodyFile)
		w.Body = &wire.Verdict_Path{Path: v.bodyFile}
		return nil
	case len(v.body) <= wire.InlineBody:
		w.Body = &wire.Verdict_Inline{Inline: v.body}
		return nil
	}
	f, err := a.body.create()
	if errors.Is(err, errNoPlace) && len(v.body) <= inlineSpare {
		w.Body = &wire.Verdict_Inline{Inline: v.body}
		return nil
	}
	if err != nil {
		return fmt.Errorf("the new body: %w", err)
	}
	if _, err := f.Write(v.body); err != nil {
		return fmt.Errorf("the new body: %w", err)
	}
	a.files = append(a.files, f.Name())
	w.Body = &wire.Verdict_Path{Path: f.Name()}
	return nil
}

// replyCode is the SMTP code of an answer (RFC 5321 §4.2.3, §4.3.2).
func replyCode(action wire.Action, at Stage) uint32 {
	switch {
	case action == wire.Action_ACTION_DEFER:
		return 451
	case at == AtSender || at == AtRecipient:
		return 550
	}
	return 554
}

func (v Verdict) wire(at Stage) *wire.Verdict {
	w := &wire.Verdict{Action: v.action, Reason: v.reason, Edits: v.edits}
	if v.text != "" || v.enhanced != "" && v.enhanced[1:] != ".7.1" {
		w.Reply = &wire.Reply{Code: replyCode(v.action, at), Enhanced: v.enhanced, Text: v.text}
	}
	for _, s := range v.symbols {
		w.Symbols = append(w.Symbols, &wire.Symbol{Name: s.Name, Score: s.Score, Detail: s.Detail})
	}
	for _, r := range v.results {
		result := &wire.AuthResult{Method: r.Method, Result: r.Result, Reason: r.Reason}
		for _, p := range r.Properties {
			result.Properties = append(result.Properties, &wire.Property{Name: p.Name, Value: p.Value})
		}
		w.Results = append(w.Results, result)
	}
	return w
}
