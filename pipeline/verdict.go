package pipeline

import (
	"errors"
	"fmt"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Verdict is a filter's answer. It is a value: the filter acts on nothing, the
// chain does. The zero Verdict lets the message go on as it is.
type Verdict struct {
	// Action decides, unless it is Continue.
	Action Action
	// Reply is what the peer hears; empty means the words of the action.
	Reply reply.Reply
	// Reason is what log and trace say.
	Reason string
	// Edits change the message or its envelope, in order, all or none.
	Edits []Edit
	// Body, if set, replaces the body. The chain takes over the filter's hold.
	Body *message.Body
	// Only are the recipients this verdict is about, as indexes into the
	// transaction's envelope; nil means all that the filter was asked about.
	Only []int
	// Others are verdicts for recipients that Only leaves out. Each has an Only
	// of its own and no Others.
	Others []Verdict
	// Results and Symbols are findings for the filters that follow.
	Results []AuthResult
	Symbols []Symbol
}

// EditKind is what an Edit changes.
type EditKind uint8

// The kinds of edits. Those of recipients are about the verdict's recipients.
const (
	EditField        EditKind = iota // Field: the head
	EditSender                       // Address: the envelope sender
	EditRecipient                    // Address: replaces each recipient
	EditAddRecipient                 // Address: one more recipient, of the same fate
	EditCopy                         // Copy: a further message
)

// Edit is one change that a verdict asks for.
type Edit struct {
	Kind    EditKind
	Field   message.FieldEdit
	Address string
	Copy    *Copy
}

// Field is an edit of the head.
func Field(e message.FieldEdit) Edit { return Edit{Kind: EditField, Field: e} }

// Copy is a further message with an envelope of its own: the message as it
// stood when the filter saw it, with fields changed. It is sent if the message
// itself is not refused, put off or discarded for all its recipients.
type Copy struct {
	Envelope envelope.Envelope
	Fields   []message.FieldEdit
}

// String describes the edit for a trace.
func (e Edit) String() string {
	switch e.Kind {
	case EditField:
		return e.Field.String()
	case EditSender:
		return "sender <" + reply.Clean(e.Address, maxReason) + ">"
	case EditRecipient:
		return "recipient <" + reply.Clean(e.Address, maxReason) + ">"
	case EditAddRecipient:
		return "add recipient <" + reply.Clean(e.Address, maxReason) + ">"
	case EditCopy:
		if e.Copy == nil {
			return "copy of nothing"
		}
		s := "copy"
		for _, r := range e.Copy.Envelope.Recipients {
			s += " to <" + r.Address + ">"
		}
		return reply.Clean(s+" from <"+e.Copy.Envelope.Sender+">", maxReason)
	}
	return "invalid"
}

func (e Edit) check() error {
	switch e.Kind {
	case EditField:
		return e.Field.Check()
	case EditSender, EditRecipient, EditAddRecipient:
		return checkAddress(e.Address)
	case EditCopy:
		if e.Copy == nil || len(e.Copy.Envelope.Recipients) == 0 {
			return errors.New("copy without a recipient")
		}
		if err := checkAddress(e.Copy.Envelope.Sender); err != nil {
			return err
		}
		for _, r := range e.Copy.Envelope.Recipients {
			if err := checkAddress(r.Address); err != nil {
				return err
			}
		}
		for _, f := range e.Copy.Fields {
			if err := f.Check(); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("unknown edit %d", e.Kind)
}

func checkAddress(a string) error {
	if len(a) > envelope.MaxAddress {
		return fmt.Errorf("address of %d bytes", len(a))
	}
	if !envelope.ValidBytes(a) {
		return fmt.Errorf("address %q holds a control character", a)
	}
	return nil
}

// check looks at a whole verdict before any part of it is acted upon.
func (v *Verdict) check(stage Stage) error {
	if !Legal(stage, v.Action) {
		return fmt.Errorf("verdict %v is not allowed at the %v stage", v.Action, stage)
	}
	if (len(v.Edits) > 0 || v.Body != nil) && !editable(stage) {
		return fmt.Errorf("edits are not allowed at the %v stage", stage)
	}
	for _, e := range v.Edits {
		if err := e.check(); err != nil {
			return err
		}
	}
	return nil
}

// share is the recipients for which one of a verdict's parts speaks.
type share struct {
	recipients []int
	verdict    *Verdict
}

// shares divides the recipients that a filter was asked about among the parts
// of its verdict. Recipients that no part names continue.
func (v *Verdict) shares(stage Stage, active []int) ([]share, error) {
	if err := v.check(stage); err != nil {
		return nil, err
	}
	if v.Only == nil && len(v.Others) == 0 {
		return []share{{active, v}}, nil
	}
	left := make(map[int]bool, len(active))
	for _, n := range active {
		left[n] = true
	}
	parts := make([]share, 0, 1+len(v.Others))
	for i := range v.Others {
		o := &v.Others[i]
		if o.Only == nil || o.Others != nil {
			return nil, errors.New("a verdict for some recipients must name them")
		}
		if err := o.check(stage); err != nil {
			return nil, err
		}
		if err := take(left, o.Only); err != nil {
			return nil, err
		}
		parts = append(parts, share{o.Only, o})
	}
	mine := v.Only
	if mine == nil {
		for _, n := range active {
			if left[n] {
				mine = append(mine, n)
			}
		}
	} else if err := take(left, mine); err != nil {
		return nil, err
	}
	return append([]share{{mine, v}}, parts...), nil
}

func take(left map[int]bool, only []int) error {
	for _, n := range only {
		if !left[n] {
			return fmt.Errorf("verdict about recipient %d, which the filter was not asked about, or twice", n)
		}
		delete(left, n)
	}
	return nil
}

// release gives up the bodies of a verdict that is not acted upon.
func (v *Verdict) release() {
	if v.Body != nil {
		v.Body.Release() //nolint:errcheck // the spool sweeps what is left behind
		v.Body = nil
	}
	for i := range v.Others {
		v.Others[i].release()
	}
}
