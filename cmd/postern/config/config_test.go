package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// complaint is an error or warning that a file of testdata expects, in a
// comment:
//
//	key = "value" #! an error on this line #? a warning on this line
//	#!@4 an error on line 4
//	#!@control-bad/taps:3 an error in another file; line 0 means no line
type complaint struct{ kind, at, text string }

var marks = regexp.MustCompile(`#[!?]`)

func expected(t *testing.T, path string) (all []complaint) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(data), "\n") {
		found := marks.FindAllStringIndex(line, -1)
		for n, at := range found {
			end := len(line)
			if n+1 < len(found) {
				end = found[n+1][0]
			}
			c := complaint{line[at[0]:at[1]], fmt.Sprintf("%s:%d", path, i+1), strings.TrimSpace(line[at[1]:end])}
			if rest, ok := strings.CutPrefix(c.text, "@"); ok {
				c.at, c.text, _ = strings.Cut(rest, " ")
				if file, no, _ := strings.Cut(c.at, ":"); file == "" {
					c.at = path + ":" + no
				} else {
					c.at = filepath.Join(dir, file) + ":" + no
				}
			}
			c.text = strings.ReplaceAll(c.text, "$DIR", dir)
			all = append(all, c)
		}
	}
	return all
}

func complaints(kind string, list []*Error) (all []complaint) {
	for _, e := range list {
		c := complaint{kind, fmt.Sprintf("%s:%d", e.File, e.Line), e.Text}
		if e.Suggestion != "" {
			c.text += ` (did you mean "` + e.Suggestion + `"?)`
		}
		all = append(all, c)
	}
	return all
}

// load loads a file and gives what was complained of.
func load(t *testing.T, path string, o Options) (*Config, []complaint) {
	t.Helper()
	c, err := Load(path, o)
	if err == nil {
		return c, complaints("#?", c.Warnings)
	}
	var all *Errors
	if !errors.As(err, &all) || len(all.List) == 0 {
		t.Fatalf("%s: error %T %v, want *Errors", path, err, err)
	}
	if c != nil {
		t.Errorf("%s: a configuration in spite of %v", path, err)
	}
	return nil, append(complaints("#!", all.List), complaints("#?", all.Warnings)...)
}

// TestFiles holds every file of testdata against the comments in it.
func TestFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) < 20 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var m makes
			want := expected(t, path)
			c, got := load(t, path, m.options())
			for _, w := range want {
				if !slices.Contains(got, w) {
					t.Errorf("missing %s %s: %s", w.kind, w.at, w.text)
				}
			}
			for _, g := range got {
				if !slices.Contains(want, g) {
					t.Errorf("surplus %s %s: %s", g.kind, g.at, g.text)
				}
			}
			if good := strings.HasPrefix(filepath.Base(path), "good-"); good != (c != nil) {
				t.Errorf("loaded: %v", c != nil)
			}
			if m.closed != len(m.made) {
				t.Errorf("%d filters made, %d closed", len(m.made), m.closed)
			}
		})
	}
}

// parse parses a configuration that stands in testdata.
func parse(t *testing.T, text string, change func(*Options)) (*Config, error) {
	t.Helper()
	var m makes
	o := m.options()
	if change != nil {
		change(&o)
	}
	return Parse("testdata/parsed.toml", []byte(text), o)
}

const withNext = "[listen.queue]\nnext = \"./next\"\n"

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, "long.toml")
	if err := os.WriteFile(long, []byte(strings.Repeat("#", MaxFile+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{filepath.Join(dir, "missing.toml"), "missing.toml: cannot be read: no such file or directory"},
		{dir, ": cannot be read: is a directory"},
		{long, "long.toml: longer than 1048576 bytes"},
		{filepath.Join(dir, "esc\x1b[2J.toml"), "esc?[2J.toml: cannot be read: no such file or directory"},
	} {
		_, err := Load(c.path, Options{})
		if err == nil || !strings.HasSuffix(err.Error(), c.want) || strings.ContainsRune(err.Error(), 0x1b) {
			t.Errorf("%q: %v, want %s", c.path, err, c.want)
		}
	}
}

// TestManyErrors bounds what is told of one file.
func TestManyErrors(t *testing.T) {
	var b strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&b, "unknown-%d = 1\n", i)
	}
	_, err := parse(t, b.String()+withNext, nil)
	var all *Errors
	if !errors.As(err, &all) || len(all.List) != maxErrors || all.More != 2000-maxErrors {
		t.Fatalf("%d errors, %d more", len(all.List), all.More)
	}
	if !strings.HasSuffix(err.Error(), "\nand 1900 more") {
		t.Errorf("it ends with %q", err.Error()[len(err.Error())-40:])
	}
	var one *Error
	if !errors.As(err, &one) || one.Line != 1 || one.Column != 1 {
		t.Errorf("first error %+v", one)
	}
}

