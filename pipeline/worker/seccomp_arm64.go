package worker

import "golang.org/x/sys/unix"

const (
	auditArch      = unix.AUDIT_ARCH_AARCH64
	foreignNumbers = 0
)

var allowedHere, forbiddenHere []uint32
