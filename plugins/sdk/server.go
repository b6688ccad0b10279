package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/postern-mta/postern/plugins/wire"
)

// Server is the plugin as Postern calls it, for tests; Main serves it. The error
// is a mistake in the Plugin.
func (p Plugin[O]) Server() (wire.PluginServer, error) {
	g, err := p.program()
	if err != nil {
		return nil, err
	}
	return &server{program: g, filters: map[uint64]*filter{}}, nil
}

// server answers the calls of one process.
type server struct {
	wire.UnimplementedPluginServer
	program *program

	mu      sync.RWMutex
	filters map[uint64]*filter
}

// filter is a filter that has been configured.
type filter struct {
	options  any
	stateDir string
}

// Declare implements wire.PluginServer.
func (s *server) Declare(context.Context, *wire.DeclareRequest) (*wire.Declaration, error) {
	return s.program.declaration(), nil
}

// Configure implements wire.PluginServer.
func (s *server) Configure(ctx context.Context, q *wire.ConfigureRequest) (_ *wire.ConfigureReply, err error) {
	defer recovered(&err)
	f := &filter{options: s.program.newOptions(), stateDir: q.GetStateDir()}
	wrong := s.program.options.decode(q.GetOptionsJson(), f.options)
	if len(wrong) == 0 && s.program.configure != nil {
		wrong = problems(s.program.configure(ctx, f.options, Filter{Name: q.GetFilter(), Host: q.GetHost(), StateDir: q.GetStateDir()}))
	}
	if len(wrong) > 0 {
		return &wire.ConfigureReply{Problems: wrong[:min(len(wrong), maxOptions)]}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filters[q.GetHandle()] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "the handle %d is in use", q.GetHandle())
	}
	s.filters[q.GetHandle()] = f
	return new(wire.ConfigureReply), nil
}

// Forget implements wire.PluginServer.
func (s *server) Forget(_ context.Context, q *wire.ForgetRequest) (_ *wire.ForgetReply, err error) {
	defer recovered(&err)
	s.mu.Lock()
	f := s.filters[q.GetHandle()]
	delete(s.filters, q.GetHandle())
	s.mu.Unlock()
	if f != nil && s.program.forget != nil {
		s.program.forget(f.options)
	}
	return new(wire.ForgetReply), nil
}

// Judge implements wire.PluginServer.
func (s *server) Judge(ctx context.Context, q *wire.JudgeRequest) (r *wire.JudgeReply, err error) {
	s.mu.RLock()
	f := s.filters[q.GetHandle()]
	s.mu.RUnlock()
	if f == nil {
		return nil, status.Errorf(codes.NotFound, "there is no filter with the handle %d", q.GetHandle())
	}
	at := Stage(min(uint32(q.GetStage()), uint32(stages)))
	if at >= stages || s.program.stages[at] == nil {
		return nil, status.Errorf(codes.Unimplemented, "the plugin %s is not to be asked at the stage %s", s.program.name, at)
	}
	c, err := read(q, at, s.program.needs, f.stateDir)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	a := &answer{g: s.program, at: at, tx: c.tx}
	if c.message != nil {
		a.body = c.message.body
		defer func() {
			if err != nil {
				a.files = nil
			}
			a.body.close(a.files)
		}()
	}
	defer recovered(&err)
	v, err := s.program.stages[at](ctx, f.options, c)
	if err != nil {
		return nil, asStatus(ctx, err)
	}
	if r, err = a.reply(v); err != nil {
		return nil, status.Error(codes.Internal, clean(err.Error()))
	}
	return r, nil
}

// read is what a function is given.
func read(q *wire.JudgeRequest, at Stage, needs Needs, stateDir string) (c *call, err error) {
	c = &call{recipient: string(q.GetRecipient())}
	if c.session, err = readSession(q.GetSession()); err != nil || at < AtSender {
		return c, err
	}
	if c.tx, err = readTransaction(q.GetTransaction(), c.session, at, needs); err != nil {
		return c, err
	}
	if at < AtMessage {
		return c, nil
	}
	c.message, err = readMessage(q.GetMessage(), c.tx, needs, stateDir)
	return c, err
}

// asStatus is a function's error. Only the call's own end is told as such: a time
// of the plugin's own that is over, as a server's, is an error like others.
func asStatus(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, clean(err.Error()))
	case ctx.Err() != nil:
		return status.Error(codes.Canceled, clean(err.Error()))
	}
	return status.Error(codes.Unknown, clean(err.Error()))
}

// recovered makes an error of a panic in the author's function.
func recovered(err *error) {
	if p := recover(); p != nil {
		slog.Error("a function of the plugin panicked", "panic", fmt.Sprint(p), "at", callers())
		*err = status.Error(codes.Internal, clean(fmt.Sprintf("panic: %v", p)))
	}
}

// maxFrames is how many callers a panic tells.
const maxFrames = 8

// callers says in one line where a panic happened, the innermost function first.
func callers() string {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var at []string
	for more := true; more && len(at) < maxFrames; {
		var f runtime.Frame
		if f, more = frames.Next(); !strings.HasPrefix(f.Function, "runtime.") {
			at = append(at, fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line))
		}
	}
	return strings.Join(at, " < ")
}
