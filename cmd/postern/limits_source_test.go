package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

const poolText = `
[source.a]
ipv4 = "192.0.2.1"
[source.b]
ipv4 = "192.0.2.2"
helo = "b.example.org"
[source.c]
ipv4 = "192.0.2.3"
connections = 2
[pool.default]
sources = ["a", "b"]
weights = {a = 3}
[pool.news]
sources = ["c"]
senders = ["news.example.org"]
[site.default]
connections = 1000
connection_rate = "none"
`

func (r *limitsRig) site(domain string) string {
	r.t.Helper()
	name, err := r.locate(context.Background(), domain)
	if err != nil {
		r.t.Fatal(err)
	}
	return name
}

// leave asks for leave to send a message.
func (r *limitsRig) leave(site, pool string) (*permit, string) {
	r.t.Helper()
	v, wait := r.admit(r.clock, site, pool)
	if wait != nil {
		return nil, ""
	}
	p, ok := v.(*permit)
	if !ok {
		r.t.Fatalf("%T", v)
	}
	return p, p.source.Name
}

// TestPoolsOfMessages says which mail is in which pool.
func TestPoolsOfMessages(t *testing.T) {
	r := newLimitsRig(t, limitsZone, poolText)
	for _, test := range []struct{ sender, chosen, want string }{
		{"joe@example.org", "", ""}, {"joe@news.example.org", "", "news"}, {"joe@example.org", "news", "news"}, {"", "", ""}, {"joe@news.example.org", "default", ""},
	} {
		if got := r.pool(test.sender, test.chosen); got != test.want {
			t.Errorf("%q, %q: %q, want %q", test.sender, test.chosen, got, test.want)
		}
	}
	for pool, want := range map[string]string{"": "a a a b", "news": "c c c c", "gone": "a a a b"} {
		counts := map[string]int{}
		for range 400 {
			v, source := r.leave(r.site("one.example"), pool)
			counts[source]++
			v.Release()
		}
		for _, source := range strings.Fields(want) {
			counts[source] -= 100
		}
		for source, off := range counts {
			if off < -5 || off > 5 {
				t.Errorf("%s: %s is off by %d", pool, source, off)
			}
		}
	}
	if s := r.source("b"); s != (smtp.Source{Name: "b", IPv4: netip.MustParseAddr("192.0.2.2"), Hello: "b.example.org"}) {
		t.Errorf("%+v", s)
	}
	if s := r.source("default"); s != (smtp.Source{}) {
		t.Errorf("%+v", s)
	}
}

// TestSourceBlockedElsewhere has a provider block a source: the other takes over
// there, and the first one serves all others.
func TestSourceBlockedElsewhere(t *testing.T) {
	r := newLimitsRig(t, limitsZone, poolText)
	google, other := r.site("gmail.example"), r.site("one.example")
	v, source := r.leave(google, "")
	if source != "a" {
		t.Fatal(source)
	}
	k := v.take()
	k.Greeted()
	k.Said(wire.Reply{Code: 550, Text: "5.7.1 Our system has detected that this message is likely suspicious due to the very low reputation of the sending IP address"}, false)
	k.Close()
	v.Release()
	for _, test := range []struct {
		site        string
		least, most int // from a
	}{{google, 0, 0}, {other, 10, 20}} {
		counts := map[string]int{}
		for range 20 {
			v, source := r.leave(test.site, "")
			counts[source]++
			v.Release()
		}
		if n := counts["a"]; n < test.least || n > test.most || n+counts["b"] != 20 {
			t.Errorf("%s: %v", test.site, counts)
		}
	}
	e := r.explain("gmail.example")
	if e.Binding != nil || len(e.Sources) != 3 || e.Sources[0].Name != "a" || e.Sources[0].Binding == nil || e.Sources[0].Binding.What != "suspended" || e.Sources[1].Binding != nil {
		t.Errorf("%+v, %+v", e.Binding, e.Sources)
	}
	if e := r.explain("one.example"); e.Sources[0].Binding != nil {
		t.Errorf("%+v", e.Sources[0].Binding)
	}
	all := r.Sources()
	if len(all) != 3 || len(all[0].Suspended) == 0 || all[0].Suspended[0].Level != "provider" || all[0].Suspended[0].Name != "google" || len(all[1].Suspended) != 0 || all[1].Hello != "b.example.org" || all[0].Hello != "mx.example.org" {
		t.Errorf("%+v", all)
	}
	r.clock = r.clock.Add(3 * time.Hour)
	if e := r.explain("gmail.example"); e.Sources[0].Binding != nil {
		t.Errorf("three hours later: %+v", e.Sources[0].Binding)
	}
}

// TestSourceLimit fills a source, whose pool has no other, and another pool goes on.
func TestSourceLimit(t *testing.T) {
	r := newLimitsRig(t, limitsZone, poolText)
	site := r.site("one.example")
	first, _ := r.leave(site, "news")
	second, _ := r.leave(r.site("big.example"), "news")
	if first == nil || second == nil {
		t.Fatal("two connections are not to be had")
	}
	if v, wait := r.admit(r.clock, site, "news"); v != nil || wait == nil || !wait.Until.IsZero() {
		t.Errorf("a third: %v, %+v", v, wait)
	}
	if v, source := r.leave(site, ""); source == "" || source == "c" {
		t.Errorf("%q", source)
	} else {
		v.Release()
	}
	second.Release()
	if v, _ := r.leave(site, "news"); v == nil {
		t.Error("what was given back is not to be had")
	} else {
		v.Release()
	}
	first.Release()
}

