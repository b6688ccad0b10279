package limit

import (
	"testing"
	"time"
)

// TestConnectionsAndRate: a server that has limits of both kinds is used as far as
// both go.
func TestConnectionsAndRate(t *testing.T) {
	server := hidden{connections: 8, perSecond: 5, burst: 20}
	w := newWorld(t, 100, &server)
	w.run(30 * time.Minute)
	from := w.now
	w.run(time.Hour)
	s := w.control()
	n, probes := w.refusedSince(from)
	t.Logf("found %d connections and %.3g a second; took %.3g a second, with %d refusals in %d probes at most in ten minutes", s.Limit, s.Rate, w.rate(from), n, probes)
	if !near(s.Limit, 8) || w.rate(from) < 4.5 || server.peak > 8 {
		t.Errorf("%.3g a second: %+v", w.rate(from), s)
	}
	// There is one for each of the limits.
	if probes > 2 {
		t.Errorf("%d probes within ten minutes: %+v", probes, s.Moves)
	}
}

// TestLimitThatFalls: a server takes less and less over a day. Each fall costs a few
// refusals, and in between there is a probe in ten minutes at most.
func TestLimitThatFalls(t *testing.T) {
	server := hidden{connections: 30}
	w := newWorld(t, 100, &server)
	w.run(10 * time.Minute)
	for _, fallen := range []int{20, 12, 5, 1} {
		server.connections = fallen
		had := len(w.refusals)
		w.run(10 * time.Minute)
		cost, from := len(w.refusals)-had, w.now
		if s := w.control(); !near(s.Limit, fallen) {
			t.Errorf("ten minutes after it fell to %d: %+v", fallen, s)
		}
		w.run(time.Hour)
		n, probes := w.refusedSince(from)
		t.Logf("fallen to %d: %d refusals at first, then %d in an hour", fallen, cost, n)
		if probes > 1 || cost > 30 {
			t.Errorf("fallen to %d: %d refusals at first, then %d probes within ten minutes: %+v", fallen, cost, probes, w.control().Moves)
		}
	}
}

// TestSourcesHaveTheirOwn: a server takes more from one of our addresses than from
// another, and each is found.
func TestSourcesHaveTheirOwn(t *testing.T) {
	trusted, strange := &hidden{connections: 24}, &hidden{connections: 3}
	a, b := newWorld(t, 100, trusted), newWorld(t, 100, strange)
	b.gate = a.gate
	a.path.Source, b.path.Source = "192.0.2.1", "192.0.2.2"
	b.path.Site, b.address = a.path.Site, a.address
	for range 5 * 60 {
		a.run(time.Second)
		b.run(time.Second)
		b.blocked = false // the Gate wakes whom it knows, and that is the other
	}
	if x, y := a.control(), b.control(); !near(x.Limit, 24) || !near(y.Limit, 3) {
		t.Errorf("%+v\n%+v", x, y)
	}
	t.Logf("%d refusals of one, %d of the other", len(a.refusals), len(b.refusals))
	if len(a.refusals) > 24 || len(b.refusals) > 10 {
		t.Errorf("%d and %d refusals", len(a.refusals), len(b.refusals))
	}
}

// TestStormsMoveNothing: thousands of answers about mailboxes, and of greylisting, in
// whatever words and at whichever point.
func TestStormsMoveNothing(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: classes, Bounds: func(Key) Bounds {
		return Bounds{Connections: 100, NewConnections: Rate{Count: None}, Messages: Rate{Count: None}, MessagesEach: None}
	}})
	var storm []Answer
	for _, a := range answersOfServers {
		if a.want == Nothing && a.code >= 400 || a.want == Greylisted {
			storm = append(storm, Answer{Code: a.code, Enhanced: a.enhanced, Text: a.text})
		}
	}
	p, now := Path{Site: "x", Provider: "p"}, start
	before := g.Explain(now, p).Control
	for i := range 2000 {
		k, no := g.Open(now, p)
		if no != nil {
			t.Fatal(no)
		}
		k.At(now, "192.0.2.1")
		k.Greeted(now)
		for j := range 5 {
			if no := k.Message(now, 1); no != nil {
				t.Fatalf("after %d storms: %v", i, no)
			}
			k.Said(now, storm[(i+j)%len(storm)])
		}
		k.Close(now)
		now = now.Add(50 * time.Millisecond)
	}
	if after := g.Explain(now, p).Control; len(storm) < 8 || after.Limit != before.Limit || after.Rate != 0 || !after.Until.IsZero() || len(after.Moves) > 0 {
		t.Errorf("%d kinds of answers: %+v", len(storm), after)
	}
}
