package handoff

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a socket in bytes (unix(7)).
const maxSocketPath = 107

// Listen makes the socket at path, open to everybody (mode 0666). A socket
// that is there already is replaced if nobody answers on it; if somebody does,
// the error names the process. The socket appears under its name only when it
// is ready. Closing the listener does not remove it.
func Listen(path string) (*net.UnixListener, error) {
	if err := vacant(path); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	temporary := filepath.Join(filepath.Dir(path), "."+strconv.Itoa(os.Getpid())+".sock")
	if n := max(len(path), len(temporary)); n > maxSocketPath {
		return nil, fmt.Errorf("socket %s: the path is %d bytes too long for a socket; choose a shorter directory", path, n-maxSocketPath)
	}
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: temporary})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(temporary, 0o666)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temporary) //nolint:errcheck // the first error is what counts
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// vacant is nil if a socket may be put at path.
func vacant(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return errors.New("something that is no socket is there; remove it, or choose another path")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case err == nil:
		return held(fd)
	case err == unix.ECONNREFUSED || err == unix.ENOENT:
		return nil
	case err == unix.EAGAIN:
		return errors.New("another process listens there, and has no room for more callers; stop it first")
	case err == unix.EPROTOTYPE:
		return errors.New("another program listens there with a socket of another kind; choose another path")
	}
	return os.NewSyscallError("connect", err)
}

// held says who listens at the other end of a connection.
func held(fd int) error {
	who := "another process"
	if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
		who = fmt.Sprintf("process %d (uid %d)", cred.Pid, cred.Uid)
	}
	return fmt.Errorf("%s listens there already; stop it first", who)
}

// identity tells a file from another that took its name.
type identity struct{ dev, ino uint64 }

func identityOf(path string) (identity, bool) {
	st, err := os.Lstat(path)
	if err != nil {
		return identity{}, false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, false
	}
	return identity{uint64(sys.Dev), sys.Ino}, true
}
