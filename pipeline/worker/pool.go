package worker

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"
)

// Pool keeps workers. All methods are safe for concurrent use.
type Pool struct {
	options Options
	wanted  chan struct{} // one for each worker to be started
	done    chan struct{}
	all     sync.WaitGroup // goroutines and processes

	mu      sync.Mutex
	live    map[*process]bool
	idle    []*process      // those of live that nobody has taken
	waiters []chan *process // jobs that wait, the first one first; each has room for one
	closed  bool
	stats   Stats
	failed  error // why the last start failed; nil after one that did not
}

// Stats are the pool's numbers.
type Stats struct {
	Live, Idle, Waiting, Running int // workers, and jobs
	// Since the pool was made.
	Jobs, Started, Replaced, StartFailures uint64
	Died, Slow, Garbage, Busy, KilledTwo   uint64
	// Layers is what is on in every worker of now, Missing what is not in some.
	Layers, Missing Layers
	StartError      error // why the last start failed; nil after one that did not
}

// New makes a pool and starts its workers in the background. Close ends it.
func New(o Options) *Pool {
	o = o.defaults()
	p := &Pool{
		options: o,
		wanted:  make(chan struct{}, o.Size),
		done:    make(chan struct{}),
		live:    map[*process]bool{},
	}
	for range o.Size {
		p.wanted <- struct{}{}
	}
	p.all.Add(1)
	go p.spawn()
	return p
}

// Close kills the workers and waits until nothing is left of them. Jobs that
// run end with ErrClosed.
func (p *Pool) Close() error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.done)
		for w := range p.live {
			_ = w.os.Kill() // it may have ended
		}
	}
	p.mu.Unlock()
	p.all.Wait()
	return nil
}

// Stats is a snapshot.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Live, s.Idle, s.Waiting, s.StartError = len(p.live), len(p.idle), len(p.waiters), p.failed
	s.Layers = allLayers
	ready := 0
	for w := range p.live {
		if w.layers != 0 {
			s.Layers &= w.layers
			ready++
		}
	}
	if ready == 0 {
		s.Layers = 0
	}
	s.Missing = s.Layers.Missing()
	return s
}

// put gives a worker to the job that waits longest, or to the idle ones.
func (p *Pool) put(w *process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiters) > 0 {
		p.waiters[0] <- w
		p.waiters = p.waiters[1:]
		return
	}
	if p.live[w] {
		p.idle = append(p.idle, w)
	} else {
		w.close() // it ended, or the pool, before it was put back
	}
}

// take waits for an idle worker, which is the caller's then.
func (p *Pool) take(ctx context.Context) (*process, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	if n := len(p.idle); n > 0 {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return w, nil
	}
	if len(p.waiters) >= p.options.Queue {
		defer p.mu.Unlock()
		return nil, p.busy("too many jobs wait")
	}
	mine := make(chan *process, 1)
	p.waiters = append(p.waiters, mine)
	p.mu.Unlock()

	t := time.NewTimer(p.options.Wait)
	defer t.Stop()
	var err error
	select {
	case w := <-mine:
		return w, nil
	case <-t.C:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-p.done:
		err = ErrClosed
	}
	p.mu.Lock()
	i := slices.Index(p.waiters, mine)
	if i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
	}
	if err == nil {
		err = p.busy("waited " + p.options.Wait.String())
	}
	p.mu.Unlock()
	if i < 0 { // given one meanwhile
		p.put(<-mine)
	}
	return nil, err
}

// busy is the failure of a job that gets no worker. The mutex is held.
func (p *Pool) busy(how string) error {
	p.stats.Busy++
	if p.failed != nil {
		how += "; the last one could not be started: " + p.failed.Error()
	}
	return &Failure{Kind: ErrBusy, How: how}
}

// Do does a job and returns its answer. An error is a *Failure, ErrKilledTwo,
// ErrClosed, that of ctx, that of reading the body, or a JobError. It is never
// about the message, but for ErrKilledTwo.
func (p *Pool) Do(ctx context.Context, r Request) ([]byte, error) {
	l, err := pack(&r, &p.options)
	if err != nil {
		return nil, err
	}
	defer l.close()
	answer, first := p.try(ctx, &r, l)
	if !errors.Is(first, ErrDied) && !errors.Is(first, ErrGarbage) {
		return answer, first
	}
	answer, second := p.try(ctx, &r, l)
	if errors.Is(second, ErrDied) || errors.Is(second, ErrGarbage) {
		p.count(func(s *Stats) { s.KilledTwo++ })
		return nil, &twice{first, second}
	}
	return answer, second
}

