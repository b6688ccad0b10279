package host

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/filtertest"
)

// TestSwap changes a plugin under way: its filters of before have the old one,
// until the last is closed; one that cannot be started changes nothing.
func TestSwap(t *testing.T) {
	r := newRig(t)
	s := r.settings()
	old, err := r.try(t, s, do("tag"))
	if err != nil {
		t.Fatal(err)
	}
	first := r.Status()[0].PIDs[0]
	same := r.filter(t, s, do("tag"))
	if st := r.Status(); len(st) != 1 || st[0].PIDs[0] != first {
		t.Fatalf("the same plugin was started again: %+v", st)
	}
	bad := r.settings("exit")
	if _, err := r.Kind(bad); err == nil {
		t.Fatal("a plugin that ends at once can be used")
	}
	r.Settle(false)
	if st := r.Status(); len(st) != 1 || st[0].Old {
		t.Fatalf("after one that failed: %+v", st)
	}
	s.Env = map[string]string{"CHANGED": "1"}
	fresh := r.filter(t, s, do("tag"))
	if st := r.Status(); len(st) != 2 {
		t.Fatalf("after the change: %+v", st)
	}
	m := r.read(t, 10)
	for _, f := range []any{old, same, fresh} {
		if _, err := r.ask(t, f.(*filter), m, 10*time.Second); err != nil {
			t.Error(err)
		}
	}
	old.(io.Closer).Close()
	same.(io.Closer).Close()
	soon(t, "the old one ends", func() bool { st := r.Status(); return len(st) == 1 && !st[0].Old })
	if _, err := r.ask(t, fresh, m, 10*time.Second); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join("/proc", itoa(first))); err == nil {
		t.Error("the old process runs")
	}
}

// TestSwapUnderFlow changes a plugin again and again while it is asked: no call
// fails.
func TestSwapUnderFlow(t *testing.T) {
	r := newRig(t)
	var current atomic.Pointer[filter]
	use := func(n int) {
		s := r.settings()
		s.Env = map[string]string{"N": itoa(n)}
		kind, err := r.Kind(s)
		if err != nil {
			t.Fatal(err)
		}
		f, err := kind.New(r.env(t), filtertest.Decode(do("tag")))
		if err != nil {
			t.Fatal(err)
		}
		r.Settle(true)
		if old := current.Swap(f.(*filter)); old != nil {
			// A generation is closed with its last session; those of the flow are
			// shorter than this.
			t.Cleanup(func() { old.Close() })
			time.AfterFunc(500*time.Millisecond, func() { old.Close() })
		}
	}
	use(0)
	m := r.read(t, 100_000)
	var flow sync.WaitGroup
	stop := make(chan struct{})
	var asked atomic.Int64
	for range 4 {
		flow.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := r.ask(t, current.Load(), m, 20*time.Second); err != nil {
					t.Error(err)
				}
				asked.Add(1)
			}
		})
	}
	for n := range 4 {
		before := asked.Load()
		soon(t, "calls", func() bool { return asked.Load() > before+20 })
		use(n + 1)
	}
	close(stop)
	flow.Wait()
	current.Load().Close()
}

// TestOptions has options refused where they are wrong.
func TestOptions(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		args         []string
		config, want string
	}{
		{nil, "dou = 1\n", "dou"},
		{nil, "do = 1\n", "test.toml:1"},
		{nil, `do = "wrong"` + "\n", "wrong is? wrong"},
		{[]string{"required"}, "", "it must be written"},
		{[]string{"required"}, `do = "tag"` + "\n", ""},
	} {
		f, err := r.try(t, r.settings(c.args...), c.config)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.config, err, c.want)
		}
		if f != nil {
			f.(io.Closer).Close()
		}
	}
	_, err := r.try(t, r.settings(), `do = "wrong"`+"\n")
	var keys []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		if k, ok := e.(interface{ Key() string }); ok {
			keys = append(keys, k.Key())
		}
	}
	if len(keys) != 1 || keys[0] != "do" {
		t.Errorf("keys %q", keys)
	}
}

// TestLeaks makes ten thousand calls, with failures among them, and looks for
// what is left.
func TestLeaks(t *testing.T) {
	r := newRig(t)
	s := r.settings()
	f := r.filter(t, s, do("tag"))
	large := r.read(t, 100_000)
	small := r.read(t, 100)
	for range 100 {
		if _, err := r.ask(t, f, large, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	before := count(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range filtertest.Soak() / 8 {
				m := small
				if i%10 == 0 {
					m = large
				}
				if _, err := r.ask(t, f, m, 20*time.Second); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for range 5 {
		bad := r.filter(t, s, do("die"))
		if _, err := r.ask(t, bad, small, 10*time.Second); err == nil {
			t.Error("it does not die")
		}
		bad.(io.Closer).Close()
		soon(t, "works again", func() bool { _, err := r.ask(t, f, small, 10*time.Second); return err == nil })
	}
	var after counts
	soon(t, "nothing is left", func() bool {
		after = count(t)
		return after.files <= before.files+1 && after.goroutines <= before.goroutines+2 && len(r.left(t)) == 1
	})
	t.Logf("before %+v, after %+v", before, after)
}

type counts struct{ files, goroutines int }

func count(t *testing.T) counts {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return counts{len(fds), goroutines()}
}

// TestNewContent takes a program of the same name for another one if its content
// is, and a script that an argument names likewise.
func TestNewContent(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	program, script := filepath.Join(dir, "plugin"), filepath.Join(dir, "script")
	copyFile(t, r.self, program)
	if err := os.WriteFile(script, []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := r.settings()
	s.Command = []string{program, "say=x"}
	r.filter(t, s, do("tag"))
	r.filter(t, s, do("tag"))
	if n := len(r.Status()); n != 1 {
		t.Errorf("%d versions of the same program", n)
	}
	fresh := program + ".new"
	copyFile(t, r.self, fresh)
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("another"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.Rename(fresh, program); err != nil {
		t.Fatal(err)
	}
	r.filter(t, s, do("tag"))
	if n := len(r.Status()); n != 2 {
		t.Errorf("%d versions after the program was replaced", n)
	}
	s.Command = []string{program, script}
	before, err := s.fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, []byte("two"), 0o644); err != nil {
		t.Fatal(err)
	}
	if after, err := s.fingerprint(); err != nil || after == before {
		t.Errorf("a script's change is not noticed: %v", err)
	}
}
