package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"syscall"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// straight is a sink that hands messages to another server before it answers, as
// qmail-qmqpc does, and has no queue: the server's answer is the caller's.
//
// The first message decides. What is left over when a part is with the server
// already, because it took only some of the recipients, or because a filter has made
// several messages of one, goes to our own queue, which sends it by route or MX, and
// tells the sender what came of it. What a filter holds back goes there, too. The
// chain "delivery" runs on all that leaves.
type straight struct {
	exit  *smtp.Exit
	leave departure // with nobody to hold anything
	host  string    // the first server's, which names the others
	// queue takes what is left over; nil where there can be nothing.
	queue pipeline.Sink
	log   *slog.Logger
}

// newStraight makes the sink of an entrance.
func (d *daemon) newStraight(l *config.Listen) (pipeline.Sink, error) {
	hops := l.Straight()
	exit, err := d.outward.straightTo(hops, d.resolver)
	if err != nil {
		return nil, err
	}
	carry := func(m message.Message, form message.Form) (message.Message, error) {
		return carried(d.current.Load(), m, form, d.spool)
	}
	s := &straight{exit: exit, leave: departure{chains: &d.chains, log: d.log, carry: carry}, host: hops[0].Host, log: d.log}
	if d.engine != nil {
		s.queue = queueSink{d.engine.queue}
	}
	return s, nil
}

// leavesRest reports whether an entrance's server may take a message for some of
// its recipients only.
func leavesRest(l *config.Listen) bool {
	return slices.ContainsFunc(l.Straight(), func(h smtp.Hop) bool { return h.Transport != smtp.QMQP })
}

// Submit delivers, or queues what is to be held.
func (s *straight) Submit(ctx context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	first := slices.IndexFunc(all, func(o pipeline.Outgoing) bool { return !o.Copy })
	if first < 0 || all[first].Hold != "" {
		return s.later(ctx, all)
	}
	answer, rest, err := s.deliver(ctx, all[first])
	if answer.Class != reply.Success && len(rest) == 0 {
		return answer, err
	}
	// From here on the message is with the server, and may not be answered otherwise.
	if len(rest) > 0 {
		left := all[first]
		left.Envelope.Recipients = rest
		s.keep(ctx, left)
	}
	for i, o := range all {
		if i == first {
			continue
		}
		if o.Hold == "" {
			answer, rest, _ := s.deliver(context.WithoutCancel(ctx), o)
			if answer.Class == reply.Success && len(rest) == 0 {
				continue
			}
			if len(rest) > 0 {
				o.Envelope.Recipients = rest
			}
		}
		s.keep(ctx, o)
	}
	return reply.OK, nil
}

// later queues.
func (s *straight) later(ctx context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	if s.queue == nil {
		return reply.Trouble, errors.New("there is no queue to hold a message in")
	}
	return s.queue.Submit(ctx, all)
}

// keep queues what is left of a message that was answered for.
func (s *straight) keep(ctx context.Context, o pipeline.Outgoing) {
	if _, err := s.later(context.WithoutCancel(ctx), []pipeline.Outgoing{o}); err != nil {
		s.log.Error("a part of a message that the next server has taken could not be queued, and is lost", "id", o.Origin.Transaction, "from", pipeline.LogText(o.Envelope.Sender, 200), "recipients", len(o.Envelope.Recipients), "error", err)
		return
	}
	s.log.Info("queued what the next server did not take", "id", o.Origin.Transaction, "recipients", len(o.Envelope.Recipients), "held", o.Hold != "")
}

// deliver makes one attempt. The answer is one of success if the server took the
// message for somebody; rest are the recipients then for whom it did not.
func (s *straight) deliver(ctx context.Context, o pipeline.Outgoing) (answer reply.Reply, rest []envelope.Recipient, err error) {
	if o.Message.Head().Hops() >= handoff.MaxHops {
		return reply.Loop, nil, nil
	}
	origin, err := o.Origin.Encode()
	if err != nil {
		return reply.Trouble, nil, err
	}
	if len(o.Envelope.Recipients) == 0 {
		return reply.OK, nil, nil
	}
	prepare, release := preparing(s.host, func(ctx context.Context, host string, form message.Form) (message.Message, error) {
		return s.leave.prepare(ctx, &queue.Job{Domain: s.host, Envelope: o.Envelope, Message: o.Message, Origin: origin}, host, form)
	})
	defer release()
	got := s.exit.Deliver(ctx, &smtp.Job{Domain: s.host, Envelope: o.Envelope, Content: o.Message, Prepare: prepare})
	taken, worst := 0, got[0]
	for i, r := range got {
		switch {
		case r.Reply.Class == reply.Success:
			taken++
			answer = r.Reply
			continue
		case r.Reply.Class == reply.Temporary && worst.Reply.Class != reply.Temporary, worst.Reply.Class == reply.Success:
			worst = r
		}
		rest = append(rest, o.Envelope.Recipients[i])
	}
	s.log.Info("straight on", "id", o.Origin.Transaction, "where", worst.Where, "phase", worst.Phase.String(), "tls", worst.TLS.String(), "recipients", len(got), "taken", taken, "answer", worst.Reply.SMTP(), "error", worst.Err)
	if taken > 0 {
		return answer, rest, nil
	}
	if back := new(keptBack); errors.As(worst.Err, &back) && back.fate.Action == pipeline.Quarantine && s.queue != nil {
		o.Hold = back.fate.Filter + ": " + back.fate.Reason
		answer, err := s.queue.Submit(ctx, []pipeline.Outgoing{o})
		return answer, nil, err
	}
	return qmqpcExit(worst), nil, nil
}

// The exit codes of qmail-qmqpc for what stands between here and a server.
const (
	exitNetwork  = 56
	exitTimedOut = 72
	exitRefused  = 73
	exitFailed   = 74
)

// qmqpcExit is what a caller of qmail-queue hears of an attempt that came to nothing:
// the server's answer, or qmail-qmqpc's code.
//
//	the server said no                    31, or its words
//	the server said later                 71, or its words
//	no connection: silence                72
//	no connection: a no                   73
//	the conversation broke off            74
//	its name cannot be looked up          56
func qmqpcExit(r smtp.Result) reply.Reply {
	a := r.Reply
	if r.Remote || a.Class == reply.Permanent || errors.As(r.Err, new(*keptBack)) {
		return a
	}
	a.Class = reply.Temporary
	var timeout net.Error
	var dns *net.DNSError
	switch {
	case r.Phase > wire.Connect || r.Address.IsValid():
		a.Exit = exitFailed
	case errors.As(r.Err, &dns), r.Err == nil && r.Where == "":
		a.Exit = exitNetwork
	case errors.As(r.Err, &timeout) && timeout.Timeout(), errors.Is(r.Err, syscall.EHOSTUNREACH), r.Where == "":
		a.Exit = exitTimedOut
	default:
		a.Exit = exitRefused
	}
	return a
}
