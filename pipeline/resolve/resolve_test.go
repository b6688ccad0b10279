package resolve_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/foxcpp/go-mockdns"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline/resolve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// resolver asks these servers, and gives up soon.
func resolver(t testing.TB, o resolve.Options, servers ...string) *resolve.Resolver {
	t.Helper()
	o.Servers = servers
	if o.Timeout == 0 {
		o.Timeout = 300 * time.Millisecond
	}
	if o.Deadline == 0 {
		o.Deadline = 3 * time.Second
	}
	r, err := resolve.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func isTemporary(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsTemporary && !e.IsNotFound && !resolve.IsNotFound(err)
}

type mute struct{}

func (mute) Printf(string, ...any) {}

// TestMock looks zones up in a server that others wrote.
func TestMock(t *testing.T) {
	s, err := mockdns.NewServerWithLogger(map[string]mockdns.Zone{
		"d.test.":                 {MX: []net.MX{{Host: "MX2.d.test.", Pref: 20}, {Host: "b.d.test.", Pref: 10}, {Host: "a.d.test.", Pref: 10}}, TXT: []string{"v=spf1 -all", strings.Repeat("x", 600)}},
		"a.d.test.":               {A: []string{"192.0.2.1"}, AAAA: []string{"2001:db8::1"}},
		"six.test.":               {AAAA: []string{"2001:db8::6"}},
		"plain.test.":             {A: []string{"192.0.2.9"}},
		"null.test.":              {MX: []net.MX{{Host: ".", Pref: 0}}},
		"both.test.":              {MX: []net.MX{{Host: ".", Pref: 0}, {Host: "a.d.test.", Pref: 5}}},
		"alias.test.":             {CNAME: "d.test."},
		"www.test.":               {CNAME: "a.d.test."},
		"gone.test.":              {CNAME: "nowhere.test."},
		"fail.test.":              {Err: errors.New("no")},
		"1.2.0.192.in-addr.arpa.": {PTR: []string{"A.d.test."}},
	}, mute{}, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r := resolver(t, resolve.Options{}, s.LocalAddr().String())
	ctx := t.Context()
	hosts := []resolve.Host{{Name: "a.d.test", Preference: 10}, {Name: "b.d.test", Preference: 10}, {Name: "mx2.d.test", Preference: 20}}
	for domain, want := range map[string]resolve.MX{
		"d.test": {Hosts: hosts}, "D.Test.": {Hosts: hosts},
		"plain.test": {Hosts: []resolve.Host{{Name: "plain.test"}}, Implicit: true},
		"null.test":  {Null: true},
		"both.test":  {Hosts: []resolve.Host{{Name: "a.d.test", Preference: 5}}},
	} {
		if got, err := r.LookupMX(ctx, domain); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v %v", domain, got, err)
		}
	}
	for host, want := range map[string]string{"a.d.test": "[2001:db8::1 192.0.2.1]", "six.test": "[2001:db8::6]"} {
		if got, err := r.LookupHost(ctx, host); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v %v", host, got, err)
		}
	}
	if got, err := r.LookupTXT(ctx, "d.test"); err != nil || len(got) != 2 || got[0] != "v=spf1 -all" || len(got[1]) != 600 {
		t.Errorf("%v %v", got, err)
	}
	if got, err := r.LookupAddr(ctx, "192.0.2.1"); err != nil || !slices.Equal(got, []string{"a.d.test"}) {
		t.Errorf("%v %v", got, err)
	}
	for _, name := range []string{"nowhere.test", "gone.test", "", "a..b", strings.Repeat("a.", 200), "\xff.test"} {
		if _, err := r.LookupMX(ctx, name); !resolve.IsNotFound(err) {
			t.Errorf("%.30q: %v", name, err)
		}
	}
	if _, err := r.LookupAddrs(ctx, "d.test"); !resolve.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := r.LookupTXT(ctx, "plain.test"); !resolve.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := r.LookupAddr(ctx, "no address"); !resolve.IsNotFound(err) {
		t.Error(err)
	}
	for _, look := range []func() error{
		func() error { _, err := r.LookupMX(ctx, "fail.test"); return err },
		func() error { _, err := r.LookupAddrs(ctx, "fail.test"); return err },
		func() error { _, err := r.LookupTXT(ctx, "fail.test"); return err },
	} {
		if err := look(); !isTemporary(err) {
			t.Errorf("SERVFAIL: %v", err)
		}
	}
}

