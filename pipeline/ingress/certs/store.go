package certs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postern-mta/postern/rules"
)

// What a server offers while it has no certificate.
const (
	FallbackNone       = "none"
	FallbackSelfSigned = "self-signed"
)

// check is how often Manage looks around, in our clock.
const check = 10 * time.Minute

// Options say where certificates come from. The zero value is a store without
// any, good only for listeners with pairs of their own.
type Options struct {
	// Pairs are the certificates from files; the first is the default.
	Pairs []Pair
	// ACME obtains certificates; nil does not.
	ACME *ACME
	// Fallback is what serves while there is no other certificate:
	// FallbackNone (the default), which means that Ready is false, or
	// FallbackSelfSigned.
	Fallback string
	// Hostname is the name of a self-signed certificate.
	Hostname string
	// State is a folder of the daemon's user, where a self-signed certificate
	// and what ACME brings are kept. It must exist if either is wanted.
	State string
	// Poll is how often files are looked at during handshakes at most, 5 s if
	// it is zero.
	Poll time.Duration
	// From is the store of the configuration before this one, if there is one.
	// What can no longer be opened without root is taken over from it: pairs by
	// the same names, and the address of the http-01 challenge.
	From *Store
	// Log is told of changes, failures and certificates that end.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Store holds certificates and makes TLS configurations of them. All methods
// may be called concurrently.
type Store struct {
	o    Options
	main *shelf
	acme *manager

	mu     sync.Mutex
	others []*shelf // listeners' own

	nudged chan struct{} // Reload wakes Manage

	run struct { // Manage
		sync.Mutex
		closed bool
		cancel context.CancelFunc
		done   sync.WaitGroup
	}
}

// New reads every certificate; call it while files and ports that need root can
// still be opened. An error names each pair that cannot be used. New obtains
// nothing: Manage does.
func New(o Options) (*Store, error) {
	if o.Poll == 0 {
		o.Poll = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{o: o, nudged: make(chan struct{}, 1)}
	s.main = s.newShelf()
	if err := s.main.open(o.Pairs, s.inherited); err != nil {
		return nil, err
	}
	if err := s.setFallback(); err != nil {
		return nil, err
	}
	if o.ACME != nil {
		m, err := newManager(s, *o.ACME)
		if err != nil {
			return nil, err
		}
		s.acme = m
	}
	return s, nil
}

func (s *Store) newShelf() *shelf {
	return &shelf{log: s.o.Log, now: s.o.Now, poll: s.o.Poll}
}

// inherited finds a pair in the store before this one.
func (s *Store) inherited(p Pair) *file {
	if s.o.From == nil {
		return nil
	}
	for _, shelf := range s.o.From.shelves() {
		if f := shelf.find(p); f != nil {
			return f
		}
	}
	return nil
}

func (s *Store) setFallback() error {
	switch s.o.Fallback {
	case "", FallbackNone:
		return nil
	case FallbackSelfSigned:
	default:
		return fmt.Errorf("TLS fallback %q is unknown%s: write %q or %q", s.o.Fallback,
			didYouMean(s.o.Fallback, []string{FallbackNone, FallbackSelfSigned}), FallbackNone, FallbackSelfSigned)
	}
	if len(s.o.Pairs) > 0 {
		return nil // files are there from the start, so it would never be used
	}
	h, err := selfSigned(s.o.State, s.o.Hostname, s.o.Now())
	if err != nil {
		return err
	}
	s.main.mu.Lock()
	defer s.main.mu.Unlock()
	s.main.fallback = h
	s.main.rebuild()
	return nil
}

func didYouMean(word string, candidates []string) string {
	if c := rules.Suggest(word, candidates); c != "" {
		return fmt.Sprintf(", did you mean %q?", c)
	}
	return ""
}

func (s *Store) shelves() []*shelf {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*shelf{s.main}, s.others...)
}

// Ready reports whether a listener with this policy has a certificate now. A
// server that is not ready offers no STARTTLS and closes implicit TLS.
func (s *Store) Ready(p Policy) bool {
	return len(p.Pairs) > 0 || len(s.main.index.Load().all) > 0
}

// Reload looks at all files now, and lets ACME try again what it had put off.
// The error tells which pairs are broken; for them the old ones stay in use.
func (s *Store) Reload() error {
	var errs []error
	for _, shelf := range s.shelves() {
		errs = append(errs, shelf.reload())
	}
	select {
	case s.nudged <- struct{}{}:
	default:
	}
	return errors.Join(errs...)
}

// Manage obtains and renews by ACME, answers its challenges, and warns of
// certificates that end, until ctx is done or Close is called; then it returns
// nil. It needs no more rights than to write below Options.State. Call it once.
func (s *Store) Manage(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.run.Lock()
	if s.run.closed || s.run.cancel != nil {
		s.run.Unlock()
		return errors.New("certs: Manage was called twice, or after Close")
	}
	s.run.cancel = cancel
	s.run.done.Add(1)
	s.run.Unlock()
	defer s.run.done.Done()

	if s.acme != nil {
		defer s.acme.serve()()
	}
	for asked := false; ; {
		wait := check
		if s.acme != nil {
			wait = min(wait, s.acme.pass(ctx, asked))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.nudged:
			timer.Stop()
			asked = true
		case <-timer.C:
			asked = false
			for _, shelf := range s.shelves() {
				shelf.glance(s.o.Now())
			}
		}
	}
}

// Close ends Manage and waits for it. Configurations made before go on serving
// with the certificates they have.
func (s *Store) Close() error {
	s.run.Lock()
	if s.run.closed {
		s.run.Unlock()
		return nil
	}
	s.run.closed = true
	if s.run.cancel != nil {
		s.run.cancel()
	}
	s.run.Unlock()
	s.run.done.Wait()
	if s.acme != nil {
		return s.acme.close()
	}
	return nil
}
