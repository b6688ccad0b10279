package auth

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestHash(t *testing.T) {
	one, two := hashed(t, "secret", Cost{}), hashed(t, "secret", Cost{})
	if one == two || !strings.HasPrefix(one, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("%s %s", one, two)
	}
	h := must(parseHash(one, mostCost()))(t)
	if !h.fits("secret") || h.fits("secrets") || h.fits("") || h.String() != one {
		t.Error(one)
	}
	for _, bad := range []string{"", strings.Repeat("x", MaxPassword+1), "a\x00b"} {
		if _, err := Hash(bad, cheap); err == nil {
			t.Errorf("%q has a hash", bad)
		}
	}
	if _, err := Hash("x", Cost{Memory: 1 << 20}); err == nil {
		t.Error("a hash of 1 GiB")
	}
}

// Hashes that others made of "p\u00e4ssword": the reference implementation's
// command line (argon2 -id -e) twice, then doveadm pw -s ARGON2ID.
func TestHashesOfOthers(t *testing.T) {
	for _, phc := range []string{
		"$argon2id$v=19$m=64,t=2,p=4$c29tZXNhbHQxNmJ5dGVzIQ$yXGZDrkbwDPS7Yej9Siu91ZGjYkhFCjj",
		"$argon2id$v=19$m=19456,t=3,p=1$c29tZXNhbHQxNmJ5dGVzIQ$wHsqU8cH/spkI816HpeyTYP8hTaN7vpJheHWhP0FocM",
		"$argon2id$v=19$m=65536,t=3,p=1$46e0J2muWXFA6jI1iBvzUg$BjALZ0zj4a2sEX6hl+nWVHU1LuzVUEGdZylzlopnrsI",
	} {
		h := must(parseHash(phc, mostCost()))(t)
		if !h.fits("p\u00e4ssword") || h.fits("password") || h.String() != phc {
			t.Error(phc)
		}
	}
}

func TestParseUsers(t *testing.T) {
	h := hashed(t, "x", cheap)
	for _, c := range []struct{ name, text, want string }{
		{"cut", "a:" + h, "users:1: the last line does not end"},
		{"no colon", "# c\n\nalice\n", "users:3: a line must look like name:hash"},
		{"no name", ":" + h + "\n", `users:1: "" is no name`},
		{"blank", "a b:" + h + "\n", "is no name for a user"},
		{"control", "a\x1b:" + h + "\n", "is no name for a user"},
		{"not UTF-8", "a\xff:" + h + "\n", "is no name for a user"},
		{"CR", "a:" + h + "\r\n", "key is not base64"},
		{"twice", "a@Example.org:" + h + "\n#\na@example.ORG:" + h + "\n", `users:3: "a@example.org" stands on line 1 already`},
		{"kind", "a:$argon2i$v=19$m=8,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA\n", "must look like $argon2id$v=19"},
		{"crypt", "a:$6$salt$hash\n", "must look like $argon2id$v=19"},
		{"plain", "a:secret\n", "must look like $argon2id$v=19"},
		{"memory", strings.Replace("a:"+h+"\n", "m=8", "m=999999999", 1), "asks for more memory than the 262144 KiB"},
		{"overflow", strings.Replace("a:"+h+"\n", "m=8", "m=99999999999", 1), "its part 1 does not"},
		{"passes", strings.Replace("a:"+h+"\n", "t=1", "t=11", 1), "more than the 10 passes"},
		{"lanes", strings.Replace("a:"+h+"\n", "m=8,t=1,p=1", "m=1000,t=1,p=17", 1), "more than the 16 lanes"},
		{"no lanes", strings.Replace("a:"+h+"\n", "p=1", "p=0", 1), "is no cost"},
		{"too little", strings.Replace("a:"+h+"\n", "m=8", "m=7", 1), "is no cost"},
		{"zeros", strings.Replace("a:"+h+"\n", "m=8", "m=08", 1), "its part 1 does not"},
		{"order", strings.Replace("a:"+h+"\n", "m=8,t=1", "t=1,m=8", 1), "its part 1 does not"},
		{"more", strings.Replace("a:"+h+"\n", "p=1", "p=1,x=1", 1), "must look like m="},
		{"no salt", "a:$argon2id$v=19$m=8,t=1,p=1$$AAAAAAAAAAAAAAAAAAAAAA\n", "salt has 0 bytes"},
		{"short key", "a:$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA$AAAA\n", "key has 3 bytes"},
		{"padding", "a:$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA=$AAAAAAAAAAAAAAAAAAAAAA\n", "salt is not base64"},
		{"odd bits", "a:$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAB$AAAAAAAAAAAAAAAAAAAAAA\n", "salt is not base64"},
		{"long", "a:" + strings.Repeat("x", maxLine) + "\n", "the line has more than"},
		{"long name", strings.Repeat("x", MaxUser+1) + ":" + h + "\n", "is no name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseUsers("users", []byte(c.text), usualBounds())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), h[len(h)-20:]) {
				t.Errorf("the error holds the hash: %v", err)
			}
		})
	}
	all := strings.Repeat("bad\n", 50)
	if _, err := parseUsers("users", []byte(all), usualBounds()); err == nil || strings.Count(err.Error(), "users:") != maxComplaints {
		t.Error(err)
	}
	within := usualBounds()
	within.users = 2
	if _, err := parseUsers("users", []byte("a:"+h+"\nb:"+h+"\nc:"+h+"\n"), within); err == nil || err.Error() != "users:3: more than 2 users" {
		t.Error(err)
	}
	within.size = 10
	if _, err := parseUsers("users", []byte("a:"+h+"\n"), within); err == nil {
		t.Error("too large")
	}
}

