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

	"github.com/postern-mta/postern/cmd/internal/shim"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// socketPath is where the daemon listens; set it with -ldflags "-X main.socketPath=PATH".
var socketPath = "/run/postern/queue.sock"

// Exit codes of our own; all but these are the daemon's or the next program's.
const (
	exitTimeout   = 52
	exitRead      = 54
	exitTemporary = shim.ExitTemporary
	exitCrashed   = 81
)

// session is one run of the program.
type session struct {
	*shim.Conversation
	env   []string
	pairs []pair
	have  int
}

// pair is what a next program reads; 0 stands for one that has not come, as ours are never 0.
type pair struct{ message, envelope int }

func main() {
	s := &session{env: syscall.Environ()}
	s.Conversation = shim.Begin(2, totalWait, s.fail)
	if !shim.Given(0) || !shim.Given(1) {
		syscall.Exit(exitRead)
	}
	s.SetArgs(arguments())
	s.Connect("POSTERN_SOCKET", socketPath)
	if s.TooLong(wire.MaxArgs) {
		exit(exitTemporary)
	}
	s.Hello(wire.ProgramQueue, s.env)
	s.converse()
}

// arguments returns argv as the wire has it. The syscall package does not give it; /proc does.
func arguments() []byte {
	b, ok := shim.Slurp("/proc/self/cmdline", wire.MaxArgs+1)
	if !ok || len(b) > 0 && b[len(b)-1] != 0 && len(b) <= wire.MaxArgs {
		return []byte("qmail-queue\x00")
	}
	return b
}

func (s *session) fail(why shim.Failure) {
	if why == shim.FailAbsent || why == shim.FailSlow {
		s.silent()
	}
	exit(exitTemporary)
}

// exit ends the shim.
func exit(code int) { syscall.Exit(code) }

// converse follows the daemon's frames until one of them ends the shim.
func (s *session) converse() {
	for {
		until := s.Until()
		packet, fds, late := s.Get(until)
		switch {
		case late && until == s.End && until != s.Quiet && !s.Envelope:
			exit(exitTimeout)
		case len(packet) == 0 && (!late || until == s.Quiet) && !s.Envelope && s.Next.Count == 0:
			s.silent()
		case len(packet) == 0:
			exit(exitTemporary)
		}
		if !s.take(packet, fds) {
			exit(exitTemporary)
		}
		s.Heard()
	}
}

// take does what a frame says; false: the frame is malformed or out of its place.
func (s *session) take(packet []byte, fds []int) bool {
	asked := s.Next.Count > 0
	var err error
	switch wire.KindOf(packet) {
	case wire.KindExit:
		x, err := wire.ParseExit(packet)
		if err != nil || asked {
			return false
		}
		exit(s.answer(x))
	case wire.KindNext:
		if !s.Started || asked {
			return false
		}
		s.Next, err = wire.ParseNext(packet)
		s.pairs = make([]pair, s.Next.Count)
		return err == nil
	case wire.KindPair:
		return asked && s.pair(packet, fds)
	}
	return s.Follow(packet)
}

// pair takes the descriptors for one run of the next program, and runs it when they are all there.
func (s *session) pair(packet []byte, fds []int) bool {
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
func (s *session) answer(x wire.Exit) int {
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
		if shim.Poll([]shim.PollFD{{FD: int32(fd), Events: shim.PollOut}}, errorWait) && write(fd, text) == len(text) {
			return int(c.Exit)
		}
		return int(x.Code)
	}
	return int(x.Code)
}

// silent ends the shim when there is no answer, and the caller may still be writing.
func (s *session) silent() {
	s.drain()
	exit(exitTemporary)
}

// drain hangs up and then reads what the caller still writes: a daemon that is stopped holds the reading ends too, as
// some callers do themselves, so our exit would leave the caller blocked in write. Only after the socket is closed, so that a daemon that wakes up
// knows that the message may have a hole.
func (s *session) drain() {
	s.HangUp()
	p := []shim.PollFD{{FD: -1, Events: shim.PollIn}, {FD: -1, Events: shim.PollIn}}
	for fd := range p {
		if format := format(fd); format == syscall.S_IFIFO || format == syscall.S_IFSOCK {
			p[fd].FD = int32(fd)
		}
	}
	for p[0].FD >= 0 || p[1].FD >= 0 {
		if !shim.Poll(p, drainQuiet) {
			return
		}
		for fd := range p {
			if p[fd].FD < 0 || p[fd].Revents == 0 {
				continue
			}
			n, err := syscall.Read(fd, s.Packet)
			if n <= 0 && err != syscall.EINTR && err != syscall.EAGAIN {
				p[fd].FD = -1
			}
		}
	}
}

// format is the kind of file behind fd, S_IFMT; 0 if there is none.
func format(fd int) uint32 {
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Mode & syscall.S_IFMT
}

// write returns how much was written.
func write(fd int, b []byte) int {
	for {
		n, err := syscall.Write(fd, b)
		if err != syscall.EINTR {
			return n
		}
	}
}
