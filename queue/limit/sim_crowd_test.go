package limit

import (
	"container/heap"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// crowd is a simulated time with many sites that are one server in truth.
type crowd struct {
	now    time.Time
	events events
	serial int

	gate     *Gate
	server   *hidden
	sites    []*member
	refusals []time.Time
	swept    time.Time
}

// member is one of the sites, with endless mail for it.
type member struct {
	path    Path
	address string
	opened  int
	blocked bool
	again   time.Time
}

func newCrowd(t *testing.T, sites int, server *hidden, member func(i int) *member) *crowd {
	t.Helper()
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	c := &crowd{now: start, server: server}
	c.gate = New(Options{Classes: classes, Wake: func(site string) {
		for _, m := range c.sites {
			if m.path.Site == site {
				m.blocked = false
			}
		}
	}, Bounds: func(k Key) Bounds {
		return Bounds{Connections: 40, NewConnections: Rate{Count: None}, Messages: Rate{Count: None}, MessagesEach: None, RecipientsEach: None}
	}})
	for i := range sites {
		c.sites = append(c.sites, member(i))
	}
	return c
}

func (c *crowd) after(d time.Duration, do func()) {
	c.serial++
	heap.Push(&c.events, event{c.now.Add(d), c.serial, do})
}

func (c *crowd) run(d time.Duration) {
	for end := c.now.Add(d); c.now.Before(end); {
		if c.now.Sub(c.swept) >= 10*time.Second {
			c.swept = c.now
			c.gate.Sweep(c.now)
		}
		for _, m := range c.sites {
			for m.opened < 3 && !m.blocked && !c.now.Before(m.again) {
				c.open(m)
			}
		}
		next := c.now.Add(500 * time.Millisecond)
		if len(c.events) > 0 && c.events[0].at.Before(next) {
			e := heap.Pop(&c.events).(event)
			c.now = e.at
			e.do()
			continue
		}
		c.now = next
	}
}

// open opens a connection that carries five messages, if it may.
func (c *crowd) open(m *member) {
	k, no := c.gate.Open(c.now, m.path)
	if no == nil {
		if no = k.At(c.now, m.address); no != nil {
			k.Return(c.now)
		}
	}
	if no != nil {
		m.blocked, m.again = no.Until.IsZero(), no.Until
		return
	}
	m.opened++
	end := func() {
		m.opened--
		k.Close(c.now)
	}
	c.after(150*time.Millisecond, func() {
		if c.server.open >= c.server.connections {
			c.refusals = append(c.refusals, c.now)
			k.Said(c.now, Answer{Code: 421, Enhanced: "4.7.0", Text: "Too many concurrent connections from your address", Early: true})
			end()
			return
		}
		c.server.open++
		c.server.peak = max(c.server.peak, c.server.open)
		k.Greeted(c.now)
		var send func(left int)
		send = func(left int) {
			if left == 0 {
				c.server.open--
				end()
				return
			}
			k.Message(c.now, 1)
			c.after(250*time.Millisecond, func() {
				k.Taken(c.now)
				send(left - 1)
			})
		}
		send(5)
	})
}

// TestSharedHiddenLimit: what one address takes for many sites, or one provider at
// many addresses for his tenants, is found out for all of them together.
func TestSharedHiddenLimit(t *testing.T) {
	for _, c := range few(Address, Provider) {
		t.Run(c.String(), func(t *testing.T) {
			server := &hidden{connections: 12}
			w := newCrowd(t, 30, server, func(i int) *member {
				m := &member{path: Path{Site: fmt.Sprint("s", i)}, address: "192.0.2.1"}
				if c == Provider {
					m.path.Provider, m.address = "p", fmt.Sprint("192.0.2.", i)
				}
				return m
			})
			name := "192.0.2.1"
			if c == Provider {
				name = "p"
			}
			found := func() ControlState {
				if k := w.gate.controls[pair{Key{c, name}.String(), ""}]; k != nil {
					return k.state(w.now)
				}
				return ControlState{}
			}
			w.run(5 * time.Minute)
			cost := len(w.refusals)
			if got := found(); !near(got.Limit, 12) || cost > 40 {
				t.Errorf("after five minutes and %d refusals: %+v", cost, got)
			}
			w.run(time.Hour)
			begun, most := 0, 0
			for i, a := range w.refusals[cost:] {
				in := 0
				for _, b := range w.refusals[cost+i:] {
					if b.Sub(a) < 10*time.Minute {
						in++
					}
				}
				begun, most = begun+1, max(most, in)
			}
			t.Logf("found %d with %d refusals; %d in the hour afterwards, at most %d in ten minutes", found().Limit, cost, begun, most)
			if got := found(); !near(got.Limit, 12) || most > 1 {
				t.Errorf("in the end, with %d probes in ten minutes: %+v", most, got)
			}
			server.connections = 24
			for doubled := w.now; !near(found().Limit, 24) && w.now.Sub(doubled) < 45*time.Minute; {
				w.run(time.Second)
			}
			if got := found(); !near(got.Limit, 24) {
				t.Errorf("after it had doubled: %+v", got)
			}
			if lines := w.gate.Explain(w.now, w.sites[0].path, w.sites[0].address).Lines; lines[len(lines)-1].Key != (Key{Adapted, Key{c, name}.String()}) {
				t.Errorf("%+v", lines)
			}
		})
	}
}

// TestOffer: who waits for an address is woken when a connection there is free.
func TestOffer(t *testing.T) {
	var woken []string
	g := New(Options{Wake: func(site string) { woken = append(woken, site) }, Bounds: func(k Key) Bounds {
		if k.Level == Address {
			return Bounds{Connections: 1}
		}
		return Bounds{}
	}})
	for _, site := range []string{"a", "b", "c"} {
		k, no := g.Open(start, Path{Site: site})
		if no != nil {
			t.Fatal(no)
		}
		if no := k.At(start, "192.0.2.1"); (no == nil) != (site == "a") {
			t.Fatalf("%s: %v", site, no)
		} else if no != nil {
			k.Return(start)
		}
	}
	woken = nil
	for _, want := range []string{"b", "b c", "b c"} {
		if g.Offer(Key{Address, "192.0.2.1"}); strings.Join(woken, " ") != want {
			t.Errorf("woken are %v, want %s", woken, want)
		}
	}
}

// TestShareIsForgotten: what was found out about an address or a provider is no site's
// state, binds where it is the tightest, and can be forgotten.
func TestShareIsForgotten(t *testing.T) {
	g := New(Options{Bounds: func(k Key) Bounds {
		if k.Level == Provider {
			return Bounds{Connections: 20}
		}
		return Bounds{NewConnections: Rate{Count: None}}
	}})
	refused := Answer{Code: 421, Text: "too many connections", Early: true}
	open := func(site, address string) *Ticket {
		t.Helper()
		k, no := g.Open(start, Path{Site: site, Provider: "p"})
		if no == nil {
			no = k.At(start, address)
		}
		if no != nil {
			t.Fatal(no)
		}
		return k
	}
	for _, same := range []bool{true, false} {
		var all []*Ticket
		for i := range 3 {
			address := "192.0.2.1"
			if !same {
				address = fmt.Sprint("192.0.2.", i)
			}
			k := open(fmt.Sprint("s", i), address)
			if all = append(all, k); i < 2 {
				k.Greeted(start)
				continue
			}
			k.Said(start, refused)
			k.Close(start)
		}
		p := Path{Site: "new", Provider: "p"}
		e, forget := g.Explain(start, p, "192.0.2.1"), "address 192.0.2.1"
		if !same {
			forget = "s0"
			if e.Binding == nil || e.Binding.Key != (Key{Provider, "p"}) || e.Binding.Limit != "2" {
				t.Errorf("%+v", e.Binding)
			}
			if i := slices.IndexFunc(e.Lines, func(l Line) bool { return l.Binds }); i < 0 || e.Lines[i].Key != (Key{Adapted, "provider p"}) {
				t.Errorf("%+v", e.Lines)
			}
		}
		if last := e.Lines[len(e.Lines)-1]; last.Limit != "2" || last.Used != "2" {
			t.Errorf("%+v", last)
		}
		for _, s := range g.Sites(start) {
			if strings.Contains(s.Site, " ") {
				t.Errorf("%+v is no site", s)
			}
		}
		for _, k := range all {
			k.Close(start)
		}
		if n := g.Forget(forget); n == 0 {
			t.Errorf("%s is not forgotten", forget)
		}
		if e := g.Explain(start, p, "192.0.2.1"); e.Lines[len(e.Lines)-1].Key.Level == Adapted || len(g.shares) > 0 {
			t.Errorf("%+v %+v", e.Lines, g.shares)
		}
	}
}

// TestSmallServersOfABigProvider: that one of a provider's servers wants no more than it
// has does not move what the provider gets.
func TestSmallServersOfABigProvider(t *testing.T) {
	g := New(Options{Bounds: func(Key) Bounds { return Bounds{NewConnections: Rate{Count: None}} }})
	open := func(site string) *Ticket {
		t.Helper()
		k, no := g.Open(start, Path{Site: site, Provider: "p"})
		if no == nil {
			no = k.At(start, "address of "+site)
		}
		if no != nil {
			t.Fatal(no)
		}
		return k
	}
	for i := range firstConnections {
		small := fmt.Sprint("small", i)
		open("big").Greeted(start)
		open(small).Greeted(start)
		k := open(small)
		k.Said(start, Answer{Code: 421, Text: "too many connections", Early: true})
		k.Close(start)
		if s := g.Explain(start, Path{Site: small, Provider: "p"}); s.Control.Limit != 1 || s.Lines[len(s.Lines)-1].Key.Level == Adapted {
			t.Fatalf("%s: %+v", small, s)
		}
	}
}
