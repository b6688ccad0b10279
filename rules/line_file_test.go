package rules_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/rules"
)

// A file of lines is read again when it changes, and what was read before stays
// where the new one is broken or gone.
func TestLineFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "badrcptto")
	clock := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	var told []error
	o := rules.FileOptions{Now: func() time.Time { return clock }, Changed: func(err error) { told = append(told, err) }}
	read := func(lines []rules.Line) (*rules.AddressList, error) { return rules.NewAddressList(lines, rules.Globs) }
	write := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(2 * time.Second)
	}
	if _, err := rules.OpenLineFile(path, 100, o, read); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	write("# list\na@b\n!\n")
	if _, err := rules.OpenLineFile(path, 100, o, read); err == nil || !strings.Contains(err.Error(), "badrcptto: line 3: ") {
		t.Errorf("a broken file: %v", err)
	}
	write("a@b\n")
	f, err := rules.OpenLineFile(path, 100, o, read)
	if err != nil {
		t.Fatal(err)
	}
	is := func(address string, want bool) {
		t.Helper()
		if _, ok := f.Get().Match(address); ok != want {
			t.Errorf("%s: %v", address, ok)
		}
	}
	is("a@b", true)
	write("c@d # no comment\n@e\n")
	is("a@b", false)
	is("x@e", true)
	for _, broken := range []string{"x@y\n!\n", strings.Repeat("#", 101)} {
		write(broken)
		is("x@e", true)
		is("x@y", false)
		if f.Err() == nil || told[len(told)-1] == nil {
			t.Errorf("nobody hears of %q: %v", broken, told)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(2 * time.Second)
	is("x@e", true)
	write("back@e\n")
	is("back@e", true)
	if f.Err() != nil {
		t.Errorf("still: %v", f.Err())
	}
}
