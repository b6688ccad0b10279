package rules

import (
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// recheck is how often at most a file is looked at.
const recheck = time.Second

// FileOptions are how a file is watched. The zero value works.
type FileOptions struct {
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Changed is told when the file was read again, with nil, or could not be, once for each change; nil tells nobody. It
	// is called from within a look-up and must not make one.
	Changed func(error)
}

// watched holds what was made of a file, and makes it anew when the file's time, size or inode changes. It is looked at
// only when it is used, and at most once a second. A file that is missing, or of which nothing can be made, leaves the one
// before in force: half of a list would refuse mail that the whole one takes.
type watched[T any] struct {
	path  string
	o     FileOptions
	open  func(path string) (T, fs.FileInfo, error)
	close func(T) error

	checked atomic.Int64 // when, in nanoseconds of the clock
	looking sync.Mutex   // held by the one who looks: two could put an older file in the place of a newer one
	mu      sync.RWMutex // held for reading while current is used
	current T
	info    fs.FileInfo // of current, or of what was no use
	missing bool
	err     error // of the last change, nil if current is the file as it is
}

// watch opens the file, which must be there and right.
func watch[T any](path string, o FileOptions, open func(string) (T, fs.FileInfo, error), closing func(T) error) (*watched[T], error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	w := &watched[T]{path: path, o: o, open: open, close: closing}
	var err error
	if w.current, w.info, err = open(path); err != nil {
		return nil, err
	}
	w.checked.Store(o.Now().UnixNano())
	return w, nil
}

// use calls f with what is in force, which is valid until f returns.
func (w *watched[T]) use(f func(T) error) error {
	w.look()
	w.mu.RLock()
	defer w.mu.RUnlock()
	return f(w.current)
}

// problem is why the file as it is now is not in force.
func (w *watched[T]) problem() error {
	w.look()
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.err
}

// shut gives up what is in force. Nothing may be used after it.
func (w *watched[T]) shut() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.close(w.current)
}

// look reads the file again if it is time, and if it changed.
func (w *watched[T]) look() {
	now, last := w.o.Now().UnixNano(), w.checked.Load()
	// A clock that was set back must not stop the looking.
	if now-last < int64(recheck) && now >= last || !w.checked.CompareAndSwap(last, now) {
		return
	}
	if !w.looking.TryLock() {
		return
	}
	defer w.looking.Unlock()
	info, err := os.Stat(w.path)
	w.mu.RLock()
	same := w.same(info, err)
	w.mu.RUnlock()
	if same {
		return
	}
	w.reread(info, err)
}

// same reports whether the file is as it was when last looked at.
func (w *watched[T]) same(info fs.FileInfo, err error) bool {
	if err != nil {
		return w.missing
	}
	return !w.missing && os.SameFile(info, w.info) && info.Size() == w.info.Size() && info.ModTime().Equal(w.info.ModTime())
}

func (w *watched[T]) reread(info fs.FileInfo, err error) {
	var next T
	missing := err != nil
	if !missing {
		var opened fs.FileInfo
		if next, opened, err = w.open(w.path); err == nil {
			info = opened
		}
	}
	w.mu.Lock()
	old := w.current
	if err == nil {
		w.current, w.err = next, nil
	} else {
		w.err = fmt.Errorf("the file as it was before stays in force: %w", err)
	}
	if w.missing = missing; !missing {
		w.info = info
	}
	told := w.err
	w.mu.Unlock()
	if err == nil {
		w.close(old) //nolint:errcheck // it was only read
	}
	if w.o.Changed != nil {
		w.o.Changed(told)
	}
}
