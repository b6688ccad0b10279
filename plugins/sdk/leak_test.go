package sdk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/postern-mta/postern/plugins/wire"
)

// Nothing is left of ten thousand calls, whatever they come to: no descriptor, no
// goroutine, and no file but those that the answers name.
func TestNothingLeaks(t *testing.T) {
	log := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler)) // two thousand panics
	t.Cleanup(func() { slog.SetDefault(log) })
	dir, state := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "body")
	if err := os.WriteFile(path, bytes.Repeat([]byte("0123456\n"), 4<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	calls := 0
	s, err := Plugin[None]{
		Name: "leaks", Needs: NeedsBody, Edits: EditsBody,
		Message: func(_ context.Context, _ *None, m *Message) (Verdict, error) {
			if _, err := io.Copy(io.Discard, m.Body()); err != nil {
				return Verdict{}, err
			}
			f, err := m.TempFile()
			if err != nil {
				return Verdict{}, err
			}
			switch calls++; calls % 5 {
			case 0:
				panic("as it must")
			case 1:
				return Verdict{}, errors.New("broken")
			case 2:
				return Continue().SetBody(make([]byte, 0)).AddField("X", "not declared"), nil
			case 3:
				return Continue().SetBodyFile(f.Name()), f.Close()
			}
			return Continue(), nil
		},
	}.Server()
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := s.Configure(ctx, &wire.ConfigureRequest{StateDir: state}); err != nil {
		t.Fatal(err)
	}
	q := &wire.JudgeRequest{
		Stage: wire.Stage_STAGE_MESSAGE, Transaction: new(wire.Transaction),
		Message: &wire.Message{BodySize: 32 << 10, Body: &wire.Message_File{File: &wire.File{Path: path, Size: 32 << 10}}},
	}
	fds, goroutines := entries(t, "/proc/self/fd"), runtime.NumGoroutine()
	answered := 0
	for range 10_000 {
		r, _ := s.Judge(ctx, q)
		for _, v := range r.GetVerdicts() {
			if v.GetPath() != "" {
				answered++
				if err := os.Remove(v.GetPath()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if answered != 2000 {
		t.Errorf("%d answers had a file", answered)
	}
	if n := entries(t, dir); n != 1 {
		t.Errorf("%d files are left", n-1)
	}
	if n := entries(t, state); n != 0 {
		t.Errorf("%d files are left in the state directory", n)
	}
	if n := entries(t, "/proc/self/fd"); n > fds {
		t.Errorf("%d descriptors, %d before", n, fds)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
}

func entries(t *testing.T, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