// TestFaultyServers: whatever a server does but answer is temporary, and the
// next server is asked.
func TestFaultyServers(t *testing.T) {
	good := zone(t, "d.test. 60 IN MX 10 mx.d.test.")
	for name, answer := range map[string]func(m, q *dns.Msg, network string) bool{
		"SERVFAIL":       func(m, _ *dns.Msg, _ string) bool { m.Rcode = dns.RcodeServerFailure; return true },
		"REFUSED":        func(m, _ *dns.Msg, _ string) bool { m.Rcode = dns.RcodeRefused; return true },
		"NOTIMP":         func(m, _ *dns.Msg, _ string) bool { m.Rcode = dns.RcodeNotImplemented; return true },
		"silent":         func(_, _ *dns.Msg, _ string) bool { return false },
		"lame":           func(m, _ *dns.Msg, _ string) bool { m.RecursionAvailable = false; return true },
		"referral":       func(m, _ *dns.Msg, _ string) bool { m.Ns = []dns.RR{rr(t, "test. 60 IN NS ns.test.")}; return true },
		"wrong name":     func(m, _ *dns.Msg, _ string) bool { m.Question[0].Name = "evil.test."; return true },
		"wrong type":     func(m, _ *dns.Msg, _ string) bool { m.Question[0].Qtype = dns.TypeA; return true },
		"no question":    func(m, _ *dns.Msg, _ string) bool { m.Question = nil; return true },
		"a query":        func(m, _ *dns.Msg, _ string) bool { m.Response = false; return true },
		"wrong id":       func(m, _ *dns.Msg, _ string) bool { m.Id++; return true },
		"always cut":     func(m, _ *dns.Msg, _ string) bool { m.Truncated = true; return true },
		"cut, then mute": func(m, _ *dns.Msg, network string) bool { m.Truncated = true; return network == "udp" },
		"circle": func(m, _ *dns.Msg, _ string) bool {
			m.Answer = []dns.RR{rr(t, "d.test. 60 IN CNAME d.test.")}
			return true
		},
		"circle of two": func(m, _ *dns.Msg, _ string) bool {
			m.Answer = []dns.RR{rr(t, "d.test. 60 IN CNAME e.test."), rr(t, "e.test. 60 IN CNAME d.test.")}
			return true
		},
		"circle by steps": zone(t, "d.test. 60 IN CNAME e.test.", "e.test. 60 IN CNAME f.test.", "f.test. 60 IN CNAME d.test."),
		"another name": func(m, _ *dns.Msg, _ string) bool {
			m.Answer = []dns.RR{rr(t, "e.test. 60 IN MX 1 evil.test.")}
			return true
		},
		"endless chain": func(m, q *dns.Msg, _ string) bool {
			m.Answer = []dns.RR{rr(t, q.Question[0].Name+" 60 IN CNAME x"+q.Question[0].Name)}
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := serve(t, answer)
			r := resolver(t, resolve.Options{Deadline: 2 * time.Second}, bad.addr)
			if mx, err := r.LookupMX(t.Context(), "d.test"); !isTemporary(err) || strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%+v %v", mx, err)
			}
			if strings.Contains(name, "circle") || strings.Contains(name, "chain") || name == "another name" {
				return // an answer, if a bad one: nobody else is asked
			}
			fine := serve(t, good)
			for range 4 { // whichever is asked first
				r = resolver(t, resolve.Options{}, bad.addr, fine.addr)
				if mx, err := r.LookupMX(t.Context(), "d.test"); err != nil || len(mx.Hosts) != 1 || mx.Hosts[0].Name != "mx.d.test" {
					t.Errorf("%+v %v", mx, err)
				}
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.LocalAddr().String()
	l.Close()
	if _, err := resolver(t, resolve.Options{}, addr).LookupMX(t.Context(), "d.test"); !isTemporary(err) {
		t.Error(err)
	}
}

func TestTruncatedGoesToTCP(t *testing.T) {
	full := zone(t, manyMX(250)...)
	s := serve(t, func(m, q *dns.Msg, network string) bool {
		full(m, q, network)
		if network == "udp" {
			m.Truncate(512)
		}
		return true
	})
	mx, err := resolver(t, resolve.Options{}, s.addr).LookupMX(t.Context(), "d.test")
	if err != nil || len(mx.Hosts) != 250 || s.times("d.test. MX tcp") != 1 {
		t.Fatal(len(mx.Hosts), err, s.times("d.test. MX tcp"))
	}
	if !slices.IsSortedFunc(mx.Hosts, func(a, b resolve.Host) int { return int(a.Preference) - int(b.Preference) }) {
		t.Error("not in the order of preference")
	}
}

func manyMX(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("d.test. 60 IN MX %d mx%d.d.test.", n-i, i))
	}
	return all
}

