package queuetest

import (
	"io"
	"os"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Call is a call of the file system that changes something.
type Call struct {
	// Op is the name of the method; "write" comes twice for a write, the second
	// time with Half set, when the first half of the bytes is written.
	Op   string
	Path string
	Half bool
}

// FaultFS tells a hook of every change before it is made. An error of the hook
// is the call's, and the change, or its second half, is not made.
type FaultFS struct {
	vfs.FS
	hook atomic.Pointer[func(Call) error]
}

// NewFaultFS puts hooks before a file system.
func NewFaultFS(fs vfs.FS) *FaultFS { return &FaultFS{FS: fs} }

// Hook sets the hook; nil takes it away. It is called concurrently.
func (f *FaultFS) Hook(h func(Call) error) {
	if h == nil {
		f.hook.Store(nil)
		return
	}
	f.hook.Store(&h)
}

func (f *FaultFS) call(op, path string, half bool) error {
	if h := f.hook.Load(); h != nil {
		return (*h)(Call{op, path, half})
	}
	return nil
}

// Unwrap is vfs.FS.
func (f *FaultFS) Unwrap() vfs.FS { return f.FS }

func (f *FaultFS) file(file vfs.File, path string, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &faultFile{file, f, path}, nil
}

// Create is vfs.FS.
func (f *FaultFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.call("create", name, false); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, category)
	return f.file(file, name, err)
}

// Link is vfs.FS.
func (f *FaultFS) Link(oldname, newname string) error {
	if err := f.call("link", newname, false); err != nil {
		return err
	}
	return f.FS.Link(oldname, newname)
}

// OpenReadWrite is vfs.FS.
func (f *FaultFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := f.call("open for writing", name, false); err != nil {
		return nil, err
	}
	file, err := f.FS.OpenReadWrite(name, category, opts...)
	return f.file(file, name, err)
}

// OpenDir is vfs.FS. It changes nothing, but what it gives can be flushed.
func (f *FaultFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	return f.file(file, name, err)
}

// Remove is vfs.FS.
func (f *FaultFS) Remove(name string) error {
	if err := f.call("remove", name, false); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// RemoveAll is vfs.FS.
func (f *FaultFS) RemoveAll(name string) error {
	if err := f.call("remove all", name, false); err != nil {
		return err
	}
	return f.FS.RemoveAll(name)
}

// Rename is vfs.FS.
func (f *FaultFS) Rename(oldname, newname string) error {
	if err := f.call("rename", newname, false); err != nil {
		return err
	}
	return f.FS.Rename(oldname, newname)
}

// ReuseForWrite is vfs.FS.
func (f *FaultFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.call("reuse", newname, false); err != nil {
		return nil, err
	}
	file, err := f.FS.ReuseForWrite(oldname, newname, category)
	return f.file(file, newname, err)
}

// MkdirAll is vfs.FS.
func (f *FaultFS) MkdirAll(dir string, perm os.FileMode) error {
	if err := f.call("mkdir", dir, false); err != nil {
		return err
	}
	return f.FS.MkdirAll(dir, perm)
}

// Lock is vfs.FS.
func (f *FaultFS) Lock(name string) (io.Closer, error) {
	if err := f.call("lock", name, false); err != nil {
		return nil, err
	}
	return f.FS.Lock(name)
}

type faultFile struct {
	vfs.File
	fs   *FaultFS
	path string
}

// Write is vfs.File.
func (f *faultFile) Write(p []byte) (int, error) {
	if err := f.fs.call("write", f.path, false); err != nil {
		return 0, err
	}
	half := 0
	if len(p) > 1 && f.fs.hook.Load() != nil {
		half = len(p) / 2
		if n, err := f.File.Write(p[:half]); err != nil {
			return n, err
		}
		if err := f.fs.call("write", f.path, true); err != nil {
			return half, err
		}
	}
	n, err := f.File.Write(p[half:])
	return half + n, err
}

// WriteAt is vfs.File.
func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.call("write at", f.path, false); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

// Sync is vfs.File.
func (f *faultFile) Sync() error {
	if err := f.fs.call("sync", f.path, false); err != nil {
		return err
	}
	return f.File.Sync()
}

// SyncData is vfs.File.
func (f *faultFile) SyncData() error {
	if err := f.fs.call("sync", f.path, false); err != nil {
		return err
	}
	return f.File.SyncData()
}

// SyncTo is vfs.File.
func (f *faultFile) SyncTo(length int64) (bool, error) {
	if err := f.fs.call("sync", f.path, false); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}
