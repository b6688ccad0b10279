package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

const (
	// batchEntries is how many entries are changed at a time.
	batchEntries = 512
	// sweepEntries bounds what one sweep looks at.
	sweepEntries = 4096
	// saveIdle is how often the time is saved where nothing else is.
	saveIdle = 10 * time.Minute
	// slack is the part of a bound by which it is undercut once it is exceeded.
	slack = 256
	// hushed is how often the log hears that a space is full, in seconds.
	hushed = 3600
)

// writer is the one goroutine that changes the database.
type writer struct {
	*Store
	mu    sync.Mutex // guards usage's numbers against Usage
	usage map[string]*usage
	// flushing ends the last flush that was begun; nil if there is none.
	flushing <-chan struct{}
	dirty    bool
	saved    int64
}

// run writes what waits every now and then, until the store is closed.
func (w *writer) run() {
	defer close(w.done)
	tick := time.NewTicker(w.o.Every)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-tick.C:
			err = w.round(true)
		case <-w.poke:
			err = w.round(false)
		case answer := <-w.settle:
			err = w.finish()
			answer <- err
		case <-w.dead:
			return
		case <-w.stop:
			if err = w.finish(); err != nil && w.unavailable() == nil {
				w.o.Log.Warn("the filters' last changes are lost", "dir", w.o.Dir, "error", err)
			}
			return
		}
		if err != nil {
			w.noteDamage(err)
			w.o.Log.Debug("state", "error", err)
		}
	}
}

// round takes what waits into the database, and begins to flush it if it is
// time. While the flush before goes on, what waits keeps waiting: Pebble's own
// memory is bounded by blocking who writes.
func (w *writer) round(flush bool) error {
	if w.unavailable() != nil || !w.flushed() {
		return nil
	}
	if err := w.apply(); err != nil {
		return err
	}
	if !flush {
		return nil
	}
	err := w.sweep()
	if now := w.clock.read(); w.dirty || now-w.saved >= int64(saveIdle/time.Second) {
		err = errors.Join(err, w.flush())
	}
	return err
}

// finish brings everything to the disk.
func (w *writer) finish() error {
	if err := w.unavailable(); err != nil {
		return err
	}
	if err := w.wait(); err != nil {
		return err
	}
	if err := w.apply(); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.wait()
}

// flushed reports whether no flush goes on.
func (w *writer) flushed() bool {
	if w.flushing == nil {
		return true
	}
	select {
	case <-w.flushing:
		w.flushing = nil
		return true
	default:
		return false
	}
}

// wait waits for the flush that goes on.
func (w *writer) wait() error {
	if w.flushing == nil {
		return nil
	}
	select {
	case <-w.flushing:
		w.flushing = nil
		return nil
	case <-time.After(maxClosing / 2):
		return errors.New("state: the disk takes too long")
	case <-w.dead:
		return w.unavailable()
	}
}

// flush begins to bring what is in Pebble's memory to the disk.
func (w *writer) flush() error {
	saved, wall := w.clock.save()
	if err := w.db.Set([]byte{clockKey}, encodePair(saved, wall), pebble.NoSync); err != nil {
		return err
	}
	done, err := w.db.AsyncFlush()
	if err != nil {
		return err
	}
	w.flushing, w.dirty, w.saved = done, false, saved
	return nil
}

// apply takes what waits into the database.
func (w *writer) apply() error {
	s := w.Store
	s.mu.Lock()
	if len(s.writing) == 0 { // else an attempt has failed, and is made again
		s.writing, s.waiting, s.cost = s.waiting, map[string]change{}, 0
		close(s.room)
		s.room = make(chan struct{})
	}
	changes := s.writing
	s.mu.Unlock()
	if len(changes) == 0 {
		return nil
	}
	w.dirty = true
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(changes)), batchEntries) {
		if err := w.applySome(keys, changes); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.writing = nil
	s.mu.Unlock()
	return w.evict()
}

// draft is a batch with what it changes of the usage.
type draft struct {
	*pebble.Batch
	w     *writer
	usage map[string]*usage
}

func (w *writer) draft() *draft {
	return &draft{w.db.NewBatch(), w, map[string]*usage{}}
}

// of is a space's usage as it will be.
func (d *draft) of(space string) *usage {
	u := d.usage[space]
	if u == nil {
		u = &usage{}
		if now := d.w.usage[space]; now != nil {
			*u = *now
		}
		d.usage[space] = u
	}
	return u
}

// commit makes the changes, and those of the usage with them.
func (d *draft) commit() error {
	defer d.Close()
	for space, u := range d.usage {
		u.entries, u.bytes = max(u.entries, 0), max(u.bytes, 0)
		if err := d.Set(prefix(usageKey, space), encodePair(u.entries, u.bytes), nil); err != nil {
			return err
		}
	}
	if err := d.Commit(pebble.NoSync); err != nil {
		return err
	}
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	maps.Copy(d.w.usage, d.usage)
	return nil
}

// index has an entry indexed at a time.
func (d *draft) index(space string, seconds int64, key string) error {
	k := indexOf(space, seconds, key)
	if u := d.of(space); bytes.Compare(k, u.low) < 0 {
		u.low = k
	}
	return d.Set(k, nil, nil)
}

