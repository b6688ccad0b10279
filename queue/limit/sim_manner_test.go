package limit

import (
	"fmt"
	"testing"
	"time"
)

// TestLimitsThatAreNotSaidAtOnce: a server that takes a connection too many and says
// so at RCPT, and one that closes it without a word, are found out as those are that
// say it at the greeting.
func TestLimitsThatAreNotSaidAtOnce(t *testing.T) {
	for _, server := range few(
		hidden{connections: 12, late: true}, hidden{connections: 12, mute: true}, hidden{connections: 1, mute: true}, hidden{connections: 3, late: true},
	) {
		t.Run(fmt.Sprintf("%d late %v mute %v", server.connections, server.late, server.mute), func(t *testing.T) {
			w := newWorld(t, 100, &server)
			w.run(5 * time.Minute)
			if got := w.control(); !near(got.Limit, server.connections) || got.Failures >= failuresToSleep {
				t.Errorf("after five minutes: %+v", got)
			}
			cost, from := len(w.refusals), w.now
			w.run(time.Hour)
			n, most := w.refusedSince(from)
			t.Logf("found %d with %d refusals; %d in the hour afterwards, at most %d in ten minutes", w.control().Limit, cost, n, most)
			if got := w.control(); !near(got.Limit, server.connections) || most > 1 || n > 12 {
				t.Errorf("in the end, with %d probes in ten minutes: %+v", most, got)
			}
		})
	}
}

// TestDownIsNoLimit: when a server stops, its connections break and no others are to
// be had; that is no limit of theirs, and when it is back it gets what it got.
func TestDownIsNoLimit(t *testing.T) {
	server := hidden{}
	w := newWorld(t, 32, &server)
	w.run(5 * time.Minute)
	if got := w.control(); got.Limit != 32 {
		t.Fatalf("%+v", got)
	}
	server.down = true
	w.run(10 * time.Minute)
	if got := w.control(); got.Failures < failuresToSleep {
		t.Errorf("while it is down: %+v", got)
	}
	server.down = false
	w.run(40 * time.Minute)
	if got := w.control(); got.Limit != 32 || got.Ceiling != 0 || got.Failures != 0 {
		t.Errorf("when it was up again: %+v", got)
	}
}
