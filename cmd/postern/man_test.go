package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestManPages holds the committed pages against the commands: make man mends
// them.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	if err := writeMan(dir); err != nil {
		t.Fatal(err)
	}
	made, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	have, err := filepath.Glob("man/*")
	if err != nil {
		t.Fatal(err)
	}
	if len(have) != len(made) {
		t.Errorf("%d pages are committed and %d are made: run make man", len(have), len(made))
	}
	for _, path := range made {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("man", filepath.Base(path)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("man/%s is not what the program says (%v): run make man", filepath.Base(path), err)
		}
	}
}
