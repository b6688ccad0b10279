package worker

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the filter answers (seccomp(2)).
const (
	retAllow = unix.SECCOMP_RET_ALLOW
	retKill  = unix.SECCOMP_RET_KILL_PROCESS
	retErrno = unix.SECCOMP_RET_ERRNO
)

// The parts of struct seccomp_data, by offset in bytes; both architectures are
// little-endian, so an argument's low word comes first.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

// allowed is the system calls that the Go runtime and C threads make, and those
// that jobs need: reading and writing descriptors that they have.
func allowed() []uint32 {
	return append([]uint32{
		unix.SYS_FUTEX, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_WRITE, unix.SYS_PWRITE64,
		unix.SYS_MADVISE, unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MINCORE, unix.SYS_BRK, unix.SYS_CLOSE,
		unix.SYS_FSTAT, unix.SYS_LSEEK, unix.SYS_FTRUNCATE, unix.SYS_DUP, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT,
		unix.SYS_EVENTFD2, unix.SYS_PIPE2, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
		unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN,
		unix.SYS_SIGALTSTACK, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETRANDOM, unix.SYS_GETRUSAGE, unix.SYS_SET_ROBUST_LIST,
		unix.SYS_RSEQ, unix.SYS_MEMBARRIER, unix.SYS_RESTART_SYSCALL, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	}, allowedHere...)
}

// forbidden is what only a worker that has been taken over does: it is killed.
// Everything that is in no list fails with EPERM.
func forbidden() []uint32 {
	return append([]uint32{
		unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
		unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4,
		unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_SENDTO, unix.SYS_KILL, unix.SYS_TKILL, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_PIDFD_OPEN,
		unix.SYS_PIDFD_GETFD, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_KEYCTL, unix.SYS_ADD_KEY,
		unix.SYS_REQUEST_KEY, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT,
		unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETGROUPS,
		unix.SYS_CAPSET, unix.SYS_PERSONALITY, unix.SYS_SWAPON, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME,
	}, forbiddenHere...)
}

// program builds a filter. Every jump is short and forward.
type program []unix.SockFilter

func (p *program) add(code uint16, k uint32, jt, jf uint8) {
	*p = append(*p, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
}

func (p *program) load(offset uint32) { p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, 0, 0) }
func (p *program) ret(k uint32)       { p.add(unix.BPF_RET|unix.BPF_K, k, 0, 0) }

// on answers a system call without a look at its arguments.
func (p *program) on(number, ret uint32) {
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, number, 0, 1)
	p.ret(ret)
}

// onArg answers a system call by the low word of an argument: yes if test holds
// for it and k, else no.
func (p *program) onArg(number uint32, arg uint32, test uint16, k, yes, no uint32) {
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, number, 0, 4)
	p.load(dataArgs + 8*arg)
	p.add(unix.BPF_JMP|test|unix.BPF_K, k, 0, 1)
	p.ret(yes)
	p.ret(no)
}

// systemCalls is the filter of a process.
func systemCalls(pid int) []unix.SockFilter {
	var p program
	const denied = retErrno | uint32(unix.EPERM)
	p.load(dataArch)
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, auditArch, 1, 0)
	p.ret(retKill)
	p.load(dataNumber)
	if foreignNumbers != 0 {
		p.add(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, foreignNumbers, 0, 1)
		p.ret(retKill)
	}
	for _, n := range allowed() {
		p.on(n, retAllow)
	}
	// Memory may not become executable, threads are the only processes, a
	// process may only signal itself, descriptors may only be looked at.
	p.onArg(unix.SYS_MMAP, 2, unix.BPF_JSET, unix.PROT_EXEC, denied, retAllow)
	p.onArg(unix.SYS_MPROTECT, 2, unix.BPF_JSET, unix.PROT_EXEC, denied, retAllow)
	p.onArg(unix.SYS_CLONE, 0, unix.BPF_JSET, unix.CLONE_THREAD, retAllow, retKill)
	p.on(unix.SYS_CLONE3, retErrno|uint32(unix.ENOSYS)) // C tries clone next, whose flags can be seen
	p.onArg(unix.SYS_TGKILL, 0, unix.BPF_JEQ, uint32(pid), retAllow, retKill)
	p.onArg(unix.SYS_PRCTL, 0, unix.BPF_JEQ, unix.PR_SET_VMA, retAllow, denied)
	p.onArg(unix.SYS_FCNTL, 1, unix.BPF_JGT, unix.F_GETFL, denied, retAllow)
	for _, n := range forbidden() {
		p.on(n, retKill)
	}
	p.ret(denied)
	return p
}

// filterSystemCalls installs the filter for all threads. It cannot be undone.
func filterSystemCalls() error {
	if auditArch == 0 {
		return unix.ENOSYS
	}
	filter := systemCalls(os.Getpid())
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	n, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if n != 0 { // a thread that has another filter
		return os.NewSyscallError("seccomp", unix.ESRCH)
	}
	return nil
}
