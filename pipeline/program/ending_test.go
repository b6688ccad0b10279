package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCrash(t *testing.T) {
	s := newStarter(t, Options{})
	for script, want := range map[string]Ending{
		"kill -SEGV $$": {Exit: -1, Signal: syscall.SIGSEGV},
		"kill -KILL $$": {Exit: -1, Signal: syscall.SIGKILL},
		"kill -TERM $$": {Exit: -1, Signal: syscall.SIGTERM}, // which the starter ignores
		"kill -PIPE $$": {Exit: -1, Signal: syscall.SIGPIPE},
		"exit 255":      {Exit: 255},
		"exit 0":        {},
	} {
		_, e := output(t, s, Spec{}, script)
		if e.Exit != want.Exit || e.Signal != want.Signal || e.Memory <= 0 {
			t.Errorf("%s: %v, want %v", script, e, want)
		}
	}
	if a, b := (Ending{Exit: 3}).String(), (Ending{Exit: -1, Signal: syscall.SIGSEGV}).String(); a != "exit 3" || b != "signal: segmentation fault" {
		t.Errorf("%s, %s", a, b)
	}
}

// One that reads nothing, and one that has closed everything.
func TestDeaf(t *testing.T) {
	s := newStarter(t, Options{})
	for _, script := range []string{"exit 0", "exec <&- >&- 2>&- 7<&-; exit 0"} {
		theirs, ours, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Start(Spec{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Files: map[int]*os.File{0: theirs, 7: theirs}})
		theirs.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = ours.Write(make([]byte, 1<<20)); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%s: %v", script, err)
		}
		ours.Close()
		if e, err := p.Wait(within(t)); err != nil || e.Exit != 0 {
			t.Errorf("%s: %v %v", script, e, err)
		}
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := s.Start(Spec{Path: "/bin/true", Files: map[int]*os.File{3: f}}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
}

// A gigabyte of output costs only who reads it; into a file it gets no further
// than it may.
func TestFlood(t *testing.T) {
	s := newStarter(t, Options{})
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Start(Spec{Path: "/usr/bin/head", Args: []string{"head", "-c", "1G", "/dev/zero"}, Files: map[int]*os.File{1: theirs}})
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, ours); n != 1<<30 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	ours.Close()
	if e, err := p.Wait(within(t)); err != nil || e.Exit != 0 {
		t.Errorf("%v %v", e, err)
	}
	name := filepath.Join(t.TempDir(), "big")
	_, e := output(t, s, Spec{Env: []string{"PATH=/usr/bin:/bin"}, Limits: Limits{FileSize: 1 << 20}}, "exec head -c 1G /dev/zero >"+name)
	if info, err := os.Stat(name); err != nil || info.Size() != 1<<20 || e.Signal != syscall.SIGXFSZ {
		t.Errorf("%v %v %v", info.Size(), err, e)
	}
	// Nobody reads, and the program is killed.
	ours, theirs, err = os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	p, err = s.Start(Spec{Path: "/usr/bin/yes", Args: []string{"yes"}, Files: map[int]*os.File{1: theirs}})
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if e, err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || e.Signal != syscall.SIGKILL {
		t.Errorf("%v %v", e, err)
	}
}

// limitsOf is /proc/self/limits of a program, soft and hard.
func limitsOf(t *testing.T, s *Starter, l Limits) map[string]string {
	t.Helper()
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	p, err := s.Start(Spec{Path: "/bin/cat", Args: []string{"cat", "/proc/self/limits"}, Files: map[int]*os.File{1: theirs}, Limits: l})
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(ours)
	if e, err := p.Wait(within(t)); err != nil || e.Exit != 0 {
		t.Fatal(e, err)
	}
	all := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if len(line) > 60 {
			all[strings.TrimSpace(line[:26])] = strings.Join(strings.Fields(line[26:])[:2], " ")
		}
	}
	return all
}

// What a program may use is bounded from its first instruction on, whatever others
// get that are started at the same time.
func TestLimits(t *testing.T) {
	s := newStarter(t, Options{})
	var all sync.WaitGroup
	for n := range int64(8) {
		all.Go(func() {
			for range 5 {
				got := limitsOf(t, s, Limits{Memory: (8 + n) << 20, FileSize: 1000 + n, Files: 10 + n, CPU: 5 + n})
				for name, want := range map[string]string{
					"Max data size": fmt.Sprintf("%d %[1]d", (8+n)<<20), "Max file size": fmt.Sprintf("%d %[1]d", 1000+n),
					"Max open files": fmt.Sprintf("%d %[1]d", 10+n), "Max cpu time": fmt.Sprintf("%d %d", 5+n, 6+n), "Max core file size": "0 0",
				} {
					if got[name] != want {
						t.Errorf("%s: %s, want %s", name, got[name], want)
					}
				}
			}
		})
	}
	all.Wait()
	got := limitsOf(t, s, Limits{})
	if got["Max data size"] != fmt.Sprintf("%d %[1]d", DefaultMemory) || got["Max open files"] != fmt.Sprintf("%d %[1]d", DefaultFiles) || got["Max file size"] != fmt.Sprintf("%d %[1]d", DefaultFileSize) {
		t.Errorf("%v", got)
	}
	got = limitsOf(t, s, Limits{Memory: Unlimited, CPU: Unlimited})
	if got["Max data size"] != "unlimited unlimited" || got["Max cpu time"] != "unlimited unlimited" {
		t.Errorf("%v", got)
	}
}

