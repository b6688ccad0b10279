package qfilter

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// tempFile is a file without a name, lent to programs. All methods accept a nil
// tempFile.
type tempFile struct{ *os.File }

// inMemory makes an empty one for what is short by nature. What a program may
// write to it is bounded as all files are.
func inMemory() (*tempFile, error) {
	fd, err := unix.MemfdCreate(Name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return &tempFile{os.NewFile(uintptr(fd), Name)}, nil
}

// temporary makes an empty one for what takes the place of size bytes: in the
// spool if there is one and they are many, else in memory.
func (f *Filter) temporary(size int64) (*tempFile, error) {
	if size <= message.InMemory {
		return inMemory()
	}
	t, err := f.spooled()
	if err != nil {
		return nil, fmt.Errorf("a temporary file: %w", err)
	}
	if t == nil {
		return inMemory()
	}
	if err := t.share(0o666); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// spooled is nil if the spool has no files that can be passed on.
func (f *Filter) spooled() (*tempFile, error) {
	if f.env.Spool == nil {
		return nil, nil
	}
	name, file, err := f.env.Spool.Create()
	if err != nil {
		return nil, err
	}
	own, ok := file.(*os.File)
	if err := f.env.Spool.Remove(name); err != nil || !ok {
		file.Close()
		return nil, err
	}
	return &tempFile{own}, nil
}

// share lets programs of other users open the file by its descriptor, as shells
// and others do for /dev/stdin and /dev/fd/4. It has no name to open it by.
func (t *tempFile) share(mode fs.FileMode) error { return t.Chmod(mode) }

// sealed is the same file for programs that only read it.
func (t *tempFile) sealed() (*tempFile, error) {
	if err := t.share(0o444); err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", t.Fd()))
	if err != nil {
		return nil, err
	}
	return &tempFile{f}, nil
}

func (t *tempFile) rewind() error {
	_, err := t.Seek(0, io.SeekStart)
	return err
}

// size is how long the file is; one that is longer than limit is an error.
func (t *tempFile) size(limit int64) (int64, error) {
	info, err := t.Stat()
	switch {
	case err != nil:
		return 0, err
	case info.Size() > limit:
		return 0, fmt.Errorf("it wrote more than %d bytes to one of its files (max_output)", limit)
	}
	return info.Size(), nil
}

// minFree is how much must be free on a file system, in bytes, for what was
// written there to be whole.
const minFree = 1 << 20

// whole is an error where the file may have been cut off because its file system
// is full. Few programs look whether their last words have been written.
func (t *tempFile) whole(free func(*os.File) (int64, error)) error {
	left, err := free(t.File)
	if err != nil || left >= minFree {
		return err
	}
	return fmt.Errorf("what it wrote may be cut off: there are %d bytes left on the file system of the spool: %w", left, unix.ENOSPC)
}

// freeSpace is what is free for a file that is on a disk, in bytes.
func freeSpace(f *os.File) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, os.NewSyscallError("fstatfs", err)
	}
	if st.Type == unix.TMPFS_MAGIC && st.Blocks == 0 { // in memory, and as large as that
		return minFree, nil
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// content is the first size bytes, all of them.
func (t *tempFile) content(size int64) ([]byte, error) {
	if size > maxRaw {
		return nil, fmt.Errorf("an envelope of %d bytes, at most %d", size, maxRaw)
	}
	b := make([]byte, size)
	return b, readExactly(t, b, 0)
}

// path is what descriptor 5 names, "" if nothing was written.
func (t *tempFile) path() (string, error) {
	b := make([]byte, maxQueue)
	n, err := t.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	return parseQueue(b[:n], n < maxQueue)
}

// parseQueue reads the path on descriptor 5; whole is whether b is all that was
// written. What follows a NUL is left over from another program that ran before.
func parseQueue(b []byte, whole bool) (string, error) {
	if len(b) == 0 {
		return "", nil
	}
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		if end = len(b); !whole {
			return "", fmt.Errorf("descriptor 5 names a queue program by more than %d bytes", maxQueue-1)
		}
	}
	path := string(b[:end])
	if path == "" {
		return "", errors.New("descriptor 5 names a queue program without a name")
	}
	return path, nil
}

func (t *tempFile) close() {
	if t != nil {
		t.File.Close()
	}
}

// line takes what a program says: it keeps the beginning and lets the rest go,
// since who floods must not block. All methods accept a nil line.
type line struct {
	ours, theirs *os.File
	limit        int
	kept         []byte
	more         int64
	done         chan struct{}
}

// lingering is how long a line is read when its program has ended: what it has
// started is dead by then, and all ends of the pipe are closed.
const lingering = 100 * time.Millisecond

func newLine(limit int) (*line, error) {
	l := &line{limit: limit, done: make(chan struct{})}
	var err error
	if l.ours, l.theirs, err = os.Pipe(); err != nil {
		return nil, err
	}
	go func() {
		defer close(l.done)
		_, _ = io.Copy(l, l.ours) // its end is all that is waited for
	}()
	return l, nil
}

// Write is io.Writer.
func (l *line) Write(p []byte) (int, error) {
	n := min(len(p), l.limit-len(l.kept))
	l.kept = append(l.kept, p[:n]...)
	l.more += int64(len(p) - n)
	return len(p), nil
}

func (l *line) started() { l.theirs.Close() }

// read is what was said, clean, when the program has ended.
func (l *line) read(max int) string {
	_ = l.ours.SetReadDeadline(time.Now().Add(lingering))
	<-l.done
	text := reply.Clean(string(l.kept), max)
	if l.more > 0 && l.limit == maxSaid {
		text += fmt.Sprintf(" (and %d bytes more)", l.more)
	}
	return text
}

func (l *line) close() {
	if l == nil {
		return
	}
	l.theirs.Close() // a second time does nothing
	l.ours.Close()
	<-l.done
}

// split takes a message that a program wrote apart, against the one that came.
// head is nil if nothing has changed, body if the old one stays; whoever gets a
// body holds it.
func (f *Filter) split(out *os.File, size int64, old message.Message) (head *message.Head, body *message.Body, err error) {
	s := splitter{out: out, size: size, old: old, spool: f.env.Spool, lines: f.lines}
	return s.split()
}
