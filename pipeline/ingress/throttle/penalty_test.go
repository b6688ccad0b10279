package throttle

import (
	"net/netip"
	"sync"
	"testing"
	"time"
)

func TestPenalty(t *testing.T) {
	c := new(clock)
	p := NewPenalty(PenaltyOptions{Points: 10, Forget: 10 * time.Minute, Close: time.Hour, Now: c.now})
	g := New(Options{Penalty: p, Now: c.now, Exempt: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	bad := ip("192.0.2.1")
	want := func(closed string) {
		t.Helper()
		release, why := admit(t, g, bad)
		if why != closed {
			t.Errorf("%q, want %q", why, closed)
		}
		if release != nil {
			release()
		}
	}
	p.Strike(bad, 9)
	p.Strike(bad, 0)
	p.Strike(bad, -5)
	want("")
	c.pass(3 * time.Minute) // three are forgotten
	g.Strike(bad, 3)
	want("")
	g.Strike(ip("::ffff:192.0.2.1"), 1)
	want("penalty")
	if left, closed := p.Closed(bad); !closed || left != time.Hour {
		t.Error(left, closed)
	}
	c.pass(59 * time.Minute)
	g.Strike(bad, 1000) // a session that is still open: the hour stays an hour
	want("penalty")
	if _, why := admit(t, g, ip("192.0.2.2")); why != "" {
		t.Errorf("the neighbour: %s", why)
	}
	c.pass(time.Minute)
	want("")
	g.Strike(bad, 9) // he starts anew
	want("")
	g.Strike(bad, 1<<62)
	want("penalty")
	p.Pardon(bad)
	p.Pardon(bad)
	want("")
	bad = ip("198.51.100.1")
	g.Strike(bad, 100)
	want("")
	New(Options{}).Strike(bad, 100) // no penalty is configured
	p.Strike(bad, 100)              // another entrance, where he is not exempt
	want("")
	if n := p.Remembered(); n != 1 {
		t.Errorf("%d are remembered", n)
	}
}

// TestPenaltyOfNetworks: of IPv6 the network is one client.
func TestPenaltyOfNetworks(t *testing.T) {
	p := NewPenalty(PenaltyOptions{Now: new(clock).now})
	for i := range 20 {
		p.Strike(numbered("2001:db8::%x", i), 1)
	}
	if _, closed := p.Closed(ip("2001:db8::ffff:1")); !closed {
		t.Error("twenty strikes of a network")
	}
	if _, closed := p.Closed(ip("2001:db8:0:1::1")); closed {
		t.Error("the network beside it")
	}
	if _, closed := p.Closed(netip.Addr{}); closed {
		t.Error("nobody")
	}
	p.Pardon(netip.Addr{})
}

// TestPenaltyIsBounded: of many the good are forgotten first, and what is over
// goes by itself.
func TestPenaltyIsBounded(t *testing.T) {
	c := new(clock)
	p := NewPenalty(PenaltyOptions{Points: 2, Remember: 10, Now: c.now})
	bad := ip("192.0.2.1")
	p.Strike(bad, 2)
	for i := range 10_000 {
		p.Strike(numbered("2001:db8:0:%x::1", i), 1)
		if n := p.Remembered(); n > 10 {
			t.Fatalf("%d are remembered", n)
		}
	}
	if _, closed := p.Closed(bad); !closed {
		t.Error("the bad one was forgotten before the good")
	}
	p.Strike(ip("2001:db8:0:270f::1"), 1)
	if _, closed := p.Closed(ip("2001:db8:0:270f::1")); !closed {
		t.Error("the last one was forgotten")
	}
	for i := range 20 {
		p.Strike(numbered("198.51.100.%d", i), 2)
	}
	if n := p.Remembered(); n != 10 {
		t.Errorf("%d are remembered", n)
	}
	if _, closed := p.Closed(bad); closed {
		t.Error("the oldest of those closed out is kept beyond the bound")
	}
	c.pass(time.Hour)
	for i := range 6 {
		p.Strike(numbered("203.0.113.%d", i), 1)
	}
	if n := p.Remembered(); n != 6 {
		t.Errorf("%d are remembered an hour later", n)
	}
}

// TestPenaltyTogether: strikes of many sessions add up, none is lost.
func TestPenaltyTogether(t *testing.T) {
	p := NewPenalty(PenaltyOptions{Points: 1000, Now: new(clock).now})
	var wg sync.WaitGroup
	for range 999 {
		wg.Go(func() { p.Strike(ip("192.0.2.1"), 1) })
	}
	wg.Wait()
	if _, closed := p.Closed(ip("192.0.2.1")); closed {
		t.Error("closed too early")
	}
	p.Strike(ip("192.0.2.1"), 1)
	if _, closed := p.Closed(ip("192.0.2.1")); !closed {
		t.Error("not closed")
	}
}
