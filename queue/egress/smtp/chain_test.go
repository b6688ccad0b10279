package smtp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// keptFor keeps connections for so long.
func keptFor(idle time.Duration) *kept {
	k := &kept{o: &Options{}, manner: new(atomic.Pointer[manner])}
	k.manner.Store(&manner{idle: idle})
	return k
}

// fakeLink is a free connection of one of few keys and sites.
func fakeLink(n int) *link {
	p := place{address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n % 7)}), 25), source: Source{Name: fmt.Sprint(n % 2)}}
	return &link{key: key{place: p, policy: fmt.Sprint(n % 3)}, site: fmt.Sprint("site", n%5)}
}

// TestFreeConnections puts connections in and takes them out in any order, and
// compares what is told of them with what a plain list would tell.
func TestFreeConnections(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	k := keptFor(time.Hour)
	var idle []*link // the one free for longest first
	open := map[string]int{}
	out := func(l *link) {
		i := slices.Index(idle, l)
		idle = slices.Delete(idle, i, i+1)
	}
	for range 20_000 {
		l := fakeLink(r.IntN(1000))
		k.mu.Lock()
		switch what := r.IntN(5); {
		case what < 2 && len(idle) < 200:
			k.add(l.site, 1)
			open[l.site]++
			k.keep(l)
			idle = append(idle, l)
		case what == 2 && len(idle) > 0:
			l = idle[r.IntN(len(idle))]
			k.remove(l)
			k.add(l.site, -1)
			out(l)
			open[l.site]--
		case what == 3 && len(idle) > 0:
			if k.idle.first != idle[0] {
				t.Fatal("the first is not the one that is free for longest")
			}
		default:
			k.mu.Unlock()
			i := -1
			for n, seen := len(idle)-1, 0; n >= 0 && seen < ownLook; n-- {
				if idle[n].key != l.key {
					continue
				}
				if seen++; i < 0 || idle[n].site == l.site {
					i = n
				}
				if idle[i].site == l.site {
					break
				}
			}
			var want *link
			if i >= 0 {
				want = idle[i]
				open[want.site]--
				open[l.site]++
				out(want)
			}
			if got := k.last(&l.key, l.site); got != want {
				t.Fatalf("%p is taken in place of %p", got, want)
			} else if got != nil {
				open[l.site]-- // and it is closed
				k.ended(l.site)
			}
			k.mu.Lock()
		}
		k.mu.Unlock()
		compareFree(t, k, idle, open)
	}
}

func compareFree(t *testing.T, k *kept, idle []*link, open map[string]int) {
	t.Helper()
	l := fakeLink(rand.IntN(1000))
	free, has := 0, false
	for _, other := range idle {
		if other.site == l.site {
			free++
		}
		has = has || other.key.place == l.key.place
	}
	if o, f := k.count(l.site); o != open[l.site] || f != free {
		t.Fatalf("%s has %d connections and %d free, not %d and %d", l.site, o, f, open[l.site], free)
	}
	if k.has(candidate{address: l.key.address}, l.key.source) != has {
		t.Fatal("a free connection is not seen, or one that is not there")
	}
	if len(idle) == 0 && (len(k.keys) > 0 || len(k.places) > 0 || len(k.sites) > 0 || k.idle.len > 0) {
		t.Fatal("something is left behind")
	}
}

// BenchmarkKept takes a connection and gives it back where so many are free, each
// to a site of its own.
func BenchmarkKept(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := keptFor(time.Hour)
			var all []*link
			for i := range n {
				l := &link{key: key{place: place{address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 25)}}, site: fmt.Sprint(i)}
				k.opened(l)
				k.keep(l)
				all = append(all, l)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				of := all[i%n]
				_, _ = k.count(of.site)
				l := k.last(&of.key, of.site)
				k.mu.Lock()
				k.keep(l)
				k.mu.Unlock()
			}
		})
	}
}

// TestSpots: what was seen is known, however much it is.
func TestSpots(t *testing.T) {
	var s spots
	at := func(i int) spot {
		return spot{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 25), Transport(i % 2)}
	}
	for i := range 3 * fewSpots {
		if s.has(at(i)) || s.len() != i {
			t.Fatalf("%d spots, and %d is among them before it was added", s.len(), i)
		}
		s.add(at(i))
		for k := range i + 1 {
			if !s.has(at(k)) {
				t.Fatalf("%d is forgotten with %d", k, i)
			}
		}
	}
}
