package config

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestEveryKeyIsDocumented walks the structs themselves: a field that can be
// written has a key, and every key has a description, a type and a place in the
// reference.
func TestEveryKeyIsDocumented(t *testing.T) {
	var m makes
	keys := map[string]Key{}
	for _, k := range Reference(m.kinds()) {
		if k.Doc == "" || k.Type == "" {
			t.Errorf("%s has no description", k.Path)
		}
		if _, twice := keys[k.Path]; twice {
			t.Errorf("%s is there twice", k.Path)
		}
		keys[k.Path] = k
	}
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			if !f.IsExported() || f.Name == "Name" && f.Tag.Get("toml") == "" {
				continue
			}
			name := f.Tag.Get("toml")
			if f.Anonymous {
				walk(path, f.Type)
				continue
			}
			if name == "" {
				t.Errorf("%v.%s has no key", typ, f.Name)
				continue
			}
			at := join(path, name)
			if keys[at].Doc == "" {
				t.Errorf("%s is not in the reference", at)
			}
			inner := f.Type
			if inner.Kind() == reflect.Map {
				inner, at = inner.Elem(), at+".NAME"
			}
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if isTable(inner) {
				walk(at, inner)
			}
		}
	}
	walk("", reflect.TypeFor[Settings]())
	for path, want := range map[string]Key{
		"listen.NAME.socket_mode":     {Type: "a text in quotes", Default: `"0666"`},
		"limits.head":                 {Type: `a size, like "50 MB"`, Default: `"1 MB"`},
		"trusted":                     {Type: "a list: a user's name or uid", Default: "those of root, qmaild, alias and vpopmail that exist"},
		"filter.scan.wait":            {Type: `a length of time in quotes, like "30s"`, Default: `"3s"`},
		"filter.policy.rule":          {Type: "a list of tables"},
		"filter.policy.rule.action":   {Type: "a text in quotes"},
		"filter.tap.rule.copy":        {Type: "a text or a list"},
		"filter.scan.word":            {Type: "one of fast, thorough"},
		"filter.NAME.on_error":        {Type: "one of defer, continue", Default: "by kind"},
		"chain_options.NAME.deadline": {Type: `a length of time in quotes, like "30s"`, Default: `"2m"`},
	} {
		if got := keys[path]; got.Type != want.Type || got.Default != want.Default {
			t.Errorf("%s: %+v", path, got)
		}
	}
	if m.closed != len(m.made) {
		t.Errorf("%d filters made for their keys, %d closed", len(m.made), m.closed)
	}
}

// TestFullFileHasEveryKey keeps the example complete.
func TestFullFileHasEveryKey(t *testing.T) {
	var m makes
	c, err := Load("testdata/good-full.toml", m.options())
	if err != nil {
		t.Fatal(err)
	}
	from := map[string]string{}
	for _, s := range c.Effective() {
		parts := strings.Split(s.Key, ".")
		if len(parts) > 2 && slices.Contains([]string{"listen", "chain_options", "filter", "certificate", "auth", "tls", "site", "provider", "source", "pool", "plugin"}, parts[0]) {
			if parts[1] = "NAME"; from[strings.Join(parts, ".")] != "" && !strings.HasPrefix(s.From, "testdata/") {
				continue
			}
		}
		from[strings.Join(parts, ".")] = s.From
	}
	for _, k := range Reference(nil) {
		if strings.HasPrefix(k.Type, "a table") || strings.HasPrefix(k.Path, "route.NAME.") || strings.HasPrefix(k.Path, "source.NAME.warmup.") || k.Path == "domains" {
			continue
		}
		if !strings.HasPrefix(from[k.Path], "testdata/good-full.toml:") {
			t.Errorf("%s is from %q", k.Path, from[k.Path])
		}
	}
}

func TestEffective(t *testing.T) {
	var m makes
	for file, want := range map[string][]string{
		"testdata/good-control.toml": {
			`hostname = "mx.example.org" # $/control/me:1`,
			`domains = ["example.org", ".example.com", "Example.NET"] # $/control/rcpthosts`,
			`limits.message = 20000000 # $/control/databytes:1`,
			`limits.recipients = 100000 # default`,
			`listen.queue.next = "$/next" # testdata/good-control.toml:3`,
			`listen.queue.lines = "keep" # default`,
			`listen.queue.slow = "3m" # default`,
			`chain.inbound = ["tap"] # $/control/taps:2`,
			`filter.tap.rules = ["F:.*@example\\.org:archive@example.org", "T:boss@:archive@example.org"] # $/control/taps:2`,
		},
		"testdata/good-full.toml": {
			`trusted = ["root", "qmaild", 89, 501] # testdata/good-full.toml:4`,
			`limits.message = "50 MB" # testdata/good-full.toml:14`,
			`chain.local = ["scan", "quick"] # testdata/good-full.toml:130`,
			`filter.scan.on_error = "continue" # testdata/good-full.toml:151`,
			`filter.scan.nets = [10.0.0.0/8, fd00::/8] # testdata/good-full.toml:144`,
			`filter.quick.on_error = "defer" # default`,
			`filter.quick.max = "50 MB" # default`,
			`filter.policy.rule[1].when = "external" # testdata/good-full.toml:171`,
			`filter.policy.labels.example.org = "ours" # testdata/good-full.toml:164`,
		},
		"testdata/good-minimal.toml": {
			`state = "/var/lib/postern" # default`,
			`admin.socket = "/run/postern/admin.sock" # default`,
			`queue.domain = 20 # site.default.connections`,
			`site.default.connections = 20 # default`,
			`site.default.connection_rate = "100/min" # default`,
			`address.default.connections = 20 # default`,
			`limits.message = 0 # default`,
		},
	} {
		c, err := Load(file, m.options())
		if err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, s := range c.Effective() {
			all += s.Key + " = " + s.Value + " # " + s.From + "\n"
		}
		all = strings.ReplaceAll(all, c.folder, "$")
		for _, w := range want {
			if !strings.Contains("\n"+all, "\n"+w+"\n") {
				t.Errorf("%s: no %s in\n%s", file, w, all)
			}
		}
	}
}

func TestDescribe(t *testing.T) {
	text := Describe(Reference(nil))
	if want := "log.format (one of text, json)\n\ttext (key=value) or json, one line for each event, to standard error\n\tdefault: \"text\"\n"; !strings.Contains(text, want) {
		t.Errorf("no %q in\n%s", want, text)
	}
}
