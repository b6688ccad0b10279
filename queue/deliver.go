package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// counters count what the queue did since it was opened.
type counters struct {
	loaded, submitted, delivered, deferred, failed, reports, warnings, removed atomic.Int64
}

// loaded is a message as it is on disk, shared by its deliveries.
type loaded struct {
	message *store.Message
	content message.Message
}

func (l *loaded) release() {
	if l != nil {
		l.content.Body().Release() //nolint:errcheck // nothing depends on it
	}
}

// loadTrack reads the message of a track, once for all deliveries that go on.
// Concurrent first readers may both read; one result is kept.
func (q *Queue) loadTrack(id store.ID, t *track) (*loaded, error) {
	q.mu.Lock()
	l := t.loaded
	q.mu.Unlock()
	if l != nil {
		return l, nil
	}
	l, err := q.read(id)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	kept := t.loaded
	if kept == nil {
		t.loaded, kept, l = l, l, nil
	}
	q.mu.Unlock()
	l.release()
	return kept, nil
}

// read reads a message from the store; its body is held by the caller.
func (q *Queue) read(id store.ID) (*loaded, error) {
	r, err := q.o.Store.Reader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	m, err := r.Message(id)
	if err != nil {
		return nil, err
	}
	body, err := r.Body(m)
	if err != nil {
		return nil, err
	}
	head, _ := message.ParseHead(m.Head)
	return &loaded{m, message.New(head, body)}, nil
}

// job delivers one batch and concludes it.
func (q *Queue) job(b schedule.Batch, t *track) {
	defer q.jobs.Done()
	id := store.ID(b.ID)
	started := q.o.Now()
	l, err := q.loadTrack(id, t)
	if err != nil {
		q.unreadable(b, t, err)
		return
	}
	results, health := q.deliver(b, l)
	q.conclude(b, t, l, started, results, health)
	q.wake()
}

// retryUnreadable is when a message is tried again that could not be read.
const retryUnreadable = 5 * time.Minute

// unreadable ends a batch whose message could not be read. One that is gone was
// removed by an operator meanwhile; any other stays, because bad disks are
// repaired and a bounce cannot be taken back.
func (q *Queue) unreadable(b schedule.Batch, t *track, err error) {
	id := store.ID(b.ID)
	gone := errors.Is(err, store.ErrNotFound)
	if !gone {
		q.o.Log.Error("cannot read a queued message; it stays in the queue, see postern queue verify", "id", id.String(), "error", reply.Clean(err.Error(), 500))
	}
	now := q.o.Now()
	outcomes := make([]schedule.Outcome, len(b.Recipients))
	for i := range outcomes {
		outcomes[i] = schedule.Outcome{Deferred: !gone, Due: now.Add(retryUnreadable)}
	}
	q.mu.Lock()
	t.inFlight--
	err = q.schedule.Done(now, b, schedule.Unchanged, outcomes)
	l := q.untrack(id, t)
	q.mu.Unlock()
	l.release()
	if err != nil {
		q.o.Log.Error("schedule", "error", err)
	}
	q.wake()
}

// deliver runs the exit. A VERP sender differs for each recipient, who thus
// gets a transaction of his own (qmail-send.c:senderadd).
func (q *Queue) deliver(b schedule.Batch, l *loaded) ([]Result, schedule.Health) {
	c, ok := q.channels[b.Channel]
	if !ok {
		return same(len(b.Recipients), Result{Reply: reply.Trouble}), schedule.Unchanged
	}
	groups := [][]uint32{b.Recipients}
	sender := l.message.Envelope.Sender
	if sender != envelope.BounceAddress(sender) {
		groups = groups[:0]
		for i := range b.Recipients {
			groups = append(groups, b.Recipients[i:i+1])
		}
	}
	var results []Result
	health := schedule.Unchanged
	for _, g := range groups {
		r, h := q.deliverTo(c, b, l, g)
		results = append(results, r...)
		if h != schedule.Unchanged {
			health = h
		}
	}
	return results, health
}

func (q *Queue) deliverTo(c Channel, b schedule.Batch, l *loaded, recipients []uint32) (results []Result, health schedule.Health) {
	e := l.message.Envelope
	e.Recipients = make([]envelope.Recipient, len(recipients))
	for i, n := range recipients {
		e.Recipients[i] = l.message.Envelope.Recipients[n]
	}
	e.Sender = envelope.VERP(e.Sender, e.Recipients[0].Address)
	j := &Job{ID: store.ID(b.ID), Channel: b.Channel, Domain: b.Domain, Envelope: e, Message: l.content, Origin: l.message.Origin, Attempts: b.Attempts}
	if q.o.Prepare != nil {
		j.Prepare = func(ctx context.Context, host string, form message.Form) (message.Message, error) {
			return q.o.Prepare(ctx, j, host, form)
		}
	}
	ctx, cancel := context.WithTimeout(q.ctx, q.o.JobTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			q.o.Log.Error("exit panicked", "channel", c.Name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			results, health = same(len(recipients), Result{Reply: reply.Internal}), schedule.Unchanged
		}
	}()
	results, health = c.Exit.Deliver(ctx, j)
	if len(results) != len(recipients) {
		q.o.Log.Error("exit gave the wrong number of results", "channel", c.Name, "recipients", len(recipients), "results", len(results))
		return same(len(recipients), Result{Reply: reply.Internal}), schedule.Unchanged
	}
	return results, health
}

func same(n int, r Result) []Result {
	all := make([]Result, n)
	for i := range all {
		all[i] = r
	}
	return all
}
