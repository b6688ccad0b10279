package program

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// plan is a program ready to be started. All that the child needs is worked out
// before: it runs between the fork and the program's first instruction, where
// nothing may be allocated, locked or scheduled.
type plan struct {
	path, dir  *byte
	args, env  []*byte // the last is nil
	files      []move
	limits     []limit
	last       []limit // those that must not be set before the descriptors are there
	user       bool
	uid, gid   uintptr
	groups     []uint32
	parent     uintptr // the number of this process
	report     *report
	oldMask    uint64
	fullMask   uint64
	emptyMask  uint64
	zeroAction [8]uint64
}

// move gives a descriptor its number; from is above all numbers that are given.
type move struct{ from, to uintptr }

// limit is a resource and its limits.
type limit struct {
	resource uintptr
	value    unix.Rlimit
}

// report is where a child that fails says why, in memory that it shares with its
// parent.
type report struct {
	step  int32
	errno int32
}

// newReport maps shared memory, for the life of the process.
func newReport() (*report, error) {
	b, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	return (*report)(unsafe.Pointer(&b[0])), nil
}

// run starts the program, and returns when it is executed or has failed. It must
// always run on the same thread, which must not end: the kernel kills the
// programs then.
func (p *plan) run() (pid int, at step, errno unix.Errno) {
	p.report.step, p.report.errno = 0, 0
	p.fullMask = ^uint64(0)
	n, e := p.fork()
	runtime.KeepAlive(p)
	if e != 0 {
		return 0, stepFork, e
	}
	if p.report.step != 0 {
		return int(n), step(p.report.step), unix.Errno(p.report.errno)
	}
	return int(n), stepNone, 0
}

// lastSignal is the highest number of a signal.
const lastSignal = 64

// fork makes the child, which never returns from here: it becomes the program, or
// reports and ends. It has no other threads, and it may share this one's memory,
// so it makes system calls and does nothing else. The parent sleeps meanwhile.
//
//go:noinline
//go:norace
//go:nosplit
//go:nocheckptr
func (p *plan) fork() (pid uintptr, errno syscall.Errno) {
	// A signal's handler of ours must not run in the child.
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&p.fullMask)), uintptr(unsafe.Pointer(&p.oldMask)), 8, 0, 0)
	pid, errno = vfork()
	if errno != 0 || pid != 0 {
		syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&p.oldMask)), 0, 8, 0, 0)
		return pid, errno
	}
	p.become()
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 126, 0, 0)
	}
}

// become turns the child into the program. It returns only if it has failed, and
// reported why.
//
//go:noinline
//go:norace
//go:nosplit
//go:nocheckptr
func (p *plan) become() {
	var e syscall.Errno
	for n := uintptr(1); n <= lastSignal; n++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&p.zeroAction)), 0, 8, 0, 0) // some cannot be changed
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); e != 0 {
		p.failed(stepSession, e)
		return
	}
	syscall.RawSyscall(unix.SYS_UMASK, 0o077, 0, 0)
	// What a service lets the daemon do beside its user is for the daemon alone. Old
	// kernels do not know of it, and nobody has it there.
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0)
	for i := range p.limits {
		if e = p.limits[i].set(); e != 0 {
			p.failed(stepLimits, e)
			return
		}
	}
	for i := range p.files {
		if _, _, e = syscall.RawSyscall(unix.SYS_DUP3, p.files[i].from, p.files[i].to, 0); e != 0 {
			p.failed(stepFiles, e)
			return
		}
	}
	for i := range p.last {
		if e = p.last[i].set(); e != 0 {
			p.failed(stepLimits, e)
			return
		}
	}
	if p.user {
		if e = p.changeUser(); e != 0 {
			p.failed(stepUser, e)
			return
		}
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(p.dir)), 0, 0); e != 0 {
		p.failed(stepDirectory, e)
		return
	}
	// A change of the user would undo this.
	if _, _, e = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0); e != 0 {
		p.failed(stepParent, e)
		return
	}
	if parent, _, _ := syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); parent != p.parent {
		p.failed(stepParent, syscall.ESRCH)
		return
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&p.emptyMask)), 0, 8, 0, 0)
	_, _, e = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p.path)), uintptr(unsafe.Pointer(&p.args[0])), uintptr(unsafe.Pointer(&p.env[0])))
	p.failed(stepExec, e)
}

//go:noinline
//go:norace
//go:nosplit
//go:nocheckptr
func (l *limit) set() syscall.Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, l.resource, uintptr(unsafe.Pointer(&l.value)), 0, 0, 0)
	return e
}

//go:noinline
//go:norace
//go:nosplit
//go:nocheckptr
func (p *plan) changeUser() (e syscall.Errno) {
	groups := uintptr(0)
	if len(p.groups) > 0 {
		groups = uintptr(unsafe.Pointer(&p.groups[0]))
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(p.groups)), groups, 0); e != 0 {
		return e
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_SETRESGID, p.gid, p.gid, p.gid); e != 0 {
		return e
	}
	_, _, e = syscall.RawSyscall(unix.SYS_SETRESUID, p.uid, p.uid, p.uid)
	return e
}

//go:noinline
//go:norace
//go:nosplit
//go:nocheckptr
func (p *plan) failed(at step, e syscall.Errno) {
	p.report.step, p.report.errno = int32(at), int32(e)
}
