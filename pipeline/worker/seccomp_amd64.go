package worker

import "golang.org/x/sys/unix"

// foreignNumbers is where the numbers of the x32 calls begin.
const (
	auditArch      = unix.AUDIT_ARCH_X86_64
	foreignNumbers = 0x40000000
)

var (
	allowedHere   = []uint32{unix.SYS_TIME}
	forbiddenHere = []uint32{unix.SYS_FORK, unix.SYS_VFORK}
)
