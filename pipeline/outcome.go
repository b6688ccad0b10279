package pipeline

import (
	"context"
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Outcome is what a chain made of a message.
type Outcome struct {
	// Reply is the one answer to the message.
	Reply reply.Reply
	// Fates are the recipients' own, in the envelope's order; an accepted
	// recipient's Reply is that of its action.
	Fates []Fate
	// Outgoing is what a Sink is to take, the message itself first; empty if
	// nothing is to be stored.
	Outgoing []Outgoing
	// Refused are the recipients of a message that is stored for others, about
	// whom the sender must get a report.
	Refused []Refusal
	// Results are the findings about the sender.
	Results []AuthResult
	Trace   Trace
	held    []*message.Body
}

// Refusal is a recipient who refused.
type Refusal struct {
	Recipient envelope.Recipient
	Reply     reply.Reply
}

// Release gives up the messages in Outgoing. It must be called once.
func (o *Outcome) Release() {
	for _, b := range o.held {
		b.Release() //nolint:errcheck // the spool sweeps what is left behind
	}
	o.held = nil
}

// Run takes a message that came whole, with its envelope, through all stages,
// as for a caller of a shim: the stages before the message run from what the
// session and the envelope say.
func (c *Chain) Run(ctx context.Context, tx *Transaction, m message.Message) *Outcome {
	j := c.Begin()
	defer j.Close()
	ctx, cancel := context.WithTimeout(ctx, c.o.Deadline)
	defer cancel()
	j.Connect(ctx, tx.Session)
	j.Helo(ctx, tx.Session)
	j.Sender(ctx, tx)
	j.rcpts = make([]Fate, 0, len(tx.Envelope.Recipients))
	for _, r := range tx.Envelope.Recipients {
		j.rcpts = append(j.rcpts, j.judgeRecipient(ctx, tx, r))
	}
	return j.Message(ctx, tx, m)
}

// Message judges the message for all recipients of the transaction's envelope,
// which must be those that Recipient let pass, and says what becomes of it.
// The caller keeps its hold on the body and must Release the outcome.
func (j *Judge) Message(ctx context.Context, tx *Transaction, m message.Message) *Outcome {
	ctx, cancel := context.WithTimeout(ctx, j.chain.o.Deadline)
	defer cancel()
	p := &passage{judge: j, tx: tx, fates: j.fates(len(tx.Envelope.Recipients))}
	m.Body().Retain()
	p.lots = []*lot{{message: m, sender: tx.Envelope.Sender, to: make([]int, len(p.fates))}}
	for n := range p.fates {
		p.lots[0].to[n] = n
	}
	for _, i := range j.chain.at[AtMessage] {
		for _, l := range p.lots[:len(p.lots):len(p.lots)] {
			p.step(ctx, i, l)
		}
		if err := ctx.Err(); err != nil {
			j.trace = j.trace.add(Entry{Filter: "chain", Stage: AtMessage.String(), Err: fmt.Sprintf("given up: %v", err), Action: Defer.String()})
			for n := range p.fates {
				p.fates[n] = Fate{Action: Defer, Reply: reply.Trouble, Filter: "chain", Reason: "out of time"}
			}
			break
		}
	}
	return p.outcome()
}

// fates are what the stages before decided.
func (j *Judge) fates(recipients int) []Fate {
	fates := make([]Fate, max(recipients, 1))
	for n := range fates {
		switch {
		case n < len(j.rcpts):
			fates[n] = j.rcpts[n]
		case j.sender.Action != Continue:
			fates[n] = j.sender
		default:
			fates[n] = j.session
		}
	}
	return fates
}

// step asks one filter about one lot.
func (p *passage) step(ctx context.Context, i int, l *lot) {
	step := &p.judge.chain.steps[i]
	live := p.live(l, step.Always)
	if len(live) == 0 {
		p.judge.trace = p.judge.trace.add(Entry{Filter: step.Name, Stage: AtMessage.String(), Skipped: "decided", Recipients: len(l.to)})
		return
	}
	tx := *p.tx
	if tx.Active = live; len(tx.Envelope.Recipients) == 0 {
		tx.Active = nil
	}
	q := &question{subject: subject{session: tx.Session, tx: &tx, message: l.message, stage: AtMessage}}
	p.judge.consult(ctx, i, q, len(tx.Active), func(v *Verdict) error { return p.act(l, step.Name, live, v) })
}

// tally counts the fates by what they come to.
type tally struct{ stored, refused, deferred int }

func (p *passage) tally() (t tally) {
	for _, f := range p.fates {
		switch f.Action {
		case Reject:
			t.refused++
		case Defer:
			t.deferred++
		default:
			t.stored++
		}
	}
	return t
}

// outcome makes one answer of the recipients' fates.
func (p *passage) outcome() *Outcome {
	j := p.judge
	o := &Outcome{Reply: reply.OK, Fates: p.fates, Trace: j.trace, Results: j.results}
	for n := range o.Fates {
		o.Fates[n].Reply = reply.For(o.Fates[n].Action, o.Fates[n].Reply)
	}
	for _, l := range p.lots {
		o.held = append(o.held, l.message.Body())
	}
	for _, c := range p.copies {
		o.held = append(o.held, c.message.Body())
	}
	t, mixed := p.tally(), j.chain.o.Mixed.of(p.tx.Session)
	each := p.tx.Session.AnswersEach
	switch {
	case each && t.stored > 0:
	case t.deferred > 0 && (t.stored > 0 || t.refused == 0 || mixed == MixedBounce):
		o.Reply = p.first(Defer)
		return o
	case t.refused > 0 && (t.stored == 0 || mixed == MixedReject):
		o.Reply = p.refusal(t)
		return o
	}
	p.collect(o, !each)
	return o
}

func (p *passage) first(a Action) reply.Reply {
	for _, f := range p.fates {
		if f.Action == a {
			return f.Reply
		}
	}
	return reply.Trouble
}

// maxNamed is how many refused recipients a refusal names.
const maxNamed = 5

// refusal is the first refusing recipient's answer. Where others would have
// accepted, it names who did not, so that the sender knows whom to leave out.
func (p *passage) refusal(t tally) reply.Reply {
	r := p.first(Reject)
	if t.refused == len(p.fates) {
		return r
	}
	var named []string
	for n, f := range p.fates {
		if f.Action == Reject && len(named) < maxNamed {
			named = append(named, "<"+p.tx.Envelope.Recipients[n].Address+">")
		}
	}
	text := "refused for " + strings.Join(named, ", ")
	if more := t.refused - len(named); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return reply.Make(r.SMTPCode(), r.Enhanced, text+": "+r.Words())
}

// collect fills in what is to be stored, and whom to report.
func (p *passage) collect(o *Outcome, report bool) {
	origin := OriginOf(p.tx.Session, p.tx)
	origin.Chain, origin.Generation = p.judge.chain.name, p.judge.chain.o.Generation
	origin.Results, origin.Trace = o.Results, o.Trace
	for _, l := range p.lots {
		p.collectLot(o, l, origin)
	}
	for _, c := range p.copies {
		if !p.stays(c.of) {
			continue
		}
		e := c.copy.Envelope.Clone()
		o.Outgoing = append(o.Outgoing, Outgoing{Envelope: e, Message: c.message, Origin: origin, Copy: true})
	}
	if !report {
		return
	}
	for n, f := range p.fates {
		if f.Action == Reject && n < len(p.tx.Envelope.Recipients) {
			o.Refused = append(o.Refused, Refusal{p.tx.Envelope.Recipients[n], f.Reply})
		}
	}
}

// collectLot makes one Outgoing of a lot's recipients that are delivered, and
// one for each reason to hold.
func (p *passage) collectLot(o *Outcome, l *lot, origin Origin) {
	byHold := map[string]*envelope.Envelope{}
	var order []string
	for _, n := range l.to {
		f := p.fates[n]
		hold := ""
		switch f.Action {
		case Quarantine:
			hold = f.Filter + ": " + reply.Clean(f.Reason, maxReason)
		case Continue, Accept:
		default:
			continue
		}
		e := byHold[hold]
		if e == nil {
			base := p.tx.Envelope
			base.Sender, base.Recipients = l.sender, nil
			e = &base
			byHold[hold] = e
			order = append(order, hold)
			for _, a := range l.added {
				e.Recipients = append(e.Recipients, envelope.Recipient{Address: a})
			}
		}
		if n < len(p.tx.Envelope.Recipients) {
			e.Recipients = append(e.Recipients, l.address(p.tx.Envelope, n))
		}
	}
	for _, hold := range order {
		o.Outgoing = append(o.Outgoing, Outgoing{Envelope: *byHold[hold], Message: l.message, Origin: origin, Hold: hold})
	}
}

// stays reports whether the message is stored for one of these recipients.
func (p *passage) stays(recipients []int) bool {
	for _, n := range recipients {
		switch p.fates[n].Action {
		case Continue, Accept, Quarantine:
			return true
		}
	}
	return false
}

// Deliver runs the delivery stage on a message that leaves: the message as it
// is to be sent, which the caller must release, and whether it is to be sent.
func (c *Chain) Deliver(ctx context.Context, d *Delivery, m message.Message) (message.Message, Fate, Trace) {
	j := c.Begin()
	defer j.Close()
	ctx, cancel := context.WithTimeout(ctx, c.o.Deadline)
	defer cancel()
	m.Body().Retain()
	p := &passage{judge: j, fates: make([]Fate, 1), lots: []*lot{{message: m, sender: d.Envelope.Sender, to: []int{0}}}}
	for _, i := range c.at[AtDelivery] {
		step, l := &c.steps[i], p.lots[0]
		if !p.fates[0].open(step.Always) {
			continue
		}
		q := &question{subject: *deliverySubject(d, l.message), delivery: d}
		j.consult(ctx, i, q, len(d.Envelope.Recipients), func(v *Verdict) error { return p.actAtExit(l, step.Name, v) })
	}
	return p.lots[0].message, p.fates[0], j.trace
}

// actAtExit allows edits of the message alone: its envelope is settled.
func (p *passage) actAtExit(l *lot, filter string, v *Verdict) error {
	if v.Only != nil || v.Others != nil {
		return fmt.Errorf("a verdict at the %v stage is about all recipients", AtDelivery)
	}
	for _, e := range v.Edits {
		if e.Kind != EditField {
			return fmt.Errorf("edit %q is not allowed at the %v stage", e, AtDelivery)
		}
	}
	return p.act(l, filter, []int{0}, v)
}