// TestSourceThatCannotBeUsed tries the other sources of the pool, and that one all the
// same where there is none.
func TestSourceThatCannotBeUsed(t *testing.T) {
	r := newLimitsRig(t, limitsZone, poolText)
	site := r.site("one.example")
	lost := func(v *permit, address string) []smtp.Result {
		fault := &smtp.SourceError{Source: v.source}
		if address != "" {
			fault.Address = netip.MustParseAddr(address)
		}
		got := []smtp.Result{{Err: fault}, {Err: fmt.Errorf("wrapped: %w", fault)}}
		r.tryOthers(v, got)
		return got
	}
	v, source := r.leave(site, "")
	if got := lost(v, "192.0.2.1"); source != "a" || got[0].NotNow == nil || got[1].NotNow == nil || got[0].NotNow.Until.After(r.clock) {
		t.Errorf("%s: %+v", source, got)
	}
	v.Release()
	for _, domain := range []string{"one.example", "big.example"} {
		for range 8 {
			v, source := r.leave(r.site(domain), "")
			if source != "b" {
				t.Errorf("%s: from %s", domain, source)
			}
			v.Release()
		}
	}
	// Now b lacks the family of one site: there is none left, and the results stand.
	v, _ = r.leave(site, "")
	if got := lost(v, ""); got[0].NotNow != nil {
		t.Errorf("%+v", got)
	}
	v.Release()
	if v, source := r.leave(site, ""); v == nil {
		t.Error("nothing is tried any more")
	} else if v.Release(); source != "a" && source != "b" {
		t.Error(source)
	}
	if v, source := r.leave(r.site("big.example"), ""); source != "b" {
		t.Errorf("from %s", source)
	} else {
		v.Release()
	}
	if e := r.explain("one.example"); e.Sources[0].Avoided == "" || e.Sources[1].Avoided == "" {
		t.Errorf("%+v", e.Sources)
	}
	if e := r.explain("big.example"); e.Sources[0].Avoided == "" || e.Sources[1].Avoided != "" {
		t.Errorf("%+v", e.Sources)
	}
	later := r.clock.Add(time.Second)
	if !r.avoids(later, link{"other", "a"}) {
		t.Error("it is not passed over")
	}
	if r.tryAll(); r.avoids(later, link{"other", "a"}) {
		t.Error("a new configuration changes nothing")
	}
	r.avoid(r.clock, link{source: "a"})
	r.clock = r.clock.Add(avoidFor)
	seen := map[string]bool{}
	for range 8 {
		v, source := r.leave(site, "")
		seen[source] = true
		v.Release()
	}
	if !seen["a"] || !seen["b"] {
		t.Errorf("after a while: %v", seen)
	}
	// Where something was tried, or waits for a limit, nothing is said of the source.
	v, _ = r.leave(site, "")
	got := []smtp.Result{{Err: &smtp.SourceError{}}, {NotNow: &smtp.NotNow{Until: r.clock.Add(time.Hour)}}}
	if r.tryOthers(v, got); got[0].NotNow != nil || r.avoids(r.clock, v.at()) {
		t.Errorf("%+v", got)
	}
	v.Release()
}

// TestWarmupOverflows sends more than a new source's budget, from two pools: in one of
// them others take over, in the other the mail waits for the next day.
func TestWarmupOverflows(t *testing.T) {
	const text = `
[source.new]
ipv4 = "192.0.2.1"
warmup = {since = 2026-11-01, plan = [10, 20]}
[source.old]
ipv4 = "192.0.2.2"
[pool.default]
sources = ["new", "old"]
[pool.alone]
sources = ["new"]
senders = ["alone.example"]
[site.default]
connection_rate = "none"
message_rate = "none"
[provider.google]
messages_per_connection = "none"
`
	r := newLimitsRig(t, limitsZone, text)
	google := r.site("gmail.example")
	send := func(site, pool string) string {
		v, source := r.leave(site, pool)
		if v == nil {
			return ""
		}
		defer v.Release()
		if k := v.take(); k != nil {
			defer k.Close()
			if err := k.Message(1); err != nil {
				t.Fatalf("from %s: %v", source, err)
			}
		}
		return source
	}
	count := func(n int, site, pool string) map[string]int {
		counts := map[string]int{}
		for range n {
			counts[send(site, pool)]++
		}
		return counts
	}
	if got := count(100, google, ""); got["new"] != 10 || got["old"] != 90 {
		t.Errorf("the first day: %v", got)
	}
	if got := send(google, "alone"); got != "" {
		t.Errorf("beyond the budget, from %q", got)
	}
	if got := count(30, r.site("one.example"), "alone"); got["new"] != 10 || got[""] != 20 {
		t.Errorf("another provider: %v", got)
	}
	_, wait := r.admit(r.clock, google, "alone")
	if want := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC); wait == nil || !wait.Until.Equal(want) {
		t.Errorf("%+v, want %v", wait, want)
	}
	e := r.explain("gmail.example")
	s := e.Sources[0]
	if s.Name != "new" || s.Warmup == nil || s.Warmup.Day != 1 || s.Warmup.Days != 2 || s.Warmup.Most != 10 || s.Warmup.Used != 10 || s.Warmup.To != "provider google" || s.Binding == nil || s.Binding.Until != "2026-11-02T00:00:00Z" || e.Binding != nil {
		t.Errorf("%+v, %+v", s.Warmup, s.Binding)
	}
	if all := r.Sources(); all[0].Warmup == nil || all[0].Warmup.Most != 10 || all[1].Warmup != nil {
		t.Errorf("%+v", all)
	}
	r.clock = r.clock.Add(24 * time.Hour)
	if got := count(100, google, "alone"); got["new"] != 20 || got[""] != 80 {
		t.Errorf("the second day: %v", got)
	}
	r.clock = r.clock.Add(24 * time.Hour)
	if got := count(100, google, "alone"); got["new"] != 100 {
		t.Errorf("after the plan: %v", got)
	}
}
