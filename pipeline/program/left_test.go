package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pidIn is the process number that a program wrote to a file; it waits for that.
func pidIn(t testing.TB, file string) int {
	t.Helper()
	for ctx := within(t); ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil && strings.HasSuffix(string(b), "\n") {
			pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("nothing was written to %s", file)
	return 0
}

// alive reports whether a process has not ended.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	p, ok := parseStat(b)
	return err == nil && ok && p.state != 'Z' && p.state != 'X'
}

// gone waits until a process has ended.
func gone(t testing.TB, pid int) {
	t.Helper()
	for ctx := within(t); alive(pid); time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			t.Fatalf("process %d lives", pid)
		}
	}
}

// leavers are the ways to leave a process behind that writes its number to $1.
var leavers = map[string]string{
	"in the group":            `sleep 600 & echo $! >$1`,
	"an orphan in the group":  `(sleep 600 & echo $! >$1)`,
	"in a session of its own": `setsid sh -c 'echo $$ >$1; exec sleep 600' x $1 &`,
	"twice forked":            `(setsid sh -c 'echo $$ >$1; exec sleep 600' x $1 &)`,
	"a daemon":                `(setsid sh -c '(setsid sh -c "echo \$\$ >\$1; exec sleep 600" x $1 &) & sleep 600' x $1 &)`,
	"ignoring signals":        `(trap "" TERM HUP INT; setsid sh -c 'echo $$ >$1; sleep 600; sleep 600' x $1 &)`,
	"stopped":                 `setsid sh -c 'echo $$ >$1; kill -STOP $$' x $1 &`,
}

