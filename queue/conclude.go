package queue

import (
	"context"
	"errors"
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
	states   []store.SetState
	outcomes []schedule.Outcome
	attempts Attempts
	done     uint32
	failed   []store.SetState // recipients given up by this delivery
	late     bool             // some are deferred, and the sender is to be told
	earlier  bool             // failures of earlier deliveries are to be reported too
	frozen   bool             // it could not be written down
}

// conclude writes down what became of a batch and gives it back to the
// schedule. Conclusions about one message wait for each other.
func (q *Queue) conclude(b schedule.Batch, t *track, l *loaded, started time.Time, results []Result, health schedule.Health) {
	t.writing.Lock()
	defer t.writing.Unlock()
	q.mu.Lock()
	count, many := q.many[t.id]
	removed, held := t.removed, t.held
	q.mu.Unlock()
	if !many {
		count.left = 1
	}
	c := &conclusion{q: q, l: l, now: q.o.Now()}
	c.judge(b, started, results, count.warned)
	if !removed {
		if !many {
			c.late = c.late && !c.told()
		}
		c.earlier = count.owes
		count.left -= min(c.done, count.left)
		count.owes = count.owes || len(c.failed) > 0
		removed = c.write(count, held)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.land(c.now, b, t, health, c.outcomes)
	c.attempts.add(q.attempts[b.Channel])
	q.attempts[b.Channel] = c.attempts
	switch {
	case removed || t.removed:
		t.removed = true
		delete(q.many, t.id)
	case c.frozen || !many:
	case count.left == 0: // it waits for its report, or for an operator
		delete(q.many, t.id)
	default:
		q.many[t.id] = count
	}
}

// judge makes states and outcomes of the results.
func (c *conclusion) judge(b schedule.Batch, started time.Time, results []Result, warned bool) {
	q, birth := c.q, c.l.message.Arrival()
	expired := schedule.Expired(birth, started, q.o.Lifetime)
	backoff := q.channels[b.Channel].Backoff
	c.outcomes = make([]schedule.Outcome, len(results))
	c.states = make([]store.SetState, len(results))
	for i, r := range results {
		s := store.State{
			Attempts: uint16(min(b.Attempts+1, 1<<16-1)), Last: c.now, Reply: bounded(r.Reply), Where: reply.Clean(r.Where, store.MaxWhere),
			Perhaps: r.Perhaps, Warned: warned,
		}
		switch {
		case r.Reply.Class == reply.Success:
			s.Status = store.Delivered
			c.done++
			c.attempts.Delivered++
		case r.Reply.Class == reply.Permanent || expired:
			s.Status = store.Failed
			if r.Reply.Class != reply.Permanent {
				s.Reply = tooLong(s.Reply)
			}
			c.done++
			c.failed = append(c.failed, store.SetState{ID: store.ID(b.ID), Recipient: b.Recipients[i], State: s})
			c.attempts.Failed++
		default:
			s.Status = store.Deferred
			s.Due = backoff.Next(birth, c.now, int(s.Attempts), q.o.Rand)
			c.outcomes[i] = schedule.Outcome{Deferred: true, Due: s.Due}
			c.late = c.late || !warned && q.mayWarn(c.l.message, c.now)
			c.attempts.Deferred++
		}
		c.states[i] = store.SetState{ID: store.ID(b.ID), Recipient: b.Recipients[i], State: s}
	}
	c.log(b, results)
}

// told carries over, for a message with one recipient, that its sender was told
// of the delay. When in doubt he was: one warning too few is better than one
// with each attempt.
func (c *conclusion) told() bool {
	told := true
	err := c.q.scan(c.l.message.ID, func(e *store.Entry) error {
		told = e.State(0).Warned
		return nil
	})
	c.states[0].State.Warned = err == nil && told
	return told
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

// write writes the conclusion down, with everything that follows from it if it
// is the last one about the message. It says whether the message is gone.
func (c *conclusion) write(count tally, held bool) (removed bool) {
	q, id := c.q, c.l.message.ID
	if count.left == 0 && !count.owes {
		// All that there is about the message goes, the new states too. A removal
		// that a crash undoes makes a duplicate, not a loss.
		if !c.persist(&store.Batch{Removes: []store.ID{id}}) {
			return false
		}
		q.gone(id)
		return true
	}
	if count.left == 0 && !held {
		removed, err := c.finish()
		if err == nil {
			return removed
		}
		q.o.Log.Error("cannot report a failure, trying again later", "id", id.String(), "error", reply.Clean(err.Error(), 500))
	}
	if !c.persist(&store.Batch{States: c.states}) || held {
		return false
	}
	switch {
	case count.left == 0:
		q.owe(id, c.now, c.now.Add(retrySettle))
	case len(c.failed) > 0, c.late:
		q.owe(id, c.now, c.now.Add(gather(c.now.Sub(c.l.message.Arrival()))))
	}
	return false
}

// finish reports what is owed and removes the message, at once.
func (c *conclusion) finish() (removed bool, err error) {
	a := &account{q: c.q, message: c.l.message, content: c.l.content, now: c.now, over: true, failed: c.failed}
	defer a.release()
	a.batch.States = c.states
	if c.earlier {
		mine := map[uint32]bool{}
		for _, s := range c.states {
			mine[s.Recipient] = true
		}
		err := c.q.scan(a.message.ID, func(e *store.Entry) error {
			for _, s := range e.States {
				if s.State.Status == store.Failed && !s.State.Reported && !mine[s.Recipient] {
					a.failed = append(a.failed, s)
				}
			}
			return nil
		})
		if err != nil {
			return false, err
		}
	}
	return a.settle(c.q.ctx)
}

// Pauses before a conclusion is written again, and how often it is tried. With
// a store that is sound, only the end of the process makes it fail.
const (
	retryWrite = time.Second
	writeTries = 30
)

// persist writes a conclusion that brings no new message: a store that has no
// room for mail has room for that. If it cannot be written at all the
// recipients are held in memory: mail that was delivered and cannot be noted as
// such must not be delivered every few minutes.
func (c *conclusion) persist(b *store.Batch) bool {
	q, id := c.q, c.l.message.ID
	for try := 1; ; try++ {
		err := q.o.Store.Apply(context.WithoutCancel(q.ctx), b, true)
		if err == nil {
			return true
		}
		q.o.Log.Error("cannot write down a delivery", "id", id.String(), "try", try, "error", reply.Clean(err.Error(), 500))
		if try >= writeTries || errors.Is(err, store.ErrClosed) || !q.pause(retryWrite) {
			break
		}
	}
	q.o.Log.Error("a delivery could not be written down; its recipients are kept back until a retry is ordered or Postern is started again, and may then get the message twice",
		"id", id.String())
	c.frozen = true
	for i := range c.outcomes {
		c.outcomes[i] = schedule.Outcome{Deferred: true, Hold: true}
	}
	return false
}

// pause waits; false means that the queue was closed and cannot wait longer.
func (q *Queue) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-q.ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// gone notes that a message was removed.
func (q *Queue) gone(id store.ID) {
	q.counters.removed.Add(1)
	q.counters.messages.Add(-1)
	q.o.Log.Info("end", "id", id.String())
}

// log writes a line for each recipient's result.
func (c *conclusion) log(b schedule.Batch, results []Result) {
	e := c.l.message.Envelope
	for i, r := range results {
		s := c.states[i].State
		log := c.q.o.Log
		if r.TLS != "" {
			log = log.With("tls", r.TLS)
		}
		if r.Source != "" {
			log = log.With("source", r.Source)
		}
		log.Info("delivery", "id", store.ID(b.ID).String(), "channel", b.Channel, "from", reply.Clean(e.Sender, 1100),
			"to", reply.Clean(e.Recipients[b.Recipients[i]].Address, 1100), "status", s.Status.String(), "attempt", s.Attempts,
			"where", s.Where, "reply", r.Reply.SMTP(), "age", max(c.now.Sub(c.l.message.Arrival()), 0).Round(time.Millisecond).String())
	}
}
