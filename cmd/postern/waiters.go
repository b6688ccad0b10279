package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/postern-mta/postern/queue/limit"
)

// waiters are those who wait for room below the limits themselves, because the
// message that they bring is in a queue of theirs and not in ours. For each lane
// there is a line, whose first one alone asks, so that whoever came first goes first.
// It is safe for concurrent use.
type waiters struct {
	mu    sync.Mutex
	lines map[string]map[string][]*waiter // by site and pool
}

// lane is a site, and by which pool of source addresses it is gone to, "" for the
// ordinary one.
type lane struct{ site, pool string }

// waiter is one who waits.
type waiter struct {
	// turn has something in it when it is worth asking: the waiter has become the
	// first, or there may be room.
	turn chan struct{}
	// again is set for one who had leave, which was not enough: those stand before
	// all others.
	again bool
}

func (c *waiter) tell() {
	select {
	case c.turn <- struct{}{}:
	default:
	}
}

// enter joins a line.
func (a *waiters) enter(at lane, again bool) *waiter {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := &waiter{turn: make(chan struct{}, 1), again: again}
	if a.lines == nil {
		a.lines = map[string]map[string][]*waiter{}
	}
	if a.lines[at.site] == nil {
		a.lines[at.site] = map[string][]*waiter{}
	}
	l := a.lines[at.site][at.pool]
	i := len(l)
	if again {
		if i = slices.IndexFunc(l, func(other *waiter) bool { return !other.again }); i < 0 {
			i = len(l)
		}
	}
	a.lines[at.site][at.pool] = slices.Insert(l, i, c)
	return c
}

// first reports whether it is a waiter's turn to ask.
func (a *waiters) first(at lane, c *waiter) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lines[at.site][at.pool][0] == c
}

// leave ends a waiter's waiting; the next one may ask.
func (a *waiters) leave(at lane, c *waiter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pools := a.lines[at.site]
	i := slices.Index(pools[at.pool], c)
	pools[at.pool] = slices.Delete(pools[at.pool], i, i+1)
	switch {
	case len(pools[at.pool]) > 0:
		if i == 0 {
			pools[at.pool][0].tell()
		}
	case len(pools) == 1:
		delete(a.lines, at.site)
	default:
		delete(pools, at.pool)
	}
}

// count is how many wait for a site.
func (a *waiters) count(site string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.lines[site] {
		n += len(l)
	}
	return n
}

// wake has the first ones who wait for a site ask again.
func (a *waiters) wake(site string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.lines[site] {
		l[0].tell()
	}
}

// askAgain is how often the first one of a line asks when nobody has told it to: who
// was told in its place may have had no use for it.
const askAgain = time.Second

// turn waits in line for leave to deliver, until a time. It comes back without leave
// as soon as it is known that there will be none by then. after is what kept an
// earlier leave from being enough, nil for none: it waits for that first.
func (l *limits) turn(ctx context.Context, at lane, end time.Time, after *limit.Refusal) (*permit, *limit.Refusal) {
	c := l.waiters.enter(at, after != nil)
	defer l.waiters.leave(at, c)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for no := after; ; no = nil {
		var leave *permit
		mine := l.waiters.first(at, c)
		if no == nil && mine {
			if leave, no = l.allow(l.now(), at); leave != nil {
				return leave, nil
			}
		}
		pause := end.Sub(l.now())
		if mine {
			pause = min(pause, askAgain)
		}
		if no != nil && !no.Until.IsZero() {
			pause = max(no.Until.Sub(l.now()), time.Millisecond)
		}
		switch {
		case no != nil && hopeless(no, end), ctx.Err() != nil:
			return nil, no
		case pause > 0:
			timer.Reset(pause)
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-c.turn:
			}
		case no != nil:
			return nil, no
		case !l.now().Before(end):
			// Not its turn yet, and the last chance.
			return l.allow(l.now(), at)
		}
	}
}

// hopeless reports whether a refusal lasts beyond a time, as far as is known.
func hopeless(no *limit.Refusal, end time.Time) bool {
	return no.Until.After(end) || no.Until.IsZero() && no.What == "suspended"
}
