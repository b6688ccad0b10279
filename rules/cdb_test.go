package rules_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/rules"
)

func writeCDB(t testing.TB, records ...rules.CDBRecord) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := rules.WriteCDB(&b, records); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openCDB(t testing.TB, data []byte) *rules.CDB {
	t.Helper()
	c, err := rules.OpenCDB(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func values1(t testing.TB, c *rules.CDB, key string) (all []string) {
	t.Helper()
	for v, err := range c.Values(key) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

// TestCDBModel: a database answers like the list it was made of.
func TestCDBModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2, 100, 5000} {
		var records []rules.CDBRecord
		model := map[string][]string{}
		for range n {
			key := fmt.Sprint("k", rnd.IntN(n)) + strings.Repeat("x", rnd.IntN(40))
			if rnd.IntN(50) == 0 {
				key = ""
			}
			value := strings.Repeat("v", rnd.IntN(300)) + fmt.Sprint(rnd.IntN(1e6))
			records = append(records, rules.CDBRecord{Key: key, Value: value})
			model[key] = append(model[key], value)
		}
		c := openCDB(t, writeCDB(t, records...))
		for key, want := range model {
			if got := values1(t, c, key); !slices.Equal(got, want) {
				t.Fatalf("%d records: %q: %q, want %q", n, key, got, want)
			}
			got, ok, err := c.Find([]byte(key), []byte("before "))
			if err != nil || !ok || string(got) != "before "+want[0] {
				t.Fatalf("%d records: %q: %q, %t, %v", n, key, got, ok, err)
			}
		}
		for i := range 1000 {
			key := fmt.Sprint("absent", i)
			if ok, err := c.Has(key); ok || err != nil {
				t.Fatalf("%q: %t, %v", key, ok, err)
			}
		}
		var all []rules.CDBRecord
		for r, err := range c.All() {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		if !slices.Equal(all, records) {
			t.Fatalf("%d records: All gives %d others", n, len(all))
		}
	}
}

func TestCDBMissAllocatesNothing(t *testing.T) {
	c := openCDB(t, writeCDB(t, rules.CDBRecord{Key: "example.org"}, rules.CDBRecord{Key: ".example.net"}))
	key, dst := []byte("nothing.example.com"), make([]byte, 0, 8)
	if n := testing.AllocsPerRun(1000, func() {
		if _, ok, err := c.Find(key, dst); ok || err != nil {
			t.Fatal(ok, err)
		}
		if ok, err := c.Has("a.b.example.com"); ok || err != nil {
			t.Fatal(ok, err)
		}
		if ok, err := c.Has("example.org"); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}); n > 0.1 { // the race detector drops a pool's buffers now and then
		if !raceEnabled {
			t.Errorf("%v allocations", n)
		}
	}
}

// TestCDBHostile: files that lie.
func TestCDBHostile(t *testing.T) {
	sound := writeCDB(t, rules.CDBRecord{Key: "key", Value: "value"})
	table := int(hashOf("key")%256) * 8
	tablePos := int(binary.LittleEndian.Uint32(sound[table:]))
	slot := tablePos
	for binary.LittleEndian.Uint32(sound[slot+4:]) == 0 {
		slot += 8
	}
	put := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	for name, change := range map[string]func([]byte) []byte{
		"empty":                   func(b []byte) []byte { return nil },
		"short header":            func(b []byte) []byte { return b[:2047] },
		"cut":                     func(b []byte) []byte { return b[:len(b)-1] },
		"table in the header":     put(table, 8),
		"table beyond the end":    put(table, uint32(len(sound))),
		"slots beyond the end":    put(table+4, 1<<31),
		"slots that overflow":     put(table+4, 1<<29+2),
		"record in the header":    put(slot+4, 16),
		"record beyond the end":   put(slot+4, 0xffffffff),
		"record at the end":       put(slot+4, uint32(len(sound)-4)),
		"key beyond the end":      put(2048, 0xffffffff),
		"value beyond the end":    put(2052, 0xfffffff0),
		"key and value that wrap": func(b []byte) []byte { return put(2052, 0xffffffff)(put(2048, 3)(b)) },
	} {
		b := change(bytes.Clone(sound))
		c, err := rules.OpenCDB(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			_, _, err = c.Find([]byte("key"), nil)
		}
		if !errors.Is(err, rules.ErrCDB) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A full table of another key's hash ends, and a file that becomes shorter is an error.
	full := bytes.Clone(sound)
	for at := tablePos; at < tablePos+16; at += 8 {
		put(at, hashOf("key"))(full)
		put(at+4, 2048)(full)
	}
	full[2048+8] = 'K'
	if ok, err := openCDB(t, full).Has("key"); ok || err != nil {
		t.Errorf("full table: %t, %v", ok, err)
	}
	c, err := rules.OpenCDB(bytes.NewReader(sound[:2050]), int64(len(sound)))
	if err == nil {
		_, err = c.Has("key")
	}
	if !errors.Is(err, rules.ErrCDB) {
		t.Errorf("shorter: %v", err)
	}
}

func TestCDBValueBound(t *testing.T) {
	big := strings.Repeat("v", rules.MaxCDBValue)
	c := openCDB(t, writeCDB(t, rules.CDBRecord{Key: "k", Value: big}))
	if v, ok, err := c.Find([]byte("k"), nil); !ok || err != nil || len(v) != len(big) {
		t.Errorf("the longest: %d, %t, %v", len(v), ok, err)
	}
	if err := rules.WriteCDB(&bytes.Buffer{}, []rules.CDBRecord{{Value: big + "v"}}); err == nil {
		t.Error("a longer one was written")
	}
}

func hashOf(key string) uint32 {
	h := uint32(5381)
	for _, c := range []byte(key) {
		h = h*33 ^ uint32(c)
	}
	return h
}

// clock is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// replace puts a file in place as tcprules does.
func replace(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

func TestCDBFileIsRereadOnChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts.cdb")
	if _, err := rules.OpenCDBFile(path, rules.FileOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("missing: %v", err)
	}
	now := &clock{now: time.Unix(1e9, 0)}
	var told []error
	replace(t, path, writeCDB(t, rules.CDBRecord{Key: "a"}))
	f, err := rules.OpenCDBFile(path, rules.FileOptions{Now: now.Now, Changed: func(err error) { told = append(told, err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	check := func(what, key string, problem bool, changes int) {
		t.Helper()
		if ok, err := f.Has(key); !ok || err != nil {
			t.Errorf("%s: %q: %t, %v", what, key, ok, err)
		}
		if err := f.Err(); (err != nil) != problem || err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Err %v", what, err)
		}
		if len(told) != changes {
			t.Errorf("%s: told %v", what, told)
		}
	}
	check("at first", "a", false, 0)
	replace(t, path, writeCDB(t, rules.CDBRecord{Key: "b"}))
	now.pass(999 * time.Millisecond)
	check("within the second", "a", false, 0)
	now.pass(time.Millisecond)
	check("after it", "b", false, 1)
	now.pass(time.Hour)
	check("unchanged", "b", false, 1)
	replace(t, path, []byte("rubbish"))
	now.pass(time.Second)
	check("broken", "b", true, 2)
	now.pass(time.Hour)
	check("still broken", "b", true, 2)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	now.pass(time.Second)
	check("gone", "b", true, 3)
	now.pass(time.Second)
	check("still gone", "b", true, 3)
	replace(t, path, writeCDB(t, rules.CDBRecord{Key: "c"}))
	now.pass(-time.Hour)
	check("back, and the clock was set back", "c", false, 4)
}

// TestCDBFileWhileItChanges: whoever asks meanwhile gets the old answer or the new one.
func TestCDBFileWhileItChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts.cdb")
	now := &clock{now: time.Unix(1e9, 0)}
	replace(t, path, writeCDB(t, rules.CDBRecord{Key: "k", Value: "0"}))
	f, err := rules.OpenCDBFile(path, rules.FileOptions{Now: now.Now})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			last := ""
			for {
				v, ok, err := f.Find([]byte("k"), nil)
				if !ok || err != nil || string(v) < last {
					t.Errorf("%q after %q, %t, %v", v, last, ok, err)
					return
				}
				last = string(v)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := 1; i < 10; i++ {
		replace(t, path, writeCDB(t, rules.CDBRecord{Key: "k", Value: fmt.Sprint(i)}))
		now.pass(time.Second)
		if _, _, err := f.Find([]byte("k"), nil); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzCDB: no file makes the reader panic or read without end, and what it finds by a key is among all records.
func FuzzCDB(f *testing.F) {
	f.Add(writeCDB(f), "k")
	f.Add(writeCDB(f, rules.CDBRecord{Key: "k", Value: "v"}, rules.CDBRecord{Key: "k", Value: "w"}), "k")
	f.Add(bytes.Repeat([]byte{0, 8, 0, 0, 1, 0, 0, 0}, 300), "\x00\x00")
	f.Fuzz(func(t *testing.T, data []byte, key string) {
		c, err := rules.OpenCDB(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			if !errors.Is(err, rules.ErrCDB) {
				t.Fatal(err)
			}
			return
		}
		n := 0
		for r, err := range c.All() {
			if err != nil && !errors.Is(err, rules.ErrCDB) {
				t.Fatal(err)
			}
			if n++; n > len(data)/8 || len(r.Key)+len(r.Value) > len(data) {
				t.Fatalf("%d records in %d bytes", n, len(data))
			}
		}
		v, ok, err := c.Find([]byte(key), nil)
		has, err2 := c.Has(key)
		if err != nil && ok || err == nil && ok != has || err2 != nil && !errors.Is(err2, rules.ErrCDB) {
			t.Fatalf("Find %t, %v; Has %t, %v", ok, err, has, err2)
		}
		n = 0
		for w, err := range c.Values(key) {
			if n == 0 && ok && (err != nil || w != string(v)) {
				t.Fatalf("first %q, %v, Find %q", w, err, v)
			}
			n++
		}
		if n > len(data)/8 {
			t.Fatalf("%d values in %d bytes", n, len(data))
		}
	})
}

// FuzzWriteCDB: what was written is read.
func FuzzWriteCDB(f *testing.F) {
	f.Add("a\x00b\x00a\x00c")
	f.Add("\x00\x00\x00")
	f.Fuzz(func(t *testing.T, text string) {
		parts := strings.Split(text, "\x00")
		var records []rules.CDBRecord
		model := map[string][]string{}
		for i := 0; i+1 < len(parts); i += 2 {
			records = append(records, rules.CDBRecord{Key: parts[i], Value: parts[i+1]})
			model[parts[i]] = append(model[parts[i]], parts[i+1])
		}
		c := openCDB(t, writeCDB(t, records...))
		for key, want := range model {
			if got := values1(t, c, key); !slices.Equal(got, want) {
				t.Fatalf("%q: %q, want %q", key, got, want)
			}
		}
	})
}