// TestAnswersAreBounded: of a huge answer a part is kept.
func TestAnswersAreBounded(t *testing.T) {
	var texts []string
	for i := range 200 {
		texts = append(texts, fmt.Sprintf("t.test. 60 IN TXT \"%s%d\"", strings.Repeat("x", 240), i))
	}
	mx := zone(t, manyMX(900)...)
	txt := zone(t, texts...)
	s := serve(t, func(m, q *dns.Msg, network string) bool {
		if network == "udp" {
			m.Truncated = true
			return true
		}
		m.Compress = true
		if q.Question[0].Qtype == dns.TypeMX {
			return mx(m, q, network)
		}
		return txt(m, q, network)
	})
	r := resolver(t, resolve.Options{}, s.addr)
	if got, err := r.LookupMX(t.Context(), "d.test"); err != nil || len(got.Hosts) == 0 || len(got.Hosts) > 300 {
		t.Error(len(got.Hosts), err)
	}
	got, err := r.LookupTXT(t.Context(), "t.test")
	if size := len(strings.Join(got, "")); err != nil || size == 0 || size > 64<<10 {
		t.Error(size, err)
	}
}

// TestOddExchangers: names that are no host names reach nobody, and a record
// with one is no null MX and no reason to try the domain itself.
func TestOddExchangers(t *testing.T) {
	s := serve(t, zone(t,
		`odd.test. 60 IN MX 5 mail\032server.test.`, `odd.test. 60 IN MX 5 a\013\010b.test.`, `odd.test. 60 IN MX 5 \"x\".test.`,
		`mixed.test. 60 IN MX 5 mail\032server.test.`, `mixed.test. 60 IN MX 7 Good_One.test.`,
		`1.2.0.192.in-addr.arpa. 60 IN PTR evil\010name.test.`))
	r := resolver(t, resolve.Options{}, s.addr)
	if mx, err := r.LookupMX(t.Context(), "odd.test"); err != nil || len(mx.Hosts) != 0 || mx.Null || mx.Implicit {
		t.Errorf("%+v %v", mx, err)
	}
	if mx, err := r.LookupMX(t.Context(), "mixed.test"); err != nil || len(mx.Hosts) != 1 || mx.Hosts[0].Name != "good_one.test" || mx.Null {
		t.Errorf("%+v %v", mx, err)
	}
	if names, err := r.LookupAddr(t.Context(), "192.0.2.1"); !resolve.IsNotFound(err) {
		t.Error(names, err)
	}
}

func TestAliases(t *testing.T) {
	chain := func(n int) []string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf("c%d.test. 60 IN CNAME c%d.test.", i, i+1))
		}
		return append(all, fmt.Sprintf("c%d.test. 60 IN A 192.0.2.1", n), fmt.Sprintf("c%d.test. 60 IN MX 5 mx.test.", n))
	}
	for n, ok := range map[int]bool{1: true, 5: true, 7: true, 20: false} {
		r := resolver(t, resolve.Options{}, serve(t, zone(t, chain(n)...)).addr)
		addrs, err := r.LookupAddrs(t.Context(), "c0.test")
		if ok != (err == nil) || ok && !slices.Equal(addrs, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) || !ok && !isTemporary(err) {
			t.Errorf("%d aliases: %v %v", n, addrs, err)
		}
		if mx, err := r.LookupMX(t.Context(), "c0.test"); ok != (err == nil) || ok && mx.Hosts[0].Name != "mx.test" {
			t.Errorf("%d aliases: %+v %v", n, mx, err)
		}
	}
}

func TestOneFamilyFails(t *testing.T) {
	s := serve(t, func(m, q *dns.Msg, _ string) bool {
		name := q.Question[0].Name
		if name == "four.test." && q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{rr(t, "four.test. 60 IN A 192.0.2.1")}
			return true
		}
		if name == "four.test." || q.Question[0].Qtype == dns.TypeAAAA {
			m.Rcode = dns.RcodeServerFailure
		}
		return true
	})
	r := resolver(t, resolve.Options{}, s.addr)
	if addrs, err := r.LookupAddrs(t.Context(), "four.test"); err != nil || len(addrs) != 1 {
		t.Error(addrs, err)
	}
	if addrs, err := r.LookupAddrs(t.Context(), "none.test"); !isTemporary(err) {
		t.Error("no A and nobody knows about AAAA:", addrs, err)
	}
}

