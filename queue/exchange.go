package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// ErrChanged is the error about a held message that is not any more as it was
// looked at: released, tried, held for something else.
var ErrChanged = errors.New("the message has changed meanwhile: look at it and try again")

// errFlying is the ErrChanged of a message that is being delivered.
var errFlying = fmt.Errorf("a delivery that was begun before it was held is going on, try again when that has ended: %w", ErrChanged)

// errOwes is the error about a message that must stay as it is, because it says
// what its sender is to be told.
var errOwes = errors.New("recipients of it were given up and its sender was not told yet: postern queue release lets it go, and reports them")

// Content is a message's head and body, whose body is held by the caller;
// store.ErrNotFound if there is none of that id.
func (q *Queue) Content(id store.ID) (message.Message, error) {
	l, err := q.read(id)
	if err != nil {
		return message.Message{}, err
	}
	return l.content, nil
}

// Replace queues messages in the place of a held one, which must be as was shows
// it: all of them are queued and it is removed, in one batch, or nothing is
// done. The new ones are tried from now on for the whole of a lifetime. ctx is
// looked at last just before the commit. Errors carry their answer (reply.Of);
// ErrChanged and store.ErrNotFound are among them.
func (q *Queue) Replace(ctx context.Context, was *View, all []Submission, by string) ([]store.ID, error) {
	if q.isClosed() {
		return nil, reply.With(reply.Trouble, store.ErrClosed)
	}
	b := &store.Batch{Removes: []store.ID{was.ID}}
	all = slices.Clone(all)
	for i := range all {
		all[i].bounce = was.Bounce // a report stays one
	}
	ids, err := q.puts(b, all)
	if err != nil {
		return nil, err
	}
	if len(b.Puts) == 0 {
		return nil, fmt.Errorf("message %v: nothing takes its place", was.ID)
	}
	err = q.exchange(ctx, was, func(t *track) error {
		if err := q.apply(ctx, b, false); err != nil {
			return err
		}
		q.mu.Lock()
		q.schedule.Remove(schedule.Select{IDs: []uint64{uint64(t.id)}})
		t.removed = true
		delete(q.many, t.id)
		q.mu.Unlock()
		q.counters.messages.Add(-1)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("replacing %v: %w", was.ID, err)
	}
	q.counters.submitted.Add(int64(len(b.Puts)))
	for _, id := range ids {
		q.o.Log.Info("replaced", "id", was.ID.String(), "as", id.String(), "by", by)
	}
	return ids, nil
}

// Rehold holds a held message, which must be as was shows it, for another
// reason. The errors are those of Replace.
func (q *Queue) Rehold(ctx context.Context, was *View, h store.Hold, by string) error {
	err := q.exchange(ctx, was, func(*track) error {
		return q.o.Store.Apply(ctx, &store.Batch{Holds: []store.SetHold{{ID: was.ID, Hold: &h}}}, false)
	})
	if err == nil {
		q.o.Log.Info("held", "id", was.ID.String(), "filter", h.Filter, "reason", reply.Clean(h.Reason, 500), "by", by)
	}
	return err
}

// Exchangeable is nil if Replace could take a held message, which must be as was
// shows it, and else Replace's error. It changes nothing.
func (q *Queue) Exchangeable(ctx context.Context, was *View) error {
	return q.exchange(ctx, was, func(*track) error { return nil })
}

// exchange makes a change of a held message while nobody else writes about it,
// if it is as it was looked at, and nothing is going on with it. No failure that
// its sender was not told of gets lost with it.
func (q *Queue) exchange(ctx context.Context, was *View, change func(*track) error) error {
	q.mu.Lock()
	t := q.track(was.ID)
	q.mu.Unlock()
	defer q.untrack(t)
	if err := t.writing.lock(ctx); err != nil {
		return fmt.Errorf("message %v is busy: %w", was.ID, err)
	}
	defer t.writing.Unlock()
	q.mu.Lock()
	flying := t.inFlight > 0
	q.mu.Unlock()
	same, owes := false, false
	err := q.scan(was.ID, func(e *store.Entry) error {
		v := &View{}
		v.set(q, e)
		same = sameHold(v.Hold, was.Hold) &&
			slices.EqualFunc(v.Recipients, was.Recipients, func(a, b Recipient) bool { return a.Address == b.Address && a.Status == b.Status })
		owes = v.Bouncing()
		return nil
	})
	switch {
	case err != nil:
		return err
	case flying:
		return errFlying
	case !same:
		return ErrChanged
	case owes:
		return errOwes
	}
	return change(t)
}

// sameHold reports whether both are the same hold; nil is none.
func sameHold(a, b *store.Hold) bool {
	return a != nil && b != nil && a.Reason == b.Reason && a.Filter == b.Filter && a.By == b.By && a.Since.Equal(b.Since)
}