// clock is a clock that stands.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	save(t, path, "# people\nalice@example.org:"+hashed(t, "a", cheap)+"\n\nBob:"+hashed(t, "b", cheap)+"\nzoë@例え.jp:"+hashed(t, "ü ", cheap)+"\n")
	f := must(OpenFile(FileOptions{Path: path, Log: new(log).logger()}))(t)
	for _, c := range []struct{ user, password, name string }{
		{"alice@example.org", "a", "alice@example.org"},
		{"alice@EXAMPLE.org", "a", "alice@example.org"},
		{"Alice@example.org", "a", ""},
		{"alice", "a", ""},
		{"alice@example.org", "b", ""},
		{"alice@example.org", "A", ""},
		{"alice@example.org", "", ""},
		{"alice@example.org", "a\x00", ""},
		{"Bob", "b", "Bob"},
		{"bob", "b", ""},
		{"zoë@例え.jp", "ü ", "zoë@例え.jp"},
		{"zoë@例え.jp", "ü", ""},
		{"", "b", ""},
		{"# people\nalice@example.org", "a", ""},
		{"\xff", "a", ""},
		{strings.Repeat("x", MaxUser+1), "a", ""},
		{"Bob", strings.Repeat("b", MaxPassword+1), ""},
	} {
		name, err := f.Authenticate(bg, from("192.0.2.1"), c.user, c.password)
		if name != c.name || (err == nil) != (c.name != "") {
			t.Errorf("%q %q: %q %v", c.user, c.password, name, err)
		}
		if c.name == "" {
			is535(t, err)
		}
	}
}

func TestFileIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "users")
	alice, bob := "alice:"+hashed(t, "a", cheap)+"\n", "bob:"+hashed(t, "b", cheap)+"\n"
	save(t, path, alice)
	c, l := &clock{t: time.Now()}, &log{}
	f := must(OpenFile(FileOptions{Path: path, Log: l.logger(), Now: c.now}))(t)
	in := func(user, password string) bool {
		t.Helper()
		_, err := f.Authenticate(bg, from("192.0.2.1"), user, password)
		if err != nil {
			is535(t, err)
		}
		return err == nil
	}
	if !in("alice", "a") || in("bob", "b") {
		t.Error("the first file")
	}
	save(t, path, alice+bob)
	if in("bob", "b") {
		t.Error("the file was looked at twice in a second")
	}
	c.add(time.Second)
	if !in("bob", "b") || !strings.Contains(l.take(), "users=2 before=1") {
		t.Error("the file was not read again")
	}
	// One that is wrong changes nothing, and is told once.
	for _, wrong := range []func(){
		func() { save(t, path, alice+"bob\n") },
		func() { check(t, os.Remove(path)) },
		func() { check(t, syscall.Mkfifo(path, 0o600)) },
	} {
		wrong()
		for range 3 {
			c.add(time.Second)
			if !in("bob", "b") {
				t.Error("a wrong file took bob away")
			}
		}
		if got := l.take(); strings.Count(got, "level=ERROR") != 1 || !strings.Contains(got, path) {
			t.Error(got)
		}
	}
	check(t, os.Remove(path))
	save(t, path, bob)
	c.add(time.Second)
	if in("alice", "a") || !in("bob", "b") || !strings.Contains(l.take(), "level=INFO") {
		t.Error("the file that is right again was not read")
	}
	// The same size and times, another file: what a rename makes of it.
	info := must(os.Stat(path))(t)
	other := filepath.Join(dir, "other")
	save(t, other, "bob:"+hashed(t, "c", cheap)+"\n")
	check(t, os.Chtimes(other, info.ModTime(), info.ModTime()))
	check(t, os.Rename(other, path))
	c.add(time.Hour)
	if !in("bob", "c") {
		t.Error("another file of the same size and time was not read")
	}
	time.Sleep(20 * time.Millisecond) // the file system's clock has ticks
	check(t, os.Chmod(path, 0o644))
	c.add(time.Hour)
	in("bob", "c")
	if got := l.take(); !strings.Contains(got, "chmod o=") {
		t.Error(got)
	}
}

// A change within the tick of the file system's clock shows in no time and no
// size; a file that has just changed is therefore read once more.
func TestFileChangedTwiceAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	save(t, path, "a:"+hashed(t, "1", cheap)+"\n")
	c := &clock{t: time.Now()}
	f := must(OpenFile(FileOptions{Path: path, Log: new(log).logger(), Now: c.now}))(t)
	save(t, path, "a:"+hashed(t, "2", cheap)+"\n")
	f.id = identify(must(os.Stat(path))(t)) // as if the second change were in the same tick
	c.add(time.Second)
	_, err := f.Authenticate(bg, from("192.0.2.1"), "a", "2")
	check(t, err)
}

func TestOpenFileErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	if _, err := OpenFile(FileOptions{Path: path}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	save(t, path, "x\n")
	if _, err := OpenFile(FileOptions{Path: path}); err == nil || !strings.Contains(err.Error(), path+":1: ") {
		t.Error(err)
	}
	save(t, path, strings.Repeat("#\n", 100))
	if _, err := OpenFile(FileOptions{Path: path, MaxSize: 100}); err == nil || !strings.Contains(err.Error(), "more than 100 bytes") {
		t.Error(err)
	}
}

// Unknown users cost what known ones cost: each one a line's cost, always the
// same, and none an unusual one.
func TestStrangersCost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	save(t, path, "")
	l := &log{}
	f := must(OpenFile(FileOptions{Path: path, Log: l.logger()}))(t)
	if h := f.stranger(f.users.Load(), "x"); h.cost != UsualCost() || len(h.key) != newKey || !strings.Contains(l.take(), "has no users") {
		t.Error(h)
	}
	other := Cost{Memory: 16, Passes: 3, Lanes: 2}
	save(t, path, "a:"+hashed(t, "1", cheap)+"\nb:"+hashed(t, "1", other)+"\nc:"+hashed(t, "1", other)+"\n")
	f = must(OpenFile(FileOptions{Path: path, Log: l.logger()}))(t)
	seen := map[Cost]int{}
	for i := range 3000 {
		name := fmt.Sprint("user", i)
		h := f.stranger(f.users.Load(), name)
		if again := f.stranger(f.users.Load(), name); again.cost != h.cost {
			t.Fatal("a stranger's cost changes")
		}
		seen[h.cost]++
	}
	if len(seen) != 2 || seen[cheap] < 800 || seen[cheap] > 1200 {
		t.Error(seen)
	}
}

