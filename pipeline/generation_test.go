package pipeline

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
)

// closing is a filter that counts how often it is closed.
type closing struct {
	fake
	mu     sync.Mutex
	closed int
	err    error
	panics bool
}

func newClosing() *closing {
	return &closing{fake: fake{on: map[Stage]func(asked) (Verdict, error){AtConnect: func(asked) (Verdict, error) { return Verdict{}, nil }}}}
}

func (c *closing) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed++; c.panics {
		panic("closing")
	}
	return c.err
}

func (c *closing) times() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func generation(t *testing.T, n uint64, f Filter) *Generation {
	t.Helper()
	chain := func(name string) *Chain {
		c, err := NewChain(name, []Step{{Name: "f", Filter: f}, {Name: "again", Filter: f}}, ChainOptions{Generation: n})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return NewGeneration(n, chain("inbound"), chain("local"))
}

// TestGeneration: sessions finish on the generation they began with, and the
// last one closes each of its filters once.
func TestGeneration(t *testing.T) {
	var all Generations
	if all.Acquire() != nil {
		t.Error("a generation out of nothing")
	}
	f1, f2 := newClosing(), newClosing()
	f2.err = errors.New("disk")
	if err := all.Swap(generation(t, 1, f1)); err != nil {
		t.Error(err)
	}
	a, b := all.Acquire(), all.Acquire()
	if a != b || a.Number != 1 || a.Chain("inbound").Name() != "inbound" || a.Chain("other") != nil {
		t.Errorf("%+v", a)
	}
	if err := all.Swap(generation(t, 2, f2)); err != nil {
		t.Error(err)
	}
	if c := all.Acquire(); c.Number != 2 {
		t.Errorf("generation %d", c.Number)
	} else if err := c.Release(); err != nil {
		t.Error(err)
	}
	if err := a.Release(); err != nil || f1.times() != 0 {
		t.Errorf("closed %d times, %v", f1.times(), err)
	}
	j := a.Chain("local").Begin()
	if f := j.Connect(context.Background(), &Session{}); f.Action != Continue {
		t.Errorf("%+v", f)
	}
	j.Close()
	if err := b.Release(); err != nil || f1.times() != 1 {
		t.Errorf("closed %d times, %v", f1.times(), err)
	}
	if err := all.Swap(nil); err == nil || !strings.Contains(err.Error(), `closing filter "f": disk`) || f2.times() != 1 {
		t.Errorf("closed %d times, %v", f2.times(), err)
	}
	f3 := newClosing()
	if err := generation(t, 3, f3).Release(); err != nil || f3.times() != 1 {
		t.Errorf("one that never came into force: closed %d times, %v", f3.times(), err)
	}
	f3.panics = true
	if err := generation(t, 4, f3).Release(); err == nil || !strings.Contains(err.Error(), "panic: closing") {
		t.Errorf("%v", err)
	}
	c := newChain(t, ChainOptions{}, Step{Filter: f1}, Step{Filter: connectFilter{}})
	if err := c.Close(); err != nil || f1.times() != 2 {
		t.Errorf("closed %d times, %v", f1.times(), err)
	}
}

// TestGenerationsRace swaps under load: no filter is closed while a session
// uses it, and all are in the end.
func TestGenerationsRace(t *testing.T) {
	var all Generations
	var filters []*closing
	swap := func(n int) {
		f := newClosing()
		filters = append(filters, f)
		if err := all.Swap(generation(t, uint64(n), f)); err != nil {
			t.Error(err)
		}
	}
	swap(0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				g := all.Acquire()
				if n := g.Chain("inbound").Steps()[0].Filter.(*closing).times(); n != 0 {
					t.Errorf("generation %d in use is closed", g.Number)
				}
				if err := g.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range 100 {
		swap(n + 1)
	}
	wg.Wait()
	if err := all.Swap(nil); err != nil {
		t.Error(err)
	}
	for i, f := range filters {
		if f.times() != 1 {
			t.Errorf("generation %d is closed %d times", i, f.times())
		}
	}
}
