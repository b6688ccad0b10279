package program

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
)

// killTimeout is how long a program that has been killed may take to end.
const killTimeout = 10 * time.Second

// Process is a program that was started. It is safe for concurrent use.
type Process struct {
	child *child
	id    uint64
	pid   atomic.Int64
	// unwanted is set when nobody waits for its beginning any more.
	unwanted atomic.Bool

	begun chan struct{} // closed when it runs, or cannot
	done  chan struct{} // closed when it has ended
	// These are set before done is closed.
	failed struct {
		at    step
		errno syscall.Errno
	}
	ending Ending
	err    error
}

// Ending is how a program has ended.
type Ending struct {
	Exit   int            // its exit code, -1 if it was killed
	Signal syscall.Signal // what killed it, 0 if nothing did
	CPU    time.Duration  // of processor time, with its children's that it waited for
	Memory int64          // the most that was resident, in bytes
	// Left is how many processes that it, or another program, left behind were
	// killed and have not ended: they sleep in the kernel.
	Left int
}

// String is the ending in a few words.
func (e Ending) String() string {
	if e.Exit >= 0 {
		return fmt.Sprintf("exit %d", e.Exit)
	}
	return "signal: " + e.Signal.String()
}

// Pid is the program's process number, which is also its group's and session's.
func (p *Process) Pid() int { return int(p.pid.Load()) }

// Kill kills the program with its group. What it has left elsewhere is killed when
// it has ended. It does nothing if the program has ended.
func (p *Process) Kill() {
	select {
	case <-p.done:
	default:
		_ = p.child.send(head(kindKill, p.id), nil) // a starter that is gone has killed it
	}
}

// Done is closed when the program has ended and Wait does not wait.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the program's end. When the context ends before, the program is
// killed, with all that it has started; Wait waits for that, and the error is the
// context's. Otherwise the error is ErrGone: what became of the program is not
// known, but that it was killed. It may be called more than once.
func (p *Process) Wait(ctx context.Context) (Ending, error) {
	select {
	case <-p.done:
		return p.ending, p.err
	default:
	}
	select {
	case <-p.done:
		return p.ending, p.err
	case <-ctx.Done():
	}
	p.Kill()
	t := time.NewTimer(killTimeout)
	defer t.Stop()
	select {
	case <-p.done:
		return p.ending, ctx.Err()
	case <-t.C:
		return Ending{Exit: -1, Signal: syscall.SIGKILL}, errors.Join(ctx.Err(), ErrStuck)
	}
}

// begin waits until the program runs.
func (p *Process) begin(path string) error {
	t := time.NewTimer(p.child.timeout)
	defer t.Stop()
	select {
	case <-p.begun:
	case <-t.C:
		p.unwanted.Store(true)
		p.Kill() // it may have started since
		p.child.hung()
		return &StartError{Path: path, Kind: ErrGone, Err: errors.New("it does not answer")}
	}
	select {
	case <-p.done:
	default:
		return nil
	}
	switch {
	case p.failed.at != stepNone:
		return startError(path, p.failed.at, p.failed.errno)
	case p.Pid() == 0:
		return &StartError{Path: path, Kind: ErrGone, Err: p.err}
	}
	return nil // it has ended already
}

// hear takes an answer about the program.
func (p *Process) hear(a answer) {
	switch a.kind {
	case kindStarted:
		p.pid.Store(a.numbers[0])
		close(p.begun)
		if p.unwanted.Load() {
			p.Kill()
		}
	case kindFailed:
		p.failed.at, p.failed.errno = step(a.numbers[0]), syscall.Errno(a.numbers[1])
		close(p.done)
		close(p.begun)
	case kindEnded:
		status := syscall.WaitStatus(a.numbers[0])
		p.ending = Ending{Exit: -1, CPU: time.Duration(a.numbers[1]) * time.Microsecond, Memory: a.numbers[2], Left: int(a.numbers[3])}
		if status.Exited() {
			p.ending.Exit = status.ExitStatus()
		} else {
			p.ending.Signal = status.Signal()
		}
		close(p.done)
	}
}

// lose ends a program whose starter is gone.
func (p *Process) lose(err error) {
	p.ending, p.err = Ending{Exit: -1, Signal: syscall.SIGKILL}, err
	close(p.done)
	if p.Pid() == 0 {
		close(p.begun)
	}
}
