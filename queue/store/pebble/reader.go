package pebble

import (
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

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
// rather than lost, and a hold that cannot be read holds. The same goes for all
// that lies in a damaged block of a table.
func (r *reader) Scan(from store.ID, f func(*store.Entry) error) error {
	if r.closed.Load() {
		return store.ErrClosed
	}
	sc, err := r.s.newScan(r.snap, from, true, nil)
	if err != nil {
		return err
	}
	defer sc.close()
	return sc.run(f)
}

// bodyID takes the message out of the name of a body's file.
func bodyID(name string) (store.ID, bool) {
	id, err := store.ParseID(name)
	return id, err == nil && id.String() == name
}
