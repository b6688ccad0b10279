package program

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfo is what waitid tells, as far as we look at it.
type siginfo struct {
	_   [3]int32
	_   [0]uintptr // the rest is aligned like a pointer
	pid int32
	_   [128]byte
}

// nextEnded waits until a child has ended and returns its number; it stays to be
// reaped. With unix.WNOHANG it is 0 if there is none yet. The error is ECHILD if
// there are no children.
func nextEnded(options int) (pid int, err error) {
	var info siginfo
	for {
		_, _, e := syscall.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), uintptr(unix.WEXITED|unix.WNOWAIT|options), 0, 0)
		if e == 0 {
			return int(info.pid), nil
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

// wait reaps a child that has ended.
func wait(pid int, status *unix.WaitStatus, usage *unix.Rusage) error {
	for {
		if _, err := unix.Wait4(pid, status, 0, usage); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

const (
	// lookEvery is how often processes outside of all programs' groups are looked
	// for while something runs.
	lookEvery = time.Second
	// patience is how long the end of a program is kept back for what it has left
	// behind, when that has been killed and does not end.
	patience = 2 * time.Second
)

// ended is the end of a program that nobody has been told of yet.
type ended struct {
	answer
	at time.Time
}

// reap waits for the ends of programs, and of what they leave behind, for ever.
func (s *server) reap() {
	for {
		pid, err := nextEnded(0)
		if err != nil { // there are no children
			s.mu.Lock()
			s.settle(0, true)
			s.mu.Unlock()
			<-s.bell
			continue
		}
		s.mu.Lock()
		if id, ok := s.live[pid]; ok {
			s.finish(pid, id)
		} else {
			_ = wait(pid, nil, nil)
		}
		s.look()
		s.mu.Unlock()
	}
}

// finish kills a program's group and reaps the program itself, in this order:
// until then nobody else can have its number. The server is locked.
func (s *server) finish(pid int, id uint64) {
	_ = unix.Kill(-pid, unix.SIGKILL) // it may have left nothing
	var status unix.WaitStatus
	var usage unix.Rusage
	_ = wait(pid, &status, &usage)
	delete(s.live, pid)
	delete(s.byID, id)
	s.pending = append(s.pending, ended{at: time.Now(), answer: answer{kind: kindEnded, id: id, numbers: [4]int64{
		int64(status), (usage.Utime.Nano() + usage.Stime.Nano()) / 1000, usage.Maxrss << 10,
	}}})
}

// look looks for processes that have lost their parents, and so are our children,
// and stand outside of all live groups, and kills them. When there are none, the
// ends of programs are told. The server is locked.
func (s *server) look() {
	strays := 0
	for _, pid := range s.list.read() {
		if _, ok := s.live[pid]; ok {
			continue
		}
		group, err := unix.Getpgid(pid)
		if err != nil {
			continue
		}
		if _, ok := s.live[group]; ok {
			continue // it is killed with the group
		}
		// It is ours, and not reaped: nobody else can have its number. What is its
		// own may be orphaned by that, and is looked for when its end is seen.
		_ = unix.Kill(pid, unix.SIGKILL)
		strays++
	}
	s.settle(strays, false)
	if strays > 0 || len(s.live) > 0 {
		s.lookAgain()
	}
}

// settle tells the ends of programs if nothing is left behind, or if that has
// taken too long.
func (s *server) settle(strays int, all bool) {
	keep := s.pending[:0]
	for _, e := range s.pending {
		if strays > 0 && !all && time.Since(e.at) < patience {
			keep = append(keep, e)
			continue
		}
		e.numbers[3] = int64(strays)
		s.tell(e.answer)
	}
	s.pending = keep
}

// lookAgain has look called in a while.
func (s *server) lookAgain() {
	if s.timer == nil {
		s.timer = time.AfterFunc(lookEvery, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.waiting = false
			s.look()
		})
		s.waiting = true
	} else if !s.waiting {
		s.timer.Reset(lookEvery)
		s.waiting = true
	}
}

// childList is the list of our first thread's children, to whom the kernel adds
// orphans.
type childList struct {
	file   *os.File // nil: this kernel has none
	buffer []byte
}

// open opens it.
func (c *childList) open() {
	c.file, _ = os.Open(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	c.buffer = make([]byte, 4096)
}

// read reads it. It may lack some while others end, but then their ends are seen,
// and it is read again.
func (c *childList) read() []int {
	if c.file == nil {
		return childrenByParent(os.Getpid())
	}
	for {
		n, err := c.file.ReadAt(c.buffer, 0)
		if n == len(c.buffer) {
			c.buffer = make([]byte, 2*n)
			continue
		}
		if n == 0 && err == nil {
			return nil
		}
		var all []int
		for word := range bytes.FieldsSeq(c.buffer[:n]) {
			if pid, err := strconv.Atoi(string(word)); err == nil {
				all = append(all, pid)
			}
		}
		return all
	}
}

// childrenByParent finds a process's children among all processes.
func childrenByParent(parent int) (all []int) {
	eachProcess(func(p processStat) {
		if p.parent == parent {
			all = append(all, p.pid)
		}
	})
	return all
}

// processStat is what /proc/PID/stat tells of a process.
type processStat struct {
	pid, parent, group, session int
	state                       byte
}

// eachProcess calls do for all processes that can be seen.
func eachProcess(do func(processStat)) {
	dir, err := os.Open("/proc")
	if err != nil {
		return
	}
	names, _ := dir.Readdirnames(-1)
	dir.Close()
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		text, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		if p, ok := parseStat(text); ok {
			do(p)
		}
	}
}

// parseStat reads the beginning of /proc/PID/stat. The name in parentheses may
// hold anything.
func parseStat(text []byte) (p processStat, ok bool) {
	end := bytes.LastIndexByte(text, ')')
	number, _, found := bytes.Cut(text, []byte(" "))
	if end < 0 || !found {
		return p, false
	}
	f := bytes.Fields(text[end+1:])
	if len(f) < 4 || len(f[0]) != 1 {
		return p, false
	}
	p.state = f[0][0]
	for i, n := range []*int{&p.parent, &p.group, &p.session} {
		v, err := strconv.Atoi(string(f[i+1]))
		if err != nil {
			return p, false
		}
		*n = v
	}
	v, err := strconv.Atoi(string(number))
	p.pid = v
	return p, err == nil
}
