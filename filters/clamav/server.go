package clamav

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

const (
	// firstRest is how long a clamd is left alone that failed twice; it doubles up
	// to longestRest.
	firstRest   = 250 * time.Millisecond
	longestRest = 5 * time.Second
	// pingTime bounds how long one that failed may take to say that it is back.
	pingTime = 2 * time.Second
	// callTime bounds a call without a deadline.
	callTime = 30 * time.Second
	// margin is how much before a deadline a call ends by itself, at most, to be
	// able to say why.
	margin = time.Second
)

// servers are the clamds of a filter. Safe for concurrent use.
type servers struct {
	log  *slog.Logger
	now  func() time.Time
	mu   sync.Mutex // guards what servers remember
	list []*server
	turn int
}

// server is one clamd.
type server struct {
	name, network, address string
	slots                  chan struct{}

	load   int       // calls that wait for it or run on it
	failed int       // failures since it last did its work
	until  time.Time // when it may be asked whether it is back
	asking bool      // somebody asks
	last   error     // its last failure
}

func newServers(addresses []string, connections int, env pipeline.Env) (*servers, error) {
	if len(addresses) > maxAddresses {
		return nil, keyError{fmt.Sprintf("address[%d]", maxAddresses), fmt.Errorf("more than %d clamds", maxAddresses)}
	}
	ss := &servers{log: env.Log, now: env.Now}
	seen := map[string]bool{}
	for i, a := range addresses {
		network, address, err := parseAddress(a)
		if err == nil && seen[network+address] {
			err = errors.New("it stands there twice")
		}
		if err != nil {
			return nil, keyError{fmt.Sprintf("address[%d]", i), fmt.Errorf("%q: %w", reply.Clean(a, 120), err)}
		}
		seen[network+address] = true
		ss.list = append(ss.list, &server{
			name: reply.Clean(network+":"+address, 120), network: network, address: address, slots: make(chan struct{}, min(max(connections, 1), 1000)),
		})
	}
	return ss, nil
}

// scan has one of the clamds scan: the name of what it found, "" for nothing.
// Those that fail are asked one after the other, in the time of the context. An
// error tells each one's.
func (ss *servers) scan(ctx context.Context, body io.ReaderAt, size int64) (string, error) {
	left := callTime
	if at, ok := ctx.Deadline(); ok {
		left = time.Until(at)
	}
	call, cancel := context.WithTimeout(ctx, left-min(margin, left/10))
	defer cancel()
	var tried []*server
	var failures []string
	for {
		s, others, back := ss.pick(tried)
		if s == nil {
			break
		}
		tried = append(tried, s)
		name, err := ss.try(call, s, others, back, body, size)
		if err == nil {
			return name, nil
		}
		var mine readError
		if errors.As(err, &mine) || ctx.Err() != nil {
			return "", err
		}
		failures = append(failures, s.name+": "+err.Error())
	}
	return "", errors.New("not scanned: " + strings.Join(append(failures, ss.resting(tried)...), "; "))
}

// pick is whom to ask next: a clamd that may be back (back is set: it must be
// pinged), else of those that work the one with the least to do; nil if there is
// none. Its load is counted already. others is how many more could be asked.
func (ss *servers) pick(tried []*server) (best *server, others int, back bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.turn++
	for i := range ss.list {
		s := ss.list[(i+ss.turn)%len(ss.list)]
		// After a single failure everybody may ask, after more only one.
		due := s.failed > 0 && (s.failed == 1 || !s.asking) && !ss.now().Before(s.until)
		if contains(tried, s) || s.failed > 0 && !due {
			continue
		}
		if best != nil {
			others++
		}
		switch {
		case best == nil, due && !back, due == back && s.load < best.load:
			best, back = s, due
		}
	}
	if best != nil {
		best.load++
		best.asking = back
	}
	return best, others, back
}

func contains(list []*server, s *server) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// resting says of those that were not asked why not.
func (ss *servers) resting(tried []*server) (all []string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range ss.list {
		if !contains(tried, s) && s.last != nil {
			all = append(all, fmt.Sprintf("%s: left alone after it failed: %v", s.name, s.last))
		}
	}
	return all
}

var (
	errBusy = errors.New("no connection became free in time: it is too slow for the mail, or \"connections\" is too small")
	errGone = errors.New("it failed while others waited for it")
)

// try has one clamd scan, in its share of the time, and notes how it did.
func (ss *servers) try(ctx context.Context, s *server, others int, back bool, body io.ReaderAt, size int64) (name string, err error) {
	if at, ok := ctx.Deadline(); ok && others > 0 {
		share, cancel := context.WithTimeout(ctx, time.Until(at)/time.Duration(others+1))
		defer cancel()
		ctx = share
	}
	defer func() {
		ss.mu.Lock()
		s.load--
		if back {
			s.asking = false
		}
		ss.mu.Unlock()
	}()
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return "", errBusy
	}
	defer func() { <-s.slots }()
	if back {
		if err := s.ping(ctx); err != nil {
			ss.fail(ctx, s, err)
			return "", err
		}
		ss.restore(ctx, s)
	} else if ss.isDown(s) {
		return "", errGone
	}
	name, err = scan(ctx, s.network, s.address, body, size)
	var no refusal
	var mine readError
	switch {
	case err == nil || errors.As(err, &mine) || errors.Is(ctx.Err(), context.Canceled):
	case errors.As(err, &no):
		if strings.Contains(string(no), sizeExceeded) {
			err = fmt.Errorf("%w: \"max\" is above its StreamMaxLength, lower the one or raise the other", err)
		}
	default:
		ss.fail(ctx, s, err)
	}
	return name, err
}

// ping asks whether a clamd works.
func (s *server) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	answer, err := ask(ctx, s.network, s.address, "PING")
	if err == nil && answer != "PONG" {
		err = fmt.Errorf("clamd answers %q to PING", reply.Clean(answer, maxName))
	}
	return err
}

// isDown reports whether a clamd has failed more than once.
func (ss *servers) isDown(s *server) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return s.failed > 1
}

// fail notes a failure: after the first one, the clamd is asked at once whether
// it is still there, after more of them later and later.
func (ss *servers) fail(ctx context.Context, s *server, err error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	now := ss.now()
	if s.failed > 0 && !s.asking && now.Before(s.until) {
		return // those that began before count once
	}
	s.failed++
	s.last = err
	s.until = now
	if s.failed > 1 {
		s.until = now.Add(min(firstRest<<min(s.failed-2, 10), longestRest))
	}
	if s.failed == 1 {
		ss.log.WarnContext(ctx, "clamd fails", "clamd", s.name, "error", err)
	}
}

// restore notes that a clamd is back, and which one it is.
func (ss *servers) restore(ctx context.Context, s *server) {
	short, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	version, err := ask(short, s.network, s.address, "VERSION")
	if err != nil {
		version = "unknown"
	}
	ss.mu.Lock()
	s.failed, s.last = 0, nil
	ss.mu.Unlock()
	ss.log.InfoContext(ctx, "clamd is back", "clamd", s.name, "version", reply.Clean(version, maxName))
}