func (p *Pool) count(f func(*Stats)) {
	p.mu.Lock()
	f(&p.stats)
	p.mu.Unlock()
}

// try does a job on one worker. One that turns out to have been dead before is
// not the job's fault.
func (p *Pool) try(ctx context.Context, r *Request, l *load) (answer []byte, err error) {
	for range maxDead {
		w, err := p.take(ctx)
		if err != nil {
			return nil, err
		}
		p.count(func(s *Stats) { s.Jobs++; s.Running++ })
		answer, err = p.do(ctx, w, r, l)
		p.count(func(s *Stats) { s.Running-- })
		if !errors.Is(err, errHungUp) {
			return answer, err
		}
	}
	return nil, &Failure{Kind: ErrBusy, How: "the workers end without a job"}
}

// maxDead is how many workers in a row may turn out to be dead.
const maxDead = 20

// do does a job and puts the worker back, or to rest.
func (p *Pool) do(ctx context.Context, w *process, r *Request, l *load) ([]byte, error) {
	began := time.Now()
	_ = w.conn.SetDeadline(began.Add(l.header.deadline))
	guard := p.guard(ctx, w)
	answer, err := w.exchange(r, l, p.options.Answer)
	took := time.Since(began)
	guard.stop()
	var job JobError
	if err == nil || errors.As(err, &job) {
		w.jobs++
		w.busy += took
		p.release(w, took)
		return answer, err
	}
	err = p.blame(ctx, w, err)
	w.close()
	return nil, err
}

// exchange sends a request and reads the answer.
func (w *process) exchange(r *Request, l *load, limit int) ([]byte, error) {
	w.sequence++
	h := l.header
	h.sequence = w.sequence
	if err := w.send(r, h, l.body, l.files); err != nil {
		return nil, err
	}
	kind, answer, err := w.answer(w.sequence, limit)
	switch {
	case errors.Is(err, errHungUp):
		return nil, ErrDied
	case err != nil:
		return nil, err
	case kind == kindError:
		return nil, JobError(clean(answer, maxLine))
	case kind != kindAnswer:
		return nil, &Failure{Kind: ErrGarbage, How: "an answer of no kind"}
	}
	if r.Decode != nil {
		if err := r.Decode(answer); err != nil {
			return nil, &Failure{Kind: ErrGarbage, How: clean([]byte(err.Error()), maxLine)}
		}
	}
	return answer, nil
}

// blame ends a worker that failed and says why it did.
func (p *Pool) blame(ctx context.Context, w *process, err error) error {
	if errors.Is(err, ErrDied) || errors.Is(err, errHungUp) {
		// It may be dying: how it ends is its own doing.
		select {
		case <-w.gone:
		case <-time.After(time.Second):
		}
	}
	w.kill()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	select {
	case <-p.done:
		return ErrClosed
	default:
	}
	if errors.Is(err, errHungUp) {
		p.report(Event{PID: w.pid, Err: w.death()})
		return err
	}
	switch {
	case errors.Is(err, ErrDied), w.greedy.Load():
		err = w.death()
		p.count(func(s *Stats) { s.Died++ })
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = &Failure{Kind: ErrSlow}
		p.count(func(s *Stats) { s.Slow++ })
	case errors.Is(err, ErrGarbage):
		p.count(func(s *Stats) { s.Garbage++ })
	default:
		err = &Failure{Kind: ErrDied, How: err.Error()}
		p.count(func(s *Stats) { s.Died++ })
	}
	p.report(Event{PID: w.pid, Err: err})
	return err
}

// release puts a worker back, unless it has done its share.
func (p *Pool) release(w *process, took time.Duration) {
	due := w.jobs >= p.options.Jobs || w.busy > cpuLimit(&p.options)/4
	if !due && (took > time.Millisecond || w.jobs%64 == 0) {
		now, ok := w.resident()
		due = ok && now-w.base > p.options.Growth
	}
	if !due {
		p.put(w)
		return
	}
	_ = w.os.Kill() // no need to wait
	w.close()
	p.count(func(s *Stats) { s.Replaced++ })
	p.report(Event{PID: w.pid, Replaced: true})
}
