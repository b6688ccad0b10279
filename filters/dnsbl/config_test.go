package dnsbl

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
)

// The suite that every filter passes, for a client that no list knows, and one
// that is listed.
func TestSuite(t *testing.T) {
	const config = "[[list]]\nzone = \"zen.test\"\nanswers = [\"127.0.0.2-11\"]\nweight = 5\ntxt = true\n[[list]]\nzone = \"names.test\"\nkind = \"helo\"\n[[list]]\nzone = \"names.test\"\nkind = \"sender\"\nweight = 0.5\n"
	dns := func() *fakeDNS {
		return &fakeDNS{
			a: map[string][]string{
				"7.100.51.198.zen.test": {"127.0.0.4"}, "bad.example.net.names.test": {"127.0.1.2"}, "example.com.names.test": {"127.0.1.2"},
			},
			txt: map[string][]string{"7.100.51.198.zen.test": {"a bot"}},
		}
	}
	env := func(t testing.TB) pipeline.Env {
		e := filtertest.Env(t)
		e.Resolver = dns()
		return e
	}
	bad := stranger("198.51.100.7")
	bad.Helo = "bad.example.net"
	local := &pipeline.Session{Entrance: "queue", Standing: pipeline.Local}
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: config, Env: env,
		Cases: []filtertest.Case{
			{Name: "nobody knows him", From: "a@example.net", WantReason: "not listed by 1"},
			{Name: "listed", Session: bad, WantAction: pipeline.Reject, WantReply: "554 5.7.1 198.51.100.7 is listed by zen.test", WantReason: "weight 5): a bot", WantEnvelopes: []string{}},
			{Name: "scores", Session: bad, Config: "reject = 0\n" + config, WantReason: "weight 5)"},
			{Name: "a sender", From: "a@example.com", WantReason: "listed by names.test (127.0.1.2, weight 0.5)"},
			{Name: "our own", Session: local, From: "a@example.com"},
		},
	})
	t.Run("listed", func(t *testing.T) {
		filtertest.Run(t, filtertest.Suite{Kind: Kind(), Config: config, Env: env, Session: func() *pipeline.Session { return bad }})
	})
}

func TestConfiguration(t *testing.T) {
	ok := func(change func(*List)) Options {
		l := List{Zone: "l.test"}
		change(&l)
		return Options{Lists: []List{{Zone: "first.test"}, l}}
	}
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"no list":         {Options{}, "", "there is no list"},
		"too many":        {Options{Lists: make([]List, maxLists+1)}, "list[50]", "more than 50"},
		"reject":          {Options{Reject: -1, Lists: []List{{Zone: "l.test"}}}, "reject", "write a number"},
		"reject, no":      {Options{Reject: math.NaN(), Lists: []List{{Zone: "l.test"}}}, "reject", "write a number"},
		"action":          {Options{Action: "drop", Lists: []List{{Zone: "l.test"}}}, "action", "reject or defer"},
		"another action":  {Options{Action: "discard", Lists: []List{{Zone: "l.test"}}}, "action", "reject or defer"},
		"wait":            {Options{Wait: -time.Second, Lists: []List{{Zone: "l.test"}}}, "wait", "negative"},
		"zone":            {ok(func(l *List) { l.Zone = "" }), "list[1].zone", "no domain"},
		"zone of one":     {ok(func(l *List) { l.Zone = "test" }), "list[1].zone", "no domain"},
		"zone with text":  {ok(func(l *List) { l.Zone = "l.test\n" }), "list[1].zone", "no domain"},
		"zone, address":   {ok(func(l *List) { l.Zone = "127.0.0.2" }), "list[1].zone", "no domain"},
		"long zone":       {ok(func(l *List) { l.Zone = strings.Repeat("a.", 100) + "test" }), "list[1].zone", "no domain"},
		"name":            {ok(func(l *List) { l.Name = "a\r\nb" }), "list[1].name", "ASCII"},
		"long name":       {ok(func(l *List) { l.Name = strings.Repeat("a", 101) }), "list[1].name", "100"},
		"text":            {ok(func(l *List) { l.Text = "a\nb" }), "list[1].text", "one line"},
		"kind":            {ok(func(l *List) { l.Kind = "rcpt" }), "list[1].kind", "ip, helo or sender"},
		"family":          {ok(func(l *List) { l.Family = "ipx" }), "list[1].family", "both, ipv4 or ipv6"},
		"weight":          {ok(func(l *List) { l.Weight = weight(math.Inf(1)) }), "list[1].weight", "number"},
		"symbol":          {ok(func(l *List) { l.Symbol = "a b" }), "list[1].symbol", "word"},
		"answers":         {ok(func(l *List) { l.Answers = []string{"127.0.0.2", "x"} }), "list[1].answers", `"x": write an address`},
		"many answers":    {ok(func(l *List) { l.Answers = make([]string, 101) }), "list[1].answers", "more than 100"},
		"error codes":     {ok(func(l *List) { l.Answers = []string{"127.255.255.254"} }), "list[1].answers", "error codes"},
		"a range, back":   {ok(func(l *List) { l.Answers = []string{"127.0.0.11-2"} }), "list[1].answers", "write an address"},
		"another network": {ok(func(l *List) { l.Answers = []string{"10.0.0.2"} }), "list[1].answers", "127.0.0.0/8"},
	} {
		f, err := New(pipeline.Env{}, c.o)
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if errors.As(err, &at) != (c.key != "") || c.key != "" && at.Key() != c.key {
			t.Errorf("%s: about %v, want %s", name, at, c.key)
		}
	}
	_, err := New(pipeline.Env{}, Options{Lists: []List{{Zone: "x"}, {Zone: "l.test", Kind: "y"}}})
	if err == nil || !strings.Contains(err.Error(), `"x"`) || !strings.Contains(err.Error(), `"y"`) {
		t.Errorf("two errors: %v", err)
	}
}

