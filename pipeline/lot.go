package pipeline

import (
	"errors"
	"fmt"
	"slices"

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
	to      []int // indexes into the envelope; never changed in place
}

// addition is recipients that a filter added, and whose fate they share.
type addition struct {
	addresses []string
	of        []int
}

// pendingCopy is a copy that a filter asked for, and whose fate it shares.
type pendingCopy struct {
	envelope envelope.Envelope
	message  message.Message // its body is held by the copy
	of       []int
}

// passage is a message in the message stage.
type passage struct {
	judge     *Judge
	tx        *Transaction
	fates     []Fate // one for each recipient; one in all if there are none
	lots      []*lot
	copies    []pendingCopy
	additions []addition
	renamed   map[int]string // recipients that an edit replaced
	remarks   []string
	marks     []int32 // for plans, one a fate; all 0 between them
}

// share is the recipients for which one of a verdict's parts speaks.
type share struct {
	recipients []int
	verdict    *Verdict
	lot        *lot // what becomes of its message; nil if it is not changed
	renamed    string
}

// plan is what a verdict does to a lot, worked out in full before any of it is
// done.
type plan struct {
	filter    string
	shares    []share
	rest      []int // of the lot, if it is split: who keeps it
	split     bool
	copies    []pendingCopy
	additions []addition
}

// live are the recipients of a lot that a step still judges.
func (p *passage) live(l *lot, always bool) []int {
	decided := 0
	for _, n := range l.to {
		if !p.fates[n].open(always) {
			decided++
		}
	}
	if decided == 0 {
		return l.to[:len(l.to):len(l.to)]
	}
	live := make([]int, 0, len(l.to)-decided)
	for _, n := range l.to {
		if p.fates[n].open(always) {
			live = append(live, n)
		}
	}
	return live
}

// act does what a verdict about some live recipients of a lot says.
func (p *passage) act(l *lot, filter string, live []int, v *Verdict, enforce bool) error {
	pl, err := p.plan(l, filter, live, v)
	if err != nil || !enforce {
		return err
	}
	p.apply(l, pl)
	return nil
}

// plan works out a verdict that has been checked. It holds no body.
func (p *passage) plan(l *lot, filter string, live []int, v *Verdict) (pl plan, err error) {
	pl.filter = filter
	if v.Only == nil && len(v.Others) == 0 {
		pl.shares = []share{{recipients: live, verdict: v}}
		if v.bare() {
			return pl, nil
		}
	} else if len(p.marks) == 0 {
		p.marks = make([]int32, len(p.fates))
	}
	if pl.shares == nil {
		defer p.unmark(l)
		if pl.shares, err = p.divide(live, v); err != nil {
			return plan{}, err
		}
	}
	edited := 0
	for i := range pl.shares {
		if err := pl.edit(l, i); err != nil {
			return plan{}, err
		}
		if pl.shares[i].lot != nil {
			edited++
		}
	}
	if edited == 0 || len(pl.shares) == 1 && len(live) == len(l.to) && v.Only == nil {
		return pl, nil
	}
	return pl, p.separate(l, &pl, edited)
}

// Marks of recipients while a plan is made; a share's is marked plus its index.
const (
	notAsked int32 = iota
	unnamed
	marked
)

func (p *passage) unmark(l *lot) {
	for _, n := range l.to {
		p.marks[n] = notAsked
	}
}

// divide gives each live recipient to the part of the verdict that names it.
func (p *passage) divide(live []int, v *Verdict) ([]share, error) {
	for _, n := range live {
		p.marks[n] = unnamed
	}
	shares := make([]share, 1, 1+len(v.Others))
	for i := range v.Others {
		s := share{recipients: v.Others[i].Only, verdict: &v.Others[i]}
		shares = append(shares, s)
		if err := p.take(s.recipients, marked+int32(i)+1); err != nil {
			return nil, err
		}
	}
	mine := v.Only
	if mine == nil {
		mine = make([]int, 0, len(live))
		for _, n := range live {
			if p.marks[n] == unnamed {
				mine = append(mine, n)
			}
		}
	}
	shares[0] = share{recipients: mine, verdict: v}
	return shares, p.take(mine, marked)
}

func (p *passage) take(only []int, mark int32) error {
	for _, n := range only {
		if n < 0 || n >= len(p.tx.Envelope.Recipients) || p.marks[n] != unnamed {
			return fmt.Errorf("verdict about recipient %d, which the filter was not asked about, or twice", n)
		}
		p.marks[n] = mark
	}
	return nil
}

