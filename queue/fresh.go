package queue

import (
	"bytes"
	"slices"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// Messages that have just come are kept in memory until they are first delivered, so
// that they need not be read from the disk, to which they were written a moment ago.
// Where mail comes faster than it leaves, those that came first are kept, because
// they leave first; one for which nobody comes makes room after a while.
const (
	freshBytes = 4 << 20 // of all of them together
	freshFor   = 5 * time.Second
	freshExtra = 1 << 10 // of memory for each, beside its texts
)

// fresh are the messages that are kept so. The queue's mutex guards it.
type fresh struct {
	bytes int64
	line  []arrival // in the order in which they came, with some that are fresh no more
}

type arrival struct {
	id store.ID
	at time.Time
}

// keepFresh keeps messages that were stored, and are not in the schedule yet.
func (q *Queue) keepFresh(puts []store.Put, tracks []*track) {
	for i := range puts {
		p := &puts[i]
		if _, ok := p.Body.Memory(); !ok || p.Message.Body.Of != p.Message.ID || p.Hold != nil || len(p.Message.Envelope.Recipients) >= keepFrom {
			continue
		}
		if size := p.Body.Size() + int64(len(p.Message.Head)) + freshExtra; q.roomForFresh(size) {
			q.setFresh(tracks[i], freshly(p), size)
		}
	}
}

// freshly is a message as it would be read, held.
func freshly(p *store.Put) *loaded {
	m := p.Message
	m.Envelope.Recipients = slices.Clone(m.Envelope.Recipients) // the submitter's
	m.Origin = bytes.Clone(m.Origin)
	head, _ := message.ParseHead(m.Head)
	return &loaded{&m, message.New(head, p.Body.Retain())}
}

// roomForFresh takes room for a fresh message, if there is some.
func (q *Queue) roomForFresh(size int64) bool {
	now := q.o.Now()
	var gone []*loaded
	q.mu.Lock()
	f := &q.fresh
	for len(f.line) > 0 {
		t := q.tracks[f.line[0].id]
		if t != nil && t.fresh > 0 {
			if now.Sub(f.line[0].at) < freshFor {
				break
			}
			gone = q.stale(t, gone)
		}
		f.line = f.line[1:]
	}
	ok := q.state == started && f.bytes+size <= freshBytes
	if ok {
		f.bytes += size
	}
	q.mu.Unlock()
	for _, l := range gone {
		l.release()
	}
	return ok
}

// setFresh has a track keep its message, for which there is room.
func (q *Queue) setFresh(t *track, l *loaded, size int64) {
	q.mu.Lock()
	if t.loaded == nil && !t.removed {
		t.loaded, t.fresh, l = l, size, nil
		q.fresh.line = append(q.fresh.line, arrival{t.id, q.o.Now()})
	} else {
		q.fresh.bytes -= size
	}
	q.mu.Unlock()
	l.release()
}

// used ends a message's being fresh; the queue is locked.
func (q *Queue) used(t *track) {
	q.fresh.bytes -= t.fresh
	t.fresh = 0
}

// stale is used for a message that nobody came for, which is given up and added to
// gone if nobody else has it; the queue is locked.
func (q *Queue) stale(t *track, gone []*loaded) []*loaded {
	q.used(t)
	if t.users > 0 {
		return gone
	}
	delete(q.tracks, t.id)
	return append(gone, t.loaded)
}
