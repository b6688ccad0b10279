package queuetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/queue/store"
)

// Scenario is steps that are made one after the other on a new store, which
// the first one opens. A step that failed is not made again.
type Scenario struct {
	Name  string
	Steps []func(*Run) error
}

// Scenarios are those that Crash and Fail go through.
func Scenarios() []Scenario {
	open := (*Run).Open
	reopen := func(r *Run) error {
		if err := r.S.Close(); err != nil {
			return err
		}
		return r.Open()
	}
	random := func(do func(*player) error) func(*Run) error {
		return func(r *Run) error { return do(&player{Run: r}) }
	}
	small := func(r *Run) error { return (&player{Run: r}).putOne(2, 3000) }
	large := func(r *Run) error { return (&player{Run: r}).putOne(1, 70_000) }
	removeOldest := func(later bool) func(*Run) error {
		return func(r *Run) error {
			ids := r.Shows().IDs()
			if len(ids) == 0 {
				return nil
			}
			return r.Apply(context.Background(), &store.Batch{Removes: ids[:1]}, later)
		}
	}
	return []Scenario{
		{"accept", []func(*Run) error{open, small, random((*player).split), random((*player).policy), small, random((*player).together)}},
		{"large bodies", []func(*Run) error{
			open, large, splitLarge, removeOldest(false), removeOldest(true), random((*player).edit), large, removeOldest(false), removeOldest(false),
		}},
		{"deliver", []func(*Run) error{
			open, small, small, random((*player).states), random((*player).statesLater), random((*player).hold), random((*player).hold),
			removeOldest(true), random((*player).statesLater), removeOldest(false),
		}},
		// Enough to fill the log, so that tables are written and merged.
		{"grow and restart", []func(*Run) error{open, small, grow, removeOldest(false), grow, large, reopen, removeOldest(false), small}},
	}
}

func splitLarge(r *Run) error {
	put, err := r.Put(1, 66_000)
	if err != nil {
		return err
	}
	id, err := r.ID()
	if err != nil {
		release(&store.Batch{Puts: []store.Put{put}})
		return err
	}
	m := r.message(id, 2)
	m.Body.Of = put.Message.ID
	return r.Apply(context.Background(), &store.Batch{Puts: []store.Put{put, {Message: m}}}, false)
}

func grow(r *Run) error {
	b := &store.Batch{}
	for range 5 {
		put, err := r.Put(1, 12_000)
		if err != nil {
			release(b)
			return err
		}
		b.Puts = append(b.Puts, put)
	}
	return r.Apply(context.Background(), b, false)
}

// stride is how many changes of the file system it is from one that Crash or
// Fail takes to the next: 1, or with -short a number that keeps the turns of what
// is left then.
func stride() int {
	if testing.Short() {
		return 9
	}
	return 1
}

// Crash cuts the power before every change of the file system that a scenario
// makes, and in the middle of every write, and goes on from there: with what
// was flushed, with all that was written, or with a part of it.
func Crash(t *testing.T, open Open) {
	for n, sc := range Scenarios() {
		t.Run(sc.Name, func(t *testing.T) {
			var mu sync.Mutex
			var wrecks []Wreck
			r := NewRun(open, uint64(n), func(err error) { panic(err) })
			g := rand.New(rand.NewPCG(uint64(n), 3))
			calls, stride := 0, stride()
			r.FS.Hook(func(c Call) error {
				mu.Lock()
				defer mu.Unlock()
				if calls++; calls%stride != 0 {
					return nil
				}
				percent := [...]int{0, 100, 50, 20}[len(wrecks)%4]
				wrecks = append(wrecks, r.Crash(percent, g, c))
				return nil
			})
			for i, step := range sc.Steps {
				if err := step(r); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
			}
			r.FS.Hook(nil)
			mustClose(t, r.S)
			for i, w := range wrecks {
				if err := recoverWreck(open, w, i%4 == 0); err != nil {
					t.Fatalf("power cut %d of %d: %v", i, len(wrecks), err)
				}
			}
			t.Logf("%d power cuts", len(wrecks))
		})
	}
}

