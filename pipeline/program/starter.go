package program

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout is how long a starter may take until it is ready, and to start a
// program.
const startTimeout = 20 * time.Second

// Options are what a Starter has. The zero value starts programs as the
// daemon's own user.
type Options struct {
	// Users are those that programs may run as, and then no program runs as
	// another one. The daemon must be root when the process that starts programs
	// is run, see Ready.
	Users []Account
	// Died, if it is set, is told when the process that starts programs has died,
	// and how. It must not call the Starter.
	Died func(err error)
}

// Starter is the daemon's side of a process that starts programs. That is run
// when it is first needed, and again when it has died. It is safe for concurrent
// use.
type Starter struct {
	options Options
	timeout time.Duration // startTimeout, but for tests

	mu     sync.Mutex
	child  *child // nil: there is none
	closed bool
}

// New makes a Starter.
func New(o Options) *Starter { return &Starter{options: o, timeout: startTimeout} }

// Ready runs the process that starts programs now, if it does not run: a daemon
// that is about to give up root calls it before.
func (s *Starter) Ready() error {
	_, err := s.get()
	return err
}

// Start starts a program. The error is a *StartError, or says what is wrong with
// the spec; none is about a message. The caller owns the process, and should
// Wait for its end.
func (s *Starter) Start(spec Spec) (*Process, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	account, err := s.account(&spec)
	if err != nil {
		return nil, err
	}
	r := request{path: spec.Path, dir: spec.Dir, args: spec.Args, env: spec.Env, account: account, limits: spec.Limits.withDefaults()}
	if r.dir == "" {
		r.dir = "/"
	}
	if len(r.args) == 0 {
		r.args = []string{spec.Path}
	}
	var fds []int
	for n, f := range spec.Files {
		fd := int(f.Fd())
		if fd < 0 {
			return nil, fmt.Errorf("%s: descriptor %d: %w", spec.Path, n, os.ErrClosed)
		}
		r.files, fds = append(r.files, byte(n)), append(fds, fd)
	}
	body, kind := r.append(nil), byte(kindStart)
	if len(body) > inline {
		apart, err := apart(body)
		if err != nil {
			return nil, &StartError{Path: spec.Path, Kind: ErrShortage, Err: err}
		}
		defer apart.Close()
		body, kind, fds = nil, kindStartApart, append(fds, int(apart.Fd()))
	}
	p, err := s.ask(kind, body, fds)
	runtime.KeepAlive(spec.Files) // their descriptors are theirs until here
	if err != nil {
		return nil, &StartError{Path: spec.Path, Kind: kindOf(err), Err: err}
	}
	if err := p.begin(spec.Path); err != nil {
		return nil, err
	}
	return p, nil
}

// kindOf is which of our errors an error of the starter's is.
func kindOf(err error) error {
	for _, kind := range []error{ErrClosed, ErrGone} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return ErrShortage
}

// account is the place of a spec's user among the options' users.
func (s *Starter) account(spec *Spec) (int, error) {
	for i := range s.options.Users {
		if spec.User != "" && s.options.Users[i].Is(spec.User) {
			return i, nil
		}
	}
	if spec.User == "" && len(s.options.Users) == 0 {
		return -1, nil
	}
	name := spec.User
	if name == "" {
		name = "the daemon's own"
	}
	return 0, &StartError{Path: spec.Path, Kind: ErrUser, Err: fmt.Errorf("user %q", name)}
}

// apart is a file in memory that holds a request.
func apart(body []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("request", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "request")
	if _, err := f.Write(body); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// get is the process that starts programs, run if need be.
func (s *Starter) get() (*child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.child != nil && !s.child.doomed.Load() {
		select {
		case <-s.child.lost:
		default:
			return s.child, nil
		}
	}
	c, err := s.spawn()
	if err != nil {
		return nil, fmt.Errorf("the process that starts programs cannot be started: %w", err)
	}
	s.child = c
	return c, nil
}

// ask sends a request, to a new process if the old one has not seen it.
func (s *Starter) ask(kind byte, body []byte, fds []int) (*Process, error) {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for again := true; ; again = false {
		c, err := s.get()
		if err != nil {
			return nil, err
		}
		p := c.add()
		if p == nil { // it was still there when we got it
			err = net.ErrClosed
		} else if err = c.send(append(head(kind, p.id), body...), rights); err == nil {
			return p, nil
		} else {
			c.forget(p)
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.hung()
			return nil, fmt.Errorf("%w: it does not listen", ErrGone)
		case !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, net.ErrClosed):
			return nil, err // too many descriptors are on their way, for instance
		case !again || !c.wait():
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
}

// Close ends the process that starts programs, and all programs.
func (s *Starter) Close() error {
	s.mu.Lock()
	c := s.child
	s.closed, s.child = true, nil
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	c.closing.Store(true)
	c.hangUp()
	t := time.NewTimer(endTimeout + time.Second)
	defer t.Stop()
	select {
	case <-c.lost:
		return nil
	case <-t.C:
	}
	_ = c.process.Kill() // a keeper is root's, and we may not be any more
	t.Reset(time.Second)
	select {
	case <-c.lost:
	case <-t.C:
	}
	return ErrStuck
}

// spawn runs the process, and waits until it is ready.
func (s *Starter) spawn() (*child, error) {
	if len(s.options.Users) > 0 && os.Geteuid() != 0 {
		return nil, errors.New("programs can be run as other users only by root: restart the daemon")
	}
	if os.Args[0] == starterName { // or each would run another one
		return nil, errors.New("the program does not call program.Main first")
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer null.Close()
	args := []string{starterName, starterMark, strconv.Itoa(os.Getpid()), accountsText(s.options.Users)}
	env := []string{}
	if raceDetector { // or its end takes a second
		env = append(env, "GORACE=atexit_sleep_ms=0")
	}
	process, err := os.StartProcess("/proc/self/exe", args, &os.ProcAttr{
		Dir: "/", Env: env, Files: []*os.File{null, null, os.Stderr, theirs},
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		ours.Close()
		return nil, err
	}
	theirs.Close()
	c := &child{control: ours, process: process, lost: make(chan struct{}), programs: map[uint64]*Process{}, died: s.options.Died, kept: len(s.options.Users) > 0, timeout: s.timeout}
	_ = ours.SetReadDeadline(time.Now().Add(s.timeout))
	if a, err := c.read(); err != nil || a.kind != kindReady {
		ours.Close()
		_ = process.Kill()
		_, _ = process.Wait()
		return nil, errors.Join(errors.New("it is not ready"), err)
	}
	_ = ours.SetReadDeadline(time.Time{})
	go c.listen()
	return c, nil
}

// socketpair makes a pair of sockets, ours and the one to give away.
func socketpair() (ours *net.UnixConn, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
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
