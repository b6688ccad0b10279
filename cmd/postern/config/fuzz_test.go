package config

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzLoad: whatever a file says, the answer is a configuration whose chains
// can be made, or errors that are clean and have a place.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m makes
		c, err := Parse("testdata/fuzzed.toml", data, m.options())
		if err != nil {
			var all *Errors
			if !errors.As(err, &all) || c != nil {
				t.Fatalf("error %T, configuration %v", err, c)
			}
			checkErrors(t, all.List)
			checkErrors(t, all.Warnings)
			return
		}
		checkErrors(t, c.Warnings)
		chains, err := c.Chains(nil, 1)
		if err != nil {
			t.Fatalf("loaded, but: %v", err)
		}
		for _, chain := range chains {
			chain.Close() //nolint:errcheck // the tests' filters do not fail
		}
		if m.closed != len(m.made) {
			t.Errorf("%d filters made, %d closed", len(m.made), m.closed)
		}
		for _, s := range c.Effective() {
			if !printable(s.Key + s.Value + s.From) {
				t.Errorf("setting %q = %q from %q", s.Key, s.Value, s.From)
			}
		}
	})
}

func checkErrors(t *testing.T, list []*Error) {
	t.Helper()
	for _, e := range list {
		if !printable(e.Error()) || e.Text == "" || len(e.Text) > maxText+len("…") {
			t.Errorf("%q", e.Error())
		}
		if e.File == "testdata/fuzzed.toml" && (e.Line < 1 || e.Column < 1) {
			t.Errorf("no place: %+v", e)
		}
	}
}
