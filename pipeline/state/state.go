// Package state is what filters remember between messages: keys with values that
// expire, in a name space for each filter, in a database beside the queue.
//
// It is not mail. It promises little, and keeps the rest of the daemon out of
// its troubles:
//
//   - What was put is there after a restart; a crash loses what was put in the
//     last seconds (Options.Every), and what is left is what once was there.
//   - An entry is gone when its time is over, at the latest when it is asked for;
//     a sweeper that does a little at a time takes it from the disk.
//   - A name space has bounds. Where they are reached, the entries that would
//     expire soonest make room.
//   - A clock that jumps neither wipes entries nor makes them immortal: the store
//     has a time of its own, which goes on as long as it runs, as fast as the
//     clock, and never by more than an hour at once; while it was not running, by
//     a week at most.
//   - A damaged database is set aside at the start, and an empty one takes its
//     place. A database that cannot be read or written never ends the process:
//     the log says so, Get finds nothing, and Put is an error, until the daemon
//     is started again.
//
// There is no write-ahead log. It would keep the seconds that a crash may take,
// and Pebble ends the process, or panics in goroutines of its own, when it cannot
// write it; a table that cannot be written is only tried again. So what was put
// waits in memory, bounded, and one goroutine brings it into tables every few
// seconds. A table is on the disk as a whole or not at all: counts and entries
// agree after a crash.
package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Options of Open. Only Dir must be set.
type Options struct {
	// Dir is the database's own directory. It is made, and locked.
	Dir string
	// FS is the file system; nil means the operating system's.
	FS vfs.FS
	// Log hears of trouble; nil discards.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Entries and Bytes (of keys and values) bound each name space; 0 means
	// DefaultEntries and DefaultBytes.
	Entries, Bytes int64
	// Every is how often what was put is brought to the disk: what a crash may
	// take. 0 means DefaultEvery.
	Every time.Duration
	// Step is the most that the clock is believed to have moved between two
	// looks at it, of which there is one each Every at least; 0 means
	// DefaultStep.
	Step time.Duration
}

// The defaults of Options.
const (
	DefaultEntries = 2_000_000
	DefaultBytes   = 512 << 20
	DefaultEvery   = 5 * time.Second
	DefaultStep    = time.Hour
)

const (
	// MaxName, MaxKey and MaxValue bound what is kept, in bytes.
	MaxName  = 64
	MaxKey   = 1 << 10
	MaxValue = 64 << 10
	// MaxTTL bounds an entry's life.
	MaxTTL = 400 * 24 * time.Hour
	// maxAway is the most that the store's time goes on while it does not run.
	maxAway = 7 * 24 * time.Hour
	// maxWaiting bounds what waits in memory, in bytes; each entry costs some of
	// them besides its own.
	maxWaiting   = 8 << 20
	entryCost    = 100
	maxClosing   = 10 * time.Second
	memTableSize = 4 << 20
	cacheSize    = 8 << 20
)

// ErrUnavailable is in the chain of the errors of a store that cannot be read or
// written.
var ErrUnavailable = errors.New("the filters' state cannot be kept")

// Store is the database. It is safe for concurrent use.
type Store struct {
	o     Options
	clock clock
	lock  *pebble.Lock

	// gate is held for reading while the database is used, and for writing to
	// close it.
	gate   sync.RWMutex
	db     *pebble.DB
	closed bool
	// dead is closed once the database is of no use.
	dead   chan struct{}
	dying  sync.Once
	why    atomic.Pointer[error]
	marked atomic.Bool

	mu sync.Mutex
	// waiting has been put since, writing is on its way into the database.
	waiting, writing map[string]change
	cost             int
	// room is closed and replaced when waiting has been taken.
	room chan struct{}

	stop   chan struct{}
	poke   chan struct{}
	settle chan chan error
	done   chan struct{}
	w      writer
}

// change is what is to become of a key.
type change struct {
	value  []byte
	expiry int64 // in the store's seconds
	gone   bool
}

