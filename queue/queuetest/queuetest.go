// Package queuetest proves stores: a suite that every store must pass, a model
// of what a store holds, and a harness that cuts the power and lets calls of
// the file system fail.
//
// It promises that a store which passes keeps every batch it acknowledged,
// applies every other one as a whole or not at all, in order, and opens again
// from whatever a crash left behind.
//
// # How long it runs
//
// Three variables of the environment rule the random tests: POSTERN_SEEDS is
// how many runs are made (300 by default); POSTERN_CRASH_TIME, a duration like
// 90s, makes as many as fit instead; POSTERN_SEED makes the one run of that
// seed, which every failure names. With -short, for the race detector, there are
// 30 runs, and Crash and Fail take one in nine of the changes.
package queuetest

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// Subject is a store as the suite sees it.
type Subject interface {
	store.Store
	message.Spooler
	io.Closer
	// Verify reports everything about the store that must not be.
	Verify(ctx context.Context, report func(problem string)) error
}

// Options of Open.
type Options struct {
	// FS holds the store, in a directory of the subject's choice.
	FS  vfs.FS
	Now func() time.Time
	// Fatal is to be called when the store cannot go on; it does not return.
	Fatal func(error)
	// LowBytes is the low-water mark; 0 means none.
	LowBytes int64
}

// Open opens the subject, or makes it.
type Open func(Options) (Subject, error)

// fatal is an Options.Fatal where none is expected.
func fatal(t testing.TB) func(error) {
	return func(err error) {
		t.Errorf("fatal error of the store: %v", err)
		select {}
	}
}

func mustOpen(t testing.TB, open Open, o Options) Subject {
	t.Helper()
	if o.Fatal == nil {
		o.Fatal = fatal(t)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s, err := open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func mustClose(t testing.TB, s io.Closer) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// mustHold compares all that a store holds with the model, and verifies it.
func mustHold(t testing.TB, s Subject, want *Model) {
	t.Helper()
	got, err := Read(s)
	if err != nil {
		t.Fatalf("reading the store: %v", err)
	}
	if d := want.Diff(got); d != "" {
		t.Fatalf("the store differs from the model: %s", d)
	}
	mustVerify(t, s)
}

func mustVerify(t testing.TB, s Subject) {
	t.Helper()
	if err := s.Verify(context.Background(), func(p string) { t.Errorf("verify: %s", p) }); err != nil {
		t.Fatalf("verify: %v", err)
	}
}
