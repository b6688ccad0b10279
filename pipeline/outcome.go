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
	// Fates are the recipients' own, one for each in the envelope's order; an
	// accepted recipient's Reply is that of its action. They are the answers
	// where the session AnswersEach; elsewhere Reply may differ from them all.
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
	// HangUp is how the connection goes on behind the Reply, and Remarks come in
	// front of it.
	HangUp  HangUp
	Remarks []string
	held    []*message.Body
}

// Refusal is a recipient who refused.
type Refusal struct {
	Recipient envelope.Recipient
	Reply     reply.Reply
}

// Release gives up the messages in Outgoing. It must be called; a second call
// does nothing.
func (o *Outcome) Release() {
	for _, b := range o.held {
		b.Release() //nolint:errcheck // the spool sweeps what is left behind
	}
	o.held = nil
}

// Run takes a message that came whole, with its envelope, through all stages,
// as for a caller of a shim: the stages before the message run from what the
// session and the envelope say. The caller keeps its hold on the body and must
// Release the outcome.
func (c *Chain) Run(ctx context.Context, tx *Transaction, m message.Message) *Outcome {
	j := c.Begin()
	defer j.Close()
	ctx, cancel := context.WithTimeout(ctx, c.o.Deadline)
	defer cancel()
	j.Connect(ctx, tx.Session)
	j.Helo(ctx, tx.Session)
	j.Sender(ctx, tx)
	if c.JudgesAt(AtRecipient) {
		j.rcpts = make([]Fate, 0, len(tx.Envelope.Recipients))
		for _, r := range tx.Envelope.Recipients {
			if ctx.Err() != nil {
				break // judgeMessage gives up
			}
			j.rcpts = append(j.rcpts, j.judgeRecipient(ctx, tx, r))
		}
	}
	return j.judgeMessage(ctx, tx, m, c.at[AtMessage])
}

// Message judges the message for all recipients of the transaction's envelope,
// which must be those that Recipient let pass, and says what becomes of it.
// The caller keeps its hold on the body and must Release the outcome.
func (j *Judge) Message(ctx context.Context, tx *Transaction, m message.Message) *Outcome {
	ctx, cancel := context.WithTimeout(ctx, j.chain.o.Deadline)
	defer cancel()
	return j.judgeMessage(ctx, tx, m, j.chain.at[AtMessage])
}

// judgeMessage asks some of the steps that judge at the message stage.
func (j *Judge) judgeMessage(ctx context.Context, tx *Transaction, m message.Message, steps []int) *Outcome {
	p := &passage{judge: j, tx: tx, fates: j.fates(len(tx.Envelope.Recipients))}
	m.Body().Retain()
	first := &lot{message: m, sender: tx.Envelope.Sender, to: make([]int, len(p.fates))}
	for n := range first.to {
		first.to[n] = n
	}
	p.lots = []*lot{first}
	for _, i := range steps {
		for _, l := range p.lots[:len(p.lots):len(p.lots)] {
			if ctx.Err() == nil {
				p.step(ctx, i, l)
			}
		}
	}
	p.giveUp(ctx, AtMessage)
	return p.outcome()
}

// giveUp defers for all once the time is over or the caller has gone away:
// filters that should have judged have not.
func (p *passage) giveUp(ctx context.Context, stage Stage) {
	if ctx.Err() == nil {
		return
	}
	e := Entry{Filter: "chain", Stage: stage.String(), Action: Defer.String(), Err: abandoned(ctx).Error(), Recipients: len(p.fates)}
	p.judge.trace = p.judge.trace.add(e)
	for n := range p.fates {
		p.fates[n] = Fate{Action: Defer, Reply: reply.Trouble, Filter: "chain", Reason: "out of time"}
	}
}

// fates are what the stages before decided.
func (j *Judge) fates(recipients int) []Fate {
	fates := make([]Fate, max(recipients, 1))
	before := j.before()
	for n := range fates {
		if fates[n] = before; n < len(j.rcpts) {
			fates[n] = j.rcpts[n]
		}
	}
	return fates
}

// step asks one filter about one lot.
func (p *passage) step(ctx context.Context, i int, l *lot) {
	step := &p.judge.chain.steps[i]
	live := p.live(l, step.Always)
	count := len(live)
	if len(p.tx.Envelope.Recipients) == 0 {
		count = 0
	}
	if len(live) == 0 {
		e := Entry{Filter: step.Name, Stage: AtMessage.String(), Skipped: "decided", Recipients: len(l.to)}
		p.judge.trace = p.judge.trace.add(e)
		return
	}
	tx := *p.tx
	tx.Active = live[:count:count]
	q := question{subject: subject{session: tx.Session, tx: &tx, message: l.message, stage: AtMessage}}
	p.judge.consult(ctx, i, q, count, func(v *Verdict, enforce bool) error {
		err := p.act(l, step.Name, live, v, enforce)
		if err == nil && enforce {
			p.remarks = append(p.remarks, v.Remarks...)
		}
		return err
	})
}

