package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/auth"
)

// TestCheckpasswordHelper starts the helper as the daemon does, and logs in.
func TestCheckpasswordHelper(t *testing.T) {
	self, err := exec.LookPath("postern")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "checkpassword")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n[ \"$(tr '\\0' '|' <&3)\" = 'alice|secret||' ] && exec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h, err := auth.StartHelper(auth.HelperOptions{
		Program: auth.ProgramOptions{Argv: []string{program, "true"}},
		Command: []string{self, "checkpassword-helper"},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &pipeline.Session{Peer: netip.MustParseAddrPort("192.0.2.1:4711")}
	if name, err := h.Authenticate(context.Background(), s, "alice", "secret"); name != "alice" || err != nil {
		t.Error(name, err)
	}
	if _, err := h.Authenticate(context.Background(), s, "alice", "guess"); !errors.Is(err, auth.ErrCredentials) {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
