package pebble

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// space watches what is left of the disk, and what the store takes of it.
type space struct {
	mu      sync.Mutex // of a look at the disk
	looked  atomic.Int64
	refusal atomic.Pointer[reply.Error]
	ballast atomic.Bool // the file is there
	written atomic.Int64
	known   atomic.Bool // counts.live is right
}

// room answers reply.NoSpace while less is free than the low-water mark. It
// looks at the disk once a second.
func (s *Store) room() error {
	if s.o.LowBytes < 0 && s.o.LowInodes < 0 {
		return nil
	}
	now := s.o.Now().UnixNano()
	if at := s.space.looked.Load(); now-at >= int64(time.Second) || now < at {
		s.look(now)
	}
	if r := s.space.refusal.Load(); r != nil {
		return r
	}
	return nil
}

func (s *Store) look(now int64) {
	if !s.space.mu.TryLock() {
		return // somebody does
	}
	defer s.space.mu.Unlock()
	s.space.looked.Store(now)
	bytes, inodes, err := s.free()
	var refusal *reply.Error
	switch {
	case err != nil:
		s.o.Log.Error("cannot tell how much of the queue's disk is free", "dir", s.o.Dir, "error", err)
	case s.o.LowBytes > 0 && bytes < uint64(s.o.LowBytes):
		refusal = reply.With(reply.NoSpace, fmt.Errorf("%s: %d MiB are free where %d MiB are wanted: new mail is put off until there are", s.o.Dir, bytes>>20, s.o.LowBytes>>20))
	case s.o.LowInodes > 0 && inodes < uint64(s.o.LowInodes):
		refusal = reply.With(reply.NoSpace, fmt.Errorf("%s: %d inodes are free where %d are wanted: new mail is put off until there are", s.o.Dir, inodes, s.o.LowInodes))
	}
	before := s.space.refusal.Swap(refusal)
	switch {
	case before == nil && refusal != nil:
		s.o.Log.Error("the queue's disk is nearly full", "error", refusal)
	case before != nil && refusal == nil:
		s.o.Log.Info("the queue's disk has room again", "dir", s.o.Dir)
	}
}

// free is what is left of the file system, as much as can be if it cannot say.
func (s *Store) free() (bytes, inodes uint64, err error) {
	const plenty = 1 << 62
	if !s.onSystem() {
		u, err := s.fs.GetDiskUsage(s.o.Dir)
		if errors.Is(err, vfs.ErrUnsupported) {
			return plenty, plenty, nil
		}
		return u.AvailBytes, plenty, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.o.Dir, &st); err != nil {
		return 0, 0, err
	}
	if st.Files == 0 { // file systems that make inodes as they go
		return st.Bavail * uint64(st.Bsize), plenty, nil
	}
	return st.Bavail * uint64(st.Bsize), st.Ffree, nil
}

// makeBallast makes the ballast file where there is room for it above twice
// the low-water mark, so that it never makes the disk full.
func (s *Store) makeBallast() error {
	if s.o.Ballast < 0 || s.space.ballast.Load() {
		return nil
	}
	path := s.path(ballastFile)
	if st, err := s.o.FS.Stat(path); err == nil && st.Size() == s.o.Ballast {
		s.space.ballast.Store(true)
		return nil
	}
	if err := ignoreMissing(s.o.FS.Remove(path)); err != nil {
		return err
	}
	bytes, _, err := s.free()
	if err != nil || bytes < uint64(s.o.Ballast)+2*uint64(max(s.o.LowBytes, 0)) {
		return err
	}
	f, err := s.o.FS.Create(path, category)
	if err != nil {
		return err
	}
	err = errors.Join(fill(f, s.o.Ballast), f.Close())
	if err != nil {
		return errors.Join(err, s.o.FS.Remove(path))
	}
	s.space.ballast.Store(true)
	return nil
}