// Open opens the store, or makes it. A damaged one is set aside beside Dir, and
// the log tells its new name. One that cannot be opened for another reason is
// returned all the same, and of no use until the program is started again: the
// log says why. The only errors are those of the options.
func Open(o Options) (*Store, error) {
	if o.Dir == "" {
		return nil, errors.New("state: no directory is named")
	}
	if o.Entries < 0 || o.Bytes < 0 || o.Every < 0 || o.Step < 0 {
		return nil, errors.New("state: bounds and times must not be negative")
	}
	o = o.withDefaults()
	s := &Store{
		o: o, clock: clock{now: o.Now, step: o.Step},
		dead: make(chan struct{}), waiting: map[string]change{}, room: make(chan struct{}),
		stop: make(chan struct{}), poke: make(chan struct{}, 1), settle: make(chan chan error), done: make(chan struct{}),
	}
	s.clock.last = o.Now()
	s.clock.time = s.clock.last.Unix() * int64(time.Second)
	s.w = writer{Store: s, usage: map[string]*usage{}}
	s.open()
	go s.w.run()
	return s, nil
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Entries == 0 {
		o.Entries = DefaultEntries
	}
	if o.Bytes == 0 {
		o.Bytes = DefaultBytes
	}
	if o.Every == 0 {
		o.Every = DefaultEvery
	}
	if o.Step == 0 {
		o.Step = DefaultStep
	}
	return o
}

// Stats is what a name space takes, and what was removed from it since the store
// was opened: because its time was over, or to make room.
type Stats struct {
	Space            string
	Entries, Bytes   int64
	Expired, Evicted int64
}

// Stats are those of all name spaces that have ever held something, by name, as
// of what was last written.
func (s *Store) Stats() []Stats {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	all := make([]Stats, 0, len(s.w.usage))
	for _, name := range slices.Sorted(maps.Keys(s.w.usage)) {
		u := s.w.usage[name]
		all = append(all, Stats{name, u.entries, u.bytes, u.expired, u.evicted})
	}
	return all
}

// die gives the database up: what it says is lost from now on.
func (s *Store) die(err error) {
	s.end(err, func() {
		s.o.Log.Error("the filters' state cannot be kept any more: filters that remember (greylist) do what their on_error says, until the daemon is started again",
			"dir", s.o.Dir, "error", err)
	})
}

// end has nothing use the database any more. The first reason is told.
func (s *Store) end(err error, tell func()) {
	s.dying.Do(func() {
		s.why.Store(&err)
		tell()
		close(s.dead)
	})
}

// unavailable is the error of a store that is dead, nil of one that lives.
func (s *Store) unavailable() error {
	select {
	case <-s.dead:
		return fmt.Errorf("%w: %w", ErrUnavailable, *s.why.Load())
	default:
		return nil
	}
}

// Close brings what waits to the disk and closes the store. It must not be used
// any more, but what does finds nothing and fails.
func (s *Store) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	close(s.stop)
	select {
	case <-s.done:
	case <-s.dead:
	case <-time.After(maxClosing):
		s.die(errors.New("closing: it cannot be written"))
	}
	if s.unavailable() != nil {
		return nil // the log has heard of it, and Pebble may hang
	}
	s.end(errors.New("it is closed"), func() {})
	s.gate.Lock()
	defer s.gate.Unlock()
	return errors.Join(s.db.Close(), s.lock.Close())
}

// Space is the name space of that name, which is made when it is used. Names of
// more than MaxName bytes fail at every call.
func (s *Store) Space(name string) *Space { return &Space{store: s, name: name} }

// Flush brings all that was put so far to the disk.
func (s *Store) Flush(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case s.settle <- answer:
	case <-s.done:
		return s.unavailable()
	case <-s.dead:
		return s.unavailable()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
	case <-s.dead:
		return s.unavailable()
	case <-ctx.Done():
		return ctx.Err()
	}
}
