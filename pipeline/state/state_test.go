package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"
)

// hand is a clock that is moved by hand.
type hand struct{ ns atomic.Int64 }

func newHand() *hand {
	h := new(hand)
	h.ns.Store(time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC).UnixNano())
	return h
}

func (h *hand) now() time.Time           { return time.Unix(0, h.ns.Load()) }
func (h *hand) forward(by time.Duration) { h.ns.Add(int64(by)) }

// log keeps what was logged.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// options are those of a store that writes when it is told to.
func options(fs vfs.FS, h *hand) (Options, *logged) {
	l := new(logged)
	return Options{Dir: "/state", FS: fs, Now: h.now, Every: time.Hour, Step: MaxTTL, Log: slog.New(slog.NewTextHandler(l, nil))}, l
}

func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t testing.TB, p *Space, key, value string, ttl time.Duration) {
	t.Helper()
	if err := p.Put(context.Background(), key, []byte(value), ttl); err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
}

func want(t testing.TB, p *Space, key, value string) {
	t.Helper()
	v, ok, err := p.Get(context.Background(), key)
	if err != nil || !ok || string(v) != value {
		t.Fatalf("%q is %q %v %v, want %q", key, v, ok, err, value)
	}
}

func wantNone(t testing.TB, p *Space, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if v, ok, err := p.Get(context.Background(), key); err != nil || ok {
			t.Fatalf("%q is %q %v %v, want none", key, v, ok, err)
		}
	}
}

