package serverstest

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// UnderLoad stops a server while jobs come in, and starts it again: they are done
// before, fail meanwhile, and are done soon after. job does one; it reports
// whether the server did it, or that it failed as it should, or an error.
func UnderLoad(t testing.TB, job func() (done bool, err error), stop, start func()) {
	t.Helper()
	var did, failed atomic.Int64
	end := make(chan struct{})
	var senders sync.WaitGroup
	for range 3 {
		senders.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				switch done, err := job(); {
				case err != nil:
					t.Error(err)
					return
				case done:
					did.Add(1)
				default:
					failed.Add(1)
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	wait := func(n *atomic.Int64, what string) {
		t.Helper()
		until := n.Load() + 6
		for range 1500 {
			if n.Load() >= until {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error(what)
	}
	wait(&did, "nothing is done at first")
	stop()
	wait(&failed, "nothing fails while the server is away")
	start()
	began := time.Now()
	wait(&did, "nothing is done after a restart")
	t.Logf("%d done, %d failed, back after %v", did.Load(), failed.Load(), time.Since(began))
	close(end)
	senders.Wait()
}

// Leaks plays each fault that is not slow some times, and fails if descriptors
// stay open. job meets the fault, and must have failed.
func Leaks(t *testing.T, s *Stub, faults []Fault, job func() error) {
	t.Helper()
	before := Descriptors(t)
	for range 2 {
		for _, fault := range faults {
			if !fault.Slow {
				s.Play(fault.Play)
				if job() == nil {
					t.Fatal(fault.Name)
				}
			}
		}
	}
	for range 200 { // the stub's own go when it has seen ours go
		if Descriptors(t) <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d descriptors, %d before", Descriptors(t), before)
}
