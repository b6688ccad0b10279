package pipeline

import (
	"context"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// bare is a chain that nobody closes.
func bare(t *testing.T, steps ...Step) *Chain {
	t.Helper()
	for i := range steps {
		steps[i].Name = "f"
	}
	c, err := NewChain("test", steps, ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *crew) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.resting)
}

var bubble = regexp.MustCompile(`synctest bubble \d+`)

// workers tells how many goroutines of this bubble make calls or wait for one.
func workers(t *testing.T) int {
	t.Helper()
	synctest.Wait()
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	all := strings.Split(string(stacks), "\n\n")
	mine := bubble.FindString(all[0]) // the first is the caller's
	if mine == "" || len(stacks) == cap(stacks) {
		t.Fatal("cannot tell the bubble's goroutines")
	}
	n := 0
	for _, g := range all[1:] {
		if strings.Contains(g, "(*worker).run") && bubble.FindString(g) == mine {
			n++
		}
	}
	return n
}

// TestCrewIsShared: one worker makes the calls of a thousand sessions that take
// turns, and a session that waits for its client has none.
func TestCrewIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChain(t, ChainOptions{}, Step{Filter: says(AtConnect, Verdict{})}, Step{Filter: says(AtHelo, Verdict{})})
		var judges []*Judge
		for range 1000 {
			j := c.Begin()
			j.Connect(context.Background(), &Session{})
			j.Helo(context.Background(), &Session{})
			judges = append(judges, j)
		}
		if n := workers(t); n != 1 || c.crew.count() != 1 {
			t.Errorf("%d workers, %d rest", n, c.crew.count())
		}
		for _, j := range judges {
			j.Reset()
			j.Close()
		}
		if n := workers(t); n != 1 {
			t.Errorf("%d workers", n)
		}
	})
}

// TestCrewRests: of many workers as many are kept as the bound says, then as
// many as there is work for, and in the end none, though nobody closes the
// chain.
func TestCrewRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := bare(t, Step{Filter: at(AtConnect, func(asked) (Verdict, error) { time.Sleep(time.Millisecond); return Verdict{}, nil })})
		load := func(sessions int) {
			var wg sync.WaitGroup
			for range sessions {
				wg.Go(func() {
					j := c.Begin()
					j.Connect(context.Background(), &Session{})
					j.Close()
				})
			}
			wg.Wait()
		}
		load(500)
		if n := workers(t); n != maxResting || c.crew.count() != maxResting {
			t.Errorf("%d workers after the rush, %d rest", n, c.crew.count())
		}
		for range 500 { // half a second of less work
			load(3)
		}
		if n := workers(t); n != 3 || c.crew.count() != 3 {
			t.Errorf("%d workers for three sessions at a time, %d rest", n, c.crew.count())
		}
		time.Sleep(2 * restTime)
		if n := workers(t); n != 0 || c.crew.count() != 0 || c.crew.armed {
			t.Errorf("%d workers of a chain that rests", n)
		}
		load(1) // and again
		if n := workers(t); n != 1 {
			t.Errorf("%d workers", n)
		}
		time.Sleep(2 * restTime)
	})
}

// TestCrewClosed: a closed chain keeps no worker, also of calls that end later.
func TestCrewClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := bare(t, Step{Filter: at(AtConnect, func(asked) (Verdict, error) { time.Sleep(time.Second); return Verdict{}, nil })})
		j := c.Begin()
		j.Connect(context.Background(), &Session{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			other := c.Begin()
			other.Connect(context.Background(), &Session{})
			other.Close()
		}()
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-ended
		j.Close()
		if n := workers(t); n != 0 {
			t.Errorf("%d workers of a closed chain", n)
		}
		if err := c.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	})
}

// TestCrewLeavesTheLost: a worker whose call overran its time, or ended its
// goroutine, makes no other call.
func TestCrewLeavesTheLost(t *testing.T) {
	for name, lost := range map[string]func(asked) (Verdict, error){
		"overrun": func(asked) (Verdict, error) { time.Sleep(time.Hour); return Verdict{}, nil },
		"goexit":  func(asked) (Verdict, error) { runtime.Goexit(); return Verdict{}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var begun atomic.Bool
				c := bare(t, Step{Timeout: time.Second, Filter: at(AtConnect, func(a asked) (Verdict, error) {
					if !begun.Swap(true) {
						return lost(a)
					}
					return Verdict{Action: Accept}, nil
				})})
				j := c.Begin()
				if fate := j.Connect(context.Background(), &Session{}); fate.Action != Defer {
					t.Errorf("%+v", fate)
				}
				if n := c.crew.count(); n != 0 {
					t.Errorf("%d rest after the call was lost", n)
				}
				for range 100 {
					other := c.Begin()
					if fate := other.Connect(context.Background(), &Session{}); fate.Action != Accept {
						t.Errorf("%+v", fate)
					}
					other.Close()
				}
				j.Close()
				time.Sleep(2 * time.Hour)
				if n := workers(t); n != 0 {
					t.Errorf("%d workers in the end", n)
				}
			})
		})
	}
}
