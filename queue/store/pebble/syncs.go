package pebble

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// countingFS counts the flushes that wait for the disk.
type countingFS struct {
	vfs.FS
	syncs atomic.Int64
}

// Unwrap is vfs.FS.
func (c *countingFS) Unwrap() vfs.FS { return c.FS }

func (c *countingFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return countingFile{f, &c.syncs}, nil
}

// Create is vfs.FS.
func (c *countingFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return c.wrap(c.FS.Create(name, category))
}

// OpenReadWrite is vfs.FS.
func (c *countingFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return c.wrap(c.FS.OpenReadWrite(name, category, opts...))
}

// OpenDir is vfs.FS.
func (c *countingFS) OpenDir(name string) (vfs.File, error) { return c.wrap(c.FS.OpenDir(name)) }

// ReuseForWrite is vfs.FS.
func (c *countingFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return c.wrap(c.FS.ReuseForWrite(oldname, newname, category))
}

type countingFile struct {
	vfs.File
	syncs *atomic.Int64
}

// Sync is vfs.File.
func (f countingFile) Sync() error {
	f.syncs.Add(1)
	return f.File.Sync()
}

// SyncData is vfs.File.
func (f countingFile) SyncData() error {
	f.syncs.Add(1)
	return f.File.SyncData()
}

// syncDir flushes the entries of a directory.
func syncDir(fs vfs.FS, path string) error {
	d, err := fs.OpenDir(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// directory is a directory whose entries are flushed. Those who ask while a
// flush is under way share the next one.
type directory struct {
	file      vfs.File
	requested atomic.Uint64

	mu      sync.Mutex // held while flushing
	flushed uint64     // requests up to this one are answered
}

func openDirectory(fs vfs.FS, path string) (*directory, error) {
	f, err := fs.OpenDir(path)
	if err != nil {
		return nil, err
	}
	return &directory{file: f}, nil
}

// sync returns when every change of the directory made before the call is on
// stable storage. After an error nothing is known about its entries, and
// another flush would lie.
func (d *directory) sync() error {
	mine := d.requested.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.flushed >= mine {
		return nil
	}
	all := d.requested.Load()
	if err := d.file.Sync(); err != nil {
		return err
	}
	d.flushed = all
	return nil
}