// clock is moved by hand.
type clock struct{ now atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Unix(0, c.now.Load()) }
func (c *clock) forward(d time.Duration) { c.now.Add(int64(d)) }

func TestCache(t *testing.T) {
	s := serve(t, func(m, q *dns.Msg, network string) bool {
		switch name := q.Question[0].Name; {
		case name == "soa.test.":
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{rr(t, "test. 600 IN SOA ns.test. root.test. 1 2 3 4 30")}
			return true
		case name == "fail.test.":
			m.Rcode = dns.RcodeServerFailure
			return true
		}
		return zone(t, "d.test. 100 IN MX 10 a.test.", "d.test. 60 IN MX 10 b.test.", "long.test. 999999 IN MX 1 a.test.", "zero.test. 0 IN MX 1 a.test.",
			"alias.test. 20 IN CNAME d.test.")(m, q, network)
	})
	c := new(clock)
	r := resolver(t, resolve.Options{Now: c.Now}, s.addr)
	// For each name: how long it is kept.
	for name, kept := range map[string]time.Duration{
		"d.test": time.Minute, "long.test": time.Hour, "soa.test": 30 * time.Second, "nowhere.test": 5 * time.Minute, "zero.test": 0, "fail.test": 0,
	} {
		ask := func() int {
			r.LookupMX(t.Context(), strings.ToUpper(name)) //nolint:errcheck // what matters is who is asked
			return s.times(name + ". MX udp")
		}
		first := ask()
		if c.forward(kept - time.Second); kept > 0 && ask() != first {
			t.Errorf("%s was not kept for %v", name, kept)
		}
		if c.forward(time.Second); ask() == first {
			t.Errorf("%s was kept for more than %v", name, kept)
		}
	}
	// An alias limits how long what lies behind it is kept.
	for range 2 {
		if mx, err := r.LookupMX(t.Context(), "alias.test"); err != nil || len(mx.Hosts) != 2 {
			t.Fatal(mx, err)
		}
	}
	if s.times("alias.test. MX udp") != 1 {
		t.Error("the alias was not kept")
	}
	if c.forward(20 * time.Second); true {
		r.LookupMX(t.Context(), "alias.test") //nolint:errcheck // what matters is who is asked
	}
	if s.times("alias.test. MX udp") != 2 {
		t.Error("the alias was kept too long")
	}
}

func TestCacheIsBounded(t *testing.T) {
	s := serve(t, func(m, _ *dns.Msg, _ string) bool { m.Rcode = dns.RcodeNameError; return true })
	r := resolver(t, resolve.Options{CacheEntries: 10}, s.addr)
	for range 2 {
		for i := range 11 {
			if _, err := r.LookupMX(t.Context(), fmt.Sprintf("d%d.test", i)); !resolve.IsNotFound(err) {
				t.Fatal(err)
			}
		}
	}
	if s.total() != 22 {
		t.Errorf("%d questions: the oldest should have gone each time", s.total())
	}
	if _, err := r.LookupMX(t.Context(), "d10.test"); !resolve.IsNotFound(err) || s.total() != 22 {
		t.Error("the newest should be kept")
	}
}

// TestOneQuestionForAll: a hundred askers, one question; who gives up gets away,
// and the others their answer.
func TestOneQuestionForAll(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, func(m, q *dns.Msg, network string) bool {
		<-release
		return zone(t, "d.test. 60 IN MX 10 mx.d.test.")(m, q, network)
	})
	r := resolver(t, resolve.Options{Timeout: time.Minute, Deadline: time.Minute}, s.addr)
	gone, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := r.LookupMX(gone, "d.test")
		left <- err
	}()
	for s.total() == 0 {
		time.Sleep(time.Millisecond)
	}
	var wg sync.WaitGroup
	var answered atomic.Int32
	for range 100 {
		wg.Go(func() {
			if mx, err := r.LookupMX(t.Context(), "D.test"); err == nil && len(mx.Hosts) == 1 {
				answered.Add(1)
			}
		})
	}
	cancel()
	if err := <-left; !isTemporary(err) {
		t.Errorf("who gives up: %v", err)
	}
	close(release)
	wg.Wait()
	if answered.Load() != 100 || s.total() != 1 {
		t.Errorf("%d answers to %d questions", answered.Load(), s.total())
	}
}

