package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// Selection chooses messages: those with an id in IDs (nil: with any) for which
// Match (nil: all) says yes. One that has neither chooses nothing and is an
// error, so that a mistake is never "the whole queue".
type Selection struct {
	IDs   []store.ID
	Match func(*View) bool
	// DryRun changes nothing and tells what would be changed.
	DryRun bool
}

// Changed is what an operation did, or would have done.
type Changed struct {
	Messages, Recipients int
	// InFlight are deliveries that were going on and could not be called back.
	InFlight int
	// IDs are the first maxChanged messages.
	IDs []store.ID
}

const (
	maxChanged = 1000
	// atOnce is how many messages are changed in one batch. Each batch looks at
	// all that the schedule has queued for the same domains.
	atOnce = 5000
)

// ErrNothingSelected is the error for a Selection that chooses nothing.
var ErrNothingSelected = errors.New("no message is selected: name ids or a rule")

// Hold keeps messages from being delivered until they are released. Deliveries
// that are going on end; nothing is reported about them meanwhile.
func (q *Queue) Hold(ctx context.Context, sel Selection, h store.Hold) (Changed, error) {
	h.Since = q.o.Now()
	return q.operate(ctx, sel, operation{
		wants: func(v *View) int { return wantIf(v.Hold == nil, v.Left()) },
		batch: func(b *store.Batch, v *View) { b.Holds = append(b.Holds, store.SetHold{ID: v.ID, Hold: &h}) },
		memory: func(s schedule.Select, all []*track) {
			q.schedule.Hold(s)
			for _, t := range all {
				t.held = true
			}
		},
		word: "held", by: h.By,
	})
}

// Release lets held messages go. Recipients of a message that was given up and
// held because its sender must not be told are tried again.
func (q *Queue) Release(ctx context.Context, sel Selection, by string) (Changed, error) {
	type revived struct {
		entry *store.Entry
		lane  string
	}
	var again []revived
	var owed []store.ID
	now := q.o.Now()
	return q.operate(ctx, sel, operation{
		wants: func(v *View) int { return wantIf(v.Hold != nil, len(v.Recipients)) },
		batch: func(b *store.Batch, v *View) {
			b.Holds = append(b.Holds, store.SetHold{ID: v.ID})
			if v.Bouncing() {
				owed = append(owed, v.ID)
			}
			if v.Left() > 0 || v.Bouncing() {
				return
			}
			e := &store.Entry{Message: &store.Message{ID: v.ID, Envelope: v.Envelope.Clone()}}
			for n, r := range v.Recipients {
				set := store.SetState{ID: v.ID, Recipient: uint32(n), State: r.State}
				if r.Status == store.Failed {
					set.State.Status, set.State.Reported, set.State.Due = store.Deferred, false, now
					b.States = append(b.States, set)
				}
				e.States = append(e.States, set)
			}
			lane := q.laneOf(&store.Message{ID: v.ID, Envelope: v.Envelope, Origin: v.Origin})
			again = append(again, revived{e, lane})
		},
		memory: func(s schedule.Select, all []*track) {
			q.schedule.Release(s)
			for _, t := range all {
				t.held = false
			}
			for _, id := range owed {
				q.owing.add(id, now, now)
			}
			for _, r := range again {
				q.add(r.entry, r.lane)
			}
			again, owed = nil, nil
		},
		word: "released", by: by,
	})
}

// Retry makes deferred recipients due now, and frees those that are held
// because their last delivery could not be written down. It changes nothing on
// disk: after a restart they wait as long as they had to.
func (q *Queue) Retry(ctx context.Context, sel Selection, by string) (Changed, error) {
	return q.operate(ctx, sel, operation{
		wants: func(v *View) int { return wantIf(v.Hold == nil, v.Left()) },
		memory: func(s schedule.Select, _ []*track) {
			q.schedule.Release(s)
			q.schedule.Retry(q.o.Now(), s)
		},
		word: "retry", by: by,
	})
}

// Delete removes messages for good; nobody is told. Deliveries that are going
// on cannot be called back, and are forgotten when they end. A message that is
// damaged can be deleted by its id.
func (q *Queue) Delete(ctx context.Context, sel Selection, by string) (Changed, error) {
	return q.operate(ctx, sel, operation{
		wants: func(v *View) int { return len(v.Recipients) },
		batch: func(b *store.Batch, v *View) { b.Removes = append(b.Removes, v.ID) },
		blind: true,
		memory: func(s schedule.Select, all []*track) {
			q.schedule.Remove(s)
			for _, t := range all {
				t.removed = true
				delete(q.many, t.id)
				q.counters.deleted.Add(1)
				if !t.damaged {
					q.counters.messages.Add(-1)
				}
			}
		},
		word: "deleted", by: by,
	})
}

// operation is one way of changing messages.
type operation struct {
	// wants is how many recipients of a message it is about, -1 if the message is
	// not one for it.
	wants func(*View) int
	// batch adds what is to be written; nil: nothing is.
	batch func(*store.Batch, *View)
	// memory changes the schedule and the tracks, under the queue's lock.
	memory func(schedule.Select, []*track)
	// blind has it done by id also to messages that cannot be read.
	blind bool
	word  string
	by    string
}