// fill gives a file its size in blocks that are really there.
func fill(f vfs.File, size int64) error {
	if fd := f.Fd(); fd != vfs.InvalidFd {
		if err := unix.Fallocate(int(fd), 0, 0, size); err == nil {
			return f.Sync()
		}
	}
	zeros := make([]byte, 1<<20)
	for size > 0 {
		n, err := f.Write(zeros[:min(size, int64(len(zeros)))])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return f.Sync()
}

// dropBallast is called when a write of the database finds no space; the write
// is tried once more afterwards.
func (s *Store) dropBallast() {
	s.space.looked.Store(0)
	err := s.o.FS.Remove(s.path(ballastFile))
	if had := s.space.ballast.Swap(false); !had && errors.Is(err, fs.ErrNotExist) {
		return // Pebble writes a table that does not fit again and again
	}
	s.o.Log.Error("the queue's disk is full: the ballast file was given up", "dir", s.o.Dir, "error", err)
}

// When the keeper looks, by time and by bytes written.
const (
	keeperEvery = 10 * time.Second
	keeperBytes = 64 << 20
)

func (s *Store) pokeKeeper(bytes int64) {
	if bytes > 0 && s.space.written.Add(bytes) >= keeperBytes {
		s.space.written.Store(0)
		select {
		case s.poke <- struct{}{}:
		default:
		}
	}
}

// keep looks after ballast and garbage until the store is closed.
func (s *Store) keep() {
	defer s.keeper.Done()
	t := time.NewTicker(keeperEvery)
	defer t.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-s.stop
		cancel()
	}()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		case <-s.poke:
		}
		if err := s.makeBallast(); err != nil {
			s.o.Log.Warn("the ballast file could not be made", "file", s.path(ballastFile), "error", err)
		}
		if _, err := s.compact(ctx, garbageFloor); err != nil && ctx.Err() == nil {
			s.o.Log.Warn("the queue's store could not be compacted", "dir", s.o.Dir, "error", err)
		}
	}
}

// garbageFloor is how much garbage is never worth the work.
const garbageFloor = 256 << 20

// wasteful is the bound on garbage: the database is compacted when what lives
// is less than a quarter of what it takes and that is more than floor, and when
// it takes more than twice what lives and floor. So it never takes more than
// that by more than what is written while it is being compacted.
func wasteful(live, used, floor int64) bool {
	return used > floor && live < used/4 || used > 2*live+floor
}

// compact merges the tables if there is too much garbage in them, and reports
// whether there was.
func (s *Store) compact(ctx context.Context, floor int64) (bool, error) {
	if s.enter() != nil {
		return false, nil
	}
	defer s.leave()
	if err := s.count(ctx); err != nil {
		return false, err
	}
	if !wasteful(s.counts.live.Load(), int64(s.db.Metrics().DiskSpaceUsage()), floor) {
		return false, nil
	}
	return true, s.compactNow(ctx)
}

// compactNow merges all tables of bodies, envelopes and states.
func (s *Store) compactNow(ctx context.Context) error {
	defer s.diePanicking()
	for _, prefix := range [...]byte{prefixBody, prefixEnvelope, prefixState} {
		if err := s.db.Compact(ctx, []byte{prefix}, []byte{prefix + 1}, false); err != nil {
			return err
		}
	}
	return nil
}

// count finds out once how much is stored; from then on it is kept by adding
// and taking away. It reads envelopes only.
func (s *Store) count(ctx context.Context) error {
	if s.space.known.Load() {
		return nil
	}
	before := s.counts.tally()
	r, err := s.Reader()
	if err != nil {
		return err
	}
	defer r.Close()
	var t tally
	bodies := make(map[store.ID]bool) // shared ones that were counted
	err = r.Scan(0, func(e *store.Entry) error {
		m := e.Message
		t.messages++
		t.bytes += size(m)
		if m.Body.Of != m.ID {
			if bodies[m.Body.Of] {
				return ctx.Err()
			}
			bodies[m.Body.Of] = true
		}
		if m.Body.File {
			t.files++
			t.fileBytes += m.Body.Size
		} else {
			t.bytes += m.Body.Size
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	// What was changed meanwhile is counted already, but what was there at the
	// start of the scan was not: an estimate, off by what changed in between.
	t.messages -= before.messages
	t.bytes -= before.bytes
	t.files -= before.files
	t.fileBytes -= before.fileBytes
	s.counts.add(&t)
	s.space.known.Store(true)
	return nil
}

func size(m *store.Message) int64 {
	n := len(m.Head) + len(m.Origin) + len(m.Envelope.Sender) + 16
	for i := range m.Envelope.Recipients {
		n += len(m.Envelope.Recipients[i].Address) + 2
	}
	return int64(n)
}
