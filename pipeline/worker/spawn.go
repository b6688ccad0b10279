package worker

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// startTimeout is how long a worker may take until it is ready.
const startTimeout = 20 * time.Second

// spawn starts workers, all on one thread: the kernel kills them when that ends.
func (p *Pool) spawn() {
	runtime.LockOSThread() // never unlocked, so that the thread ends with it
	defer p.all.Done()
	pause := p.options.Backoff
	for {
		select {
		case <-p.wanted:
		case <-p.done:
			p.bury()
			return
		}
		err := p.start()
		if err == nil {
			pause = p.options.Backoff
			continue
		}
		p.startFailed(err)
		p.sleep(pause)
		pause = min(2*pause, 64*p.options.Backoff)
		p.want()
	}
}

// bury waits, at the end, until all processes are gone: the thread must not end
// before, so that each is seen to end.
func (p *Pool) bury() {
	p.mu.Lock()
	var rest []*process
	for w := range p.live {
		rest = append(rest, w)
	}
	p.mu.Unlock()
	for _, w := range rest {
		w.kill()
	}
}

// sleep pauses, less long if the pool is closed.
func (p *Pool) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.done:
	}
}

// want asks for a worker.
func (p *Pool) want() {
	select {
	case p.wanted <- struct{}{}:
	default: // as many as there may be are wanted
	}
}

func (p *Pool) startFailed(err error) {
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.stats.StartFailures++
		p.failed = fmt.Errorf("a worker cannot be started: %w", err)
		err = p.failed
	}
	p.mu.Unlock()
	if !closed {
		p.report(Event{Err: err})
	}
}

func (p *Pool) report(e Event) {
	if p.options.Report != nil {
		p.options.Report(e)
	}
}

// start starts a worker, waits until it is ready, and puts it to the idle ones.
func (p *Pool) start() error {
	w, err := start(&p.options)
	if err != nil {
		return err
	}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.live[w] = true
	}
	p.mu.Unlock()
	if closed {
		w.kill()
		w.close()
		return ErrClosed
	}
	layers, err := w.greet(startTimeout)
	if err != nil {
		w.kill()
		if errors.Is(err, errHungUp) {
			err = w.death()
		}
		p.leave(w)
		w.close()
		return err
	}
	p.mu.Lock()
	p.stats.Started++
	p.failed = nil
	w.layers = layers
	p.mu.Unlock()
	p.report(Event{PID: w.pid, Layers: layers})
	p.all.Add(1)
	go p.watch(w)
	p.put(w)
	return nil
}

// leave takes a worker that is gone out of the pool, and reports whether nobody
// had taken it.
func (p *Pool) leave(w *process) (idle bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.live, w)
	i := slices.Index(p.idle, w)
	if i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	return i >= 0
}

// watch waits until a worker is gone and asks for another.
func (p *Pool) watch(w *process) {
	defer p.all.Done()
	born := time.Now()
	<-w.gone
	if p.leave(w) {
		if time.Since(born) < time.Second {
			p.sleep(p.options.Backoff) // it may be a habit
		}
		select {
		case <-p.done:
		default:
			p.report(Event{PID: w.pid, Err: w.death()})
		}
		w.close()
	}
	p.want()
}
