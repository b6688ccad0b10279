package limit

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestTakeOver: a connection that another site's message goes over counts for that
// site, and was opened once.
func TestTakeOver(t *testing.T) {
	bounds := map[Key]Bounds{
		{Site, "a"}:            {Connections: 1},
		{Site, "b"}:            {Connections: 1, NewConnections: Rate{Count: 1, Per: 3600e9}, MessagesEach: 3},
		{Provider, "big"}:      {Connections: 1},
		{Group, "net"}:         {Connections: 1},
		{Address, "192.0.2.1"}: {Connections: 1, NewConnections: Rate{Count: 1, Per: 3600e9}},
	}
	g := New(Options{Bounds: func(k Key) Bounds { return bounds[k] }})
	open := func(p Path) *Ticket {
		t.Helper()
		k, no := g.Open(start, p)
		if no != nil {
			t.Fatal(no)
		}
		return k
	}
	a := open(Path{Site: "a", Provider: "big"})
	if no := a.At(start, "192.0.2.1", "net"); no != nil {
		t.Fatal(no)
	}
	a.Greeted(start)
	for range 2 {
		if no := a.Message(start, 1); no != nil {
			t.Fatal(no)
		}
		a.Taken(start)
	}
	b := open(Path{Site: "b"})
	b.TakeOver(start, a, "net")
	a.Close(start) // it is over: this counts for nothing
	open(Path{Site: "a", Provider: "big"}).Close(start)
	if _, no := g.Open(start, Path{Site: "b"}); no == nil || no.Key != (Key{Site, "b"}) || no.What != "connections" {
		t.Errorf("b has the connection: %v", no)
	}
	c := open(Path{Site: "c"})
	if no := c.At(start, "192.0.2.1", "net"); no == nil || no.What != "connections" {
		t.Errorf("the address and its group have one still: %v", no)
	}
	c.Close(start)
	if no := b.Message(start, 1); no != nil {
		t.Errorf("the third message: %v", no)
	}
	if no := b.Message(start, 1); no == nil || no.What != "messages a connection" {
		t.Errorf("the fourth message over one connection: %v", no)
	}
	b.Close(start)
	open(Path{Site: "b"}).Close(start) // which was no new connection until now
	allFree(t, g)
}

// TestTakeOverAtRandom: whatever is taken over, counts are what is open.
func TestTakeOverAtRandom(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		g := New(Options{})
		path := func() Path {
			n := r.IntN(6)
			p := Path{Site: fmt.Sprint("s", n), Source: "x"}
			if n < 4 {
				p.Provider = fmt.Sprint("p", n%2)
			}
			if n%3 == 0 {
				p.Groups = []string{"one"}
			}
			return p
		}
		groups := map[string][]string{"192.0.2.1": {"one", "two"}, "192.0.2.2": {"two"}, "192.0.2.3": nil}
		address := func() string { return fmt.Sprint("192.0.2.", 1+r.IntN(3)) }
		var live []*Ticket
		for range 200 {
			switch n := r.IntN(10); {
			case n < 4 || len(live) < 2:
				if k, no := g.Open(start, path()); no == nil {
					to := address()
					if no := k.At(start, to, groups[to]...); no != nil {
						k.Return(start)
						continue
					}
					if r.IntN(3) > 0 {
						k.Greeted(start)
					}
					live = append(live, k)
				}
			case n < 7:
				i := r.IntN(len(live))
				old := live[i]
				if len(old.at) == 0 {
					continue
				}
				if k, no := g.Open(start, path()); no == nil {
					k.TakeOver(start, old, groups[old.at[0].Name]...)
					live[i] = k
				}
			case n < 8:
				k := live[r.IntN(len(live))]
				if no := k.Message(start, 1); no == nil && r.IntN(2) == 0 {
					k.Taken(start)
				}
			default:
				i := r.IntN(len(live))
				live[i].Close(start)
				live = append(live[:i], live[i+1:]...)
			}
			open := map[Key]int{}
			for _, k := range live {
				for _, key := range append(k.path.keys(), k.at...) {
					open[key]++
				}
			}
			for k, c := range g.counters {
				if c.open != open[k] {
					t.Fatalf("seed %d: %v counts %d, and %d are open", seed, k, c.open, open[k])
				}
			}
		}
		for _, k := range live {
			k.Close(start)
		}
		allFree(t, g)
	}
}

// allFree checks that nothing is counted as open.
func allFree(t *testing.T, g *Gate) {
	t.Helper()
	for k, c := range g.counters {
		if c.open != 0 || c.greeted != 0 {
			t.Errorf("%v has %d open, %d greeted", k, c.open, c.greeted)
		}
	}
	for p, c := range g.controls {
		if c.open != 0 {
			t.Errorf("the control of %v has %d open", p, c.open)
		}
	}
	if len(g.shares) != 0 {
		t.Errorf("shares are left: %v", g.shares)
	}
}