// Logins wait for a place to hash in, and no longer than they may.
func TestFileConcurrency(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	save(t, path, "a:"+hashed(t, "1", cheap)+"\n")
	f := must(OpenFile(FileOptions{Path: path, Concurrency: 1, Log: new(log).logger()}))(t)
	check(t, f.hashing.take(bg))
	ctx, cancel := context.WithCancel(bg)
	cancel()
	_, err := f.Authenticate(ctx, from("192.0.2.1"), "a", "1")
	is454(t, err, "waiting for one of 1 others")
	done := make(chan error)
	go func() {
		_, err := f.Authenticate(bg, from("192.0.2.1"), "a", "1")
		done <- err
	}()
	f.hashing.give()
	check(t, <-done)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := f.Authenticate(bg, from("192.0.2.1"), "a", "1"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func FuzzParseUsers(f *testing.F) {
	f.Add([]byte("# c\n\nalice@Example.org:$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA\n"))
	f.Add([]byte("a:$argon2id$v=19$m=08,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA\nb"))
	f.Add([]byte("a:$argon2id$v=19$m=4294967295,t=4294967295,p=255$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA\n"))
	within := usualBounds()
	within.users = 50
	f.Fuzz(func(t *testing.T, text []byte) {
		u, err := parseUsers("users", text, within)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "users:") && !strings.HasPrefix(err.Error(), "users has") {
				t.Errorf("%v does not say where", err)
			}
			return
		}
		if len(u.all) != len(u.costs) || len(u.all) > within.users {
			t.Errorf("%d users, %d costs", len(u.all), len(u.costs))
		}
		// What was taken says the same when it is written down again.
		var again strings.Builder
		for name, h := range u.all {
			if name == "" || name != Normal(name) || h.cost.check(within.cost) != nil {
				t.Errorf("%q %+v", name, h.cost)
			}
			again.WriteString(name + ":" + h.String() + "\n")
		}
		v, err := parseUsers("users", []byte(again.String()), within)
		if err != nil || len(v.all) != len(u.all) {
			t.Fatalf("%v: %q", err, again.String())
		}
		for name, h := range u.all {
			if v.all[name].String() != h.String() {
				t.Errorf("%q changed", name)
			}
		}
	})
}

// BenchmarkVerify is what a login costs, beside the bare hash of the same cost:
// the time is Argon2's, B/op the memory that each of the logins under way holds.
// The ratios of known and unknown users show what a client could learn.
func BenchmarkVerify(b *testing.B) {
	for _, c := range []struct {
		name string
		cost Cost
	}{{"usual-19MiB-2", UsualCost()}, {"rfc9106-64MiB-3", Cost{Memory: 64 << 10, Passes: 3, Lanes: 4}}, {"least-8KiB-1", cheap}} {
		path := filepath.Join(b.TempDir(), "users")
		save(b, path, "a:"+hashed(b, "1", c.cost)+"\n")
		f := must(OpenFile(FileOptions{Path: path}))(b)
		floor := 0.0
		b.Run(c.name+"/floor-argon2", func(b *testing.B) {
			salt := make([]byte, newSalt)
			for b.Loop() {
				c.cost.derive("1", salt, newKey)
			}
			floor = float64(b.Elapsed()) / float64(b.N)
		})
		for _, user := range []string{"a", "unknown"} {
			b.Run(c.name+"/"+user, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := f.Authenticate(bg, from("192.0.2.1"), user, "1"); (err == nil) != (user == "a") {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed())/float64(b.N)/floor, "x-floor")
			})
		}
	}
}
