package main

import (
	"syscall"

	"github.com/postern-mta/postern/cmd/internal/shim"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// run runs the next program and the copies, and ends the shim.
func (s *session) run() {
	if shim.IsLoop(s.Next.Path) {
		s.report(wire.Result{Exit: exitTemporary})
		exit(exitTemporary)
	}
	if s.Next.Mode == wire.ModeExec {
		s.become()
		s.report(wire.Result{Exit: exitTemporary})
		exit(exitTemporary)
	}
	code := s.runOne(0)
	if code == 0 && len(s.pairs) > 1 {
		hideErrorPipes()
		for i := 1; i < len(s.pairs); i++ {
			s.runOne(i)
		}
	}
	exit(int(code))
}

// runOne runs the next program with pair i, waits, reports, and returns its exit code.
func (s *session) runOne(i int) uint8 {
	r := wire.Result{Index: uint16(i), Exit: exitTemporary}
	pid, err := syscall.ForkExec(s.Next.Path, s.argv(), &syscall.ProcAttr{
		Env:   shim.NextEnviron(s.env),
		Files: []uintptr{uintptr(s.pairs[i].message), uintptr(s.pairs[i].envelope), 2},
	})
	switch {
	case err == nil:
		r.PID = uint32(pid)
		var status syscall.WaitStatus
		for {
			if _, err := syscall.Wait4(pid, &status, 0, nil); err == nil {
				break
			} else if err != syscall.EINTR {
				exit(exitTemporary)
			}
		}
		r.Exit = uint8(status.ExitStatus())
		if status.Signaled() {
			r.Exit, r.Signal = exitCrashed, uint8(status.Signal())
		}
	case (err == syscall.EAGAIN || err == syscall.ENOMEM) && len(s.pairs) == 1:
		s.Tell(wire.FellBack{PID: uint32(syscall.Getpid())}.Append(nil))
		s.become()
	}
	s.report(r)
	return r.Exit
}

// become turns this process into the next program, with the only pair; it returns if that cannot be.
func (s *session) become() {
	if syscall.Dup3(s.pairs[0].message, 0, 0) != nil || syscall.Dup3(s.pairs[0].envelope, 1, 0) != nil {
		return
	}
	syscall.Exec(s.Next.Path, s.argv(), shim.NextEnviron(s.env))
}

// report says how a run ended, if the daemon can hear it: the exit code is the main program's in any case.
func (s *session) report(r wire.Result) { s.Tell(r.Append(nil)) }

// argv is ours with the path as its first.
func (s *session) argv() []string {
	argv := s.Argv()
	return append([]string{s.Next.Path}, argv[min(1, len(argv)):]...)
}

// errorFD is the descriptor that $ERROR_FD names; otherwise, if it names none.
func errorFD(otherwise int) int {
	s := shim.Getenv("ERROR_FD")
	if s == "-1" {
		return -1
	}
	if n := shim.Number(s, 1<<20); n >= 0 {
		return n
	}
	return otherwise
}

// errorPipe reports whether fd is the writing end of a pipe that the caller left open for us: all of our own
// descriptors are close-on-exec, and the caller's cannot be.
func errorPipe(fd int) bool {
	if fd < 2 || shim.Fcntl(fd, syscall.F_GETFD, 0) != 0 || format(fd) != syscall.S_IFIFO {
		return false
	}
	flags := shim.Fcntl(fd, syscall.F_GETFL, 0)
	return flags >= 0 && flags&syscall.O_ACCMODE != syscall.O_RDONLY
}

// hideErrorPipes keeps the copies from holding open what the caller reads to its end.
func hideErrorPipes() {
	for _, fd := range [...]int{4, 6, errorFD(-1)} {
		if fd > 2 && errorPipe(fd) {
			shim.Fcntl(fd, syscall.F_SETFD, syscall.FD_CLOEXEC)
		}
	}
}
