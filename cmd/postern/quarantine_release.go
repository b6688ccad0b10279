package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
)

// passage is one message on its way out of quarantine.
type passage struct {
	q      *quarantine
	view   *queue.View
	order  *api.QuarantineRelease
	origin pipeline.Origin
	to     destination
	// envelope has the recipients that are not done with.
	envelope envelope.Envelope
	message  message.Message
	result   api.QuarantineResult

	// What the filters made of it: what goes on, what is held for a new reason,
	// and the recipients for whom nothing changes.
	pass, held []pipeline.Outgoing
	stay       envelope.Envelope
	why        string // the first reason of those who stay
}

// release is admin.Daemon.Release. Whatever goes wrong, the message stays in
// quarantine, or what took its place is queued; it may be handed on twice, and
// never not at all.
func (q *quarantine) release(ctx context.Context, v *queue.View, r *api.QuarantineRelease) api.QuarantineResult {
	p := &passage{q: q, view: v, order: r, envelope: left(v)}
	p.result = api.QuarantineResult{ID: v.ID.String(), Recipients: len(p.envelope.Recipients)}
	ctx, err := q.begin(ctx, v.ID)
	if err != nil {
		p.result.Error = err.Error()
		return p.result
	}
	defer q.end(v.ID)
	if err := p.run(ctx); err != nil {
		p.result.Error, p.result.Gone = reply.Clean(err.Error(), maxErrorLine), 0
	}
	if !r.DryRun {
		q.log.Info("released from quarantine", "id", p.result.ID, "by", r.By, "held_by", v.Hold.Filter, "from", r.From, "deliver", r.Deliver, "to", p.result.To,
			"recipients", p.result.Recipients, "gone", p.result.Gone, "as", p.result.As, "still", p.why, "error", p.result.Error)
	}
	return p.result
}

// left is the envelope of a message for the recipients that are not done with.
func left(v *queue.View) envelope.Envelope {
	e := v.Envelope.Clone()
	e.Recipients = e.Recipients[:0]
	for n, r := range v.Envelope.Recipients {
		if !v.Recipients[n].Status.Done() {
			e.Recipients = append(e.Recipients, r)
		}
	}
	return e
}

func (p *passage) run(ctx context.Context) error {
	var err error
	if p.origin, err = pipeline.DecodeOrigin(p.view.Origin); err != nil {
		return fmt.Errorf("where it came from cannot be read (%w): postern queue release lets it into the queue", err)
	}
	p.to = destinationOf(p.q.config(), p.origin)
	p.result.To = p.to.to()
	if err := p.q.queue.Exchangeable(ctx, p.view); err != nil {
		return err
	}
	if len(p.envelope.Recipients) == 0 {
		return errNobodyLeft
	}
	if p.order.DryRun {
		return p.rehearse()
	}
	if p.message, err = p.q.queue.Content(p.view.ID); err != nil {
		return err
	}
	defer p.message.Body().Release() //nolint:errcheck // nothing depends on it
	if p.order.Deliver {
		p.pass = []pipeline.Outgoing{{Envelope: p.envelope, Message: p.message, Origin: p.marked(p.origin, "delivered without further filters", nil)}}
		p.result.Gone = len(p.envelope.Recipients)
		return p.settle(ctx)
	}
	if err := p.leaving(); err != nil {
		return err
	}
	generation, chain, err := p.chain()
	if err != nil {
		return err
	}
	defer generation.Release() //nolint:errcheck // what is closed late is no business of this message
	s := p.q.sessionOf(p.origin)
	tx := &pipeline.Transaction{ID: p.origin.Transaction, Session: s, Envelope: p.envelope, Chain: p.to.chain}
	out, err := chain.Resume(ctx, tx, p.message, p.resume())
	if err != nil {
		return p.nowhere(err)
	}
	defer out.Release()
	p.result.Trace = admin.TraceOf(out.Trace)
	for _, e := range out.Trace {
		p.result.Filters = append(p.result.Filters, e.Filter)
	}
	p.divide(out)
	return p.settle(ctx)
}

var errNobodyLeft = errors.New("it has no recipient left: postern quarantine delete removes it")

