// Package servers asks one of several servers that do the same job for a
// filter, such as clamd: which of them, for how long, and when again one that
// failed. It knows no protocol; a job is a function that talks to one server.
//
// It promises that a job goes to the server that has the least to do, and to
// each at most so many at a time as it is said to bear; that one that hangs
// costs a job its share of the time and not all of it; that one that failed
// twice gets nothing to do before it has said that it is back; that every wait
// ends with the context; and that no server is blamed for what is not its fault.
package servers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	// firstRest is how long a server is left alone that failed twice; it doubles
	// up to longestRest.
	firstRest   = 250 * time.Millisecond
	longestRest = 5 * time.Second
	// pingTime bounds how long one that failed may take to say that it is back.
	pingTime = 2 * time.Second
	// jobTime bounds a job without a deadline.
	jobTime = 30 * time.Second
	// margin is how much before a deadline a job ends by itself, at most, to be
	// able to say why.
	margin = time.Second
	// MaxAddresses and MaxConnections bound a Set.
	MaxAddresses   = 16
	MaxConnections = 1000
)

// Options say what kind of servers they are.
type Options struct {
	// Noun is what one is called in logs and errors: "clamd".
	Noun string
	// Connections is how many jobs each is given at a time; 0 means 10.
	Connections int
	// Ping asks a server that failed whether it works again; what it tells of
	// itself, such as its version, is for the log and must be clean. Nil: it is
	// tried with the next job.
	Ping func(context.Context, *Server) (about string, err error)
	// Log hears of servers that fail and come back; nil: nobody does.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Set is some servers. Safe for concurrent use.
type Set struct {
	o    Options
	mu   sync.Mutex // guards what servers remember
	list []*Server
	turn int
}

// Server is one of them.
type Server struct {
	// Name is its address as the configuration has it, for errors and logs.
	Name string
	// Network is unix or tcp, Address what net.Dial takes with it.
	Network, Address string

	slots  chan struct{}
	load   int       // jobs that wait for it or run on it
	failed int       // failures since it last did its work
	until  time.Time // when it may be asked whether it is back
	asking bool      // somebody asks
	last   error     // its last failure
}

// New makes a Set of addresses, "unix:PATH" or "tcp:HOST:PORT". It asks none of
// them. An error tells by a method Key which address it is about: "address[1]".
func New(addresses []string, o Options) (*Set, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Connections == 0 {
		o.Connections = 10
	}
	if len(addresses) > MaxAddresses {
		return nil, keyError{MaxAddresses, fmt.Errorf("more than %d %ss", MaxAddresses, o.Noun)}
	}
	s := &Set{o: o}
	seen := map[string]bool{}
	for i, a := range addresses {
		network, address, err := parse(a)
		if err == nil && seen[network+address] {
			err = errors.New("it stands there twice")
		}
		if err != nil {
			return nil, keyError{i, fmt.Errorf("%.120q: %w", a, err)}
		}
		seen[network+address] = true
		s.list = append(s.list, &Server{
			Name: network + ":" + address, Network: network, Address: address,
			slots: make(chan struct{}, min(max(o.Connections, 1), MaxConnections)),
		})
	}
	return s, nil
}

// keyError is an error about one of the addresses.
type keyError struct {
	index int
	error
}

// Key is the key of the configuration.
func (e keyError) Key() string { return fmt.Sprintf("address[%d]", e.index) }

// Unwrap is the error itself.
func (e keyError) Unwrap() error { return e.error }

// The kinds of a job's errors that say nothing against a server; every other
// error does.
type (
	ours    struct{ error }
	refused struct{ error }
)

// Unwrap is the error itself.
func (e ours) Unwrap() error { return e.error }

// Unwrap is the error itself.
func (e refused) Unwrap() error { return e.error }

// Ours marks a job's error as no fault of any server's: no other one is asked.
func Ours(err error) error { return ours{err} }

// IsOurs reports whether an error was marked by Ours.
func IsOurs(err error) bool { return errors.As(err, new(ours)) }

// Refused marks a job's error as that of a server that works, and would not do
// this job. Another one may.
func Refused(err error) error { return refused{err} }

// IsRefused reports whether an error was marked by Refused.
func IsRefused(err error) bool { return errors.As(err, new(refused)) }

// Do has one of the servers do a job. Those that fail are asked one after the
// other, in the time of the context; job may so be called several times, one
// after the other. An error tells each one's.
func (s *Set) Do(ctx context.Context, job func(context.Context, *Server) error) error {
	left := jobTime
	if at, ok := ctx.Deadline(); ok {
		left = time.Until(at)
	}
	bounded, cancel := context.WithTimeout(ctx, left-min(margin, left/10))
	defer cancel()
	var tried []*Server
	var failures []string
	for {
		one, others, back := s.pick(tried)
		if one == nil {
			return errors.New(strings.Join(append(failures, s.resting(tried)...), "; "))
		}
		tried = append(tried, one)
		err := s.try(bounded, one, others, back, job)
		if err == nil || IsOurs(err) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", one.Name, err)
		}
		failures = append(failures, one.Name+": "+err.Error())
	}
}

