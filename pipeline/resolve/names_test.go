package resolve_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/foxcpp/go-mockdns"
	"github.com/miekg/dns"

	"github.com/postern-mta/postern/pipeline/resolve"
)

// mock is a resolver that asks a server which others wrote.
func mock(t *testing.T, zones map[string]mockdns.Zone) *resolve.Resolver {
	t.Helper()
	s, err := mockdns.NewServerWithLogger(zones, mute{}, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return resolver(t, resolve.Options{}, s.LocalAddr().String())
}

const reverseSix = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."

// TestNames: confirmed, claimed only, nobody, and nobody could tell.
func TestNames(t *testing.T) {
	r := mock(t, map[string]mockdns.Zone{
		"1.2.0.192.in-addr.arpa.":  {PTR: []string{"Good.test."}},
		"2.2.0.192.in-addr.arpa.":  {PTR: []string{"liar.test."}},
		"3.2.0.192.in-addr.arpa.":  {PTR: []string{"nowhere.test."}},
		"4.2.0.192.in-addr.arpa.":  {Err: errors.New("no")},
		"5.2.0.192.in-addr.arpa.":  {PTR: []string{"fail.test."}},
		"6.2.0.192.in-addr.arpa.":  {PTR: []string{"fail.test.", "good6.test."}},
		"7.2.0.192.in-addr.arpa.":  {PTR: []string{"z.test.", "liar.test.", "good7.test."}},
		"9.2.0.192.in-addr.arpa.":  {PTR: []string{"192.0.2.9."}},
		"10.2.0.192.in-addr.arpa.": {PTR: []string{"six.test."}},
		"11.2.0.192.in-addr.arpa.": {},

		reverseSix:    {PTR: []string{"six.test."}},
		"good.test.":  {A: []string{"192.0.2.1"}},
		"good6.test.": {A: []string{"192.0.2.6"}},
		"good7.test.": {A: []string{"192.0.2.7"}},
		"z.test.":     {A: []string{"192.0.2.7"}},
		"liar.test.":  {A: []string{"192.0.2.99"}},
		"six.test.":   {AAAA: []string{"2001:db8::1"}, A: []string{"192.0.2.200"}},
		"192.0.2.9.":  {A: []string{"192.0.2.9"}},
		"fail.test.":  {Err: errors.New("no")},
	})
	for _, c := range []struct {
		addr, confirmed, claimed string
		trouble                  bool
	}{
		{"192.0.2.1", "good.test", "good.test", false},
		{"::ffff:192.0.2.1", "good.test", "good.test", false},
		{"192.0.2.2", "", "liar.test", false},
		{"192.0.2.3", "", "nowhere.test", false},
		{"192.0.2.4", "", "", true},
		{"192.0.2.5", "", "fail.test", true},
		{"192.0.2.6", "good6.test", "good6.test", false},
		{"192.0.2.7", "good7.test", "good7.test", false},
		{"192.0.2.9", "", "", false},
		{"192.0.2.10", "", "six.test", false},
		{"192.0.2.11", "", "", false},
		{"192.0.2.12", "", "", false},
		{"2001:db8::1", "six.test", "six.test", false},
		{"fe80::1%eth0", "", "", false},
	} {
		confirmed, claimed, err := r.Names(t.Context(), netip.MustParseAddr(c.addr))
		if confirmed != c.confirmed || claimed != c.claimed || c.trouble != (err != nil) || c.trouble && !isTemporary(err) {
			t.Errorf("%s: %q %q %v", c.addr, confirmed, claimed, err)
		}
	}
	if confirmed, claimed, err := r.Names(t.Context(), netip.Addr{}); confirmed != "" || claimed != "" || err != nil {
		t.Errorf("no address: %q %q %v", confirmed, claimed, err)
	}
}

// TestNamesOddBytes: what could break a log line or a header is no name, and
// does not hide one that is (bad input 30).
func TestNamesOddBytes(t *testing.T) {
	const ptr = "1.2.0.192.in-addr.arpa. 60 IN PTR "
	for _, c := range []struct {
		records []string
		want    string
	}{
		{[]string{ptr + `evil\010name.test.`}, ""},
		{[]string{ptr + `\"quoted\".test.`}, ""},
		{[]string{ptr + `a\013\010b.test.`, ptr + `\000.test.`, ptr + `a\.b.test.`, ptr + `\255.test.`, ptr + `.`}, ""},
		{[]string{ptr + `a\(b\).test.`, ptr + `good.test.`}, "good.test"},
	} {
		s := serve(t, zone(t, append(c.records, "good.test. 60 IN A 192.0.2.1")...))
		confirmed, claimed, err := resolver(t, resolve.Options{}, s.addr).Names(t.Context(), netip.MustParseAddr("192.0.2.1"))
		if confirmed != c.want || claimed != c.want || err != nil {
			t.Errorf("%q: %q %q %v", c.records, confirmed, claimed, err)
		}
	}
}

// TestNamesByAlias: a provider hands less than a /24 to a customer by aliases
// (RFC 2317), and the name may be an alias itself.
func TestNamesByAlias(t *testing.T) {
	s := serve(t, zone(t, "8.2.0.192.in-addr.arpa. 60 IN CNAME 8.0-15.2.0.192.in-addr.arpa.", "8.0-15.2.0.192.in-addr.arpa. 60 IN PTR www.test.",
		"www.test. 60 IN CNAME host.test.", "host.test. 60 IN A 192.0.2.80", "host.test. 60 IN A 192.0.2.8"))
	if confirmed, _, err := resolver(t, resolve.Options{}, s.addr).Names(t.Context(), netip.MustParseAddr("192.0.2.8")); confirmed != "www.test" || err != nil {
		t.Errorf("%q %v", confirmed, err)
	}
}

// TestNamesAreBounded: an address with hundreds of names costs ten questions,
// and the second time none.
func TestNamesAreBounded(t *testing.T) {
	var records []string
	for i := range 200 {
		records = append(records, fmt.Sprintf("1.2.0.192.in-addr.arpa. 60 IN PTR n%03d.test.", i), fmt.Sprintf("n%03d.test. 60 IN A 192.0.2.2", i))
	}
	full := zone(t, records...)
	s := serve(t, func(m, q *dns.Msg, network string) bool {
		full(m, q, network)
		if network == "udp" {
			m.Truncate(1232)
		}
		return true
	})
	r := resolver(t, resolve.Options{}, s.addr)
	for range 2 {
		confirmed, claimed, err := r.Names(t.Context(), netip.MustParseAddr("192.0.2.1"))
		if confirmed != "" || claimed != "n000.test" || err != nil {
			t.Errorf("%q %q %v", confirmed, claimed, err)
		}
	}
	if n := s.total(); n != 2+10 { // the reverse name over UDP and TCP, and ten names
		t.Errorf("%d questions", n)
	}
}

// TestNamesSlow: a name whose server is silent takes a part of the time only,
// and the next one may still confirm the address.
func TestNamesSlow(t *testing.T) {
	answers := zone(t, "1.2.0.192.in-addr.arpa. 60 IN PTR a.test.", "1.2.0.192.in-addr.arpa. 60 IN PTR b.test.", "b.test. 60 IN A 192.0.2.1")
	s := serve(t, func(m, q *dns.Msg, network string) bool {
		return q.Question[0].Name != "a.test." && answers(m, q, network)
	})
	r := resolver(t, resolve.Options{Timeout: time.Hour, Deadline: 2 * time.Second}, s.addr)
	if confirmed, _, err := r.Names(t.Context(), netip.MustParseAddr("192.0.2.1")); confirmed != "b.test" || err != nil {
		t.Errorf("%q %v", confirmed, err)
	}
}

func TestLookupA(t *testing.T) {
	s := serve(t, func(m, q *dns.Msg, network string) bool {
		zone(t, "2.0.0.127.list.test. 60 IN A 127.0.0.2", "2.0.0.127.list.test. 60 IN A 127.0.0.10", "six.test. 60 IN AAAA 2001:db8::1",
			"alias.test. 60 IN CNAME 2.0.0.127.list.test.")(m, q, network)
		if q.Question[0].Name == "fail.test." {
			m.Rcode = dns.RcodeServerFailure
		}
		if m.Rcode == dns.RcodeNameError {
			m.Ns = []dns.RR{rr(t, "list.test. 600 IN SOA ns.test. root.test. 1 2 3 4 30")}
		}
		return true
	})
	c := new(clock)
	r := resolver(t, resolve.Options{Now: c.Now}, s.addr)
	want := []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.10")}
	for _, name := range []string{"2.0.0.127.list.test", "alias.test"} {
		if got, err := r.LookupA(t.Context(), name); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	for _, name := range []string{"six.test", "3.0.0.127.list.test", strings.Repeat("a.", 200), ""} {
		if got, err := r.LookupA(t.Context(), name); !resolve.IsNotFound(err) {
			t.Errorf("%.40s: %v %v", name, got, err)
		}
	}
	if got, err := r.LookupA(t.Context(), "fail.test"); !isTemporary(err) {
		t.Error(got, err)
	}
	// That an address is not listed is kept as long as the list says.
	for _, step := range []struct {
		forward time.Duration
		asked   int
	}{{0, 1}, {29 * time.Second, 1}, {2 * time.Second, 2}} {
		c.forward(step.forward)
		r.LookupA(t.Context(), "3.0.0.127.list.test") //nolint:errcheck // not found, see above
		if n := s.times("3.0.0.127.list.test. A udp"); n != step.asked {
			t.Errorf("asked %d times, want %d", n, step.asked)
		}
	}
	if n := s.times("3.0.0.127.list.test. AAAA udp"); n != 0 {
		t.Errorf("%d questions for IPv6", n)
	}
}
