package smtp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves one listener. Its methods may be called concurrently; Serve
// once.
type Server struct {
	o        Options
	commands map[string]*command
	greeting string // the text of the greeting behind 220 and a blank

	// ctx ends what is going on; its cause says why.
	ctx      context.Context
	cancel   context.CancelCauseFunc
	stopping atomic.Bool
	stop     chan struct{} // closed when stopping

	mu       sync.Mutex
	sessions map[*session]struct{}
	idle     chan struct{} // closed when stopping and without sessions

	refused atomic.Int64 // when a refused connection was last logged, unix seconds
}

// errStopped is why work is given up when Shutdown runs out of time.
var errStopped = errors.New("the daemon was stopped")

// New checks the options. Shutdown gives the listener up, also if Serve was
// never called.
func New(o Options) (*Server, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	s := &Server{
		o: o.withDefaults(), commands: commandTable(), sessions: map[*session]struct{}{},
		stop: make(chan struct{}), idle: make(chan struct{}),
	}
	s.greeting = s.o.greeting()
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// Serve takes connections until Shutdown, or until ctx ends, which gives up
// what is going on. It returns when the last session has ended; the error is
// nil unless the listener failed.
func (s *Server) Serve(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		s.stopAccepting()
		s.giveUp()
	})()
	err := s.acceptAll()
	s.stopAccepting()
	<-s.idle
	return err
}

func (s *Server) acceptAll() error {
	pause := time.Duration(0)
	for {
		c, err := s.o.Listener.Accept()
		switch {
		case err == nil:
			pause = 0
			s.take(c)
			continue
		case s.stopping.Load():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("entrance %s: %w", s.o.Entrance, err)
		}
		// Out of descriptors, mostly: those in use come back.
		pause = min(max(2*pause, 10*time.Millisecond), time.Second)
		s.o.Log.Error("cannot accept a connection; the limit of open files may be too low", "entrance", s.o.Entrance, "error", err)
		select {
		case <-time.After(pause):
		case <-s.stop:
		}
	}
}

// take starts a session, if there is room for it.
func (s *Server) take(c net.Conn) {
	n := newSession(s, c)
	if why := s.enter(n); why != "" {
		c.SetWriteDeadline(time.Now().Add(time.Second)) //nolint:errcheck // a courtesy
		c.Write([]byte(tooBusy.SMTP() + "\r\n"))        //nolint:errcheck // likewise
		c.Close()
		if now := s.o.Now().Unix(); s.refused.Swap(now) != now {
			s.o.Log.Warn("connection refused", "entrance", s.o.Entrance, "why", why, "peer", n.peer.Addr().String())
		}
		return
	}
	go func() {
		defer s.leave(n)
		n.run()
	}()
}

// enter counts a session in; why says why not.
func (s *Server) enter(n *session) (why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping.Load():
		return "stopping"
	case len(s.sessions) >= s.o.Limits.Sessions:
		return "too many sessions"
	}
	s.sessions[n] = struct{}{}
	return ""
}

func (s *Server) leave(n *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, n)
	if s.stopping.Load() && len(s.sessions) == 0 {
		close(s.idle)
	}
}

// stopAccepting closes the listener, and wakes the sessions that wait for a
// command outside of a transaction: they hear 421.
func (s *Server) stopAccepting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping.Swap(true) {
		return
	}
	close(s.stop)
	if len(s.sessions) == 0 {
		close(s.idle)
	}
	s.o.Listener.Close()
	for n := range s.sessions {
		n.wake()
	}
}

// giveUp ends what is going on.
func (s *Server) giveUp() {
	s.cancel(errStopped)
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.sessions {
		n.raw.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // the connection may be closed by now
	}
}

// Sessions is the number of connections that are open.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Shutdown takes no more connections. Clients that wait between transactions
// hear 421; transactions that have begun go on. When ctx ends it gives up what
// has not begun to commit and closes the connections; their clients will try
// again. The error says how many sessions did not end even then.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopAccepting()
	defer s.cancel(errStopped)
	select {
	case <-s.idle:
		return nil
	case <-ctx.Done():
		s.giveUp()
	}
	late := time.NewTimer(5 * time.Second)
	defer late.Stop()
	select {
	case <-s.idle:
		return nil
	case <-late.C:
		return fmt.Errorf("entrance %s: %d sessions did not end", s.o.Entrance, s.Sessions())
	}
}
