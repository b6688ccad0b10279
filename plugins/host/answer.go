package host

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/plugins/wire"
)

// The bounds of an answer. What is beyond them is an error of the plugin.
const (
	maxText       = 2000 // bytes of a text for people
	maxWord       = 128  // bytes of a symbol's name, a method, a property
	maxEdits      = 1000 // of a verdict, those of its copies among them
	maxFindings   = 200  // symbols and results of a verdict, each
	maxProperties = 32   // of a result
	maxPath       = 4096 // bytes of a file's name
)

// question is what a plugin was asked, as far as its answer must agree with it.
type question struct {
	stage pipeline.Stage
	// active are the indexes of the recipients that it was asked about.
	active []int
	// may is what the plugin declared that it may do.
	may *declaration
}

// part is a verdict of an answer whose body is still to be taken in.
type part struct {
	verdict pipeline.Verdict
	// body is set if there is a new one: inline, or in the file path.
	body   bool
	inline []byte
	path   string
}

// actions is the table from the wire's actions to ours.
var actions = [...]pipeline.Action{
	wire.Action_ACTION_CONTINUE:   pipeline.Continue,
	wire.Action_ACTION_ACCEPT:     pipeline.Accept,
	wire.Action_ACTION_REJECT:     pipeline.Reject,
	wire.Action_ACTION_DEFER:      pipeline.Defer,
	wire.Action_ACTION_DISCARD:    pipeline.Discard,
	wire.Action_ACTION_QUARANTINE: pipeline.Quarantine,
}

