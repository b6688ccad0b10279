package handoff

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end of a connection.
type peer struct{ uid, gid, pid int }

// peerOf asks the kernel. The uid is the effective one at the time of connect.
func peerOf(c *net.UnixConn) (peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, os.NewSyscallError("getsockopt", failed)); err != nil {
		return peer{}, err
	}
	return peer{int(cred.Uid), int(cred.Gid), int(cred.Pid)}, nil
}

// hungUp reports whether the shim has closed its end, or we ours. It sees what
// the goroutine that reads the socket may not have been told yet.
func hungUp(raw controller) bool {
	gone := true
	err := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		for {
			n, err := unix.Poll(p, 0)
			if err == unix.EINTR {
				continue
			}
			gone = err != nil || n > 0
			return
		}
	})
	return err != nil || gone
}

// controller is the part of syscall.RawConn that is used here.
type controller interface {
	Control(func(fd uintptr)) error
}

// realUID is the real uid of the process behind a pidfd, which differs from
// the socket's if the shim is installed set-uid. Where the kernel's pidfd does
// not tell (before Linux 6.13), /proc does, as long as the process lives.
func realUID(process *os.File, pid int) (int, error) {
	raw, err := process.SyscallConn()
	if err != nil {
		return 0, err
	}
	uid, found := 0, false
	err = raw.Control(func(fd uintptr) {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_CREDS}
		if unix.IoctlPidfdInfo(int(fd), &info) == nil && info.Mask&unix.PIDFD_INFO_CREDS != 0 {
			uid, found = int(info.Ruid), true
		}
	})
	if err != nil || found {
		return uid, err
	}
	if uid, err = statusUID(pid); err != nil {
		return 0, err
	}
	if ended(raw, 0) {
		return 0, errors.New("the process has ended")
	}
	return uid, nil
}

// statusUID is the real uid of a process by proc(5).
func statusUID(pid int) (int, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			if all := strings.Fields(rest); len(all) > 0 {
				return strconv.Atoi(all[0])
			}
		}
	}
	return 0, errors.New("/proc does not tell the uid")
}
