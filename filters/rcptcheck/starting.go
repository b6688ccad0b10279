package rcptcheck

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A starter is this program, run once more, that starts the programs: a process
// can only be given its limits before its first instruction by a parent that has
// them, and the daemon must not. The daemon sends it, on its control socket, a
// socket for each program, with the program's output and at most one descriptor
// more; there it writes the request, and gets the ending. When the daemon hangs
// up there, or dies, the program is killed, and so it is when the starter dies.

// How a starter is called.
const (
	starterName = "postern: rcptcheck"
	starterMark = "start-programs"
	controlFD   = 3
	maxRequest  = 8 << 20 // bytes
)

// request is what the daemon asks a starter for.
type request struct {
	Path string
	Args []string
	Env  []string
	// Extra is the number that the program shall know its third descriptor by; 0: it has none.
	Extra int
	// CPU is how many seconds of processor time it may use.
	CPU uint64
}

// ending is how a program ended.
type ending struct {
	Error  string             // why it was never started
	Status syscall.WaitStatus // otherwise
}

// limits are what a starter and its programs may use. Go and the C library reserve
// more address space than a program may have, but little of it is data. The race
// detector has more data than any machine.
func limits() map[int]uint64 {
	l := map[int]uint64{unix.RLIMIT_FSIZE: maxWrite, unix.RLIMIT_NOFILE: maxFiles, unix.RLIMIT_CORE: 0}
	if !raceDetector {
		l[unix.RLIMIT_DATA] = maxMemory
	}
	return l
}

// Main does the program's work as a starter, if it has been started as one by a
// filter of this package, and does not return then. Otherwise it does nothing.
// It is to be called first in main, and in TestMain of tests whose filters run
// programs.
func Main() {
	if len(os.Args) != 2 || os.Args[0] != starterName || os.Args[1] != starterMark {
		return
	}
	if err := startPrograms(); err != nil {
		fmt.Fprintf(os.Stderr, "rcptcheck: the process that starts programs: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// startPrograms serves the daemon until it hangs up.
func startPrograms() error {
	// Who stops the service signals all of its processes, and the daemon may still
	// need its programs. To ignore a signal would have the programs inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	if err := closeOnExec(); err != nil {
		return err
	}
	for resource, value := range limits() {
		if err := lowerLimit(resource, value); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	file := os.NewFile(controlFD, "control")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return err
	}
	control, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("its control socket is none")
	}
	if _, err := control.Write([]byte{0}); err != nil { // it is ready
		return err
	}
	var all sync.WaitGroup
	defer all.Wait()
	var oob [128]byte
	for {
		var one [1]byte
		n, oobn, _, _, err := control.ReadMsgUnix(one[:], oob[:])
		if err != nil || n == 0 {
			return nil
		}
		files, err := received(oob[:oobn])
		if err != nil || len(files) < 2 {
			closeFiles(files)
			continue
		}
		all.Go(func() { serve(files) })
	}
}

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

// lowerLimit lowers a limit of this process for good.
func lowerLimit(resource int, value uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(resource, &l); err != nil {
		return err
	}
	l.Max = min(l.Max, value)
	l.Cur = min(l.Cur, l.Max)
	return unix.Setrlimit(resource, &l)
}

// received are the descriptors that a message came with.
func received(oob []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, err
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// serve starts one program and tells its ending. The files are the socket to the
// daemon, the program's output, and what else it gets.
func serve(files []*os.File) {
	conn, err := net.FileConn(files[0])
	if err != nil {
		closeFiles(files)
		return
	}
	defer conn.Close()
	runtime.LockOSThread() // never unlocked: the kernel kills the program when its parent's thread ends
	var e ending
	pid, err := launch(conn, files[1:])
	closeFiles(files)
	if err != nil {
		e.Error = err.Error()
	} else {
		e.Status = attend(conn, pid)
	}
	_ = json.NewEncoder(conn).Encode(e) // the daemon may be gone
}

// launch reads a request and starts its program.
func launch(conn io.Reader, files []*os.File) (pid int, err error) {
	var r request
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxRequest {
		return 0, fmt.Errorf("a request of %d bytes", n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(conn, text); err != nil {
		return 0, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	out := files[0].Fd()
	fds := []uintptr{null.Fd(), out, out}
	if r.Extra > 0 && len(files) > 1 {
		for len(fds) < r.Extra {
			fds = append(fds, ^uintptr(0)) // closed
		}
		fds = append(fds, files[1].Fd())
	}
	pid, err = syscall.ForkExec(r.Path, append([]string{r.Path}, r.Args...), &syscall.ProcAttr{Dir: "/", Env: r.Env, Files: fds, Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}})
	if err != nil {
		return 0, err
	}
	// It has used no processor time yet, and its memory is bounded already.
	for resource, value := range map[int]uint64{unix.RLIMIT_CPU: r.CPU, unix.RLIMIT_AS: maxMemory} {
		_ = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: value, Max: value}, nil) // it may have ended
	}
	return pid, nil
}

// attend waits for the end of a program, kills it if the daemon hangs up, and
// kills what it leaves behind. It is not reaped before that, so that its number
// is still its own.
func attend(conn io.Reader, pid int) (status syscall.WaitStatus) {
	var mu sync.Mutex
	reaped := false
	kill := func() {
		if !reaped {
			_ = unix.Kill(-pid, unix.SIGKILL) // it may have left nothing
		}
	}
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		mu.Lock()
		defer mu.Unlock()
		kill()
	}()
	for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	mu.Lock()
	defer mu.Unlock()
	kill()
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); !errors.Is(err, unix.EINTR) {
			reaped = true
			return status
		}
	}
}
