package pebble

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postern-mta/postern/queue/store"
)

// walker goes through keys that have the id of a message after their prefix, in
// ascending order, and leaps over the blocks of tables that are damaged.
type walker struct {
	it     *pebble.Iterator
	prefix []byte
	// lost is told of the ids, up to before the second, whose keys cannot be read.
	lost       func(from, to store.ID, err error)
	id         store.ID // of the key that it is on
	next       store.ID // no key with an id below it is still to come, but of id
	start, end store.ID // the last ids that were lost
}

// walk opens a walker on the first key with an id from there on.
func walk(r pebble.Reader, prefix []byte, from store.ID, lost func(from, to store.ID, err error)) (*walker, error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: successor(prefix)})
	if err != nil {
		return nil, err
	}
	w := &walker{it: it, prefix: prefix, lost: lost, next: from}
	w.settle(w.seek(from))
	return w, nil
}

func (w *walker) seek(id store.ID) bool {
	return w.it.SeekGE(appendID(append(make([]byte, 0, len(w.prefix)+idLen), w.prefix...), id))
}

func (w *walker) valid() bool { return w.it.Valid() }

func (w *walker) step() { w.settle(w.it.Next()) }

// settle takes the id out of the key, or leaps over damage.
func (w *walker) settle(ok bool) {
	if !ok && pebble.IsCorruptionError(w.it.Error()) {
		w.leap()
		ok = w.it.Valid()
	}
	if !ok {
		return
	}
	if k := w.it.Key(); len(k) >= len(w.prefix)+idLen {
		w.id, _ = identified(k[:len(w.prefix)+idLen], len(w.prefix))
		w.next = w.id + 1
	}
}

// leap finds the first id from next on that can be sought without meeting the
// damage.
func (w *walker) leap() {
	err := w.it.Error()
	bad := w.next
	var good store.ID
	for step := store.ID(1); ; step *= 2 {
		if good = bad + step; good < bad || step == 0 { // to the end of all ids
			w.lose(^store.ID(0), err)
			return
		}
		if w.seek(good); !pebble.IsCorruptionError(w.it.Error()) {
			break
		}
		bad = good
	}
	for good-bad > 1 {
		mid := bad + (good-bad)/2
		if w.seek(mid); pebble.IsCorruptionError(w.it.Error()) {
			bad = mid
		} else {
			good = mid
		}
	}
	w.lose(good, err)
	w.seek(good)
}

func (w *walker) lose(to store.ID, err error) {
	w.start, w.end = w.next, to
	w.next = to
	w.lost(w.start, to, fmt.Errorf("damaged table: %w", err))
}

// misses reports whether the keys of an id, that was not passed long ago, are
// lost.
func (w *walker) misses(id store.ID) bool { return w.start <= id && id < w.end }

// err is why it ended, if not at the last key. Damage to the very end was told.
func (w *walker) err() error {
	if err := w.it.Error(); err != nil && !pebble.IsCorruptionError(err) {
		return err
	}
	return nil
}
