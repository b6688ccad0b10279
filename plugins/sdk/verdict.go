package sdk

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/postern-mta/postern/plugins/wire"
)

// Verdict is the answer of a function. It is a value: its methods give a further
// one. The zero Verdict is Continue.
type Verdict struct {
	action         wire.Action
	enhanced, text string
	reason         string
	edits          []*wire.Edit
	changes        Edits
	body           []byte
	bodyFile       string
	symbols        []Symbol
	results        []AuthResult

	only     []string
	limited  bool
	others   *joined
	mistakes []error
}

// Continue says nothing against the mail: the next filter is asked.
func Continue() Verdict { return Verdict{} }

// Accept takes the mail: the filters that follow are not asked.
func Accept() Verdict { return Verdict{action: wire.Action_ACTION_ACCEPT} }

// Reject refuses for good. The peer hears the enhanced code ("5.7.1"; "" is that)
// and the text, one line; "" is the generic one.
func Reject(enhanced, text string) Verdict {
	return Verdict{action: wire.Action_ACTION_REJECT}.reply('5', enhanced, text)
}

// Defer puts off: the peer tries again. The enhanced code is as of "4.7.1".
func Defer(enhanced, text string) Verdict {
	return Verdict{action: wire.Action_ACTION_DEFER}.reply('4', enhanced, text)
}

// Discard accepts the mail and drops it: nobody hears of it.
func Discard() Verdict { return Verdict{action: wire.Action_ACTION_DISCARD} }

// Quarantine accepts the message and holds it for the postmaster.
func Quarantine(reason string) Verdict {
	return Verdict{action: wire.Action_ACTION_QUARANTINE, reason: clean(reason)}
}

func (v Verdict) reply(class byte, enhanced, text string) Verdict {
	if enhanced == "" {
		enhanced = string(class) + ".7.1"
	}
	if !isEnhanced(enhanced) || enhanced[0] != class {
		return v.mistake("the enhanced code %q is none of %c.x.x", enhanced, class)
	}
	v.enhanced, v.text = enhanced, clean(text)
	return v
}

// isEnhanced reports whether a text is an enhanced status code (RFC 3463 §2).
func isEnhanced(s string) bool {
	parts := strings.Split(s, ".")
	return len(parts) == 3 && !slices.ContainsFunc(parts, func(p string) bool {
		return p == "" || len(p) > 3 || strings.Trim(p, "0123456789") != ""
	})
}

// Because gives the verdict its reason, for the log.
func (v Verdict) Because(reason string) Verdict {
	v.reason = clean(reason)
	return v
}

// AddField adds a field on top of the head.
func (v Verdict) AddField(name, value string) Verdict { return v.Edit(Add(name, value)) }

// Append adds a field at the end of the head.
func (v Verdict) Append(name, value string) Verdict { return v.Edit(Append(name, value)) }

// Replace gives the first field of a name another value and removes the others of
// that name; if there is none, it adds one.
func (v Verdict) Replace(name, value string) Verdict { return v.Edit(Replace(name, 0, value)) }

// Remove removes all fields of a name.
func (v Verdict) Remove(name string) Verdict { return v.Edit(Remove(name, 0)) }

// Edit makes changes of the head, in order.
func (v Verdict) Edit(edits ...FieldEdit) Verdict {
	for _, e := range edits {
		if e.err != nil {
			v = v.mistake("%w", e.err)
			continue
		}
		v = v.change(EditsHead, e.edit)
	}
	return v
}

// FieldEdit is one change of a head. A value may be folded by its author, with LF
// and a blank; else Postern takes it as one line.
type FieldEdit struct {
	edit *wire.Edit
	err  error
}

// Add adds a field on top.
func Add(name, value string) FieldEdit {
	return FieldEdit{&wire.Edit{Edit: &wire.Edit_Add{Add: &wire.AddField{Name: name, Value: []byte(value)}}}, checkField(name, value)}
}

// Append adds a field at the end.
func Append(name, value string) FieldEdit {
	return FieldEdit{&wire.Edit{Edit: &wire.Edit_Add{Add: &wire.AddField{Name: name, Value: []byte(value), Last: true}}}, checkField(name, value)}
}

// Replace gives the nth field of a name another value; 1 is the first, -1 the
// last, 0 all of them.
func Replace(name string, nth int, value string) FieldEdit {
	return FieldEdit{&wire.Edit{Edit: &wire.Edit_Change{Change: &wire.ChangeField{Name: name, Nth: int32(nth), Value: []byte(value)}}}, checkField(name, value)}
}

// Remove removes the nth field of a name, counted as by Replace.
func Remove(name string, nth int) FieldEdit {
	return FieldEdit{&wire.Edit{Edit: &wire.Edit_Remove{Remove: &wire.RemoveField{Name: name, Nth: int32(nth)}}}, checkField(name, "")}
}

// checkField says whether a name is one of RFC 5322 §3.6.8, and a value cannot
// break out of its field.
func checkField(name, value string) error {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || c == ':' {
			return fmt.Errorf("%q is no name of a field", name)
		}
	}
	if name == "" {
		return errors.New("a field has no name")
	}
	for i := range len(value) {
		switch c := value[i]; {
		case c == 0 || c == '\r':
			return fmt.Errorf("the value of %s has a NUL or CR", name)
		case c == '\n' && (i+1 == len(value) || value[i+1] != ' ' && value[i+1] != '\t'):
			return fmt.Errorf("the value of %s has a line that does not begin with a blank", name)
		}
	}
	return nil
}

