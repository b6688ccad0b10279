package program

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Why a program could not be started, for errors.Is. None of them is permanent:
// each says something about this host, and nothing about a message.
var (
	// ErrNotFound means that there is no such program, interpreter or directory.
	ErrNotFound = errors.New("not found")
	// ErrNotExecutable means that there is a file which is no program.
	ErrNotExecutable = errors.New("not executable")
	// ErrPermission means that the user may not run it, or not enter a directory.
	ErrPermission = errors.New("permission denied")
	// ErrShortage means that this host is short of memory, processes or
	// descriptors now, that the arguments are too long, or that the program is
	// being written.
	ErrShortage = errors.New("short of resources")
	// ErrUser means that programs are not run as that user.
	ErrUser = errors.New("not one of the users that programs may run as")
	// ErrGone means that the process that starts programs died, and the program
	// with it.
	ErrGone = errors.New("the process that starts programs is gone")
	// ErrClosed means that the Starter has been closed.
	ErrClosed = errors.New("no programs are started any more")
	// ErrStuck means that a program was killed and has not ended: it sleeps in
	// the kernel, or the process that starts programs does not answer.
	ErrStuck = errors.New("it was killed and does not end")
)

// StartError is why a program could not be started.
type StartError struct {
	Path string
	Kind error // one of the errors above
	Err  error // what the kernel says, and about what
}

// Error names the program and what is wrong.
func (e *StartError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: %v", e.Path, e.Kind)
	}
	return fmt.Sprintf("%s: %v: %v", e.Path, e.Kind, e.Err)
}

// Unwrap is the kind and the cause.
func (e *StartError) Unwrap() []error { return []error{e.Kind, e.Err} }

// Temporary is true: another try may do.
func (*StartError) Temporary() bool { return true }

// step is what a process was about to do when it failed, on its way to become
// the program.
type step int32

const (
	stepNone step = iota
	stepFork
	stepSession
	stepFiles
	stepLimits
	stepUser
	stepDirectory
	stepParent
	stepExec
	stepRequest
)

// stepNames are for messages.
var stepNames = [...]string{"", "fork", "a session of its own", "its descriptors", "its limits", "its user", "its directory", "its parent", "execution", "the request"}

func (s step) String() string {
	if s < 0 || int(s) >= len(stepNames) {
		return "?"
	}
	return stepNames[s]
}

// kinds are what the kernel's errors mean here.
var kinds = map[unix.Errno]error{
	unix.ENOENT: ErrNotFound, unix.ENOTDIR: ErrNotFound, unix.ENAMETOOLONG: ErrNotFound, unix.ELOOP: ErrNotFound,
	unix.ENOEXEC: ErrNotExecutable, unix.EISDIR: ErrNotExecutable, unix.ELIBBAD: ErrNotExecutable, unix.EINVAL: ErrNotExecutable,
	unix.EACCES: ErrPermission, unix.EPERM: ErrPermission,
}

// startError tells why a program was not started.
func startError(path string, at step, errno unix.Errno) error {
	kind := kinds[errno]
	switch {
	case at == stepUser:
		kind = ErrUser
	case kind == nil || at != stepExec && at != stepDirectory:
		kind = ErrShortage
	case errno == unix.EACCES && at == stepExec && notExecutable(path):
		kind = ErrNotExecutable
	}
	return &StartError{Path: path, Kind: kind, Err: fmt.Errorf("%s: %w", at, errno)}
}

// notExecutable reports whether a file is no program for anybody.
func notExecutable(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0)
}
