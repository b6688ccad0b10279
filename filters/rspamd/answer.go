package rspamd

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/spam"
)

// The bounds of what an answer holds.
const (
	maxDepth   = 16
	maxSymbols = 500
	maxFields  = 50
	maxSubject = 900  // bytes
	maxLine    = 900  // bytes of a line of a field
	maxValue   = 8000 // bytes of a field
)

// answer is what rspamd says of a message. Its texts are clean.
type answer struct {
	action          string
	score, required float64
	limited         bool // required is there
	symbols         []symbol
	message         string // for the sender
	subject         string // "" if it is none that a head may have
	edits           []message.FieldEdit
}

// symbol is one of its findings.
type symbol struct {
	name  string
	score float64
}

// parseAnswer reads the answer to /checkv2: one object.
func parseAnswer(b []byte) (answer, error) {
	var a answer
	if err := bounded(b); err != nil {
		return answer{}, fmt.Errorf("rspamd's answer: %w", err)
	}
	var (
		score, required *float64
		symbols         map[string]struct {
			Name  string  `json:"name"`
			Score float64 `json:"score"`
		}
		messages map[string]any
		subject  string
		milter   struct {
			Add    map[string]json.RawMessage `json:"add_headers"`
			Remove map[string]json.RawMessage `json:"remove_headers"`
		}
	)
	err := object(b, map[string]any{
		"action": &a.action, "score": &score, "required_score": &required, "symbols": &symbols, "messages": &messages, "subject": &subject, "milter": &milter,
	})
	switch {
	case err != nil:
	case a.action == "" || score == nil:
		err = errors.New("there is no action in it, or no score")
	case !spam.Sound(*score) || required != nil && !spam.Sound(*required):
		err = errors.New("a score that is out of bounds")
	case len(symbols) > maxSymbols:
		err = fmt.Errorf("more than %d symbols", maxSymbols)
	}
	for name, s := range symbols {
		if err == nil && (name == "" || reply.Clean(name, len(name)) != name || !spam.Sound(s.Score)) {
			err = fmt.Errorf("a symbol %q, or its score, that cannot be", reply.Clean(name, maxTold))
		}
		a.symbols = append(a.symbols, symbol{spam.Name(name), s.Score})
	}
	if err == nil {
		a.edits, err = fields(milter.Add, milter.Remove)
	}
	if err != nil {
		return answer{}, fmt.Errorf("rspamd's answer: %s", reply.Clean(err.Error(), 2*maxTold))
	}
	a.score = *score
	if a.limited = required != nil; a.limited {
		a.required = *required
	}
	slices.SortFunc(a.symbols, func(x, y symbol) int {
		return cmp.Or(cmp.Compare(y.score, x.score), strings.Compare(x.name, y.name))
	})
	if text, ok := messages["smtp_message"].(string); ok {
		a.message = reply.Clean(text, maxWord)
	}
	if len(subject) <= maxSubject && reply.Clean(subject, maxSubject) == subject {
		a.subject = subject
	}
	return a, nil
}

// bounded looks at how deep the brackets of a JSON text go.
func bounded(b []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("brackets more than %d deep", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// object reads one object and nothing else; what is not in the table is passed
// over, and nothing may stand there twice.
func object(b []byte, into map[string]any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("it is no JSON object")
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		name, ok := t.(string)
		if !ok || seen[name] {
			return fmt.Errorf("%q stands there twice", name)
		}
		seen[name] = true
		at, known := into[name]
		if !known {
			at = new(json.RawMessage)
		}
		if err := d.Decode(at); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	if _, err := d.Token(); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something stands behind it")
	}
	return nil
}

// guarded are the fields without which mail can go round in circles for ever.
var guarded = [...]string{"Received", "Delivered-To", "Postern-Tap"}

// fields are the changes of a head that rspamd lists for a milter: those that go,
// then those that come.
func fields(add, remove map[string]json.RawMessage) (all []message.FieldEdit, err error) {
	for name, raw := range remove {
		if slices.ContainsFunc(guarded[:], func(g string) bool { return strings.EqualFold(g, name) }) {
			continue
		}
		which, err := list[int](raw)
		if err != nil {
			return nil, fmt.Errorf("remove_headers: %q: %w", name, err)
		}
		// The last first, so that the others keep their places.
		slices.Sort(which)
		slices.Reverse(which)
		for _, n := range which {
			if n < -1000 || n > 1000 {
				return nil, fmt.Errorf("remove_headers: %q: number %d", name, n)
			}
			all = append(all, message.FieldEdit{Op: message.Remove, Name: name, Nth: n})
		}
	}
	slices.SortStableFunc(all, func(a, b message.FieldEdit) int { return strings.Compare(a.Name, b.Name) })
	names := make([]string, 0, len(add))
	for name := range add {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		values, err := list[value](add[name])
		if err != nil {
			return nil, fmt.Errorf("add_headers: %q: %w", name, err)
		}
		for _, v := range values {
			all = append(all, message.FieldEdit{Op: message.Add, Name: name, Value: string(v)})
		}
	}
	if len(all) > maxFields {
		return nil, fmt.Errorf("more than %d header fields to change", maxFields)
	}
	for _, e := range all {
		if err := e.Check(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// list reads one value or an array of them.
func list[T any](raw json.RawMessage) (all []T, err error) {
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) {
		return all, json.Unmarshal(raw, &all)
	}
	all = make([]T, 1)
	return all, json.Unmarshal(raw, &all[0])
}

// value is a field's: "text" or {"value": "text", "order": 1}. It is clean, and
// folded where it was.
type value string

// UnmarshalJSON reads a value.
func (v *value) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) != nil {
		var with struct {
			Value *string `json:"value"`
		}
		if err := json.Unmarshal(b, &with); err != nil {
			return err
		}
		if with.Value == nil {
			return errors.New("there is no value")
		}
		text = *with.Value
	}
	if len(text) > maxValue {
		return fmt.Errorf("a value of %d bytes", len(text))
	}
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		if line = reply.Clean(strings.TrimSpace(line), maxLine); line != "" {
			lines = append(lines, line)
		}
	}
	*v = value(strings.Join(lines, "\n\t"))
	return nil
}
