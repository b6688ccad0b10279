package pebble

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

func TestLockNamesItsHolder(t *testing.T) {
	for _, fs := range []vfs.FS{vfs.Default, vfs.NewMem()} {
		dir := t.TempDir()
		s := mustOpen(t, testOptions(dir, fs))
		_, err := Open(testOptions(dir, fs))
		if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), fmt.Sprintf("in use by postern, pid %d, since ", os.Getpid())) {
			t.Errorf("a second Open gives %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := fs.Stat(s.path(holderFile)); err == nil {
			t.Error("the holder's name outlives it")
		}
		if err := mustOpen(t, testOptions(dir, fs)).Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Open(Options{}); err == nil {
		t.Error("a store without a directory opens")
	}
}

func TestOnlyThisUserReads(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "queue")
	s := mustOpen(t, testOptions(dir, nil))
	defer s.Close()
	for _, name := range []string{"", dbDir, bodiesDir, spoolDir, stateDir} {
		st, err := os.Stat(s.path(name))
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
}

func TestFormat(t *testing.T) {
	mem := vfs.NewMem()
	s := mustOpen(t, testOptions("q", mem))
	if err := s.db.Set(formatKey, appendNumber(nil, Format+1), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	s.Close()
	_, err := Open(testOptions("q", mem))
	if want := "queue q: has format 2, and this Postern knows formats up to 1: start the newer Postern that wrote it"; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	if _, err = Open(testOptions("q", mem)); err == nil || strings.Contains(err.Error(), "in use") {
		t.Errorf("a refused store stays locked: %v", err)
	}
	other := vfs.NewMem()
	if err := other.MkdirAll("q", 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := pebble.Open("q/db", &pebble.Options{FS: other, Logger: engineLog{&Store{o: Options{Log: s.o.Log}}}})
	if err != nil {
		t.Fatal(err)
	}
	db.Set([]byte("somebody's"), nil, pebble.Sync)
	db.Close()
	if _, err := Open(testOptions("q", other)); err == nil || !strings.Contains(err.Error(), "no format version") {
		t.Errorf("a database of somebody else gives %v", err)
	}
}

// TestDescriptor passes a large message to another process.
func TestDescriptor(t *testing.T) {
	s := mustOpen(t, testOptions(t.TempDir(), nil))
	defer s.Close()
	text := "A: b\n\n" + strings.Repeat("0123456789abcde\n", 10_000)
	m, err := message.Read(strings.NewReader(text), message.Options{Spool: s})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Body().Release()
	if m.Body().SpoolName() == "" {
		t.Fatal("not in the spool")
	}
	f, err := m.Descriptor(s)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || string(got) != text {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Errorf("%d bytes written", n)
	}
	names, err := os.ReadDir(s.path(spoolDir))
	if err != nil || len(names) != 1 {
		t.Errorf("%v %v", names, err)
	}
}

func TestSpoolIsSwept(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, testOptions(dir, nil))
	name, f, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("x"))
	f.Close()
	if _, err := s.Open("../lock"); err == nil {
		t.Error("a name that leaves the spool is opened")
	}
	s.Close()
	s = mustOpen(t, testOptions(dir, nil))
	defer s.Close()
	if f, err := s.Open(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v %v", f, err)
	}
}

func TestNothingIsLeftRunning(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for range 3 {
		s := mustOpen(t, testOptions("q", vfs.NewMem()))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := Open(testOptions("/proc/no/such", nil))
		if err == nil {
			t.Fatal("a store in /proc")
		}
	}
}

func TestValueSeparation(t *testing.T) {
	mem := vfs.NewMem()
	o := testOptions("q", mem)
	o.ValueSeparation = true
	s := mustOpen(t, o)
	var last store.ID
	for range 300 {
		m := testMessage(s, "a@example.com")
		mustApply(t, s, &store.Batch{Puts: []store.Put{{Message: m, Body: message.BytesBody([]byte(strings.Repeat(m.ID.String(), 300)))}}})
		last = m.ID
	}
	if err := s.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, s)
	s.Close()
	// The format cannot go back, but the option can.
	s = mustOpen(t, testOptions("q", mem))
	defer s.Close()
	all := scanned(t, s)
	e := all[last]
	r, _ := s.Reader()
	defer r.Close()
	b, err := r.Body(e.Message)
	if err != nil || len(all) != 300 || string(message.New(message.Head{}, b).Bytes()) != strings.Repeat(last.String(), 300) {
		t.Error(err, len(all))
	}
}

