package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/postern-mta/postern/cmd/postern/move"
)

// TestReadmeImport holds the README's examples of postern import, before and
// after, against what it makes.
func TestReadmeImport(t *testing.T) {
	text := readme(t)
	const qmail = "/var/qmail/control/"
	dir := t.TempDir() + "/"
	shown := 0
	for _, f := range move.Formats() {
		if !strings.Contains(text, "| `"+f.Name+"` |") {
			t.Errorf("README.md does not list %s", f.Name)
		}
		for _, m := range regexp.MustCompile("(?s)```"+f.Name+"\n(.*?)```\n\nbecomes\n\n```toml\n(.*?)```").FindAllStringSubmatch(text, -1) {
			shown++
			path := filepath.Join(dir, f.Name)
			if err := os.WriteFile(path, []byte(m[1]), 0o644); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			if code := run([]string{"import", f.Name, path}, &stdout, &stderr); code != 0 {
				t.Fatalf("%s: %s", f.Name, stderr.String())
			}
			_, got, _ := strings.Cut(stdout.String(), "\n[chain]\n")
			if got = "[chain]\n" + strings.ReplaceAll(got, dir, qmail); got != m[2] {
				t.Errorf("%s becomes\n%s\nand README.md has\n%s", f.Name, got, m[2])
			}
		}
	}
	if shown != 3 || shown != strings.Count(text, "\nbecomes\n\n```toml") {
		t.Errorf("%d examples are looked at, of %d", shown, strings.Count(text, "\nbecomes\n\n```toml"))
	}
}
