package queue

import (
	"container/heap"
	"errors"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// owing are the messages whose senders are to be told of something soon. One
// report names all failures that came together, so that a message with many
// recipients does not make as many reports.
type owing struct {
	due     []debt
	pending map[store.ID]struct{} // those in due
}

type debt struct {
	id    store.ID
	since time.Time
	due   time.Time
}

// Len is heap.Interface, like the four that follow.
func (o *owing) Len() int           { return len(o.due) }
func (o *owing) Less(i, j int) bool { return o.due[i].due.Before(o.due[j].due) }
func (o *owing) Swap(i, j int)      { o.due[i], o.due[j] = o.due[j], o.due[i] }
func (o *owing) Push(x any)         { o.due = append(o.due, x.(debt)) }
func (o *owing) Pop() any {
	last := o.due[len(o.due)-1]
	o.due = o.due[:len(o.due)-1]
	return last
}

// add notes a message, unless it is noted already.
func (o *owing) add(id store.ID, since, due time.Time) {
	if _, there := o.pending[id]; there {
		return
	}
	o.pending[id] = struct{}{}
	heap.Push(o, debt{id, since, due})
}

// take takes the first one if it is due.
func (o *owing) take(now time.Time) (debt, bool) {
	if len(o.due) == 0 || o.due[0].due.After(now) {
		return debt{}, false
	}
	d := heap.Pop(o).(debt)
	delete(o.pending, d.id)
	return d, true
}

const (
	settleSlots = 16          // messages settled at a time
	retrySettle = time.Minute // until a report is tried again that could not be written
	// patience is for how long a report waits for deliveries of the same message
	// to end; pollFlying is how often it looks.
	patience   = time.Hour
	pollFlying = 2 * time.Second
)

// gather is how long failures of a message of that age are gathered before they
// are reported: longer as it gets older, so that the reports about one message
// stay few however its recipients fail.
func gather(age time.Duration) time.Duration {
	return min(max(age/10, time.Second), time.Hour)
}

// owe has a message settled in a while.
func (q *Queue) owe(id store.ID, now, due time.Time) {
	q.mu.Lock()
	q.owing.add(id, now, due)
	q.mu.Unlock()
}

// remember settles what is owed, for as long as the queue is open.
func (q *Queue) remember() {
	defer q.loops.Done()
	each(q.remind, q.settleDue)
}

// settleDue settles what is due, and says when to look again.
func (q *Queue) settleDue() (wait time.Duration, open bool) {
	now := q.o.Now()
	for {
		q.mu.Lock()
		if q.state == closed {
			q.mu.Unlock()
			return 0, false
		}
		d, ok := q.owing.take(now)
		if !ok {
			wait = maxSleep
			if len(q.owing.due) > 0 {
				wait = sleep(now, q.owing.due[0].due)
			}
			q.mu.Unlock()
			return wait, true
		}
		t := q.tracks[d.id]
		if t != nil && t.inFlight > 0 && now.Sub(d.since) < patience {
			q.owing.add(d.id, d.since, now.Add(pollFlying))
			q.mu.Unlock()
			continue
		}
		t = q.track(d.id)
		q.jobs.Add(1)
		q.mu.Unlock()
		q.settles <- struct{}{}
		go func() {
			defer func() { <-q.settles }()
			defer q.jobs.Done()
			defer q.untrack(t)
			q.settle(t)
		}()
	}
}

// settle tells the sender of a message what he is to be told, and removes the
// message if it is done with. What cannot be done now is done later.
func (q *Queue) settle(t *track) {
	t.writing.Lock()
	defer t.writing.Unlock()
	q.mu.Lock()
	idle := t.removed || t.held
	q.mu.Unlock()
	if idle {
		return
	}
	removed, count, err := q.settleNow(t)
	now := q.o.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	_, many := q.many[t.id]
	switch {
	case errors.Is(err, store.ErrNotFound) && count == nil, removed:
		t.removed = true
		delete(q.many, t.id)
	case err != nil:
		q.o.Log.Error("cannot settle a message, trying again later", "id", t.id.String(), "error", reply.Clean(err.Error(), 500))
		q.owing.add(t.id, now, now.Add(retrySettle))
	case many:
		q.many[t.id] = *count
	}
}

// settleNow reads what there is about a message and settles it. The tally is
// what is left then; nil if nothing of the message was found.
func (q *Queue) settleNow(t *track) (removed bool, count *tally, err error) {
	a := &account{q: q, now: q.o.Now()}
	defer a.release()
	held := false
	err = q.scan(t.id, func(e *store.Entry) error {
		count = &tally{}
		held = e.Hold != nil
		a.read(e, count)
		return nil
	})
	if err != nil || held {
		return false, count, err
	}
	a.over = count.left == 0
	if len(a.failed) == 0 && (len(a.late) == 0 || count.warned) && !a.over {
		return false, count, nil
	}
	l, err := q.loadTrack(t)
	if err != nil {
		return false, count, err
	}
	a.message, a.content = l.message, l.content
	if count.warned || !q.mayWarn(l.message, a.now) {
		a.late = nil
	}
	if removed, err = a.settle(q.ctx); err != nil {
		return false, count, err
	}
	count.warned = count.warned || len(a.late) > 0
	count.owes = count.owes && !a.marked
	return removed, count, nil
}

// read takes from a message's states what there is to tell.
func (a *account) read(e *store.Entry, count *tally) {
	next := 0
	for n := range e.Message.Envelope.Recipients {
		var s store.State
		if next < len(e.States) && e.States[next].Recipient == uint32(n) {
			s = e.States[next].State
			next++
		}
		count.note(s)
		set := store.SetState{ID: e.Message.ID, Recipient: uint32(n), State: s}
		switch {
		case s.Status == store.Failed && !s.Reported:
			a.failed = append(a.failed, set)
		case s.Status == store.Deferred:
			a.late = append(a.late, set)
		}
	}
}