func wantIf(ok bool, n int) int {
	if !ok {
		return -1
	}
	return n
}

// operate finds the messages first and then changes them in parts, each of
// which is looked at again with nobody else writing about it.
func (q *Queue) operate(ctx context.Context, sel Selection, op operation) (Changed, error) {
	var c Changed
	ids, err := q.selected(ctx, sel)
	if err != nil {
		return c, err
	}
	for part := range slices.Chunk(ids, atOnce) {
		if err := q.operateOn(ctx, part, sel, op, &c); err != nil {
			return c, fmt.Errorf("after %d messages: %w", c.Messages, err)
		}
	}
	q.wake()
	return c, nil
}

// selected are the ids of the messages that a selection chooses, rising.
func (q *Queue) selected(ctx context.Context, sel Selection) ([]store.ID, error) {
	if sel.IDs != nil {
		ids := slices.Clone(sel.IDs)
		slices.Sort(ids)
		return slices.Compact(ids), nil
	}
	if sel.Match == nil {
		return nil, ErrNothingSelected
	}
	var ids []store.ID
	err := q.Each(ctx, 0, func(v *View) error {
		if sel.Match(v) {
			ids = append(ids, v.ID)
		}
		return nil
	})
	return ids, err
}

func (q *Queue) operateOn(ctx context.Context, ids []store.ID, sel Selection, op operation, c *Changed) error {
	all := make([]*track, len(ids))
	q.mu.Lock()
	for i, id := range ids {
		all[i] = q.track(id)
	}
	q.mu.Unlock()
	defer func() { q.untrack(all...) }()
	for _, t := range all {
		if err := t.writing.lock(ctx); err != nil {
			return fmt.Errorf("message %v is busy: %w", t.id, err)
		}
		defer t.writing.Unlock()
	}
	b := &store.Batch{}
	part, chosen, err := q.choose(ctx, all, sel, op, b)
	if err != nil {
		return err
	}
	if !sel.DryRun && op.batch != nil && part.Messages > 0 {
		if err := q.o.Store.Apply(ctx, b, false); err != nil {
			return err
		}
	}
	named := make([]uint64, len(chosen))
	for i, t := range chosen {
		named[i] = uint64(t.id)
	}
	q.mu.Lock()
	for _, t := range chosen {
		part.InFlight += t.inFlight
	}
	if !sel.DryRun && len(chosen) > 0 {
		op.memory(schedule.Select{IDs: named}, chosen)
	}
	q.mu.Unlock()
	c.add(part, chosen)
	if !sel.DryRun {
		for _, t := range chosen {
			q.o.Log.Info(op.word, "id", t.id.String(), "by", op.by)
		}
	}
	return nil
}

func (c *Changed) add(part Changed, chosen []*track) {
	c.Messages += part.Messages
	c.Recipients += part.Recipients
	c.InFlight += part.InFlight
	for _, t := range chosen {
		if len(c.IDs) < maxChanged {
			c.IDs = append(c.IDs, t.id)
		}
	}
}

// choose looks at messages again and adds to the batch those that are still
// chosen.
func (q *Queue) choose(ctx context.Context, all []*track, sel Selection, op operation, b *store.Batch) (c Changed, chosen []*track, err error) {
	r, err := q.o.Store.Reader()
	if err != nil {
		return c, nil, err
	}
	defer r.Close()
	v := &View{}
	for i := 0; i < len(all); {
		if ctx.Err() != nil {
			return c, nil, context.Cause(ctx)
		}
		// One scan goes on for as long as the messages follow each other closely.
		misses := 0
		err := r.Scan(all[i].id, func(e *store.Entry) error {
			for i < len(all) && all[i].id < e.Message.ID {
				i++ // gone, or not to be read
			}
			switch {
			case i == len(all) || misses > 100:
				return errStop
			case all[i].id > e.Message.ID:
				misses++
				return nil
			}
			misses = 0
			v.set(q, e)
			t := all[i]
			i++
			n := op.wants(v)
			if n < 0 || sel.Match != nil && !sel.Match(v) {
				return nil
			}
			c.Messages++
			c.Recipients += n
			chosen = append(chosen, t)
			if op.batch != nil {
				op.batch(b, v)
			}
			return nil
		})
		switch {
		case err == nil:
			i = len(all) // the queue's end
		case !errors.Is(err, errStop):
			return c, nil, err
		}
	}
	if op.blind && sel.IDs != nil && sel.Match == nil {
		chosen = chooseBlind(r, all, chosen, &c, func(id store.ID) { op.batch(b, &View{ID: id}) })
	}
	return c, chosen, nil
}

// chooseBlind adds the messages that are there and cannot be read.
func chooseBlind(r store.Reader, all, chosen []*track, c *Changed, add func(store.ID)) []*track {
	seen := make(map[store.ID]bool, len(chosen))
	for _, t := range chosen {
		seen[t.id] = true
	}
	for _, t := range all {
		if seen[t.id] {
			continue
		}
		if _, err := r.Message(t.id); err != nil && !errors.Is(err, store.ErrNotFound) {
			t.damaged = true
			c.Messages++
			chosen = append(chosen, t)
			add(t.id)
		}
	}
	return chosen
}