func flush(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSpaces(t *testing.T) {
	h := newHand()
	o, _ := options(vfs.NewMem(), h)
	s := open(t, o)
	a, b := s.Space("a"), s.Space("ab")
	put(t, a, "bk", "1", time.Hour)
	put(t, b, "k", "2", time.Hour)
	for range 2 { // from memory, then from the database
		want(t, a, "bk", "1")
		want(t, b, "k", "2")
		wantNone(t, a, "k")
		wantNone(t, b, "bk")
		flush(t, s)
	}
	put(t, a, "bk", "", time.Hour)
	want(t, a, "bk", "")
	if err := b.Delete(context.Background(), "k"); err != nil {
		t.Fatal(err)
	}
	wantNone(t, b, "k")
	closeStore(t, s)
	s = open(t, o)
	want(t, s.Space("a"), "bk", "")
	wantNone(t, s.Space("ab"), "k")
	for name, err := range map[string]error{
		"no key":      s.Space("a").Put(context.Background(), "", nil, time.Hour),
		"long key":    s.Space("a").Put(context.Background(), strings.Repeat("k", MaxKey+1), nil, time.Hour),
		"long value":  s.Space("a").Put(context.Background(), "k", make([]byte, MaxValue+1), time.Hour),
		"no life":     s.Space("a").Put(context.Background(), "k", nil, 0),
		"no space":    s.Space("").Delete(context.Background(), "k"),
		"long space":  s.Space(strings.Repeat("k", MaxName+1)).Delete(context.Background(), "k"),
		"no time":     func() error { _, err := Open(Options{Dir: "x", Every: -1}); return err }(),
		"no bound":    func() error { _, err := Open(Options{Dir: "x", Entries: -1}); return err }(),
		"nowhere":     func() error { _, err := Open(Options{}); return err }(),
		"get, no key": func() error { _, _, err := s.Space("a").Get(context.Background(), ""); return err }(),
	} {
		if err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	closeStore(t, s)
	wantNone(t, s.Space("a"), "bk")
	if err := s.Space("a").Put(context.Background(), "k", nil, time.Hour); !errors.Is(err, ErrUnavailable) {
		t.Errorf("put after Close: %v", err)
	}
	if err := s.Flush(context.Background()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("flush after Close: %v", err)
	}
	closeStore(t, s)
}

// What has expired is not found, and the sweeper takes it from the disk.
func TestExpiry(t *testing.T) {
	h := newHand()
	o, _ := options(vfs.NewMem(), h)
	s := open(t, o)
	p := s.Space("a")
	put(t, p, "short", "1", time.Minute)
	put(t, p, "long", "2", 2*time.Hour)
	put(t, p, "longer", "3", time.Minute)
	flush(t, s)
	put(t, p, "longer", "4", time.Hour) // its index key stays where it was
	put(t, p, "shorter", "5", time.Hour)
	flush(t, s)
	put(t, p, "shorter", "6", time.Minute)
	h.forward(time.Minute)
	wantNone(t, p, "short", "shorter")
	flush(t, s)
	wantNone(t, p, "short", "shorter")
	if n, _ := p.Usage(); n != 4 {
		t.Errorf("%d entries before the sweep", n)
	}
	sweep(t, s)
	want(t, p, "long", "2")
	want(t, p, "longer", "4")
	if n, b := p.Usage(); n != 2 || b != int64(len("long2longer4")) {
		t.Errorf("%d entries, %d bytes after the sweep", n, b)
	}
	h.forward(time.Hour)
	sweep(t, s)
	wantNone(t, p, "longer")
	want(t, p, "long", "2")
	if n, _ := p.Usage(); n != 1 {
		t.Errorf("%d entries in the end", n)
	}
	if keys := indexKeys(t, s); keys != 1 {
		t.Errorf("%d index keys for one entry", keys)
	}
}

// sweep has the writer's own sweep run, in place of a tick.
func sweep(t testing.TB, s *Store) {
	t.Helper()
	flush(t, s)
	if err := s.w.sweep(); err != nil { // the writer sleeps: it has an hour's tick
		t.Fatal(err)
	}
}

// indexKeys counts the keys of the index.
func indexKeys(t testing.TB, s *Store) (n int) {
	t.Helper()
	it, err := s.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		if it.Key()[0] == indexKey {
			n++
		}
	}
	return n
}

// Where a space is full, what would expire soonest goes, and nothing else.
func TestBounds(t *testing.T) {
	h := newHand()
	o, l := options(vfs.NewMem(), h)
	o.Entries, o.Bytes = 100, 4000
	s := open(t, o)
	p, other := s.Space("a"), s.Space("b")
	put(t, other, "k", "v", time.Second)
	for i := range 60 {
		put(t, p, fmt.Sprintf("good%d", i), "", 36*24*time.Hour)
	}
	for i := range 2000 {
		put(t, p, fmt.Sprintf("new%d", i), "", time.Hour+time.Duration(i)*time.Second)
	}
	flush(t, s)
	if n, b := p.Usage(); n != 100 || b > 4000 {
		t.Errorf("%d entries, %d bytes", n, b)
	}
	for i := range 60 {
		want(t, p, fmt.Sprintf("good%d", i), "")
	}
	want(t, p, "new1999", "")
	want(t, p, "new1960", "")
	wantNone(t, p, "new1959", "new0")
	want(t, other, "k", "v")
	if n := strings.Count(l.String(), "is full"); n != 1 {
		t.Errorf("the log says %d times that it is full: %s", n, l)
	}
	for i := range 60 {
		put(t, p, fmt.Sprintf("good%d", i), strings.Repeat("v", 100), 36*24*time.Hour)
	}
	flush(t, s)
	if n, b := p.Usage(); b > 4000 || b < 3000 {
		t.Errorf("%d entries, %d bytes", n, b)
	}
	closeStore(t, s)
	s = open(t, o)
	if n, b := s.Space("a").Usage(); b > 4000 || n == 0 {
		t.Errorf("%d entries, %d bytes after a restart", n, b)
	}
}

// A store is a map that forgets. Counts and index agree with the entries at all
// times, over restarts.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type entry struct {
			value string
			until time.Time
		}
		h := newHand()
		o := Options{Dir: "/state", FS: vfs.NewMem(), Now: h.now, Every: time.Hour, Step: MaxTTL}
		s, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { s.Close() }()
		model := map[string]entry{}
		key := rapid.SampledFrom([]string{"a", "b", "c", "aa", "\x00", "\xff\xff"})
		ctx := context.Background()
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), rapid.StringN(0, 5, 5).Draw(t, "value")
				ttl := time.Duration(rapid.IntRange(1, 1000).Draw(t, "ttl")) * time.Second
				if err := s.Space("m").Put(ctx, k, []byte(v), ttl); err != nil {
					t.Fatal(err)
				}
				model[k] = entry{v, h.now().Add(ttl)}
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				if err := s.Space("m").Delete(ctx, k); err != nil {
					t.Fatal(err)
				}
				delete(model, k)
			},
			"wait":  func(t *rapid.T) { h.forward(time.Duration(rapid.IntRange(0, 400).Draw(t, "s")) * time.Second) },
			"flush": func(t *rapid.T) { s.Flush(ctx) },
			"sweep": func(t *rapid.T) {
				if err := errors.Join(s.Flush(ctx), s.w.sweep()); err != nil {
					t.Fatal(err)
				}
			},
			"restart": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if s, err = Open(o); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				maps.DeleteFunc(model, func(_ string, e entry) bool { return !h.now().Before(e.until) })
				for _, k := range []string{"a", "b", "c", "aa", "\x00", "\xff\xff"} {
					v, ok, err := s.Space("m").Get(ctx, k)
					if e, known := model[k]; err != nil || ok != known || ok && string(v) != e.value {
						t.Fatalf("%q is %q %v %v, want %+v %v", k, v, ok, err, e, known)
					}
				}
			},
		})
		var keys []string
		err = s.Space("m").Scan(ctx, "", "", func(e Entry) bool {
			keys = append(keys, e.Key)
			m := model[e.Key]
			if string(e.Value) != m.value || e.Left != m.until.Sub(h.now()) {
				t.Fatalf("%+v, want %+v", e, m)
			}
			return true
		})
		if want := slices.Sorted(maps.Keys(model)); err != nil || !slices.Equal(keys, want) {
			t.Fatalf("scan: %q %v, want %q", keys, err, want)
		}
		for range 2 { // what was moved is met again
			if err := s.w.sweep(); err != nil {
				t.Fatal(err)
			}
		}
		var bytes int64
		for k, e := range model {
			bytes += int64(len(k) + len(e.value))
		}
		if n, b := s.Space("m").Usage(); n != int64(len(model)) || b != bytes {
			t.Fatalf("usage %d %d, want %d %d", n, b, len(model), bytes)
		}
	})
}

