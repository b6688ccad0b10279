package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// crashRoom is how much of what a worker writes to its standard error is kept,
// in bytes.
const crashRoom = 16 << 10

// process is the pool's side of a worker. Only who took it from the idle ones
// uses its connection.
type process struct {
	pid    int
	pidfd  int
	os     *os.Process
	conn   *os.File
	raw    syscall.RawConn
	crash  *os.File
	statm  *os.File
	gone   chan struct{} // closed when the process has been reaped
	state  *os.ProcessState
	layers Layers // 0 until the worker is ready; the pool's mutex guards it

	sequence uint64
	jobs     int
	busy     time.Duration
	base     int64 // resident bytes when idle for the first time
	greedy   atomic.Bool
	buffer   []byte
	head     [requestHead + maxName]byte
}

// start starts a worker; it must run on a thread that lives as long as the
// worker shall.
func start(o *Options) (p *process, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	keep := func(f *os.File, err error) (*os.File, error) {
		if err == nil {
			files = append(files, f)
		}
		return f, err
	}
	null, err := keep(os.OpenFile(os.DevNull, os.O_RDWR, 0))
	if err != nil {
		return nil, err
	}
	scratch, err := keep(temporary(o.Directory))
	if err != nil {
		return nil, fmt.Errorf("temporary space: %w", err)
	}
	crash, err := crashFile()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		crash.Close()
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs, _ := keep(os.NewFile(uintptr(pair[1]), "worker"), nil)
	for _, fd := range pair {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*maxRequest) // the default is enough, as a rule
	}
	_ = unix.SetNonblock(pair[0], true)
	p = &process{conn: os.NewFile(uintptr(pair[0]), "worker"), crash: crash, gone: make(chan struct{}), buffer: make([]byte, answerHead+piece)}
	if p.raw, err = p.conn.SyscallConn(); err == nil {
		err = p.execute(o, []*os.File{null, null, crash, theirs, scratch})
	}
	if err != nil {
		p.conn.Close()
		crash.Close()
		return nil, err
	}
	go p.reap(p.pidfd)
	return p, nil
}

// execute starts the program, with as many name spaces as the kernel grants.
func (p *process) execute(o *Options, files []*os.File) error {
	s := settings{memory: o.Memory, scratch: o.Scratch, cpu: int64(cpuLimit(o) / time.Second), processors: int64(o.Processors)}
	sys := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC}
	if os.Geteuid() == 0 {
		sys.Credential = &syscall.Credential{Uid: o.UID, Gid: o.GID}
		s.ownUser = 1
		s.layers |= User
	} else {
		sys.Cloneflags |= unix.CLONE_NEWUSER
		s.ownNamespace = 1
	}
	s.layers |= Network
	p.pidfd, sys.PidFD = -1, &p.pidfd
	program := func() (*os.Process, error) {
		return os.StartProcess(ownProgram, []string{processName, stageOne, s.String()},
			&os.ProcAttr{Dir: "/", Env: []string{}, Files: files, Sys: sys})
	}
	var err error
	p.os, err = program()
	if err != nil {
		// Containers and some distributions grant no name spaces.
		sys.Cloneflags, s.ownNamespace = 0, 0
		s.layers &^= Network
		if p.os, err = program(); err != nil {
			return err
		}
	}
	p.pid = p.os.Pid
	p.statm, err = os.Open(fmt.Sprintf("/proc/%d/statm", p.pid))
	if err != nil {
		p.statm = nil
	}
	return nil
}

// cpuLimit is the CPU time of a worker's whole life: a last resort for one that
// the pool cannot kill.
func cpuLimit(o *Options) time.Duration {
	return max(10*time.Minute, 20*o.Deadline)
}

