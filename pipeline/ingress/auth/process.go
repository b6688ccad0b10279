package auth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/reply"
)

// lingering is how long what a program left behind may hold its output open.
const lingering = 250 * time.Millisecond

// printed keeps the beginning of what a program prints.
type printed struct {
	mu   sync.Mutex
	kept []byte
}

// Write takes everything, so that nobody who prints is held up.
func (w *printed) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = append(w.kept, b[:min(len(b), maxPrinted-len(w.kept))]...)
	return len(b), nil
}

// after is what was printed as an appendix to a detail.
func (w *printed) after() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := strings.TrimSpace(reply.Clean(string(w.kept), maxPrinted)); s != "" {
		return "; it printed: " + s
	}
	return ""
}

// run runs the program to its end.
func (p *Program) run(ctx context.Context, q question) answer {
	if err := ctx.Err(); err != nil {
		return troubled("not run: %v", err)
	}
	// The reading end stays open here too, to see afterwards what was not read.
	// The pipe holds more than a question, so that writing never waits.
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return troubled("pipe: %v", err)
	}
	in, out := os.NewFile(uintptr(ends[0]), "question"), os.NewFile(uintptr(ends[1]), "question")
	defer in.Close()
	defer out.Close()
	said := &printed{}
	cmd := exec.Command(p.o.Argv[0], p.o.Argv[1:]...)
	cmd.Dir, cmd.Env = "/", p.environment(q.peer)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.ExtraFiles = []*os.File{in}
	cmd.WaitDelay = lingering
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return troubled("%v", err)
	}
	if err := p.limits(cmd.Process.Pid); err != nil && !errors.Is(err, unix.ESRCH) {
		p.noLimit.Do(func() {
			p.log.Warn("the checkpassword program cannot be given limits; is it setuid? a helper that runs as root could set them", "program", p.o.Argv[0], "error", err)
		})
	}
	_, err := fmt.Fprintf(out, "%s\x00%s\x00\x00", q.user, q.password)
	out.Close()
	timedOut := wait(ctx, cmd.Process.Pid)
	cmd.Wait() //nolint:errcheck // its state tells all
	left, leftErr := unix.IoctlGetInt(int(in.Fd()), unix.TIOCINQ)
	state := cmd.ProcessState
	switch {
	case err != nil:
		return troubled("it cannot be asked: %v", err)
	case timedOut:
		return troubled("killed, because %v%s", context.Cause(ctx), said.after())
	case state == nil:
		return troubled("nobody knows how it ended%s", said.after())
	case state.ExitCode() == 0 && (left > 0 || leftErr != nil):
		return troubled("it exited 0 and did not read descriptor 3: is it a checkpassword program?")
	}
	return judge(state, said.after())
}

// exits are the exit codes of checkpassword's interface; the others mean trouble
// too, but nobody knows which.
var exits = map[int]string{
	2:   "exit 2: it was used wrongly, see its arguments",
	111: "exit 111: it had a temporary problem",
}

// judge reads how the program ended.
func judge(state *os.ProcessState, said string) answer {
	switch code := state.ExitCode(); code {
	case 0:
		return answer{code: answerYes}
	case 1:
		return answer{code: answerNo, detail: "the checkpassword program says no (exit 1)" + said}
	case -1:
		return troubled("%v%s", state, said)
	default:
		why, ok := exits[code]
		if !ok {
			why = fmt.Sprintf("exit %d, which means nothing", code)
		}
		return troubled("%s%s", why, said)
	}
}

// wait waits for the end of a process that nobody has waited for yet, and kills
// its group when that has come, or when ctx ends, which it reports. Until the
// process is reaped, nobody else can have its number, nor the group's.
func wait(ctx context.Context, pid int) (timedOut bool) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		timedOut = true
		syscall.Kill(-pid, syscall.SIGKILL) //nolint:errcheck // it may be somebody else's, see ask
		<-ended
	}
	syscall.Kill(-pid, syscall.SIGKILL) //nolint:errcheck // mostly there is nobody left
	return timedOut
}
