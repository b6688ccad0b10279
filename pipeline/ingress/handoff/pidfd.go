package handoff

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reapWait is how long a process's parent may take to collect its exit status,
// before which the kernel does not tell it to us.
const reapWait = 5 * time.Second

// peerProcess is a pidfd of the process that made the connection. It fails if
// that has ended. The caller closes it.
func peerProcess(c *net.UnixConn, pid int) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var failed error
	if err = raw.Control(func(sock uintptr) {
		// Since Linux 6.5; it cannot be mistaken for a process that got the
		// same pid later.
		fd, failed = unix.GetsockoptInt(int(sock), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if failed == unix.ENOPROTOOPT {
			fd, failed = unix.PidfdOpen(pid, 0)
		}
	}); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, os.NewSyscallError("pidfd", failed)
	}
	f, err := processFile(fd)
	if err == nil && hungUp(raw) {
		f.Close()
		return nil, errGone
	}
	return f, err
}

// processFile makes a file of a pidfd that can be waited for without a thread.
func processFile(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// errUntold means that the kernel does not tell how the process ended.
var errUntold = errors.New("the kernel does not tell")

// awaitEnd waits until the process behind a pidfd has ended, and says how.
// Only a kernel since Linux 6.15 tells it to others than the parent.
func awaitEnd(ctx context.Context, process *os.File) (syscall.WaitStatus, error) {
	stop := context.AfterFunc(ctx, func() {
		process.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // pidfds have deadlines
	})
	defer stop()
	raw, err := process.SyscallConn()
	if err != nil {
		return 0, err
	}
	if err = raw.Read(func(fd uintptr) bool { return pollFD(int(fd), unix.POLLIN, 0) }); err != nil {
		return 0, err
	}
	ended(raw, reapWait)
	var status syscall.WaitStatus
	told := false
	err = raw.Control(func(fd uintptr) {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		if unix.IoctlPidfdInfo(int(fd), &info) == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			status, told = syscall.WaitStatus(info.Exit_code), true
		}
	})
	if err == nil && !told {
		err = errUntold
	}
	return status, err
}

// ended reports whether the process has ended and been reaped, which it waits
// for, a thread being held meanwhile.
func ended(raw controller, wait time.Duration) bool {
	gone := false
	err := raw.Control(func(fd uintptr) { gone = pollFD(int(fd), 0, wait) })
	return err == nil && gone
}

// pollFD waits until fd has one of the events, or has hung up.
func pollFD(fd int, events int16, wait time.Duration) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for until := time.Now().Add(wait); ; {
		n, err := unix.Poll(p, int(max(time.Until(until), 0).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		return err == nil && n > 0
	}
}

// probeEnd finds out, with a child of our own, whether this kernel tells how a
// process ended. Without a program to run the answer is no.
func probeEnd() bool {
	path, err := exec.LookPath("true")
	if err != nil {
		return false
	}
	fd := -1
	p, err := os.StartProcess(path, []string{"true"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{PidFD: &fd}})
	if err != nil {
		return false
	}
	if _, err = p.Wait(); err != nil || fd < 0 {
		return false
	}
	f, err := processFile(fd)
	if err != nil {
		return false
	}
	defer f.Close()
	status, err := awaitEnd(context.Background(), f)
	return err == nil && status.Exited() && status.ExitStatus() == 0
}
