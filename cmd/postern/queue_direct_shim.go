package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// directShim is a shim within the program: it passes the caller's descriptors
// on as qmail-queue does (see the package wire), to a server in this process.
type directShim struct {
	conn *net.UnixConn
	// pipes are the descriptors, open when the program began, that take an error
	// text.
	pipes map[int]bool
}

// directAnswer is the server's answer.
type directAnswer = wire.Exit

// lastErrorFD is the highest descriptor that can take an error text.
const lastErrorFD = 1 << 20

func newDirectShim() *directShim {
	s := &directShim{pipes: map[int]bool{}}
	for _, fd := range []int{2, 4, 6, errorFD(-1)} {
		if fd >= 2 && isPipe(fd) {
			s.pipes[fd] = true
		}
	}
	return s
}

// errorFD is $ERROR_FD: -1 switches it off, and what is no number does not count.
func errorFD(otherwise int) int {
	n, err := strconv.ParseUint(os.Getenv("ERROR_FD"), 10, 64)
	switch {
	case os.Getenv("ERROR_FD") == "-1":
		return -1
	case errors.Is(err, strconv.ErrRange):
		return lastErrorFD
	case err != nil:
		return otherwise
	}
	return int(min(n, lastErrorFD))
}

// isPipe reports whether fd is the writing end of a pipe that was inherited.
func isPipe(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false
	}
	inherited, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || inherited&unix.FD_CLOEXEC != 0 {
		return false
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
}

// complete reports whether the caller gave us a message and an envelope. The
// runtime has put /dev/null, for reading and writing, where it did not.
func (*directShim) complete() bool {
	null := unix.Mkdev(1, 3)
	for _, fd := range []int{0, 1} {
		var st unix.Stat_t
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil || unix.Fstat(fd, &st) != nil {
			return false
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == null && flags&unix.O_ACCMODE == unix.O_RDWR {
			return false
		}
	}
	return true
}

// connect connects to a listener of our own, which is the caller's to close.
func (s *directShim) connect() (*net.UnixListener, error) {
	if os.Getuid() != os.Geteuid() || os.Getgid() != os.Getegid() {
		return nil, errors.New("queue-direct must not be installed set-uid: it could not tell who calls")
	}
	l, path, dir, err := privateSocket()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // an empty directory at worst
	s.conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// hello passes descriptors, arguments and environment on.
func (s *directShim) hello() error {
	args := wire.AppendEntries(nil, "qmail-queue")
	lists, cut := wire.AppendEnvironment(append([]byte(nil), args...), os.Environ())
	h := wire.Hello{
		Program: wire.ProgramQueue, PPID: uint32(os.Getppid()), Argc: 1, ArgsLen: uint32(len(args)), EnvLen: uint32(len(lists) - len(args)),
	}
	if cut {
		h.Flags |= wire.FlagEnvironmentCut
	}
	n := min(len(lists), wire.MaxChunk)
	h.Chunk = lists[:n]
	if _, _, err := s.conn.WriteMsgUnix(h.Append(nil), unix.UnixRights(0, 1), nil); err != nil {
		return err
	}
	for lists = lists[n:]; len(lists) > 0; lists = lists[n:] {
		n = min(len(lists), wire.MaxChunk)
		if _, err := s.conn.Write(wire.Data{Chunk: lists[:n]}.Append(nil)); err != nil {
			return err
		}
	}
	return nil
}

// converse waits for the answer. The server bounds the time that reading and
// judging take; silence means that it is stuck.
func (s *directShim) converse(ctx context.Context) (x directAnswer, err error) {
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	quiet := wire.ConnectWait * time.Millisecond
	if err := s.conn.SetDeadline(time.Now().Add(quiet)); err != nil {
		return x, err
	}
	if err := s.hello(); err != nil {
		return x, fmt.Errorf("the entrance does not listen: %w", err)
	}
	packet := make([]byte, wire.MaxPacket)
	for {
		n, err := s.conn.Read(packet)
		if err != nil {
			return x, fmt.Errorf("the entrance gives no answer: %w", err)
		}
		switch kind := wire.KindOf(packet[:n]); kind {
		case wire.KindAccepted:
			a, err := wire.ParseAccepted(packet[:n])
			if err != nil {
				return x, err
			}
			quiet = time.Duration(a.Beat) * time.Millisecond
		case wire.KindExit:
			return wire.ParseExit(packet[:n])
		case wire.KindBeat, wire.KindEnvelope:
		default:
			if !kind.Ignorable() {
				return x, fmt.Errorf("the entrance asks for what only a shim can do (%q)", byte(kind))
			}
		}
		if err := s.conn.SetDeadline(time.Now().Add(quiet)); err != nil {
			return x, err
		}
	}
}

// answer tells the text, if it can, and returns the exit code.
func (s *directShim) answer(x directAnswer) uint8 {
	if x.Code == 0 || len(x.Text) <= 2 {
		return x.Code
	}
	for _, c := range x.Dialect.Channels() {
		fd := c.FD
		if c.FromEnv {
			fd = errorFD(fd)
		}
		if !s.pipes[fd] {
			continue
		}
		text := wire.Clean(x.Text, c.Max)
		if writable(fd) {
			if n, err := unix.Write(fd, text); err == nil && n == len(text) {
				return c.Exit
			}
		}
		return x.Code
	}
	return x.Code
}

// errorWait and drainQuiet are how long the caller may take to make room for
// the text, and to send more of a message that is thrown away.
const (
	errorWait  = 10 * time.Second
	drainQuiet = 20 * time.Minute
)

func writable(fd int) bool {
	return wait([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, errorWait)
}

// wait waits until one of fds is ready.
func wait(fds []unix.PollFd, most time.Duration) bool {
	for end := time.Now().Add(most); ; {
		n, err := unix.Poll(fds, int(max(time.Until(end), 0)/time.Millisecond))
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}

// drain reads what the caller still writes and throws it away: a caller that
// holds the reading ends itself would be blocked in write for ever.
func (*directShim) drain() {
	fds := []unix.PollFd{{Fd: -1, Events: unix.POLLIN}, {Fd: -1, Events: unix.POLLIN}}
	for fd := range fds {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && (st.Mode&unix.S_IFMT == unix.S_IFIFO || st.Mode&unix.S_IFMT == unix.S_IFSOCK) {
			fds[fd].Fd = int32(fd)
		}
	}
	b := make([]byte, 64<<10)
	for (fds[0].Fd >= 0 || fds[1].Fd >= 0) && wait(fds, drainQuiet) {
		for fd := range fds {
			if fds[fd].Fd < 0 || fds[fd].Revents == 0 {
				continue
			}
			if n, err := unix.Read(fd, b); n <= 0 && err != unix.EINTR && err != unix.EAGAIN {
				fds[fd].Fd = -1
			}
		}
	}
}
