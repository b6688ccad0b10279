package pipeline

import (
	"strings"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// maxHolds bounds for how many different reasons one lot's recipients are held
// apart. Those beyond are held with others whom the same filter holds, so that
// they go on at the same place.
const maxHolds = 16

// collect fills in what is to be stored.
func (p *passage) collect(o *Outcome) {
	origin := OriginOf(p.tx.Session, p.tx)
	origin.Chain, origin.Generation = p.judge.chain.name, p.judge.chain.o.Generation
	origin.Results, origin.Trace = o.Results, o.Trace
	found := p.judge.symbols
	in := make([]int32, len(p.fates)) // 1 + in which Outgoing a recipient is; 0 none
	for _, l := range p.lots {
		p.collectLot(o, l, origin, found, in)
	}
	for _, a := range p.additions {
		if i := o.joins(a, in); i >= 0 {
			e := &o.Outgoing[i].Envelope
			for _, address := range a.addresses {
				e.Recipients = append(e.Recipients, envelope.Recipient{Address: address})
			}
		}
	}
	if len(p.renamed) > 0 {
		o.once()
	}
	for _, c := range p.copies {
		if p.stays(c.of) {
			o.Outgoing = append(o.Outgoing, Outgoing{Envelope: c.envelope, Message: c.message, Origin: origin, Copy: true})
		}
	}
}

// once keeps each recipient's first place: where recipients have been replaced,
// several may have become one. Those of one Outgoing share their fate.
// The domain counts in either case.
func (o *Outcome) once() {
	for i := range o.Outgoing {
		e := &o.Outgoing[i].Envelope
		first := make(map[string]int, len(e.Recipients))
		kept := e.Recipients[:0]
		for _, r := range e.Recipients {
			local := envelope.Local(r.Address)
			key := local + strings.ToLower(r.Address[len(local):])
			if n, before := first[key]; before {
				kept[n].DSN = both(kept[n].DSN, r.DSN)
				continue
			}
			first[key] = len(kept)
			kept = append(kept, r)
		}
		clear(e.Recipients[len(kept):])
		e.Recipients = kept
	}
}

// both asks for the reports that either of two recipients asks for who are one
// now: nobody who wants to hear of a failure misses it because another does not.
func both(a, b *envelope.DSN) *envelope.DSN {
	of, and := wanted(a), wanted(b)
	if of|and == of {
		return a
	}
	d := envelope.DSN{Notify: of | and}
	if a != nil {
		d.ORcpt = a.ORcpt
	}
	return &d
}

// wanted are the reports that a recipient's sender wants; without NOTIFY those
// of failures and delays (RFC 3461 §4.1).
func wanted(d *envelope.DSN) envelope.Notify {
	switch {
	case d == nil || d.Notify == 0:
		return envelope.NotifyFailure | envelope.NotifyDelay
	case d.Notify&envelope.NotifyNever != 0:
		return 0
	}
	return d.Notify
}

// collectLot makes one Outgoing of a lot's recipients that are delivered, and
// one for each reason to hold.
func (p *passage) collectLot(o *Outcome, l *lot, origin Origin, found []Symbol, in []int32) {
	first := len(o.Outgoing)
	chosen := false
	for k, n := range l.to {
		f := &p.fates[n]
		if !stores(f.Action) {
			continue
		}
		hold := ""
		if f.Action == Quarantine {
			hold = f.Filter + ": " + reply.Clean(f.Reason, maxReason)
		}
		i := o.group(first, f.Filter, hold, f.accepted)
		if i < 0 {
			i = len(o.Outgoing)
			e := p.tx.Envelope
			e.Sender, e.Recipients = l.sender, make([]envelope.Recipient, 0, len(l.to)-k)
			if i > first {
				e.Recipients = nil // the few who differ from the first
			}
			if pool := p.judge.chain.o.Pool; pool != nil && !chosen {
				origin.Pool, chosen = pool(p.tx, l.message), true
			}
			out := Outgoing{Envelope: e, Message: l.message, Origin: origin, Hold: hold}
			if hold != "" {
				out.Origin.Symbols, out.Origin.Accepted = found, f.accepted
			}
			o.Outgoing = append(o.Outgoing, out)
		}
		in[n] = int32(i) + 1
		if n < len(p.tx.Envelope.Recipients) {
			e := &o.Outgoing[i].Envelope
			e.Recipients = append(e.Recipients, p.recipient(n))
		}
	}
}

// group finds the lot's Outgoing for a reason to hold, -1 if a new one is due.
func (o *Outcome) group(first int, filter, hold string, accepted bool) int {
	holds, last := 0, -1
	for i := first; i < len(o.Outgoing); i++ {
		out := &o.Outgoing[i]
		if out.Hold == hold && out.Origin.Accepted == accepted {
			return i
		}
		if out.Hold == "" {
			continue
		}
		holds++
		if out.Origin.Accepted == accepted && strings.HasPrefix(out.Hold, filter+": ") {
			last = i
		}
	}
	if hold != "" && holds >= maxHolds {
		return last
	}
	return -1
}

// joins finds the Outgoing that added recipients go with: one that is
// delivered, rather than one that is held; -1 if none of those whose fate they
// share is stored.
func (o *Outcome) joins(a addition, in []int32) int {
	held := -1
	for _, n := range a.of {
		switch i := int(in[n]) - 1; {
		case i < 0:
		case o.Outgoing[i].Hold == "":
			return i
		case held < 0:
			held = i
		}
	}
	return held
}

// stays reports whether the message is stored for one of these recipients.
func (p *passage) stays(recipients []int) bool {
	for _, n := range recipients {
		if stores(p.fates[n].Action) {
			return true
		}
	}
	return false
}
