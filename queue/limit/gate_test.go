package limit

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func TestTightestLevelBinds(t *testing.T) {
	bounds := map[Key]Bounds{
		{Site, "a"}:           {Connections: 3},
		{Site, "b"}:           {Connections: 10},
		{Provider, "big"}:     {Connections: 4},
		{Source, "192.0.2.1"}: {Connections: 5},
	}
	g := New(Options{Bounds: func(k Key) Bounds { return bounds[k] }})
	open := func(site, provider, source string) (*Ticket, *Refusal) {
		return g.Open(start, Path{Site: site, Provider: provider, Source: source})
	}
	var all []*Ticket
	for i := range 3 {
		k, no := open("a", "big", "192.0.2.1")
		if no != nil {
			t.Fatalf("connection %d: %v", i, no)
		}
		all = append(all, k)
	}
	if _, no := open("a", "big", "192.0.2.1"); no == nil || no.Key != (Key{Site, "a"}) || no.What != "connections" {
		t.Fatalf("the fourth to a site with 3: %v", no)
	}
	k, no := open("b", "big", "192.0.2.1")
	if no != nil {
		t.Fatal(no)
	}
	if _, no := open("b", "big", "192.0.2.1"); no == nil || no.Key != (Key{Provider, "big"}) {
		t.Fatalf("the fifth to a provider with 4: %v", no)
	}
	if _, no := open("c", "", "192.0.2.1"); no != nil {
		t.Fatal(no)
	}
	if _, no := open("d", "", "192.0.2.1"); no == nil || no.Key != (Key{Source, "192.0.2.1"}) {
		t.Fatalf("the sixth from a source with 5: %v", no)
	}
	k.Close(start)
	k.Close(start)
	if _, no := open("b", "big", "192.0.2.1"); no != nil {
		t.Fatalf("after a close: %v", no)
	}
	all[0].Close(start)
}

func TestWhoWaitsIsWokenOneByOne(t *testing.T) {
	var woken []string
	g := New(Options{
		Bounds: func(k Key) Bounds {
			if k.Level == Provider {
				return Bounds{Connections: 2}
			}
			return Bounds{}
		},
		Wake: func(site string) { woken = append(woken, site) },
	})
	var open []*Ticket
	for i := range 2 {
		k, no := g.Open(start, Path{Site: fmt.Sprint("s", i), Provider: "p"})
		if no != nil {
			t.Fatal(no)
		}
		open = append(open, k)
	}
	for i := 2; i < 5; i++ {
		for range 2 { // asking twice waits once
			if _, no := g.Open(start, Path{Site: fmt.Sprint("s", i), Provider: "p"}); no == nil {
				t.Fatal("admitted")
			}
		}
	}
	open[0].Close(start)
	if fmt.Sprint(woken) != "[s2]" {
		t.Fatalf("woken %v", woken)
	}
	open[1].Close(start)
	if fmt.Sprint(woken) != "[s2 s3]" {
		t.Fatalf("woken %v", woken)
	}
}

func TestWanted(t *testing.T) {
	g := New(Options{Bounds: func(k Key) Bounds { return map[Key]Bounds{{Provider, "big"}: {Connections: 1}}[k] }})
	a, b, c := Path{Site: "a", Provider: "big"}, Path{Site: "b", Provider: "big"}, Path{Site: "c"}
	k, no := g.Open(start, a)
	if no != nil || g.Wanted(a) {
		t.Fatal(no, "nobody waits")
	}
	if _, no := g.Open(start, a); no == nil || g.Wanted(a) {
		t.Error("the site itself waits, nobody else:", no)
	}
	if _, no := g.Open(start, b); no == nil || !g.Wanted(a) || g.Wanted(c) {
		t.Error("b waits for a:", no)
	}
	k.Close(start)
	k.Close(start)
	g.Resume(start, Key{Provider, "big"}) // wakes whoever is left
	if g.Wanted(a) {
		t.Error("those who were woken are still waited for")
	}
}

func TestRates(t *testing.T) {
	g := New(Options{Bounds: func(k Key) Bounds {
		if k.Level == Site {
			return Bounds{Connections: None, NewConnections: Rate{Count: 60, Per: time.Minute, Burst: 3}, Messages: Rate{Count: 10, Per: time.Second, Burst: 1}, MessagesEach: 5}
		}
		return Bounds{}
	}})
	now := start
	opened := 0
	for ; now.Before(start.Add(time.Minute)); now = now.Add(10 * time.Millisecond) {
		k, no := g.Open(now, Path{Site: "x"})
		if no == nil {
			k.Greeted(now)
			k.Taken(now)
			k.Close(now)
			opened++
		} else if no.What != "new connections" || !no.Until.After(now) {
			t.Fatalf("%v until %v", no, no.Until)
		}
	}
	if opened != 60+3-1 {
		t.Errorf("%d connections in a minute with 60 and a burst of 3", opened)
	}
	now = now.Add(time.Minute)
	k, no := g.Open(now, Path{Site: "x"})
	if no != nil {
		t.Fatal(no)
	}
	sent := 0
	for range 20 {
		no := k.Message(now, 1)
		if no == nil {
			sent++
			continue
		}
		if no.What == "messages a connection" {
			break
		}
		if got := no.Until.Sub(now); got <= 0 || got > 100*time.Millisecond {
			t.Fatalf("wait %v", got)
		}
		now = no.Until
	}
	if sent != 5 {
		t.Errorf("%d messages on a connection for 5", sent)
	}
}

