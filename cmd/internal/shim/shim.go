// Package shim is what the Go twins of qmail-queue and qmail-remote share: the conversation with the daemon up to its
// answer, specified in [github.com/postern-mta/postern/pipeline/ingress/handoff/wire]. c/shim.h is the same in C.
//
// It imports only syscall, as the programs start for each message. All times are milliseconds of the monotonic clock
// (Now). Nothing in it is safe for concurrent use.
package shim

import (
	"syscall"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// ExitTemporary is the exit code of a failure of our own, and what the daemon hears of a next program that was not
// started.
const ExitTemporary = 71

// Failure says why a conversation cannot go on.
type Failure int

// The failures. The first is of the call, the others are of the daemon.
const (
	FailPath   Failure = iota // no socket can have that path
	FailAbsent                // no daemon
	FailBroken                // the socket failed
	FailSlow                  // the daemon takes nothing more
)

// Conversation is that of one run of the program. Make it with Begin.
type Conversation struct {
	// Fail ends the program; it does not return.
	Fail func(Failure)
	// Args are the program's arguments as the wire has them, Argc says how many.
	Args []byte
	Argc int
	// Privileged is whether the process has rights that its caller has not.
	Privileged bool
	// Packet is where Get puts what comes.
	Packet []byte

	// Quiet is when the daemon has been silent for too long, End when its answer is late.
	Quiet, End int64
	// Started is whether A has come, Envelope whether E has.
	Started, Envelope bool
	// Next is the N that has come; with a Count of 0 none has.
	Next wire.Next

	patience   int64
	sock       int
	rights     []byte
	oob        []byte
	beat, slow int64
}

// Begin begins a conversation in which descriptors, 1 or 2, go to the daemon, from 0, and come back with each P. The
// answer is late after wait.
func Begin(descriptors int, wait int64, fail func(Failure)) *Conversation {
	c := &Conversation{Fail: fail, End: Now() + wait, Privileged: privileged(), patience: wire.ConnectWait, sock: -1}
	if wait := Number(Getenv("POSTERN_WAIT"), wire.ConnectWaitMax); wait >= 0 && !c.Privileged {
		c.patience = int64(wait)
	}
	fds := [...]int{0, 1}
	c.rights = syscall.UnixRights(fds[:descriptors]...)
	c.oob = make([]byte, syscall.CmsgSpace(descriptors*4))
	c.Packet = make([]byte, wire.MaxPacket)
	return c
}

// SetArgs says what the arguments are.
func (c *Conversation) SetArgs(args []byte) {
	c.Args, c.Argc = args, 0
	for _, b := range args {
		if b == 0 {
			c.Argc++
		}
	}
}

// TooLong reports whether the arguments are more than limit bytes, or too many to be counted on the wire.
func (c *Conversation) TooLong(limit int) bool { return len(c.Args) > limit || c.Argc > 65535 }

// Connect tries for as long as patience lasts. The socket is what the variable of the environment names, if the caller
// may say so, or else path. A full backlog (EAGAIN, since the socket does not block) is as good as a missing daemon.
func (c *Conversation) Connect(variable, path string) {
	until, pause := Now()+c.patience, int64(100)
	if p := Getenv(variable); p != "" && !c.Privileged {
		path = p
	}
	if path == "" || len(path) >= len(syscall.RawSockaddrUnix{}.Path) || path[0] == '@' {
		c.Fail(FailPath) // the syscall package would take an '@' for the abstract name space
	}
	for {
		sock, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
		if err == nil {
			if err = syscall.Connect(sock, &syscall.SockaddrUnix{Name: path}); err == nil {
				c.sock = sock
				return
			}
			syscall.Close(sock)
		}
		left := until - Now()
		if left <= 0 {
			c.Fail(FailAbsent)
		}
		Poll(nil, min(left, pause))
		pause = min(pause*3/2, 1000)
	}
}

// HangUp closes the socket.
func (c *Conversation) HangUp() { syscall.Close(c.sock) }

// Hello sends the descriptors, the arguments and what fits of an environment, and begins to wait for the daemon.
func (c *Conversation) Hello(program wire.Program, env []string) {
	h := wire.Hello{Program: program, PPID: uint32(syscall.Getppid()), Argc: uint16(c.Argc), ArgsLen: uint32(len(c.Args))}
	lists := c.Args
	if len(env) > 0 {
		var cut bool
		if lists, cut = wire.AppendEnvironment(append([]byte(nil), c.Args...), env); cut {
			h.Flags |= wire.FlagEnvironmentCut
		}
	}
	h.EnvLen = uint32(len(lists) - len(c.Args))
	if c.Privileged {
		h.Flags |= wire.FlagPrivileged
	}
	until, n := Now()+c.patience, min(len(lists), wire.MaxChunk)
	h.Chunk = lists[:n]
	up := c.put(h.Append(nil), c.rights, until)
	for lists = lists[n:]; up && len(lists) > 0; lists = lists[n:] {
		n = min(len(lists), wire.MaxChunk)
		up = c.put(wire.Data{Chunk: lists[:n]}.Append(nil), nil, until)
	}
	c.Quiet = Now() + c.patience
}

// atOnce is a time for put.
const atOnce = -1

// Tell sends a frame if that can be at once, and if the daemon can hear it.
func (c *Conversation) Tell(packet []byte) { c.put(packet, nil, atOnce) }

// put sends a frame, until a time, or only if that can be at once. False: the daemon has hung up, and what it said last
// is still to be read; or the frame could not be sent at once.
func (c *Conversation) put(packet, oob []byte, until int64) bool {
	for {
		err := syscall.Sendmsg(c.sock, packet, oob, nil, syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
		switch {
		case err == nil:
			return true
		case err == syscall.EINTR:
		case until == atOnce, err == syscall.EPIPE, err == syscall.ECONNRESET:
			return false
		case err != syscall.EAGAIN:
			c.Fail(FailBroken)
		case !c.ready(PollOut, until):
			c.Fail(FailSlow)
		}
	}
}

// Until is when the next frame is late.
func (c *Conversation) Until() int64 {
	if c.Next.Count == 0 {
		return min(c.End, c.Quiet)
	}
	return c.Quiet
}

// Get receives a frame, and the descriptors that come with a P. None and not late: the daemon is gone or sent what
// cannot be. The frame lasts until the next Get.
func (c *Conversation) Get(until int64) (packet []byte, fds []int, late bool) {
	for {
		n, oobn, flags, _, err := syscall.Recvmsg(c.sock, c.Packet, c.oob, syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			if !c.ready(PollIn, until) {
				return nil, nil, true
			}
			continue
		case err != nil || flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0:
			return nil, nil, false
		}
		packet = c.Packet[:n]
		if oobn == 0 {
			return packet, nil, false
		}
		messages, err := syscall.ParseSocketControlMessage(c.oob[:oobn])
		if err != nil || len(messages) != 1 || wire.KindOf(packet) != wire.KindPair {
			return nil, nil, false
		}
		if fds, err = syscall.ParseUnixRights(&messages[0]); err != nil {
			return nil, nil, false
		}
		return packet, fds, false
	}
}

// ready waits until the socket can be read or written; false: the time is up.
func (c *Conversation) ready(events int16, until int64) bool {
	return Poll([]PollFD{{FD: int32(c.sock), Events: events}}, max(until-Now(), 0))
}

// Follow does what a frame says that only keeps the conversation going: A, B, E, or one that is to be ignored. False: it
// is another, or malformed, or out of its place.
func (c *Conversation) Follow(packet []byte) bool {
	switch kind := wire.KindOf(packet); kind {
	case wire.KindAccepted:
		a, err := wire.ParseAccepted(packet)
		if err != nil || c.Started {
			return false
		}
		c.Started, c.beat, c.slow = true, int64(a.Beat), int64(a.Slow)
		return true
	case wire.KindBeat:
		_, err := wire.ParseBeat(packet)
		return err == nil && c.Started
	case wire.KindEnvelope:
		if _, err := wire.ParseEnvelope(packet); err != nil || !c.Started || c.Next.Count > 0 {
			return false
		}
		if !c.Envelope {
			c.End = Now() + c.slow
		}
		c.Envelope = true
		return true
	default:
		return kind.Ignorable()
	}
}

// Heard notes that the daemon is not silent.
func (c *Conversation) Heard() {
	if c.Started {
		c.Quiet = Now() + c.beat
	}
}