// rehearse says which filters would be asked, and asks none: they might remember
// it.
func (p *passage) rehearse() error {
	p.result.Gone = p.result.Recipients
	if p.order.Deliver {
		return nil
	}
	if err := p.leaving(); err != nil {
		return err
	}
	generation, chain, err := p.chain()
	if err != nil {
		return err
	}
	defer generation.Release() //nolint:errcheck // see run
	p.result.Filters, err = chain.Rest(p.resume())
	return p.nowhere(err)
}

func (p *passage) resume() pipeline.Resume {
	return pipeline.Resume{After: p.view.Hold.Filter, From: p.order.From, Accepted: p.origin.Accepted, Results: p.origin.Results, Symbols: p.origin.Symbols}
}

// chain is today's chain of the entrance, of a generation that the caller
// releases.
func (p *passage) chain() (*pipeline.Generation, *pipeline.Chain, error) {
	g := p.q.chains.Acquire()
	if g == nil {
		return nil, nil, errors.New("no configuration is in force")
	}
	c := g.Chain(p.to.chain)
	if c == nil {
		g.Release() //nolint:errcheck // see run
		return nil, nil, fmt.Errorf("it came by the entrance %s and the chain %s, which the configuration does not have any more: --deliver lets it go without filters", p.origin.Entrance, p.to.chain)
	}
	return g, c, nil
}

// leaving refuses a message that a filter holds as it leaves: it has been through
// the chain of its entrance, which must not have it again because a filter of the
// same name stands there.
func (p *passage) leaving() error {
	tried := slices.ContainsFunc(p.view.Recipients, func(r queue.Recipient) bool { return r.Attempts > 0 })
	if p.order.From != "" || !tried && !p.heldOnlyLeaving() {
		return nil
	}
	return fmt.Errorf("the filter %s of the chain %s holds it as it leaves: when that filter is set right, --deliver has it leave again", p.view.Hold.Filter, config.DeliveryChain)
}

// heldOnlyLeaving reports whether the filter that holds it stands in the chain of
// what leaves, and not in that of its entrance.
func (p *passage) heldOnlyLeaving() bool {
	chains := p.q.config().Chain
	return slices.Contains(chains[config.DeliveryChain], p.view.Hold.Filter) && !slices.Contains(chains[p.to.chain], p.view.Hold.Filter)
}

// nowhere adds to an error about a filter that is not there what the operator
// can do.
func (p *passage) nowhere(err error) error {
	if !errors.As(err, new(*pipeline.NoStepError)) {
		return err
	}
	if p.order.From != "" {
		return fmt.Errorf("%w; name one of these with --from", err)
	}
	return fmt.Errorf("the filter that holds it is gone: %w; say with --from which of them it goes on at, or --deliver it without any", err)
}

// divide sorts what the filters made of the message.
func (p *passage) divide(out *pipeline.Outcome) {
	for _, o := range out.Outgoing {
		o.Origin = p.marked(o.Origin, "", out.Trace)
		switch {
		case o.Hold != "":
			p.held = append(p.held, o)
		default:
			p.pass = append(p.pass, o)
			if o.Copy {
				p.result.Copies++
			}
		}
	}
	p.stay = p.envelope.Clone()
	p.stay.Recipients = nil
	for n, f := range out.Fates {
		to := p.envelope.Recipients[n]
		switch f.Action {
		case pipeline.Continue, pipeline.Accept:
			p.result.Gone++
			continue
		case pipeline.Quarantine:
		default:
			p.stay.Recipients = append(p.stay.Recipients, to)
		}
		p.tell(to.Address, f)
	}
}

// verbs say what a filter did to a message that is held still.
var verbs = [...]string{
	pipeline.Reject: "refused by", pipeline.Defer: "put off by", pipeline.Discard: "discarded by", pipeline.Quarantine: "held by",
}

