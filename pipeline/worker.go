package pipeline

import (
	"sync/atomic"
	"time"
)

// worker is a goroutine that makes a judge's calls, so that the judge can stop
// waiting for one that does not end. It makes one after the other, for this
// session or that; one whose call is given up ends with it.
type worker struct {
	jobs  chan job
	done  chan struct{}
	state atomic.Int32
	dead  bool // set before done is told, by a job that ended the goroutine
}

// job is something to do, and what is to be done at its end if nobody waits for
// it any more.
type job interface {
	do()
	late()
}

// The states of a worker, as far as judge and worker contend for them.
const (
	idle int32 = iota
	busy
	givenUp
)

func newWorker() *worker {
	// There is room for a job and for the news of its end, so that neither side
	// waits for the other to listen.
	w := &worker{jobs: make(chan job, 1), done: make(chan struct{}, 1)}
	go w.run()
	return w
}

func (w *worker) run() {
	for j := range w.jobs {
		if !w.make(j) {
			return
		}
	}
}

// make does a job, and reports whether there may be another.
func (w *worker) make(j job) (more bool) {
	returned := false
	defer func() {
		w.dead = !returned
		if w.state.CompareAndSwap(busy, idle) {
			w.done <- struct{}{}
		} else {
			j.late()
			more = false
		}
	}()
	j.do()
	returned = true
	return true
}

// within has a worker do a job and waits for its end until one of the channels
// tells that the time is over, and a moment longer. It reports whether the job
// has ended.
func (c *crew) within(j job, over <-chan struct{}, late <-chan time.Time) bool {
	w := c.hire()
	w.state.Store(busy)
	w.jobs <- j
	select {
	case <-w.done:
		c.rest(w)
		return true
	case <-over:
	case <-late:
	}
	moment := time.NewTimer(grace)
	defer moment.Stop()
	select {
	case <-w.done:
		c.rest(w)
		return true
	case <-moment.C:
	}
	if w.state.CompareAndSwap(busy, givenUp) {
		return false
	}
	<-w.done
	c.rest(w)
	return true
}
