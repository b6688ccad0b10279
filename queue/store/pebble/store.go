// Package pebble keeps the queue in a Pebble database and, for large bodies, in
// files beside it. It is the store that Postern comes with.
//
// It promises what store.Store says: that a batch is on stable storage when
// Apply returns, with the entries of directories, or not at all; that a crash
// at any moment leaves a store that opens; and that damage to one record costs
// that one message at most, which is left as it is, reported, and set aside.
// Senders that come at the same time share the flushes of one log.
//
// # Layout
//
// A store is one directory:
//
//	db/       the database: messages with bodies up to message.InMemory
//	bodies/   larger bodies, each a file named for its message
//	spool/    bodies that are still being received
//	state/    for the state of filters, which is not this package's
//	lock      who holds all this, in words; the lock itself is db/LOCK
//	ballast   space to be given up when the disk is full
//
// # Commit
//
// The commit of a batch is the flush of the database's log. A large body is
// renamed from the spool into bodies/ before that, and it and the directory
// bodies/ are flushed; a body is removed after the batch that removes its last
// message is flushed. What a crash leaves behind is a spool file, or a file in
// bodies/ that no record names: both are removed by the next Open.
package pebble

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// Store is a store in a directory that it has locked. It is also the spool of
// bodies that are being received (message.Spooler). It is safe for concurrent
// use.
type Store struct {
	o      Options
	fs     *countingFS
	db     *pebble.DB
	lock   io.Closer
	bodies *directory
	spool  spool
	ids    ids
	used   used
	space  space
	counts counts

	// stripes order the changes of one message; sharing orders the removals of
	// messages that share a body, and comes after all stripes.
	stripes [64]sync.Mutex
	sharing sync.Mutex

	life   sync.RWMutex // guards closed, and users against a Wait
	closed bool
	users  sync.WaitGroup
	dead   atomic.Bool
	stop   chan struct{}
	poke   chan struct{}
	keeper sync.WaitGroup

	// moving are the bodies whose files are on their way in or out, so that
	// file and record need not agree: store.ID -> struct{}.
	moving     sync.Map
	complained sync.Map // store.ID -> struct{}: damage that was logged
}

var (
	_ store.Store     = (*Store)(nil)
	_ store.Reader    = (*reader)(nil)
	_ message.Spooler = (*Store)(nil)
)

// enter keeps the store open until leave.
func (s *Store) enter() error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed || s.dead.Load() {
		return store.ErrClosed
	}
	s.users.Add(1)
	return nil
}

func (s *Store) leave() { s.users.Done() }

// Close waits for what is under way, open Readers included, and releases the
// directory. Bodies that were opened can be read on. Every later call is
// store.ErrClosed. After a fatal error Close does nothing: the process is to
// end.
func (s *Store) Close() error {
	s.life.Lock()
	if s.closed {
		s.life.Unlock()
		return nil
	}
	s.closed = true
	s.life.Unlock()
	close(s.stop)
	if s.dead.Load() {
		return store.ErrClosed
	}
	s.keeper.Wait()
	s.users.Wait()
	s.closeIDs()
	return errors.Join(s.db.Close(), s.bodies.file.Close(), s.unlock())
}

func (s *Store) unlock() error {
	err := ignoreMissing(s.fs.Remove(s.path(holderFile)))
	return errors.Join(err, s.lock.Close())
}

// die is the end of this process: the log of the database could not be
// written, so nothing can be promised any more. What is on disk is sound.
func (s *Store) die(err error) {
	if !s.dead.Swap(true) {
		s.o.Log.Error("the queue's store failed, the process ends: see the disk, then start Postern again", "dir", s.o.Dir, "error", err)
	}
	s.o.Fatal(err)
	panic(fmt.Sprintf("pebble: Options.Fatal returned: %v", err))
}

// commit applies a batch in order behind those before it. The returned
// function waits for it to be on stable storage; who does not call it leaves
// the batch to the collector.
func (s *Store) commit(b *pebble.Batch) (wait func()) {
	defer s.diePanicking()
	if err := s.db.ApplyNoSyncWait(b, pebble.Sync); err != nil {
		s.die(fmt.Errorf("writing the log: %w", err))
	}
	return func() {
		if err := b.SyncWait(); err != nil {
			s.die(fmt.Errorf("flushing the log: %w", err))
		}
		b.Close()
	}
}

// diePanicking is deferred around what may write to the log: Pebble panics when
// it cannot.
func (s *Store) diePanicking() {
	if r := recover(); r != nil {
		s.die(fmt.Errorf("writing the log: %v", r))
	}
}

// path is a path in the store's directory.
func (s *Store) path(elem ...string) string {
	return s.fs.PathJoin(append([]string{s.o.Dir}, elem...)...)
}

// onSystem reports whether files are those of the operating system.
func (s *Store) onSystem() bool { return vfs.Root(s.o.FS) == vfs.Default }
