package pipeline

import (
	"sync/atomic"
	"time"
)

// worker is the goroutine that makes a session's calls, so that the judge can
// stop waiting for one that does not end. It makes one after the other; one that
// is given up ends with its call, and the judge goes on with another.
type worker struct {
	tasks chan task
	done  chan struct{}
	state atomic.Int32
	dead  bool // set before done is told, by a task that ended the goroutine
}

// task is something to do, and what is to be done at its end if nobody waits
// for it any more.
type task struct{ do, late func() }

// The states of a worker, as far as judge and worker contend for them.
const (
	idle int32 = iota
	busy
	givenUp
)

func (w *worker) run() {
	for t := range w.tasks {
		if !w.make(t) {
			return
		}
	}
}

// make does a task, and reports whether there may be another.
func (w *worker) make(t task) (more bool) {
	returned := false
	defer func() {
		w.dead = !returned
		if w.state.CompareAndSwap(busy, idle) {
			w.done <- struct{}{}
		} else {
			t.late()
			more = false
		}
	}()
	t.do()
	returned = true
	return true
}

// within does a task and waits for its end until one of the channels tells that
// the time is over, and a moment longer. It reports whether the task has ended.
func (j *Judge) within(t task, over <-chan struct{}, late <-chan time.Time) bool {
	w := j.worker
	if w == nil {
		w = &worker{tasks: make(chan task), done: make(chan struct{}, 1)}
		j.worker = w
		go w.run()
	}
	w.state.Store(busy)
	w.tasks <- t
	select {
	case <-w.done:
		return j.ended()
	case <-over:
	case <-late:
	}
	moment := time.NewTimer(grace)
	defer moment.Stop()
	select {
	case <-w.done:
		return j.ended()
	case <-moment.C:
	}
	if w.state.CompareAndSwap(busy, givenUp) {
		j.worker = nil
		return false
	}
	<-w.done
	return j.ended()
}

func (j *Judge) ended() bool {
	if j.worker.dead {
		j.worker = nil
	}
	return true
}

// dismiss ends the worker.
func (j *Judge) dismiss() {
	if j.worker != nil {
		close(j.worker.tasks)
		j.worker = nil
	}
}
