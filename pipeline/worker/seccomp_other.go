//go:build !amd64 && !arm64

package worker

// There is no filter for this architecture.
const (
	auditArch      = 0
	foreignNumbers = 0
)

var allowedHere, forbiddenHere []uint32
