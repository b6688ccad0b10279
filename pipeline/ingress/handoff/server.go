package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves the shims. Its methods may be called concurrently; Serve once.
type Server struct {
	o        Options
	trusted  map[int]bool
	listener *net.UnixListener
	socket   identity // of the socket that we made
	tellsEnd bool     // the kernel says how a process ended that is not our child

	// ctx ends what is going on; its cause says why.
	ctx    context.Context
	cancel context.CancelCauseFunc
	slots  chan struct{}

	mu       sync.Mutex
	sessions map[*session]struct{}
	byUser   map[int]int // connections of uids that are not trusted
	stopping bool
	stop     chan struct{} // closed when stopping
	idle     chan struct{} // closed when stopping and without sessions
	retrying chan struct{} // closed when Kept has ended; nil if it was not started

	refused atomic.Int64 // when a refused connection was last logged, unix seconds
}

// The causes for which work is given up. No answer is given then.
var (
	errStopped   = errors.New("the daemon was stopped")
	errGone      = errors.New("the caller went away")
	errMalformed = errors.New("the shim broke the protocol")
	errSlow      = errors.New("no answer could be found in time")
)

// New checks the options and makes the socket. Shutdown gives it up, also if
// Serve was never called.
func New(o Options) (*Server, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	s := &Server{
		o: o.withDefaults(), listener: o.Listener, trusted: map[int]bool{}, sessions: map[*session]struct{}{},
		byUser: map[int]int{}, stop: make(chan struct{}), idle: make(chan struct{}),
	}
	s.slots = make(chan struct{}, s.o.MaxSessions)
	for _, uid := range o.Trusted {
		s.trusted[int(uid)] = true
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	if o.Next != "" && o.Remote == nil {
		s.tellsEnd = probeEnd()
	}
	if s.listener == nil {
		l, err := Listen(o.Path)
		if err != nil {
			return nil, err
		}
		s.listener = l
		s.socket, _ = identityOf(o.Path)
	}
	return s, nil
}

// Serve takes connections until Shutdown, or until ctx ends, which gives up
// what is going on. It returns when the last session has ended; the error is
// nil unless the listener failed.
func (s *Server) Serve(ctx context.Context) error {
	retrying := make(chan struct{})
	s.mu.Lock()
	s.retrying = retrying
	s.mu.Unlock()
	go func() {
		defer close(retrying)
		if s.o.Kept != nil {
			s.o.Kept.run(s.ctx, s.stop)
		}
	}()
	defer context.AfterFunc(ctx, func() {
		s.stopAccepting()
		s.cancel(errStopped)
	})()
	err := s.acceptAll()
	s.stopAccepting()
	<-s.idle
	<-retrying
	return err
}

func (s *Server) acceptAll() error {
	pause := time.Duration(0)
	for {
		c, err := s.listener.AcceptUnix()
		switch {
		case err == nil:
			pause = 0
			s.take(c)
			continue
		case s.isStopping():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("%s entrance: %w", s.o.Entrance, err)
		}
		// Out of descriptors, mostly: those in use come back.
		pause = min(max(2*pause, 10*time.Millisecond), time.Second)
		s.o.Log.Error("cannot accept a shim's connection; the limit of open files may be too low", "error", err)
		select {
		case <-time.After(pause):
		case <-s.stop:
		}
	}
}

// take starts a session, if there is room for it. A shim whose connection is
// closed without a word answers "later".
func (s *Server) take(c *net.UnixConn) {
	p, err := peerOf(c)
	if err != nil {
		s.o.Log.Error("cannot tell who is calling", "error", err)
		c.Close()
		return
	}
	session := newSession(s, c, p)
	if why := s.enter(session); why != "" {
		c.Close()
		session.cancel(nil)
		if now := s.o.Now().Unix(); s.refused.Swap(now) != now {
			s.o.Log.Warn("connection refused", "why", why, "uid", p.uid, "pid", p.pid)
		}
		return
	}
	go func() {
		defer s.leave(session)
		session.run()
	}()
}

// enter counts a session in; why says why not.
func (s *Server) enter(n *session) (why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return "stopping"
	case len(s.sessions) >= 2*s.o.MaxSessions:
		return "too many sessions"
	case !s.trusted[n.peer.uid] && s.byUser[n.peer.uid] >= s.o.MaxPerUser:
		return "too many sessions of this user"
	}
	if !s.trusted[n.peer.uid] {
		s.byUser[n.peer.uid]++
	}
	s.sessions[n] = struct{}{}
	return ""
}

func (s *Server) leave(n *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.trusted[n.peer.uid] {
		if s.byUser[n.peer.uid]--; s.byUser[n.peer.uid] == 0 {
			delete(s.byUser, n.peer.uid)
		}
	}
	delete(s.sessions, n)
	if s.stopping && len(s.sessions) == 0 {
		close(s.idle)
	}
}

// slot waits for one of MaxSessions.
func (s *Server) slot(ctx context.Context) bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
	}
	late := time.NewTimer(s.o.waits.slot)
	defer late.Stop()
	select {
	case s.slots <- struct{}{}:
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}

func (s *Server) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// stopAccepting closes the listener and removes the socket, if it is still ours.
func (s *Server) stopAccepting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return
	}
	s.stopping = true
	close(s.stop)
	if len(s.sessions) == 0 {
		close(s.idle)
	}
	if now, ok := identityOf(s.o.Path); ok && now == s.socket {
		os.Remove(s.o.Path) //nolint:errcheck // the next start replaces it
	}
	s.listener.Close()
}

// Sessions is the number of connections that are open.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Shutdown takes no more connections and waits until those that are open have
// ended. When ctx ends it gives up what has not begun to commit, closes their
// connections (their shims answer "later"), and waits for a moment more. The
// error says how many sessions did not end even then.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopAccepting()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-s.idle
		s.mu.Lock()
		retrying := s.retrying
		s.mu.Unlock()
		if retrying != nil {
			<-retrying
		}
	}()
	defer s.cancel(errStopped)
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		s.cancel(errStopped)
	}
	select {
	case <-ended:
		return nil
	case <-time.After(5 * time.Second):
		return fmt.Errorf("%s entrance: %d sessions did not end", s.o.Entrance, s.Sessions())
	}
}

// identifier makes names of the time and a sequence number.
func identifier(now func() time.Time) func() string {
	var seq atomic.Uint64
	return func() string {
		return strconv.FormatInt(now().UnixMilli(), 36) + "-" + strconv.FormatUint(seq.Add(1), 36)
	}
}

// fail logs a failure of our own that the administrator should look at.
func (s *Server) fail(id, what string, err error, more ...any) {
	s.o.Log.Error(what, append([]any{slog.String("id", id), slog.Any("error", err)}, more...)...)
}
