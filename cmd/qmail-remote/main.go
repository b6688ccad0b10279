// Command qmail-remote hands a qmail-remote caller's descriptor 0 and arguments to the Postern daemon, waits, and either
// becomes the next qmail-remote with the message that comes back, or prints the report that comes back. It parses nothing
// of the message. The format, the times and what ends a conversation are specified in
// [github.com/postern-mta/postern/pipeline/ingress/handoff/wire].
//
// A failure of its own is a Z report, which qmail-rspawn takes as temporary (qmail-rspawn.c:report). It exits 0 whatever
// happens, as qmail-rspawn makes a bounce of almost every other code, and writes a report when all of it is there, because
// half of one is a bounce, too.
//
// This is the Go twin of c/qmail-remote.c, for systems without a C compiler. It passes the same tests and imports only
// syscall, to start fast. Where it differs:
//
//   - Under softlimit -m it dies with exit 2 before main, and that is a bounce: where qmail-send runs under softlimit,
//     use the C program.
//   - The runtime puts /dev/null in place of descriptors that were closed; one opened for reading and writing counts as closed.
//   - The next program gets SIGPIPE as default, even if this process was started with it ignored.
//   - Of several environment entries with one name only the first is passed on.
//   - It reads its arguments and whether it is privileged from /proc: without that it answers Z, and trusts neither
//     $POSTERN_REMOTE_SOCKET nor $POSTERN_WAIT.
package main

import (
	"syscall"

	"github.com/postern-mta/postern/cmd/internal/shim"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// socketPath is where the daemon listens; set it with -ldflags "-X main.socketPath=PATH".
var socketPath = "/run/postern/remote.sock"

// The reports of our own, each a letter, a line and a NUL.
const (
	improper   = "DI (qmail-remote) was invoked improperly. (#5.3.5)\n\x00"
	unreadable = "ZUnable to read message. (#4.3.0)\n\x00"
	tooLong    = "ZThe arguments are too long for Postern. (#4.3.0)\n\x00"
	noDaemon   = "ZUnable to reach the Postern daemon. (#4.3.0)\n\x00"
	died       = "ZThe Postern daemon went away. (#4.3.0)\n\x00"
	slow       = "ZThe Postern daemon did not answer in time. (#4.3.0)\n\x00"
	nonsense   = "ZThe Postern daemon gave no answer that can be used. (#4.3.0)\n\x00"
	loop       = "ZThe next qmail-remote is Postern's own. (#4.4.6)\n\x00"
	noNext     = "ZUnable to run the next qmail-remote. (#4.3.0)\n\x00"
)

// session is one run of the program.
type session struct {
	*shim.Conversation
	text []byte
}

func main() {
	s := &session{Conversation: shim.Begin(1, readWait, fail)}
	if !shim.Given(0) {
		say(unreadable)
	}
	args, ok := shim.Slurp("/proc/self/cmdline", wire.MaxRemoteArgs+1)
	s.SetArgs(args)
	switch {
	case !ok:
		say(nonsense)
	case s.TooLong(wire.MaxRemoteArgs):
		say(tooLong)
	case s.Argc < 4:
		say(improper)
	}
	s.Connect("POSTERN_REMOTE_SOCKET", socketPath)
	s.Hello(wire.ProgramRemote, nil)
	s.converse()
}

func fail(why shim.Failure) {
	switch why {
	case shim.FailPath, shim.FailAbsent:
		say(noDaemon)
	case shim.FailSlow:
		say(slow)
	default:
		say(died)
	}
}

// say reports b and ends the shim.
func say(b string) { report([]byte(b)) }

// report writes all of b to stdout, for as long as somebody reads it, and ends the shim.
func report(b []byte) {
	for len(b) > 0 {
		n, err := syscall.Write(1, b)
		switch err {
		case nil:
			b = b[n:]
		case syscall.EAGAIN:
			shim.Poll([]shim.PollFD{{FD: 1, Events: shim.PollOut}}, 1000)
		case syscall.EINTR:
		default:
			b = nil
		}
	}
	syscall.Exit(0)
}

// converse follows the daemon's frames until one of them ends the shim.
func (s *session) converse() {
	for {
		packet, fds, late := s.Get(s.Until())
		switch {
		case late:
			say(slow)
		case len(packet) == 0, wire.KindOf(packet) == wire.KindPair && len(fds) != 1:
			say(died)
		case !s.take(packet, fds):
			say(nonsense)
		}
		s.Heard()
	}
}

// take does what a frame says; false: the frame is malformed or out of its place.
func (s *session) take(packet []byte, fds []int) bool {
	asked := s.Next.Count > 0
	switch wire.KindOf(packet) {
	case wire.KindText:
		t, err := wire.ParseText(packet)
		if err != nil || !s.Started || asked || len(t.Chunk) > wire.MaxReport-len(s.text) {
			return false
		}
		s.text = append(s.text, t.Chunk...)
		return true
	case wire.KindExit:
		x, err := wire.ParseExit(packet)
		if err != nil || asked {
			return false
		}
		s.answer(x)
	case wire.KindNext:
		n, err := wire.ParseNext(packet)
		if err != nil || n.Mode != wire.ModeExec || !s.Started || asked || len(s.text) > 0 {
			return false
		}
		s.Next = n
		return true
	case wire.KindPair:
		p, err := wire.ParsePair(packet)
		if err != nil || !asked || p.Index != 0 {
			return false
		}
		s.become(fds[0])
	}
	return s.Follow(packet)
}

// answer reports what the daemon said to the end.
func (s *session) answer(x wire.Exit) {
	switch n := len(s.text); {
	case n > 0 && x.Code == 0 && s.text[n-1] == 0:
		report(s.text)
	case n > 0 || x.Text == "":
		say(nonsense)
	}
	report(append(wire.Clean(x.Text, wire.MaxText), '\n', 0))
}

// become turns this process into the next program.
func (s *session) become(message int) {
	why := noNext
	if shim.IsLoop(s.Next.Path) {
		why = loop
	} else if syscall.Dup3(message, 0, 0) == nil {
		syscall.Exec(s.Next.Path, s.Argv(), shim.NextEnviron(syscall.Environ()))
	}
	s.Tell(wire.Result{Exit: shim.ExitTemporary}.Append(nil))
	say(why)
}