// applySome makes some of the changes.
func (w *writer) applySome(keys []string, changes map[string]change) error {
	d := w.draft()
	for _, full := range keys {
		if err := d.apply([]byte(full), changes[full]); err != nil {
			d.Close() //nolint:errcheck // the error is err
			return err
		}
	}
	return d.commit()
}

func (d *draft) apply(full []byte, c change) error {
	space, key, _ := splitData(full)
	old, known, err := d.w.record(full)
	if err != nil {
		return err
	}
	u := d.of(space)
	if known {
		u.entries--
		u.bytes -= int64(len(key) + len(old.value))
	}
	stale := known && (c.gone || c.expiry < old.indexed)
	if stale {
		if err := d.Delete(indexOf(space, old.indexed, key), nil); err != nil {
			return err
		}
	}
	if c.gone {
		return d.Delete(full, nil)
	}
	r := record{indexed: old.indexed, expiry: c.expiry, value: c.value}
	if !known || stale {
		r.indexed = c.expiry
		if err := d.index(space, r.indexed, key); err != nil {
			return err
		}
	}
	u.entries++
	u.bytes += int64(len(key) + len(c.value))
	return d.Set(full, r.encode(), nil)
}

// record is an entry as the database has it. One that cannot be read counts as
// none.
func (w *writer) record(full []byte) (r record, known bool, err error) {
	b, err := w.get(full)
	if err != nil || b == nil {
		return record{}, false, err
	}
	if r, err = decodeRecord(b); err != nil {
		w.noteDamage(err)
		return record{}, false, nil
	}
	return r, true, nil
}

// sweep removes some of what has expired, of all spaces.
func (w *writer) sweep() error {
	left := sweepEntries
	for space := range maps.Clone(w.usage) {
		n, err := w.prune(space, left, func(*usage) bool { return false })
		if err != nil {
			return err
		}
		if left -= n; left <= 0 {
			break
		}
	}
	return nil
}

// evict makes room in spaces that are beyond their bounds.
func (w *writer) evict() error {
	for space, u := range maps.Clone(w.usage) {
		if u.entries <= w.o.Entries && u.bytes <= w.o.Bytes {
			continue
		}
		if now := w.clock.read(); u.told == 0 || now-u.told >= hushed {
			u.told = now
			w.o.Log.Warn("a filter's state is full: the entries that would expire soonest make room", "space", space, "entries", u.entries, "bytes", u.bytes)
		}
		entries, bytes := w.o.Entries-w.o.Entries/slack, w.o.Bytes-w.o.Bytes/slack
		over := func(u *usage) bool { return u.entries > entries || u.bytes > bytes }
		for over(w.usage[space]) {
			if n, err := w.prune(space, batchEntries, over); err != nil || n == 0 {
				return err
			}
		}
	}
	return nil
}

// prune goes through a space's index in the order of time, at most so many
// entries, and removes those that have expired, and others as long as the space
// has too much. n is how many it has looked at.
func (w *writer) prune(space string, limit int, over func(*usage) bool) (n int, err error) {
	low := prefix(indexKey, space)
	o := &pebble.IterOptions{LowerBound: low, UpperBound: after(low)}
	if u := w.usage[space]; u != nil && len(u.low) > 0 {
		o.LowerBound = u.low
	}
	it, err := w.db.NewIter(o)
	if err != nil {
		return 0, err
	}
	defer it.Close()
	now, d := w.clock.read(), w.draft()
	defer func() {
		if err != nil {
			d.Close() //nolint:errcheck // the error is err
		}
	}()
	for it.First(); it.Valid() && n < limit; it.Next() {
		k := append([]byte(nil), it.Key()...)
		seconds, key, ok := splitIndex(k[len(low):])
		if !ok {
			return n, fmt.Errorf("index of %s: %w", space, errRecord)
		}
		u := d.of(space)
		if seconds > now && !over(u) {
			break
		}
		n++
		u.low = k
		if err := d.prune(space, string(key), k, seconds, now); err != nil {
			return n, err
		}
	}
	if err := it.Error(); err != nil {
		return n, err
	}
	if n == 0 {
		return 0, d.Close()
	}
	w.dirty = true
	return n, d.commit()
}

// prune removes one entry of the index, and what it is about, unless that lives
// longer by now: then it is indexed again.
func (d *draft) prune(space, key string, k []byte, seconds, now int64) error {
	full := dataOf(space, key)
	r, known, err := d.w.record(full)
	if err != nil {
		return err
	}
	if err := d.Delete(k, nil); err != nil {
		return err
	}
	if !known || r.indexed != seconds {
		return nil
	}
	if r.expiry > seconds && r.expiry > now { // it was put again
		r.indexed = r.expiry
		if err := d.Set(full, r.encode(), nil); err != nil {
			return err
		}
		return d.index(space, r.indexed, key)
	}
	u := d.of(space)
	u.entries--
	u.bytes -= int64(len(key) + len(r.value))
	if r.expiry <= now {
		u.expired++
	} else {
		u.evicted++
	}
	return d.Delete(full, nil)
}
