//go:build amd64 || arm64

package program

import "syscall"

// vfork forks this process; the parent sleeps until the child has executed a
// program or ended. The child runs in the parent's memory, and on its stack,
// which is what makes it cheap: no page table is copied.
//
//go:noescape
func vfork() (pid uintptr, errno syscall.Errno)