// tally counts the fates by what they come to.
type tally struct{ stored, refused, deferred int }

func (p *passage) tally() (t tally) {
	for i := range p.fates {
		switch p.fates[i].Action {
		case Reject:
			t.refused++
		case Defer:
			t.deferred++
		default:
			t.stored++ // or discarded, which looks the same from outside
		}
	}
	return t
}

// What one answer can come to.
type answer uint8

const (
	takeIt answer = iota
	deferIt
	refuseIt
)

// answer is the table "mixed" of the design. A protocol that answers each
// recipient takes what it can.
func (t tally) answer(mixed Mixed, each bool) answer {
	switch {
	case t.stored > 0 && each:
		return takeIt
	case t.deferred > 0 && (t.stored > 0 || t.refused == 0 || mixed == MixedBounce):
		return deferIt
	case t.refused > 0 && (t.stored == 0 || mixed == MixedReject):
		return refuseIt
	}
	return takeIt
}

// outcome makes one answer of the recipients' fates.
func (p *passage) outcome() *Outcome {
	j := p.judge
	for n := range p.fates {
		p.fates[n].Reply = reply.For(p.fates[n].Action, p.fates[n].Reply)
	}
	o := &Outcome{
		Reply: reply.OK, Fates: p.fates[:len(p.tx.Envelope.Recipients)],
		Remarks: p.remarks, Trace: j.Trace(), Results: j.results[:len(j.results):len(j.results)],
	}
	o.held = make([]*message.Body, 0, len(p.lots)+len(p.copies))
	for _, l := range p.lots {
		o.held = append(o.held, l.message.Body())
	}
	for i := range p.copies {
		o.held = append(o.held, p.copies[i].message.Body())
	}
	t, each := p.tally(), p.tx.Session.AnswersEach
	switch t.answer(j.chain.o.Mixed.of(p.tx), each) {
	case deferIt:
		o.Reply, o.HangUp = p.first(Defer)
	case refuseIt:
		o.Reply, o.HangUp = p.refusal(t)
	default:
		p.collect(o)
		if !each {
			p.report(o)
		}
	}
	return o
}

func (p *passage) first(a Action) (reply.Reply, HangUp) {
	for i := range p.fates {
		if p.fates[i].Action == a {
			return p.fates[i].Reply, p.fates[i].HangUp
		}
	}
	return reply.Trouble, StayOn
}

// How many refused recipients a refusal names, and how much of each in bytes.
const (
	maxNamed   = 5
	maxNameLen = 50
)

// refusal is the first refusing recipient's answer. Where others would have
// accepted, it names who did not, so that the sender knows whom to leave out.
func (p *passage) refusal(t tally) (reply.Reply, HangUp) {
	r, end := p.first(Reject)
	if t.refused == len(p.fates) {
		return r, end
	}
	var named []string
	for n := range p.fates {
		if p.fates[n].Action == Reject && len(named) < maxNamed {
			named = append(named, "<"+reply.Clean(p.tx.Envelope.Recipients[n].Address, maxNameLen)+">")
		}
	}
	text := "refused for " + strings.Join(named, ", ")
	if more := t.refused - len(named); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	r.Text = reply.Clean(text+": "+r.Words(), reply.MaxText)
	return r, end
}

// report fills in about whom the sender must get a report.
func (p *passage) report(o *Outcome) {
	for n := range o.Fates {
		if f := &o.Fates[n]; f.Action == Reject {
			o.Refused = append(o.Refused, Refusal{p.tx.Envelope.Recipients[n], f.Reply})
		}
	}
}

// Deliver runs the delivery stage on a message that leaves: the message as it
// is to be sent, which the caller must release, and whether it is to be sent.
func (c *Chain) Deliver(ctx context.Context, d *Delivery, m message.Message) (message.Message, Fate, Trace) {
	j := c.Begin()
	defer j.Close()
	ctx, cancel := context.WithTimeout(ctx, c.o.Deadline)
	defer cancel()
	m.Body().Retain()
	live := []int{0}
	l := &lot{message: m, sender: d.Envelope.Sender, to: live}
	p := &passage{judge: j, fates: make([]Fate, 1), lots: []*lot{l}}
	of := deliverySubject(d)
	for _, i := range c.at[AtDelivery] {
		step := &c.steps[i]
		if !p.fates[0].open(step.Always) {
			continue
		}
		q := question{subject: of, delivery: d}
		q.message = l.message
		j.consult(ctx, i, q, len(d.Envelope.Recipients), func(v *Verdict, enforce bool) error { return p.act(l, step.Name, live, v, enforce) })
	}
	p.giveUp(ctx, AtDelivery)
	f := p.fates[0]
	f.Reply = reply.For(f.Action, f.Reply)
	return l.message, f, j.trace
}
