package rewrite

import (
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
)

var seeds = []string{
	"joe@example.org ann@example.net, bob@example.net\n\tcarl@example.net\n", "@old.example: @example.org\n@.x.example root@y\n",
	"root@ a@b\n", "/(.*)\\.(.*)@example\\.org/ $2.$1@example.net\n", "/(.+)/: $$$1@x\n", "# nothing\n", " a@b c@d", "a@b a@b,c@d\nc@d a@b\n",
}

// FuzzTable reads files: what is taken has addresses on its right sides.
func FuzzTable(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parseTable(strings.NewReader(text), "map", false)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "map:") {
				t.Errorf("the error does not say where: %v", err)
			}
			return
		}
		for key, e := range table.entries {
			if key != lower(key) || !strings.Contains(key, "@") || len(e.targets) == 0 {
				t.Errorf("%q %q", key, e.targets)
			}
			for _, a := range e.targets {
				if !isAddress(a) && !isAddress("x"+a) {
					t.Errorf("%q leads to %q", key, a)
				}
			}
			if again, ok, err := table.find(key); !ok || err != nil || again.where != e.where {
				t.Errorf("%q is not found", key)
			}
		}
	})
}

// FuzzExpand rewrites: what comes out is the address as it came, or a valid one,
// each once, and the same each time.
func FuzzExpand(f *testing.F) {
	for _, s := range seeds {
		f.Add(s, "joe+x@example.org")
		f.Add(s, "a@b")
		f.Add(s, "\"a b\"@x.old.example")
	}
	f.Fuzz(func(t *testing.T, text, address string) {
		if len(text) > 2000 || len(address) > envelope.MaxAddress {
			return
		}
		table, err := parseTable(strings.NewReader(text), "map", false)
		if err != nil {
			return
		}
		filter := &Filter{maps: []source{table}, extension: "+-", depth: defaultDepth, expansion: defaultExpansion}
		all := func(string) bool { return true }
		out, by, err := filter.expand(address, all)
		again, _, failed := filter.expand(address, all)
		if (err == nil) != (failed == nil) || strings.Join(out, "\n") != strings.Join(again, "\n") {
			t.Errorf("%q, then %q", out, again)
		}
		if err != nil {
			return
		}
		if len(out) == 0 || len(out) > defaultExpansion || by == "" && (len(out) != 1 || out[0] != address) {
			t.Errorf("%q is %q by %q", address, out, by)
		}
		seen := map[string]bool{}
		for _, a := range out {
			if seen[canonical(a)] {
				t.Errorf("%q comes out twice", a)
			}
			seen[canonical(a)] = true
			if a != address && !isAddress(a) {
				t.Errorf("%q is no address", a)
			}
		}
	})
}
