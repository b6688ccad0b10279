package rcptcheck

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// The exit codes of RCPTCHECK.
const (
	exitInvalid   = 100
	exitTemporary = 111
	exitCannotRun = 120
)

// What a program may use.
const (
	maxMemory = 2 << 30 // bytes of address space
	maxWrite  = 16 << 20
	maxFiles  = 256
	// maxCPU is in seconds, beyond the time that it may take anyway.
	maxCPU = 1
	// maxOutput is how much of what it writes is logged, in bytes.
	maxOutput = 2000
	// lingering is how long its output is waited for after its end.
	lingering = 100 * time.Millisecond
)

// program is a check by a program.
type program struct {
	path   string
	args   []string
	wait   time.Duration
	runner *runner
	kept   *cache // nil: nothing is kept
}

func (p *program) name() string { return reply.Clean(p.path, 200) }

func (*program) close() error { return nil }

func (p *program) ask(ctx context.Context, address string, tx *pipeline.Transaction) (answer, error) {
	key := p.path + "\x00" + address
	if known, ok := p.kept.get(key); ok {
		if known {
			return valid, nil
		}
		return unknown, nil
	}
	if strings.Contains(address, "\x00") {
		return unknown, nil // nobody has such an address, and no environment can name it
	}
	code, err := p.runner.run(ctx, p, environment(address, tx))
	switch {
	case err != nil:
		return unknown, err
	case code == exitInvalid:
		p.kept.put(key, false)
		return unknown, nil
	case code == exitTemporary, code == exitCannotRun:
		return unknown, fmt.Errorf("exit %d: it cannot tell now", code)
	case code != 0:
		p.runner.log.Warn("a program for rcptcheck ended with a code that means nothing: it counts as a yes", "program", p.path, "exit", code)
	}
	p.kept.put(key, true)
	return valid, nil
}

// environment is what a program is told.
func environment(address string, tx *pipeline.Transaction) []string {
	s := tx.Session
	vars := map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin", "PROTO": "TCP"}
	for k, v := range s.Env {
		vars[k] = v
	}
	vars["SENDER"], vars["RECIPIENT"], vars["HELO"] = tx.Envelope.Sender, address, s.Helo
	if s.Peer.IsValid() {
		vars["TCPREMOTEIP"], vars["TCPREMOTEPORT"] = s.Peer.Addr().Unmap().String(), strconv.Itoa(int(s.Peer.Port()))
	}
	if s.PeerName != "" {
		vars["TCPREMOTEHOST"] = s.PeerName
	}
	if s.User != "" {
		vars["TCPREMOTEINFO"] = s.User
	}
	var env []string
	for k, v := range vars {
		if k != "" && !strings.ContainsAny(k, "=\x00") {
			env = append(env, k+"="+strings.ReplaceAll(v, "\x00", "?"))
		}
	}
	return env
}

// runner runs programs, so many at a time.
type runner struct {
	log    *slog.Logger
	places chan struct{}
	ours   sync.Once
}

// keepOurs sees to it that no descriptor of this process is left open in a
// program: Go's own are not, but who started us may have left us some.
func (r *runner) keepOurs() {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		r.log.Warn("programs for rcptcheck may get descriptors that the daemon was started with", "error", err)
	}
	for _, f := range files {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// run runs a program to its end, and kills it and what it has started when its
// time is over. code is how it exited.
func (r *runner) run(ctx context.Context, p *program, env []string) (code int, err error) {
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	case <-ctx.Done():
		return 0, fmt.Errorf("%d programs run already: %w", cap(r.places), ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, p.wait)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	r.ours.Do(r.keepOurs)
	out := &output{}
	// Standard input is /dev/null, and all descriptors of ours close on exec.
	c := &exec.Cmd{
		Path: p.path, Args: append([]string{p.path}, p.args...), Env: env, Dir: "/", Stdout: out, Stderr: out,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, WaitDelay: lingering,
	}
	if err := c.Start(); err != nil {
		return 0, fmt.Errorf("it cannot be run: %w", err)
	}
	limit(c.Process.Pid, p.wait)
	late := r.watch(ctx, c.Process.Pid)
	err = c.Wait()
	if text := out.text(); text != "" {
		r.log.Info("a program for rcptcheck says", "program", p.path, "text", text)
	}
	var exited *exec.ExitError
	switch {
	case late:
		return 0, fmt.Errorf("it was killed: %w", ctx.Err())
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // a process that it left behind held its output open
		return 0, nil
	case !errors.As(err, &exited):
		return 0, err
	case !exited.Exited():
		return 0, fmt.Errorf("it died: %s", exited.ProcessState)
	}
	return exited.ExitCode(), nil
}

// watch waits for the end of a process, or of its time, and kills its group then.
// The process is not reaped before that, so that its number is still its own.
// late is whether its time was over first.
func (r *runner) watch(ctx context.Context, pid int) (late bool) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		late = true
	}
	unix.Kill(-pid, unix.SIGKILL) //nolint:errcheck // nothing may be left of it
	<-ended
	return late
}

// limit bounds what a process may use; what it starts inherits that.
func limit(pid int, wait time.Duration) {
	for _, l := range []struct {
		resource int
		value    uint64
	}{
		{unix.RLIMIT_AS, maxMemory},
		{unix.RLIMIT_FSIZE, maxWrite},
		{unix.RLIMIT_NOFILE, maxFiles},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_CPU, uint64(wait/time.Second) + maxCPU},
	} {
		unix.Prlimit(pid, l.resource, &unix.Rlimit{Cur: l.value, Max: l.value}, nil) //nolint:errcheck // it may have ended
	}
}

// output keeps the beginning of what a program writes, and takes the rest: who
// floods must not block.
type output struct {
	mu   sync.Mutex
	kept []byte
	more int
}

// Write is io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(len(p), maxOutput-len(o.kept))
	o.kept = append(o.kept, p[:n]...)
	o.more += len(p) - n
	return len(p), nil
}

// text is what was written, clean.
func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := reply.Clean(string(o.kept), maxOutput)
	if o.more > 0 {
		text += fmt.Sprintf(" (and %d bytes more)", o.more)
	}
	return text
}
