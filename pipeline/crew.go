package pipeline

import (
	"sync"
	"time"
)

const (
	// maxResting bounds the workers of a chain that wait for something to do.
	maxResting = 64
	// restTime is how often those that were not needed are dismissed.
	restTime = 100 * time.Millisecond
)

// crew is the workers of a chain, which its sessions share: a session that
// waits for its client has none. A goroutine's stack grows while it makes its
// first call, and that costs more than many a filter; so workers are kept
// between calls, as many as were needed a moment ago. Those of a chain that
// rests end by themselves. Safe for concurrent use.
type crew struct {
	mu      sync.Mutex
	resting []*worker // the last to come is the first to go: its stack is warm
	// spare is how few were resting since the last time that the spare ones were
	// dismissed.
	spare  int
	timer  *time.Timer // of that; nil until the first rest
	armed  bool
	closed bool
}

// hire is a worker that has nothing to do.
func (c *crew) hire() *worker {
	c.mu.Lock()
	n := len(c.resting) - 1
	if n < 0 {
		c.mu.Unlock()
		return newWorker()
	}
	w := c.resting[n]
	c.resting[n] = nil
	c.resting = c.resting[:n]
	c.spare = min(c.spare, n)
	c.mu.Unlock()
	return w
}

// rest takes a worker back whose job has ended.
func (c *crew) rest(w *worker) {
	if w.dead {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.resting) == maxResting {
		close(w.jobs)
		return
	}
	c.resting = append(c.resting, w)
	if c.armed {
		return
	}
	c.armed, c.spare = true, 0
	if c.timer == nil {
		c.timer = time.AfterFunc(restTime, c.dismissSpare)
	} else {
		c.timer.Reset(restTime)
	}
}

// dismissSpare ends the workers that nobody needed since it was last called.
func (c *crew) dismissSpare() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.spare { // the coldest
		close(c.resting[i].jobs)
	}
	left := copy(c.resting, c.resting[c.spare:])
	clear(c.resting[left:])
	c.resting, c.spare = c.resting[:left], left
	if c.armed = left > 0; c.armed {
		c.timer.Reset(restTime)
	}
}

// dismiss ends the workers that rest, and others as soon as their jobs have
// ended.
func (c *crew) dismiss() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.resting {
		close(w.jobs)
	}
	c.resting, c.spare, c.closed = nil, 0, true
	if c.armed {
		c.timer.Stop()
		c.armed = false
	}
}