func TestScan(t *testing.T) {
	h := newHand()
	o, _ := options(vfs.NewMem(), h)
	s := open(t, o)
	p := s.Space("a")
	for i := range 10 {
		put(t, p, fmt.Sprintf("k%d", i), "v", time.Duration(i+1)*time.Minute)
	}
	put(t, p, "l", "", time.Hour)
	h.forward(2 * time.Minute)
	scan := func(prefix, from string, max int) (keys []string) {
		t.Helper()
		if err := p.Scan(context.Background(), prefix, from, func(e Entry) bool {
			keys = append(keys, e.Key)
			return len(keys) < max
		}); err != nil {
			t.Fatal(err)
		}
		return keys
	}
	for _, c := range []struct {
		prefix, from string
		max          int
		want         string
	}{
		{"k", "", 3, "k2 k3 k4"},
		{"k", "k4", 3, "k5 k6 k7"},
		{"k", "k9", 3, ""},
		{"k", "a", 1, "k2"},
		{"", "k8", 9, "k9 l"},
		{"\xff", "", 9, ""},
	} {
		if got := strings.Join(scan(c.prefix, c.from, c.max), " "); got != c.want {
			t.Errorf("%q from %q: %s, want %s", c.prefix, c.from, got, c.want)
		}
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Scan(gone, "", "", func(Entry) bool { return true }); err == nil {
		t.Error("a scan for nobody")
	}
}

// The clock jumps a year, ahead and back, while the store runs and while it does
// not: nothing is wiped, and nothing lives for ever.
func TestClockJumps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, c := range map[string]struct{ jump, back time.Duration }{
		"ahead, and back": {year, -year}, "back, and ahead": {-year, year},
		"ahead": {year, 0}, "back": {-year, 0},
	} {
		t.Run(name, func(t *testing.T) {
			for _, restart := range []bool{false, true} {
				h := newHand()
				o, _ := options(vfs.NewMem(), h)
				o.Step = time.Hour
				s := open(t, o)
				put(t, s.Space("a"), "old", "v", 30*24*time.Hour)
				move := func(by time.Duration) {
					flush(t, s)
					h.forward(by)
					if restart {
						closeStore(t, s)
						s = open(t, o)
					}
					sweep(t, s)
				}
				move(c.jump)
				want(t, s.Space("a"), "old", "v")
				put(t, s.Space("a"), "new", "v", 30*24*time.Hour)
				move(c.back)
				want(t, s.Space("a"), "old", "v")
				want(t, s.Space("a"), "new", "v")
				for range 30 * 24 {
					h.forward(time.Hour)
					s.clock.read()
				}
				wantNone(t, s.Space("a"), "old", "new")
				sweep(t, s)
				if n, _ := s.Space("a").Usage(); n != 0 {
					t.Errorf("restart %v: %d entries are immortal", restart, n)
				}
			}
		})
	}
}

