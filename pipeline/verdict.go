package pipeline

import (
	"errors"
	"fmt"
	"math"

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
	// Body, if set, replaces the body. The chain takes over the filter's hold,
	// whatever becomes of the verdict: one hold for each verdict that carries it.
	Body *message.Body
	// Only are the recipients this verdict is about, as indexes into the
	// transaction's envelope; nil means all that the filter was asked about and
	// that Others do not name, an empty slice nobody. Recipients whom no part
	// names continue. Only the message stage has recipients to choose from.
	Only []int
	// Others are verdicts for other recipients. Each has an Only of its own and
	// no Others.
	Others []Verdict
	// Results and Symbols are findings for the filters that follow. The chain
	// keeps a thousand of each.
	Results []AuthResult
	Symbols []Symbol
	// StageOnly has an Accept before the message stage count at its stage only: the
	// filters that follow there are left out, and those of later stages judge.
	StageOnly bool
	// HangUp is how the connection goes on behind a verdict that refuses or puts
	// off. It is for entrances that hold a dialogue; a shim's caller stays.
	HangUp HangUp
	// Remarks are lines that the peer hears in front of the answer, with its code,
	// where the protocol has room for them. The entrance makes them clean.
	Remarks []string
}

// HangUp is what an entrance does with the connection after a no.
type HangUp uint8

// The zero HangUp leaves the connection to the client.
const (
	StayOn       HangUp = iota
	HangUpAfter         // it is closed behind the answer
	HangUpAtOnce        // it is closed, and there is no answer
	hangUps
)

// MaxRemarks bounds a verdict's Remarks.
const MaxRemarks = 32

// EditKind is what an Edit changes.
type EditKind uint8

// The kinds of edits. Those of recipients are about the verdict's recipients.
const (
	EditField        EditKind = iota // Field: the head
	EditSender                       // Address: the envelope sender
	EditRecipient                    // Address: replaces each recipient; those who become one get the message once
	EditAddRecipient                 // Address: one more recipient, of the same fate
	EditCopy                         // Copy: a further message
	EditHead                         // Head: takes the place of the whole head, as it stands
)

// Edit is one change that a verdict asks for. Edits of the head, the sender and
// the body for some recipients split the message; those of recipients and
// copies do not. Where the verdict refuses, puts off or discards, there is
// nothing left to edit, and its edits do nothing.
type Edit struct {
	Kind    EditKind
	Field   message.FieldEdit
	Address string
	Copy    *Copy
	// Head is the whole head of a program that wrote the message anew. With the
	// verdict's Body, or the message's own if there is none, it makes the message
	// to the byte; edits of fields before it are lost, those behind it apply to it.
	Head *message.Head
}

// Field is an edit of the head.
func Field(e message.FieldEdit) Edit { return Edit{Kind: EditField, Field: e} }

// Copy is a further message with an envelope of its own: the message as it
// stood when the filter saw it, with fields changed. It is sent if the message
// itself is stored for one of the verdict's recipients.
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
	case EditHead:
		if e.Head == nil {
			return "head of nothing"
		}
		return fmt.Sprintf("a new head of %d fields", e.Head.Len())
	}
	return "invalid"
}

func (e Edit) check() error {
	switch e.Kind {
	case EditField:
		return e.Field.Check()
	case EditSender:
		return checkAddress(e.Address)
	case EditRecipient, EditAddRecipient:
		return checkRecipient(e.Address)
	case EditCopy:
		return e.Copy.check()
	case EditHead:
		if e.Head == nil {
			return errors.New("new head that is not there")
		}
		return nil
	}
	return fmt.Errorf("unknown edit %d", e.Kind)
}

func (c *Copy) check() error {
	if c == nil || len(c.Envelope.Recipients) == 0 {
		return errors.New("copy without a recipient")
	}
	if err := checkAddress(c.Envelope.Sender); err != nil {
		return err
	}
	for _, r := range c.Envelope.Recipients {
		if err := checkRecipient(r.Address); err != nil {
			return err
		}
	}
	for _, f := range c.Fields {
		if err := f.Check(); err != nil {
			return err
		}
	}
	return nil
}

func checkRecipient(a string) error {
	if a == "" {
		return errors.New("empty recipient address")
	}
	return checkAddress(a)
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

// check looks at a whole verdict, as far as it can be judged without the
// message, before any part of it is acted upon.
func (v *Verdict) check(stage Stage) error {
	if stage != AtMessage && (v.Only != nil || len(v.Others) > 0) {
		return fmt.Errorf("verdict for some recipients at the %v stage", stage)
	}
	if err := v.checkPart(stage); err != nil {
		return err
	}
	for i := range v.Others {
		o := &v.Others[i]
		if o.Only == nil || len(o.Others) > 0 {
			return errors.New("a verdict for some recipients must name them")
		}
		if err := o.checkPart(stage); err != nil {
			return err
		}
	}
	return nil
}

func (v *Verdict) checkPart(stage Stage) error {
	if !Legal(stage, v.Action) {
		return fmt.Errorf("verdict %v is not allowed at the %v stage", v.Action, stage)
	}
	if v.HangUp >= hangUps || v.HangUp != StayOn && v.Action != Reject && v.Action != Defer {
		return fmt.Errorf("verdict %v cannot end the connection", v.Action)
	}
	if v.StageOnly && (v.Action != Accept || editable(stage)) {
		return fmt.Errorf("verdict %v cannot be for the %v stage only", v.Action, stage)
	}
	if len(v.Remarks) > MaxRemarks {
		return fmt.Errorf("%d remarks, at most %d", len(v.Remarks), MaxRemarks)
	}
	if (len(v.Edits) > 0 || v.Body != nil) && !editable(stage) {
		return fmt.Errorf("edits are not allowed at the %v stage", stage)
	}
	for _, s := range v.Symbols {
		if math.IsNaN(s.Score) || math.IsInf(s.Score, 0) { // one would make every sum so
			return fmt.Errorf("the score of symbol %.80q is no number", s.Name)
		}
	}
	for _, e := range v.Edits {
		if stage == AtDelivery && e.Kind != EditField { // its envelope is settled
			return fmt.Errorf("edit %q is not allowed at the %v stage", e, stage)
		}
		if err := e.check(); err != nil {
			return err
		}
	}
	return nil
}

// bare reports whether the verdict asks for nothing to be changed.
func (v *Verdict) bare() bool { return len(v.Edits) == 0 && v.Body == nil }

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
