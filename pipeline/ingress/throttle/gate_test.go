package throttle

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

// clock is moved by hand.
type clock struct{ passed atomic.Int64 }

func (c *clock) now() time.Time {
	return time.Unix(1_800_000_000, 0).Add(time.Duration(c.passed.Load()))
}
func (c *clock) pass(d time.Duration)          { c.passed.Add(int64(d)) }
func ip(s string) netip.Addr                   { return netip.MustParseAddr(s) }
func numbered(format string, n int) netip.Addr { return ip(fmt.Sprintf(format, n)) }

// admit is let in or not, and says why not.
func admit(t testing.TB, g *Gate, addr netip.Addr) (release func(), why string) {
	t.Helper()
	release, err := g.Admit(addr)
	if err == nil {
		return release, ""
	}
	var answer *reply.Error
	var no *Refused
	if !errors.As(err, &answer) || !errors.As(err, &no) || release != nil {
		t.Fatalf("%v", err)
	}
	if r := answer.Reply; r.Class != reply.Temporary || r.SMTPCode() != 421 || strings.Contains(r.SMTP(), addr.String()) || no.Error() == "" {
		t.Fatalf("%v: %v", r, err)
	}
	return nil, no.Cause.String()
}

func TestBounds(t *testing.T) {
	c := new(clock)
	for _, test := range []struct {
		name string
		o    Options
		in   []string // who is in, in this order
		out  string   // who is not
		why  string
		who  string
	}{
		{"total", Options{Total: 2}, []string{"192.0.2.1", "2001:db8::1"}, "198.51.100.1", "total", ""},
		{"address", Options{Address: 2}, []string{"192.0.2.1", "192.0.2.2", "192.0.2.1"}, "192.0.2.1", "address", "192.0.2.1/32"},
		{"mapped", Options{Address: 2}, []string{"192.0.2.1", "::ffff:192.0.2.1"}, "::ffff:192.0.2.1", "address", "192.0.2.1/32"},
		{"zone", Options{Address: 2}, []string{"fe80::1%a", "fe80::1%b"}, "fe80::1", "address", "fe80::1/128"},
		{"network", Options{Network: 3}, []string{"192.0.2.1", "192.0.2.2", "192.0.3.1", "192.0.2.3"}, "192.0.2.4", "network", "192.0.2.0/24"},
		{"network of IPv6", Options{Network: 2}, []string{"2001:db8::1", "2001:db8:0:1::1", "2001:db8::2"}, "2001:db8:0:0:ffff::3", "network", "2001:db8::/64"},
		{"sizes", Options{Network: 1, IPv4Bits: 31, IPv6Bits: 127}, []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"}, "192.0.2.0", "network", "192.0.2.0/31"},
		{"network as small as an address", Options{Network: 1, Address: 2, IPv4Bits: 32, IPv6Bits: 999}, []string{"192.0.2.1", "2001:db8::1", "2001:db8::2"}, "192.0.2.1", "network", "192.0.2.1/32"},
		{"rate", Options{AddressRate: 2}, []string{"192.0.2.1", "192.0.2.1", "192.0.2.2"}, "192.0.2.1", "address-rate", "192.0.2.1/32"},
		{"network rate", Options{NetworkRate: 2}, []string{"192.0.2.1", "192.0.2.2", "192.0.3.1"}, "192.0.2.3", "network-rate", "192.0.2.0/24"},
		{"exempt", Options{Address: 1, Total: 4, Exempt: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28")}}, []string{"192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.16"}, "192.0.2.17", "total", ""},
	} {
		test.o.Now = c.now
		g := New(test.o)
		var releases []func()
		for _, addr := range test.in {
			release, why := admit(t, g, ip(addr))
			if why != "" {
				t.Fatalf("%s: %s: %s", test.name, addr, why)
			}
			releases = append(releases, release)
		}
		_, why := admit(t, g, ip(test.out))
		_, err := g.Admit(ip(test.out))
		var no *Refused
		if errors.As(err, &no); why != test.why || test.who != "" && no.Who != netip.MustParsePrefix(test.who) || test.who == "" && no.Who.IsValid() {
			t.Errorf("%s: %s %v", test.name, why, err)
		}
		if n := g.Counts(); n.Open != len(test.in) || n.Refused[no.Cause] != 2 {
			t.Errorf("%s: %+v", test.name, n)
		}
		for _, release := range releases {
			release()
			release()
		}
		if n := g.Counts(); n.Open != 0 {
			t.Errorf("%s: %+v", test.name, n)
		}
		c.pass(time.Minute)
		if _, why := admit(t, g, ip(test.out)); why != "" {
			t.Errorf("%s: afterwards: %s", test.name, why)
		}
	}
}

// TestNothingBinds: the zero Options let everybody in, and remember nobody who
// has left.
func TestNothingBinds(t *testing.T) {
	g := New(Options{})
	for i := range 1000 {
		release, why := admit(t, g, numbered("2001:db8::%x", i))
		if why != "" {
			t.Fatal(why)
		}
		defer release()
		if release, why = admit(t, g, ip("192.0.2.1")); why != "" {
			t.Fatal(why)
		}
		release()
	}
	if n := g.Counts(); n.Open != 1000 || n.Addresses != 1000 || n.Networks != 1 {
		t.Errorf("%+v", n)
	}
}

func TestWithoutAddress(t *testing.T) {
	g := New(Options{Total: 2, Address: 1, Network: 1, AddressRate: 1, Penalty: NewPenalty(PenaltyOptions{Points: 1})})
	g.Strike(netip.Addr{}, 5)
	for range 2 {
		if _, why := admit(t, g, netip.Addr{}); why != "" {
			t.Error(why)
		}
	}
	if _, why := admit(t, g, netip.Addr{}); why != "total" {
		t.Errorf("%q", why)
	}
}

// TestRate: as many as a minute has at once, then one for each part of it;
// refused ones do not count.
func TestRate(t *testing.T) {
	c := new(clock)
	g := New(Options{AddressRate: 6, Now: c.now})
	try := func() (in int) {
		for range 20 {
			if release, why := admit(t, g, ip("192.0.2.1")); why == "" {
				release()
				in++
			}
		}
		return in
	}
	for i, step := range []struct {
		pass time.Duration
		want int
	}{{0, 6}, {0, 0}, {10*time.Second - 1, 0}, {1, 1}, {0, 0}, {25 * time.Second, 2}, {5 * time.Second, 1}, {time.Hour, 6}} {
		c.pass(step.pass)
		if got := try(); got != step.want {
			t.Errorf("step %d: %d in, want %d", i, got, step.want)
		}
	}
}

// TestForgetting: whoever has a connection open is never forgotten, of the
// others as many as the bound says.
func TestForgetting(t *testing.T) {
	c := new(clock)
	g := New(Options{Address: 1, AddressRate: 2, Remember: 10, Now: c.now})
	stays, why := admit(t, g, ip("192.0.2.1"))
	if why != "" {
		t.Fatal(why)
	}
	for i := range 10_000 {
		release, why := admit(t, g, numbered("2001:db8:0:%x::1", i))
		if why != "" {
			t.Fatal(why)
		}
		release()
		if n := g.Counts(); n.Addresses > 11 || n.Networks > 11 {
			t.Fatalf("%+v", n)
		}
	}
	if _, why := admit(t, g, ip("192.0.2.1")); why != "address" {
		t.Errorf("%q", why)
	}
	stays()
	last := ip("2001:db8:0:270f::1") // is remembered, and has one left
	release, why := admit(t, g, last)
	if why != "" {
		t.Fatal(why)
	}
	release()
	if _, why := admit(t, g, last); why != "address-rate" {
		t.Errorf("%q", why)
	}
	c.pass(time.Minute)
	for i := range 10 { // who comes and goes takes along what is over
		release, why := admit(t, g, numbered("198.51.100.%d", i))
		if why != "" {
			t.Fatal(why)
		}
		release()
		c.pass(time.Minute)
	}
	if n := g.Counts(); n.Addresses > 1 || n.Networks > 1 {
		t.Errorf("%+v", n)
	}
}

// TestConfigure: new bounds hold at once, and what is open counts.
func TestConfigure(t *testing.T) {
	c := new(clock)
	g := New(Options{Network: 10, AddressRate: 100, Now: c.now})
	var releases []func()
	for i := range 10 {
		release, why := admit(t, g, numbered("192.0.2.%d", i))
		if why != "" {
			t.Fatal(why)
		}
		releases = append(releases, release)
	}
	g.Configure(Options{Network: 5, AddressRate: 1, IPv4Bits: 16, Remember: 3})
	var others []func()
	for i := range 5 { // another size: the new networks are counted from now on
		release, why := admit(t, g, numbered("192.0.3.%d", i))
		if why != "" {
			t.Fatal(why)
		}
		others = append(others, release)
	}
	if _, why := admit(t, g, ip("192.0.3.9")); why != "network" {
		t.Errorf("%q", why)
	}
	g.Configure(Options{Network: 5, Remember: 3})
	for i, release := range releases {
		if _, why := admit(t, g, ip("192.0.2.99")); (why == "network") != (i <= 5) {
			t.Errorf("with %d open: %q", 10-i, why)
		}
		if i > 5 {
			g.Configure(Options{Remember: 3}) // it may stay
		}
		release()
		g.Configure(Options{Network: 5, Remember: 3})
		if i > 5 {
			break
		}
	}
	for _, release := range append(releases, others...) {
		release()
	}
	if n := g.Counts(); n.Open != 1 || n.Addresses > 4 {
		t.Errorf("%+v", n)
	}
}

// TestExactTogether: of a thousand that come at once from one address, one
// network and everywhere, exactly as many are in as there may be.
func TestExactTogether(t *testing.T) {
	for name, test := range map[string]struct {
		o    Options
		addr func(int) netip.Addr
		want int
	}{
		"total":        {Options{Total: 100}, func(i int) netip.Addr { return numbered("2001:db8:0:%x::1", i) }, 100},
		"address":      {Options{Address: 20}, func(int) netip.Addr { return ip("192.0.2.1") }, 20},
		"network":      {Options{Network: 30, Address: 20}, func(i int) netip.Addr { return numbered("192.0.2.%d", i%250) }, 30},
		"address rate": {Options{AddressRate: 20}, func(int) netip.Addr { return ip("192.0.2.1") }, 20},
		"network rate": {Options{NetworkRate: 40}, func(i int) netip.Addr { return numbered("2001:db8::%x", i) }, 40},
	} {
		t.Run(name, func(t *testing.T) {
			test.o.Now = new(clock).now
			g := New(test.o)
			var in atomic.Int32
			var wg sync.WaitGroup
			releases := make(chan func(), 1000)
			for i := range 1000 {
				wg.Go(func() {
					if release, err := g.Admit(test.addr(i)); err == nil {
						in.Add(1)
						releases <- release
					}
				})
			}
			wg.Wait()
			close(releases)
			if in.Load() != int32(test.want) || g.Counts().Open != test.want {
				t.Errorf("%d are in, %+v", in.Load(), g.Counts())
			}
			for release := range releases {
				for range 2 { // who is told twice counts once, also at the same time
					wg.Go(release)
				}
			}
			wg.Wait()
			if n := g.Counts(); n.Open != 0 {
				t.Errorf("%+v", n)
			}
		})
	}
}
