package pipeline

import (
	"errors"
	"fmt"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// maxLots bounds into how many different messages one may be split.
const maxLots = 64

// lot is the recipients that get the same message from the same sender. Every
// transaction begins as one lot; an edit for some of its recipients splits it.
type lot struct {
	message message.Message // its body is held by the lot
	sender  string
	to      []int          // indexes into the envelope
	renamed map[int]string // recipients that an edit replaced
	added   []string       // recipients that an edit added
}

// pendingCopy is a copy that a filter asked for, and whose fate it shares.
type pendingCopy struct {
	copy    Copy
	message message.Message // its body is held by the copy
	of      []int
	filter  string
}

// change is what a verdict does to a lot, worked out in full before any of it
// is done.
type change struct {
	lot        *lot  // the lot as it is to be
	recipients []int // for whom
	copies     []pendingCopy
	held       []*message.Body // to be given up if the change is not made
}

// edit works out a verdict's edits for some recipients of a lot.
func (l *lot) edit(filter string, recipients []int, v *Verdict) (change, error) {
	c := change{recipients: recipients}
	next := *l
	body := l.message.Body()
	if v.Body != nil {
		body = v.Body
		next.message = next.message.WithBody(body)
	}
	for _, e := range v.Edits {
		var err error
		switch e.Kind {
		case EditField:
			var h message.Head
			if h, err = next.message.Head().Edit(e.Field); err == nil {
				next.message = next.message.WithHead(h)
			}
		case EditSender:
			next.sender = e.Address
		case EditRecipient:
			next.rename(recipients, e.Address)
		case EditAddRecipient:
			next.added = append(next.added[:len(next.added):len(next.added)], e.Address)
		case EditCopy:
			err = c.copy(next.message, filter, recipients, e.Copy)
		}
		if err != nil {
			c.undo()
			return change{}, err
		}
	}
	body.Retain()
	c.held = append(c.held, body)
	c.lot = &next
	return c, nil
}

func (l *lot) rename(recipients []int, address string) {
	renamed := make(map[int]string, len(l.renamed)+len(recipients))
	for n, a := range l.renamed {
		renamed[n] = a
	}
	for _, n := range recipients {
		renamed[n] = address
	}
	l.renamed = renamed
}

func (c *change) copy(m message.Message, filter string, recipients []int, asked *Copy) error {
	h, err := m.Head().Edit(asked.Fields...)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	c.held = append(c.held, m.Body().Retain())
	c.copies = append(c.copies, pendingCopy{copy: *asked, message: m.WithHead(h), of: recipients, filter: filter})
	return nil
}

func (c *change) undo() {
	for _, b := range c.held {
		b.Release() //nolint:errcheck // the spool sweeps what is left behind
	}
}

// address is what recipient n of the envelope is now called.
func (l *lot) address(e envelope.Envelope, n int) envelope.Recipient {
	r := e.Recipients[n]
	if a, ok := l.renamed[n]; ok {
		r.Address = a
	}
	return r
}

// passage is a message in the message stage.
type passage struct {
	judge  *Judge
	tx     *Transaction
	fates  []Fate // one for each recipient; one in all if there are none
	lots   []*lot
	copies []pendingCopy
}

// live are the recipients of a lot that a step still judges.
func (p *passage) live(l *lot, always bool) []int {
	live := make([]int, 0, len(l.to))
	for _, n := range l.to {
		if p.fates[n].open(always) {
			live = append(live, n)
		}
	}
	return live
}

// act does what a verdict about some live recipients of a lot says: all of it,
// or on an error none.
func (p *passage) act(l *lot, filter string, live []int, v *Verdict) error {
	shares, err := v.shares(AtMessage, live)
	if err != nil {
		return err
	}
	changes, err := p.changes(l, filter, shares)
	if err != nil {
		return err
	}
	for _, s := range shares {
		for _, n := range s.recipients {
			p.fates[n] = p.fates[n].after(filter, s.verdict)
		}
	}
	for _, c := range changes {
		p.make(l, c)
	}
	for _, s := range shares {
		if s.verdict.Body != nil {
			s.verdict.Body.Release() //nolint:errcheck // the lots hold it now
			s.verdict.Body = nil
		}
	}
	return nil
}

func (p *passage) changes(l *lot, filter string, shares []share) ([]change, error) {
	var changes []change
	for _, s := range shares {
		if len(s.verdict.Edits) == 0 && s.verdict.Body == nil || len(s.recipients) == 0 {
			continue
		}
		c, err := l.edit(filter, s.recipients, s.verdict)
		if err == nil && len(p.lots)+len(changes) > maxLots {
			c.undo()
			err = errors.New("edits would split the message into too many")
		}
		if err != nil {
			for _, made := range changes {
				made.undo()
			}
			return nil, err
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// make puts a change into force: in place if it is for all of the lot that is
// still alive, else as a new lot.
func (p *passage) make(l *lot, c change) {
	p.copies = append(p.copies, c.copies...)
	rest := without(l.to, c.recipients)
	if p.nobodyAlive(rest) {
		c.lot.to = l.to
		l.message.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
		*l = *c.lot
		return
	}
	l.to = rest
	c.lot.to = c.recipients
	p.lots = append(p.lots, c.lot)
}

func (p *passage) nobodyAlive(recipients []int) bool {
	for _, n := range recipients {
		switch p.fates[n].Action {
		case Continue, Accept, Quarantine:
			return false
		}
	}
	return true
}

// without is all less some; both ascend.
func without(all, some []int) []int {
	rest := make([]int, 0, len(all)-len(some))
	gone := make(map[int]bool, len(some))
	for _, n := range some {
		gone[n] = true
	}
	for _, n := range all {
		if !gone[n] {
			rest = append(rest, n)
		}
	}
	return rest
}
