package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/limit"
)

// outward is the daemon's one way to other servers: the exit with the connections
// that it keeps and what it remembers of hosts, and the limits of all that is sent,
// whoever sends it: the queue, calls of qmail-remote, cut_through, callouts. It
// outlives a configuration, of which it reads what may change.
type outward struct {
	config atomic.Pointer[config.Config]
	exit   *smtp.Exit
	limits *limits
	log    *slog.Logger
	closed sync.Once

	mu       sync.Mutex
	straight map[string]*smtp.Exit // to the servers that are the next of entrances, by their hops
}

func newOutward(c *config.Config, resolver smtp.Resolver, log *slog.Logger) (*outward, error) {
	w := &outward{log: log}
	w.config.Store(c)
	var err error
	if w.limits, err = newLimits(w.config.Load, resolver); err != nil {
		return nil, err
	}
	o := outbound(c, w.config.Load, resolver, log)
	o.Gate, o.Freed, o.Connections = w.limits, w.limits.freed, w.limits.connections
	o.Group = func(domain string) string { return w.config.Load().GroupOf(domain) }
	if w.exit, err = smtp.New(o); err != nil {
		return nil, err
	}
	w.limits.exit = w.exit
	return w, nil
}

// start looks after the limits until close.
func (w *outward) start() { w.limits.start() }

// use has a configuration in force.
func (w *outward) use(c *config.Config) {
	w.config.Store(c)
	w.limits.tryAll()
	sayLost(c, w.log)
	var o smtp.Options
	manners(&o, c)
	w.exit.Configure(o)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.straight {
		x.Configure(o)
	}
	w.limits.reloaded()
}

// straightTo is the exit to the servers that are the next of an entrance. Neighbours
// have no limits, and who may log in there is not of the domains' business.
func (w *outward) straightTo(hops []smtp.Hop, resolver smtp.Resolver) (*smtp.Exit, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := fmt.Sprint(hops)
	if x := w.straight[name]; x != nil {
		return x, nil
	}
	o := outbound(w.config.Load(), w.config.Load, resolver, w.log)
	o.Routes = func(string) []smtp.Hop { return hops }
	o.Login = nil
	x, err := smtp.New(o)
	if err != nil {
		return nil, err
	}
	if w.straight == nil {
		w.straight = map[string]*smtp.Exit{}
	}
	w.straight[name] = x
	return x, nil
}

// routeOf is a domain's route.
func (w *outward) routeOf(domain string) (config.Route, bool) {
	return w.config.Load().RouteOf(domain)
}

// close ends what is open, once. A nil outward has nothing.
func (w *outward) close(ctx context.Context) {
	if w == nil {
		return
	}
	w.closed.Do(func() {
		w.limits.close()
		w.exit.Close(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, x := range w.straight {
			x.Close(ctx)
		}
	})
}

// send makes one attempt from the source that there is leave for; with nil, for none,
// from one of the pool's.
func (w *outward) send(ctx context.Context, job *smtp.Job, pool string, leave *permit) []smtp.Result {
	if leave == nil {
		w.choose(job, pool)
		return w.exit.Deliver(ctx, job)
	}
	leave.lend(job)
	defer func() { leave.back(job.Ticket) }()
	got := w.exit.Deliver(ctx, job)
	w.limits.tryOthers(leave, got)
	return got
}

// choose has a job leave from one of a pool's sources. Its frame must not be on the
// stack of a delivery that waits.
//
//go:noinline
func (w *outward) choose(job *smtp.Job, pool string) { job.Source = w.limits.anySource(pool) }

// deliver makes one attempt, from a source of the pool that pool is the lane of, for
// somebody who waits for it: as soon as the limits have
// room, and if that is not within some time, or ctx would not leave as much time for
// the delivery itself, the results say so (Result.NotNow).
func (w *outward) deliver(ctx context.Context, job *smtp.Job, pool string, patience time.Duration) []smtp.Result {
	now := w.limits.now()
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, end.Sub(now)/2)
	}
	end := now.Add(patience)
	results := make([]smtp.Result, len(job.Envelope.Recipients))
	left := make([]int, len(results))
	for i := range left {
		left[i] = i
	}
	var no *limit.Refusal
	for len(left) > 0 {
		part := *job
		part.Envelope.Recipients = make([]envelope.Recipient, len(left))
		for k, i := range left {
			part.Envelope.Recipients[k] = job.Envelope.Recipients[i]
		}
		var got []smtp.Result
		got, no = w.attempt(ctx, &part, pool, end, no)
		var again []int
		for k, i := range left {
			results[i] = got[k]
			if got[k].NotNow != nil && no != nil && !hopeless(no, end) && ctx.Err() == nil && w.limits.now().Before(end) {
				again = append(again, i)
			}
		}
		left = again
	}
	return results
}

// attempt is one attempt of deliver; the refusal is what kept something back.
func (w *outward) attempt(ctx context.Context, job *smtp.Job, pool string, end time.Time, after *limit.Refusal) ([]smtp.Result, *limit.Refusal) {
	place, err := w.exit.Locate(ctx, job.Domain)
	if err != nil {
		return w.send(ctx, job, pool, nil), nil // it says why
	}
	w.limits.learn(place)
	leave, no := w.limits.turn(ctx, lane{site: place.Site.Name, pool: pool}, end, after)
	switch {
	case leave != nil:
		defer leave.Release()
	case no == nil || ctx.Err() != nil: // ctx has ended
		return w.send(ctx, job, pool, nil), nil
	default:
		all := make([]smtp.Result, len(job.Envelope.Recipients))
		for i := range all {
			all[i] = putOff(smtp.NotNow{Until: no.Until, Why: no.String()})
		}
		return all, no
	}
	got := w.send(ctx, job, pool, leave)
	no = nil
	for i, r := range got {
		if r.NotNow != nil {
			no = &limit.Refusal{Until: r.NotNow.Until}
			r.Reply = putOff(*r.NotNow).Reply
			got[i] = r
		}
	}
	return got, no
}

// putOff is the result of a recipient whom a limit keeps from being delivered to,
// which the reply names: whoever hears it is of this house.
func putOff(n smtp.NotNow) smtp.Result {
	words := reply.Clean("Not sent now, because of a limit here: "+n.Why, 400)
	return smtp.Result{Reply: reply.Make(451, reply.Enhanced{Subject: 4, Detail: 5}, words), NotNow: &n, Err: &n}
}

// askPause is how long a question waits at a time for room below the limits.
const askPause = 100 * time.Millisecond

// ask asks the server of a domain about recipients, from the sources that our own
// mail leaves from, and waits for room until ctx ends.
func (w *outward) ask(ctx context.Context, domain string, recipients ...string) ([]wire.Reply, error) {
	for {
		answers, err := w.exit.AskFrom(ctx, w.limits.anySource(""), domain, recipients...)
		var no *smtp.NotNow
		if !errors.As(err, &no) {
			return answers, err
		}
		pause := max(no.Until.Sub(w.limits.now()), askPause)
		if end, ok := ctx.Deadline(); !ok || end.Sub(w.limits.now()) <= 2*pause {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}