// A clock with a monotonic reading is believed by that.
func TestMonotonic(t *testing.T) {
	start := time.Now()
	now := start
	c := clock{now: func() time.Time { return now }, step: time.Hour, last: start, time: start.Unix() * int64(time.Second)}
	before := c.read()
	now = start.Add(time.Minute)
	if d := c.read() - before; d != 60 {
		t.Errorf("a minute is %d s", d)
	}
}

// After a crash the store is as it was a moment ago: what was flushed is there,
// and counts agree.
func TestCrash(t *testing.T) {
	for i := range 20 {
		h := newHand()
		fs := vfs.NewCrashableMem()
		o, _ := options(fs, h)
		s := open(t, o)
		p := s.Space("a")
		for k := range 50 {
			put(t, p, fmt.Sprintf("k%d", k), "v", time.Hour)
		}
		flush(t, s)
		for k := range 50 {
			put(t, p, fmt.Sprintf("k%d", k+25), "w", time.Hour)
		}
		if i%2 == 0 {
			if err := s.w.apply(); err != nil {
				t.Fatal(err)
			}
		}
		o.FS = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 5 * i, RNG: rand.New(rand.NewPCG(uint64(i), 1))})
		l := new(logged)
		o.Log = slog.New(slog.NewTextHandler(l, nil))
		after := open(t, o)
		got := map[string]string{}
		if err := after.Space("a").Scan(context.Background(), "", "", func(e Entry) bool {
			got[e.Key] = string(e.Value)
			return true
		}); err != nil {
			t.Fatal(err)
		}
		for k := range 50 {
			if v := got[fmt.Sprintf("k%d", k)]; v != "v" && v != "w" {
				t.Fatalf("k%d is %q after a crash", k, v)
			}
		}
		if n, _ := after.Space("a").Usage(); n != int64(len(got)) {
			t.Errorf("%d entries are counted, %d are there", n, len(got))
		}
		if l.String() != "" {
			t.Errorf("the log says %s", l)
		}
	}
}

func TestConcurrent(t *testing.T) {
	o, _ := options(vfs.NewMem(), newHand())
	o.Every, o.Entries, o.Now = time.Millisecond, 500, time.Now
	s := open(t, o)
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			p, ctx := s.Space(fmt.Sprint("s", g%2)), context.Background()
			for i := range 500 {
				key := fmt.Sprint(g, i)
				if err := p.Put(ctx, key, []byte(key), time.Hour); err != nil {
					t.Error(err)
				}
				if v, ok, err := p.Get(ctx, key); err != nil || ok && string(v) != key {
					t.Errorf("%q %v %v", v, ok, err)
				}
				switch {
				case i%100 == 0:
					if err := p.Scan(ctx, "", "", func(Entry) bool { return true }); err != nil {
						t.Error(err)
					}
				case i%7 == 0:
					if err := p.Delete(ctx, key); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	flush(t, s)
	for _, name := range []string{"s0", "s1"} {
		if n, _ := s.Space(name).Usage(); n > 500 || n < 400 {
			t.Errorf("%s has %d entries", name, n)
		}
	}
}
