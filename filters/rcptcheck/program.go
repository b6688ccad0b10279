package rcptcheck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	start "github.com/postern-mta/postern/pipeline/program"
	"github.com/postern-mta/postern/pipeline/reply"
)

// The exit codes of RCPTCHECK. The last two are of Sagredo's qmail.
const (
	exitOK        = 0
	exitInvalid   = 100
	exitTemporary = 111
	exitCannotRun = 120
	exitIgnore    = 112
	exitOverLimit = 113
)

const (
	// textFD is where a program may write what the peer hears (USE_FD4).
	textFD = 4
	// overLimitText is what the peer hears otherwise after exitOverLimit.
	overLimitText = "you have exceeded your messaging limits"
)

// What a program may use.
const (
	maxMemory = 2 << 30 // bytes
	maxFiles  = 512
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
	user   string
	wait   time.Duration
	runner *runner
	kept   *cache // nil: nothing is kept
}

func (p *program) name() string { return reply.Clean(p.path, 200) }

func (*program) close() error { return nil }

func (p *program) ask(ctx context.Context, address string, tx *pipeline.Transaction) (finding, error) {
	key := p.key(address)
	if known, ok := p.kept.get(key); ok {
		if known {
			return finding{answer: valid}, nil
		}
		return finding{}, nil
	}
	if strings.Contains(address, "\x00") {
		return finding{}, nil // nobody has such an address, and no environment can name it
	}
	code, said, err := p.runner.run(ctx, p.wait, job{path: p.path, args: p.args, user: p.user, env: append(environment(address, tx), "USE_FD4=1"), extra: textFD})
	if err != nil {
		return finding{}, err
	}
	f, err := judged(code, said)
	if code != exitOK && f.answer == valid {
		p.runner.log.Warn("a program for rcptcheck ended with a code that means nothing: it counts as a yes", "program", p.path, "exit", code)
	}
	if said == "" && err == nil && (f.answer == valid || f.answer == unknown) {
		p.kept.put(key, f.answer == valid)
	}
	return f, err
}

// key is what the program's answer about an address is kept under. A program that
// is called with other arguments, or by another user, is another one; no argument holds a NUL.
func (p *program) key(address string) string {
	return p.user + "\x00" + p.path + "\x00" + strings.Join(p.args, "\x00") + "\x00\x00" + address
}

// judged is what a program's exit code and its text mean.
func judged(code int, said string) (finding, error) {
	r, ok := reply.Parse(said)
	ok = ok && r.Code >= 400
	switch code {
	case exitInvalid:
		if ok {
			return finding{answer: refused, reply: r}, nil
		}
		return finding{answer: unknown}, nil
	case exitTemporary, exitCannotRun:
		err := fmt.Errorf("exit %d: it cannot tell now", code)
		if ok && r.Code < 500 {
			return finding{}, reply.With(r, err)
		}
		return finding{}, err
	case exitIgnore:
		return finding{answer: noOpinion}, nil
	case exitOverLimit:
		if !ok || r.Code >= 500 {
			r = reply.Make(451, reply.Enhanced{Subject: 3}, overLimitText)
		}
		return finding{answer: refused, reply: r}, nil
	}
	return finding{answer: valid}, nil
}

// environment is what a program is told.
func environment(address string, tx *pipeline.Transaction) []string {
	s := tx.Session
	vars := map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin", "PROTO": "TCP"}
	for k, v := range s.Env {
		if start.Passable(k, v) {
			vars[k] = v
		}
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
	log      *slog.Logger
	places   chan struct{}
	maxFile  int64             // bytes that a file may become large
	programs pipeline.Programs // nil: nothing can be run here
}

// job is a program to run.
type job struct {
	path, user string
	args, env  []string
	// extra is the number that it shall know its third descriptor by, and input
	// what it finds there; if that is "", it may write to it instead.
	extra int
	input string
}

// run runs a program to its end, and has it killed, with what it has started,
// when its time is over. said is what it wrote to its third descriptor, code how
// it exited.
func (r *runner) run(ctx context.Context, wait time.Duration, j job) (code int, said string, err error) {
	if r.programs == nil {
		return 0, "", errors.New("no program can be run here")
	}
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	case <-ctx.Done():
		return 0, "", fmt.Errorf("%d programs run already: %w", cap(r.places), ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return 0, "", err
	}
	out, err := newOutput(maxOutput)
	if err != nil {
		return 0, "", err
	}
	defer out.close()
	extra, text := out.theirs, &output{}
	if j.input == "" {
		if text, err = newOutput(reply.MaxText); err == nil {
			defer text.close()
			extra = text.theirs
		}
	} else if extra, err = filled(j.input); err == nil {
		defer extra.Close()
	}
	if err != nil {
		return 0, "", err
	}
	p, err := r.programs.Start(start.Spec{
		Path: j.path, Args: append([]string{j.path}, j.args...), Env: j.env, Files: map[int]*os.File{1: out.theirs, 2: out.theirs, j.extra: extra},
		User:   j.user,
		Limits: start.Limits{Memory: maxMemory, FileSize: r.maxFile, Files: maxFiles, CPU: int64(wait/time.Second) + maxCPU},
	})
	if err != nil {
		return 0, "", fmt.Errorf("it cannot be run: %w", err)
	}
	e, err := p.Wait(ctx)
	written, more := out.text()
	if more > 0 {
		written += fmt.Sprintf(" (and %d bytes more)", more)
	}
	if written != "" {
		r.log.Info("a program for rcptcheck says", "program", reply.Clean(j.path, 200), "text", written)
	}
	switch {
	case ctx.Err() != nil && err != nil:
		return 0, "", fmt.Errorf("it was killed: %w", err)
	case err != nil:
		return 0, "", err
	case e.Signal == unix.SIGXFSZ:
		return 0, "", fmt.Errorf("it made a file larger than %d bytes (max_file)", r.maxFile)
	case e.Exit < 0:
		return 0, "", fmt.Errorf("it died: %v", e)
	}
	said, _ = text.text()
	return e.Exit, said, nil
}

// filled is a pipe that holds a text, which must be short.
func filled(text string) (*os.File, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, err = ours.WriteString(text)
	if err = errors.Join(err, ours.Close()); err != nil {
		theirs.Close()
		return nil, err
	}
	return theirs, nil
}

// output reads what a program writes: it keeps the beginning and takes the rest,
// since who floods must not block.
type output struct {
	ours, theirs *os.File
	limit        int
	kept         []byte
	more         int
	done         chan struct{}
}

func newOutput(limit int) (o *output, err error) {
	o = &output{limit: limit, done: make(chan struct{})}
	if o.ours, o.theirs, err = os.Pipe(); err != nil {
		return nil, err
	}
	go func() {
		defer close(o.done)
		_, _ = io.Copy(o, o.ours)
	}()
	return o, nil
}

// Write is io.Writer.
func (o *output) Write(p []byte) (int, error) {
	n := min(len(p), o.limit-len(o.kept))
	o.kept = append(o.kept, p[:n]...)
	o.more += len(p) - n
	return len(p), nil
}

// text is the beginning of what was written, clean, and how many bytes more there
// were. It waits for those who hold the other end, but not for long.
func (o *output) text() (text string, more int) {
	if o.ours == nil {
		return "", 0
	}
	o.theirs.Close()
	_ = o.ours.SetReadDeadline(time.Now().Add(lingering))
	<-o.done
	return reply.Clean(string(o.kept), o.limit), o.more
}

// close ends the reading.
func (o *output) close() {
	o.theirs.Close()
	o.ours.Close()
	<-o.done
}
