package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A store that is damaged is set aside, whatever file is meant, and an empty one
// takes its place.
func TestDamaged(t *testing.T) {
	garble := func(b []byte) []byte { return bytes.Repeat([]byte("damage"), len(b)/6+1)[:len(b)] }
	for _, c := range []struct {
		name, file string
		damage     func([]byte) []byte
		// late is set where the damage is met when an entry is read.
		late bool
	}{
		{"manifest", "MANIFEST-*", garble, false},
		{"empty manifest", "MANIFEST-*", func([]byte) []byte { return nil }, false},
		{"no manifest", "MANIFEST-*", nil, false},
		{"marker", "marker.manifest.*", nil, false},
		{"no options", "OPTIONS-*", garble, false},
		{"no table", "*.sst", nil, false},
		{"short table", "*.sst", func(b []byte) []byte { return b[:len(b)/2] }, false},
		{"table", "*.sst", func(b []byte) []byte { return append(garble(b[:len(b)-200]), b[len(b)-200:]...) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, l := options(nil, newHand())
			o.Dir = filepath.Join(t.TempDir(), "state")
			s := open(t, o)
			for i := range 1000 {
				put(t, s.Space("a"), fmt.Sprintf("k%d", i), strings.Repeat("v", 100), time.Hour)
			}
			closeStore(t, s)
			files, err := filepath.Glob(filepath.Join(o.Dir, c.file))
			if err != nil || len(files) == 0 {
				t.Fatalf("there is no %s: %v", c.file, err)
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err == nil && c.damage == nil {
					err = os.Remove(f)
				} else if err == nil {
					err = os.WriteFile(f, c.damage(b), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			s = open(t, o)
			if c.late {
				if _, ok, _ := s.Space("a").Get(context.Background(), "k500"); ok {
					t.Error("what is damaged is found")
				}
				closeStore(t, s)
				s = open(t, o)
			}
			wantNone(t, s.Space("a"), "k500")
			put(t, s.Space("a"), "k", "v", time.Hour)
			flush(t, s)
			want(t, s.Space("a"), "k", "v")
			aside, _ := filepath.Glob(o.Dir + asideMark + "*")
			if c.name != "marker" && len(aside) != 1 { // without it the database is one that was never made
				t.Errorf("set aside: %q; the log says %s", aside, l)
			}
		})
	}
}

// One that was set aside before gives way to the next.
func TestDamagedAgain(t *testing.T) {
	h := newHand()
	fs := vfs.NewMem()
	o, l := options(fs, h)
	for range 3 {
		s := open(t, o)
		s.noteDamage(errRecord)
		s.noteDamage(errRecord)
		closeStore(t, s)
		h.forward(time.Second)
	}
	closeStore(t, open(t, o))
	names, err := fs.List("/")
	if err != nil || len(names) != 2 {
		t.Errorf("%q %v", names, err)
	}
	if n := strings.Count(l.String(), "has been set aside"); n != 3 {
		t.Errorf("the log tells %d times: %s", n, l)
	}
}

// What cannot be opened for another reason is left as it is.
func TestLocked(t *testing.T) {
	fs := vfs.NewMem()
	o, _ := options(fs, newHand())
	s := open(t, o)
	put(t, s.Space("a"), "k", "v", time.Hour)
	flush(t, s)
	o2, l := options(fs, newHand())
	second := open(t, o2)
	wantNone(t, second.Space("a"), "k")
	if err := second.Space("a").Put(context.Background(), "k", nil, time.Hour); !errors.Is(err, ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
	if err := second.Space("a").Scan(context.Background(), "", "", nil); !errors.Is(err, ErrUnavailable) {
		t.Errorf("scan: %v", err)
	}
	if !strings.Contains(l.String(), "another process has it") {
		t.Errorf("the log says %s", l)
	}
	closeStore(t, second)
	want(t, s.Space("a"), "k", "v")
	closeStore(t, s)
	want(t, open(t, o).Space("a"), "k", "v")
}

// badFS fails at files of some names while it is told to.
type badFS struct {
	vfs.FS
	match atomic.Pointer[string]
	err   error
}

func (f *badFS) fail(name string) error {
	if m := f.match.Load(); m != nil && strings.Contains(f.PathBase(name), *m) {
		return &os.PathError{Op: "write", Path: name, Err: f.err}
	}
	return nil
}

func (f *badFS) set(match string) { f.match.Store(&match) }

func (f *badFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.fail(name); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	return badFile{file, f, name}, nil
}

type badFile struct {
	vfs.File
	fs   *badFS
	name string
}

func (f badFile) Write(p []byte) (int, error) {
	if err := f.fs.fail(f.name); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f badFile) Sync() error {
	if err := f.fs.fail(f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f badFile) SyncData() error { return f.Sync() }

// A disk that is full for a while: the process lives, what was put is found, and
// is written when there is room.
func TestDiskFull(t *testing.T) {
	fs := &badFS{FS: vfs.NewMem(), err: syscall.ENOSPC}
	o, l := options(fs, newHand())
	o.Every = time.Millisecond
	s := open(t, o)
	p := s.Space("a")
	fs.set(".sst")
	put(t, p, "k", "v", time.Hour)
	until(t, func() bool { return strings.Contains(l.String(), "cannot be written now") })
	want(t, p, "k", "v")
	// More than is held in memory is refused, when the caller's time is over.
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	var err error
	for i := 0; err == nil; i++ {
		if err = p.Put(ctx, fmt.Sprint(i), make([]byte, MaxValue), time.Hour); i > 2000 {
			t.Fatal("there is no bound to what waits")
		}
	}
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put: %v", err)
	}
	fs.set("no such file")
	until(t, func() bool { return strings.Contains(l.String(), "is written again") })
	put(t, p, "k2", "v2", time.Hour)
	closeStore(t, s)
	s = open(t, o)
	want(t, s.Space("a"), "k", "v")
	want(t, s.Space("a"), "k2", "v2")
}

// A database that cannot go on is given up, and the process goes on.
func TestFatal(t *testing.T) {
	fs := &badFS{FS: vfs.NewMem(), err: syscall.EIO}
	o, l := options(fs, newHand())
	s := open(t, o)
	p := s.Space("a")
	put(t, p, "k", "v", time.Hour)
	flush(t, s)
	want(t, p, "k", "v")
	fs.set("MANIFEST")
	put(t, p, "k2", "v", time.Hour)
	if err := s.Flush(context.Background()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("flush: %v", err)
	}
	wantNone(t, p, "k")
	if err := p.Put(context.Background(), "k3", nil, time.Hour); !errors.Is(err, ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
	if err := p.Delete(context.Background(), "k3"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("delete: %v", err)
	}
	if !strings.Contains(l.String(), "cannot be kept any more") {
		t.Errorf("the log says %s", l)
	}
	closeStore(t, s)
}

// One that cannot be made is of no use, and no reason not to start.
func TestCannotOpen(t *testing.T) {
	for _, match := range []string{"MANIFEST", "marker", "dbtmp"} {
		fs := &badFS{FS: vfs.NewMem(), err: syscall.ENOSPC}
		fs.set(match)
		o, l := options(fs, newHand())
		s := open(t, o)
		wantNone(t, s.Space("a"), "k")
		if err := s.Space("a").Put(context.Background(), "k", nil, time.Hour); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: put: %v; the log says %s", match, err, l)
		}
		closeStore(t, s)
	}
}

func until(t testing.TB, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("it does not come")
		}
	}
}

func TestKeys(t *testing.T) {
	for in, want := range map[string]string{"a": "b", "a\xff": "b", "\xff": "", "": ""} {
		if got := string(after([]byte(in))); got != want {
			t.Errorf("after %q is %q, want %q", in, got, want)
		}
	}
	if _, _, ok := splitData([]byte{dataKey, 9, 'a'}); ok {
		t.Error("a short key has a space")
	}
	if _, _, ok := splitIndex([]byte{1, 2}); ok {
		t.Error("a short key has a time")
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte{})
	f.Add(record{indexed: 1793600000, expiry: 1793600000, value: []byte("v")}.encode())
	f.Add(record{indexed: 1, expiry: 1 << 31}.encode())
	f.Add(encodePair(3, 400))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil {
			again, err := decodeRecord(r.encode())
			if err != nil || again.indexed != r.indexed || again.expiry != r.expiry || !bytes.Equal(again.value, r.value) || r.expiry < r.indexed {
				t.Errorf("%+v is %+v %v", r, again, err)
			}
		}
		if x, y, err := decodePair(b); err == nil {
			if x2, y2, err := decodePair(encodePair(x, y)); err != nil || x2 != x || y2 != y {
				t.Errorf("%d %d is %d %d %v", x, y, x2, y2, err)
			}
		}
	})
}