// tell adds to the result why a recipient's message is held still.
func (p *passage) tell(address string, f pipeline.Fate) {
	reason := f.Reason
	if reason == "" {
		reason = f.Reply.Words()
	}
	if p.why == "" {
		p.why = verbs[f.Action] + " " + f.Filter + ": " + reply.Clean(reason, maxReasonKept)
	}
	h := api.QuarantineHeld{Action: f.Action.String(), Filter: f.Filter, Reason: reply.Clean(reason, maxReasonKept)}
	for i := range p.result.Held {
		if o := &p.result.Held[i]; o.Action == h.Action && o.Filter == h.Filter && o.Reason == h.Reason {
			if o.Total++; o.Total <= maxHeldShown {
				o.Recipients = append(o.Recipients, address)
			}
			return
		}
	}
	h.Recipients, h.Total = []string{address}, 1
	if len(p.result.Held) < maxHeldShown {
		p.result.Held = append(p.result.Held, h)
	}
}

// maxHeldShown bounds the reasons, and the recipients of each, that a result
// tells.
const maxHeldShown = 20

// maxReasonKept bounds a filter's reason in a hold, in bytes.
const maxReasonKept = 500

// beforeMark stands before the reason for which a message was held first.
const beforeMark = "; held first: "

// again is the hold of those whom a later filter does not let pass: by the same
// filter, so that another release goes on at the same place, and as old as it
// was.
func (p *passage) again() store.Hold {
	h := *p.view.Hold
	first := h.Reason
	if _, old, found := strings.Cut(first, beforeMark); found {
		first = old
	}
	h.Reason = fmt.Sprintf("%s, when %s released it%s%s", p.why, p.order.By, beforeMark, reply.Clean(first, maxReasonKept))
	return h
}

// maxTraceKept is how much of the trace before a release is kept.
const maxTraceKept = 200

// marked is an origin with the trace before the release, a mark, and what came
// after it.
func (p *passage) marked(o pipeline.Origin, what string, after pipeline.Trace) pipeline.Origin {
	how := "released by " + reply.Clean(p.order.By, 100)
	switch {
	case what != "":
		how += ", " + what
	case p.order.From != "":
		how += ", from the filter " + p.order.From + " on"
	default:
		how += ", behind the filter " + p.view.Hold.Filter
	}
	before := p.origin.Trace[:min(len(p.origin.Trace), maxTraceKept)]
	mark := pipeline.Entry{Filter: "chain", Stage: pipeline.AtMessage.String(), Action: pipeline.Continue.String(), Reason: how, Recipients: len(p.envelope.Recipients)}
	o.Trace = slices.Concat(before, pipeline.Trace{mark}, after)
	return o
}

// settle puts what the filters made of the message in its place.
func (p *passage) settle(ctx context.Context) error {
	if len(p.pass) == 0 && len(p.held) == 0 {
		return p.q.queue.Rehold(ctx, p.view, p.again(), p.order.By)
	}
	if p.to.next != "" && len(p.pass) > 0 {
		return p.handOn(ctx)
	}
	return p.replace(ctx, slices.Concat(p.pass, p.held))
}

// replace queues messages in the held one's place, and those who stay with them.
func (p *passage) replace(ctx context.Context, all []pipeline.Outgoing) error {
	subs, err := submissions(all, p.q.now())
	if err != nil {
		return err
	}
	if len(p.stay.Recipients) > 0 {
		h := p.again()
		subs = append(subs, queue.Submission{Envelope: p.stay, Message: p.message, Origin: p.view.Origin, Hold: &h})
	}
	ids, err := p.q.queue.Replace(ctx, p.view, subs, p.order.By)
	for _, id := range ids {
		p.result.As = append(p.result.As, id.String())
	}
	return err
}

// submissions are messages as our queue takes them.
func submissions(all []pipeline.Outgoing, now time.Time) ([]queue.Submission, error) {
	subs := make([]queue.Submission, len(all))
	for i, o := range all {
		origin, err := o.Origin.Encode()
		if err != nil {
			return nil, fmt.Errorf("origin: %w", err)
		}
		subs[i] = queue.Submission{Envelope: o.Envelope, Message: o.Message, Origin: origin}
		if o.Hold != "" {
			filter, reason, _ := strings.Cut(o.Hold, ": ")
			subs[i].Hold = &store.Hold{Reason: reason, Filter: filter, Since: now}
		}
	}
	return subs, nil
}
