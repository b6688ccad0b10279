package pebble

import (
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// reader reads one state of the store.
type reader struct {
	s      *Store
	snap   *pebble.Snapshot
	closed atomic.Bool
}

// Reader is store.Store. It sees what was applied, also if its flush is still
// under way.
func (s *Store) Reader() (store.Reader, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	return &reader{s: s, snap: s.db.NewSnapshot()}, nil
}

// Close is store.Reader.
func (r *reader) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	defer r.s.leave()
	return r.snap.Close()
}

// get gives a copy of a value; nil, nil if there is none.
func (r *reader) get(key []byte) ([]byte, error) {
	v, closer, err := r.snap.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", keyName(key), err)
	}
	defer closer.Close()
	return append(make([]byte, 0, len(v)), v...), nil
}

var errChunk = errors.New("the record is missing")

// Message is store.Reader.
func (r *reader) Message(id store.ID) (*store.Message, error) {
	if r.closed.Load() {
		return nil, store.ErrClosed
	}
	key := envelopeKey(id, 0)
	record, err := r.get(key)
	if err != nil {
		return nil, err
	}
	if record == nil {
		return nil, store.ErrNotFound
	}
	h, err := decodeHeader(key, record)
	if err != nil {
		return nil, err
	}
	m := &h.message
	m.ID = id
	for chunk := uint32(1); chunk <= chunks(h.recipients); chunk++ {
		key = envelopeKey(id, chunk)
		if record, err = r.get(key); err != nil {
			return nil, err
		}
		if record == nil {
			return nil, damaged(key, 0, errChunk)
		}
		if m.Envelope.Recipients, err = decodeRecipients(key, record, chunkSize(h.recipients, chunk), m.Envelope.Recipients); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// chunks is how many chunks that many recipients fill.
func chunks(recipients uint32) uint32 {
	return uint32((uint64(recipients) + chunkRecipients - 1) / chunkRecipients)
}

// chunkSize is how many of all recipients are in that chunk.
func chunkSize(recipients, chunk uint32) int {
	return int(min(recipients-(chunk-1)*chunkRecipients, chunkRecipients))
}

// Body is store.Reader.
func (r *reader) Body(m *store.Message) (*message.Body, error) {
	if r.closed.Load() {
		return nil, store.ErrClosed
	}
	key := bodyKey(m.Body.Of)
	record, err := r.get(key)
	if err != nil {
		return nil, err
	}
	if record == nil {
		return nil, store.ErrNotFound
	}
	content, file, size, err := decodeBody(key, record)
	switch {
	case err != nil:
		return nil, err
	case size != m.Body.Size || file != m.Body.File:
		return nil, damaged(key, 0, fmt.Errorf("a body of %d bytes, not %d", size, m.Body.Size))
	case !file:
		return message.BytesBody(content), nil
	}
	b, err := r.s.openBody(m.Body)
	// The file is younger than this reader's view: the message was removed.
	if errors.Is(err, fs.ErrNotExist) && !r.s.stored(key) {
		return nil, store.ErrNotFound
	}
	return b, err
}

// stored reports whether a key is there now.
func (s *Store) stored(key []byte) bool {
	_, closer, err := s.db.Get(key)
	if err != nil {
		return !errors.Is(err, pebble.ErrNotFound)
	}
	closer.Close()
	return true
}

// Policies is store.Reader.
func (r *reader) Policies() ([]store.Policy, error) {
	if r.closed.Load() {
		return nil, store.ErrClosed
	}
	prefix := policyKey("")
	it, err := r.snap.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: successor(prefix)})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var all []store.Policy
	for it.First(); it.Valid(); it.Next() {
		all = append(all, store.Policy{Name: string(it.Key()[len(prefix):]), Value: append([]byte(nil), it.Value()...)})
	}
	return all, it.Error()
}

// Scan is store.Reader. A message that cannot be read is logged, counted in
// Stats.Damaged, and passed over; it stays on disk as it is. A state that
// cannot be read counts as none, so that its recipient is tried once more
// rather than lost, and a hold that cannot be read holds.
func (r *reader) Scan(from store.ID, f func(*store.Entry) error) error {
	if r.closed.Load() {
		return store.ErrClosed
	}
	sc := scan{s: r.s}
	defer sc.close()
	for _, c := range []struct {
		it    **pebble.Iterator
		first []byte
		space []byte
	}{
		{&sc.envelopes, envelopeKey(from, 0), []byte{prefixEnvelope}},
		{&sc.states, stateKey(from, 0), []byte{prefixState}},
		{&sc.holds, holdKey(from), []byte{prefixPolicy, policyHold}},
	} {
		it, err := r.snap.NewIter(&pebble.IterOptions{LowerBound: c.first, UpperBound: successor(c.space)})
		if err != nil {
			return err
		}
		*c.it = it
		it.First()
	}
	return sc.run(f)
}

