package host

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
)

// down kills the plugin's process and waits until nothing more is expected of it.
func (r *rig) down(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(r.Status()[0].PIDs[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v := r.current["player"]
	soon(t, "it is given up for a while", func() bool {
		v.pool.mu.Lock()
		defer v.pool.mu.Unlock()
		return v.pool.broken != nil
	})
}

// reload makes a filter as a reload does; the configuration comes into force if
// there is no error.
func (r *rig) reload(t *testing.T, s Settings, config string) (pipeline.Filter, error) {
	t.Helper()
	kind, err := r.Kind(s)
	if err != nil {
		r.Settle(false)
		return nil, err
	}
	f, err := kind.New(r.env(t), filtertest.Decode(config))
	r.Settle(err == nil)
	return f, err
}

// TestReloadWhileDown reloads while a plugin cannot be started: what is as it was
// stays, as nobody could say that it has become wrong; other options are refused,
// until the plugin can be asked.
func TestReloadWhileDown(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "down")
	if err := os.Chmod(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	s := r.settings("unless=" + file)
	first := r.filter(t, s, do("tag"))
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.down(t)
	began := time.Now()
	same, err := r.reload(t, s, do("tag"))
	if err != nil {
		t.Fatalf("nothing has changed, and the reload is refused: %v", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	first.(*filter).Close()
	again, err := r.reload(t, s, do("tag"))
	if err != nil {
		t.Fatalf("a second reload is refused: %v", err)
	}
	same.(*filter).Close()
	m := r.read(t, 10)
	if _, err := r.ask(t, again, m, 10*time.Second); err == nil {
		t.Error("a plugin that is down judges")
	}
	if _, err := r.reload(t, s, do("nothing")); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("options that nobody has looked at: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	mended, err := r.reload(t, s, do("nothing"))
	if err != nil {
		t.Fatalf("it is mended, and a reload does not try it at once: %v", err)
	}
	if _, err := r.ask(t, mended, m, 10*time.Second); err != nil {
		t.Error(err)
	}
	again.(*filter).Close()
	mended.(*filter).Close()
	v := r.current["player"]
	if v.mu.Lock(); len(v.taken) > 0 {
		t.Errorf("%d filters are remembered, and closed", len(v.taken))
	}
	v.mu.Unlock()
}

// TestReloadOfAnotherDeclaration has a plugin whose libraries were changed: its
// next process says something else of itself, and a reload takes it as that.
func TestReloadOfAnotherDeclaration(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "changed")
	if err := os.Chmod(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	s := r.settings("changes=" + file)
	first := r.filter(t, s, do("tag"))
	if got := first.(*filter).Traits().OnError; got != pipeline.ErrorDefers {
		t.Fatal(got)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.down(t)
	if got := first.(*filter).Traits().OnError; got != pipeline.ErrorDefers {
		t.Errorf("without a reload it has another trait: %v", got)
	}
	fresh, err := r.reload(t, s, do("tag"))
	if err != nil {
		t.Fatalf("a reload does not take it: %v", err)
	}
	defer fresh.(*filter).Close()
	if got := fresh.(*filter).Traits().OnError; got != pipeline.ErrorContinues {
		t.Errorf("after the reload: %v", got)
	}
	if _, err := r.ask(t, fresh, r.read(t, 10), 10*time.Second); err != nil {
		t.Error(err)
	}
}