// TestLimits: what would take long to read is refused.
func TestLimits(t *testing.T) {
	var keys strings.Builder
	for i := range maxKeys + 1 {
		fmt.Fprintf(&keys, "k%d = 1\n", i)
	}
	for _, c := range []struct{ text, want string }{
		{keys.String(), "parsed.toml:2049: more than 2048 keys in one table"},
		{"[log]\n" + keys.String(), "parsed.toml:2050: more than 2048 keys in one table"},
		{"x = {" + strings.ReplaceAll(keys.String(), "\n", ",") + "}", "parsed.toml:1: more than 2048 keys in one table"},
		{strings.Repeat("[[x]]\n", maxTables+1), "parsed.toml:8193: more than 8192 tables"},
		{"[x" + strings.Repeat(".x", 20) + "]\n", "parsed.toml:1: nested too deeply: at most 16 levels"},
		{"x" + strings.Repeat(".x", 20) + " = 1\n", "parsed.toml:1: nested too deeply: at most 16 levels"},
		{"x = " + strings.Repeat("{ x = ", 20) + "1" + strings.Repeat("}", 20) + "\n", "parsed.toml:1: nested too deeply: at most 16 levels"},
		{"x = " + strings.Repeat("[", 20) + "1" + strings.Repeat("]", 20) + "\n", "parsed.toml:1: nested too deeply: at most 16 levels"},
		{"chain.inbound = [" + strings.Repeat(`"scan",`, 257) + "]\n" + withNext, "parsed.toml:1: chain.inbound: 257 filters, at most 256"},
	} {
		_, err := parse(t, c.text, nil)
		if err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%.30q: %v, want %s", c.text, err, c.want)
		}
	}
}

func TestColumns(t *testing.T) {
	_, err := parse(t, "listen = { queue = { next = \"./next\", lines = \"kep\" } }\n", nil)
	var e *Error
	if !errors.As(err, &e) || e.Line != 1 || e.Column != 39 || e.Suggestion != "keep" {
		t.Errorf("%+v", e)
	}
}

// printable reports whether a text may go to a terminal or a log.
func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }) < 0
}