// What a program leaves behind is dead when its end is told, whatever it did to
// get away.
func TestLeftBehind(t *testing.T) {
	s := newStarter(t, Options{})
	for name, script := range leavers {
		for _, how := range []string{"exit 3", "kill -SEGV $$", "sleep 600"} {
			file := filepath.Join(t.TempDir(), "pid")
			p, err := s.Start(Spec{
				Path: "/bin/sh", Args: []string{"sh", "-c", script + "\nwhile ! [ -s $1 ]; do sleep 0.01; done\n" + how, "sh", file},
				Env: []string{"PATH=/usr/bin:/bin"},
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(within(t))
			pid := pidIn(t, file)
			if how == "sleep 600" {
				cancel()
			}
			e, err := p.Wait(ctx)
			cancelled := ctx.Err() != nil
			cancel()
			if cancelled != errors.Is(err, context.Canceled) || (how == "exit 3") != (e.Exit == 3) || e.Left != 0 {
				t.Errorf("%s, %s: %v %v", name, how, e, err)
			}
			if alive(pid) || alive(p.Pid()) {
				t.Errorf("%s, %s: %d lives", name, how, pid)
				gone(t, pid)
			}
		}
	}
}

// One that has got away from its parent and from all groups is not waited for:
// it dies while the program runs. One that has a parent, or is in the group, may
// stay as long as the program.
func TestOrphan(t *testing.T) {
	s := newStarter(t, Options{})
	dir := t.TempDir()
	p, err := s.Start(Spec{
		Path: "/bin/sh", Dir: dir, Env: []string{"PATH=/usr/bin:/bin"},
		Args: []string{"sh", "-c", `(setsid sh -c 'echo $$ >orphan; exec sleep 600' &)
			setsid sh -c 'echo $$ >child; exec sleep 600' & (sleep 600 & echo $! >member); exec sleep 600`},
	})
	if err != nil {
		t.Fatal(err)
	}
	child, member := pidIn(t, dir+"/child"), pidIn(t, dir+"/member")
	gone(t, pidIn(t, dir+"/orphan"))
	if !alive(p.Pid()) || !alive(child) || !alive(member) {
		t.Error("others died with it")
	}
	p.Kill()
	if e, err := p.Wait(within(t)); err != nil || e.Exit != -1 || e.Signal != unix.SIGKILL {
		t.Errorf("%v %v", e, err)
	}
	if alive(child) || alive(member) {
		t.Error("others live")
	}
	p.Kill() // nothing is there to be killed
}

// One whose processes each start another, in a session of its own, and end, is
// caught all the same.
func TestRunner(t *testing.T) {
	s := newStarter(t, Options{})
	dir := t.TempDir()
	name := filepath.Join(dir, "runner")
	if err := os.WriteFile(name, []byte("#!/bin/sh\necho x >>$1\nsetsid $0 $1 &\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		p, err := s.Start(Spec{Path: name, Args: []string{name, dir + "/log"}, Env: []string{"PATH=/usr/bin:/bin"}})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(within(t)); err != nil || e.Exit != 0 || e.Left != 0 {
			t.Errorf("%v %v", e, err)
		}
		if all := childrenByParent(s.child.process.Pid); len(all) > 0 {
			t.Errorf("%v live", all)
		}
	}
}

// Programs do not end each other.
func TestOthersLive(t *testing.T) {
	s := newStarter(t, Options{})
	stays, err := s.Start(Spec{Path: "/bin/sleep", Args: []string{"sleep", "600"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		file := filepath.Join(t.TempDir(), "pid")
		if _, e := output(t, s, Spec{Env: []string{"PATH=/usr/bin:/bin"}}, "set "+file+"\n"+leavers["a daemon"]); e.Exit != 0 {
			t.Fatal(e)
		}
	}
	if !alive(stays.Pid()) {
		t.Error("it was killed with others")
	}
}

// The process that starts programs is run again when it has died, and its programs
// die with it, with their groups and sessions.
func TestStarterDies(t *testing.T) {
	died := make(chan error, 10)
	s := newStarter(t, Options{Died: func(err error) { died <- err }})
	for range 3 {
		dir := t.TempDir()
		p, err := s.Start(Spec{
			Path: "/bin/sh", Dir: dir, Env: []string{"PATH=/usr/bin:/bin"},
			Args: []string{"sh", "-c", "sleep 600 & echo $! >child; echo $PPID >starter; exec sleep 600"},
		})
		if err != nil {
			t.Fatal(err)
		}
		child, starter := pidIn(t, dir+"/child"), pidIn(t, dir+"/starter")
		if starter != s.child.process.Pid {
			t.Fatalf("its parent is %d", starter)
		}
		if err := unix.Kill(starter, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(within(t)); !errors.Is(err, ErrGone) || e.Exit != -1 {
			t.Errorf("%v %v", e, err)
		}
		gone(t, child)
		gone(t, p.Pid())
		if err := <-died; !errors.Is(err, ErrGone) {
			t.Error(err)
		}
	}
	if _, e := output(t, s, Spec{}, "exit 5"); e.Exit != 5 {
		t.Error(e)
	}
}

// Who asks while it is being buried gets the next one.
func TestStarterIsBuried(t *testing.T) {
	died, buried := make(chan error), make(chan struct{})
	s := newStarter(t, Options{Died: func(err error) {
		died <- err
		<-buried
	}})
	if err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	dead := s.child
	if err := unix.Kill(dead.process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-died
	started := make(chan error)
	go func() {
		p, err := s.Start(Spec{Path: "/bin/true"})
		if err == nil {
			_, err = p.Wait(within(t))
		}
		started <- err
	}()
	if p := dead.add(); p != nil {
		t.Error("it takes programs")
	}
	close(buried)
	if err := <-started; err != nil {
		t.Error(err)
	}
}

// One that does not answer is replaced.
func TestStarterHangs(t *testing.T) {
	s := newStarter(t, Options{})
	if err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		hung := s.child.process.Pid
		s.child.timeout = 50 * time.Millisecond
		if err := unix.Kill(hung, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Start(Spec{Path: "/bin/true"}); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		gone(t, hung)
		if _, e := output(t, s, Spec{}, "exit 5"); e.Exit != 5 {
			t.Error(e)
		}
	}
}

// A daemon that is killed takes its programs with it, and what they have left.
func TestDaemonDies(t *testing.T) {
	dir := t.TempDir()
	c := exec.Command("/proc/self/exe", dir)
	c.Env = append(os.Environ(), asDaemon+"=1")
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pids := []int{pidIn(t, dir+"/child"), pidIn(t, dir+"/session"), pidIn(t, dir+"/starter")}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	for _, pid := range pids {
		gone(t, pid)
	}
}

// asDaemon has the test binary be a daemon with a program, for TestDaemonDies.
const asDaemon = "PROGRAM_TEST_DAEMON"

func beDaemon(dir string) {
	s := New(Options{})
	p, err := s.Start(Spec{
		Path: "/bin/sh", Dir: dir, Env: []string{"PATH=/usr/bin:/bin"},
		Args: []string{"sh", "-c", "sleep 600 & echo $! >child; setsid sh -c 'echo $$ >session; exec sleep 600' & echo $PPID >starter; exec sleep 600"},
	})
	if err == nil {
		_, err = p.Wait(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
}

// Close ends what runs, and nothing starts afterwards.
func TestClose(t *testing.T) {
	s := New(Options{})
	p, err := s.Start(Spec{Path: "/bin/sleep", Args: []string{"sleep", "600"}})
	if err != nil {
		t.Fatal(err)
	}
	starter := s.child.process.Pid
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if alive(p.Pid()) || alive(starter) {
		t.Error("it lives")
	}
	if e, err := p.Wait(within(t)); e.Exit != -1 {
		t.Errorf("%v %v", e, err)
	}
	if _, err := s.Start(Spec{Path: "/bin/true"}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
