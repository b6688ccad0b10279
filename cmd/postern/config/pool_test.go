package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const somePools = `
[source.a]
ipv4 = "192.0.2.1"
[source.b]
ipv4 = "192.0.2.2"
ipv6 = "2001:db8::2"
helo = "b.example.org"
warmup = {since = "2026-11-20", plan = [5, 10]}
[pool.second]
sources = ["b"]
rule = 'user == "news" || user == "both"'
[pool.first]
sources = ["a", "b"]
weights = {a = 3}
senders = ["News.example.org", ".example.org", "ceo@news.example.org", ""]
rule = 'size > 1000 || user == "both"'
[pool.third]
sources = ["a", "default"]
senders = [".deep.example.org", "example.com"]
`

func TestPoolOf(t *testing.T) {
	c, err := parse(t, withNext+somePools, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ sender, chosen, want string }{
		{"user@news.example.org", "", "first"},
		{"User@NEWS.example.org.", "", "first"},
		{"user@sub.news.example.org", "", "first"},
		{"user@example.org", "", "default"}, // .example.org is for all below it
		{"x@deep.example.org", "", "first"},
		{"x@very.deep.example.org", "", "third"},
		{"x@example.com", "", "third"},
		{"x@sub.example.com", "", "default"},
		{"CEO@news.example.org", "", "first"},
		{"", "", "first"},
		{"#@[]", "", "first"},
		{"x@example.com", "second", "second"},
		{"x@example.com", "gone", "third"},
		{"local", "", "default"},
		{"news.example.org", "", "default"}, // a local part, and no domain
	} {
		if got := c.PoolOf(test.sender, test.chosen); got != test.want {
			t.Errorf("%q, %q: %s, want %s", test.sender, test.chosen, got, test.want)
		}
	}
	for pool, want := range map[string]string{
		"first": "[{a 3} {b 1}]", "second": "[{b 1}]", "third": "[{a 1} {default 1}]", "default": "[{default 1}]", "gone": "[{default 1}]",
	} {
		if got := fmt.Sprint(c.Shares(pool)); got != want {
			t.Errorf("%s: %s, want %s", pool, got, want)
		}
	}
	for _, test := range []struct {
		user, want string
		size       int64
		err        bool
	}{{"news", "second", 1, false}, {"both", "second", 5000, false}, {"x", "first", 5000, false}, {"x", "", 1, false}, {"", "first", 5000, true}} {
		got, err := c.PoolByRule(func(name string) any {
			switch {
			case name == "size":
				return test.size
			case test.err:
				return nil
			}
			return test.user
		})
		if got != test.want || (err != nil) != test.err {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
	}
	if c.choosesPool() == nil || !c.HasPool("third") || c.HasPool("gone") {
		t.Error("pools that are there are not, or the other way")
	}
	for day, want := range map[string]string{"2026-11-19": "0 true", "2026-11-20": "5 true", "2026-11-21": "10 true", "2026-11-22": "0 false"} {
		at, _ := time.Parse(time.DateOnly, day)
		if most, bound := c.WarmupOf("b").Budget(at); fmt.Sprint(most, bound) != want {
			t.Errorf("%s: %d %v, want %s", day, most, bound, want)
		}
	}
	if _, bound := c.WarmupOf("a").Budget(time.Now()); bound {
		t.Error("a source without a plan has a budget")
	}
}

func TestSourcesThatAreUsed(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "[source.a]\nipv4 = \"192.0.2.1\"\n": "[source.a] is in no pool",
		"[source.a]\nipv4 = \"192.0.2.1\"\n[pool.default]\nsources = [\"a\"]\n": "",
		"[source.default]\nhelo = \"x.example.org\"\n":                          "",
	} {
		c, err := parse(t, withNext+text, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(c.Warnings); !strings.Contains(got, want) || want == "" && len(c.Warnings) > 0 {
			t.Errorf("%s: %s", text, got)
		}
	}
	c, err := parse(t, withNext+"[source.a]\nipv4 = \"192.0.2.1\"\nwarmup = 2026-11-20\n[pool.default]\nsources = [\"a\"]\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	if w := c.WarmupOf("a"); len(w.Plan) != 28 || w.Plan[0] != 50 || w.Since.Format(time.DateOnly) != "2026-11-20" {
		t.Errorf("%+v", w)
	}
}

// TestBindings reads the files of qmails with domainbindings and outgoingip.
func TestBindings(t *testing.T) {
	for _, test := range []struct {
		name, bindings, outgoing, text string
		want                           map[string]string // sources by sender
		errs                           string
	}{
		{"nothing", "", "", "", map[string]string{"x@example.org": "[{default 1}]"}, ""},
		{"outgoingip", "", "192.0.2.9\n", "", map[string]string{"x@example.org": "[{ip-192-0-2-9 1}]", "": "[{ip-192-0-2-9 1}]"}, ""},
		{"any", "", "0.0.0.0\n", "", map[string]string{"x@example.org": "[{default 1}]"}, ""},
		{
			"bindings", "# ours\nExample.org:192.0.2.1\n.example.org:192.0.2.2\nceo@example.org:192.0.2.2\nexample.org:192.0.2.3\nexample.net:0.0.0.0\nsix.example:2001:db8::1\nno colon\n:192.0.2.1\n", "192.0.2.9\n", "",
			map[string]string{
				"x@example.org": "[{ip-192-0-2-1 1}]", "x@sub.example.org": "[{ip-192-0-2-2 1}]", "ceo@example.org": "[{ip-192-0-2-2 1}]",
				"x@example.net": "[{default 1}]", "x@six.example": "[{ip-2001-db8--1 1}]", "x@else.example": "[{ip-192-0-2-1 1}]",
			},
			"",
		},
		{
			"a table has the address", "example.org:192.0.2.1\n", "", "[source.mine]\nipv4 = \"192.0.2.1\"\nhelo = \"mine.example.org\"\n",
			map[string]string{"x@example.org": "[{mine 1}]", "": "[{default 1}]"},
			"",
		},
		{
			"tables stand in their place", "example.org:nonsense\n", "192.0.2.9\n", "[source.mine]\nipv4 = \"192.0.2.1\"\n[pool.default]\nsources = [\"mine\"]\n",
			map[string]string{"x@example.org": "[{mine 1}]"},
			"",
		},
		{"mistakes", "example.org:nonsense\nexa mple:192.0.2.1\n", "192.0.2\n", "", nil, "domainbindings:1: \"nonsense\" is no address of this machine"},
		{"a mistake in outgoingip", "", "192.0.2\n", "", nil, "outgoingip:1: \"192.0.2\" is no address of this machine"},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"me": "mx.example.org\n", "domainbindings": test.bindings, "outgoingip": test.outgoing} {
			if text == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c, err := parse(t, fmt.Sprintf("control = %q\n", dir)+withNext+test.text, nil)
		if test.errs != "" {
			if all := new(Errors); !errors.As(err, &all) || !strings.Contains(err.Error(), test.errs) {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		for sender, want := range test.want {
			if got := fmt.Sprint(c.Shares(c.PoolOf(sender, ""))); got != want {
				t.Errorf("%s: %s leaves from %s, want %s", test.name, sender, got, want)
			}
		}
		for _, s := range c.Effective() {
			if s.Key == "source.ip-192-0-2-1.ipv4" && (s.Value != `"192.0.2.1"` || s.From != dir+"/domainbindings:2") {
				t.Errorf("%s: %+v", test.name, s)
			}
		}
	}
}
