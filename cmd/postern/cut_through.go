package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// cutThrough is a sink that hands messages for the routes with cut_through to
// their host before it answers, and everything else to the queue.
//
// What the host answers is the answer: it took the message, and nothing is
// stored here; or it did not, and the client hears so, now or later. Copies that
// filters made are queued when the host has taken the message, and if that
// fails they are lost, with a line in the log: the message itself must not be
// sent twice for them. The chain "delivery" runs on what goes straight through,
// too. A message that a filter holds back is queued, as ever.
type cutThrough struct {
	out   *outward
	leave departure // with nobody to hold anything
	route func(domain string) (config.Route, bool)
	queue pipeline.Sink
	log   *slog.Logger
}

// cutThroughWait is how long a client waits for room below the limits before it hears
// 451. Clients would wait much longer (RFC 5321 §4.5.3.2.6), but each one of them holds
// a connection to us.
const cutThroughWait = 10 * time.Second

// lotOf names what recipients of one transaction must have in common: the
// address, where its host answers for it, else "". One recipient a message is
// the price: where hosts take some recipients and refuse others after the
// message has come, there would be no one answer.
func lotOf(route func(domain string) (config.Route, bool), address string) string {
	if r, ok := route(envelope.Domain(address)); ok && r.CutThrough {
		return fmt.Sprint(r.Hops) + " " + address
	}
	return ""
}

// Submit delivers or queues.
func (s cutThrough) Submit(ctx context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	var now, later []pipeline.Outgoing
	for _, o := range all {
		if s.cuts(o) {
			now = append(now, o)
		} else {
			later = append(later, o)
		}
	}
	if len(now) != 1 || !onlyCopies(later) {
		return s.queue.Submit(ctx, all)
	}
	answer, err := s.deliver(ctx, now[0])
	if back := new(keptBack); errors.As(err, &back) && back.fate.Action == pipeline.Quarantine {
		now[0].Hold = back.fate.Filter + ": " + back.fate.Reason
		return s.queue.Submit(ctx, append(now, later...))
	}
	if err != nil || len(later) == 0 {
		return answer, err
	}
	if _, err := s.queue.Submit(context.WithoutCancel(ctx), later); err != nil {
		s.log.Error("copies of a message that was delivered straight through could not be queued, and are lost", "id", now[0].Origin.Transaction, "copies", len(later), "error", err)
	}
	return answer, nil
}

func onlyCopies(all []pipeline.Outgoing) bool {
	for _, o := range all {
		if !o.Copy {
			return false
		}
	}
	return true
}

// cuts reports whether a message goes straight through.
func (s cutThrough) cuts(o pipeline.Outgoing) bool {
	if o.Copy || o.Hold != "" || len(o.Envelope.Recipients) != 1 {
		return false
	}
	return lotOf(s.route, o.Envelope.Recipients[0].Address) != ""
}

// deliver makes one attempt, whose answer is ours.
func (s cutThrough) deliver(ctx context.Context, o pipeline.Outgoing) (reply.Reply, error) {
	origin, err := o.Origin.Encode()
	if err != nil {
		return reply.Trouble, err
	}
	domain := envelope.Domain(o.Envelope.Recipients[0].Address)
	prepare, release := preparing(domain, func(ctx context.Context, host string, form message.Form) (message.Message, error) {
		return s.leave.prepare(ctx, &queue.Job{Domain: domain, Envelope: o.Envelope, Message: o.Message, Origin: origin}, host, form)
	})
	defer release()
	got := s.out.deliver(ctx, &smtp.Job{Domain: domain, Envelope: o.Envelope, Content: o.Message, Prepare: prepare}, s.out.limits.pool(o.Envelope.Sender, o.Origin.Pool), cutThroughWait)
	if len(got) != 1 {
		return reply.Trouble, errors.New("no result")
	}
	r := got[0]
	s.log.Info("straight through", "id", o.Origin.Transaction, "to", o.Envelope.Recipients[0].Address, "where", r.Where, "phase", r.Phase.String(), "tls", r.TLS.String(), "answer", r.Reply.SMTP(), "error", r.Err)
	switch {
	case r.Reply.Class == reply.Success:
		return reply.OK, nil
	case r.Reply.Class == reply.Permanent && r.Remote, errors.As(r.Err, new(*keptBack)):
		return r.Reply, reply.With(r.Reply, r.Err)
	}
	// What stands in the way between here and there is not the client's business.
	return reply.Trouble, reply.With(reply.Trouble, errors.Join(errors.New(r.Reply.SMTP()), r.Err))
}
