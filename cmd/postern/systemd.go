package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstInherited is the first descriptor that a supervisor hands over
// (sd_listen_fds(3)).
const firstInherited = 3

// maxInherited bounds them.
const maxInherited = 64

// inheritListeners are the sockets that a supervisor opened for us, by place. It takes the variables that tell of them out of the environment, and
// keeps the sockets from programs that we start.
func inheritListeners() (map[string]socket, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name) //nolint:errcheck // the name is right
	}
	if fds == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxInherited {
		return nil, fmt.Errorf("LISTEN_FDS=%s: not a number of sockets", clean(fds))
	}
	handed := map[string]socket{}
	for fd := firstInherited; fd < firstInherited+n; fd++ {
		l, err := inherit(fd)
		if err != nil {
			return nil, fmt.Errorf("socket %d that the supervisor handed over: %w", fd, err)
		}
		handed[l.Addr().String()] = l
	}
	return handed, nil
}

// inherit makes a listener of a descriptor.
func inherit(fd int) (socket, error) {
	unix.CloseOnExec(fd)
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_SEQPACKET && kind != unix.SOCK_STREAM {
		return nil, errInherited
	}
	f := os.NewFile(uintptr(fd), "inherited")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	switch l := l.(type) {
	case *net.TCPListener:
		return l, nil
	case *net.UnixListener:
		l.SetUnlinkOnClose(false)
		if kind == unix.SOCK_SEQPACKET {
			return l, nil
		}
	}
	l.Close()
	return nil, errInherited
}

var errInherited = errors.New("use ListenSequentialPacket= with the path of an entrance for the shim, or ListenStream= with the address of an SMTP server")

// The states that a supervisor is told (sd_notify(3)).
const (
	stateReady    = "READY=1"
	stateStopping = "STOPPING=1"
)

// stateReloading must tell when the reloading began.
func stateReloading() string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return "RELOADING=1"
	}
	return "RELOADING=1\nMONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/1000, 10)
}

// notify tells the supervisor a state, if it wants to know.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	_, err = c.Write([]byte(state))
	return errors.Join(err, c.Close())
}
