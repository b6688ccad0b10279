package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/limit"
	"github.com/postern-mta/postern/queue/queuetest/internet"
)

// twoSources are a pool of two, of which the first has two thirds.
const twoSources = `[source.first]
ipv4 = "127.200.%[1]d.1"
[source.second]
ipv4 = "127.200.%[1]d.2"
[pool.default]
sources = ["first", "second"]
weights = {first = 2}
`

// takenFrom is how many messages a provider has taken from 127.200.NET.HOST.
func takenFrom(c *internet.Course, net, host byte) int {
	return c.TakenFrom[netip.AddrFrom4([4]byte{127, 200, net, host})]
}

// TestInternetSourceBlocked: one of a big provider's servers blocks one of our
// addresses. The other takes over at all sites of that provider, at once, and both go
// on elsewhere; what was refused is sent again when the pause is over
// or an operator says so.
func TestInternetSourceBlocked(t *testing.T) {
	t.Parallel()
	n := internet.New(t)
	big := n.Provider("google", internet.Manner{
		Blocked: internet.No{At: smtptest.Mail, Reply: "421 4.7.0 This message is suspicious due to the very low reputation of the sending IP address."}, Blocks: []string{"127.200.1.1"},
	})
	for i := range 4 {
		host := fmt.Sprintf("mx%d.google.com", i)
		big.HostSet(internet.Setting{Tarpit: time.Millisecond}, host, fmt.Sprintf("127.9.1.%d", i+1))
		n.Domain(fmt.Sprintf("tenant%d.example", i), host)
	}
	rest := n.Provider("others", internet.Manner{})
	for i := range 10 {
		rest.HostSet(internet.Setting{Tarpit: time.Millisecond}, fmt.Sprintf("mx%d.others.example", i), fmt.Sprintf("127.9.2.%d", i+1))
		n.Domain(domainOf(i), fmt.Sprintf("mx%d.others.example", i))
	}
	s := newSender(t, n, lifted+fmt.Sprintf(twoSources, 1))
	s.send(1, to("tenant0.example"))
	waitFor(t, "a block to be heard", func() bool { return len(s.d.engine.limits.gate.Blocks(time.Now())) == 1 })
	s.send(200, func(i int) string { return fmt.Sprintf("you@tenant%d.example", i%4) })
	s.send(600, func(i int) string { return "you@" + domainOf(i%10) })
	s.arrive(0)
	s.show(big, rest)
	c, o := big.Course(), rest.Course()
	if refused := c.Refused("blocked"); refused != 1 || takenFrom(&c, 1, 1) != 0 || takenFrom(&c, 1, 2) != 201 {
		t.Errorf("%d were refused, and taken were %v", refused, c.TakenFrom)
	}
	if a := takenFrom(&o, 1, 1); a < 200 || a+takenFrom(&o, 1, 2) != 600 {
		t.Errorf("elsewhere: %v", o.TakenFrom)
	}
	e := s.found("tenant3.example")
	if b := e.Sources[0].Binding; b == nil || b.What != "suspended" || !strings.Contains(b.Why, "very low reputation") {
		t.Errorf("%+v", e.Sources)
	}
	if b := e.Sources[1].Binding; b != nil && b.What == "suspended" {
		t.Errorf("%+v", e.Sources)
	}
	big.Change(func(m *internet.Manner) { m.Blocked = internet.No{} })
	if !s.d.engine.limits.gate.Resume(time.Now(), limit.Key{Level: limit.Source, Name: "first"}) {
		t.Error("there was nothing to resume")
	}
	s.send(100, func(i int) string { return fmt.Sprintf("you@tenant%d.example", i%4) })
	s.arrive(0)
	if c := big.Course(); takenFrom(&c, 1, 1) == 0 {
		t.Errorf("it does not go on: %v", c.TakenFrom)
	}
}

// TestInternetWarmup: a new address has so many messages a day for each provider,
// never one more however many are sent at once; the old one has the rest, and what is
// bound to the new one alone waits.
func TestInternetWarmup(t *testing.T) {
	t.Parallel()
	n := internet.New(t)
	var providers []*internet.Provider
	for i, name := range []string{"google", "yahoo"} {
		p := n.Provider(name, internet.Manner{})
		for k := range 2 {
			host := fmt.Sprintf("mx%d.%s", k, []string{"google.com", "yahoodns.net"}[i])
			p.HostSet(internet.Setting{Tarpit: 2 * time.Millisecond}, host, fmt.Sprintf("127.10.%d.%d", i+1, k+1))
			n.Domain(fmt.Sprintf("%s%d.example", name, k), host)
		}
		providers = append(providers, p)
	}
	s := newSender(t, n, strings.Replace(lifted, "[site.default]", "[provider.google]\nconnections = 20\n[provider.yahoo]\nconnections = 20\n[site.default]", 1)+
		strings.Replace(fmt.Sprintf(twoSources, 2), "[source.second]", fmt.Sprintf("warmup = {since = %s, plan = [30, 30, 30]}\n[source.second]", time.Now().UTC().Format(time.DateOnly)), 1)+
		"[pool.new]\nsources = [\"first\"]\nsenders = [\"new.example\"]\n")
	s.send(400, func(i int) string { return fmt.Sprintf("you@%s%d.example", []string{"google", "yahoo"}[i%2], i/2%2) })
	s.arrive(0)
	s.show(providers...)
	for _, p := range providers {
		c := p.Course()
		if fresh := takenFrom(&c, 2, 1); fresh != 30 || fresh+takenFrom(&c, 2, 2) != 200 {
			t.Errorf("%s: %v", p.Name(), c.TakenFrom)
		}
	}
	s.queue(s.Letter("us@new.example", "you@google0.example"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.WaitFor(ctx, 401); err == nil {
		t.Error("there was one more than the budget")
	}
	if e := s.found("google1.example"); e.Sources[0].Warmup == nil || e.Sources[0].Warmup.Used != 30 || e.Sources[0].Binding == nil || !strings.Contains(e.Sources[0].Binding.What, "warm-up") || e.Binding != nil {
		t.Errorf("%+v", e.Sources[0])
	}
}

// TestInternetWeights: two addresses get their shares of many messages, within a few
// per cent, where there is room for both. Where there is not, what has room is used.
func TestInternetWeights(t *testing.T) {
	t.Parallel()
	n := internet.New(t)
	p := n.Provider("all", internet.Manner{})
	for i := range 5 {
		p.Host(fmt.Sprintf("mx.%s", domainOf(i)), fmt.Sprintf("127.11.1.%d", i+1))
		n.Domain(domainOf(i), "mx."+domainOf(i))
	}
	s := newSender(t, n, lifted+fmt.Sprintf(twoSources, 3))
	for range 100 {
		s.send(12, func(i int) string { return "you@" + domainOf(i%5) })
		s.arrive(0)
	}
	s.show(p)
	c := p.Course()
	if a, b := takenFrom(&c, 3, 1), takenFrom(&c, 3, 2); a < 760 || a > 840 || a+b != 1200 {
		t.Errorf("%v", c.TakenFrom)
	}
	s.send(3000, func(i int) string { return "you@" + domainOf(i%5) })
	s.arrive(0)
	c = p.Course()
	if a, b := takenFrom(&c, 3, 1), takenFrom(&c, 3, 2); a < 760+1300 || b < 360+500 || a+b != 4200 {
		t.Errorf("%v", c.TakenFrom)
	}
}
