package certs_test

import (
	"crypto/tls"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/certs"
)

// TestChangeUnderLoad replaces the files again and again while many clients
// make handshakes: none fails, and the last pair is served in the end.
func TestChangeUnderLoad(t *testing.T) {
	a := newAuthority(t)
	dir, log := t.TempDir(), new(journal)
	names := []string{"mx.example.org"}
	p := a.pair(t, dir, "mx", leaf{serial: 0, names: names})
	s := open(t, certs.Options{Pairs: []certs.Pair{p}, Log: log.logger(), Poll: time.Millisecond})
	config := configure(t, s, certs.Policy{})
	client := &tls.Config{RootCAs: a.pool, ServerName: names[0]}

	const swaps, clients = 60, 16
	var stop atomic.Bool
	var made atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for !stop.Load() {
				if _, _, err := shake(config, client); err != nil {
					t.Errorf("handshake: %v", err)
					return
				}
				made.Add(1)
			}
		})
	}
	for i := range swaps {
		cert, key := a.issue(t, leaf{serial: int64(i + 1), names: names})
		before := made.Load()
		put(t, p.Cert, cert)
		for made.Load() == before && !t.Failed() { // clients see half of the change
			time.Sleep(time.Millisecond)
		}
		put(t, p.Key, key)
	}
	stop.Store(true)
	wg.Wait()
	if err := s.Reload(); err != nil {
		t.Error(err)
	}
	if got := serial(t, config, names[0]); got != swaps {
		t.Errorf("certificate %d in the end, want %d", got, swaps)
	}
	picked := len(log.lines("TLS certificate replaced"))
	if picked < 2 {
		t.Errorf("of %d changes %d were picked up while clients were there", swaps, picked)
	}
	t.Logf("%d handshakes, %d changes, %d picked up", made.Load(), swaps, picked)
}
