package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/queue/egress/smtp"
)

// hops reads hops that are right.
func hops(texts ...string) (all []smtp.Hop) {
	for _, text := range texts {
		h, err := smtp.ParseHop(text)
		if err != nil {
			panic(err)
		}
		all = append(all, h)
	}
	return all
}

func TestRoutesOf(t *testing.T) {
	c, err := parseOutbound(t, `[route]
"one.test"    = "relay.test"
".one.test"   = "[2001:db8::1]:26"
"a.one.test"  = ""
"list.test"   = ["a.test:26", "smtps://b.test", "192.0.2.1"]
"table.test"  = {to = ["lmtp:unix:/run/a", "lmtp://b.test"]}
"mx.test"     = ":26"
"gone.test"   = "discard:"
"qmtp.test"   = {to = "qmtp://a.test", cut_through = true}
""            = "qmqp:c.test"
`)
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string][]string{
		"ONE.test": {"relay.test"}, "x.one.test": {"[2001:db8::1]:26"}, "y.x.one.test": {"[2001:db8::1]:26"}, "a.one.test": nil,
		"list.test": {"a.test:26", "smtps://b.test", "192.0.2.1"}, "table.test": {"lmtp:unix:/run/a", "lmtp://b.test"},
		"mx.test": {":26"}, "gone.test": {"discard:"}, "qmtp.test": {"qmtp://a.test"}, "other.test": {"qmqp:c.test"}, "mx.one.testing": {"qmqp:c.test"},
	} {
		if got, ok := c.RouteOf(domain); ok != (want != nil) || ok && !slices.Equal(got.Hops, hops(want...)) {
			t.Errorf("%s: %v %v", domain, got, ok)
		}
	}
	for _, s := range c.Effective() {
		if s.Key == "route.list.test" && s.Value != `["a.test:26", "smtps://b.test", "192.0.2.1"]` || s.Key == "route.table.test" && s.Value != `["lmtp:unix:/run/a", "lmtp://b.test"]` {
			t.Errorf("%+v", s)
		}
	}
}

func TestBadRoutes(t *testing.T) {
	for text, want := range map[string]string{
		`[]`:                                     "1 to 10 places",
		`["a.test", 5]`:                          "must be",
		`["a.test", ""]`:                         "must be",
		`["a.test", ":26"]`:                      "cannot stand in a list",
		`["discard:", "a.test"]`:                 "cannot stand in a list",
		`["a.test", "smtp://a.test"]`:            "stands twice",
		`"http://a.test"`:                        "no transport of that name",
		`"lmtp:unix:a"`:                          "absolute path",
		`"a.test:x"`:                             "port must be a number",
		`{cut_through = true}`:                   "to is missing",
		`{to = "discard:", user = "a"}`:          "user needs a host",
		`{to = "lmtp://a.test", smtps = true}`:   "smtps needs a host",
		`{to = "", cut_through = true}`:          "cut_through needs a host",
		`{to = ["a.test", "b c"], smtps = true}`: "write host or host:port",
	} {
		if _, err := parseOutbound(t, "[route]\n\"d.test\" = "+text+"\n"); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), ":") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestSmtproutes is the file as qmail-remote.8 has it.
func TestSmtproutes(t *testing.T) {
	dir := t.TempDir()
	text := "one.test:relay.test\n.one.test:[192.0.2.1]:26\na.one.test:\nb.one.test::26\nno route\none.test:late.test\n:192.0.2.9\n"
	if err := os.WriteFile(filepath.Join(dir, "smtproutes"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var m makes
	c, err := Parse("testdata/x.toml", []byte("hostname = \"mx.example.org\"\ncontrol = \""+dir+"\"\n[listen.queue]\nnext = \"./next\"\n"), m.options())
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]string{
		"one.test": "relay.test", "x.one.test": "192.0.2.1:26", "a.one.test": "none", "b.one.test": ":26", "other.test": "192.0.2.9",
	} {
		got, ok := c.RouteOf(domain)
		if !ok {
			got.Hops = hops("none")
		}
		if !slices.Equal(got.Hops, hops(want)) {
			t.Errorf("%s: %v", domain, got)
		}
	}
}
