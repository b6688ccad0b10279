package queue

import (
	"context"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// conclusion is what a delivery came to, before it is written down.
type conclusion struct {
	q        *Queue
	l        *loaded
	now      time.Time
	batch    store.Batch
	outcomes []schedule.Outcome
	done     uint32
	failed   []uint32       // recipients given up by this delivery
	late     []uint32       // recipients about whom the sender is to be warned
	states   map[uint32]int // where in batch.States a recipient's stands
	held     []*loaded      // bodies of reports, released in the end
}

// conclude writes down what became of a batch, reports what is to be reported,
// and gives the batch back to the schedule. What cannot be written down is
// tried until it can: until then the recipients stay in flight.
func (q *Queue) conclude(b schedule.Batch, t *track, l *loaded, started time.Time, results []Result, health schedule.Health) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &conclusion{q: q, l: l, now: q.o.Now(), states: map[uint32]int{}}
	defer c.release()
	c.judge(b, started, results)
	id := store.ID(b.ID)
	if !q.isRemoved(t) {
		q.finish(c, t, id)
	}
	q.mu.Lock()
	t.inFlight--
	err := q.schedule.Done(c.now, b, health, c.outcomes)
	if _, many := q.left[id]; many && !t.removed {
		if q.left[id] -= c.done; q.left[id] == 0 {
			delete(q.left, id)
		}
	}
	gone := q.untrack(id, t)
	q.mu.Unlock()
	gone.release()
	if err != nil {
		q.o.Log.Error("schedule", "error", err)
	}
}

func (q *Queue) isRemoved(t *track) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return t.removed
}

// judge makes states and outcomes of the results.
func (c *conclusion) judge(b schedule.Batch, started time.Time, results []Result) {
	q, birth := c.q, store.ID(b.ID).Time()
	expired := schedule.Expired(birth, started, q.o.Lifetime)
	backoff := q.channels[b.Channel].Backoff
	c.outcomes = make([]schedule.Outcome, len(results))
	for i, r := range results {
		n := b.Recipients[i]
		s := store.State{Attempts: uint16(min(b.Attempts+1, 1<<16-1)), Last: c.now, Reply: bounded(r.Reply), Where: reply.Clean(r.Where, store.MaxWhere), Perhaps: r.Perhaps}
		switch {
		case r.Reply.Class == reply.Success:
			s.Status = store.Delivered
		case r.Reply.Class == reply.Permanent:
			s.Status = store.Failed
		case expired:
			s.Status = store.Failed
			s.Reply = tooLong(s.Reply)
		default:
			s.Status = store.Deferred
			s.Due = backoff.Next(birth, c.now, int(s.Attempts), q.o.Rand)
			c.outcomes[i] = schedule.Outcome{Deferred: true, Due: s.Due}
		}
		c.set(b.ID, n, s)
		c.count(n, s)
	}
	q.log(b, c, results)
}

func (c *conclusion) set(id uint64, n uint32, s store.State) {
	c.states[n] = len(c.batch.States)
	c.batch.States = append(c.batch.States, store.SetState{ID: store.ID(id), Recipient: n, State: s})
}

func (c *conclusion) state(n uint32) *store.State { return &c.batch.States[c.states[n]].State }

func (c *conclusion) count(n uint32, s store.State) {
	switch s.Status {
	case store.Delivered:
		c.done++
		c.q.counters.delivered.Add(1)
	case store.Failed:
		c.done++
		c.failed = append(c.failed, n)
		c.q.counters.failed.Add(1)
	case store.Deferred:
		c.q.counters.deferred.Add(1)
		if w := c.q.o.Bounce.Warn; w > 0 && c.now.Sub(c.l.message.ID.Time()) >= w {
			c.late = append(c.late, n)
		}
	}
}

func (c *conclusion) release() {
	for _, l := range c.held {
		l.release()
	}
}

// bounded keeps a remote server's words within what a state may hold.
func bounded(r reply.Reply) reply.Reply {
	r.Text = reply.Clean(r.Text, min(store.MaxReply, reply.MaxText))
	return r
}

// tooLong is the end of a temporary failure that lasted too long
// (qmail-send.c): permanent, with the last answer's words.
func tooLong(r reply.Reply) reply.Reply {
	words := reply.Clean(r.Words(), reply.MaxText-120) + " I'm not going to try again; this message has been in the queue too long."
	return reply.Make(554, reply.Enhanced{Subject: 4, Detail: 7}, words)
}

// finish completes the batch with reports and removal, and writes it.
func (q *Queue) finish(c *conclusion, t *track, id store.ID) {
	q.mu.Lock()
	others := t.inFlight > 1
	left, many := q.left[id]
	if !many {
		left = 1
	}
	q.mu.Unlock()
	for {
		if c.complete(q.ctx, left, others) {
			return
		}
		select {
		case <-q.ctx.Done():
			return // what is not written down is tried again after the start
		case <-time.After(retryWrite):
		}
	}
}

// retryWrite is the pause before a conclusion is written again.
const retryWrite = time.Second

// complete makes the reports and applies everything at once.
func (c *conclusion) complete(ctx context.Context, left uint32, others bool) bool {
	b := c.batch
	var keep bool
	var err error
	if !others {
		keep, err = c.report(&b)
	}
	if err == nil && len(c.late) > 0 {
		err = c.warn(&b)
	}
	if err == nil && left == c.done && !keep && len(b.Holds) == 0 {
		// All that there is about the message goes, the new states too.
		b.States = nil
		b.Removes = append(b.Removes, c.l.message.ID)
	}
	if err == nil {
		// A report must be as safe as the message that it stands for; a delivery
		// may be forgotten in a crash and done again.
		err = c.q.o.Store.Apply(context.WithoutCancel(ctx), &b, len(b.Puts) == 0)
	}
	if err != nil {
		c.q.o.Log.Error("cannot write down a delivery, trying again", "id", c.l.message.ID.String(), "error", reply.Clean(err.Error(), 500))
		return false
	}
	if len(b.Removes) > 0 {
		c.q.counters.removed.Add(1)
	}
	c.q.enter(b.Puts)
	return true
}

// log writes a line for each recipient's result.
func (q *Queue) log(b schedule.Batch, c *conclusion, results []Result) {
	for i, r := range results {
		e := c.l.message.Envelope
		s := c.batch.States[i].State
		q.o.Log.Info("delivery", "id", store.ID(b.ID).String(), "channel", b.Channel, "from", reply.Clean(e.Sender, 1100),
			"to", reply.Clean(e.Recipients[b.Recipients[i]].Address, 1100), "status", s.Status.String(), "attempt", s.Attempts,
			"where", s.Where, "reply", r.Reply.SMTP(), "age", c.now.Sub(c.l.message.ID.Time()).Round(time.Millisecond).String())
	}
}