// One that wants more than it may have.
func TestGreed(t *testing.T) {
	s := newStarter(t, Options{})
	if said, e := output(t, s, Spec{Env: []string{"PATH=/usr/bin:/bin"}, Limits: Limits{Memory: 32 << 20}}, "exec tail /dev/zero"); e.Exit == 0 || e.Memory > 64<<20 || !strings.Contains(said, "memory exhausted") {
		t.Errorf("%v, %d bytes: %s", e, e.Memory, said)
	}
	if _, e := output(t, s, Spec{Limits: Limits{CPU: 1}}, "while :; do :; done"); e.Signal != syscall.SIGXCPU || e.CPU < time.Second/2 {
		t.Errorf("%v after %v", e, e.CPU)
	}
	if said, _ := output(t, s, Spec{Limits: Limits{Files: 5}}, "exec 3</ 4</; echo four; exec 5</; echo five"); !strings.HasPrefix(said, "four\n") || strings.Contains(said, "five\n") {
		t.Errorf("%q", said)
	}
}

// One that hangs, and one that has stopped, are killed all the same; so is one
// that ends in the same moment.
func TestHang(t *testing.T) {
	s := newStarter(t, Options{})
	for _, script := range []string{"trap '' TERM HUP INT QUIT; echo; exec sleep 600", "echo; kill -STOP $$", "echo; while :; do :; done"} {
		ours, theirs, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Start(Spec{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Files: map[int]*os.File{1: theirs}})
		theirs.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ours.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		ours.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		for range 2 {
			e, err := p.Wait(ctx)
			if e.Exit != -1 || e.Signal != syscall.SIGKILL || alive(p.Pid()) {
				t.Errorf("%s: %v %v", script, e, err)
			}
		}
	}
	for n := range 200 {
		p, err := s.Start(Spec{Path: "/bin/true"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n)*10*time.Microsecond)
		if e, err := p.Wait(ctx); err == nil && e.Exit != 0 || alive(p.Pid()) {
			t.Errorf("%v %v", e, err)
		}
		cancel()
	}
}

// A program has a session of its own, no signal of ours, and nothing open.
func TestSurroundings(t *testing.T) {
	s := newStarter(t, Options{})
	if fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); err != nil { // as somebody may have left us
		t.Fatal(err)
	} else {
		defer unix.Close(fd)
	}
	said, _ := output(t, s, Spec{Env: []string{"PATH=/usr/bin:/bin"}}, "exec cat /proc/self/stat")
	stat, ok := parseStat([]byte(said))
	if !ok || stat.pid != stat.group || stat.pid != stat.session || stat.parent != s.child.process.Pid {
		t.Errorf("%+v", stat)
	}
	said, _ = output(t, s, Spec{Env: []string{"PATH=/usr/bin:/bin"}}, "exec cat /proc/self/status")
	for line := range strings.Lines(said) {
		name, value, _ := strings.Cut(line, ":")
		if value = strings.TrimSpace(value); (name == "SigBlk" || name == "SigIgn" || name == "SigCgt") && strings.Trim(value, "0") != "" {
			t.Errorf("%s: %s", name, value)
		}
	}
	// The numbers that stand in each other's way: theirs, ours, and the control socket's.
	dir := t.TempDir()
	files := map[int]*os.File{}
	for n := 3; n < 40; n += 3 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(n)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[n], files[MaxFile-n] = f, f
	}
	said, _ = output(t, s, Spec{Env: []string{"PATH=/usr/bin:/bin"}, Files: files}, "exec ls -l /proc/self/fd")
	count := 0
	for line := range strings.Lines(said) {
		number, name, ok := strings.Cut(strings.TrimSpace(line), " -> ")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(number[strings.LastIndexByte(number, ' ')+1:])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		switch f := files[n]; {
		case n > 2 && f == nil && !strings.HasPrefix(name, "/proc/"): // what ls looks at
			t.Errorf("it has %s", line)
		case f != nil && name != f.Name():
			t.Errorf("%d is %s", n, name)
		case f != nil:
			count++
		}
	}
	if count != len(files) {
		t.Errorf("it has %d of %d: %s", count, len(files), said)
	}
}

// A request that is longer than a packet.
func TestLong(t *testing.T) {
	s := newStarter(t, Options{})
	env := []string{"PATH=/usr/bin:/bin"}
	for n := range 10 {
		env = append(env, fmt.Sprintf("V%d=%s", n, strings.Repeat("x", 100_000)))
	}
	if said, _ := output(t, s, Spec{Env: env}, `echo ${#V0} ${#V9}`); said != "100000 100000\n" {
		t.Errorf("%q", said)
	}
	if _, e := output(t, s, Spec{}, "exit 4"); e.Exit != 4 {
		t.Error(e)
	}
}
