package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// Submission is one message to be queued.
type Submission struct {
	Envelope envelope.Envelope
	// Message is held by the caller; submissions with the same body share it.
	Message message.Message
	// Origin is kept without being looked into.
	Origin []byte
	// Hold keeps the message from being delivered; nil delivers it.
	Hold *store.Hold
	// bounce is how many reports deep it is.
	bounce uint8
}

// Submit queues messages: all, in one batch, or none. When it returns without
// an error they are on stable storage. ctx is looked at last just before the
// commit; after that, success is success. A message for nobody is done with at
// once and gets an ID that names nothing. Errors carry their answer
// (reply.Of).
func (q *Queue) Submit(ctx context.Context, all []Submission) ([]store.ID, error) {
	if q.isClosed() {
		return nil, reply.With(reply.Trouble, store.ErrClosed)
	}
	b := &store.Batch{}
	ids, err := q.puts(b, all)
	if err != nil {
		return nil, err
	}
	if len(b.Puts) == 0 {
		return ids, nil
	}
	if err := q.apply(ctx, b, false); err != nil {
		return nil, fmt.Errorf("queueing: %w", err)
	}
	q.counters.submitted.Add(int64(len(b.Puts)))
	return ids, nil
}

// apply applies a batch and puts its new messages into the schedule. Whoever
// reads the store and wants to change one of these waits until they are there.
func (q *Queue) apply(ctx context.Context, b *store.Batch, later bool) error {
	if len(b.Puts) == 0 {
		return q.o.Store.Apply(ctx, b, later)
	}
	tracks := make([]*track, len(b.Puts))
	q.mu.Lock()
	for i := range b.Puts {
		tracks[i] = q.track(b.Puts[i].Message.ID)
	}
	q.mu.Unlock()
	defer q.untrack(tracks...)
	for _, t := range tracks {
		t.writing.Lock()
		defer t.writing.Unlock()
	}
	if err := q.o.Store.Apply(ctx, b, later); err != nil {
		return err
	}
	q.keepFresh(b.Puts, tracks)
	for i := range b.Puts {
		q.enter(&b.Puts[i])
	}
	q.wake()
	return nil
}

// puts adds submissions to a batch.
func (q *Queue) puts(b *store.Batch, all []Submission) ([]store.ID, error) {
	ids := make([]store.ID, len(all))
	bodies := map[*message.Body]store.ID{}
	for i, s := range all {
		id := q.o.Store.NewID()
		ids[i] = id
		if len(s.Envelope.Recipients) == 0 {
			continue
		}
		if err := checkEnvelope(s.Envelope); err != nil {
			return nil, err
		}
		body := s.Message.Body()
		p := store.Put{Hold: s.Hold, Message: store.Message{
			ID: id, Envelope: s.Envelope, Head: s.Message.HeadText(), Form: s.Message.Form(), Origin: s.Origin, Bounce: s.bounce,
			Body: store.BodyInfo{Of: id, Size: body.Size(), LFs: body.LFs(), EightBit: body.EightBit()},
		}}
		if now := q.o.Now(); id.Time().After(now) || now.Sub(id.Time()) > time.Second {
			p.Message.Arrived = now.UTC().Truncate(time.Millisecond)
		}
		if of, shared := bodies[body]; shared && body != nil {
			p.Message.Body.Of = of
		} else {
			p.Body = body
			bodies[body] = id
		}
		b.Puts = append(b.Puts, p)
	}
	return ids, nil
}

// checkEnvelope keeps out of the queue what no exit could deliver.
func checkEnvelope(e envelope.Envelope) error {
	for _, r := range e.Recipients {
		if err := checkAddress(r.Address); err != nil {
			return fmt.Errorf("recipient: %w", err)
		}
	}
	if err := checkAddress(e.Sender); err != nil {
		return fmt.Errorf("sender: %w", err)
	}
	return nil
}

func checkAddress(a string) error {
	if len(a) > envelope.MaxAddress {
		return reply.With(reply.AddressTooLong, fmt.Errorf("address of %d bytes", len(a)))
	}
	if !envelope.ValidBytes(a) {
		return reply.With(reply.BadAddress, fmt.Errorf("address %q holds a control character", a))
	}
	return nil
}

// enterAtOnce is how many recipients of a message enter the schedule under one
// hold of the queue's lock.
const enterAtOnce = 500

// enter puts a stored message into the schedule.
func (q *Queue) enter(p *store.Put) {
	m := &p.Message
	to := m.Envelope.Recipients
	q.counters.messages.Add(1)
	q.o.Log.Info("queued", "id", m.ID.String(), "from", reply.Clean(m.Envelope.Sender, envelope.MaxAddress), "recipients", len(to),
		"size", int64(len(m.Head))+m.Body.Size, "held", p.Hold != nil, "report", m.Bounce)
	lane := q.laneOf(m)
	entries := make([]schedule.Entry, 0, min(len(to), enterAtOnce))
	for n := 0; n < len(to); {
		entries = entries[:0]
		for ; n < len(to) && len(entries) < enterAtOnce; n++ {
			e := q.entry(m.ID, to[n].Address, n, lane)
			e.Held = p.Hold != nil
			entries = append(entries, e)
		}
		q.mu.Lock()
		q.sawLane(lane)
		if n == len(entries) && len(to) > 1 {
			q.many[m.ID] = tally{left: uint32(len(to))}
		}
		for _, e := range entries {
			q.schedule.Add(e)
		}
		q.mu.Unlock()
	}
}
