// Command qmail-queue hands a qmail-queue caller's descriptors, arguments and environment to the Postern daemon, waits,
// and exits as the daemon says. It parses nothing of the message. The format, the times and what ends a conversation are
// specified in [github.com/postern-mta/postern/pipeline/ingress/handoff/wire].
//
// This is the Go twin of c/qmail-queue.c, for systems without a C compiler. It passes the same tests and imports only
// syscall, to start fast. Where it differs:
//
//   - It needs more memory: under softlimit -m it dies with exit 2 before main, which qmail-smtpd takes as temporary.
//   - The runtime puts /dev/null in place of descriptors that were closed; one opened for reading and writing counts as closed.
//   - The next program gets SIGPIPE as default, even if this process was started with it ignored.
//   - Of several environment entries with one name only the first is passed on.
//   - It reads its arguments and whether it is privileged from /proc: without that it sends argv[0] only, and trusts
//     neither $POSTERN_SOCKET nor $POSTERN_WAIT.
//   - A program that could not be started is reported with pid 0.
package main

import (
	"syscall"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// socketPath is where the daemon listens; set it with -ldflags "-X main.socketPath=PATH".
var socketPath = "/run/postern/queue.sock"

// Exit codes of our own; all but these are the daemon's or the next program's.
const (
	exitTimeout   = 52
	exitRead      = 54
	exitTemporary = 71
	exitCrashed   = 81
)

// shim is one run of the program.
type shim struct {
	begun    int64 // all times are milliseconds of the monotonic clock
	patience int64
	sock     int
	args     []byte // NUL-terminated, as the wire has them
	env      []string

	privileged bool
	in         []byte
	oob        []byte

	beat, slow int64
	envelope   bool // E has come
	quiet, end int64
	next       wire.Next
	pairs      []pair
	have       int
}

// pair is what a next program reads; 0 stands for one that has not come, as ours are never 0.
type pair struct{ message, envelope int }

func main() {
	s := &shim{begun: now(), patience: wire.ConnectWait, sock: -1, env: syscall.Environ()}
	if !open(0) || !open(1) {
		syscall.Exit(exitRead)
	}
	s.privileged = privileged()
	if wait := number(getenv("POSTERN_WAIT"), wire.ConnectWaitMax); wait >= 0 && !s.privileged {
		s.patience = int64(wait)
	}
	s.args = arguments()
	s.in = make([]byte, wire.MaxPacket)
	s.oob = make([]byte, syscall.CmsgSpace(2*4))
	s.connect()
	s.hello()
	s.converse()
}

// exit ends the shim.
func exit(code int) { syscall.Exit(code) }

// converse follows the daemon's frames until one of them ends the shim.
func (s *shim) converse() {
	s.quiet, s.end = now()+s.patience, s.begun+totalWait
	for {
		until := s.quiet
		if s.next.Count == 0 {
			until = min(s.end, s.quiet)
		}
		packet, fds, late := s.get(until)
		switch {
		case late && until == s.end && until != s.quiet && !s.envelope:
			exit(exitTimeout)
		case len(packet) == 0 && (!late || until == s.quiet) && !s.envelope && s.next.Count == 0:
			s.silent()
		case len(packet) == 0:
			exit(exitTemporary)
		}
		if !s.take(packet, fds) {
			exit(exitTemporary)
		}
		if s.beat > 0 {
			s.quiet = now() + s.beat
		}
	}
}

// take does what a frame says; false: the frame is malformed or out of its place.
func (s *shim) take(packet []byte, fds []int) bool {
	kind, asked := wire.KindOf(packet), s.next.Count > 0
	var err error
	switch kind {
	case wire.KindAccepted:
		return s.beat == 0 && s.accepted(packet)
	case wire.KindBeat:
		_, err = wire.ParseBeat(packet)
		return err == nil && s.beat > 0
	case wire.KindEnvelope:
		_, err = wire.ParseEnvelope(packet)
		if err != nil || s.beat == 0 || asked {
			return false
		}
		if !s.envelope {
			s.end = now() + s.slow
		}
		s.envelope = true
		return true
	case wire.KindExit:
		x, err := wire.ParseExit(packet)
		if err != nil || asked {
			return false
		}
		exit(s.answer(x))
	case wire.KindNext:
		if s.beat == 0 || asked {
			return false
		}
		s.next, err = wire.ParseNext(packet)
		s.pairs = make([]pair, s.next.Count)
		return err == nil
	case wire.KindPair:
		return asked && s.pair(packet, fds)
	}
	return kind.Ignorable()
}

func (s *shim) accepted(packet []byte) bool {
	a, err := wire.ParseAccepted(packet)
	s.beat, s.slow = int64(a.Beat), int64(a.Slow)
	return err == nil
}

// pair takes the descriptors for one run of the next program, and runs it when they are all there.
func (s *shim) pair(packet []byte, fds []int) bool {
	p, err := wire.ParsePair(packet)
	if err != nil || len(fds) != 2 || int(p.Index) >= len(s.pairs) || s.pairs[p.Index].message != 0 {
		return false
	}
	s.pairs[p.Index] = pair{fds[0], fds[1]}
	s.have++
	if s.have == len(s.pairs) {
		s.run()
	}
	return true
}

// answer tells the text, if it can, and returns the exit code.
func (s *shim) answer(x wire.Exit) int {
	if x.Code == 0 || len(x.Text) <= 2 {
		return int(x.Code)
	}
	for _, c := range x.Dialect.Channels() {
		fd := c.FD
		if c.FromEnv {
			fd = errorFD(fd)
		}
		if !errorPipe(fd) {
			continue
		}
		text := wire.Clean(x.Text, c.Max)
		if poll([]pollFD{{fd: int32(fd), events: pollOut}}, errorWait) && write(fd, text) == len(text) {
			return int(c.Exit)
		}
		return int(x.Code)
	}
	return int(x.Code)
}

// silent ends the shim when there is no answer, and the caller may still be writing.
func (s *shim) silent() {
	s.drain()
	exit(exitTemporary)
}

// drain hangs up and then reads what the caller still writes: a daemon that is stopped holds the reading ends too, as
// some callers do themselves, so our exit would leave the caller blocked in write. Only after the socket is closed, so that a daemon that wakes up
// knows that the message may have a hole.
func (s *shim) drain() {
	syscall.Close(s.sock)
	p := []pollFD{{fd: -1, events: pollIn}, {fd: -1, events: pollIn}}
	for fd := range p {
		if format := format(fd); format == syscall.S_IFIFO || format == syscall.S_IFSOCK {
			p[fd].fd = int32(fd)
		}
	}
	for p[0].fd >= 0 || p[1].fd >= 0 {
		if !poll(p, drainQuiet) {
			return
		}
		for fd := range p {
			if p[fd].fd < 0 || p[fd].revents == 0 {
				continue
			}
			n, err := syscall.Read(fd, s.in)
			if n <= 0 && err != syscall.EINTR && err != syscall.EAGAIN {
				p[fd].fd = -1
			}
		}
	}
}
