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

// TestParallelRefusalsOfRateCutOnce: of many messages under way some are refused and
// some taken, in any order; then one goes ahead, and the others wait for it.
func TestParallelRefusalsOfRateCutOnce(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: classes, Bounds: func(k Key) Bounds {
		return Bounds{Connections: 100, NewConnections: Rate{Count: None}, Messages: Rate{Count: None}}
	}})
	no := Answer{Code: 450, Enhanced: "4.7.1", Text: "Error: too much mail from 192.0.2.1"}
	for range 10 { // all of them work
		var some []*Ticket
		for k, no := g.Open(start, Path{Site: "x"}); no == nil; k, no = g.Open(start, Path{Site: "x"}) {
			k.Greeted(start)
			k.Message(start, 1)
			some = append(some, k)
		}
		for range 2 {
			for _, k := range some {
				k.Taken(start)
			}
		}
		for _, k := range some {
			k.Close(start)
		}
	}
	var all []*Ticket
	for range 30 {
		k, no := g.Open(start, Path{Site: "x"})
		if no != nil {
			t.Fatal(no)
		}
		k.Greeted(start)
		if no := k.Message(start, 1); no != nil {
			t.Fatal(no)
		}
		all = append(all, k)
	}
	moves := func() int { return len(g.Explain(start, Path{Site: "x"}).Control.Moves) }
	had, went := moves(), 0
	for i, k := range all {
		if i%3 == 0 {
			k.Taken(start)
		} else {
			k.Said(start, no)
		}
		if k.Message(start, 1) == nil && i > 0 {
			went++
		}
	}
	if moves() != had+1 || went > 0 {
		t.Errorf("%d moves, %d messages went at once: %+v", moves()-had, went, g.Explain(start, Path{Site: "x"}).Control.Moves)
	}
	ahead := 0
	for _, k := range all {
		if k.Message(start.Add(firstRest), 1) == nil {
			ahead++
		}
	}
	if ahead != 1 {
		t.Errorf("%d messages went ahead", ahead)
	}
}

// TestParallelFailuresSleepOnce: a server that goes away while many connections to it
// are under way is asked again after a minute.
func TestParallelFailuresSleepOnce(t *testing.T) {
	g := New(Options{Bounds: func(k Key) Bounds { return Bounds{Connections: 100, NewConnections: Rate{Count: None}} }})
	p := Path{Site: "x"}
	fail := func(now time.Time) {
		t.Helper()
		var all []*Ticket
		for k, no := g.Open(now, p); no == nil; k, no = g.Open(now, p) {
			all = append(all, k)
		}
		if len(all) == 0 {
			t.Fatal("nobody looks")
		}
		for _, k := range all {
			k.Unreachable(now, "connection refused")
			k.Close(now)
		}
	}
	now := start
	for _, pause := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
		fail(now)
		if got := g.Explain(now, p).Control.Until.Sub(now); got != pause {
			t.Errorf("it sleeps for %v", got)
		}
		now = now.Add(pause)
	}
}

// TestParallelRefusalsAtTheGreeting: of many connections that are refused because they
// come too fast the first says all; none is opened before the rest is over.
func TestParallelRefusalsAtTheGreeting(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: classes})
	p := Path{Site: "x"}
	no := Answer{Code: 421, Enhanced: "4.7.0", Text: "Connection rate limit exceeded.", Early: true}
	now := start
	for _, rest := range []time.Duration{firstRest, 2 * firstRest, 4 * firstRest} {
		var all []*Ticket
		for k, no := g.Open(now, p); no == nil; k, no = g.Open(now, p) {
			all = append(all, k)
		}
		if len(all) < 2 {
			t.Fatalf("%d were opened", len(all))
		}
		for _, k := range all {
			k.Said(now, no)
			k.Close(now)
		}
		_, no := g.Open(now, p)
		if no == nil || no.Until.Sub(now) != rest {
			t.Fatalf("%+v, and a rest of %v is due", no, rest)
		}
		now = no.Until
	}
	if moves := g.Explain(now, p).Control.Moves; len(moves) != 1 {
		t.Errorf("%+v", moves)
	}
}

// TestReachedAfterAll: connections that fail at once while another is on its way do
// not keep what comes after that one waiting; a block that was announced does.
func TestReachedAfterAll(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	for _, blocked := range []bool{false, true} {
		woken := 0
		g := New(Options{Classes: classes, Wake: func(string) { woken++ }})
		p := Path{Site: "x"}
		var all []*Ticket
		for range firstConnections {
			k, no := g.Open(start, p)
			if no != nil {
				t.Fatal(no)
			}
			all = append(all, k)
		}
		for _, k := range all[1:] {
			k.Unreachable(start, "connection reset")
			k.Close(start)
		}
		if blocked {
			all[0].Said(start, Answer{Code: 421, Enhanced: "4.7.0", Text: "[TSS04] Messages temporarily deferred"})
		}
		if s := g.Explain(start, p).Control; s.Until.IsZero() {
			t.Fatalf("%+v", s)
		}
		all[0].Greeted(start)
		if s := g.Explain(start, p).Control; s.Until.IsZero() == blocked || s.Failures != 0 || (woken == 0) != blocked {
			t.Errorf("blocked %v: %+v, woken %d times", blocked, s, woken)
		}
	}
}