// TestIDsAheadOfTheClock: not at all after a close, and by next to nothing
// after ten thousand crashes that follow each other at once; by no more than
// idLead and that after crashes of stores that have run for a while.
func TestIDsAheadOfTheClock(t *testing.T) {
	var mem *vfs.MemFS // a crash needs it
	now := time.UnixMilli(1_790_000_000_000)
	o := testOptions("q", vfs.NewCrashableMem())
	o.Now = func() time.Time { return now }
	var last store.ID
	next := func(s *Store) time.Duration {
		id := s.NewID()
		if id <= last {
			t.Fatalf("id %s after %s", id, last)
		}
		last = id
		return id.Time().Sub(now)
	}
	for range 100 {
		s := mustOpen(t, o)
		if ahead := next(s); ahead > 0 {
			t.Fatalf("ids are %v ahead after a close", ahead)
		}
		s.Close()
	}
	crash := func(run, pause time.Duration) (ahead time.Duration) {
		mem = o.FS.(*vfs.MemFS)
		s := mustOpen(t, o)
		ahead = next(s)
		now = now.Add(run)
		next(s)
		o.FS = mem.CrashClone(vfs.CrashCloneCfg{})
		now = now.Add(pause)
		s.Close()
		return ahead
	}
	const crashes = 200
	for range crashes {
		crash(0, 0)
	}
	if ahead := crash(0, 0); ahead > 10*time.Millisecond {
		t.Errorf("ids are %v ahead after %d crashes", ahead, crashes)
	}
	for i := range 60 {
		run := time.Duration(i) * 50 * time.Millisecond
		if ahead := crash(run, 0); ahead > idLead+10*time.Millisecond {
			t.Fatalf("ids are %v ahead after a crash of a store that ran for %v", ahead, run)
		}
	}
	for range 20 {
		crash(time.Hour, 0)
	}
	if ahead := crash(0, 0); ahead > idLead+10*time.Millisecond {
		t.Errorf("ids are %v ahead after crashes of stores that ran long", ahead)
	}
	runtime.KeepAlive(mem)
}

// TestIDsWithoutUse: a store that gives out no id writes none down.
func TestIDsWithoutUse(t *testing.T) {
	o := testOptions("q", vfs.NewMem())
	for i := range 2 {
		s := mustOpen(t, o)
		if i > 0 {
			if mark, err := s.mark(); err != nil || mark != 0 || s.ids.wait != nil {
				t.Errorf("mark %v, %v", mark, err)
			}
		}
		s.Close()
	}
}

// TestIDMarks gives out ids of a store that crashes ten thousand times, with a
// clock that does not move, that creeps, and that goes back.
func TestIDMarks(t *testing.T) {
	for _, c := range []struct {
		name string
		step time.Duration // of the clock, between two crashes
	}{{"still", 0}, {"slow", 50 * time.Microsecond}, {"quick", 20 * time.Millisecond}, {"back", -time.Millisecond}} {
		t.Run(c.name, func(t *testing.T) {
			start := time.UnixMilli(1_790_000_000_000)
			now, mark, last := start, store.ID(0), store.ID(0)
			for range 10_000 {
				i := ids{opened: now, last: max(mark, 1) - 1, durable: mark}
				for range 5 {
					id, m := i.next(now)
					if id <= last {
						t.Fatalf("id %v after %v, mark %v", id, last, mark)
					}
					if id >= i.durable {
						i.durable, mark = m, m
					}
					i.last, last = id, id
					now = now.Add(c.step / 5)
				}
			}
			if ahead := mark.Time().Sub(later(start, now)); ahead > time.Second {
				t.Errorf("ids are %v ahead", ahead)
			}
		})
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
