package program

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How a starter is called: the name, the mark, the daemon's number, the accounts
// and, if it has a keeper, the number of its life.
const (
	starterName = "postern: programs"
	starterMark = "start-programs"
	controlFD   = 3
)

// Main does the program's work as a process that starts programs, if it has been
// started as one by a Starter, and does not return then. Otherwise it does
// nothing. It is to be called first in main, and in TestMain of tests that start
// programs.
func Main() {
	if len(os.Args) < 4 || len(os.Args) > 5 || os.Args[0] != starterName || os.Args[1] != starterMark {
		return
	}
	// Who stops the service signals all of its processes, and the daemon may still
	// need its programs. These get their signals as they are by default.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
	runtime.LockOSThread() // a keeper's starter is killed when the thread that started it ends
	work := startPrograms
	if os.Args[3] != "" && len(os.Args) == 4 {
		work = keep
	}
	if err := work(os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "postern: the process that starts programs: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// server is the starter's side.
type server struct {
	daemon   int32 // the only process that may ask
	life     uint64
	accounts []Account
	null     int
	report   *report
	list     childList
	bell     chan struct{}

	mu      sync.Mutex
	live    map[int]uint64 // the ids of programs by their process numbers
	byID    map[uint64]int
	pending []ended
	timer   *time.Timer
	waiting bool // for the timer
}

// startPrograms serves the daemon until it hangs up.
func startPrograms(args []string) error {
	s := &server{bell: make(chan struct{}, 1), live: map[int]uint64{}, byID: map[uint64]int{}}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	s.daemon = int32(pid)
	if s.accounts, err = parseAccounts(args[1]); err != nil {
		return err
	}
	if len(args) > 2 {
		if s.life, err = strconv.ParseUint(args[2], 10, 16); err != nil {
			return err
		}
	}
	if err := s.prepare(); err != nil {
		return err
	}
	go s.reap()
	s.tell(answer{kind: kindReady})
	offMain(s.serve)
	return nil
}

// offMain does work on a thread of its own, which is not the first: the kernel
// gives orphans to that, and so they are its only children.
func offMain(work func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // programs are killed when the thread that started them ends
		if unix.Gettid() == os.Getpid() {
			offMain(work)
		} else {
			work()
		}
		close(done)
		select {} // with its thread, until the process ends
	}()
	<-done
}

// serve does as it is told until the daemon hangs up.
func (s *server) serve() {
	for {
		id, kind, body, fds, err := s.receive()
		if err != nil {
			s.end()
			return
		}
		switch kind {
		case kindStart, kindStartApart:
			if id>>lifeShift == s.life { // else it has been told that it is lost
				s.start(id, kind, body, fds)
			}
		case kindKill:
			s.kill(id)
		}
		closeAll(fds)
	}
}

// confine makes the process what a starter or a keeper must be.
func confine() error {
	if err := closeOnExec(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	// Nobody of our user may look into this process, or take its descriptors.
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// prepare gets what the starter needs.
func (s *server) prepare() (err error) {
	// Once confined it may not write there. Without /proc there is nothing to do.
	_ = unspare("/proc/self/oom_score_adj")
	if err := confine(); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(controlFD, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if s.null, err = unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	if s.report, err = newReport(); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	s.list.open()
	return nil
}

// unspare has the kernel, when it is short of memory, not spare this process, and
// so none of its programs, where it spares the daemon.
func unspare(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || n >= 0 {
		return err
	}
	return os.WriteFile(file, []byte("0"), 0)
}

// onlyUsers is whether programs are run as the accounts' users only.
func (s *server) onlyUsers() bool { return len(s.accounts) > 0 }

// closeOnExec sees to it that no descriptor of this process is left open in a
// program: who started the daemon may have left it some.
func closeOnExec() error {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, f := range files {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// receive waits for the next packet of the daemon's. Others' are dropped.
func (s *server) receive() (id uint64, kind byte, body []byte, fds []int, err error) {
	b, oob := make([]byte, packetHead+inline), make([]byte, unix.CmsgSpace(4*(MaxFile+3))+unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, oobn, flags, _, err := unix.Recvmsg(controlFD, b, oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS):
			time.Sleep(time.Millisecond)
			continue
		case err != nil:
			return 0, 0, nil, nil, err
		case n == 0:
			return 0, 0, nil, nil, errors.New("the daemon has hung up")
		}
		sender, fds := parseControl(oob[:oobn])
		if n < packetHead || flags&unix.MSG_TRUNC != 0 || sender != s.daemon {
			closeAll(fds)
			continue
		}
		id, kind := leUint64(b[1:]), b[0]
		if flags&unix.MSG_CTRUNC != 0 { // we have too many descriptors open
			s.fail(id, stepFiles, unix.EMFILE)
			closeAll(fds)
			continue
		}
		return id, kind, b[packetHead:n], fds, nil
	}
}

// parseControl reads who has sent a packet, and the descriptors that it came
// with.
func parseControl(oob []byte) (sender int32, fds []int) {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		if c, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			sender = c.Pid
		} else if more, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, more...)
		}
	}
	return sender, fds
}

// start starts what a packet asks for.
func (s *server) start(id uint64, kind byte, body []byte, fds []int) {
	if kind == kindStartApart {
		if len(fds) == 0 {
			s.fail(id, stepRequest, unix.EINVAL)
			return
		}
		var err error
		if body, err = readApart(fds[len(fds)-1]); err != nil {
			s.fail(id, stepRequest, unix.ENOMEM)
			return
		}
		fds = fds[:len(fds)-1]
	}
	r, err := parseRequest(body)
	if err != nil {
		s.fail(id, stepRequest, unix.EINVAL)
		return
	}
	s.launch(id, r, fds)
}

// maxCoded bounds a request in its coding.
const maxCoded = MaxSpec + 4*(2*maxWords+16) + 1024

// readApart reads a request from its file.
func readApart(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size > maxCoded {
		return nil, unix.E2BIG
	}
	b := make([]byte, st.Size)
	for done := 0; done < len(b); {
		n, err := unix.Pread(fd, b[done:], int64(done))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
		if n == 0 && err == nil {
			return nil, unix.EINVAL
		}
		done += max(n, 0)
	}
	return b, nil
}

func (s *server) fail(id uint64, at step, errno unix.Errno) {
	s.tell(answer{kind: kindFailed, id: id, numbers: [4]int64{int64(at), int64(errno)}})
}

// tell tells the daemon something. A daemon that is gone is seen elsewhere.
func (*server) tell(a answer) { tell(a) }

func tell(a answer) {
	b := a.encode()
	for {
		if err := unix.Sendmsg(controlFD, b, nil, nil, unix.MSG_NOSIGNAL); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// kill kills a program, if it still runs; the rest is done at its end.
func (s *server) kill(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pid, ok := s.byID[id]; ok {
		_ = unix.Kill(-pid, unix.SIGKILL)
	}
}

// born wakes the reaper, which sleeps while there are no children.
func (s *server) born() {
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

// endTimeout is how long the end of all programs may take.
const endTimeout = 5 * time.Second

// end kills everything.
func (s *server) end() {
	for start := time.Now(); time.Since(start) < endTimeout; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		for pid := range s.live {
			_ = unix.Kill(-pid, unix.SIGKILL)
		}
		s.look()
		_, err := nextEnded(unix.WNOHANG)
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}