// scan walks envelopes, states and holds side by side; or envelopes alone, if
// there are no iterators for the others.
type scan struct {
	s                        *Store
	envelopes, states, holds *pebble.Iterator
	// damage is told of what cannot be read; nil means the log.
	damage func(id store.ID, err error)
	entry  store.Entry
	to     []envelope.Recipient
	h      header
	hold   store.Hold
}

func (sc *scan) close() {
	for _, it := range [...]*pebble.Iterator{sc.envelopes, sc.states, sc.holds} {
		if it != nil {
			it.Close()
		}
	}
}

func (sc *scan) run(f func(*store.Entry) error) error {
	for sc.envelopes.Valid() {
		key := sc.envelopes.Key()
		id, _, ok := numbered(key, 1)
		if !ok {
			sc.report(0, damaged(key, 0, errors.New("a key of the wrong length")))
			sc.envelopes.Next()
			continue
		}
		err := sc.envelope(id)
		var d *Damage
		switch {
		case errors.As(err, &d):
			sc.report(id, err)
			sc.skip(id)
			continue
		case err != nil:
			return err
		}
		if err := sc.rest(id); err != nil {
			return err
		}
		if err := f(&sc.entry); err != nil {
			return err
		}
	}
	return sc.envelopes.Error()
}

// skip goes on behind a message of which some chunks may not have been seen.
func (sc *scan) skip(id store.ID) {
	for sc.envelopes.Valid() {
		if at, _, ok := numbered(sc.envelopes.Key(), 1); !ok || at != id {
			return
		}
		sc.envelopes.Next()
	}
}

func (sc *scan) report(id store.ID, err error) {
	if sc.damage != nil {
		sc.damage(id, err)
		return
	}
	sc.s.complain(id, err)
}

// complain logs damage, once for each message.
func (s *Store) complain(id store.ID, err error) {
	if _, known := s.complained.LoadOrStore(id, struct{}{}); !known {
		s.counts.damaged.Add(1)
		s.o.Log.Error("a queued message is damaged and was set aside", "id", id.String(), "error", err)
	}
}

// envelope reads a message, whose first key the iterator is on, and leaves it
// behind the last.
func (sc *scan) envelope(id store.ID) error {
	it := sc.envelopes
	key := it.Key()
	if _, chunk, _ := numbered(key, 1); chunk != 0 {
		return damaged(envelopeKey(id, 0), 0, errChunk)
	}
	var err error
	if sc.h, err = decodeHeader(key, it.Value()); err != nil {
		return err
	}
	sc.to = sc.to[:0]
	for chunk := uint32(1); chunk <= chunks(sc.h.recipients); chunk++ {
		want := envelopeKey(id, chunk)
		if !it.Next() {
			if err := it.Error(); err != nil {
				return err
			}
			return damaged(want, 0, errChunk)
		}
		if string(it.Key()) != string(want) {
			return damaged(want, 0, errChunk)
		}
		if sc.to, err = decodeRecipients(want, it.Value(), chunkSize(sc.h.recipients, chunk), sc.to); err != nil {
			return err
		}
	}
	if it.Next() {
		if at, _, ok := numbered(it.Key(), 1); ok && at == id {
			return damaged(it.Key(), 0, errors.New("a chunk too many"))
		}
	}
	m := &sc.h.message
	m.ID, m.Envelope.Recipients = id, sc.to
	sc.entry.Message = m
	return it.Error()
}

// rest reads states and hold of the message.
func (sc *scan) rest(id store.ID) error {
	sc.entry.States, sc.entry.Hold = sc.entry.States[:0], nil
	if sc.states == nil {
		return nil
	}
	for it := sc.states; it.Valid(); it.Next() {
		at, recipient, ok := numbered(it.Key(), 1)
		if ok && at > id {
			break
		}
		if !ok || at < id || recipient >= sc.h.recipients {
			continue // of nobody: see Verify
		}
		s, err := decodeState(it.Key(), it.Value())
		if err != nil {
			sc.report(id, err)
			continue
		}
		sc.entry.States = append(sc.entry.States, store.SetState{ID: id, Recipient: recipient, State: s})
	}
	for it := sc.holds; it.Valid(); it.Next() {
		at, ok := identified(it.Key(), 2)
		if ok && at > id {
			break
		}
		if !ok || at < id {
			continue
		}
		var err error
		if sc.hold, err = decodeHold(it.Key(), it.Value()); err != nil {
			sc.report(id, err)
			sc.hold = store.Hold{Reason: "the record of why it is held is damaged", Since: id.Time()}
		}
		sc.entry.Hold = &sc.hold
	}
	return errors.Join(sc.states.Error(), sc.holds.Error())
}

// bodyID takes the message out of the name of a body's file.
func bodyID(name string) (store.ID, bool) {
	id, err := store.ParseID(name)
	return id, err == nil && id.String() == name
}
