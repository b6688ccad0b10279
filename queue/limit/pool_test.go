package limit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var begin = time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)

// TestBalanceKeepsWeights deals out ten thousand messages.
func TestBalanceKeepsWeights(t *testing.T) {
	all := []Candidate{{Source: "a", Weight: 3}, {Source: "b", Weight: 1}, {Source: "c", Weight: 6}}
	for _, test := range []struct {
		name  string
		ready func(i, n int) bool
	}{
		{"nothing is ready", func(int, int) bool { return false }},
		{"one is always ready", func(i, _ int) bool { return i == 1 }},
		{"what is ready changes", func(i, n int) bool { return (i+n/50)%3 == 0 }},
	} {
		var b Balance
		counts, run, longest := map[string]int{}, 0, 0
		last := ""
		for n := range 10_000 {
			for i := range all {
				all[i].Ready = test.ready(i, n)
			}
			i := b.Order(all)[0]
			b.Chose(all, i)
			counts[all[i].Source]++
			if run++; all[i].Source != last {
				last, run = all[i].Source, 1
			}
			longest = max(longest, run)
		}
		for _, c := range all {
			if want := 1000 * c.Weight; counts[c.Source] < want-want/25 || counts[c.Source] > want+want/25 {
				t.Errorf("%s: %s got %d, want %d", test.name, c.Source, counts[c.Source], want)
			}
		}
		if test.name == "nothing is ready" && longest > 3 {
			t.Errorf("%s: %d in a row from one source", test.name, longest)
		}
	}
}

