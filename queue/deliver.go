package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// job delivers one batch and concludes it.
func (q *Queue) job(b schedule.Batch, t *track, leave Leave) {
	defer q.jobs.Done()
	defer q.wake()
	defer q.untrack(t)
	if leave != nil {
		defer leave.Release()
	}
	if q.relocate(b, t) {
		return
	}
	started := q.o.Now()
	l, err := q.loadTrack(t)
	if err != nil {
		q.unreadable(b, t, err)
		return
	}
	results, health := q.deliver(&b, l, leave)
	if q.putBack(b, t, results) {
		return
	}
	q.conclude(b, t, l, started, results, health)
}

// retryUnreadable is when a message is tried again that could not be read.
const retryUnreadable = 5 * time.Minute

// unreadable ends a batch whose message could not be read. One that is gone was
// removed by an operator meanwhile; any other stays, because bad disks are
// repaired and a bounce cannot be taken back.
func (q *Queue) unreadable(b schedule.Batch, t *track, err error) {
	gone := errors.Is(err, store.ErrNotFound) && !q.exists(t.id)
	if !gone {
		q.complain(t.id, err)
	}
	now := q.o.Now()
	outcomes := make([]schedule.Outcome, len(b.Recipients))
	for i := range outcomes {
		outcomes[i] = schedule.Outcome{Deferred: !gone, Due: now.Add(retryUnreadable)}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.land(now, b, t, schedule.Unchanged, outcomes)
	if gone {
		t.removed = true
		delete(q.many, t.id)
	}
}

// complain tells the operator of a message that cannot be read.
func (q *Queue) complain(id store.ID, err error) {
	q.o.Log.Error("cannot read a queued message; it stays in the queue, see postern queue verify", "id", id.String(), "error", reply.Clean(err.Error(), 500))
}

// exists reports whether there is anything of a message; if in doubt, there is.
// A body that is missing must not make its message one that never was.
func (q *Queue) exists(id store.ID) bool {
	r, err := q.o.Store.Reader()
	if err != nil {
		return true
	}
	defer r.Close()
	_, err = r.Message(id)
	return !errors.Is(err, store.ErrNotFound)
}

// land gives a batch back to the schedule; the queue is locked.
func (q *Queue) land(now time.Time, b schedule.Batch, t *track, h schedule.Health, outcomes []schedule.Outcome) {
	t.inFlight--
	if err := q.schedule.Done(now, b, h, outcomes); err != nil {
		q.o.Log.Error("the schedule does not know a batch; this is a fault in Postern", "id", t.id.String(), "error", err)
	}
}

// deliver runs the exit. A VERP sender differs for each recipient, who thus
// gets a transaction of his own (qmail-send.c:senderadd).
//
// Here and below, what is rare has functions of its own: a delivery waits in these
// for as long as the server likes, thousands of them at a time, and each has all
// their frames on its stack.
func (q *Queue) deliver(b *schedule.Batch, l *loaded, leave Leave) ([]Result, schedule.Health) {
	exit := q.exitOf(b.Channel)
	switch {
	case exit == nil:
		return q.noChannel(b), schedule.Unchanged
	case isVERP(l.message.Envelope.Sender):
		return q.deliverEach(exit, b, l, leave)
	}
	return q.deliverTo(exit, b, l, b.Recipients, leave)
}

// exitOf is the exit of a channel, nil if there is no such channel.
func (q *Queue) exitOf(channel string) Exit { return q.channels[channel].Exit }

func isVERP(sender string) bool { return sender != envelope.BounceAddress(sender) }

func (q *Queue) noChannel(b *schedule.Batch) []Result {
	q.o.Log.Error("no such channel: mail for it waits", "channel", b.Channel, "id", store.ID(b.ID).String())
	return same(len(b.Recipients), Result{Reply: reply.BadConfig})
}

// deliverEach delivers to one recipient after the other.
func (q *Queue) deliverEach(exit Exit, b *schedule.Batch, l *loaded, leave Leave) ([]Result, schedule.Health) {
	var results []Result
	health := schedule.Unchanged
	for i := range b.Recipients {
		r, h := q.deliverTo(exit, b, l, b.Recipients[i:i+1], leave)
		results = append(results, r...)
		if h != schedule.Unchanged {
			health = h
		}
	}
	return results, health
}

// slowest is the pace in bytes a second at which a message must be able to leave: a
// modem's.
const slowest = 4 << 10

// jobTime is for how long one delivery of a message of so many bytes may go on. A
// large one over a slow line must come to its end at some time, and not be broken off
// with each attempt until it is too old.
func (q *Queue) jobTime(size int64) time.Duration {
	return q.o.JobTimeout + time.Duration(size/slowest)*time.Second
}

func (q *Queue) deliverTo(exit Exit, b *schedule.Batch, l *loaded, recipients []uint32, leave Leave) (results []Result, health schedule.Health) {
	j := q.newJob(b, l, recipients, leave)
	ctx, cancel := context.WithTimeout(q.ctx, q.jobTime(l.content.Size()))
	defer cancel()
	defer q.survive(j, &results, &health)
	results, health = exit.Deliver(ctx, j)
	if len(results) != len(recipients) {
		return q.miscounted(j, len(results)), schedule.Unchanged
	}
	return results, health
}

func (q *Queue) newJob(b *schedule.Batch, l *loaded, recipients []uint32, leave Leave) *Job {
	to := placeOf(b.Domain)
	j := &Job{
		ID: store.ID(b.ID), Channel: b.Channel, Domain: to.name, Lane: to.lane, Envelope: l.message.Envelope,
		Message: l.content, Origin: l.message.Origin, Attempts: b.Attempts, Leave: leave,
	}
	e := &j.Envelope
	e.Recipients = make([]envelope.Recipient, len(recipients))
	for i, n := range recipients {
		e.Recipients[i] = l.message.Envelope.Recipients[n]
	}
	e.Sender = envelope.VERP(e.Sender, e.Recipients[0].Address)
	if q.o.Prepare != nil {
		j.Prepare = func(ctx context.Context, host string, form message.Form) (message.Message, error) {
			return q.o.Prepare(ctx, j, host, form)
		}
	}
	return j
}

// survive is deferred around an exit: one that panics costs its delivery.
func (q *Queue) survive(j *Job, results *[]Result, health *schedule.Health) {
	if p := recover(); p != nil {
		q.o.Log.Error("exit panicked", "channel", j.Channel, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*results, *health = same(len(j.Envelope.Recipients), Result{Reply: reply.Internal}), schedule.Unchanged
	}
}

func (q *Queue) miscounted(j *Job, results int) []Result {
	n := len(j.Envelope.Recipients)
	q.o.Log.Error("exit gave the wrong number of results", "channel", j.Channel, "recipients", n, "results", results)
	return same(n, Result{Reply: reply.Internal})
}

func same(n int, r Result) []Result {
	all := make([]Result, n)
	for i := range all {
		all[i] = r
	}
	return all
}