// recoverWreck opens what a crash left, finds it sound, and works on it.
func recoverWreck(open Open, w Wreck, reopen bool) error {
	r := NewRun(open, 1, func(err error) { panic(err) })
	if err := r.Resume(w); err != nil {
		return err
	}
	p := &player{Run: r}
	steps := []func() error{p.put, p.remove, p.putLarge}
	if reopen {
		steps = append(steps, p.reopen)
	}
	for _, do := range append(steps, func() error { return p.S.Close() }) {
		if err := do(); err != nil {
			return fmt.Errorf("after a crash before %s of %s: %w", w.Call.Op, w.Call.Path, err)
		}
	}
	return nil
}

// Faults are the errors that Fail makes calls give.
var faults = []error{syscall.EIO, syscall.ENOSPC}

// Fail lets every change of the file system that a scenario makes fail once,
// and writes also after their first half. Whatever the store answers, it must
// then be in a state that it may be in: a batch that was refused is not there,
// one that was acknowledged is, for a process that starts after this one has
// ended, and after a power cut, by turns.
func Fail(t *testing.T, open Open) {
	for n, sc := range Scenarios() {
		t.Run(sc.Name, func(t *testing.T) {
			refused, ended, failed := 0, 0, 0
			for at := 1; ; at += stride() {
				f := failure{at: at, err: faults[at%len(faults)], fatal: make(chan error, 1), done: make(chan error, 1)}
				reached, err := f.run(open, sc, uint64(n))
				if err != nil {
					t.Fatalf("call %d (%s of %s) fails with %v: %v", at, f.call.Op, f.call.Path, f.err, err)
				}
				if !reached {
					break
				}
				failed++
				refused += f.refused
				if f.died {
					ended++
				}
			}
			t.Logf("%d calls failed: %d steps were refused, %d processes ended", failed, refused, ended)
		})
	}
}

// failure is one run with one call that fails.
type failure struct {
	at      int
	err     error
	fatal   chan error
	done    chan error
	mu      sync.Mutex
	call    Call
	calls   int
	wreck   Wreck // of a process that ended
	died    bool
	refused int
}

// patience is how long a run may take; it takes milliseconds.
const patience = 2 * time.Minute

func (f *failure) run(open Open, sc Scenario, seed uint64) (reached bool, err error) {
	var r *Run
	r = NewRun(open, seed, func(err error) {
		f.end(r)
		select {
		case f.fatal <- err:
		default:
		}
		select {} // a store's goroutine may neither return nor unwind here
	})
	r.FS.Hook(f.hook)
	go func() {
		f.done <- f.steps(r, sc)
	}()
	select {
	case err = <-f.done:
		if f.ended() {
			err = nil
		}
	case <-f.fatal:
	case <-time.After(patience):
		return true, errors.New("the store hangs")
	}
	if err != nil {
		return true, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.died {
		f.wreck = f.leave(r)
	}
	return f.calls >= f.at, recoverWreck(open, f.wreck, f.at%8 < 2)
}

func (f *failure) hook(c Call) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.died {
		f.mu.Unlock()
		select {} // what a dead process does not do
	}
	if f.calls++; f.calls == f.at {
		f.call = c
		return f.err
	}
	return nil
}

// end is the end of the process: nothing that it does from now on counts.
func (f *failure) end(r *Run) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.died {
		f.died = true
		f.wreck = f.leave(r)
	}
}

func (f *failure) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.died
}

// leave is what is left of a process that was killed, or after a power cut.
func (f *failure) leave(r *Run) Wreck {
	if f.at/2%2 == 0 {
		return r.Crash(100, rand.New(rand.NewPCG(0, 0)), f.call)
	}
	return r.Crash(0, nil, f.call)
}

// steps makes all steps; the one in which the call fails may fail.
func (f *failure) steps(r *Run, sc Scenario) error {
	for i, step := range sc.Steps {
		err := step(r)
		if err == nil {
			continue
		}
		if f.ended() {
			return nil
		}
		f.mu.Lock()
		f.refused++
		again := f.refused > 1 || f.calls < f.at
		f.mu.Unlock()
		if again {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if r.S == nil || closed(r.S) {
			if err := r.Open(); err != nil {
				return fmt.Errorf("opening again after %w: %w", f.err, err)
			}
		}
	}
	f.mu.Lock()
	before := f.calls < f.at
	f.mu.Unlock()
	if err := r.S.Close(); err != nil && !before {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

func closed(s store.Store) bool {
	r, err := s.Reader()
	if err != nil {
		return true
	}
	r.Close()
	return false
}
