package host

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/wire"
)

// TestOffers has a plugin offer connections by go-plugin's broker, which would
// keep each of them in memory.
func TestOffers(t *testing.T) {
	r := newRig(t)
	f := r.filter(t, r.settings(), do("offer"))
	before := goroutines()
	if _, err := r.ask(t, f, r.read(t, 10), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if n := goroutines() - before; n > 50 {
		t.Errorf("%d goroutines more", n)
	}
}

// TestListener has a plugin lead us to the socket of another user.
func TestListener(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lure := filepath.Join(dir, "plugin")
	if err := os.Symlink(filepath.Join(dir, "other"), lure); err != nil {
		t.Fatal(err)
	}
	for plugin, want := range map[uint32]string{uint32(os.Getuid()): "", uint32(os.Getuid() + 1): "listens on its socket"} {
		c, err := (&runner{place: &place{plugin: plugin}, address: lure}).dial(context.Background(), "")
		if got := errors.Join(err); want == "" && got != nil || want != "" && (got == nil || !strings.Contains(got.Error(), want)) {
			t.Errorf("of uid %d: %v", plugin, err)
		}
		if c != nil {
			c.Close()
		}
	}
}

// TestSocketsLink has a plugin put a link in the place of the directory of its
// sockets, while it is made: what the link points to stays closed to others.
func TestSocketsLink(t *testing.T) {
	room, victim := t.TempDir(), t.TempDir()
	if err := os.Chmod(victim, 0o700); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var swaps sync.WaitGroup
	swaps.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if os.Rename(filepath.Join(room, "1"), filepath.Join(room, "away"+itoa(n))) == nil {
				os.Symlink(victim, filepath.Join(room, "1")) //nolint:errcheck // it may be there again
			}
		}
	})
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		makeSockets(filepath.Join(room, "1"))  //nolint:errcheck // it may well fail
		os.RemoveAll(filepath.Join(room, "1")) //nolint:errcheck // as above
		info, err := os.Stat(victim)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o700 {
			t.Fatalf("the directory is open to others: %v", info.Mode())
		}
	}
	close(stop)
	swaps.Wait()
}

// TestSweepStuck has a plugin leave what cannot be removed: all else goes, and the
// daemon starts.
func TestSweepStuck(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"p/r/stuck", "p/b/1", "p/s/kept"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stuck, err := sweep(dir, func(path string) error {
		if filepath.Base(path) == "stuck" {
			return os.ErrPermission
		}
		return os.Remove(path)
	})
	if err != nil || !errors.Is(stuck, os.ErrPermission) {
		t.Fatal(stuck, err)
	}
	for name, there := range map[string]bool{"p/b/1": false, "p/s/kept": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUsedUpBusy replaces a process that has used its processor time while a call
// hangs in it: others do not wait for that.
func TestUsedUpBusy(t *testing.T) {
	r := newRig(t)
	s := r.settings()
	s.CPU = 2 * time.Second
	burn, f, hang := r.filter(t, s, do("burn")), r.filter(t, s, do("tag")), r.filter(t, s, do("hang"))
	m := r.read(t, 10)
	ctx, cancel := context.WithCancel(context.Background())
	var hanging sync.WaitGroup
	hanging.Go(func() {
		if _, err := hang.(*filter).withMessage(ctx, &wire.JudgeRequest{}, &question{stage: pipeline.AtMessage}, m); err == nil {
			t.Error("what hangs has answered")
		}
	})
	defer hanging.Wait()
	defer cancel()
	if _, err := r.ask(t, burn, m, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	old := f.(*filter).v.pool.all()[0]
	old.doubt()
	soon(t, "the old one gets no calls", func() bool {
		all := f.(*filter).v.pool.all()
		return len(all) == 0 || all[0] != old
	})
	if _, err := r.ask(t, f, m, 30*time.Second); err != nil {
		t.Error(err)
	}
}

// TestBodiesTogether has an answer with more new bodies than one may be long.
func TestBodiesTogether(t *testing.T) {
	r := newRig(t)
	f := r.filter(t, r.settings(), do("tag")).(*filter)
	half := bytes.Repeat([]byte("x"), maxBody/2)
	parts := []part{{body: true, inline: half}, {body: true, inline: half}}
	if _, err := f.verdict(context.Background(), parts); err == nil || !strings.Contains(err.Error(), "together") {
		t.Errorf("bodies of %d bytes, and a newline each: %v", 2*len(half), err)
	}
	for _, p := range parts {
		if p.verdict.Body != nil {
			t.Error("a body is held")
		}
	}
}

// TestConfiguredOnce asks a process that does not know a filter yet from several
// sides at once, and one whose answer to its options comes too late for the call:
// no other call fails of that.
func TestConfiguredOnce(t *testing.T) {
	r := newRig(t)
	f := r.filter(t, r.settings(), do("tag", "slow=150ms")).(*filter)
	m := r.read(t, 10)
	anew := func() {
		old := f.v.pool.all()[0]
		old.runner.process.Load().Kill()
		soon(t, "another process", func() bool { all := f.v.pool.all(); return len(all) == 1 && all[0] != old })
	}
	anew()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := r.ask(t, f, m, 20*time.Second); err != nil {
				t.Errorf("one of several at once: %v", err)
			}
		})
	}
	all.Wait()
	anew()
	if _, err := r.ask(t, f, m, 200*time.Millisecond); err == nil {
		t.Error("a call of 200 ms has waited for 300 ms")
	}
	if _, err := r.ask(t, f, m, 20*time.Second); err != nil {
		t.Errorf("after one whose time was over: %v", err)
	}
}
