package shim

import (
	"syscall"
	"unsafe"
)

// PollFD is struct pollfd.
type PollFD struct {
	FD              int32
	Events, Revents int16
}

// What a PollFD waits for.
const (
	PollIn  = 1
	PollOut = 4
)

// Poll waits until one of p is ready; false: ms have passed.
func Poll(p []PollFD, ms int64) bool {
	for until := Now() + ms; ; {
		left := max(until-Now(), 0)
		t := syscall.NsecToTimespec(left * 1e6)
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			uintptr(unsafe.Pointer(&t)), 0, 0, 0)
		if errno == syscall.EINTR || errno == syscall.EAGAIN {
			continue
		}
		return errno != 0 || n > 0
	}
}

// Now is the monotonic clock in milliseconds.
func Now() int64 {
	const monotonic = 1
	var t syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, monotonic, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano() / 1e6
}

// Fcntl returns -1 for an error.
func Fcntl(fd, command, arg int) int {
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), uintptr(command), uintptr(arg))
	if errno != 0 {
		return -1
	}
	return int(n)
}

// Given reports whether the caller gave us fd. The runtime has put /dev/null, for reading and writing, where it did not.
func Given(fd int) bool {
	const null = 1<<8 | 3
	var st syscall.Stat_t
	flags := Fcntl(fd, syscall.F_GETFL, 0)
	if flags < 0 || syscall.Fstat(fd, &st) != nil {
		return false
	}
	return st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != null || flags&syscall.O_ACCMODE != syscall.O_RDWR
}

// Getenv returns "" for a variable that is not set.
func Getenv(name string) string {
	s, _ := syscall.Getenv(name)
	return s
}

// Number reads a plain decimal number; -1 if it is none. One that is greater than limit counts as limit.
func Number(s string, limit int) int {
	if s == "" {
		return -1
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return -1
		}
		n = min(n*10+int(c-'0'), limit)
	}
	return n
}

// Slurp returns at most limit bytes of a file; false if it cannot be read.
func Slurp(path string, limit int) ([]byte, bool) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	defer syscall.Close(fd)
	b := make([]byte, 0, 4096)
	for len(b) < limit {
		if len(b) == cap(b) {
			b = append(b, make([]byte, len(b))...)[:len(b)]
		}
		n, err := syscall.Read(fd, b[len(b):cap(b)])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, false
		}
		if n == 0 {
			break
		}
		b = b[:len(b)+n]
	}
	return b, true
}

// privileged reports whether the process has rights that its caller has not (AT_SECURE); when in doubt it has.
func privileged() bool {
	const secure = 23
	if syscall.Getuid() != syscall.Geteuid() || syscall.Getgid() != syscall.Getegid() {
		return true
	}
	b, ok := Slurp("/proc/self/auxv", 64<<10)
	if !ok {
		return true
	}
	const word = int(unsafe.Sizeof(uintptr(0)))
	for ; len(b) >= 2*word; b = b[2*word:] {
		entry := (*[2]uintptr)(unsafe.Pointer(unsafe.SliceData(b)))
		if entry[0] == secure {
			return entry[1] != 0
		}
	}
	return true
}
