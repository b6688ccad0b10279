package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline"
)

// stub is a backend: the password "right" is right, "trouble" is trouble.
type stub struct {
	asked  atomic.Int32
	during func()
}

func (b *stub) Authenticate(_ context.Context, _ *pipeline.Session, user, password string) (string, error) {
	b.asked.Add(1)
	if b.during != nil {
		b.during()
	}
	switch password {
	case "right":
		return user, nil
	case "trouble":
		return "", trouble(errors.New("the stub is out of order"))
	case "panic":
		panic("stub")
	}
	return "", refused("not right")
}

func guarded(o GuardOptions) (*Guard, *stub, *log) {
	b, l := &stub{}, &log{}
	o.Log = l.logger()
	return NewGuard(b, o), b, l
}

func try(g *Guard, address, user, password string) error {
	_, err := g.Authenticate(bg, from(address), user, password)
	return err
}

func TestGuardDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, b, l := guarded(GuardOptions{})
		for i, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
			want *= time.Second
			start := time.Now()
			is535(t, try(g, "192.0.2.1", "al\x1bice\n", "wrong"))
			if d := time.Since(start); d < want*3/4 || d > want*5/4 {
				t.Errorf("failure %d was held back for %v, want about %v", i+1, d, want)
			}
			line := l.take()
			for _, want := range []string{"login failed", "user=al?ice ", "peer=192.0.2.1 ", "network=192.0.2.1/32", "session=s1", "entrance=submission", "tls=true", "not right"} {
				if !strings.Contains(line, want) {
					t.Errorf("%s does not tell %s", line, want)
				}
			}
			if strings.Count(line, "\n") != 1 || strings.Contains(line, "wrong") {
				t.Errorf("%q", line)
			}
		}
		start := time.Now()
		check(t, try(g, "192.0.2.1", "bob", "right"))
		if time.Since(start) != 0 || l.take() != "" || b.asked.Load() != 7 {
			t.Error("a success was delayed or logged as a failure")
		}
		// A client that goes away is not waited for.
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		start = time.Now()
		_, err := g.Authenticate(ctx, from("192.0.2.1"), "alice", "wrong")
		is535(t, err)
		if time.Since(start) != time.Second {
			t.Errorf("waited %v for a client that is gone", time.Since(start))
		}
	})
}

func TestGuardLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, b, l := guarded(GuardOptions{UserFailures: 3, NetworkFailures: 5, Delay: 1, MostDelay: 1})
		fail := func(address, user string) {
			t.Helper()
			is535(t, try(g, address, user, "wrong"))
		}
		later := func(address, user, of string) {
			t.Helper()
			before := b.asked.Load()
			is454(t, try(g, address, user, "right"), "too many failures of this "+of)
			if b.asked.Load() != before {
				t.Error("the backend was asked")
			}
		}
		// A user, from several networks, however he writes his name.
		fail("192.0.2.1", "alice")
		fail("192.0.2.2", "Alice")
		fail("192.0.2.3", "ALICE")
		l.take()
		later("192.0.2.4", "alice", "user")
		if line := l.take(); !strings.Contains(line, "login not tried") || !strings.Contains(line, "too many failures of this user") {
			t.Error(line)
		}
		check(t, try(g, "192.0.2.4", "bob", "right"))
		// A network, over several users: a /64, and IPv4 in IPv6 is IPv4.
		for i, host := range []string{"2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3", "2001:db8::4", "2001:db8::5"} {
			fail(host, fmt.Sprint("user", i))
		}
		later("2001:db8::6", "carol", "network")
		check(t, try(g, "2001:db8:0:1::1", "carol", "right"))
		for i := range 5 {
			fail([]string{"198.51.100.1", "::ffff:198.51.100.1"}[i%2], fmt.Sprint("other", i))
		}
		later("198.51.100.1", "carol", "network")
		check(t, try(g, "198.51.100.2", "carol", "right"))
		// A success does not wash off what others guessed from there.
		fail("203.0.113.1", "u1")
		fail("203.0.113.1", "u2")
		fail("203.0.113.1", "u3")
		fail("203.0.113.1", "u4")
		check(t, try(g, "203.0.113.1", "mallory", "right"))
		fail("203.0.113.1", "u5")
		later("203.0.113.1", "u6", "network")
		// Trouble does not count.
		for range 10 {
			is454(t, try(g, "203.0.113.9", "dave", "trouble"), "out of order")
		}
		check(t, try(g, "203.0.113.9", "dave", "right"))
		// It is forgotten evenly: an hour for all, a third of it for one of three.
		time.Sleep(21 * time.Minute)
		check(t, try(g, "192.0.2.77", "alice", "right"))
		fail("192.0.2.78", "alice")
		later("192.0.2.78", "alice", "user")
		time.Sleep(time.Hour)
		for range 3 {
			fail("192.0.2.78", "alice")
		}
		later("192.0.2.79", "alice", "user")
	})
}

