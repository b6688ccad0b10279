package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOurs(t *testing.T) {
	type row struct{ ours, accepted bool }
	for _, c := range []struct {
		control string
		want    map[string]row
	}{
		{`control = "control"`, map[string]row{
			"example.org":              {true, true},
			"EXAMPLE.ORG":              {true, true},
			"sub.example.org":          {false, false},
			"a.example.com":            {true, true},
			"example.com":              {false, false},
			"example.net":              {true, true},
			"mx.example.org":           {true, false}, // locals
			"LocalHost":                {true, false},
			"x.ignored.example":        {false, false}, // locals are exact
			"virtual.example":          {true, false},
			"a.sub.virtual.example":    {true, false},
			"sub.virtual.example":      {false, false},
			"not.sub.virtual.example":  {false, false}, // an exception
			"x.not.sub.virtual.exampl": {false, false},
			"single.example":           {false, false}, // an address, not a domain
			"no-colon.example":         {false, false},
			"":                         {false, false}, // the catch-all names none
			"other.example":            {false, false},
			".":                        {false, false},
			"..":                       {false, false},
		}},
		{`control = "control-more"`, map[string]row{
			"more.example": {false, false}, "example.org": {true, true}, "mx.example.org": {true, false}, // locals is me by default
		}},
		{`control = "control-me"`, map[string]row{"more.example": {false, false}}},
		// A missing rcpthosts relays nothing.
		{`control = "control-empty"`, map[string]row{"example.org": {false, false}, "": {false, false}}},
		{`control = ""`, map[string]row{"example.org": {false, false}}},
		{"control = \"control\"\ndomains = [\"own.example\", \".below.example\"]", map[string]row{
			"own.example": {true, true}, "x.below.example": {true, true}, "example.org": {false, false}, "localhost": {false, false},
		}},
	} {
		conf, err := parse(t, c.control+"\nlisten.queue.next = \"./next\"\n", nil)
		if err != nil {
			t.Fatal(err)
		}
		for domain, want := range c.want {
			if got := (row{conf.Ours(domain), conf.Accepts(domain)}); got != want {
				t.Errorf("%s: %q is %+v, want %+v", c.control, domain, got, want)
			}
		}
	}
}

func TestControlDefaults(t *testing.T) {
	c, err := parse(t, "control = \"control\"\nlisten.queue.next = \"./next\"\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Limits.Message != 20_000_000 {
		t.Errorf("databytes: %d", c.Limits.Message)
	}
	lines, there := c.Files.Lines("badmailfrom")
	if !there || len(lines) != 2 || lines[1].Text != "@spam.example" {
		t.Errorf("badmailfrom: %v", lines)
	}
	if lines, there := c.Files.Lines("smtproutes"); there || lines != nil {
		t.Errorf("smtproutes: %v", lines)
	}
	if me, ok := c.Files.First("me"); !ok || me.Text != "mx.example.org" {
		t.Errorf("me: %v", me)
	}
	if fmt.Sprint(c.Domains) != "[example.org .example.com Example.NET]" {
		t.Errorf("domains: %v", c.Domains)
	}
	c, err = parse(t, "control = \"control\"\nlimits.message = 0\nlisten.queue.next = \"./next\"\n", nil)
	if err != nil || c.Limits.Message != 0 {
		t.Errorf("the file's own limit: %d, %v", c.Limits.Message, err)
	}
	// The default directory counts if it is there.
	c, err = parse(t, withNext, func(o *Options) { o.Control = "testdata/control" })
	if err != nil || c.Hostname != "mx.example.org" {
		t.Errorf("default directory: %v", err)
	}
	c, err = parse(t, "control = \"\"\n"+withNext, func(o *Options) { o.Control = "testdata/control" })
	if err != nil || c.Hostname != "box.example.net" || c.Files.Dir != "" {
		t.Errorf("no directory: %v", err)
	}
}

// TestTaps: control/taps are the rules of a tap that has none.
func TestTaps(t *testing.T) {
	for _, c := range []struct{ text, want, warning string }{
		{"", "F:.*@example\\.org:archive@example.org T:boss@:archive@example.org", ""},
		{"chain.inbound = [\"tap\"]\n", "F:.*@example\\.org:archive@example.org T:boss@:archive@example.org", ""},
		{"chain.inbound = [\"tap\"]\nfilter.tap.all = true\n", "F:.*@example\\.org:archive@example.org T:boss@:archive@example.org", ""},
		{"chain.inbound = [\"t\"]\nfilter.t.kind = \"tap\"\n", "F:.*@example\\.org:archive@example.org T:boss@:archive@example.org", ""},
		{"chain.inbound = [\"tap\"]\nfilter.tap.rules = [\"A:x:y@example.org\"]\n", "A:x:y@example.org", ""},
		{"chain.inbound = [\"tap\"]\nfilter.tap.rule = [{ to = \"x\", copy = [\"a@b\", \"c@d\"] }]\n", "", ""},
		{"chain.inbound = []\n", "", "no chain has a filter of kind tap, so these taps do nothing"},
	} {
		var m makes
		o := m.options()
		conf, err := Parse("testdata/taps.toml", []byte(c.text+"control = \"control\"\nlisten.queue.next = \"./next\"\n"), o)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		got := ""
		for _, made := range m.made {
			got += strings.Join(made.(tapOptions).Rules, " ")
		}
		if got != c.want {
			t.Errorf("%q: rules %q", c.text, got)
		}
		if warned := fmt.Sprint(conf.Warnings); !strings.Contains(warned, c.warning) || c.warning == "" && len(conf.Warnings) > 0 {
			t.Errorf("%q: warnings %v", c.text, warned)
		}
	}
	// What the filter says about a line of control/taps names that line.
	c, err := parse(t, "control = \"control\"\nlisten.queue.next = \"./next\"\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	c.taps[1].text = "F:(:a@b"
	_, err = c.Chains(nil, 1)
	if err == nil || !strings.Contains(err.Error(), "testdata/control/taps:3: filter.tap.rules[1]: bad pattern") {
		t.Errorf("%v", err)
	}
}

func TestTooManyTaps(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "taps"), []byte(strings.Repeat("A:x:y@example.org\n", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := parse(t, fmt.Sprintf("control = %q\n%s", dir, withNext), nil)
	if err == nil || !strings.Contains(err.Error(), "taps:4097: more than 4096 taps") {
		t.Errorf("%v", err)
	}
}
