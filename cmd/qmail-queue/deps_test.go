package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestDependencies compares the packages that the Go twin links with the committed list, so that a new one is seen: each
// makes every run of the program slower. The list is that of Linux on amd64.
func TestDependencies(t *testing.T) {
	const list = "depaware.txt"
	cmd := exec.Command("go", "list", "-deps", ".")
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	slices.Sort(packages)
	got := strings.Join(packages, "\n") + "\n"
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(list, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	committed := strings.Fields(string(want))
	for _, p := range packages {
		if !slices.Contains(committed, p) {
			t.Errorf("new: %s", p)
		}
	}
	for _, p := range committed {
		if !slices.Contains(packages, p) {
			t.Errorf("gone: %s", p)
		}
	}
	t.Errorf("%s is out of date; if the change is meant: UPDATE=1 go test -run TestDependencies .", list)
}
