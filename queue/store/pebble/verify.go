package pebble

import (
	"context"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postern-mta/postern/queue/store"
)

// Verify checks what must hold of a store, and reports each thing that does
// not: every message has all its chunks and a body of the right size; a body,
// a state, a hold and an entry of sharers have a message; the files in bodies/
// are those that the records name; every id was given out. It looks at one
// state of the database while mail goes on, and reads no body's content. The
// error is that of the disk or of the context, not of what was found.
func (s *Store) Verify(ctx context.Context, report func(problem string)) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	v := verifier{
		s: s, ctx: ctx, report: report, snap: s.db.NewSnapshot(),
		messages: make(map[store.ID]bool), bodies: make(map[store.ID]bool), sharers: make(map[[2]store.ID]bool),
	}
	defer v.snap.Close()
	for _, step := range []func() error{v.marks, v.envelopes, v.states, v.holds, v.sharing, v.records, v.files} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

type verifier struct {
	s      *Store
	ctx    context.Context
	report func(string)
	snap   *pebble.Snapshot

	mark     store.ID
	messages map[store.ID]bool    // there, if only in part
	bodies   map[store.ID]bool    // wanted by a message; true if the record was seen
	sharers  map[[2]store.ID]bool // wanted (body, message); true if the entry was seen
	sizes    map[store.ID]store.BodyInfo
}

func (v *verifier) problem(format string, args ...any) { v.report(fmt.Sprintf(format, args...)) }

// each calls f for every key in a part of the key space.
func (v *verifier) each(f func(key, value []byte) error, prefix ...byte) error {
	it, err := v.snap.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: successor(prefix)})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		if err := context.Cause(v.ctx); err != nil {
			return err
		}
		if err := f(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	if err := it.Error(); !pebble.IsCorruptionError(err) {
		return err
	}
	v.problem("keys of %q are in a damaged table; what is said of others may come of it: %v", prefix, it.Error())
	return nil
}

func (v *verifier) marks() (err error) {
	v.mark, err = v.s.mark()
	if isDamage(err) {
		v.problem("the mark of used message ids: %v", err)
		v.mark = math.MaxUint64
		return nil
	}
	return err
}

func (v *verifier) envelopes() error {
	v.sizes = make(map[store.ID]store.BodyInfo)
	sc, err := v.s.newScan(v.snap, 0, false, func(id store.ID, err error) {
		v.problem("message %s: %v", id, err)
		v.damaged(id)
	})
	if err != nil {
		return err
	}
	defer sc.close()
	return sc.run(func(e *store.Entry) error {
		v.header(e.Message.ID, &sc.h)
		return context.Cause(v.ctx)
	})
}

// damaged takes what a damaged message still says of its body.
func (v *verifier) damaged(id store.ID) {
	v.messages[id] = true
	key := envelopeKey(id, 0)
	value, closer, err := v.snap.Get(key)
	if err != nil {
		return
	}
	defer closer.Close()
	if h, err := decodeHeader(key, value); err == nil {
		v.header(id, &h)
	}
}

func (v *verifier) header(id store.ID, h *header) {
	v.messages[id] = true
	if id >= v.mark {
		v.problem("message %s has an id that was never given out: the mark is %s", id, v.mark)
	}
	info := h.message.Body
	if have, ok := v.sizes[info.Of]; ok && have != info {
		v.problem("message %s describes the body %s unlike the messages that share it", id, info.Of)
	}
	v.sizes[info.Of] = info
	v.bodies[info.Of] = false
	if h.shared {
		v.sharers[[2]store.ID{info.Of, id}] = false
	} else if info.Of != id {
		v.problem("message %s has the body of %s but does not share it", id, info.Of)
	}
}

// of reports a key whose message is not there.
func (v *verifier) of(key []byte, id store.ID) {
	if !v.messages[id] {
		v.problem("%s is of a message that is not there", keyName(key))
	}
}

func (v *verifier) states() error {
	return v.each(func(key, value []byte) error {
		id, _, ok := numbered(key, 1)
		if !ok {
			v.problem("key %q is no key of a state", key)
			return nil
		}
		v.of(key, id)
		if _, err := decodeState(key, value); err != nil {
			v.problem("%v", err)
		}
		return nil
	}, prefixState)
}

func (v *verifier) holds() error {
	return v.each(func(key, value []byte) error {
		id, ok := identified(key, 2)
		if !ok {
			v.problem("key %q is no key of a hold", key)
			return nil
		}
		v.of(key, id)
		if _, err := decodeHold(key, value); err != nil {
			v.problem("%v", err)
		}
		return nil
	}, prefixPolicy, policyHold)
}

func (v *verifier) sharing() error {
	err := v.each(func(key, _ []byte) error {
		of, id, ok := shared(key)
		if !ok {
			v.problem("key %q is no key of a shared body", key)
			return nil
		}
		if _, ok := v.sharers[[2]store.ID{of, id}]; !ok {
			v.problem("message %s counts as sharing the body %s but does not", id, of)
		}
		v.sharers[[2]store.ID{of, id}] = true
		return nil
	}, prefixPolicy, policySharer)
	for pair, seen := range v.sharers {
		if !seen {
			v.problem("message %s shares the body %s but does not count", pair[1], pair[0])
		}
	}
	return err
}

func (v *verifier) records() error {
	err := v.each(func(key, value []byte) error {
		id, ok := identified(key, 1)
		if !ok {
			v.problem("key %q is no key of a body", key)
			return nil
		}
		_, file, size, err := decodeBody(key, value)
		if err != nil {
			v.problem("%v", err)
		}
		if _, wanted := v.bodies[id]; !wanted {
			v.problem("%s is the body of no message", keyName(key))
			return nil
		}
		v.bodies[id] = true
		if info := v.sizes[id]; err == nil && (file != info.File || size != info.Size) {
			v.problem("%s: the body has %d bytes where its message says %d", keyName(key), size, info.Size)
		}
		return nil
	}, prefixBody)
	for id, seen := range v.bodies {
		if !seen {
			v.problem("the body %s is missing", id)
		}
	}
	return err
}

// files compares bodies/ with the records. What the database now says counts:
// messages come and go.
func (v *verifier) files() error {
	for id, info := range v.sizes {
		if !info.File {
			continue
		}
		st, err := v.s.fs.Stat(v.s.bodyPath(id))
		switch {
		case err == nil && st.Size() == info.Size:
		case !v.s.stored(bodyKey(id)): // removed meanwhile
		case err != nil:
			v.problem("the body %s: %v", id, err)
		default:
			v.problem("the body %s has %d bytes in its file, not %d", id, st.Size(), info.Size)
		}
	}
	names, err := v.s.fs.List(v.s.path(bodiesDir))
	for _, name := range names {
		id, ok := bodyID(name)
		if !ok {
			v.problem("%s is no file of a body", v.s.path(bodiesDir, name))
			continue
		}
		// In this order: what is not on its way in has a record, or its record is
		// gone; then it is on its way out, or has left.
		if v.s.isMoving(id) || v.s.named(id) || v.s.isMoving(id) {
			continue
		}
		if _, err := v.s.fs.Stat(v.s.bodyPath(id)); err == nil {
			v.problem("%s is the body of no message: the next start removes it", v.s.bodyPath(id))
		}
	}
	return err
}

// isMoving reports whether a body's file is on its way in or out.
func (s *Store) isMoving(of store.ID) bool {
	_, moving := s.moving.Load(of)
	return moving
}
