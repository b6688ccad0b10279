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
	origins "github.com/postern-mta/postern/pipeline/ingress/mark"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
)

// departure runs the chain "delivery" on what leaves, whoever queued it.
type departure struct {
	chains *pipeline.Generations
	log    *slog.Logger
	// hold holds a message that a filter wants to see held; nil where the message
	// is not queued.
	hold func(id store.ID, h store.Hold)
	// carry brings a message into a form, as far as that goes, before a filter sees
	// it, because what is signed stays as it is; nil leaves it as it is. The caller
	// holds what it gives.
	carry func(message.Message, message.Form) (message.Message, error)
}

// leaving is a message on its way out.
type leaving struct {
	// id names the message: where two have the same, so have their bodies. call
	// names the attempt in the log, if that is another.
	id, call string
	queued   store.ID // zero where the message is not queued
	envelope envelope.Envelope
	message  message.Message
	origin   func() pipeline.Origin
}

// prepare is queue.Options.Prepare. The message that it gives is released by
// the exit.
func (d departure) prepare(ctx context.Context, j *queue.Job, host string, form message.Form) (message.Message, error) {
	origin := func() pipeline.Origin {
		o, err := pipeline.DecodeOrigin(j.Origin)
		if err != nil {
			// Who sent it is not known, so nothing of ours vouches for it.
			d.log.Error("a message's origin cannot be read; it leaves as a stranger's", "id", j.ID.String(), "error", err)
			o = pipeline.Origin{Standing: pipeline.Stranger.String(), UID: -1}
		}
		return o
	}
	return d.run(ctx, leaving{id: j.ID.String(), queued: j.ID, envelope: j.Envelope, message: j.Message, origin: origin}, host, form)
}

// run runs the chain. The message that it gives is held by the caller.
func (d departure) run(ctx context.Context, l leaving, host string, form message.Form) (message.Message, error) {
	g := d.chains.Acquire()
	if g == nil {
		return message.Message{}, reply.With(reply.Trouble, errors.New("no configuration is in force"))
	}
	defer g.Release() //nolint:errcheck // closing filters is logged by whoever replaced them
	// A mark stands in what a user takes from a mailbox and sends on through our
	// own queue. Whoever wrote that, it was not the user.
	m, marked, err := origins.Strip(l.message)
	if err != nil {
		return message.Message{}, reply.With(reply.ReadError, err)
	}
	if l.message = m; d.carry == nil {
		m.Body().Retain()
	} else if l.message, err = d.carry(m, form); err != nil {
		return message.Message{}, err
	}
	chain := g.Chain(config.DeliveryChain)
	if chain == nil || !chain.JudgesAt(pipeline.AtDelivery) {
		return l.message, nil
	}
	return d.judge(ctx, chain, &l, marked, host, form)
}

// judge has filters look at the message, which it gives up.
func (d departure) judge(ctx context.Context, chain *pipeline.Chain, l *leaving, marked bool, host string, form message.Form) (message.Message, error) {
	defer l.message.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
	origin := l.origin()
	if marked {
		origin.Standing, origin.User = pipeline.Stranger.String(), ""
	}
	m, fate, trace := chain.Deliver(ctx, &pipeline.Delivery{ID: l.id, Envelope: l.envelope, Origin: origin, Host: host, Form: form}, l.message)
	name := l.id
	if l.call != "" {
		name = l.call
	}
	d.log.LogAttrs(ctx, slog.LevelInfo, "leaving", trace.LogShadow([]slog.Attr{
		slog.String("id", name), slog.String("host", host), slog.String("from", pipeline.LogText(l.envelope.Sender, 200)),
		slog.String("action", fate.Action.String()), slog.String("filter", fate.Filter), slog.String("reason", fate.Reason), slog.Any("filters", trace.LogList()),
	})...)
	if fate.Action == pipeline.Continue || fate.Action == pipeline.Accept {
		return m, nil
	}
	m.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
	answer := fate.Reply
	if fate.Action == pipeline.Quarantine && d.hold != nil {
		d.hold(l.queued, store.Hold{Reason: fate.Reason, Filter: fate.Filter, Since: time.Now()})
	}
	if fate.Action == pipeline.Quarantine {
		answer = reply.Deferred
	}
	return message.Message{}, reply.With(answer, &keptBack{fate})
}

// keptBack is the error of a message that a filter does not let leave.
type keptBack struct{ fate pipeline.Fate }

// Error names the filter and its reason.
func (k *keptBack) Error() string {
	return fmt.Sprintf("filter %s: %s: %s", k.fate.Filter, k.fate.Action, k.fate.Reason)
}

// holdLater holds a message once the attempt that asks for it is over.
func (e *engine) holdLater(log *slog.Logger) func(id store.ID, h store.Hold) {
	return func(id store.ID, h store.Hold) {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if _, err := e.queue.Hold(ctx, queue.Selection{IDs: []store.ID{id}}, h); err != nil {
				log.Error("a message that a filter wants held is not; it is deferred and will be judged again", "id", id.String(), "filter", h.Filter, "error", err)
			}
		}()
	}
}