// Where a user is known, nobody can keep him out: no guess elsewhere, and none
// from the same network at others. Only his own failures there count.
func TestGuardKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, _ := guarded(GuardOptions{UserFailures: 3, NetworkFailures: 5, KnownFailures: 4, KnownNetworks: 2, Delay: 1, MostDelay: 1})
		const home, office, away = "192.0.2.1", "192.0.2.2", "192.0.2.3"
		check(t, try(g, home, "alice", "right"))
		for range 10 {
			try(g, away, "alice", "wrong") //nolint:errcheck // what counts is what becomes of her
			try(g, home, "bob", "wrong")   //nolint:errcheck // likewise
			try(g, home, "carol", "wrong") //nolint:errcheck // likewise
		}
		is454(t, try(g, office, "alice", "right"), "of this user")
		is454(t, try(g, home, "dave", "right"), "of this network")
		check(t, try(g, home, "alice", "right"))
		for range 4 {
			is535(t, try(g, home, "alice", "wrong"))
		}
		is454(t, try(g, home, "alice", "right"), "of this user in this network")
		time.Sleep(time.Hour)
		check(t, try(g, home, "alice", "right"))
		// Her failures at home did not count for the others there.
		for range 3 {
			is535(t, try(g, home, "alice", "wrong"))
		}
		for range 3 {
			is535(t, try(g, home, "erin", "wrong"))
		}
		// She is known in two networks: the one that she used longest ago is forgotten.
		time.Sleep(time.Hour)
		for _, address := range []string{office, home, away} {
			check(t, try(g, address, "alice", "right"))
			time.Sleep(time.Second)
		}
		for range 3 {
			is535(t, try(g, "203.0.113.1", "alice", "wrong"))
		}
		is454(t, try(g, office, "alice", "right"), "of this user")
		check(t, try(g, home, "alice", "right"))
		check(t, try(g, away, "alice", "right"))
		// After a month she is as anybody else.
		time.Sleep(30 * 24 * time.Hour)
		for range 3 {
			is535(t, try(g, "203.0.113.1", "alice", "wrong"))
		}
		is454(t, try(g, home, "alice", "right"), "of this user")
		time.Sleep(time.Hour)
		check(t, try(g, home, "alice", "right"))
		if n := len(g.known[g.keyOf("alice")].networks); n != 2 {
			t.Errorf("%d networks", n)
		}
	})
}

// Many guesses at a time are no more than one after the other; those that are
// right wait for others and are not sent away.
func TestGuardTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, b, _ := guarded(GuardOptions{UserFailures: 3, Delay: 1, MostDelay: 1})
		b.during = func() { time.Sleep(time.Second) }
		var all sync.WaitGroup
		var later atomic.Int32
		for i := range 50 {
			all.Go(func() {
				if err := try(g, fmt.Sprintf("192.0.2.%d", i), "alice", "wrong"); !errors.Is(err, ErrCredentials) {
					is454(t, err, "too many")
					later.Add(1)
				}
			})
		}
		all.Wait()
		if n := b.asked.Load(); n != 3 || later.Load() != 47 {
			t.Errorf("%d guesses were made at a time, %d were not tried", n, later.Load())
		}
		start := time.Now()
		for range 50 {
			all.Go(func() { check(t, try(g, "198.51.100.1", "bob", "right")) })
		}
		all.Wait()
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("50 logins of one user took %v: only the first need wait", d)
		}
		// Who waits for others waits no longer than he may.
		b.during = func() { time.Sleep(time.Hour) }
		for range 3 {
			all.Go(func() { try(g, "198.51.100.3", "carol", "trouble") }) //nolint:errcheck // it is to take its time
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(bg, time.Minute)
		defer cancel()
		_, err := g.Authenticate(ctx, from("198.51.100.4"), "carol", "right")
		is454(t, err, "waiting for other logins")
		all.Wait()
		b.during = nil
		check(t, try(g, "198.51.100.4", "carol", "right"))
	})
}

func TestGuardPanic(t *testing.T) {
	g, _, _ := guarded(GuardOptions{UserFailures: 1})
	func() {
		defer func() { recover() }() //nolint:errcheck // it is the stub's
		try(g, "192.0.2.1", "alice", "panic")
	}()
	check(t, try(g, "192.0.2.1", "alice", "right"))
}

