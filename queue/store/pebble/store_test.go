package pebble

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// testOptions keep a store small.
func testOptions(dir string, fs vfs.FS) Options {
	return Options{
		Dir: dir, FS: fs, LowBytes: -1, LowInodes: -1, Ballast: -1,
		MemTableSize: 64 << 10, CacheSize: 1 << 20, OpenFiles: 50,
	}
}

func mustOpen(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustApply(t *testing.T, s *Store, b *store.Batch) {
	t.Helper()
	if err := s.Apply(context.Background(), b, false); err != nil {
		t.Fatal(err)
	}
}

func mustVerify(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Verify(context.Background(), func(p string) { t.Error("verify:", p) }); err != nil {
		t.Fatal(err)
	}
}

func testMessage(s *Store, to ...string) store.Message {
	return store.Message{ID: s.NewID(), Envelope: envelope.To("sender@example.org", to...), Head: "Subject: x\n\n"}
}

func TestPutReadReopen(t *testing.T) {
	dir := t.TempDir() + "/a/queue"
	s := mustOpen(t, testOptions(dir, nil))
	m := testMessage(s, "a@example.com", "b@example.com")
	m.Origin = []byte("origin")
	text := strings.Repeat("large\n", 20_000)
	w := message.NewWriter(s, 0)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	large, err := w.Body()
	if err != nil {
		t.Fatal(err)
	}
	l := testMessage(s, "c@example.com")
	due := time.Unix(1_790_000_000, 0)
	b := &store.Batch{
		Puts: []store.Put{
			{Message: m, Body: message.BytesBody([]byte("body\n"))},
			{Message: l, Body: large, Hold: &store.Hold{Reason: "why"}},
		},
		States: []store.SetState{{ID: m.ID, Recipient: 1, State: store.State{Status: store.Deferred, Due: due}}},
	}
	mustApply(t, s, b)
	if !b.Puts[1].Message.Body.File || large.Release() != nil {
		t.Fatal("not a file")
	}
	mustVerify(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, testOptions(dir, nil))
	defer s.Close()
	r, err := s.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	seen := 0
	err = r.Scan(0, func(e *store.Entry) error {
		seen++
		body, err := r.Body(e.Message)
		if err != nil {
			return err
		}
		defer body.Release()
		got := string(message.New(message.Head{}, body).Bytes())
		switch e.Message.ID {
		case m.ID:
			if got != "body\n" || string(e.Message.Origin) != "origin" || !e.State(1).Due.Equal(due) || e.Hold != nil {
				t.Errorf("%+v %q", e, got)
			}
		case l.ID:
			if got != text || e.Hold == nil || e.Hold.Reason != "why" || len(e.States) != 0 {
				t.Errorf("%+v", e)
			}
		}
		return nil
	})
	if err != nil || seen != 2 {
		t.Fatal(seen, err)
	}
	mustApply(t, s, &store.Batch{Removes: []store.ID{m.ID, l.ID}})
	if names, _ := s.fs.List(s.path(bodiesDir)); len(names) != 0 {
		t.Error(names)
	}
	mustVerify(t, s)
	if id := s.NewID(); id <= l.ID {
		t.Error(id)
	}
}

// TestPutTwice: an id is used once, whether the store remembers it, has
// forgotten it, or was opened again; one whose batch was not applied is not
// used.
func TestPutTwice(t *testing.T) {
	mem := vfs.NewMem()
	s := mustOpen(t, testOptions("q", mem))
	put := func(ctx context.Context, m store.Message) error {
		return s.Apply(ctx, &store.Batch{Puts: []store.Put{{Message: m, Body: message.BytesBody([]byte("x"))}}}, false)
	}
	var all []store.Message
	for i := range 3*generation + 10 {
		m := testMessage(s, "a@example.com")
		if i%3 == 0 { // an id that nothing is put under
			m = testMessage(s, "a@example.com")
		}
		if i%100 == 0 {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := put(ctx, m); err == nil {
				t.Fatal("a batch was applied after its context had ended")
			}
		}
		if err := put(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	for range 2 {
		for i := 0; i < len(all); i += 7 {
			if put(t.Context(), all[i]) == nil {
				t.Fatalf("message %d of %d was put twice", i, len(all))
			}
		}
		mustVerify(t, s)
		s.Close()
		s = mustOpen(t, testOptions("q", mem))
	}
	s.Close()
}