// TestBalanceOfManySites lets each site have sources of its own.
func TestBalanceOfManySites(t *testing.T) {
	var b Balance
	names := []string{"a", "b", "c"}
	counts := map[string]map[string]int{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 12_000 {
		without := r.IntN(4) // 3: all may be chosen
		var all []Candidate
		for i, n := range names {
			if i != without {
				all = append(all, Candidate{Source: n, Weight: 1})
			}
		}
		i := b.Order(all)[0]
		b.Chose(all, i)
		site := fmt.Sprint(without)
		if counts[site] == nil {
			counts[site] = map[string]int{}
		}
		counts[site][all[i].Source]++
	}
	for site, got := range counts {
		want := 1000
		if len(got) == 2 {
			want = 1500
		}
		for source, n := range got {
			if n < want-want/7 || n > want+want/7 {
				t.Errorf("site %s: %d from %s, want about %d", site, n, source, want)
			}
		}
	}
}

// TestBalanceForgetsAnOldDebt keeps a source that comes back from having all mail.
func TestBalanceForgetsAnOldDebt(t *testing.T) {
	var b Balance
	both := []Candidate{{Source: "a", Weight: 1}, {Source: "b", Weight: 1}}
	for range 1000 {
		b.Chose(both, 0) // b refused
	}
	n := 0
	for b.Order(both)[0] == 1 {
		b.Chose(both, 1)
		n++
	}
	if n == 0 || n > 2*mostBehind+2 {
		t.Errorf("%d messages in a row", n)
	}
}

func TestOpenFirst(t *testing.T) {
	var woken []string
	g := New(Options{
		Bounds: func(k Key) Bounds {
			if k == (Key{Source, "a"}) || k == (Key{Source, "b"}) {
				return Bounds{Connections: 1}
			}
			return Bounds{}
		},
		Wake: func(site string) { woken = append(woken, site) },
	})
	at := func(site string) []Path { return []Path{{Site: site, Source: "a"}, {Site: site, Source: "b"}} }
	first, i, no := g.OpenFirst(begin, at("x"))
	if no != nil || i != 0 {
		t.Fatal(i, no)
	}
	second, i, no := g.OpenFirst(begin, at("y"))
	if no != nil || i != 1 {
		t.Fatal(i, no)
	}
	// Whoever was admitted by another does not stand in the way of those who wait.
	second.Close(begin)
	if len(woken) != 0 {
		t.Fatalf("woken: %v", woken)
	}
	if second, i, no = g.OpenFirst(begin, at("y")); i != 1 {
		t.Fatal(i, no)
	}
	if _, i, no = g.OpenFirst(begin, at("z")); no == nil || i != -1 || no.What != "connections" {
		t.Fatal(i, no)
	}
	first.Close(begin)
	if !slices.Equal(woken, []string{"z"}) {
		t.Errorf("woken: %v", woken)
	}
	second.Close(begin)
}

func TestSooner(t *testing.T) {
	in := func(d time.Duration, what string) *Refusal { return &Refusal{What: what, Until: begin.Add(d)} }
	second, hour, two := in(time.Second, "messages"), in(time.Hour, "suspended"), in(2*time.Hour, "suspended")
	wake, forever := &Refusal{What: "connections"}, &Refusal{What: "suspended"}
	order := []*Refusal{second, wake, hour, two, forever, nil}
	for i, a := range order {
		for _, b := range order[i:] {
			if Sooner(begin, a, b) != a || Sooner(begin, b, a) != a {
				t.Errorf("%v and %v", a, b)
			}
		}
	}
}

// TestAddressBlockedAtOneProvider has one source blocked at one of a provider's sites.
func TestAddressBlockedAtOneProvider(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []Answer{
		{Code: 550, Enhanced: "5.7.1", Text: "Our system has detected that this message is likely suspicious due to the very low reputation of the sending IP address. To best protect our users"},
		{Code: 421, Enhanced: "4.7.0", Text: "[192.0.2.1 15] Our system has detected that this message is suspicious due to the very low reputation of the sending IP address."},
		{Code: 550, Enhanced: "5.7.1", Text: "Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org"},
		{Code: 554, Enhanced: "5.7.1", Text: "Your IP address 192.0.2.1 is listed on our blocklist"},
		{Code: 550, Enhanced: "5.7.1", Text: "Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3150)."},
	} {
		g := New(Options{Classes: classes})
		path := func(site, provider, source string) Path { return Path{Site: site, Provider: provider, Source: source} }
		ticket, no := g.Open(begin, path("one", "google", "a"))
		if no != nil {
			t.Fatal(no)
		}
		if m := ticket.Said(begin, said); m.Class != Blocked {
			t.Errorf("%q means %v", said.Text, m)
			continue
		}
		ticket.Close(begin)
		later := begin.Add(time.Minute)
		for _, test := range []struct {
			path Path
			open bool
		}{
			{path("one", "google", "a"), false},
			{path("two", "google", "a"), false}, // another site of the provider
			{path("one", "google", "b"), true},
			{path("two", "google", ""), true},
			{path("three", "other", "a"), true},
			{path("four", "", "a"), true},
		} {
			if no := g.Suspended(later, test.path); (no == nil) != test.open {
				t.Errorf("%q: %+v: %v", said.Text, test.path, no)
			}
			ticket, no := g.Open(later, test.path)
			if (no == nil) != test.open {
				t.Errorf("%q: %+v: %v", said.Text, test.path, no)
			}
			if no == nil {
				ticket.Close(later)
			} else if no.What != "suspended" || !strings.Contains(no.Why, "192.0.2.1") && !strings.Contains(no.Why, "IP address") {
				t.Errorf("%+v", no)
			}
		}
		_, i, no := g.OpenFirst(later, []Path{path("two", "google", "a"), path("two", "google", "b")})
		if no != nil || i != 1 {
			t.Errorf("%d %v", i, no)
		}
		if b := g.Blocks(later); len(b) != 1 || b[0].Provider != "google" || b[0].Source != "a" {
			t.Errorf("%+v", b)
		}
		if no := g.Suspended(begin.Add(24*time.Hour), path("one", "google", "a")); no != nil {
			t.Errorf("a day later: %v", no)
		}
	}
}

// TestContentIsNoBlock keeps what is about a message from suspending its source.
func TestContentIsNoBlock(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"Message contains a URL listed by multi.surbl.org", "Your message was blocked because of its content", "Sender address rejected: listed in rhsbl.example",
		"very low reputation of the sending domain", "Your email address is on our list of blocked senders",
	} {
		if m := classes.Meaning(Answer{Code: 550, Enhanced: "5.7.1", Text: text}); m.Class == Blocked {
			t.Errorf("%q means %+v", text, m)
		}
	}
}

// TestResumeAfterBlock lets an operator take it back, by site, provider or source.
func TestResumeAfterBlock(t *testing.T) {
	for _, k := range []Key{{Site, "one"}, {Provider, "google"}, {Source, "a"}} {
		classes, err := ShippedClasses()
		if err != nil {
			t.Fatal(err)
		}
		g := New(Options{Classes: classes})
		p := Path{Site: "one", Provider: "google", Source: "a"}
		ticket, _ := g.Open(begin, p)
		ticket.Said(begin, Answer{Code: 550, Text: "part of their network is on our block list (S3150)"})
		ticket.Close(begin)
		if no := g.Suspended(begin, p); no == nil {
			t.Fatal("it is not suspended")
		}
		if g.Resume(begin, Key{Source, "b"}) || !g.Resume(begin, k) || g.Suspended(begin, p) != nil || g.Resume(begin, k) {
			t.Errorf("%v: %v", k, g.Suspended(begin, p))
		}
		if no := g.Suspended(begin, Path{Site: "two", Provider: "google", Source: "a"}); no != nil {
			t.Errorf("%v: the provider's other sites: %v", k, no)
		}
	}
}