// A full table forgets, but not those with many failures.
func TestGuardForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 200
		g, _, _ := guarded(GuardOptions{Entries: most, UserFailures: 20, Delay: 1, MostDelay: 1})
		for i := range 20 {
			is535(t, try(g, fmt.Sprintf("192.0.2.%d", i), "victim", "wrong"))
		}
		for i := range 20 * most {
			is535(t, try(g, fmt.Sprintf("2001:db8:%x::1", i), fmt.Sprint("user", i), "wrong"))
		}
		if u, n := len(g.users.all), len(g.networks.all); u != most || n != most {
			t.Errorf("%d users, %d networks, at most %d", u, n, most)
		}
		is454(t, try(g, "203.0.113.1", "victim", "right"), "of this user")
		for i := range 3 * most {
			check(t, try(g, "2001:db9::1", fmt.Sprint("known", i), "right"))
		}
		if n := len(g.known); n != most {
			t.Errorf("%d known users", n)
		}
		// Forgotten are those who logged in long ago.
		time.Sleep(time.Hour)
		check(t, try(g, "2001:db9::1", "late", "right"))
		for i := range most / 4 {
			check(t, try(g, "2001:db9::1", fmt.Sprint("later", i), "right"))
		}
		if g.known[g.keyOf("late")] == nil {
			t.Error("one of the last was forgotten")
		}
	})
}

func TestNetworkOf(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.77": "192.0.2.77", "::ffff:192.0.2.77": "192.0.2.77", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "fe80::1%eth0": "fe80::"} {
		if got := networkOf(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if networkOf(netip.Addr{}).IsValid() {
		t.Error("a local client has a network")
	}
	g, _, _ := guarded(GuardOptions{})
	if _, err := g.Authenticate(bg, &pipeline.Session{}, "alice", "right"); err != nil {
		t.Error(err)
	}
}

func TestChain(t *testing.T) {
	yes, no, out := &fixed{name: "alice"}, &fixed{err: refused("no")}, &fixed{err: trouble(errors.New("out of order"))}
	for _, c := range []struct {
		name  string
		chain Chain
		check func(error)
	}{
		{"none", nil, func(err error) { is454(t, err, "no backend") }},
		{"yes", Chain{no, out, yes}, func(err error) { check(t, err) }},
		{"no", Chain{no, no}, func(err error) { is535(t, err) }},
		{"trouble", Chain{out, no}, func(err error) { is454(t, err, "out of order") }},
		{"trouble last", Chain{no, out}, func(err error) { is454(t, err, "out of order") }},
	} {
		name, err := c.chain.Authenticate(bg, from("192.0.2.1"), "alice", "x")
		c.check(err)
		if (name == "alice") != (err == nil) {
			t.Error(c.name, name)
		}
	}
	// A guess at one backend counts while another is out of order.
	if _, err := (Chain{no, out}).Authenticate(bg, from("192.0.2.1"), "alice", "x"); !errors.Is(err, ErrCredentials) {
		t.Error(err)
	}
	if _, err := (Chain{out}).Authenticate(bg, from("192.0.2.1"), "alice", "x"); errors.Is(err, ErrCredentials) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	again := &fixed{err: trouble(context.Canceled)}
	if _, err := (Chain{again, yes}).Authenticate(ctx, from("192.0.2.1"), "alice", "x"); err == nil {
		t.Error("asked further for a client that is gone")
	}
}

type fixed struct {
	name string
	err  error
}

func (b *fixed) Authenticate(context.Context, *pipeline.Session, string, string) (string, error) {
	return b.name, b.err
}

// BenchmarkGuard measures what the guard adds to a login. The full table is the
// worst case: each attempt is of a user and a network never seen, and one of
// each is forgotten. A ratio to a plain map shows what the bound costs.
func BenchmarkGuard(b *testing.B) {
	const entries = 1 << 16
	floor := 0.0
	b.Run("floor-map", func(b *testing.B) {
		m := make(map[uint64]*tally, entries)
		now := time.Now()
		i := uint64(0)
		for b.Loop() {
			delete(m, i-entries)
			m[i] = &tally{at: now}
			i++
		}
		floor = float64(b.Elapsed()) / float64(b.N)
	})
	ratio := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed())/float64(b.N)/floor, "x-floor")
	}
	b.Run("known", func(b *testing.B) {
		g, _, _ := guarded(GuardOptions{})
		s := from("192.0.2.1")
		b.ReportAllocs()
		for b.Loop() {
			if _, err := g.Authenticate(bg, s, "alice", "right"); err != nil {
				b.Fatal(err)
			}
		}
		ratio(b)
	})
	b.Run("full-tables", func(b *testing.B) {
		g, _, _ := guarded(GuardOptions{Entries: entries})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		fill := func(i uint64) {
			var a [16]byte
			for j := range 8 {
				a[j] = byte(i >> (8 * j))
			}
			a[15] = 1
			marks, over, err := g.enter(bg, i, networkOf(netip.AddrFrom16(a)))
			if over != "" || err != nil {
				b.Fatal(over, err)
			}
			g.leave(marks, true)
		}
		i := uint64(1 << 32)
		for range entries {
			fill(i)
			i++
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportAllocs()
		for b.Loop() {
			fill(i)
			i++
		}
		ratio(b)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(2*entries), "B/entry")
		if len(g.users.all) != entries || len(g.networks.all) != entries {
			b.Fatal(len(g.users.all), len(g.networks.all))
		}
	})
}
