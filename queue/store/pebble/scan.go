package pebble

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/queue/store"
)

// scan walks envelopes, states and holds side by side; or envelopes alone, if
// there are no iterators for the others.
type scan struct {
	s                        *Store
	envelopes, states, holds *walker
	// damage is told of what cannot be read.
	damage func(id store.ID, err error)
	entry  store.Entry
	to     []envelope.Recipient
	h      header
	hold   store.Hold
}

func (sc *scan) close() {
	for _, w := range [...]*walker{sc.envelopes, sc.states, sc.holds} {
		if w != nil {
			w.it.Close()
		}
	}
}

// newScan makes a scan of whole entries, or of envelopes alone.
func (s *Store) newScan(r pebble.Reader, from store.ID, whole bool, damage func(store.ID, error)) (*scan, error) {
	sc := &scan{s: s, damage: damage}
	if sc.damage == nil {
		sc.damage = s.complain
	}
	for _, c := range []struct {
		w      **walker
		prefix []byte
		what   string
	}{
		{&sc.envelopes, []byte{prefixEnvelope}, "messages"},
		{&sc.states, []byte{prefixState}, "states of the messages"},
		{&sc.holds, []byte{prefixPolicy, policyHold}, "holds of the messages"},
	} {
		w, err := walk(r, c.prefix, from, func(from, to store.ID, err error) {
			sc.damage(from, fmt.Errorf("the %s from %s to before %s cannot be read: %w", c.what, from, to, err))
		})
		if err != nil {
			sc.close()
			return nil, err
		}
		if *c.w = w; !whole {
			break
		}
	}
	return sc, nil
}

func (sc *scan) run(f func(*store.Entry) error) error {
	for sc.envelopes.valid() {
		key := sc.envelopes.it.Key()
		id, _, ok := numbered(key, 1)
		if !ok {
			sc.damage(0, damaged(key, 0, errors.New("a key of the wrong length")))
			sc.envelopes.step()
			continue
		}
		err := sc.envelope(id)
		var d *Damage
		switch {
		case errors.As(err, &d):
			sc.damage(id, err)
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
	return sc.envelopes.err()
}

// skip goes on behind a message of which some chunks may not have been seen.
func (sc *scan) skip(id store.ID) {
	for sc.envelopes.valid() && sc.envelopes.id == id {
		sc.envelopes.step()
	}
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
	w := sc.envelopes
	key := w.it.Key()
	if _, chunk, _ := numbered(key, 1); chunk != 0 {
		return damaged(envelopeKey(id, 0), 0, errChunk)
	}
	var err error
	if sc.h, err = decodeHeader(key, w.it.Value()); err != nil {
		return err
	}
	sc.to = sc.to[:0]
	for chunk := uint32(1); chunk <= chunks(sc.h.recipients); chunk++ {
		want := envelopeKey(id, chunk)
		w.step()
		if err := w.err(); err != nil {
			return err
		}
		if !w.valid() || string(w.it.Key()) != string(want) {
			return damaged(want, 0, errChunk)
		}
		if sc.to, err = decodeRecipients(want, w.it.Value(), chunkSize(sc.h.recipients, chunk), sc.to); err != nil {
			return err
		}
	}
	if w.step(); w.valid() && w.id == id {
		return damaged(w.it.Key(), 0, errors.New("a chunk too many"))
	}
	m := &sc.h.message
	m.ID, m.Envelope.Recipients = id, sc.to
	sc.entry.Message = m
	return w.err()
}

// rest reads states and hold of the message.
func (sc *scan) rest(id store.ID) error {
	sc.entry.States, sc.entry.Hold = sc.entry.States[:0], nil
	if sc.states == nil {
		return nil
	}
	for w := sc.states; w.valid() && w.id <= id; w.step() {
		at, recipient, ok := numbered(w.it.Key(), 1)
		if !ok || at < id || recipient >= sc.h.recipients {
			continue // of nobody: see Verify
		}
		s, err := decodeState(w.it.Key(), w.it.Value())
		if err != nil {
			sc.damage(id, err)
			continue
		}
		sc.entry.States = append(sc.entry.States, store.SetState{ID: id, Recipient: recipient, State: s})
	}
	for w := sc.holds; w.valid() && w.id <= id; w.step() {
		at, ok := identified(w.it.Key(), 2)
		if !ok || at < id {
			continue
		}
		var err error
		if sc.hold, err = decodeHold(w.it.Key(), w.it.Value()); err != nil {
			sc.damage(id, err)
			sc.hold = lostHold(id)
		}
		sc.entry.Hold = &sc.hold
	}
	if sc.entry.Hold == nil && sc.holds.misses(id) {
		sc.hold = lostHold(id)
		sc.entry.Hold = &sc.hold
	}
	return errors.Join(sc.states.err(), sc.holds.err())
}

// lostHold holds a message whose hold, if it had one, cannot be read: what was
// to be kept back must not go out.
func lostHold(id store.ID) store.Hold {
	return store.Hold{Reason: "the record of whether and why it is held is damaged", Since: id.Time()}
}
