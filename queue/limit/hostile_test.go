package limit

import (
	"fmt"
	"testing"
	"time"
)

// TestAddressesSayNothing has servers say recipients back whose names are what providers
// say when they block us.
func TestAddressesSayNothing(t *testing.T) {
	c, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []Answer{
		{Code: 550, Enhanced: "5.1.1", Text: "RL000001: no such user"},
		{Code: 550, Text: "<RL000001@comcast.example>: no such user"},
		{Code: 550, Text: `<"[TSS04] permanently deferred"@yahoo.example> unknown`},
		{Code: 550, Text: `unknown: "your ip is blocked by too many connections"@x.example`},
		{Code: 450, Text: "too.many.connections.rate.limit@x.example is not here"},
		{Code: 550, Text: "unknown S3150@outlook.example"},
	} {
		if m := c.Meaning(a); m.Class != Nothing {
			t.Errorf("%+v means %v by %q", a, m.Class, m.Rule)
		}
	}
	if m := c.Meaning(Answer{Code: 421, Enhanced: "4.7.0", Text: "[TSS04] Messages from 192.0.2.1 temporarily deferred - ask postmaster@yahoo.example"}); m.Class != Blocked {
		t.Errorf("%+v", m)
	}
}

// TestOneHostOfManyBlocks has a server block us whose name only ends as others' do.
func TestOneHostOfManyBlocks(t *testing.T) {
	c, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: c})
	for provider, all := range map[string]bool{"hoster.example": false, "yahoo": true} {
		k, no := g.Open(start, Path{Site: "vm66." + provider, Provider: provider})
		if no != nil {
			t.Fatal(no)
		}
		k.Said(start, Answer{Code: 421, Text: "[TSS04] go away"})
		k.Close(start)
		for other, want := range map[string]bool{"vm66.": true, "mx.": all} {
			if no := g.Suspended(start, Path{Site: other + provider, Provider: provider}); (no != nil) != want {
				t.Errorf("%s%s: %v", other, provider, no)
			}
		}
	}
}

// TestClockThatWasAhead has the clock go back by a year, and a slow rate be lifted: nobody
// waits for what the clock said before, or for the rate that was.
func TestClockThatWasAhead(t *testing.T) {
	rate := Rate{Count: 10, Per: time.Minute}
	g := New(Options{Bounds: func(Key) Bounds { return Bounds{NewConnections: rate, Messages: rate} }})
	use := func(now time.Time) *Refusal {
		k, no := g.Open(now, Path{Site: "x", Source: "us"})
		if no != nil {
			return no
		}
		defer k.Close(now)
		if no := k.At(now, "192.0.2.1"); no != nil {
			return no
		}
		k.Greeted(now)
		return k.Message(now, 1)
	}
	if no := use(start.AddDate(1, 0, 0)); no != nil {
		t.Fatal(no)
	}
	if no := use(start); no == nil || no.Until.After(start.Add(time.Minute)) {
		t.Errorf("after the clock was set: %v", no)
	}
	now := start
	for no := use(now); no != nil; no = use(now) {
		if now = no.Until; now.After(start.Add(time.Minute)) {
			t.Fatalf("a minute later: %v", no)
		}
	}
	rate = Rate{Count: 1, Per: 24 * time.Hour}
	now = start.Add(time.Hour)
	if no := use(now); no != nil {
		t.Fatal(no)
	}
	rate = Rate{Count: 100, Per: time.Second}
	lifted := now.Add(time.Second)
	for no := use(lifted); no != nil; no = use(lifted) {
		if lifted = no.Until; lifted.After(now.Add(2 * time.Second)) {
			t.Fatalf("a rate that is lifted: %v", no)
		}
	}

	var m meter
	for range 100 {
		m.add(start.AddDate(1, 0, 0))
	}
	for i := range 600 {
		m.add(start.Add(time.Duration(i) * time.Second))
	}
	if got := m.rate(start.Add(10 * time.Minute)); got < 0.9 || got > 1.1 {
		t.Errorf("%v messages a second, and there is one", got)
	}
}

// TestLimitsThatAreLoweredHold has a limit lowered while more connections are open: those
// beyond it carry no more messages.
func TestLimitsThatAreLoweredHold(t *testing.T) {
	most := 4
	g := New(Options{Bounds: func(k Key) Bounds {
		if k.Level == Provider {
			return Bounds{Connections: most}
		}
		return Bounds{NewConnections: Rate{Count: None}}
	}})
	var all []*Ticket
	for i := range 4 {
		k, no := g.Open(start, Path{Site: fmt.Sprint("s", i), Provider: "p"})
		if no != nil {
			t.Fatal(no)
		}
		k.Greeted(start)
		if no := k.Message(start, 1); no != nil {
			t.Fatal(no)
		}
		all = append(all, k)
	}
	most = 2
	for i, k := range all {
		no := k.Message(start.Add(time.Second), 1)
		if refused := no != nil; refused != (i < 2) || refused && (no.What != "connections" || !no.Until.IsZero()) {
			t.Errorf("connection %d: %v", i, no)
		}
		if no != nil {
			k.Close(start.Add(time.Second))
		}
	}
}