// TestNeverExceeded lets many ask at once and counts what is open.
func TestNeverExceeded(t *testing.T) {
	const most = 7
	g := New(Options{Bounds: func(k Key) Bounds {
		if k.Level == Site {
			return Bounds{Connections: 20, NewConnections: Rate{Count: None}}
		}
		return Bounds{Connections: most}
	}})
	var mu sync.Mutex
	open, peak := map[string]int{}, map[string]int{}
	count := func(k string, n int) {
		mu.Lock()
		defer mu.Unlock()
		open[k] += n
		peak[k] = max(peak[k], open[k])
	}
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 2000 {
				p := Path{Site: fmt.Sprint("s", r.IntN(4)), Provider: fmt.Sprint("p", r.IntN(2))}
				k, no := g.Open(start, p)
				if no != nil {
					continue
				}
				count(p.Provider, 1)
				address := fmt.Sprint("a", r.IntN(3))
				if k.At(start, address) == nil {
					count(address, 1)
					count(address, -1)
				}
				count(p.Provider, -1)
				k.Close(start)
			}
		})
	}
	wg.Wait()
	for k, n := range peak {
		if n > most {
			t.Errorf("%s had %d open, of %d", k, n, most)
		}
	}
	for k, c := range g.counters {
		if c.open != 0 {
			t.Errorf("%v has %d open in the end", k, c.open)
		}
	}
}

// TestReturnedTicketsCostNothing takes tickets and does not use them.
func TestReturnedTicketsCostNothing(t *testing.T) {
	g := New(Options{Bounds: func(k Key) Bounds {
		if k.Level == Site {
			return Bounds{NewConnections: Rate{Count: 1, Per: time.Hour, Burst: 2}}
		}
		return Bounds{}
	}})
	for i := range 100 {
		k, no := g.Open(start, Path{Site: "x"})
		if no != nil {
			t.Fatalf("ticket %d: %v", i, no)
		}
		k.Return(start)
		k.Close(start)
	}
	for range 2 {
		if _, no := g.Open(start, Path{Site: "x"}); no != nil {
			t.Fatal(no)
		}
	}
	if _, no := g.Open(start, Path{Site: "x"}); no == nil || no.What != "new connections" {
		t.Fatalf("the third: %v", no)
	}
}

func TestGroupsOfAddresses(t *testing.T) {
	g := New(Options{Bounds: func(k Key) Bounds {
		if k == (Key{Group, "net"}) {
			return Bounds{Connections: 2}
		}
		return Bounds{}
	}})
	var all []*Ticket
	for i := range 3 {
		k, no := g.Open(start, Path{Site: fmt.Sprint("s", i)})
		if no != nil {
			t.Fatal(no)
		}
		all = append(all, k)
		no = k.At(start, fmt.Sprint("192.0.2.", i), "net")
		if (no != nil) != (i == 2) {
			t.Fatalf("address %d: %v", i, no)
		}
	}
	all[0].Close(start)
	if no := all[2].At(start, "192.0.2.2", "net"); no != nil {
		t.Fatal(no)
	}
}

func TestOperatorsWord(t *testing.T) {
	woken := 0
	g := New(Options{Wake: func(string) { woken++ }})
	site := Key{Site, "x"}
	g.Suspend(start, site, start.Add(time.Hour), "they asked us to")
	if _, no := g.Open(start, Path{Site: "x"}); no == nil || no.What != "suspended" || no.Why != "they asked us to" || !no.Until.Equal(start.Add(time.Hour)) {
		t.Fatalf("%v", no)
	}
	e := g.Explain(start, Path{Site: "x"})
	if e.Binding == nil || e.Binding.Why != "they asked us to" {
		t.Fatalf("explained %+v", e.Binding)
	}
	if _, no := g.Open(start.Add(time.Hour), Path{Site: "x"}); no != nil {
		t.Fatalf("after its end: %v", no)
	}
	g.Set(start, site, Bounds{Connections: 1}, start.Add(2*time.Hour), "for a while")
	if _, no := g.Open(start.Add(time.Hour), Path{Site: "x"}); no == nil || no.Limit != "1" {
		t.Fatalf("%v", no)
	}
	if !g.Resume(start, site) || woken == 0 {
		t.Fatalf("nothing to resume, or nobody woken (%d)", woken)
	}
	if _, no := g.Open(start.Add(time.Hour), Path{Site: "x"}); no != nil {
		t.Fatal(no)
	}
}