// edit works out the edits of one share.
func (pl *plan) edit(l *lot, i int) error {
	s := &pl.shares[i]
	v := s.verdict
	if v.bare() || len(s.recipients) == 0 || !stores(v.Action) {
		return nil
	}
	next := *l
	if v.Body != nil {
		next.message = next.message.WithBody(v.Body)
		s.lot = &next
	}
	var head *message.Head
	var fields []message.FieldEdit
	var added []string
	var copies []*Copy
	for _, e := range v.Edits {
		switch e.Kind {
		case EditField:
			fields = append(fields, e.Field)
		case EditSender:
			next.sender = e.Address
			s.lot = &next
		case EditRecipient:
			s.renamed = e.Address
		case EditAddRecipient:
			added = append(added, e.Address)
		case EditCopy:
			copies = append(copies, e.Copy)
		case EditHead:
			head, fields = e.Head, nil
		}
	}
	if head != nil { // it belongs to its body, and nothing is put between them
		next.message, s.lot = message.New(*head, next.message.Body()), &next
	}
	if err := pl.add(l.message, s.recipients, added, copies); err != nil {
		return err
	}
	if len(fields) == 0 {
		return nil
	}
	h, err := next.message.Head().Edit(fields...)
	next.message, s.lot = next.message.WithHead(h), &next
	return err
}

// add notes recipients and copies that go with the share of recipients.
func (pl *plan) add(m message.Message, recipients []int, added []string, copies []*Copy) error {
	if len(added) == 0 && len(copies) == 0 {
		return nil
	}
	of := slices.Clone(recipients) // the filter may use its slice again
	if len(added) > 0 {
		pl.additions = append(pl.additions, addition{added, of})
	}
	for _, c := range copies {
		h, err := m.Head().Edit(c.Fields...)
		if err != nil {
			return fmt.Errorf("copy: %w", err)
		}
		pl.copies = append(pl.copies, pendingCopy{c.Envelope.Clone(), m.WithHead(h), of})
	}
	return nil
}

// separate finds out whether changed messages are for all of the lot who are
// still alive, so that one of them can take the lot's place, or split it.
func (p *passage) separate(l *lot, pl *plan, edited int) error {
	if len(p.marks) == 0 {
		p.marks = make([]int32, len(p.fates))
	}
	if len(pl.shares) == 1 { // divide has marked several
		for _, n := range pl.shares[0].recipients {
			p.marks[n] = marked
		}
		defer p.unmark(l)
	}
	to := make([][]int, len(pl.shares))
	alive := false
	for _, n := range l.to {
		action := p.fates[n].Action
		if m := p.marks[n]; m >= marked {
			s := &pl.shares[m-marked]
			if s.lot != nil {
				to[m-marked] = append(to[m-marked], n)
				continue
			}
			if s.verdict.Action != Continue {
				action = s.verdict.Action
			}
		}
		alive = alive || stores(action)
		pl.rest = append(pl.rest, n)
	}
	for i := range pl.shares {
		if pl.shares[i].lot != nil {
			pl.shares[i].lot.to = to[i]
		}
	}
	if pl.split = alive; !alive {
		edited-- // one takes the lot's place
	}
	if len(p.lots)+edited > maxLots {
		return errors.New("edits would split the message into too many")
	}
	return nil
}

// apply puts a plan into force.
func (p *passage) apply(l *lot, pl plan) {
	for _, s := range pl.shares {
		for _, n := range s.recipients {
			p.fates[n] = p.fates[n].after(pl.filter, s.verdict)
		}
		if s.renamed != "" {
			p.rename(s.recipients, s.renamed)
		}
	}
	p.additions = append(p.additions, pl.additions...)
	for _, c := range pl.copies {
		c.message.Body().Retain()
		p.copies = append(p.copies, c)
	}
	p.place(l, pl)
	for _, s := range pl.shares {
		if s.verdict.Body != nil {
			s.verdict.Body.Release() //nolint:errcheck // the lots hold it now
			s.verdict.Body = nil
		}
	}
}

// place puts changed messages into the lot's place or beside it.
func (p *passage) place(l *lot, pl plan) {
	free := !pl.split
	if pl.split {
		l.to = pl.rest
	}
	for _, s := range pl.shares {
		if s.lot == nil {
			continue
		}
		s.lot.message.Body().Retain()
		if !free {
			p.lots = append(p.lots, s.lot)
			continue
		}
		free = false
		l.message.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
		// The dead keep the lot company, so that every recipient is in one.
		s.lot.to = append(s.lot.to[:len(s.lot.to):len(s.lot.to)], pl.rest...)
		*l = *s.lot
	}
}

func (p *passage) rename(recipients []int, address string) {
	if p.renamed == nil {
		p.renamed = make(map[int]string, len(recipients))
	}
	for _, n := range recipients {
		p.renamed[n] = address
	}
}

// recipient is what recipient n of the envelope is now.
func (p *passage) recipient(n int) envelope.Recipient {
	r := p.tx.Envelope.Recipients[n]
	if a, ok := p.renamed[n]; ok {
		r.Address = a
	}
	return r
}
