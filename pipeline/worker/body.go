package worker

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// load is what goes with a request: args and body, in the packet or as files
// that nobody can write to.
type load struct {
	header requestHeader
	body   []byte
	files  []*os.File // closed by the pool
}

func (l *load) close() {
	for _, f := range l.files {
		f.Close()
	}
}

// pack prepares a request's load; it is used for a second attempt as well.
func pack(r *Request, o *Options) (l *load, err error) {
	if len(r.Job) > maxName || len(r.Args) > maxArgs || r.Size < 0 {
		return nil, fmt.Errorf("request for job %q: %d bytes of arguments, %d of body; at most %d of arguments", clean([]byte(r.Job), maxName), len(r.Args), r.Size, maxArgs)
	}
	l = &load{header: requestHeader{
		args: uint32(len(r.Args)), body: uint64(r.Size), limit: uint32(o.Answer), deadline: or(r.Deadline, o.Deadline),
	}}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if len(r.Args) > inlineArgs {
		l.header.flags |= argsApart
		f, err := sealed(r.Args)
		if err != nil {
			return nil, err
		}
		l.files = append(l.files, f)
	}
	if r.Size == 0 {
		return l, nil
	}
	if r.Size <= inlineBody {
		l.body, err = inline(r)
		return l, err
	}
	l.header.flags |= bodyApart
	f, err := apart(r, o)
	if err != nil {
		return nil, err
	}
	l.files = append(l.files, f)
	return l, nil
}

// inline is a small body in memory.
func inline(r *Request) ([]byte, error) {
	if m, ok := r.Body.(interface{ Memory() ([]byte, bool) }); ok {
		if b, ok := m.Memory(); ok && int64(len(b)) == r.Size {
			return b, nil
		}
	}
	b := make([]byte, r.Size)
	if n, err := r.Body.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("reading the body: %w", noEOF(err))
	}
	return b, nil
}

func noEOF(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// apart is a large body as a file of its own: the body's file, opened again for
// reading, or a copy.
func apart(r *Request, o *Options) (*os.File, error) {
	file, _ := r.Body.(*os.File)
	if b, ok := r.Body.(Opener); ok {
		file = b.File()
	}
	if file != nil {
		if f, err := again(file); err == nil {
			return f, nil
		}
	}
	f, err := temporary(o.Directory)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if n, err := io.Copy(f, io.NewSectionReader(r.Body, 0, r.Size)); err != nil || n < r.Size {
		return nil, fmt.Errorf("reading the body: %w", noEOF(err))
	}
	return again(f)
}

// again opens a file once more, for reading only and with an offset of its own.
func again(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var failed error
	err = raw.Control(func(n uintptr) {
		fd, failed = unix.Open(fmt.Sprintf("/proc/self/fd/%d", n), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// sealed is a file in memory that cannot be changed.
func sealed(content []byte) (*os.File, error) {
	f, err := memoryFile("args")
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(content); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