func TestSourcesAreSuspendedByThemselves(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: classes})
	k, no := g.Open(start, Path{Site: "yahoo", Source: "192.0.2.1"})
	if no != nil {
		t.Fatal(no)
	}
	m := k.Said(start, Answer{Code: 421, Enhanced: "4.7.0", Text: "[TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints", Early: true})
	if m.Class != Blocked || m.Pause != 2*time.Hour {
		t.Fatalf("%+v", m)
	}
	k.Close(start)
	if _, no := g.Open(start.Add(time.Hour), Path{Site: "yahoo", Source: "192.0.2.1"}); no == nil || no.What != "suspended" {
		t.Fatalf("%v", no)
	}
	for _, p := range []Path{{Site: "yahoo", Source: "192.0.2.2"}, {Site: "elsewhere", Source: "192.0.2.1"}} {
		if _, no := g.Open(start.Add(time.Hour), p); no != nil {
			t.Errorf("%+v: %v", p, no)
		}
	}
	if _, no := g.Open(start.Add(2*time.Hour), Path{Site: "yahoo", Source: "192.0.2.1"}); no != nil {
		t.Errorf("after the pause: %v", no)
	}
}

// TestSuspendedGetsNothing has connections that are open when a suspension begins.
func TestSuspendedGetsNothing(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: classes})
	p := Path{Site: "x", Provider: "big", Groups: []string{"some"}, Source: "us"}
	k, no := g.Open(start, p)
	if no != nil {
		t.Fatal(no)
	}
	if no := k.At(start, "192.0.2.1", "net"); no != nil {
		t.Fatal(no)
	}
	k.Greeted(start)
	until := start.Add(time.Hour)
	keys := []Key{{Source, "us"}, {Provider, "big"}, {Group, "some"}, {Group, "net"}, {Site, "x"}, {Address, "192.0.2.1"}}
	for i, key := range keys {
		g.Suspend(start, key, until, "a reason")
		if no := k.Message(start, 1); no == nil || no.Key != key || no.What != "suspended" || no.Why != "a reason" || !no.Until.Equal(until) {
			t.Errorf("%v is suspended: %v", key, no)
		}
		known := key.Level != Address && key.Name != "net" // before a connection
		if no := g.Suspended(start, p); known != (no != nil) {
			t.Errorf("%v is suspended: %v", key, no)
		}
		if held := g.Held(start); len(held) != 1 || held[0] != (Held{Key: key, Suspended: true, Since: start, Until: until, Why: "a reason"}) {
			t.Errorf("%+v", held)
		}
		if !g.Resume(start, key) {
			t.Errorf("%v cannot be resumed", key)
		}
		if no := k.Message(start.Add(time.Duration(i)*time.Second), 1); no != nil {
			t.Errorf("%v was resumed: %v", key, no)
		}
	}
	if held, no := g.Held(start), g.Suspended(start, p); len(held) != 0 || no != nil {
		t.Errorf("%+v, %v", held, no)
	}

	k.Said(start, Answer{Code: 421, Enhanced: "4.7.0", Text: "[TSS04] Messages deferred"})
	for _, no := range []*Refusal{k.Message(start, 1), g.Suspended(start, p), g.Explain(start, p).Binding} {
		if no == nil || no.Key.Level != Adapted || no.What != "suspended" || !no.Until.Equal(start.Add(2*time.Hour)) {
			t.Errorf("blocked: %v", no)
		}
	}
	if no := g.Suspended(start, Path{Site: "x", Source: "others"}); no != nil {
		t.Errorf("another source: %v", no)
	}
	if no := k.Message(start.Add(2*time.Hour), 1); no != nil {
		t.Errorf("after its end: %v", no)
	}

	// A site that could not be reached three times running sleeps; a connection that
	// is there all the same is of use.
	for range failuresToSleep {
		k.Unreachable(start.Add(3*time.Hour), "no route")
	}
	if no := g.Suspended(start.Add(3*time.Hour), p); no != nil {
		t.Errorf("unreachable: %v", no)
	}
	if no := k.Message(start.Add(3*time.Hour), 1); no != nil {
		t.Errorf("unreachable: %v", no)
	}
	if _, no := g.Open(start.Add(3*time.Hour), p); no == nil || no.What != "suspended" {
		t.Errorf("unreachable: %v", no)
	}
}

func TestSweepForgets(t *testing.T) {
	g := New(Options{})
	for i := range 1000 {
		k, no := g.Open(start, Path{Site: fmt.Sprint(i)})
		if no != nil {
			t.Fatal(no)
		}
		if no := k.At(start, fmt.Sprint("a", i)); no != nil {
			t.Fatal(no)
		}
		k.Close(start)
	}
	g.Sweep(start.Add(forgetAfter + time.Hour))
	if len(g.counters) != 0 || len(g.controls) != 0 {
		t.Errorf("%d counters and %d controls are left", len(g.counters), len(g.controls))
	}
}

func TestRateTexts(t *testing.T) {
	for _, s := range []string{"100/min", "1/s", "2000/h", "5/d", "none"} {
		r, err := ParseRate(s)
		if err != nil || r.String() != s {
			t.Errorf("%s: %v, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "5", "/s", "0/s", "-1/s", "+1/s", "01/s", "1/m", "9999999/s", "1 /s", "x/min"} {
		if r, err := ParseRate(s); err == nil {
			t.Errorf("%q is %v", s, r)
		}
	}
}