// pick is whom to ask next: a server that may be back (back is set: it must be
// pinged), else of those that work the one with the least to do; nil if there is
// none. Its load is counted already. others is how many more could be asked.
func (s *Set) pick(tried []*Server) (best *Server, others int, back bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn++
	for i := range s.list {
		one := s.list[(i+s.turn)%len(s.list)]
		// After a single failure everybody may ask, after more only one.
		due := one.failed > 0 && (one.failed == 1 || !one.asking) && !s.o.Now().Before(one.until)
		if contains(tried, one) || one.failed > 0 && !due {
			continue
		}
		if best != nil {
			others++
		}
		switch {
		case best == nil, due && !back, due == back && one.load < best.load:
			best, back = one, due
		}
	}
	if best != nil {
		best.load++
		best.asking = back
	}
	return best, others, back
}

func contains(list []*Server, s *Server) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// resting says of those that were not asked why not.
func (s *Set) resting(tried []*Server) (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.list {
		if !contains(tried, one) && one.last != nil {
			all = append(all, fmt.Sprintf("%s: left alone after it failed: %v", one.Name, one.last))
		}
	}
	return all
}

// Failing lists the servers that have failed since they last did a job, with
// their last errors.
func (s *Set) Failing() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.list {
		if one.failed > 0 {
			all = append(all, fmt.Sprintf("%s: %v", one.Name, one.last))
		}
	}
	return all
}

var (
	errBusy = errors.New("no connection became free in time: it is too slow for the mail, or \"connections\" is too small")
	errGone = errors.New("it failed while others waited for it")
)

// try has one server do a job, in its share of the time, and notes how it did.
func (s *Set) try(ctx context.Context, one *Server, others int, back bool, job func(context.Context, *Server) error) (err error) {
	if at, ok := ctx.Deadline(); ok && others > 0 {
		share, cancel := context.WithTimeout(ctx, time.Until(at)/time.Duration(others+1))
		defer cancel()
		ctx = share
	}
	defer func() {
		s.mu.Lock()
		one.load--
		if back {
			one.asking = false
		}
		s.mu.Unlock()
	}()
	if !one.take(ctx) {
		return errBusy
	}
	defer func() { <-one.slots }()
	switch {
	case back && s.o.Ping != nil:
		about, err := s.ping(ctx, one)
		if err != nil {
			s.fail(ctx, one, err)
			return err
		}
		s.restore(ctx, one, about)
	case !back && s.isDown(one):
		return errGone
	}
	err = job(ctx, one)
	switch {
	case err == nil || IsRefused(err):
		if back && s.o.Ping == nil {
			s.restore(ctx, one, "")
		}
	case IsOurs(err) || errors.Is(ctx.Err(), context.Canceled):
	default:
		s.fail(ctx, one, err)
	}
	return err
}

// take waits for a free connection; one that is free it takes however late it is.
func (s *Server) take(ctx context.Context) bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
	}
	select {
	case s.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Set) ping(ctx context.Context, one *Server) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	return s.o.Ping(ctx, one)
}

// isDown reports whether a server has failed more than once.
func (s *Set) isDown(one *Server) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return one.failed > 1
}

// fail notes a failure: after the first one, the server is asked at once whether
// it is still there, after more of them later and later.
func (s *Set) fail(ctx context.Context, one *Server, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now()
	if one.failed > 0 && !one.asking && now.Before(one.until) {
		return // those that began before count once
	}
	one.failed++
	one.last = err
	one.until = now
	if one.failed > 1 {
		one.until = now.Add(min(firstRest<<min(one.failed-2, 10), longestRest))
	}
	if one.failed == 1 {
		s.o.Log.WarnContext(ctx, s.o.Noun+" fails", s.o.Noun, one.Name, "error", err)
	}
}

// restore notes that a server is back, and what it says of itself.
func (s *Set) restore(ctx context.Context, one *Server, about string) {
	s.mu.Lock()
	one.failed, one.last = 0, nil
	s.mu.Unlock()
	s.o.Log.InfoContext(ctx, s.o.Noun+" is back", s.o.Noun, one.Name, "version", about)
}