// TestForget: what was forgotten is asked for again, and an answer that was under way
// meanwhile reaches those who wait for it, and nobody later.
func TestForget(t *testing.T) {
	release := make(chan struct{})
	var mx atomic.Pointer[string]
	old, next := "d.test. 600 IN MX 10 old.d.test.", "d.test. 600 IN MX 10 new.d.test."
	mx.Store(&old)
	s := serve(t, func(m, q *dns.Msg, network string) bool {
		record := *mx.Load()
		if q.Question[0].Name == "d.test." && q.Question[0].Qtype == dns.TypeMX {
			<-release
		}
		return zone(t, record, "d.test. 600 IN A 192.0.2.1", "other.test. 600 IN MX 10 mx.other.test.", "xn--mnchen-3ya.test. 600 IN MX 10 mx.other.test.")(m, q, network)
	})
	r := resolver(t, resolve.Options{Timeout: time.Minute, Deadline: time.Minute}, s.addr)
	host := func(name string) string {
		got, err := r.LookupMX(t.Context(), name)
		if err != nil || len(got.Hosts) != 1 {
			t.Errorf("%s: %+v %v", name, got, err)
			return ""
		}
		return got.Hosts[0].Name
	}
	waits := make(chan string)
	go func() { waits <- host("d.test") }()
	for s.total() == 0 {
		time.Sleep(time.Millisecond)
	}
	if n := r.Forget("d.test"); n != 0 {
		t.Errorf("%d answers were forgotten before there were any", n)
	}
	mx.Store(&next)
	later := make(chan string)
	go func() { later <- host("d.test") }()
	for s.total() == 1 {
		time.Sleep(time.Millisecond)
	}
	close(release)
	if a, b := <-waits, <-later; a != "old.d.test" || b != "new.d.test" || host("d.test") != "new.d.test" {
		t.Errorf("who asked before hears %s, who asked after %s", a, b)
	}
	if _, err := r.LookupAddrs(t.Context(), "d.test"); err != nil {
		t.Fatal(err)
	}
	host("other.test")
	mx.Store(&old)
	asked := s.times("other.test. MX udp")
	if n := r.Forget("D.test."); n != 3 || host("d.test") != "old.d.test" { // MX, A, and that there is no AAAA
		t.Errorf("%d answers were forgotten", n)
	}
	if host("other.test"); s.times("other.test. MX udp") != asked {
		t.Error("another name was forgotten, too")
	}
	if host("münchen.test"); r.Forget("münchen.test") != 1 || r.Forget("münchen.test") != 0 || r.Forget("nobody.test") != 0 || r.Forget("\xff") != 0 {
		t.Error("names are not found as they are asked for")
	}
}

func TestDeadline(t *testing.T) {
	s := serve(t, func(_, _ *dns.Msg, _ string) bool { return false })
	r := resolver(t, resolve.Options{Timeout: time.Hour, Deadline: 100 * time.Millisecond}, s.addr)
	var e *net.DNSError
	if _, err := r.LookupMX(t.Context(), "d.test"); !isTemporary(err) || !errors.As(err, &e) || !e.IsTimeout {
		t.Error(err)
	}
}

func TestAuthentic(t *testing.T) {
	s := serve(t, func(m, q *dns.Msg, network string) bool {
		zone(t, "d.test. 60 IN MX 10 mx.d.test.", "half.test. 60 IN CNAME d.test.")(m, q, network)
		m.AuthenticatedData = q.Question[0].Name == "d.test."
		return true
	})
	for _, trust := range []bool{false, true} {
		r := resolver(t, resolve.Options{TrustAD: trust}, s.addr)
		if mx, err := r.LookupMX(t.Context(), "d.test"); err != nil || mx.Authentic != trust {
			t.Errorf("trust %v: %+v %v", trust, mx, err)
		}
		if mx, err := r.LookupMX(t.Context(), "half.test"); err != nil || mx.Authentic {
			t.Errorf("an alias that nobody validated: %+v %v", mx, err)
		}
	}
}

func TestInternationalNames(t *testing.T) {
	s := serve(t, zone(t, "xn--bcher-kva.test. 60 IN A 192.0.2.1"))
	r := resolver(t, resolve.Options{}, s.addr)
	if mx, err := r.LookupMX(t.Context(), "Bücher.test"); err != nil || mx.Hosts[0].Name != "xn--bcher-kva.test" || !mx.Implicit {
		t.Errorf("%+v %v", mx, err)
	}
}
