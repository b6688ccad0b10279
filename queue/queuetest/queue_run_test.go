package queuetest

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/queue/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestQueueRandom makes random operations on a queue, crashes among them, and
// looks in the end that every message it acknowledged was delivered whole, or
// reported, or deleted by the operator; that nothing was delivered twice
// without a crash; and that nothing is left.
func TestQueueRandom(t *testing.T) {
	defaultSeeds := 300
	if testing.Short() {
		defaultSeeds = 30
	}
	start, runs := time.Now(), 0
	for seed := range seeds(t, defaultSeeds) {
		runs++
		synctest.Test(t, func(t *testing.T) {
			if err := randomWorld(seed); err != nil {
				t.Errorf("seed %d (repeat with POSTERN_SEED=%d): %v", seed, seed, err)
			}
		})
		if t.Failed() {
			break
		}
	}
	t.Logf("%d runs of %d operations in %v", runs, operations, time.Since(start).Round(time.Millisecond))
}

func randomWorld(seed uint64) error {
	w := newWorld(seed)
	if err := w.open(); err != nil {
		return err
	}
	g := rand.New(rand.NewPCG(seed, 11))
	for i := range operations {
		if err := randomOperation(w, g); err != nil {
			w.close() //nolint:errcheck // the error that counts came before
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	err := w.drain()
	if cerr := w.close(); err == nil {
		err = cerr
	}
	return err
}

func randomOperation(w *world, g *rand.Rand) error {
	size := [...]int{20, 2000, 70_000}[g.IntN(3)]
	switch n := g.IntN(100); {
	case n < 30:
		return w.submit(nil, w.write(size, 1+g.IntN(3)))
	case n < 36:
		return w.split(w.write(size, 2))
	case n < 40:
		return w.submit(nil, w.write(size, 1), w.write(20, 2))
	case n < 44:
		return w.submit(&store.Hold{Reason: "a virus"}, w.write(size, 2))
	case n < 60:
		return w.operate(g.IntN(4))
	case n < 62:
		return w.verify()
	case n < 80:
		time.Sleep(time.Duration(g.IntN(20)) * time.Second)
		return nil
	case n < 88:
		time.Sleep(time.Duration(g.IntN(6)) * time.Minute)
		synctest.Wait()
		return nil
	case n < 91:
		if err := w.close(); err != nil {
			return err
		}
		w.mu.Lock()
		w.epoch++
		w.mu.Unlock()
		return w.open()
	case n < 95:
		return w.crash(w.cut(g.IntN(101), g, Call{}))
	}
	return crashLater(w, g)
}

// crashLater cuts the power in the midst of the operations that follow.
func crashLater(w *world, g *rand.Rand) error {
	var mu sync.Mutex
	var at *worldWreck
	left, percent, h := g.IntN(60), g.IntN(101), rand.New(rand.NewPCG(g.Uint64(), 17))
	w.fs.Hook(func(c Call) error {
		mu.Lock()
		defer mu.Unlock()
		if left--; left == -1 {
			wr := w.cut(percent, h, c)
			at = &wr
		}
		return nil
	})
	for _, do := range []func() error{
		func() error { return w.submit(nil, w.write(70_000, 2)) },
		func() error { return w.submit(nil, w.write(20, 1)) },
		func() error { return w.operate(g.IntN(4)) },
		func() error { time.Sleep(10 * time.Second); return nil },
		func() error { return w.split(w.write(20, 2)) },
		func() error { time.Sleep(2 * time.Minute); return nil },
	} {
		if err := do(); err != nil {
			return err
		}
		mu.Lock()
		done := at != nil
		mu.Unlock()
		if done {
			break
		}
	}
	w.fs.Hook(nil)
	mu.Lock()
	wr := at
	mu.Unlock()
	if wr == nil {
		return nil
	}
	return w.crash(*wr)
}

// TestQueueCrash cuts the power at every change of the file system that a
// scenario makes, and goes on from there to the end.
func TestQueueCrash(t *testing.T) {
	wait := func(d time.Duration) func(*world) error {
		return func(*world) error {
			time.Sleep(d)
			synctest.Wait()
			return nil
		}
	}
	submit := func(size, recipients int) func(*world) error {
		return func(w *world) error { return w.submit(nil, w.write(size, recipients)) }
	}
	operate := func(order int) func(*world) error {
		return func(w *world) error { return w.operate(order) }
	}
	for n, sc := range []struct {
		name  string
		steps []func(*world) error
	}{
		{"deliver", []func(*world) error{submit(20, 3), submit(2000, 1), wait(time.Minute), submit(20, 2), wait(4 * time.Minute)}},
		{"large and shared", []func(*world) error{
			submit(70_000, 2), func(w *world) error { return w.split(w.write(70_000, 2)) }, wait(time.Minute), wait(4 * time.Minute),
		}},
		{"expire and report", []func(*world) error{submit(20, 3), submit(20, 1), submit(20, 1), submit(20, 2), wait(worldLifetime), wait(5 * time.Minute)}},
		{"operate", []func(*world) error{
			submit(20, 1), submit(70_000, 2), submit(20, 1), operate(0), wait(time.Minute), operate(1), submit(20, 2), operate(3), operate(2), wait(4 * time.Minute),
		}},
	} {
		t.Run(sc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { crashScenario(t, uint64(n), sc.steps) })
		})
	}
}

func crashScenario(t *testing.T, seed uint64, steps []func(*world) error) {
	w := newWorld(seed)
	var mu sync.Mutex
	var wrecks []worldWreck
	g := rand.New(rand.NewPCG(seed, 13))
	calls, stride := 0, stride()
	w.fs.Hook(func(c Call) error {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls%stride != 0 {
			return nil
		}
		wrecks = append(wrecks, w.cut([...]int{0, 100, 50, 20}[len(wrecks)%4], g, c))
		return nil
	})
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	for i, step := range steps {
		if err := step(w); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	w.fs.Hook(nil)
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	for i, wr := range wrecks {
		after := newWorld(seed + 1000)
		after.mem, after.fs = wr.mem, NewFaultFS(wr.mem)
		after.mail, after.events, after.epoch = w.mail, w.events[:wr.events:wr.events], 1
		err := after.open()
		if err == nil {
			if err = after.drain(); err != nil {
				after.close() //nolint:errcheck // the error that counts came before
			} else {
				err = after.close()
			}
		}
		if err != nil {
			t.Fatalf("power cut %d of %d, before %s of %s: %v", i, len(wrecks), wr.call.Op, wr.call.Path, err)
		}
	}
	t.Logf("%d power cuts", len(wrecks))
}
