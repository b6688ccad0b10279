package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// openSource makes a reader of a descriptor that a caller handed to us, and
// closes it in the end, in every case. Reading ends with an error when ctx
// ends or the time is over.
//
// What it is decides how it is read, because the open file description, with
// its offset and its O_NONBLOCK, is the caller's too:
//
//	regular file   pread from the current offset; the caller's offset stays
//	pipe           O_NONBLOCK, taken away again: its reading end is the shim's alone in practice
//	anything else  poll and one read, so that its flags are left alone
//
// What cannot be read (a pipe's writing end, a directory) is not touched.
func openSource(ctx context.Context, fd int, until time.Time) (io.ReadCloser, error) {
	kind, err := readable(fd)
	switch {
	case err != nil:
	case kind == unix.S_IFREG:
		var at int64
		if at, err = unix.Seek(fd, 0, io.SeekCurrent); err == nil {
			return &fileSource{ctx, fd, at, until}, nil
		}
	case kind == unix.S_IFIFO:
		return newPipeSource(ctx, fd, until)
	default:
		return &polledSource{ctx, fd, kind, until}, nil
	}
	unix.Close(fd)
	return nil, reply.With(reply.ReadError, err)
}

// readable is the kind of file behind fd, if it may be read.
func readable(fd int) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return 0, os.NewSyscallError("fcntl", err)
	}
	if flags&unix.O_ACCMODE == unix.O_WRONLY || flags&unix.O_PATH != 0 {
		return 0, errors.New("the descriptor is not open for reading")
	}
	switch kind := st.Mode & unix.S_IFMT; kind {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		return kind, nil
	}
	return 0, errors.New("the descriptor is no file, pipe, socket or device")
}

// overdue is why reading must end, nil if it may go on.
func overdue(ctx context.Context, until time.Time) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if !time.Now().Before(until) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// fileSource reads a regular file.
type fileSource struct {
	ctx   context.Context
	fd    int
	at    int64
	until time.Time
}

func (s *fileSource) Read(p []byte) (int, error) {
	for {
		if err := overdue(s.ctx, s.until); err != nil {
			return 0, err
		}
		n, err := unix.Pread(s.fd, p, s.at)
		if err == unix.EINTR {
			continue
		}
		return counted(n, err, &s.at)
	}
}

func (s *fileSource) Close() error { return unix.Close(s.fd) }

func counted(n int, err error, at *int64) (int, error) {
	if err != nil {
		return 0, os.NewSyscallError("read", err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	*at += int64(n)
	return n, nil
}

// pipeSource reads a pipe through the runtime's poller.
type pipeSource struct {
	f        *os.File
	blocking bool // as it came
	stop     func() bool
}

func newPipeSource(ctx context.Context, fd int, until time.Time) (io.ReadCloser, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, reply.With(reply.ReadError, os.NewSyscallError("fcntl", err))
	}
	s := &pipeSource{f: os.NewFile(uintptr(fd), "pipe"), blocking: flags&unix.O_NONBLOCK == 0}
	if err := s.f.SetReadDeadline(until); err != nil {
		s.f.Close()
		return nil, reply.With(reply.ReadError, err)
	}
	s.stop = context.AfterFunc(ctx, func() {
		s.f.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // pipes have deadlines
	})
	return s, nil
}

func (s *pipeSource) Read(p []byte) (int, error) { return s.f.Read(p) }

func (s *pipeSource) Close() error {
	s.stop()
	if raw, err := s.f.SyscallConn(); err == nil && s.blocking {
		raw.Control(func(fd uintptr) { unix.SetNonblock(int(fd), false) }) //nolint:errcheck // a courtesy
	}
	return s.f.Close()
}

// polledSource reads sockets, terminals and devices. Waiting holds a thread.
type polledSource struct {
	ctx   context.Context
	fd    int
	kind  uint32
	until time.Time
}

// pollStep is how soon the end of ctx is noticed.
const pollStep = 200 * time.Millisecond

func (s *polledSource) Read(p []byte) (int, error) {
	for {
		if err := overdue(s.ctx, s.until); err != nil {
			return 0, err
		}
		if !pollFD(s.fd, unix.POLLIN, pollStep) {
			continue
		}
		var n int
		var err error
		if s.kind == unix.S_IFSOCK {
			n, _, err = unix.Recvfrom(s.fd, p, unix.MSG_DONTWAIT)
		} else {
			n, err = unix.Read(s.fd, p)
		}
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		var at int64
		return counted(n, err, &at)
	}
}

func (s *polledSource) Close() error { return unix.Close(s.fd) }

// readMessage reads fd 0 to its end. The caller releases the message's body.
func (n *session) readMessage(until time.Time) (message.Message, error) {
	in, err := openSource(n.ctx, n.takeFD(0), until)
	if err != nil {
		return message.Message{}, fmt.Errorf("descriptor 0: %w", err)
	}
	defer in.Close()
	o := &n.srv.o
	m, err := message.Read(in, message.Options{
		Lines: *o.Lines, Spool: o.Spool, MaxSize: o.Limits.Size, MaxHead: o.Limits.Head, MaxFields: o.Limits.Fields,
	})
	if err != nil {
		skip(in)
		n.skipEnvelope(until)
	}
	return m, err
}

// skip reads to the end what is refused already, so that the caller can write
// all it has and come to wait for the answer. Most callers would get EPIPE if
// we closed the pipe; mailfront takes that for a failure of its own and answers
// "later", and up to 2.12 it holds the reading ends of its pipes itself and
// would block for ever.
func skip(in io.Reader) { io.Copy(io.Discard, in) } //nolint:errcheck // the answer is known

// skipEnvelope does that with descriptor 1.
func (n *session) skipEnvelope(until time.Time) {
	in, err := openSource(n.ctx, n.takeFD(1), until)
	if err != nil {
		return
	}
	defer in.Close()
	skip(in)
}

// readEnvelope reads fd 1 as far as an envelope goes.
func (n *session) readEnvelope(until time.Time) (envelope.Envelope, error) {
	in, err := openSource(n.ctx, n.takeFD(1), until)
	if err != nil {
		return envelope.Envelope{}, fmt.Errorf("descriptor 1: %w", err)
	}
	defer in.Close()
	e, err := envelope.Read(in, envelope.Limits{Recipients: n.srv.o.Limits.Recipients})
	if err != nil {
		skip(in)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = reply.With(reply.TimedOut, err)
	}
	return e, err
}
