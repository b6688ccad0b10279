package main

import (
	"context"
	"log/slog"
	"maps"
	"runtime"
	"sync"

	"github.com/postern-mta/postern/filters/clamav"
	"github.com/postern-mta/postern/filters/execban"
	"github.com/postern-mta/postern/filters/pattern"
	"github.com/postern-mta/postern/pipeline/worker"
)

// jobs are what a worker process of this program can do.
func jobs() map[string]worker.Job {
	all := execban.Jobs()
	maps.Copy(all, clamav.Jobs())
	maps.Copy(all, pattern.Jobs())
	return all
}

// workers is the daemon's pool, which starts when a filter first asks for it: a
// daemon whose filters parse nothing hostile has none.
type workers struct {
	directory string // for temporary files without a name; "" keeps them in memory
	log       *slog.Logger

	mu     sync.Mutex
	pool   *worker.Pool
	closed bool
	told   worker.Layers // layers that are missing, and that the log has
}

// Do does a job in a worker process.
func (w *workers) Do(ctx context.Context, r worker.Request) ([]byte, error) {
	p, err := w.get()
	if err != nil {
		return nil, err
	}
	return p.Do(ctx, r)
}

// The pool's size, in processes.
const (
	minWorkers = 4
	maxWorkers = 16
)

func (w *workers) get() (*worker.Pool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, worker.ErrClosed
	}
	if w.pool == nil {
		w.pool = worker.New(worker.Options{Size: min(max(runtime.NumCPU(), minWorkers), maxWorkers), Directory: w.directory, Report: w.report})
	}
	return w.pool, nil
}

// report logs what happens to workers.
func (w *workers) report(e worker.Event) {
	switch {
	case e.Err != nil:
		w.log.Warn("a worker process failed", "pid", e.PID, "error", e.Err)
	case e.Replaced:
		w.log.Debug("a worker process has done its share", "pid", e.PID)
	default:
		w.mu.Lock()
		missing := e.Layers.Missing()
		fresh := missing &^ w.told
		w.told |= missing
		w.mu.Unlock()
		if fresh != 0 {
			w.log.Warn("worker processes are less confined than they could be: this kernel, or the daemon's rights, do not grant everything", "missing", fresh.String())
		}
	}
}

// close ends the processes.
func (w *workers) close() {
	if w == nil {
		return
	}
	w.mu.Lock()
	w.closed = true
	p := w.pool
	w.mu.Unlock()
	if p != nil {
		p.Close() //nolint:errcheck // it has none to tell
	}
}