// readAnswer checks a whole answer before any of it counts, and makes verdicts
// of it. Nothing of an answer with an error is used.
func readAnswer(r *wire.JudgeReply, q *question) ([]part, error) {
	if len(r.GetVerdicts()) > len(q.active)+1 {
		return nil, fmt.Errorf("%d verdicts for %d recipients", len(r.GetVerdicts()), len(q.active))
	}
	several := len(r.GetVerdicts()) > 1
	if several && q.stage != pipeline.AtMessage {
		return nil, fmt.Errorf("%d verdicts at the %v stage, which has one", len(r.GetVerdicts()), q.stage)
	}
	left := newChoice(q.active)
	var parts []part
	for _, v := range r.GetVerdicts() {
		only, err := left.take(v.GetRecipients(), q)
		if err != nil {
			return nil, err
		}
		p, err := readVerdict(v, q)
		if err != nil {
			return nil, err
		}
		if several && len(only) == 0 { // verdicts before have named them all
			continue
		}
		if several || len(v.GetRecipients()) > 0 {
			p.verdict.Only = only
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// choice are the recipients that a plugin was asked about, and whom no verdict
// has named so far.
type choice struct {
	active []int
	free   map[int]bool // of active: not named so far
	left   int
}

func newChoice(active []int) *choice { return &choice{active: active, left: len(active)} }

// take are those of a verdict's recipients whom no verdict before has named; no
// indexes mean all that are left.
func (c *choice) take(indexes []uint32, q *question) ([]int, error) {
	if len(indexes) > 0 && q.stage != pipeline.AtMessage {
		return nil, fmt.Errorf("a verdict for some recipients at the %v stage", q.stage)
	}
	only := []int{}
	if len(indexes) == 0 {
		for i := 0; i < len(c.active) && c.left > 0; i++ {
			only = c.name(c.active[i], only)
		}
		return only, nil
	}
	c.look()
	seen := make(map[int]bool, len(indexes))
	for _, i := range indexes {
		n := int(i)
		if _, asked := c.free[n]; !asked {
			return nil, fmt.Errorf("a verdict for recipient %d, about whom it was not asked", n)
		}
		if seen[n] {
			return nil, fmt.Errorf("a verdict names recipient %d twice", n)
		}
		seen[n] = true
		only = c.name(n, only)
	}
	return only, nil
}

// look makes the map of those who are free.
func (c *choice) look() {
	if c.free == nil {
		c.free = make(map[int]bool, len(c.active))
		for _, n := range c.active {
			c.free[n] = true
		}
	}
}

// name appends a recipient who is free, and is not from then on.
func (c *choice) name(n int, only []int) []int {
	if c.look(); c.free[n] {
		c.free[n] = false
		c.left--
		only = append(only, n)
	}
	return only
}

// readVerdict checks one verdict.
func readVerdict(v *wire.Verdict, q *question) (p part, err error) {
	if v == nil {
		return p, errors.New("a verdict that is none")
	}
	if v.GetAction() < 0 || int(v.GetAction()) >= len(actions) {
		return p, fmt.Errorf("action %d, which there is not", v.GetAction())
	}
	p.verdict.Action = actions[v.GetAction()]
	if !pipeline.Legal(q.stage, p.verdict.Action) {
		return p, fmt.Errorf("%v is no answer at the %v stage", p.verdict.Action, q.stage)
	}
	if p.verdict.Reply, err = readReply(v.GetReply(), p.verdict.Action); err != nil {
		return p, err
	}
	if p.verdict.Reason, err = readText("reason", v.GetReason(), maxText); err != nil {
		return p, err
	}
	if p.verdict.Edits, err = readEdits(v.GetEdits(), q); err != nil {
		return p, err
	}
	if p.verdict.Symbols, err = readSymbols(v.GetSymbols()); err != nil {
		return p, err
	}
	if p.verdict.Results, err = readResults(v.GetResults()); err != nil {
		return p, err
	}
	return p, p.readBody(v, q)
}

// readBody checks that a body may be there, and one that is inline.
func (p *part) readBody(v *wire.Verdict, q *question) error {
	switch b := v.GetBody().(type) {
	case nil:
		return nil
	case *wire.Verdict_Inline:
		p.body, p.inline = true, b.Inline
	case *wire.Verdict_Path:
		p.body, p.path = true, b.Path
	}
	switch {
	case !q.may.editsBody:
		return errors.New("a new body, which it did not declare (edits_body)")
	case q.stage != pipeline.AtMessage && q.stage != pipeline.AtDelivery:
		return fmt.Errorf("a new body at the %v stage", q.stage)
	case p.path == "" && isPath(v), len(p.path) > maxPath, strings.IndexByte(p.path, 0) >= 0:
		return errors.New("the name of the file with the new body is none")
	}
	return checkBody(p.inline)
}

func isPath(v *wire.Verdict) bool {
	_, ok := v.GetBody().(*wire.Verdict_Path)
	return ok
}

// checkBody looks for what a body in canonical form does not have. A body may
// be looked at in pieces.
func checkBody(content []byte) error {
	for _, c := range content {
		switch c {
		case 0:
			return errors.New("a new body with a NUL byte")
		case '\r':
			return errors.New("a new body with a carriage return: lines end in LF alone")
		}
	}
	return nil
}

// readReply is what the peer hears. It must say what the action does: a 5xx for
// a reject, a 4xx for a defer, 250 for the rest.
func readReply(r *wire.Reply, a pipeline.Action) (reply.Reply, error) {
	if r == nil || r.GetCode() == 0 && r.GetEnhanced() == "" && r.GetText() == "" {
		return reply.Reply{}, nil
	}
	own := reply.For(a, reply.Reply{})
	code := own.SMTPCode()
	if r.GetCode() != 0 {
		code = int(min(r.GetCode(), 1000))
		if code/100 != own.SMTPCode()/100 || code/100 == 2 && code != own.SMTPCode() {
			return reply.Reply{}, fmt.Errorf("the reply %d contradicts the action %v", r.GetCode(), a)
		}
	}
	enhanced := own.Enhanced
	if r.GetEnhanced() != "" {
		var ok bool
		if enhanced, ok = readEnhanced(r.GetEnhanced(), code/100); !ok {
			return reply.Reply{}, fmt.Errorf("the enhanced code %.40q does not go with %d", r.GetEnhanced(), code)
		}
	}
	text, err := readText("reply", r.GetText(), maxText)
	if err != nil {
		return reply.Reply{}, err
	}
	if text == "" {
		text = own.Text
	}
	return reply.Make(code, enhanced, text), nil
}

// readEnhanced reads "5.7.1" (RFC 3463 §2), whose class must be the reply's.
func readEnhanced(s string, class int) (reply.Enhanced, bool) {
	words := strings.Split(s, ".")
	if len(words) != 3 || words[0] != strconv.Itoa(class) {
		return reply.Enhanced{}, false
	}
	var e reply.Enhanced
	for i, into := range []*uint16{&e.Subject, &e.Detail} {
		n, err := strconv.ParseUint(words[i+1], 10, 16)
		if err != nil || n > 999 || len(words[i+1]) > 3 {
			return reply.Enhanced{}, false
		}
		*into = uint16(n)
	}
	return e, true
}

// readText is one line for people: no control bytes, and of bounded length.
func readText(what, s string, most int) (string, error) {
	if len(s) > most {
		return "", fmt.Errorf("a %s of %d bytes, at most %d", what, len(s), most)
	}
	for _, c := range s {
		if c < ' ' || c == 0x7f || 0x80 <= c && c < 0xa0 || c == utf8.RuneError {
			return "", fmt.Errorf("a %s with a control character", what)
		}
	}
	return s, nil
}

// readWord is a token: what goes into header fields and metrics.
func readWord(what, s string) error {
	if s == "" || len(s) > maxWord {
		return fmt.Errorf("a %s of %d bytes, from 1 to %d", what, len(s), maxWord)
	}
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?=`, c) >= 0 {
			return fmt.Errorf("the %s %.40q holds %q", what, s, c)
		}
	}
	return nil
}

func readSymbols(all []*wire.Symbol) ([]pipeline.Symbol, error) {
	if len(all) > maxFindings {
		return nil, fmt.Errorf("%d symbols, at most %d", len(all), maxFindings)
	}
	var symbols []pipeline.Symbol
	for _, s := range all {
		if err := readWord("symbol", s.GetName()); err != nil {
			return nil, err
		}
		if math.IsNaN(s.GetScore()) || math.IsInf(s.GetScore(), 0) {
			return nil, fmt.Errorf("the score of symbol %s is no number", s.GetName())
		}
		detail, err := readText("symbol's detail", s.GetDetail(), maxText)
		if err != nil {
			return nil, err
		}
		symbols = append(symbols, pipeline.Symbol{Name: s.GetName(), Score: s.GetScore(), Detail: detail})
	}
	return symbols, nil
}

func readResults(all []*wire.AuthResult) ([]pipeline.AuthResult, error) {
	if len(all) > maxFindings {
		return nil, fmt.Errorf("%d results, at most %d", len(all), maxFindings)
	}
	var results []pipeline.AuthResult
	for _, r := range all {
		if len(r.GetProperties()) > maxProperties {
			return nil, fmt.Errorf("a result with %d properties, at most %d", len(r.GetProperties()), maxProperties)
		}
		reason, err := readText("result's reason", r.GetReason(), maxText)
		if err = errors.Join(readWord("method", r.GetMethod()), readWord("result", r.GetResult()), err); err != nil {
			return nil, err
		}
		result := pipeline.AuthResult{Method: r.GetMethod(), Result: r.GetResult(), Reason: reason}
		for _, p := range r.GetProperties() {
			value, err := readText("property's value", p.GetValue(), maxText)
			if err = errors.Join(readWord("property", p.GetName()), err); err != nil {
				return nil, err
			}
			result.Props = append(result.Props, pipeline.Prop{Name: p.GetName(), Value: value})
		}
		results = append(results, result)
	}
	return results, nil
}

// readEdits checks a verdict's edits: that they can be made, and that the plugin
// has declared their kind.
func readEdits(all []*wire.Edit, q *question) ([]pipeline.Edit, error) {
	if len(all) == 0 {
		return nil, nil
	}
	if q.stage != pipeline.AtMessage && q.stage != pipeline.AtDelivery {
		return nil, fmt.Errorf("edits at the %v stage", q.stage)
	}
	if len(all) > maxEdits {
		return nil, fmt.Errorf("%d edits, at most %d", len(all), maxEdits)
	}
	edits := make([]pipeline.Edit, 0, len(all))
	for _, e := range all {
		edit, err := readEdit(e)
		if err != nil {
			return nil, err
		}
		switch {
		case edit.Kind == pipeline.EditField && !q.may.editsHead:
			return nil, fmt.Errorf("an edit of the head (%v), which it did not declare (edits_head)", edit)
		case edit.Kind != pipeline.EditField && !q.may.editsEnvelope:
			return nil, fmt.Errorf("an edit of the envelope (%v), which it did not declare (edits_envelope)", edit)
		case edit.Kind != pipeline.EditField && q.stage == pipeline.AtDelivery:
			return nil, fmt.Errorf("an edit of the envelope (%v) at the %v stage", edit, q.stage)
		}
		edits = append(edits, edit)
	}
	return edits, nil
}

func readEdit(e *wire.Edit) (pipeline.Edit, error) {
	if field, ok := readField(e); ok {
		return pipeline.Field(field), field.Check()
	}
	switch e := e.GetEdit().(type) {
	case *wire.Edit_Sender:
		return pipeline.Edit{Kind: pipeline.EditSender, Address: string(e.Sender)}, checkAddress(e.Sender, true)
	case *wire.Edit_Recipient:
		return pipeline.Edit{Kind: pipeline.EditRecipient, Address: string(e.Recipient)}, checkAddress(e.Recipient, false)
	case *wire.Edit_AddRecipient:
		return pipeline.Edit{Kind: pipeline.EditAddRecipient, Address: string(e.AddRecipient)}, checkAddress(e.AddRecipient, false)
	case *wire.Edit_Copy:
		c, err := readCopy(e.Copy)
		return pipeline.Edit{Kind: pipeline.EditCopy, Copy: c}, err
	}
	return pipeline.Edit{}, errors.New("an edit that changes nothing it knows of")
}

// readField is an edit of the head; ok is false for one of another kind.
func readField(e *wire.Edit) (f message.FieldEdit, ok bool) {
	switch e := e.GetEdit().(type) {
	case *wire.Edit_Add:
		f = message.FieldEdit{Op: message.Add, Name: e.Add.GetName(), Value: string(e.Add.GetValue())}
		if e.Add.GetLast() {
			f.Op = message.Append
		}
	case *wire.Edit_Change:
		f = message.FieldEdit{Op: message.Replace, Name: e.Change.GetName(), Value: string(e.Change.GetValue()), Nth: int(e.Change.GetNth())}
	case *wire.Edit_Remove:
		f = message.FieldEdit{Op: message.Remove, Name: e.Remove.GetName(), Nth: int(e.Remove.GetNth())}
	default:
		return f, false
	}
	return f, true
}

func readCopy(c *wire.Copy) (*pipeline.Copy, error) {
	if n := len(c.GetRecipients()) + len(c.GetFields()); len(c.GetRecipients()) == 0 || n > maxEdits {
		return nil, fmt.Errorf("a copy for %d recipients with %d edits", len(c.GetRecipients()), len(c.GetFields()))
	}
	if err := checkAddress(c.GetSender(), true); err != nil {
		return nil, err
	}
	copied := &pipeline.Copy{Envelope: envelope.To(string(c.GetSender()))}
	for _, r := range c.GetRecipients() {
		if err := checkAddress(r, false); err != nil {
			return nil, err
		}
		copied.Envelope.Recipients = append(copied.Envelope.Recipients, envelope.Recipient{Address: string(r)})
	}
	for _, e := range c.GetFields() {
		field, ok := readField(e)
		if !ok {
			return nil, errors.New("a copy with an edit that is not about its head")
		}
		if err := field.Check(); err != nil {
			return nil, err
		}
		copied.Fields = append(copied.Fields, field)
	}
	return copied, nil
}

// checkAddress looks at an envelope address; empty, it is nobody.
func checkAddress(a []byte, nobody bool) error {
	switch {
	case len(a) == 0 && !nobody:
		return errors.New("an edit with an empty recipient")
	case len(a) > envelope.MaxAddress:
		return fmt.Errorf("an address of %d bytes, at most %d", len(a), envelope.MaxAddress)
	case !envelope.ValidBytes(string(a)):
		return fmt.Errorf("the address %.80q holds a control character", a)
	}
	return nil
}