func TestSymbols(t *testing.T) {
	for _, c := range []struct {
		l    List
		want string
	}{
		{List{Zone: "zen.spamhaus.org"}, "DNSBL_ZEN_SPAMHAUS_ORG"},
		{List{Zone: "key.zen.test", Name: "Zen 2"}, "DNSBL_ZEN_2"},
		{List{Zone: "dbl.test", Kind: "sender"}, "RHSBL_DBL_TEST"},
		{List{Zone: "dbl.test", Kind: "helo"}, "HELOBL_DBL_TEST"},
		{List{Zone: "dbl.test", Symbol: "MINE"}, "MINE"},
	} {
		var l list
		if key, err := l.set(c.l); err != nil || l.symbol != c.want {
			t.Errorf("%+v: %s %s %v", c.l, l.symbol, key, err)
		}
	}
}

func TestPatterns(t *testing.T) {
	for s, c := range map[string]struct{ in, out string }{
		"127.0.0.2":       {"127.0.0.2", "127.0.0.3 127.0.1.2 127.1.0.2"},
		"127.0.0.2-11":    {"127.0.0.2 127.0.0.7 127.0.0.11", "127.0.0.1 127.0.0.12 127.0.1.5"},
		"127.0.*.3":       {"127.0.0.3 127.0.255.3", "127.0.0.2 127.1.0.3"},
		"127.*.*.*":       {"127.0.0.1 127.255.255.255", "128.0.0.1"},
		"127.1-2.0-9.0":   {"127.1.0.0 127.2.9.0", "127.3.0.0 127.1.10.0"},
		"127.255.0-254.1": {"127.255.3.1", "127.255.255.1"},
	} {
		p, err := parsePattern(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		for _, a := range strings.Fields(c.in) {
			if !p.has(netip.MustParseAddr(a)) {
				t.Errorf("%s has not %s", s, a)
			}
		}
		for _, a := range strings.Fields(c.out) {
			if p.has(netip.MustParseAddr(a)) {
				t.Errorf("%s has %s", s, a)
			}
		}
	}
	for _, s := range []string{"", "127", "127.0.0", "127.0.0.0.1", "127.0.0.256", "127.0.0.-1", "127.0.0.1-", "127.0.0.1-2-3", "127.0.0.+1", "*.0.0.2", "127-128.0.0.2", "127.0.0.2 ", "::1"} {
		if p, err := parsePattern(s); err == nil {
			t.Errorf("%q is %v", s, p)
		}
	}
}