// SetBody replaces the body. Lines end in LF. One of more than 16 KiB goes by a
// file; see Message.TempFile.
func (v Verdict) SetBody(content []byte) Verdict {
	if bytes.ContainsAny(content, "\x00\r") {
		return v.mistake("the new body has a NUL or CR: lines end in LF alone")
	}
	v.changes |= EditsBody
	v.body, v.bodyFile = slices.Clone(content), ""
	return v
}

// SetBodyFile replaces the body by the content of a file that Message.TempFile
// made and that has been written. Postern reads and removes it.
func (v Verdict) SetBodyFile(path string) Verdict {
	v.changes |= EditsBody
	v.body, v.bodyFile = nil, path
	return v
}

// SetSender replaces the envelope's sender; "" is the null sender.
func (v Verdict) SetSender(address string) Verdict {
	return v.change(EditsEnvelope, &wire.Edit{Edit: &wire.Edit_Sender{Sender: []byte(address)}})
}

// SetRecipient puts an address in place of each of the verdict's recipients.
func (v Verdict) SetRecipient(address string) Verdict {
	return v.change(EditsEnvelope, &wire.Edit{Edit: &wire.Edit_Recipient{Recipient: []byte(address)}})
}

// AddRecipient adds a recipient.
func (v Verdict) AddRecipient(address string) Verdict {
	return v.change(EditsEnvelope, &wire.Edit{Edit: &wire.Edit_AddRecipient{AddRecipient: []byte(address)}})
}

// Copy sends a further message, if this one is stored: the message as the plugin
// saw it, with the fields' changes, to others.
func (v Verdict) Copy(sender string, recipients []string, fields ...FieldEdit) Verdict {
	c := &wire.Copy{Sender: []byte(sender)}
	for _, r := range recipients {
		c.Recipients = append(c.Recipients, []byte(r))
	}
	for _, e := range fields {
		if e.err != nil {
			v = v.mistake("%w", e.err)
		}
		c.Fields = append(c.Fields, e.edit)
	}
	return v.change(EditsEnvelope, &wire.Edit{Edit: &wire.Edit_Copy{Copy: c}})
}

// Symbol adds a finding with a score, for the filters that follow.
func (v Verdict) Symbol(name string, score float64, detail string) Verdict {
	if err := checkWord("symbol", name); err != nil {
		return v.mistake("%w", err)
	}
	if math.IsNaN(score) || math.IsInf(score, 0) {
		return v.mistake("the score of the symbol %s is no number", name)
	}
	v.symbols = append(slices.Clip(v.symbols), Symbol{name, score, clean(detail)})
	return v
}

// Result adds a finding about who sent the message.
func (v Verdict) Result(r AuthResult) Verdict {
	if err := errors.Join(checkWord("method", r.Method), checkWord("result", r.Result)); err != nil {
		return v.mistake("%w", err)
	}
	r.Reason, r.Properties = clean(r.Reason), slices.Clone(r.Properties)
	for i, p := range r.Properties {
		if err := checkWord("property", p.Name); err != nil {
			return v.mistake("%w", err)
		}
		r.Properties[i].Value = clean(p.Value)
	}
	v.results = append(slices.Clip(v.results), r)
	return v
}

// For makes the verdict one about these of the message's recipients only; the
// others continue, unless And has a verdict for them.
func (v Verdict) For(recipients ...string) Verdict {
	v.only, v.limited = append(slices.Clip(v.only), recipients...), true
	return v
}

// And joins verdicts for other recipients: the first that names one counts for
// him, and one without For is for all who are left.
func (v Verdict) And(others ...Verdict) Verdict {
	for _, o := range others {
		v.others = &joined{o, v.others}
	}
	return v
}

// joined is a list of verdicts, the last first, so that a verdict for each of many
// recipients can be joined one by one.
type joined struct {
	verdict Verdict
	before  *joined
}

func (v Verdict) change(what Edits, e *wire.Edit) Verdict {
	v.changes |= what
	v.edits = append(slices.Clip(v.edits), e)
	return v
}

func (v Verdict) mistake(format string, args ...any) Verdict {
	v.mistakes = append(slices.Clip(v.mistakes), fmt.Errorf(format, args...))
	return v
}

// checkWord says whether a text may be a symbol's name or the like, which goes
// into header fields and metrics.
func checkWord(what, s string) error {
	if s == "" || len(s) > maxWord {
		return fmt.Errorf("a %s has 1 to %d bytes", what, maxWord)
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || strings.IndexByte(`()<>@,;:\"/[]?=`, c) >= 0 {
			return fmt.Errorf("the %s %q has the character %q", what, s, c)
		}
	}
	return nil
}

const (
	maxLine = 480
	maxWord = 128
)

// clean makes one printable line of a text, as Postern would.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError:
			return '?'
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return ' '
		}
		return r
	}, s)
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "")
	}
	return strings.TrimSpace(s)
}
