package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// Verify checks what must hold of the queue in memory, and reports each thing
// that does not: that the schedule does not contradict itself, and that it and
// the store agree about who is still to be delivered to and what is held. It
// does so while mail goes on, which waits about half a second for a million
// recipients. The error is that of the store or of the context.
func (q *Queue) Verify(ctx context.Context, report func(problem string)) error {
	q.mu.Lock()
	err := q.schedule.Check()
	q.mu.Unlock()
	var faults interface{ Unwrap() []error }
	if errors.As(err, &faults) {
		for _, f := range faults.Unwrap() {
			report(f.Error())
		}
	}
	suspects, err := q.suspects(ctx)
	for _, id := range suspects {
		if err != nil {
			break
		}
		err = q.examine(ctx, id, report)
	}
	return err
}

// suspects are the messages about which store and schedule do not agree, or did
// not for a moment.
func (q *Queue) suspects(ctx context.Context) (all []store.ID, err error) {
	r, err := q.o.Store.Reader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var stored []store.ID // ascending
	err = r.Scan(0, func(e *store.Entry) error {
		stored = append(stored, e.Message.ID)
		if q.differ(e) != "" {
			all = append(all, e.Message.ID)
		}
		return context.Cause(ctx)
	})
	if err != nil {
		return nil, err
	}
	for place, more := uint32(0), true; more; more = place != 0 {
		var ids []uint64
		q.mu.Lock()
		ids, place = q.schedule.MessagesAfter(place, lookAtOnce)
		q.mu.Unlock()
		for _, id := range ids {
			if _, there := slices.BinarySearch(stored, store.ID(id)); !there {
				all = append(all, store.ID(id))
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// examine looks at one message while nobody writes about it, so that store and
// schedule must agree.
func (q *Queue) examine(ctx context.Context, id store.ID, report func(string)) error {
	q.mu.Lock()
	t := q.track(id)
	q.mu.Unlock()
	defer q.untrack(t)
	if err := t.writing.lock(ctx); err != nil {
		return fmt.Errorf("message %v is busy: %w", id, err)
	}
	defer t.writing.Unlock()
	problem := ""
	err := q.scan(id, func(e *store.Entry) error {
		problem = q.differ(e)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		if q.exists(id) {
			return nil // it is damaged, which the store tells
		}
		problem, err = q.differ(&store.Entry{Message: &store.Message{ID: id}}), nil
	}
	if problem != "" {
		report(fmt.Sprintf("message %v: %s", id, problem))
	}
	return err
}

// differ says in what the schedule and a stored message do not agree, "" if
// they do.
func (q *Queue) differ(e *store.Entry) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	id, total := e.Message.ID, len(e.Message.Envelope.Recipients)
	var done map[uint32]bool
	left := total
	for _, s := range e.States {
		if s.State.Status.Done() {
			if done == nil {
				done = map[uint32]bool{}
			}
			done[s.Recipient] = true
			left--
		}
	}
	waiting, back := 0, 0
	for i := range q.schedule.Items(schedule.Select{ID: uint64(id)}) {
		switch {
		case total == 0:
			return "it is in the schedule and not on disk"
		case int(i.Recipient) >= total || done[i.Recipient]:
			return fmt.Sprintf("recipient %d is %s in the schedule and done with on disk", i.Recipient, i.State)
		case e.Hold != nil && i.State == schedule.Queued:
			return fmt.Sprintf("recipient %d is queued in the schedule and held on disk", i.Recipient)
		case i.Site != unlocated && placeOf(i.Site).lane != placeOf(i.Domain).lane:
			return fmt.Sprintf("recipient %d leaves by lane %q and waits for a site in lane %q", i.Recipient, placeOf(i.Domain).lane, placeOf(i.Site).lane)
		case e.Hold == nil && i.State == schedule.Held:
			back++
		}
		waiting++
	}
	tally, many := q.many[id]
	switch {
	case waiting != left:
		return fmt.Sprintf("%d recipients are in the schedule, %d on disk are not done with", waiting, left)
	case many && int(tally.left) != left, !many && total > 1 && left > 0:
		return fmt.Sprintf("%d recipients are counted in memory, %d on disk are not done with", tally.left, left)
	case back > 0:
		return fmt.Sprintf("%d recipients are kept back because their last delivery could not be written down: postern queue retry %v, or a restart, "+
			"frees them, and they may then get the message twice", back, id)
	}
	return ""
}
