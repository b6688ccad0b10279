package pebble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/queue/store"
)

// What lies in a store's directory, see Layout.
const (
	dbDir       = "db"
	bodiesDir   = "bodies"
	spoolDir    = "spool"
	stateDir    = "state"
	holderFile  = "lock"
	ballastFile = "ballast"
)

// Format is the version of all keys and records.
const Format = 1

// Open opens the store in o.Dir, or makes it, and locks it. (Options.Fatal may
// be called as early as this.) It removes what a
// crash left behind: spool files, and bodies that no message has. A store of a
// newer format is refused.
func Open(o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{o: o, fs: &countingFS{FS: o.FS}, stop: make(chan struct{}), poke: make(chan struct{}, 1)}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("queue %s: %w", o.Dir, err)
	}
	s.keeper.Add(1)
	go s.keep()
	return s, nil
}

func (s *Store) open() (err error) {
	if err := s.makeDirs(); err != nil {
		return err
	}
	lock, err := pebble.LockDirectory(s.path(dbDir), s.fs)
	if err != nil {
		return s.lockError(err)
	}
	s.lock = lock
	defer func() {
		if err == nil {
			return
		}
		if s.db != nil {
			err = errors.Join(err, s.db.Close())
		}
		if s.bodies != nil {
			s.bodies.file.Close()
		}
		s.unlock() //nolint:errcheck // the error is err
	}()
	s.writeHolder()
	if s.bodies, err = openDirectory(s.fs, s.path(bodiesDir)); err != nil {
		return err
	}
	if err := s.sweepSpool(); err != nil {
		return err
	}
	if err := s.makeBallast(); err != nil {
		s.o.Log.Warn("the ballast file could not be made", "file", s.path(ballastFile), "error", err)
	}
	if err := s.openDB(lock); err != nil {
		return err
	}
	if err := s.openIDs(); err != nil {
		return err
	}
	return s.sweepBodies()
}

func (s *Store) openDB(lock *pebble.Lock) (err error) {
	fs := &engineFS{FS: vfs.OnDiskFull(s.fs, s.dropBallast), die: s.die}
	if s.db, err = pebble.Open(s.path(dbDir), s.engine(fs, lock)); err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	fs.opened.Store(true)
	return s.checkFormat()
}

// makeDirs makes the directories, readable by this user only, and flushes their
// entries and those of all parents: who made them last may have died before it
// came to that.
func (s *Store) makeDirs() error {
	for _, name := range [...]string{"", dbDir, bodiesDir, spoolDir, stateDir} {
		if err := s.fs.MkdirAll(s.path(name), 0o700); err != nil {
			return err
		}
	}
	for dir, own := s.path(), true; ; own = false {
		err := syncDir(s.fs, dir)
		if err != nil && (own || !errors.Is(err, os.ErrPermission)) {
			return err // but for a parent that another user made
		}
		parent := s.fs.PathDir(dir)
		if parent == dir {
			return nil
		}
		dir = parent
	}
}

// lockError says who holds the store, if that is why.
func (s *Store) lockError(err error) error {
	holder := "another process"
	if f, err := s.fs.Open(s.path(holderFile)); err == nil {
		if text, err := io.ReadAll(io.LimitReader(f, 200)); err == nil && len(text) > 0 {
			holder = strings.TrimSpace(string(text))
		}
		f.Close()
	}
	if errors.Is(err, os.ErrPermission) {
		// fcntl says EACCES for a held lock too, but so does a file of root's.
		return fmt.Errorf("cannot be locked: it belongs to another user, or is in use by %s: %w", holder, err)
	}
	return fmt.Errorf("is in use by %s: stop that first, or use its admin socket: %w", holder, err)
}

// writeHolder leaves word of who holds the lock. It is for people only.
func (s *Store) writeHolder() {
	f, err := s.fs.Create(s.path(holderFile), category)
	if err == nil {
		_, err = fmt.Fprintf(f, "postern, pid %d, since %s\n", os.Getpid(), s.o.Now().Format(time.RFC3339))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		s.o.Log.Warn("cannot leave word of who holds the queue", "file", s.path(holderFile), "error", err)
	}
}

// sweepSpool removes what was being received when the last holder died.
func (s *Store) sweepSpool() error {
	names, err := s.fs.List(s.path(spoolDir))
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, spoolSuffix) {
			continue
		}
		if err := ignoreMissing(s.fs.Remove(s.path(spoolDir, name))); err != nil {
			return err
		}
	}
	return nil
}

// sweepBodies removes the files in bodies/ that no record names: of batches
// that were not applied, or of messages whose removal was.
func (s *Store) sweepBodies() error {
	names, err := s.fs.List(s.path(bodiesDir))
	if err != nil {
		return err
	}
	for _, name := range names {
		id, ok := bodyID(name)
		if !ok || s.named(id) {
			continue
		}
		s.o.Log.Debug("removing a body that no message has", "file", s.bodyPath(id))
		s.unlink(id)
	}
	return nil
}

// named reports whether a record says that this body is a file. When in doubt
// it is.
func (s *Store) named(of store.ID) bool {
	v, closer, err := s.db.Get(bodyKey(of))
	if err != nil {
		return !errors.Is(err, pebble.ErrNotFound)
	}
	defer closer.Close()
	_, file, _, err := decodeBody(bodyKey(of), v)
	return file || err != nil
}

// checkFormat refuses what a newer program wrote, and marks a new store.
func (s *Store) checkFormat() error {
	v, closer, err := s.db.Get(formatKey)
	if errors.Is(err, pebble.ErrNotFound) {
		it, err := s.db.NewIter(nil)
		if err != nil {
			return err
		}
		something := it.First()
		if err := errors.Join(it.Error(), it.Close()); err != nil {
			return err
		}
		if something {
			return errors.New("the database holds data but no format version: is it Postern's?")
		}
		return s.db.Set(formatKey, appendNumber(nil, Format), pebble.Sync)
	}
	if isDamage(err) {
		s.o.Log.Error("the format version of the queue is in a damaged table: taken to be this program's", "dir", s.o.Dir, "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer closer.Close()
	format, err := decodeNumber(formatKey, v)
	if err != nil {
		return fmt.Errorf("the format version: %w", err)
	}
	if format > Format {
		return fmt.Errorf("has format %d, and this Postern knows formats up to %d: start the newer Postern that wrote it", format, Format)
	}
	return nil
}

// Compact merges all tables, so that no garbage is left. It reads and writes
// all that is stored; new mail is taken meanwhile.
func (s *Store) Compact(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return s.compactNow(ctx)
}
