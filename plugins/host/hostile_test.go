package host

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStartsThatFail has plugins that do at their start what no plugin should.
func TestStartsThatFail(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		args    []string
		timeout time.Duration
		want    string
	}{
		{[]string{"exit"}, 20 * time.Second, "it has ended: exit 0"},
		{[]string{"crash"}, 20 * time.Second, "it has ended: exit 2"},
		{[]string{"hang"}, time.Second, "not ready within 1s"},
		{[]string{"stopped"}, time.Second, "not ready within 1s"},
		{[]string{"mute"}, time.Second, "not ready within 1s"},
		{[]string{"flood"}, time.Second, ""},
		{[]string{"closed"}, time.Second, ""},
		{[]string{"garbage"}, 20 * time.Second, "its first line is not that of a plugin"},
		{[]string{"elsewhere=/run/other.sock"}, 20 * time.Second, "no Unix socket in the directory"},
		{[]string{"version"}, 20 * time.Second, "another version of the calls"},
		{[]string{"noname"}, 20 * time.Second, "no name"},
		{[]string{"stages="}, 20 * time.Second, "stage 0"},
	} {
		s := r.settings(c.args...)
		s.Timeout = c.timeout
		_, err := r.Kind(s)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want an error with %q", c.args, err, c.want)
		}
		r.Settle(false)
		if len(r.Status()) > 0 {
			t.Errorf("%q: it runs", c.args)
		}
	}
	if left := r.left(t); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
}

// TestCallsThatFail has plugins fail in mid-call, and work again after that.
func TestCallsThatFail(t *testing.T) {
	r := newRig(t)
	child := fmt.Sprintf("postern-left-%d", os.Getpid())
	for _, c := range []struct {
		act, want string
		with      string
	}{
		{"die", "exit 7", ""},
		{"panic", "exit 2", ""},
		{"hang", "did not answer in time", ""},
		{"stop", "did not answer in time", ""},
		{"close", "", ""},
		{"child", "exit 0", child},
		{"eat", "", ""},
		{"large", "too large", ""},
		{"none such", "no act", ""},
	} {
		s := r.settings()
		s.Concurrency = 1
		if c.act == "eat" && testMemory < 0 {
			continue // a plugin under the race detector has no bound
		}
		s.Env = map[string]string{"ACT": c.act} // a plugin of its own
		bad, good := r.filter(t, s, do(c.act, c.with)), r.filter(t, s, do("tag"))
		m := r.read(t, 100)
		within := 10 * time.Second
		if c.act == "hang" || c.act == "stop" || c.act == "close" {
			within = time.Second
		}
		v, err := r.ask(t, bad, m, within)
		if err == nil || !strings.Contains(err.Error(), c.want) || v.Edits != nil {
			t.Errorf("%s: %v, %v, want an error with %q", c.act, v, err, c.want)
		}
		soon(t, c.act+": it works again", func() bool {
			_, err := r.ask(t, good, m, 20*time.Second)
			return err == nil
		})
		m.Body().Release()
	}
	if pids := running(t, child); len(pids) > 0 {
		t.Errorf("children are left: %v", pids)
	}
}

// running are the processes whose command line has a word.
func running(t *testing.T, word string) (pids []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), word) {
			pids = append(pids, f)
		}
	}
	return pids
}

// TestFloodedLog has a plugin write a gigabyte while it answers.
func TestFloodedLog(t *testing.T) {
	r := newRig(t)
	f := r.filter(t, r.settings(), do("flood"))
	m := r.read(t, 100)
	for range 20 {
		if _, err := r.ask(t, f, m, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.log.String()); n > 200<<10 {
		t.Errorf("the log has %d bytes", n)
	}
}

// TestChatter takes what plugins say into the log, line by line and clean.
func TestChatter(t *testing.T) {
	r := newRig(t)
	r.filter(t, r.settings("say=hello \x1b[31m"+strings.Repeat("long ", 1000)), do("nothing"))
	soon(t, "what it says", func() bool { return strings.Contains(r.log.String(), "hello ?[31mlong") })
	if log := r.log.String(); strings.Contains(log, "\x1b") || !strings.Contains(log, "cut=true") || len(log) > 5000 {
		t.Errorf("the log:\n%s", log)
	}
}

// TestPinned starts a plugin only from the file that is wanted.
func TestPinned(t *testing.T) {
	r := newRig(t)
	program := filepath.Join(t.TempDir(), "plugin")
	copyFile(t, r.self, program)
	sum, err := sumOf(program)
	if err != nil {
		t.Fatal(err)
	}
	s := r.settings()
	s.Command[0], s.SHA256 = program, fmt.Sprintf("%x", sum)
	f := r.filter(t, s, do("die"))
	m := r.read(t, 10)
	// It is changed while it runs: the next start is refused.
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	copyFile(t, r.self, program)
	file, err := os.OpenFile(program, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(file, "x")
	file.Close()
	if _, err := r.ask(t, f, m, 10*time.Second); err == nil {
		t.Error("it does not die")
	}
	soon(t, "refused", func() bool { return strings.Contains(r.log.String(), "somebody has changed it") })
	soon(t, "calls fail at once", func() bool {
		_, err := r.ask(t, f, m, 5*time.Second)
		return err != nil && strings.Contains(err.Error(), "somebody has changed it")
	})
	if _, err := r.Kind(s); err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("%v, want its SHA-256 to be refused", err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestKilledIdle has a process die between calls: the next call waits for
// another one.
func TestKilledIdle(t *testing.T) {
	r := newRig(t)
	f := r.filter(t, r.settings(), do("tag"))
	m := r.read(t, 10)
	for range 3 {
		pid := 0
		soon(t, "a process", func() bool {
			if pids := r.Status()[0].PIDs; len(pids) == 1 {
				pid = pids[0]
			}
			return pid > 0
		})
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		soon(t, "noticed", func() bool { pids := r.Status()[0].PIDs; return len(pids) == 0 || pids[0] != pid })
		if _, err := r.ask(t, f, m, 20*time.Second); err != nil {
			t.Error(err)
		}
	}
	if n := r.Status()[0].Restarts; n != 3 {
		t.Errorf("%d restarts", n)
	}
}

// TestUsedUp replaces a process that has used most of its processor time, without
// a call that fails.
func TestUsedUp(t *testing.T) {
	r := newRig(t)
	s := r.settings()
	s.CPU = 2 * time.Second
	burn, f := r.filter(t, s, do("burn")), r.filter(t, s, do("tag"))
	m := r.read(t, 10)
	if _, err := r.ask(t, burn, m, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	v := f.(*filter).v
	old := v.pool.all()[0]
	old.doubt()
	soon(t, "another process", func() bool {
		if _, err := r.ask(t, f, m, 20*time.Second); err != nil {
			t.Error(err)
		}
		all := v.pool.all()
		return len(all) == 1 && all[0] != old
	})
	if trouble := r.Status()[0].Trouble; !strings.Contains(trouble, "processor time") {
		t.Errorf("the trouble is %q", trouble)
	}
}
