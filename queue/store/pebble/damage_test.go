package pebble

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

func problems(t *testing.T, s *Store) []string {
	t.Helper()
	var all []string
	if err := s.Verify(context.Background(), func(p string) { all = append(all, p) }); err != nil {
		t.Fatal(err)
	}
	return all
}

func scanned(t *testing.T, s *Store) map[store.ID]store.Entry {
	t.Helper()
	r, err := s.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all := make(map[store.ID]store.Entry)
	if err := r.Scan(0, func(e *store.Entry) error {
		c := *e
		c.States = append([]store.SetState(nil), e.States...)
		if e.Hold != nil {
			h := *e.Hold
			c.Hold = &h
		}
		all[e.Message.ID] = c
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestDamage damages one message of three in every way; the store starts, the
// other two are delivered, the damage is named, and the message can be removed.
func TestDamage(t *testing.T) {
	set := func(k, v []byte) func(*testing.T, *Store) {
		return func(t *testing.T, s *Store) {
			if err := s.db.Set(k, v, pebble.Sync); err != nil {
				t.Fatal(err)
			}
		}
	}
	del := func(k []byte) func(*testing.T, *Store) {
		return func(t *testing.T, s *Store) {
			if err := s.db.Delete(k, pebble.Sync); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name    string
		damage  func(id, large store.ID) func(*testing.T, *Store)
		says    string // what Verify says
		aside   bool   // the message is set aside
		remains bool   // Verify still has something to say when it is removed
	}{
		{"header", func(id, _ store.ID) func(*testing.T, *Store) { return set(envelopeKey(id, 0), []byte("\x01x")) }, "damaged record e", true, false},
		{"newer header", func(id, _ store.ID) func(*testing.T, *Store) { return set(envelopeKey(id, 0), []byte("\x02x")) }, "version 2", true, false},
		{"no header", func(id, _ store.ID) func(*testing.T, *Store) { return del(envelopeKey(id, 0)) }, "record is missing", true, false},
		{"recipients", func(id, _ store.ID) func(*testing.T, *Store) { return set(envelopeKey(id, 2), []byte("\x01\x05")) }, "5 recipients where", true, false},
		{"no recipients", func(id, _ store.ID) func(*testing.T, *Store) { return del(envelopeKey(id, 2)) }, "record is missing", true, false},
		{"recipients too many", func(id, _ store.ID) func(*testing.T, *Store) { return set(envelopeKey(id, 9), []byte("\x01\x00")) }, "a chunk too many", true, false},
		{"state", func(id, _ store.ID) func(*testing.T, *Store) { return set(stateKey(id, 1), []byte("\x01\xff")) }, "damaged record s", false, false},
		{"state of nobody", func(_, _ store.ID) func(*testing.T, *Store) { return set(stateKey(1, 1), []byte("\x01\xff")) }, "message that is not there", false, true},
		{"hold", func(id, _ store.ID) func(*testing.T, *Store) { return set(holdKey(id), []byte("\x07")) }, "damaged record ph", false, false},
		{"no body", func(id, _ store.ID) func(*testing.T, *Store) { return del(bodyKey(id)) }, "is missing", false, false},
		{"short body", func(id, _ store.ID) func(*testing.T, *Store) { return set(bodyKey(id), []byte("\x00x")) }, "where its message says", false, false},
		{"mark of ids", func(_, _ store.ID) func(*testing.T, *Store) { return set(idsKey, []byte("\x01")) }, "", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewMem()
			s := mustOpen(t, testOptions("q", mem))
			var ids []store.ID
			for range 3 {
				m := testMessage(s, "a@example.com")
				for range 1500 {
					m.Envelope.Recipients = append(m.Envelope.Recipients, m.Envelope.Recipients[0])
				}
				mustApply(t, s, &store.Batch{Puts: []store.Put{{Message: m, Body: message.BytesBody([]byte("text"))}}})
				ids = append(ids, m.ID)
			}
			bad := ids[1]
			mustApply(t, s, &store.Batch{States: []store.SetState{{ID: bad, Recipient: 1, State: store.State{Status: store.Delivered}}}})
			c.damage(bad, 0)(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if c.name == "mark of ids" { // Close has mended it
				s = mustOpen(t, testOptions("q", mem))
				c.damage(bad, 0)(t, s)
				mustCrash(t, s, &mem)
			}
			var log bytes.Buffer
			o := testOptions("q", mem)
			o.Log = slog.New(slog.NewTextHandler(&log, nil))
			s = mustOpen(t, o)
			defer s.Close()
			all := scanned(t, s)
			if _, there := all[bad]; there == c.aside || len(all) < 2 {
				t.Errorf("%d messages are scanned", len(all))
			}
			switch c.name {
			case "state":
				if st := all[bad]; st.State(1).Status != store.Fresh {
					t.Error("a damaged state counts")
				}
			case "hold":
				if all[bad].Hold == nil {
					t.Error("a damaged hold does not hold")
				}
			}
			if c.aside && (s.Stats().Damaged != 1 || !strings.Contains(log.String(), bad.String())) {
				t.Errorf("%+v %s", s.Stats(), log.String())
			}
			if says := strings.Join(problems(t, s), "\n"); !strings.Contains(says, c.says) || c.says != "" && says == "" {
				t.Errorf("verify says %q", says)
			}
			if id := s.NewID(); id <= ids[2] {
				t.Errorf("id %s after %s", id, ids[2])
			}
			mustApply(t, s, &store.Batch{Removes: ids})
			if left := problems(t, s); (len(left) > 0) != c.remains {
				t.Errorf("after its removal verify says %q", left)
			}
		})
	}
}

// mustCrash goes on with what is in a file system of a store that never closes.
func mustCrash(t *testing.T, s *Store, mem **vfs.MemFS) {
	t.Helper()
	fresh := vfs.NewMem()
	if ok, err := vfs.Clone(*mem, fresh, "q", "q"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	*mem = fresh
}

// TestDamagedFiles damages the file of a body.
func TestDamagedFiles(t *testing.T) {
	mem := vfs.NewMem()
	s := mustOpen(t, testOptions("q", mem))
	defer func() { s.Close() }()
	m := testMessage(s, "a@example.com")
	text := bytes.Repeat([]byte("large\n"), 20_000)
	mustApply(t, s, &store.Batch{Puts: []store.Put{{Message: m, Body: message.BytesBody(text)}}})
	path := s.bodyPath(m.ID)
	f, err := mem.Create(path, category)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("short"))
	f.Close()
	r, _ := s.Reader()
	stored, err := r.Message(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Body(stored); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("half a body is opened: %v", err)
	}
	if err := mem.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Body(stored); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("a body that is lost gives %v", err)
	}
	r.Close()
	if p := problems(t, s); len(p) != 1 {
		t.Errorf("%q", p)
	}
	// What nobody named is swept away, what is none of ours stays.
	for _, name := range []string{(m.ID + 1).String(), "README"} {
		f, err := mem.Create(s.path(bodiesDir, name), category)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if p := problems(t, s); len(p) != 3 {
		t.Errorf("%q", p)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, testOptions("q", mem))
	if names, _ := mem.List(s.path(bodiesDir)); len(names) != 1 || names[0] != "README" {
		t.Error(names)
	}
}

// TestDamagedTables spoils a byte of a table, at many places: the store starts,
// and what is not in the damaged block is there.
func TestDamagedTables(t *testing.T) {
	whole := vfs.NewMem()
	o := testOptions("q", whole)
	s := mustOpen(t, o)
	const messages = 1200
	b := &store.Batch{}
	for range messages {
		m := testMessage(s, "a@example.com")
		b.Puts = append(b.Puts, store.Put{Message: m, Body: message.BytesBody([]byte(m.ID.String()))})
	}
	for _, p := range b.Puts {
		b.States = append(b.States, store.SetState{ID: p.Message.ID, State: store.State{Status: store.Deferred, Attempts: 7}})
	}
	for _, p := range b.Puts[:messages/2] {
		b.Holds = append(b.Holds, store.SetHold{ID: p.Message.ID, Hold: &store.Hold{Reason: "kept back"}})
	}
	mustApply(t, s, b)
	if err := s.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	places, tables, lost := int64(25), 0, 0
	if testing.Short() {
		places = 6
	}
	names, _ := whole.List("q/db")
	for _, name := range names {
		if !strings.HasSuffix(name, tableSuffix) {
			continue
		}
		size, err := whole.Stat("q/db/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(100); at < size.Size()*98/100; at += size.Size() / places {
			tables++
			mem := vfs.NewMem()
			if ok, err := vfs.Clone(whole, mem, "q", "q"); !ok || err != nil {
				t.Fatal(ok, err)
			}
			spoil(t, mem, "q/db/"+name, at)
			lost += checkSpoilt(t, mem, messages)
		}
	}
	if tables < int(places)-5 || lost == 0 {
		t.Errorf("only %d places, %d messages lost: this shows nothing", tables, lost)
	}
	t.Logf("%d places spoilt, of %d messages %d were set aside each time", tables, messages, lost/tables)
}

func spoil(t *testing.T, mem *vfs.MemFS, path string, at int64) {
	t.Helper()
	data, err := mem.UnsafeGetFileDataBuffer(path)
	if err != nil {
		t.Fatal(err)
	}
	data[at] ^= 0x55
}

func checkSpoilt(t *testing.T, mem *vfs.MemFS, messages int) (lost int) {
	t.Helper()
	var log bytes.Buffer
	o := testOptions("q", mem)
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := mustOpen(t, o)
	defer s.Close()
	all := scanned(t, s)
	stateless, held := 0, 0
	for _, e := range all {
		if e.State(0).Attempts != 7 {
			stateless++
		}
		if e.Hold != nil {
			held++
		}
	}
	lost = messages - len(all)
	if held < messages/2-lost {
		t.Errorf("%d held of %d", held, len(all))
	}
	if lost > messages/2 || stateless > messages/2 {
		t.Errorf("%d messages lost and %d states", lost, stateless)
	}
	if lost+stateless > 0 && (s.Stats().Damaged == 0 || !strings.Contains(log.String(), "cannot be read")) {
		t.Errorf("%d messages and %d states are lost in silence: %s", lost, stateless, log.String())
	}
	if err := s.Verify(t.Context(), func(string) {}); err != nil {
		t.Errorf("verify: %v", err)
	}
	mustApply(t, s, &store.Batch{Puts: []store.Put{{Message: testMessage(s, "new@example.com")}}})
	// Where the index of a table is gone, all that sorts into it is set aside.
	toTheEnd := strings.Contains(log.String(), "to before "+(^store.ID(0)).String())
	if n := len(scanned(t, s)); n != len(all)+1 && !toTheEnd {
		t.Errorf("%d messages after a new one, %d before", n, len(all))
	}
	return lost
}
