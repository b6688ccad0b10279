package worker

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// How a worker is called: processName is what ps shows, then come the stage and
// the settings.
const (
	processName = "postern: worker"
	stageOne    = "worker-1"
	stageTwo    = "worker-2"
	ownProgram  = "/proc/self/exe"
)

// The descriptors that a worker is given beside its standard ones: its socket
// and the file of its temporary space.
const (
	socketFD  = 3
	scratchFD = 4
	firstFree = 5
)

// settings is what a worker is told when it is started.
type settings struct {
	memory, scratch, cpu  int64
	processors            int64
	layers                Layers // what the pool and the first stage have done
	landlock              int64
	statm                 int64 // a descriptor, from the first stage to the second
	ownUser, ownNamespace int64 // booleans: its user is no one else's
}

func (s *settings) fields() []*int64 {
	return []*int64{
		&s.memory, &s.scratch, &s.cpu, &s.processors, &s.landlock, &s.statm, &s.ownUser, &s.ownNamespace,
	}
}

func (s settings) String() string {
	text := strconv.FormatUint(uint64(s.layers), 10)
	for _, f := range s.fields() {
		text += "," + strconv.FormatInt(*f, 10)
	}
	return text
}

func parseSettings(text string) (s settings, err error) {
	words := strings.Split(text, ",")
	fields := s.fields()
	if len(words) != len(fields)+1 {
		return s, fmt.Errorf("%d settings", len(words))
	}
	layers, err := strconv.ParseUint(words[0], 10, 32)
	for i, f := range fields {
		if err == nil {
			*f, err = strconv.ParseInt(words[i+1], 10, 64)
		}
	}
	s.layers = Layers(layers)
	return s, err
}

// Main does the program's work as a worker, if it has been started as one by a
// Pool, and does not return then. Otherwise it does nothing. It is to be called
// first in main, and in TestMain of tests that have a Pool.
func Main(jobs map[string]Job) {
	if len(os.Args) != 3 || os.Args[0] != processName {
		return
	}
	s, err := parseSettings(os.Args[2])
	if err == nil {
		switch os.Args[1] {
		case stageOne:
			err = confine(s)
		case stageTwo:
			err = work(s, jobs)
		default:
			return
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "worker: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// confine is the first stage. What the kernel confines by thread is confined
// here, on one thread, which then executes the program again: the threads of
// the second stage all come of it. It returns only an error.
func confine(s settings) error {
	runtime.LockOSThread()
	if err := setLimits(&s); err != nil {
		return err
	}
	statm, err := unix.Open("/proc/self/statm", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		statm = -1
	}
	if err := dropPrivileges(); err != nil {
		return err
	}
	s.layers |= NoNewPrivileges
	if version := restrictFiles(); version > 0 {
		s.landlock = int64(version)
		s.layers |= Landlock
	}
	if unix.CloseRange(firstFree, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		s.layers |= Descriptors
	} else {
		closeOnExecAll()
	}
	s.statm = int64(statm)
	if statm >= 0 {
		if _, err := unix.FcntlInt(uintptr(statm), unix.F_SETFD, 0); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	err = syscall.Exec(ownProgram, []string{processName, stageTwo, s.String()}, nil)
	return os.NewSyscallError("execve", err)
}

// closeOnExecAll is for kernels before 5.11; the limit of descriptors is low.
func closeOnExecAll() {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return
	}
	for fd := uint64(firstFree); fd < max(limit.Cur, 4096); fd++ {
		unix.CloseOnExec(int(fd))
	}
}

// work is the second stage: it closes the sandbox, and does jobs until the pool
// hangs up.
func work(s settings, jobs map[string]Job) error {
	runtime.GOMAXPROCS(int(s.processors))
	debug.SetMaxThreads(128)
	debug.SetMaxStack(16 << 20)
	debug.SetTraceback("single")
	debug.SetMemoryLimit(s.memory * 3 / 4)
	if limitMemory(s) {
		s.layers |= Memory
	}
	if s.statm >= 0 {
		unix.Close(int(s.statm))
	}
	if unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) == nil {
		s.layers |= Undumpable
	}
	if err := filterSystemCalls(); err == nil {
		s.layers |= Seccomp
	}
	w := newServer(jobs, s)
	return w.run()
}
