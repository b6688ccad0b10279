package host

import (
	"context"
	"fmt"
	"sync"
)

// pool hands out the processes of a plugin to calls: at most so many calls to
// each, to the one that has the fewest; who comes when all are busy waits, first
// come, first served. It is safe for concurrent use.
type pool struct {
	limit int // calls of one process

	mu      sync.Mutex
	live    []*process
	waiting []chan grant // each has room for one
	// broken is why there is no process, and will be none for a while.
	broken error
	calls  uint64
}

// grant is what a call gets that has waited.
type grant struct {
	p   *process
	err error
}

// take gets a process for one call.
func (l *pool) take(ctx context.Context) (*process, error) {
	l.mu.Lock()
	if p := l.free(); p != nil {
		p.calls++
		l.calls++
		l.mu.Unlock()
		return p, nil
	}
	if err := l.broken; err != nil && len(l.live) == 0 {
		l.mu.Unlock()
		return nil, err
	}
	mine := make(chan grant, 1)
	l.waiting = append(l.waiting, mine)
	l.mu.Unlock()
	select {
	case g := <-mine:
		return g.p, g.err
	case <-ctx.Done():
	}
	if p := l.leave(mine); p != nil {
		l.give(p)
	}
	return nil, fmt.Errorf("all processes of the plugin are busy, or none is ready: %w", ctx.Err())
}

// leave gives up waiting. It returns a process that came too late.
func (l *pool) leave(mine chan grant) *process {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.waiting {
		if w == mine {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			return nil
		}
	}
	return (<-mine).p
}

// free is the process with the fewest calls that may have another one.
func (l *pool) free() *process {
	var best *process
	for _, p := range l.live {
		if p.calls < l.limit && (best == nil || p.calls < best.calls) {
			best = p
		}
	}
	return best
}

// give gives a process back.
func (l *pool) give(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.calls--
	l.serve()
}

// serve serves those who wait. The pool is locked.
func (l *pool) serve() {
	for len(l.waiting) > 0 {
		p := l.free()
		if p == nil {
			return
		}
		p.calls++
		l.calls++
		l.waiting[0] <- grant{p: p}
		l.waiting = l.waiting[1:]
	}
}

// add adds a process.
func (l *pool) add(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live, l.broken = append(l.live, p), nil
	l.serve()
}

// remove takes a process out: it gets no further calls.
func (l *pool) remove(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, one := range l.live {
		if one == p {
			l.live = append(l.live[:i:i], l.live[i+1:]...)
			return
		}
	}
}

// fail tells those who wait, and those who come, that there will be no process
// for a while.
func (l *pool) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.live) > 0 {
		return
	}
	l.broken = err
	for _, w := range l.waiting {
		w <- grant{err: err}
	}
	l.waiting = nil
}

// mend has those who come wait again for a process.
func (l *pool) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = nil
}

// all are the processes there are.
func (l *pool) all() []*process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*process(nil), l.live...)
}

// callsOf is how many calls a process has.
func (l *pool) callsOf(p *process) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return p.calls
}
