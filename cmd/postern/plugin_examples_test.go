package main

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// buildExamples builds the example plugins in Go into dir, and copies the one in
// Python there, with its module.
func buildExamples(t *testing.T, dir string) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]string{
		{"go", "build", "-o", dir, "./plugins/examples/tagger", "./plugins/examples/shell", "./plugins/examples/webhook"},
		{"cp", "-r", "plugins/examples/python/tagger.py", "plugins/sdk/python/postern_plugin", dir},
	} {
		c := exec.Command(b[0], b[1:]...)
		c.Dir = root
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", b, err, out)
		}
	}
	return dir
}
