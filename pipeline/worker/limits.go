package worker

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The limits of a worker's process.
const (
	maxFiles   = 64
	maxStack   = 2 << 20 // of threads that C makes
	maxThreads = 512     // of all workers of a user together
)

// setLimits sets what every later stage inherits.
func setLimits(s *settings) error {
	limits := []struct {
		name     string
		resource int
		value    int64
	}{
		{"core", unix.RLIMIT_CORE, 0},
		{"fsize", unix.RLIMIT_FSIZE, s.scratch},
		{"nofile", unix.RLIMIT_NOFILE, maxFiles},
		{"cpu", unix.RLIMIT_CPU, s.cpu},
		{"memlock", unix.RLIMIT_MEMLOCK, 0},
		{"msgqueue", unix.RLIMIT_MSGQUEUE, 0},
	}
	for _, l := range limits {
		if err := lower(l.resource, uint64(l.value)); err != nil {
			return os.NewSyscallError("setrlimit "+l.name, err)
		}
	}
	// The kernel counts a user's processes, not a program's: the limit is for
	// users that only workers have.
	if s.ownUser != 0 || s.ownNamespace != 0 {
		if err := lower(unix.RLIMIT_NPROC, maxThreads); err != nil {
			return os.NewSyscallError("setrlimit nproc", err)
		}
	}
	var stack unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_STACK, &stack) == nil && stack.Cur > maxStack {
		stack.Cur = maxStack
		_ = unix.Setrlimit(unix.RLIMIT_STACK, &stack) // only keeps the address space small
	}
	s.layers |= Limits
	return nil
}

// lower sets a limit for good, or leaves it if it is lower already.
func lower(resource int, value uint64) error {
	var now unix.Rlimit
	if err := unix.Getrlimit(resource, &now); err != nil {
		return err
	}
	value = min(value, now.Max)
	return unix.Setrlimit(resource, &unix.Rlimit{Cur: value, Max: value})
}

// limitMemory bounds the data of the process (heap, stacks, everything private
// and writable) to what it has now and as much more as it may have. It reports
// whether there is a limit. The race detector's shadow memory is larger than any
// limit.
func limitMemory(s settings) bool {
	if raceDetector || s.statm < 0 {
		return false
	}
	b := make([]byte, 256)
	n, err := unix.Pread(int(s.statm), b, 0)
	if err != nil {
		return false
	}
	data := statmPages(b[:n], statmData) * int64(os.Getpagesize())
	return data > 0 && lower(unix.RLIMIT_DATA, uint64(data+s.memory)) == nil
}

// The columns of /proc/PID/statm.
const (
	statmResident = 1
	statmShared   = 2
	statmData     = 5
)

// statmPages is a column of statm, 0 if it is not there.
func statmPages(b []byte, column int) int64 {
	fields := bytes.Fields(b)
	if column >= len(fields) {
		return 0
	}
	n, _ := strconv.ParseInt(string(fields[column]), 10, 64)
	return n
}

// dropPrivileges gives up every capability, for good.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) // not before Linux 4.3
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return os.NewSyscallError("capset", unix.Capset(&header, &none[0]))
}
