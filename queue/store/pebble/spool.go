package pebble

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// category names our files in Pebble's statistics of writes.
const category vfs.DiskWriteCategory = "postern-body"

const spoolSuffix = ".spool"

// spool is the directory of bodies that are being received.
type spool struct {
	seq  atomic.Uint64
	open sync.Map // name -> *spoolFile: those made here and not yet closed
}

// spoolFile is a file of the spool in the hands of who made it.
type spoolFile struct {
	vfs.File
	s    *Store
	name string

	mu     sync.Mutex
	state  fileState
	closed bool
}

// fileState is what has become of a spool file.
type fileState uint8

const (
	filling fileState = iota
	taken             // renamed into bodies/
	broken            // a flush failed, and another would lie: never again
)

// Create makes a file in the spool; its name is unique among all that live.
// Below the low-water mark it answers reply.NoSpace.
func (s *Store) Create() (string, message.File, error) {
	if err := s.enter(); err != nil {
		return "", nil, err
	}
	defer s.leave()
	if err := s.room(); err != nil {
		return "", nil, err
	}
	name, f, err := s.createSpool()
	if err != nil {
		return "", nil, err
	}
	return name, f, nil
}

func (s *Store) createSpool() (string, *spoolFile, error) {
	name := strconv.FormatUint(s.spool.seq.Add(1), 36) + spoolSuffix
	f, err := s.fs.Create(s.path(spoolDir, name), category)
	if err != nil {
		return "", nil, err
	}
	sf := &spoolFile{File: f, s: s, name: name}
	s.spool.open.Store(name, sf)
	return name, sf, nil
}

// Write is io.Writer. Below the low-water mark it answers reply.NoSpace: the
// disk must not be filled by messages that are not even accepted.
func (f *spoolFile) Write(p []byte) (int, error) {
	if err := f.s.room(); err != nil {
		return 0, err
	}
	// A vfs.File may spoil what it is given to write; an io.Writer must not.
	if !f.s.onSystem() {
		p = bytes.Clone(p)
	}
	return f.File.Write(p)
}

// Close is io.Closer.
func (f *spoolFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	f.closed = true
	f.s.spool.open.CompareAndDelete(f.name, f)
	return f.File.Close()
}

// Open opens a file of the spool for reading; on the file system of the
// operating system it is an *os.File.
func (s *Store) Open(name string) (message.File, error) {
	path, err := s.spoolPath(name)
	if err != nil {
		return nil, err
	}
	if s.onSystem() {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		return f, nil
	}
	f, err := s.fs.Open(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Remove removes a file of the spool; one that is not there is no error.
func (s *Store) Remove(name string) error {
	path, err := s.spoolPath(name)
	if err != nil {
		return err
	}
	return ignoreMissing(s.fs.Remove(path))
}

func (s *Store) spoolPath(name string) (string, error) {
	if name == "" || strings.ContainsAny(name, `/\`) || !strings.HasSuffix(name, spoolSuffix) {
		return "", fmt.Errorf("%q is no file of the spool", name)
	}
	return s.path(spoolDir, name), nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

var errTaken = errors.New("the spool file was taken before")

// take moves the file to the bodies as that of id, and flushes it there. The
// move is not on stable storage before the directory bodies/ is flushed; but
// where there is a journal it goes with the flush of the file, so that the
// directory's finds nothing left to be written.
func (f *spoolFile) take(id store.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return os.ErrClosed
	case f.state == taken:
		return errTaken
	case f.state == broken:
		return fmt.Errorf("%s: an earlier flush of this file failed", f.s.path(spoolDir, f.name))
	}
	if err := f.s.fs.Rename(f.s.path(spoolDir, f.name), f.s.bodyPath(id)); err != nil {
		return err
	}
	f.state = taken
	if err := f.Sync(); err != nil {
		f.back(id, broken)
		return fmt.Errorf("flushing %s: %w", f.s.path(spoolDir, f.name), err)
	}
	return nil
}

// giveBack undoes take.
func (f *spoolFile) giveBack(id store.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.back(id, filling)
}

// back moves the file to where it was, for its owner to remove.
func (f *spoolFile) back(id store.ID, state fileState) {
	if err := f.s.fs.Rename(f.s.bodyPath(id), f.s.path(spoolDir, f.name)); err != nil {
		f.s.unlink(id)
		return
	}
	f.state = state
	if f.closed {
		f.s.Remove(f.name) //nolint:errcheck // the next Open sweeps the spool
	}
}

// bodyPath is the file of a body.
func (s *Store) bodyPath(of store.ID) string { return s.path(bodiesDir, of.String()) }

// unlink removes the file of a body that no record names. One that stays is
// removed by the next Open.
func (s *Store) unlink(of store.ID) {
	if err := ignoreMissing(s.fs.Remove(s.bodyPath(of))); err != nil {
		s.o.Log.Warn("a body that is not needed any more could not be removed", "file", s.bodyPath(of), "error", err)
	}
}
