package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/plugins/wire"
)

// maxBody bounds a new body in bytes.
const maxBody = 256 << 20

// chunk is how much of a body is read or written at once.
const chunk = 256 << 10

// shelf is where bodies lie that a plugin is given, and those that it answers
// with. A body in a spool file is linked, not copied, where the plugin has a
// user of its own, who cannot write to it. It is safe for concurrent use.
type shelf struct {
	place *place
	seq   *atomic.Uint64
	shown *shown
	// masked is set if the daemon's umask keeps others from reading its files.
	masked bool
	// copies is set once a link could not be made, as to another file system.
	copies atomic.Bool
}

// put lays a body down. remove takes it away again, and may be called once.
func (s *shelf) put(ctx context.Context, b *message.Body, spool message.Spooler) (f *wire.File, remove func(), err error) {
	path := filepath.Join(s.place.bodies, strconv.FormatUint(s.seq.Add(1), 36))
	f = &wire.File{Path: path, Size: b.Size()}
	if b.SpoolName() != "" && spool != nil && !s.place.own && !s.copies.Load() {
		if undo, ok := s.link(b.SpoolName(), spool, path); ok {
			return f, undo, nil
		}
	}
	if err := copyBody(ctx, b, path, s.masked); err != nil {
		return nil, nil, fmt.Errorf("the body for the plugin: %w", err)
	}
	return f, func() { os.Remove(path) }, nil //nolint:errcheck // the next start sweeps what is left behind
}

// link makes the spool file one of the plugin's directory for a time, in which
// others may read it who may enter that directory.
func (s *shelf) link(name string, spool message.Spooler, path string) (undo func(), ok bool) {
	opened, err := spool.Open(name)
	if err != nil {
		return nil, false
	}
	f, ok := opened.(*os.File)
	if !ok {
		opened.Close()
		return nil, false
	}
	fd := int(f.Fd())
	hide, err := s.shown.show(fd)
	if err == nil {
		if err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
			hide()
		}
	}
	if err != nil {
		s.copies.Store(true)
		f.Close()
		return nil, false
	}
	return func() {
		unix.Unlink(path) //nolint:errcheck // the next start sweeps what is left behind
		hide()
		f.Close()
	}, true
}

// shown are the files that others may read for a time. The zero value works; it
// is safe for concurrent use.
type shown struct {
	mu    sync.Mutex
	files map[inode]int // how often each is lent
}

type inode struct{ device, number uint64 }

// show has others read a file, until hide is called as often as show.
func (s *shown) show(fd int) (hide func(), err error) {
	var was unix.Stat_t
	if err := unix.Fstat(fd, &was); err != nil {
		return nil, err
	}
	of := inode{uint64(was.Dev), was.Ino}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[of] == 0 {
		if was.Mode&0o004 != 0 {
			return func() {}, nil // they may as it is
		}
		if err := unix.Fchmod(fd, was.Mode&0o777|0o044); err != nil {
			return nil, err
		}
	}
	if s.files == nil {
		s.files = map[inode]int{}
	}
	s.files[of]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.files[of]--; s.files[of] == 0 {
			delete(s.files, of)
			unix.Fchmod(fd, was.Mode&0o777&^0o044) //nolint:errcheck // its directory is closed to others
		}
	}, nil
}

// copyBody writes a body into a new file.
func copyBody(ctx context.Context, b *message.Body, path string, masked bool) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if masked {
		err = f.Chmod(0o644)
	}
	if err == nil {
		if content, ok := b.Memory(); ok {
			_, err = f.Write(content)
		} else {
			_, err = io.CopyBuffer(struct{ io.Writer }{f}, &heeded{ctx, io.NewSectionReader(b, 0, b.Size())}, make([]byte, chunk))
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path) //nolint:errcheck // the first error is what counts
	}
	return err
}

// heeded is a reader that ends with a context.
type heeded struct {
	ctx context.Context
	r   io.Reader
}

func (h *heeded) Read(p []byte) (int, error) {
	if err := h.ctx.Err(); err != nil {
		return 0, err
	}
	return h.r.Read(p)
}

// inline is a small body itself.
func inline(b *message.Body) ([]byte, error) {
	if content, ok := b.Memory(); ok {
		return content, nil
	}
	content := make([]byte, b.Size())
	if _, err := b.ReadAt(content, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return content, nil
}

// take makes a body of a file that the plugin has written, checks it and
// removes the file. It must be a file of the plugin's own, in one of its two
// directories itself: what it names otherwise is none of ours to read.
func (s *shelf) take(ctx context.Context, path string, spool message.Spooler) (b *message.Body, err error) {
	err = s.with(path, func(f *os.File) error {
		b, err = readBody(ctx, f, spool)
		return err
	})
	return b, err
}

// discard removes a file that the plugin has written, and that nobody wants.
func (s *shelf) discard(path string) {
	s.with(path, func(*os.File) error { return nil }) //nolint:errcheck // the next start sweeps what is left behind
}

// with opens a file that the plugin has written, and removes it when use has
// read it.
func (s *shelf) with(path string, use func(*os.File) error) error {
	dir, name := filepath.Split(path)
	dir = filepath.Clean(dir)
	if dir != s.place.bodies && dir != filepath.Clean(s.place.state) || name == "" || filepath.Clean(path) != path {
		return fmt.Errorf("a new body in %.200q, which is neither in the directory of the message's file nor in its state_dir", path)
	}
	// The directory is opened once: what lies above one that the administrator
	// named may be the plugin's to move.
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("the directory of the new body: %w", &fs.PathError{Op: "open", Path: dir, Err: err})
	}
	defer unix.Close(at) //nolint:errcheck // nothing was written
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("the file with the new body: %w", &fs.PathError{Op: "open", Path: path, Err: err})
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := s.mine(f); err != nil {
		return err
	}
	defer unix.Unlinkat(at, name, 0) //nolint:errcheck // the next start sweeps what is left behind
	return use(f)
}

// mine looks whether an opened file is one that the plugin has written.
func (s *shelf) mine(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.Mode().IsRegular():
		return errors.New("the file with the new body is no regular file")
	case st.Uid != s.place.plugin || st.Nlink != 1:
		return errors.New("the file with the new body is not the plugin's own, or has another name beside")
	case info.Size() > maxBody:
		return fmt.Errorf("a new body of %d bytes, at most %d", info.Size(), maxBody)
	}
	return nil
}

// readBody takes a body in, and gives its last line an end.
func readBody(ctx context.Context, r io.Reader, spool message.Spooler) (*message.Body, error) {
	w := message.NewWriter(spool, 0)
	b := &checked{w: w}
	n, err := io.CopyBuffer(b, &heeded{ctx, io.LimitReader(r, maxBody+1)}, make([]byte, chunk))
	if err == nil && n > maxBody {
		err = fmt.Errorf("a new body of more than %d bytes", maxBody)
	}
	if err == nil && n > 0 && b.last != '\n' {
		_, err = w.Write([]byte{'\n'})
	}
	if err != nil {
		w.Abort()
		return nil, err
	}
	return w.Body()
}

// checked writes a body that is in canonical form.
type checked struct {
	w    *message.Writer
	last byte
}

func (c *checked) Write(p []byte) (int, error) {
	if err := checkBody(p); err != nil {
		return 0, err
	}
	if len(p) > 0 {
		c.last = p[len(p)-1]
	}
	return c.w.Write(p)
}
