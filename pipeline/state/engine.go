package state

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// damageMark is a file in the directory of a database that was found damaged
// while it ran: the next start sets it aside.
const damageMark = "damaged"

// asideMark is what the name of a directory that was set aside has after the
// database's own.
const asideMark = ".damaged-"

const category = vfs.WriteCategoryUnspecified

// open opens the database, setting a damaged one aside. In the end it is open,
// or the store is dead.
func (s *Store) open() {
	err := s.openOnce()
	if err != nil && isDamage(err) {
		var name string
		if name, err = s.setAside(err); err == nil {
			err = s.openOnce()
		}
		if err == nil {
			s.o.Log.Error("the filters' state was damaged and has been set aside: they remember nothing now", "dir", s.o.Dir, "aside", name)
		}
	}
	if err != nil {
		s.die(fmt.Errorf("opening: %w", err))
	}
}

// openOnce opens the database and reads what the store must know of it.
func (s *Store) openOnce() (err error) {
	if err := s.o.FS.MkdirAll(s.o.Dir, 0o700); err != nil {
		return err
	}
	lock, err := pebble.LockDirectory(s.o.Dir, s.o.FS)
	if err != nil {
		return notDamage{fmt.Errorf("another process has it: %w", err)}
	}
	defer func() {
		if err != nil && s.unavailable() == nil {
			if s.db != nil {
				s.db.Close() //nolint:errcheck // the error is err
				s.db = nil
			}
			lock.Close() //nolint:errcheck // likewise
		}
	}()
	if _, err := s.o.FS.Stat(s.o.FS.PathJoin(s.o.Dir, damageMark)); err == nil {
		return errors.New("it was found damaged when it was last open")
	}
	if s.db, err = s.openEngine(lock); err != nil {
		return err
	}
	s.lock = lock
	return s.load()
}

// openEngine opens Pebble, in a goroutine of its own: where it fails for good,
// that goroutine does not come back.
func (s *Store) openEngine(lock *pebble.Lock) (*pebble.DB, error) {
	type result struct {
		db  *pebble.DB
		err error
	}
	opened := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r = result{err: fmt.Errorf("%v", p)}
			}
			opened <- r
		}()
		r.db, r.err = pebble.Open(s.o.Dir, s.engine(lock))
	}()
	select {
	case r := <-opened:
		return r.db, r.err
	case <-s.dead:
		return nil, notDamage{s.unavailable()}
	}
}

// load reads format, time and usage.
func (s *Store) load() error {
	switch v, err := s.get([]byte{formatKey}); {
	case err != nil:
		return err
	case v == nil:
		saved, wall := s.clock.save()
		b := s.db.NewBatch()
		defer b.Close()
		b.Set([]byte{formatKey}, []byte{format}, nil)         //nolint:errcheck // a batch keeps its errors
		b.Set([]byte{clockKey}, encodePair(saved, wall), nil) //nolint:errcheck // likewise
		return b.Commit(pebble.NoSync)
	case len(v) != 1 || v[0] != format:
		return fmt.Errorf("it has the format %x, and this program knows %d", v, format)
	}
	v, err := s.get([]byte{clockKey})
	if err != nil {
		return err
	}
	saved, wall, err := decodePair(v)
	if err != nil || saved < 0 || saved > 1<<32 {
		return fmt.Errorf("its time: %w", errRecord)
	}
	s.clock.resume(saved, wall)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{usageKey}, UpperBound: []byte{usageKey + 1}})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		k := it.Key()
		entries, bytes, err := decodePair(it.Value())
		if err != nil || entries < 0 || bytes < 0 || len(k) < 2 || len(k) != 2+int(k[1]) {
			return fmt.Errorf("its usage: %w", errRecord)
		}
		s.w.usage[string(k[2:])] = &usage{entries: entries, bytes: bytes}
	}
	return it.Error()
}

// get is a copy of a value, nil if there is none.
func (s *Store) get(key []byte) ([]byte, error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		s.noteDamage(err)
		return nil, err
	}
	defer closer.Close()
	return append([]byte{}, v...), nil
}

// notDamage is an error that setting aside would not mend.
type notDamage struct{ error }

func (e notDamage) Unwrap() error { return e.error }

