package throttle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The property: the gate lets in whom a naive model lets in, and nobody else.

// model keeps a list of what is open, and a bucket of tokens for each name, in
// parts of a token.
type model struct {
	o       Options
	open    []netip.Addr
	buckets map[string]*bucket
	now     int64
}

type bucket struct{ parts, at int64 }

// take says whether the name's bucket of so many tokens a minute holds one, and
// takes it if it is told to.
func (m *model) take(name string, rate int, really bool) bool {
	if rate == 0 {
		return true
	}
	whole := int64(time.Minute)
	b := m.buckets[name]
	if b == nil {
		b = &bucket{whole * int64(rate), m.now}
		m.buckets[name] = b
	}
	b.parts, b.at = min(b.parts+(m.now-b.at)*int64(rate), whole*int64(rate)), m.now
	if b.parts < whole {
		return false
	}
	if really {
		b.parts -= whole
	}
	return true
}

func (m *model) admits(addr netip.Addr) bool {
	for _, p := range m.o.Exempt {
		if p.Contains(addr) {
			m.open = append(m.open, addr)
			return true
		}
	}
	network := func(a netip.Addr) netip.Prefix {
		p, _ := a.Prefix(map[bool]int{true: m.o.IPv4Bits, false: m.o.IPv6Bits}[a.Is4()])
		return p
	}
	same, near := 0, 0
	for _, a := range m.open {
		if a == addr {
			same++
		}
		if network(a) == network(addr) && !m.o.Exempt[0].Contains(a) {
			near++
		}
	}
	name, net := "a"+addr.String(), "n"+network(addr).String()
	if len(m.open) >= m.o.Total || same >= m.o.Address || near >= m.o.Network ||
		!m.take(name, m.o.AddressRate, false) || !m.take(net, m.o.NetworkRate, false) {
		return false
	}
	m.take(name, m.o.AddressRate, true)
	m.take(net, m.o.NetworkRate, true)
	m.open = append(m.open, addr)
	return true
}

func TestGateIsItsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := new(clock)
		// Divisors of a minute, so that the model's arithmetic is the gate's.
		rate := rapid.SampledFrom([]int{0, 1, 2, 5, 10})
		o := Options{
			Total: rapid.IntRange(1, 12).Draw(rt, "total"), Address: rapid.IntRange(1, 6).Draw(rt, "address"), Network: rapid.IntRange(1, 8).Draw(rt, "network"),
			AddressRate: rate.Draw(rt, "address rate"), NetworkRate: rate.Draw(rt, "network rate"),
			IPv4Bits: 30, IPv6Bits: 126, Exempt: []netip.Prefix{netip.MustParsePrefix("192.0.2.12/30")}, Now: c.now,
		}
		g := New(o)
		m := &model{o: o, buckets: map[string]*bucket{}}
		type held struct {
			addr    netip.Addr
			release func()
		}
		var in []held
		for step := range rapid.IntRange(1, 80).Draw(rt, "steps") {
			switch kind := rapid.IntRange(0, 9).Draw(rt, "kind"); {
			case kind == 0:
				d := time.Duration(rapid.Int64Range(0, int64(90*time.Second)).Draw(rt, "passes"))
				c.pass(d)
				m.now += int64(d)
			case kind < 4 && len(in) > 0:
				i := rapid.IntRange(0, len(in)-1).Draw(rt, "leaves")
				in[i].release()
				for n, a := range m.open {
					if a == in[i].addr {
						m.open = append(m.open[:n], m.open[n+1:]...)
						break
					}
				}
				in = append(in[:i], in[i+1:]...)
			default:
				format := rapid.SampledFrom([]string{"192.0.2.%d", "2001:db8::%d"}).Draw(rt, "family")
				addr := numbered(format, rapid.IntRange(1, 15).Draw(rt, "host"))
				release, err := g.Admit(addr)
				if want := m.admits(addr); want != (err == nil) {
					rt.Fatalf("step %d: %v: %v, the model says %v", step, addr, err, want)
				}
				if err == nil {
					in = append(in, held{addr, release})
				}
			}
			if n := g.Counts(); n.Open != len(m.open) {
				rt.Fatalf("step %d: %+v, the model has %d", step, n, len(m.open))
			}
		}
	})
}

// TestExactUnderLoad: while many come and go, and most are forgotten as soon as
// they leave, there are never more in than there may be.
func TestExactUnderLoad(t *testing.T) {
	c := new(clock)
	g := New(Options{Total: 40, Address: 3, Network: 7, AddressRate: 1e6, Remember: 2, Now: c.now})
	const hosts, networks = 12, 6
	var total, over atomic.Int32
	var perAddress [networks][hosts]atomic.Int32
	var perNetwork [networks]atomic.Int32
	up := func(n *atomic.Int32, most int32) {
		if n.Add(1) > most {
			over.Add(1)
		}
	}
	var wg sync.WaitGroup
	for seed := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			var leave []func()
			for range 2000 {
				if n := len(leave); n > 0 && (n > 5 || r.IntN(2) == 0) {
					leave[n-1]()
					leave = leave[:n-1]
					continue
				}
				net, host := r.IntN(networks), r.IntN(hosts)
				release, err := g.Admit(netip.AddrFrom4([4]byte{192, 0, byte(net), byte(host)}))
				if err != nil {
					continue
				}
				up(&total, 40)
				up(&perAddress[net][host], 3)
				up(&perNetwork[net], 7)
				leave = append(leave, func() {
					total.Add(-1)
					perAddress[net][host].Add(-1)
					perNetwork[net].Add(-1)
					release()
				})
				c.pass(time.Microsecond)
			}
			for _, f := range leave {
				f()
			}
		})
	}
	wg.Wait()
	if over.Load() > 0 {
		t.Errorf("a bound was passed %d times", over.Load())
	}
	n := g.Counts()
	if n.Open != 0 || n.Addresses > 2 || n.Networks > 2 {
		t.Errorf("%+v", n)
	}
	for _, cause := range []Cause{AddressOpen, NetworkOpen} {
		if n.Refused[cause] == 0 {
			t.Errorf("nobody was refused for %v: the test shows nothing: %s", cause, fmt.Sprint(n))
		}
	}
}
