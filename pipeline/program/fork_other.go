//go:build riscv64 || loong64 || ppc64 || ppc64le

package program

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// vfork forks this process; the parent sleeps until the child has executed a
// program or ended.
//
//go:noinline
//go:norace
//go:nosplit
func vfork() (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_VFORK|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	return pid, errno
}
