package program

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cString is a string for the kernel; NULs have been refused.
func cString(s string) *byte {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		p, _ = unix.BytePtrFromString(strings.ReplaceAll(s, "\x00", ""))
	}
	return p
}

func cStrings(all []string) []*byte {
	list := make([]*byte, 0, len(all)+1)
	for _, s := range all {
		list = append(list, cString(s))
	}
	return append(list, nil)
}

// plan works out what a request means; fds are its descriptors, which stay the
// caller's. opened are those that are to be closed, too.
func (s *server) plan(r *request, fds []int) (p *plan, opened []int, at step, err error) {
	if len(fds) != len(r.files) {
		return nil, nil, stepRequest, errors.New("other descriptors than it names")
	}
	highest := 2
	for _, n := range r.files {
		highest = max(highest, int(n))
	}
	p = &plan{
		path: cString(r.path), dir: cString(r.dir), args: cStrings(r.args), env: cStrings(r.env),
		parent: uintptr(os.Getpid()), report: s.report,
	}
	given := map[int]bool{}
	lift := func(fd, to int) error {
		if fd <= highest {
			above, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, highest+1)
			if err != nil {
				return err
			}
			fd = above
			opened = append(opened, fd)
		}
		given[to] = true
		p.files = append(p.files, move{uintptr(fd), uintptr(to)})
		return nil
	}
	for i, n := range r.files {
		if err := lift(fds[i], int(n)); err != nil {
			return nil, opened, stepFiles, err
		}
	}
	for n := range 3 {
		if given[n] {
			continue
		}
		if err := lift(s.null, n); err != nil {
			return nil, opened, stepFiles, err
		}
	}
	if r.account >= 0 {
		if r.account >= len(s.accounts) {
			return nil, opened, stepUser, unix.EPERM
		}
		a := &s.accounts[r.account]
		p.user, p.uid, p.gid, p.groups = true, uintptr(a.UID), uintptr(a.GID), a.Groups
	} else if s.onlyUsers() {
		return nil, opened, stepUser, unix.EPERM
	}
	s.limit(p, r)
	return p, opened, stepNone, nil
}

// limit works out the limits of a program: never more than this process may use.
func (s *server) limit(p *plan, r *request) {
	set := func(list *[]limit, resource int, value, beyond int64) {
		if value == Unlimited {
			return
		}
		l := limit{resource: uintptr(resource), value: unix.Rlimit{Cur: uint64(value), Max: uint64(value + beyond)}}
		var now unix.Rlimit
		if unix.Getrlimit(resource, &now) == nil {
			l.value.Max = min(l.value.Max, now.Max)
			l.value.Cur = min(l.value.Cur, l.value.Max)
		}
		*list = append(*list, l)
	}
	if !raceDetector || !isSelf(r.path) {
		set(&p.limits, unix.RLIMIT_DATA, r.limits.Memory, 0)
	}
	set(&p.limits, unix.RLIMIT_FSIZE, r.limits.FileSize, 0)
	set(&p.limits, unix.RLIMIT_CPU, r.limits.CPU, 1)
	set(&p.limits, unix.RLIMIT_CORE, 0, 0)
	set(&p.last, unix.RLIMIT_NOFILE, r.limits.Files, 0)
}

// isSelf reports whether a program is this one.
func isSelf(path string) bool {
	a, err1 := os.Stat(path)
	b, err2 := os.Stat("/proc/self/exe")
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// A program that is being written, perhaps by a process that is about to close
// its copy of the descriptor, is tried for so long.
const (
	busyTries = 50
	busyPause = 2 * time.Millisecond
)

// launch starts a program and tells so. It runs on the one thread that starts
// programs.
func (s *server) launch(id uint64, r *request, fds []int) {
	p, opened, at, err := s.plan(r, fds)
	defer closeAll(opened)
	if err != nil {
		errno := unix.EINVAL
		errors.As(err, &errno)
		s.tell(answer{kind: kindFailed, id: id, numbers: [4]int64{int64(at), int64(errno)}})
		return
	}
	for try := 0; ; try++ {
		errno := unix.Errno(0)
		at, errno = s.begin(id, p)
		if errno == unix.ETXTBSY && try < busyTries {
			time.Sleep(busyPause)
			continue
		}
		if at != stepNone {
			s.tell(answer{kind: kindFailed, id: id, numbers: [4]int64{int64(at), int64(errno)}})
		}
		runtime.KeepAlive(p)
		return
	}
}

// begin forks, and enters the program before anybody can see its end.
func (s *server) begin(id uint64, p *plan) (at step, errno unix.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, at, errno := p.run()
	if at != stepNone {
		if at != stepFork {
			for errors.Is(wait(pid, nil, nil), unix.EINTR) {
			}
		}
		return at, errno
	}
	s.live[pid], s.byID[id] = id, pid
	s.tell(answer{kind: kindStarted, id: id, numbers: [4]int64{int64(pid)}})
	s.lookAgain()
	s.born()
	return stepNone, 0
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
