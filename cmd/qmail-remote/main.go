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

// exitTemporary is what the daemon hears of a next program that was not started.
const exitTemporary = 71

// shim is one run of the program.
type shim struct {
	patience int64 // all times are milliseconds of the monotonic clock
	sock     int
	args     []byte // NUL-terminated, as the wire has them
	argc     int

	privileged bool
	in         []byte
	oob        []byte

	beat, slow int64
	envelope   bool // E has come
	quiet, end int64
	next       wire.Next
	text       []byte
}

func main() {
	begun := now()
	s := &shim{patience: wire.ConnectWait, sock: -1}
	if !open(0) {
		say(unreadable)
	}
	args, ok := slurp("/proc/self/cmdline", wire.MaxRemoteArgs+1)
	for _, c := range args {
		if c == 0 {
			s.argc++
		}
	}
	switch {
	case !ok:
		say(nonsense)
	case len(args) > wire.MaxRemoteArgs || s.argc > 65535:
		say(tooLong)
	case s.argc < 4:
		say(improper)
	}
	s.args, s.privileged = args, privileged()
	if wait := number(getenv("POSTERN_WAIT"), wire.ConnectWaitMax); wait >= 0 && !s.privileged {
		s.patience = int64(wait)
	}
	s.in = make([]byte, wire.MaxPacket)
	s.oob = make([]byte, syscall.CmsgSpace(4))
	s.connect()
	s.hello()
	s.converse(begun)
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
			poll([]pollFD{{fd: 1, events: pollOut}}, 1000)
		case syscall.EINTR:
		default:
			b = nil
		}
	}
	syscall.Exit(0)
}

// converse follows the daemon's frames until one of them ends the shim.
func (s *shim) converse(begun int64) {
	s.quiet, s.end = now()+s.patience, begun+readWait
	for {
		until := s.quiet
		if s.next.Count == 0 {
			until = min(s.end, s.quiet)
		}
		packet, fd, late := s.get(until)
		switch {
		case late:
			say(slow)
		case len(packet) == 0:
			say(died)
		case !s.take(packet, fd):
			say(nonsense)
		}
		if s.beat > 0 {
			s.quiet = now() + s.beat
		}
	}
}

// take does what a frame says; false: the frame is malformed or out of its place.
func (s *shim) take(packet []byte, fd int) bool {
	kind, asked := wire.KindOf(packet), s.next.Count > 0
	switch kind {
	case wire.KindAccepted:
		a, err := wire.ParseAccepted(packet)
		if err != nil || s.beat > 0 {
			return false
		}
		s.beat, s.slow = int64(a.Beat), int64(a.Slow)
		return true
	case wire.KindBeat:
		_, err := wire.ParseBeat(packet)
		return err == nil && s.beat > 0
	case wire.KindEnvelope:
		if _, err := wire.ParseEnvelope(packet); err != nil || s.beat == 0 || asked {
			return false
		}
		if !s.envelope {
			s.end = now() + s.slow
		}
		s.envelope = true
		return true
	case wire.KindText:
		t, err := wire.ParseText(packet)
		if err != nil || s.beat == 0 || asked || len(t.Chunk) > wire.MaxReport-len(s.text) {
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
		if err != nil || n.Mode != wire.ModeExec || s.beat == 0 || asked || len(s.text) > 0 {
			return false
		}
		s.next = n
		return true
	case wire.KindPair:
		p, err := wire.ParsePair(packet)
		if err != nil || !asked || p.Index != 0 {
			return false
		}
		s.become(fd)
	}
	return kind.Ignorable()
}

// answer reports what the daemon said to the end.
func (s *shim) answer(x wire.Exit) {
	switch n := len(s.text); {
	case n > 0 && x.Code == 0 && s.text[n-1] == 0:
		report(s.text)
	case n > 0 || x.Text == "":
		say(nonsense)
	}
	report(append(wire.Clean(x.Text, wire.MaxText), '\n', 0))
}

// become turns this process into the next program.
func (s *shim) become(message int) {
	why := noNext
	if hops() >= wire.MaxHops || isSelf(s.next.Path) {
		why = loop
	} else if syscall.Dup3(message, 0, 0) == nil {
		syscall.Exec(s.next.Path, s.argv(), nextEnv())
	}
	s.put(wire.Result{Exit: exitTemporary}.Append(nil), nil, atOnce)
	say(why)
}

// argv is ours, the first included.
func (s *shim) argv() []string {
	argv, start := make([]string, 0, s.argc), 0
	for i, c := range s.args {
		if c == 0 {
			argv = append(argv, string(s.args[start:i]))
			start = i + 1
		}
	}
	return argv
}

// nextEnv is ours with one hop more.
func nextEnv() []string {
	const name = wire.HopsVariable + "="
	all := syscall.Environ()
	env := make([]string, 0, len(all)+1)
	for _, e := range all {
		if len(e) < len(name) || e[:len(name)] != name {
			env = append(env, e)
		}
	}
	return append(env, name+string(rune('1'+hops())))
}

func hops() int { return max(0, number(getenv(wire.HopsVariable), wire.MaxHops)) }

// isSelf reports whether path is the program that is running.
func isSelf(path string) bool {
	var us, it syscall.Stat_t
	return syscall.Stat("/proc/self/exe", &us) == nil && syscall.Stat(path, &it) == nil && us.Dev == it.Dev && us.Ino == it.Ino
}
