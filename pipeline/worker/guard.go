package worker

import (
	"context"
	"sync"
	"time"
)

// look is how often the memory of a worker that has a job is looked at.
const look = 20 * time.Millisecond

// guard watches a worker during a job: it is killed when the context ends, the
// pool is closed, or its memory grows beyond what it may have.
type guard struct {
	unhook func() bool
	timer  *time.Timer
	mu     sync.Mutex
	over   bool
}

func (p *Pool) guard(ctx context.Context, w *process) *guard {
	g := &guard{}
	g.unhook = context.AfterFunc(ctx, func() { g.kill(w) })
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer = time.AfterFunc(look, func() {
		if now, ok := w.resident(); ok && now-w.base > p.options.Memory {
			w.greedy.Store(true)
			g.kill(w)
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.over {
			g.timer.Reset(look)
		}
	})
	return g
}

func (g *guard) kill(w *process) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		_ = w.os.Kill()
	}
}

// stop ends the watch: nothing happens to the worker afterwards.
func (g *guard) stop() {
	g.unhook()
	g.timer.Stop()
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
}