func TestHostname(t *testing.T) {
	silent := func(o *Options) { o.Hostname = func() (string, error) { return "", errors.New("no name") } }
	for _, c := range []struct {
		text   string
		change func(*Options)
		want   string // name, or the beginning of an error
		from   string
	}{
		{withNext, nil, "box.example.net", "the system"},
		{"hostname = \"a.example\"\n" + withNext, silent, "a.example", "testdata/parsed.toml:1"},
		{"control = \"control\"\n" + withNext, silent, "mx.example.org", "control/me:1"},
		{"control = \"control-empty\"\n" + withNext, nil, "box.example.net", "the system"},
		{withNext, silent, `!hostname is missing, and the system does not tell its name (no name): write hostname = "mx.example.org"`, ""},
		{"hostname = \"\"\n" + withNext, nil, `!hostname "" is no host name`, ""},
		{"hostname = \"" + strings.Repeat("a.", 126) + "aa\"\n" + withNext, nil, `!hostname "a.a.a.`, ""},
		{"hostname = \"bücher.example\"\n" + withNext, nil, `!hostname "bücher.example" is no host name`, ""},
	} {
		conf, err := parse(t, c.text, c.change)
		if want, bad := strings.CutPrefix(c.want, "!"); bad {
			var e *Error
			if !errors.As(err, &e) || !strings.HasPrefix(e.Text, want) || e.Line != 1 {
				t.Errorf("%q: %v, want %s", c.text, err, want)
			}
			continue
		}
		if err != nil || conf.Hostname != c.want {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if from := conf.Effective()[0].From; !strings.HasSuffix(from, c.from) {
			t.Errorf("%q: from %s, want %s", c.text, from, c.from)
		}
	}
}

func TestTrusted(t *testing.T) {
	c, err := parse(t, "trusted = [\"root\", 5, \"qmaild\"]\n"+withNext, nil)
	if err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]bool{0: true, 5: true, 7791: true, 1: false} {
		if c.Trusts(uid) != want {
			t.Errorf("Trusts(%d) = %v", uid, !want)
		}
	}
	if c, err = parse(t, "trusted = []\n"+withNext, nil); err != nil || c.Trusts(0) {
		t.Errorf("an empty list trusts root: %v", err)
	}
	c, err = parse(t, withNext, nil)
	if err != nil || fmt.Sprint(c.Trusted) != `["root" "qmaild"]` {
		t.Errorf("default %v, %v", c.Trusted, err)
	}
	// The directory of users may be down: that is told, and nobody is trusted.
	c, err = parse(t, withNext, func(o *Options) {
		o.LookupUser = func(string) (uint32, error) { return 0, errors.New("down") }
	})
	if err != nil || len(c.Trusted) != 0 || len(c.Warnings) != len(trustedByDefault) {
		t.Errorf("trusted %v, warnings %v, %v", c.Trusted, c.Warnings, err)
	}
	// The system's own directory knows root.
	c, err = parse(t, "trusted = [\"root\"]\n"+withNext, func(o *Options) { o.LookupUser = nil })
	if err != nil || !c.Trusts(0) {
		t.Errorf("root: %v", err)
	}
}

func TestQueueIsDefault(t *testing.T) {
	c, err := parse(t, "hostname = \"mx.example.org\"\n", func(o *Options) { o.HasQueue = true })
	if err != nil {
		t.Fatal(err)
	}
	l := c.Listen["queue"]
	if len(c.Listen) != 1 || l.Name != "queue" || l.Next != NextQueue || l.Socket != DefaultQueueSocket || l.Lines.String() != "repair" || l.Mode() != 0o666 {
		t.Errorf("%+v", l)
	}
	if l.Chain != "inbound" || l.Local != "inbound" || c.Chain["inbound"] == nil {
		t.Errorf("chains %q %q of %v", l.Chain, l.Local, c.Chain)
	}
	c, err = parse(t, "listen.queue.next = \"queue\"\nlisten.queue.lines = \"refuse\"\n", func(o *Options) { o.HasQueue = true })
	if err != nil || c.Listen["queue"].Lines.String() != "refuse" {
		t.Errorf("%v", err)
	}
}

func TestNextIsOurShim(t *testing.T) {
	dir := t.TempDir()
	shim, link := filepath.Join(dir, "shim"), filepath.Join(dir, "link")
	hard := filepath.Join(dir, "hard")
	other := filepath.Join(dir, "other")
	for _, err := range []error{
		os.WriteFile(shim, []byte("#!/bin/sh\nexit 1\n"), 0o700), os.Symlink(shim, link), os.Link(shim, hard),
		os.WriteFile(other, []byte("#!/bin/sh\nexit 2\n"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, loop := range map[string]bool{shim: true, link: true, hard: true, other: false} {
		_, err := parse(t, fmt.Sprintf("[listen.queue]\nnext = %q\n", path), func(o *Options) { o.Shims = []string{shim} })
		if got := err != nil && strings.Contains(err.Error(), "in a loop"); got != loop {
			t.Errorf("%s: %v", path, err)
		}
	}
	_, err := parse(t, fmt.Sprintf("[listen.queue]\nnext = %q\n", "/"+strings.Repeat("x", 5000)), nil)
	if err == nil || !strings.Contains(err.Error(), "the path is longer than 4095 bytes") {
		t.Errorf("long path: %v", err)
	}
}
