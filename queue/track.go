package queue

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// track is a message with which something is going on: it is being submitted,
// delivered, reported on, or operated on.
type track struct {
	id store.ID
	// writing is held by whoever writes about the message and changes the
	// schedule accordingly, so that disk and memory agree in between. It is taken
	// before the queue's mutex; who takes several goes by rising ids.
	writing latch
	reading sync.Mutex // so that the message is read once

	// What follows is guarded by the queue's mutex.
	users    int
	inFlight int
	// removed is set when the message is gone, held when an operator holds it
	// while deliveries are going on.
	removed, held bool
	damaged       bool // found to be unreadable by an operator's deletion
	loaded        *loaded
	fresh         int64 // while it is kept until it is first loaded: the bytes that it counts for
}

// latch is a lock for which one can wait with a deadline, because its holder
// may be waiting for a disk.
type latch chan struct{}

func (l latch) Lock()   { l <- struct{}{} }
func (l latch) Unlock() { <-l }

// lock is Lock, until ctx ends.
func (l latch) lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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

// Messages with many recipients go out in many batches. Those that were used
// last are kept between these, because reading them costs as much as they have
// recipients.
const (
	keepFrom       = 100 // recipients
	keepTracks     = 8
	keepRecipients = 200_000 // of all that are kept, unless it is a single one
)

// track finds or makes the track of a message; the queue is locked.
func (q *Queue) track(id store.ID) *track {
	t := q.tracks[id]
	switch {
	case t == nil:
		t = &track{id: id, writing: make(latch, 1)}
		q.tracks[id] = t
	case t.users == 0:
		q.idle = slices.DeleteFunc(q.idle, func(o *track) bool { return o == t })
	}
	t.users++
	return t
}

// untrack gives tracks up. The queue is not locked.
func (q *Queue) untrack(all ...*track) {
	var gone []*loaded
	q.mu.Lock()
	for _, t := range all {
		gone = q.drop(t, gone)
	}
	q.mu.Unlock()
	for _, l := range gone {
		l.release()
	}
}

// drop gives a track up and adds to gone what is to be released without the
// lock.
func (q *Queue) drop(t *track, gone []*loaded) []*loaded {
	if t.users--; t.users > 0 || t.fresh > 0 && !t.removed && q.state != closed {
		return gone
	}
	q.used(t)
	if t.removed || t.recipients() < keepFrom || q.state == closed {
		delete(q.tracks, t.id)
		return append(gone, t.loaded)
	}
	q.idle = append(q.idle, t)
	total := 0
	for _, t := range q.idle {
		total += t.recipients()
	}
	for len(q.idle) > keepTracks || len(q.idle) > 1 && total > keepRecipients {
		t := q.idle[0]
		q.idle = q.idle[1:]
		total -= t.recipients()
		delete(q.tracks, t.id)
		gone = append(gone, t.loaded)
	}
	return gone
}

func (t *track) recipients() int {
	if t.loaded == nil {
		return 0
	}
	return len(t.loaded.message.Envelope.Recipients)
}

// dropIdle gives up what is kept without users.
func (q *Queue) dropIdle() {
	q.mu.Lock()
	idle := q.idle
	q.idle = nil
	var gone []*loaded
	for _, t := range idle {
		delete(q.tracks, t.id)
		gone = append(gone, t.loaded)
	}
	for _, a := range q.fresh.line {
		if t := q.tracks[a.id]; t != nil && t.fresh > 0 {
			gone = q.stale(t, gone)
		}
	}
	q.fresh.line = nil
	q.mu.Unlock()
	for _, l := range gone {
		l.release()
	}
}

// load reads the message of a track, once for all who use it.
func (q *Queue) loadTrack(t *track) (*loaded, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	q.mu.Lock()
	l := t.loaded
	q.used(t)
	q.mu.Unlock()
	if l != nil {
		return l, nil
	}
	l, err := q.readApart(t.id)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	t.loaded = l
	q.mu.Unlock()
	return l, nil
}

// readApart is read on a goroutine of its own: it goes deep, and the delivery that
// waits for a server afterwards should not be left with so large a stack.
func (q *Queue) readApart(id store.ID) (l *loaded, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		l, err = q.read(id)
	}()
	<-done
	return l, err
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

// scan calls f with one message and all its states, during the call.
func (q *Queue) scan(id store.ID, f func(*store.Entry) error) error {
	r, err := q.o.Store.Reader()
	if err != nil {
		return err
	}
	defer r.Close()
	found := store.ErrNotFound
	err = r.Scan(id, func(e *store.Entry) error {
		if e.Message.ID == id {
			found = f(e)
		}
		return errStop
	})
	if err != nil && !errors.Is(err, errStop) {
		return err
	}
	return found
}

// errStop ends a scan early.
var errStop = errors.New("enough")
