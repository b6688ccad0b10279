package spp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/program"
	"github.com/postern-mta/postern/pipeline/reply"
)

const (
	// maxSaid is how much of what a program says on descriptor 2 is logged, in bytes.
	maxSaid = 2000
	// exitCannotRun is the exit code that says that nothing was run (qmail-spp.c).
	exitCannotRun = 120
	// spare is how much of the filter's time is kept for the end of a program that
	// must be killed.
	spare = 250 * time.Millisecond
	// lingering is how long the output of a program is waited for after its end, if
	// what it has left behind could not be killed.
	lingering = time.Second
)

// runner runs programs, so many at a time.
type runner struct {
	programs pipeline.Programs
	log      *slog.Logger
	places   chan struct{}
	user     string
	memory   int64
	cpu      time.Duration
	maxFile  int64
}

func newRunner(programs pipeline.Programs, log *slog.Logger, o Options) runner {
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	if o.MaxFile == 0 {
		o.MaxFile = defaultMaxFile
	}
	return runner{programs: programs, log: log, places: make(chan struct{}, o.Concurrency), user: o.User, memory: o.Memory, cpu: o.CPU, maxFile: o.MaxFile}
}

// run runs a program to its end, and reads its commands.
func (r *runner) run(ctx context.Context, line, home string, env []string) ([]command, error) {
	if r.programs == nil {
		return nil, errors.New("no programs are run here")
	}
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%d programs run already: %w", cap(r.places), context.Cause(ctx))
	}
	if until, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until.Add(-min(spare, time.Until(until)/4)))
		defer cancel()
	}
	out, err := newOutput(maxOutput)
	if err != nil {
		return nil, err
	}
	defer out.close()
	said, err := newOutput(maxSaid)
	if err != nil {
		return nil, err
	}
	defer said.close()
	path, args := resolve(line, home)
	p, err := r.programs.Start(program.Spec{
		Path: path, Args: args, Env: env, Dir: home, Files: map[int]*os.File{1: out.theirs, 2: said.theirs}, User: r.user,
		Limits: program.Limits{Memory: r.memory, FileSize: r.maxFile, CPU: r.seconds(ctx)},
	})
	if err != nil {
		return nil, fmt.Errorf("it cannot be run: %w", err)
	}
	out.read(p.Kill) // who writes without an end is ended
	said.read(nil)
	end, err := p.Wait(ctx)
	written, more := out.end()
	if b, more := said.end(); len(b) > 0 {
		text := reply.Clean(string(b), maxSaid)
		if more > 0 {
			text += fmt.Sprintf(" (and %d bytes more)", more)
		}
		r.log.Info("a program of spp says", "program", nameOf(line), "text", text)
	}
	switch {
	case more > 0:
		return nil, fmt.Errorf("it wrote more than %d bytes", maxOutput)
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("it was killed: %w", context.Cause(ctx))
	case err != nil:
		return nil, err
	case end.Signal == unix.SIGXFSZ:
		return nil, fmt.Errorf("it made a file larger than %d bytes (max_file)", r.maxFile)
	case end.Exit < 0:
		return nil, fmt.Errorf("it died: signal: %s", end.Signal)
	case end.Exit == exitCannotRun:
		return nil, fmt.Errorf("exit %d: it cannot be run", end.Exit)
	}
	commands, unknown, err := parseCommands(written)
	if unknown != "" {
		r.log.Info("a program of spp wrote lines that are no commands", "program", nameOf(line), "letters", reply.Clean(unknown, 100))
	}
	return commands, err
}

// seconds is how much processor time a program may use: it needs no more than
// there is left of the call.
func (r *runner) seconds(ctx context.Context) int64 {
	if r.cpu > 0 {
		return int64((r.cpu + time.Second - 1) / time.Second)
	}
	if until, ok := ctx.Deadline(); ok {
		return int64(max(time.Until(until), 0)/time.Second) + 1
	}
	return 0
}

// output reads what a program writes: it keeps the beginning and passes over the
// rest, since who floods must not block.
type output struct {
	ours, theirs *os.File
	limit        int
	kept         []byte
	more         int
	flooded      func() // called once, when there is more than the limit
	done         chan struct{}
}

func newOutput(limit int) (o *output, err error) {
	o = &output{limit: limit}
	o.ours, o.theirs, err = os.Pipe()
	return o, err
}

// read begins to read.
func (o *output) read(flooded func()) {
	o.theirs.Close()
	o.flooded, o.done = flooded, make(chan struct{})
	go func() {
		defer close(o.done)
		_, _ = io.Copy(o, o.ours)
	}()
}

// Write is io.Writer.
func (o *output) Write(p []byte) (int, error) {
	n := min(len(p), o.limit-len(o.kept))
	o.kept = append(o.kept, p[:n]...)
	if n < len(p) && o.more == 0 && o.flooded != nil {
		o.flooded()
	}
	o.more += len(p) - n
	return len(p), nil
}

// end is what was written, and how many bytes more, when the program has ended.
func (o *output) end() (written []byte, more int) {
	_ = o.ours.SetReadDeadline(time.Now().Add(lingering))
	<-o.done
	return o.kept, o.more
}

// close gives up both ends.
func (o *output) close() {
	o.theirs.Close()
	o.ours.Close()
	if o.done != nil {
		<-o.done
	}
}
