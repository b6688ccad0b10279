package main

import (
	"syscall"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// connect tries for as long as patience lasts. A full backlog (EAGAIN, since the socket does not block) is as good as a
// missing daemon.
func (s *shim) connect() {
	path, until, pause := socketPath, now()+s.patience, int64(100)
	if p := getenv("POSTERN_REMOTE_SOCKET"); p != "" && !s.privileged {
		path = p
	}
	if path == "" || len(path) >= len(syscall.RawSockaddrUnix{}.Path) || path[0] == '@' {
		say(noDaemon) // the syscall package would take an '@' for the abstract name space
	}
	for {
		sock, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
		if err == nil {
			if err = syscall.Connect(sock, &syscall.SockaddrUnix{Name: path}); err == nil {
				s.sock = sock
				return
			}
			syscall.Close(sock)
		}
		left := until - now()
		if left <= 0 {
			say(noDaemon)
		}
		poll(nil, min(left, pause))
		pause = min(pause*3/2, 1000)
	}
}

// hello sends the descriptor and the arguments.
func (s *shim) hello() {
	h := wire.Hello{Program: wire.ProgramRemote, PPID: uint32(syscall.Getppid()), Argc: uint16(s.argc), ArgsLen: uint32(len(s.args))}
	if s.privileged {
		h.Flags |= wire.FlagPrivileged
	}
	list, until, n := s.args, now()+s.patience, min(len(s.args), wire.MaxChunk)
	h.Chunk = list[:n]
	up := s.put(h.Append(nil), syscall.UnixRights(0), until)
	for list = list[n:]; up && len(list) > 0; list = list[n:] {
		n = min(len(list), wire.MaxChunk)
		up = s.put(wire.Data{Chunk: list[:n]}.Append(nil), nil, until)
	}
}

// atOnce is a time for put.
const atOnce = -1

// put sends a frame, until a time, or only if that can be at once. False: the daemon has hung up, and what it said last
// is still to be read; or the frame could not be sent at once.
func (s *shim) put(packet, oob []byte, until int64) bool {
	for {
		err := syscall.Sendmsg(s.sock, packet, oob, nil, syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
		switch {
		case err == nil:
			return true
		case err == syscall.EINTR:
		case until == atOnce, err == syscall.EPIPE, err == syscall.ECONNRESET:
			return false
		case err != syscall.EAGAIN:
			say(died)
		case !s.ready(pollOut, until):
			say(slow)
		}
	}
}

// get receives a frame, and the descriptor that comes with a P. No frame and not late: the daemon is gone or sent what
// cannot be. The frame lasts until the next get.
func (s *shim) get(until int64) (packet []byte, fd int, late bool) {
	for {
		n, oobn, flags, _, err := syscall.Recvmsg(s.sock, s.in, s.oob, syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			if !s.ready(pollIn, until) {
				return nil, -1, true
			}
			continue
		case err != nil || flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0:
			return nil, -1, false
		}
		packet = s.in[:n]
		if (oobn > 0) != (wire.KindOf(packet) == wire.KindPair) {
			return nil, -1, false
		}
		if oobn == 0 {
			return packet, -1, false
		}
		messages, err := syscall.ParseSocketControlMessage(s.oob[:oobn])
		if err != nil || len(messages) != 1 {
			return nil, -1, false
		}
		fds, err := syscall.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			return nil, -1, false
		}
		return packet, fds[0], false
	}
}

// ready waits until the socket can be read or written; false: the time is up.
func (s *shim) ready(events int16, until int64) bool {
	return poll([]pollFD{{fd: int32(s.sock), events: events}}, max(until-now(), 0))
}