// crashFile is a file in memory that takes the beginning of what is written to
// it.
func crashFile() (*os.File, error) {
	f, err := memoryFile("stderr")
	if err != nil {
		return nil, err
	}
	if err = f.Truncate(crashRoom); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// temporary is a file without a name in a directory, or in memory.
func temporary(directory string) (*os.File, error) {
	if directory == "" {
		return memoryFile("scratch")
	}
	f, err := os.OpenFile(directory, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err == nil {
		return f, nil
	}
	f, err = os.CreateTemp(directory, ".worker-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// reap waits until the process has ended, without holding a thread meanwhile
// where the kernel has pidfds.
func (p *process) reap(pidfd int) {
	if pidfd >= 0 {
		_ = unix.SetNonblock(pidfd, true)
		f := os.NewFile(uintptr(pidfd), "pidfd")
		if raw, err := f.SyscallConn(); err == nil {
			_ = raw.Read(func(fd uintptr) bool {
				n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
				return n > 0 || err != nil && err != unix.EINTR
			})
		}
		f.Close()
	}
	p.state, _ = p.os.Wait()
	close(p.gone)
}

// kill ends the process and waits until it is gone. It may be called more than
// once, and from any goroutine.
func (p *process) kill() {
	_ = p.os.Kill() // it may have ended
	<-p.gone
}

// close frees what the pool has of a process that is gone.
func (p *process) close() {
	p.conn.Close()
	p.crash.Close()
	if p.statm != nil {
		p.statm.Close()
	}
}

// greet waits for the worker's first words: the layers that are on.
func (p *process) greet(timeout time.Duration) (Layers, error) {
	_ = p.conn.SetDeadline(time.Now().Add(timeout))
	kind, hello, err := p.answer(0, 8)
	if err != nil {
		return 0, err
	}
	if kind != kindHello || len(hello) != 8 {
		return 0, &Failure{Kind: ErrGarbage, How: "not the first words of a worker"}
	}
	p.base, _ = p.resident()
	return Layers(binary.LittleEndian.Uint32(hello)) & allLayers, nil
}

// resident is the memory of the process in bytes, without files in memory.
func (p *process) resident() (int64, bool) {
	if p.statm == nil {
		return 0, false
	}
	var b [256]byte
	n, _ := p.statm.ReadAt(b[:], 0)
	pages := statmPages(b[:n], statmResident) - statmPages(b[:n], statmShared)
	return pages * int64(os.Getpagesize()), pages > 0
}

// answer reads one answer of at most limit bytes.
func (p *process) answer(sequence uint64, limit int) (kind byte, b []byte, err error) {
	n, err := p.packet()
	if err != nil {
		return 0, nil, err
	}
	h, rest, err := decodeAnswer(p.buffer[:n])
	switch {
	case err != nil:
		return 0, nil, &Failure{Kind: ErrGarbage, How: err.Error()}
	case h.sequence != sequence:
		return 0, nil, &Failure{Kind: ErrGarbage, How: "the answer to another request"}
	case h.kind == kindError && h.length > maxLine, h.kind != kindError && int64(h.length) > int64(limit):
		return 0, nil, &Failure{Kind: ErrGarbage, How: fmt.Sprintf("an answer of %d bytes", h.length)}
	}
	b = make([]byte, 0, h.length)
	for {
		if len(rest) > int(h.length)-len(b) || len(rest) == 0 && h.length > 0 {
			return 0, nil, &Failure{Kind: ErrGarbage, How: "an answer of another length than it says"}
		}
		b = append(b, rest...)
		if len(b) == int(h.length) {
			return h.kind, b, nil
		}
		if n, err = p.packet(); err != nil {
			return 0, nil, err
		}
		rest = p.buffer[:n]
	}
}

// errHungUp means that the worker closed its socket, or has ended.
var errHungUp = errors.New("hung up")

// packet reads a packet into the buffer, waiting until the deadline.
func (p *process) packet() (n int, err error) {
	var failed error
	err = p.raw.Read(func(fd uintptr) bool {
		n, failed = receive(int(fd), p.buffer)
		return failed != unix.EAGAIN
	})
	switch {
	case err != nil:
		return 0, err
	case errors.Is(failed, errLong):
		return 0, &Failure{Kind: ErrGarbage, How: failed.Error()}
	case failed == unix.ECONNRESET, failed == nil && n == 0:
		return 0, errHungUp
	}
	return n, failed
}

// send sends a request with its descriptors. errHungUp means that the worker
// has seen nothing of it.
func (p *process) send(r *Request, h requestHeader, body []byte, files []*os.File) error {
	h.name = byte(len(r.Job))
	h.encode((*[requestHead]byte)(p.head[:requestHead]))
	head := append(p.head[:requestHead], r.Job...)
	parts := [][]byte{head, nil, body}
	if h.flags&argsApart == 0 {
		parts[1] = r.Args
	}
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	var failed error
	err := p.raw.Write(func(fd uintptr) bool {
		_, failed = unix.SendmsgBuffers(int(fd), parts, rights, nil, unix.MSG_NOSIGNAL)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err == nil {
		err = failed
	}
	if err == unix.EPIPE || err == unix.ECONNRESET {
		return errHungUp
	}
	return err
}

// death is how a process that is gone has ended.
func (p *process) death() *Failure {
	b := make([]byte, crashRoom)
	n, _ := p.crash.ReadAt(b, 0)
	b = b[:n]
	for i, c := range b {
		if c == 0 {
			b = b[:i]
			break
		}
	}
	f := &Failure{Kind: ErrDied, How: "it ended", Trace: clean(b, 4<<10)}
	if p.state == nil {
		return f
	}
	status, _ := p.state.Sys().(syscall.WaitStatus)
	switch {
	case p.greedy.Load():
		f.How = "killed for taking too much memory"
	case status.Signaled() && status.Signal() == syscall.SIGSYS:
		f.How = "killed for a forbidden system call"
	case status.Signaled():
		f.How = fmt.Sprintf("killed by signal %d", int(status.Signal()))
	default:
		f.How = fmt.Sprintf("exit status %d", status.ExitStatus())
	}
	if first := firstLine(b); first != "" {
		f.How += ", " + first
	}
	return f
}

// firstLine is the first line of a crash.
func firstLine(b []byte) string {
	for i, c := range b {
		if c == '\n' {
			b = b[:i]
			break
		}
	}
	return clean(b, maxLine)
}
