package pebble

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// engineFS is the file system as Pebble sees it. It mends two things.
//
// A marker of the database must not outlive a crash that the file it points to
// does not: Pebble 2.1 flushes the directory only when both are made (mended in
// cockroachdb/pebble#5915, which no release that we can use has).
//
// And the process ends in good order when a vital file cannot be made, written
// or flushed, or a directory cannot be flushed: Pebble would panic, in a
// goroutine of its own or with a lock half-released, or fail to open with
// goroutines left behind that panic soon. It would also flush a directory
// again, which then succeeds without having done anything.
type engineFS struct {
	vfs.FS
	die    func(error)
	opened atomic.Bool
}

const (
	markerPrefix = "marker."
	logSuffix    = ".log"
	tableSuffix  = ".sst"
	blobSuffix   = ".blob"
)

// vital tells whether nothing works without a file: a log always, and all but
// tables while the database is being opened.
func (e *engineFS) vital(name string) bool {
	if strings.HasSuffix(name, logSuffix) {
		return true
	}
	return !e.opened.Load() && !strings.HasSuffix(name, tableSuffix) && !strings.HasSuffix(name, blobSuffix)
}

func (e *engineFS) check(what, name string, err error) error {
	if err != nil && e.vital(name) {
		e.die(fmt.Errorf("%s %s: %w", what, name, err))
	}
	return err
}

func (e *engineFS) file(f vfs.File, name string, err error) (vfs.File, error) {
	if err != nil {
		return nil, e.check("making", name, err)
	}
	return engineFile{f, e, name}, nil
}

// Unwrap is vfs.FS.
func (e *engineFS) Unwrap() vfs.FS { return e.FS }

// Create is vfs.FS.
func (e *engineFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(e.PathBase(name), markerPrefix) {
		if err := syncDir(e, e.PathDir(name)); err != nil {
			return nil, err
		}
	}
	f, err := e.FS.Create(name, category)
	return e.file(f, name, err)
}

// ReuseForWrite is vfs.FS.
func (e *engineFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := e.FS.ReuseForWrite(oldname, newname, category)
	return e.file(f, newname, err)
}

// Rename is vfs.FS.
func (e *engineFS) Rename(oldname, newname string) error {
	return e.check("renaming to", newname, e.FS.Rename(oldname, newname))
}

// OpenDir is vfs.FS.
func (e *engineFS) OpenDir(name string) (vfs.File, error) {
	f, err := e.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return engineDir{f, e, name}, nil
}

// engineFile is a file that Pebble writes.
type engineFile struct {
	vfs.File
	fs   *engineFS
	name string
}

const flushing = "flushing"

// Write is vfs.File.
func (f engineFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.fs.check("writing", f.name, err)
}

// Sync is vfs.File.
func (f engineFile) Sync() error { return f.fs.check(flushing, f.name, f.File.Sync()) }

// SyncData is vfs.File.
func (f engineFile) SyncData() error { return f.fs.check(flushing, f.name, f.File.SyncData()) }

// SyncTo is vfs.File.
func (f engineFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.fs.check(flushing, f.name, err)
}

// engineDir is a directory that is opened to be flushed.
type engineDir struct {
	vfs.File
	fs   *engineFS
	name string
}

// Sync is vfs.File.
func (d engineDir) Sync() error {
	err := d.File.Sync()
	if err != nil {
		d.fs.die(fmt.Errorf("flushing the directory %s: %w", d.name, err))
	}
	return err
}
