package rcptcheck

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout is how long a starter may take until it is ready.
const startTimeout = 20 * time.Second

// starter is the daemon's side of the process that starts programs. It is started
// when it is needed, and again when it has died. It is safe for concurrent use.
type starter struct {
	programs atomic.Int32 // that it has, or is about to get

	mu      sync.Mutex
	control *net.UnixConn // nil: there is none
	ended   chan struct{} // closed when it has been reaped
	closed  bool
}

var errStarterGone = errors.New("the process that starts programs is gone")

// start asks for a program. The caller closes the files; extra may be nil. ended
// is closed when the process that starts it has gone.
func (s *starter) start(r *request, out, extra *os.File) (conn *net.UnixConn, ended chan struct{}, err error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, nil, err
	}
	if len(text) > maxRequest {
		return nil, nil, fmt.Errorf("its environment has %d bytes", len(text))
	}
	ours, theirs, err := socketpair(unix.SOCK_STREAM)
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	fds := []int{int(theirs.Fd()), int(out.Fd())}
	if extra != nil {
		fds = append(fds, int(extra.Fd()))
	}
	if ended, err = s.send(unix.UnixRights(fds...)); err != nil {
		ours.Close()
		return nil, nil, err
	}
	_ = ours.SetWriteDeadline(time.Now().Add(startTimeout))
	if _, err = ours.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)); err != nil {
		ours.Close()
		s.lost(ended)
		return nil, nil, fmt.Errorf("%w: %w", errStarterGone, err)
	}
	return ours, ended, nil
}

// send hands descriptors over, to a new process if the old one is gone.
func (s *starter) send(rights []byte) (ended chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for again := true; ; again = false {
		if s.closed {
			return nil, errors.New("the filter is closed")
		}
		if s.control == nil {
			if err := s.spawn(); err != nil {
				return nil, fmt.Errorf("the process that starts programs cannot be started: %w", err)
			}
		}
		_ = s.control.SetWriteDeadline(time.Now().Add(startTimeout))
		_, _, err := s.control.WriteMsgUnix([]byte{0}, rights, nil)
		if err == nil {
			return s.ended, nil
		}
		s.hangUp()
		if !again {
			return nil, fmt.Errorf("%w: %w", errStarterGone, err)
		}
	}
}

// lost sees to it that a process that was of no use is not asked again, if it has
// died: it may have hung up on one socket and not yet on the other.
func (s *starter) lost(ended chan struct{}) {
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == ended {
		s.hangUp()
	}
}

// spawn starts the process, and waits until it is ready.
func (s *starter) spawn() error {
	ours, theirs, err := socketpair(unix.SOCK_SEQPACKET)
	if err != nil {
		return err
	}
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		ours.Close()
		return err
	}
	defer null.Close()
	process, err := os.StartProcess("/proc/self/exe", []string{starterName, starterMark}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: []*os.File{null, null, os.Stderr, theirs},
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		ours.Close()
		return err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = process.Wait()
		close(ended)
	}()
	theirs.Close()
	var ready [1]byte
	_ = ours.SetReadDeadline(time.Now().Add(startTimeout))
	if n, err := ours.Read(ready[:]); n == 0 {
		ours.Close()
		_ = process.Kill()
		<-ended
		return errors.Join(errors.New("it is not ready"), err)
	}
	s.control, s.ended = ours, ended
	return nil
}

// hangUp leaves the process to end when its programs have.
func (s *starter) hangUp() {
	if s.control != nil {
		s.control.Close()
		s.control = nil
	}
}

// close ends the process, once its programs have ended.
func (s *starter) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.hangUp()
}

// socketpair makes a pair of sockets, ours and the one to give away.
func socketpair(kind int) (ours *net.UnixConn, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(pair[1]), "socket")
	file := os.NewFile(uintptr(pair[0]), "socket")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}