// isDamage tells a database that is no good from a system that cannot open it
// now.
func isDamage(err error) bool {
	var not notDamage
	if errors.As(err, &not) || errors.Is(err, fs.ErrPermission) {
		return false
	}
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.ENOTDIR} {
		if errors.Is(err, e) {
			return false
		}
	}
	return true
}

// noteDamage leaves word for the next start, if an error is about damage.
func (s *Store) noteDamage(err error) {
	if !pebble.IsCorruptionError(err) && !errors.Is(err, errRecord) || s.marked.Swap(true) {
		return
	}
	s.o.Log.Error("the filters' state is damaged: it will be set aside when the daemon is started again", "dir", s.o.Dir, "error", err)
	f, err := s.o.FS.Create(s.o.FS.PathJoin(s.o.Dir, damageMark), category)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		s.o.Log.Warn("the next start cannot be told that the filters' state is damaged", "dir", s.o.Dir, "error", err)
	}
}

// setAside renames the directory, and removes one that was set aside before.
func (s *Store) setAside(why error) (string, error) {
	s.o.Log.Error("the filters' state cannot be opened", "dir", s.o.Dir, "error", why)
	parent, base := s.o.FS.PathDir(s.o.Dir), s.o.FS.PathBase(s.o.Dir)
	names, err := s.o.FS.List(parent)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if strings.HasPrefix(name, base+asideMark) {
			if err := s.o.FS.RemoveAll(s.o.FS.PathJoin(parent, name)); err != nil {
				s.o.Log.Warn("what was set aside before cannot be removed", "dir", name, "error", err)
			}
		}
	}
	aside := s.o.Dir + asideMark + s.o.Now().UTC().Format("20060102T150405.000")
	return aside, s.o.FS.Rename(s.o.Dir, aside)
}

// engine is Pebble's configuration: small, and never the end of the process.
func (s *Store) engine(lock *pebble.Lock) *pebble.Options {
	o := &pebble.Options{
		FS: s.o.FS, Lock: lock, Logger: engineLog{s}, EventListener: s.listener(),
		DisableWAL: true, CacheSize: cacheSize, MaxOpenFiles: 64,
		MemTableSize: memTableSize, MemTableStopWritesThreshold: 4,
		CompactionConcurrencyRange: func() (int, int) { return 1, 1 },
		FormatMajorVersion:         pebble.FormatTableFormatV6,
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return o
}

// engineLog sends Pebble's log to ours.
type engineLog struct{ s *Store }

func (l engineLog) Infof(format string, args ...any) {}

func (l engineLog) Errorf(format string, args ...any) {
	l.s.o.Log.Warn("state: pebble: " + fmt.Sprintf(format, args...))
}

// Fatalf gives the database up. It does not return, since Pebble has left its
// own state undefined by then, and does not end the process: mail is worth more
// than this. The goroutine, and what locks of Pebble's it holds, stay behind.
func (l engineLog) Fatalf(format string, args ...any) {
	l.s.die(fmt.Errorf(format, args...))
	select {}
}

// backoff is how long Pebble waits after it could not write or merge tables; by
// itself it would try again at once, for ever, with all of a processor.
const backoff = time.Second

func (s *Store) listener() *pebble.EventListener {
	var failing atomic.Bool
	ended := func(err error) {
		if err == nil && failing.Swap(false) {
			s.o.Log.Info("the filters' state is written again", "dir", s.o.Dir)
		}
	}
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			if pebble.IsCorruptionError(err) {
				s.noteDamage(err)
			} else if !failing.Swap(true) {
				s.o.Log.Error("the filters' state cannot be written now; it is tried again", "dir", s.o.Dir, "error", err)
			}
			select {
			case <-time.After(backoff):
			case <-s.stop:
			}
		},
		// By default Pebble ends the process here.
		DataCorruption: func(i pebble.DataCorruptionInfo) { s.noteDamage(damaged{fmt.Errorf("%s: %w", i.Path, i.Details)}) },
		FlushEnd:       func(i pebble.FlushInfo) { ended(i.Err) },
		CompactionEnd:  func(i pebble.CompactionInfo) { ended(i.Err) },
	}
}

// damaged is an error about damage.
type damaged struct{ error }

// Unwrap makes it known as such.
func (e damaged) Unwrap() []error { return []error{e.error, errRecord} }
