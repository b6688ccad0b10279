package crash

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRemount has the file system remounted read-only: under load, which the
// kernel refuses while files are open for writing, and in a moment in which the
// daemon is down. It cannot start then, and does when the file system can be
// written again.
func TestRemount(t *testing.T) {
	onKinds(t, func(t *testing.T, p *programs, k kind) {
		g := chance(t)
		w := newWorld(t, p, setup{kind: k, size: 320 << 20, low: "1 MB", steps: late()})
		w.up()
		stop := w.supervise()
		a := inject(w.daemon, w.ledger, everything, g, 4, 5*time.Millisecond)
		refused := 0
		for range 20 {
			time.Sleep(25 * time.Millisecond)
			if err := w.v.remountAs(true); errors.Is(err, unix.EBUSY) {
				refused++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if starts, exits := w.history(); refused < 20 || starts != 1 {
			t.Fatalf("a file system in use was made read-only: %d of 20 refused, exits %s", refused, exits)
		}
		for try := 0; ; try++ {
			proc, ended := w.running()
			proc.Process.Kill() //nolint:errcheck // it may have ended by itself
			<-ended
			err := w.v.remountAs(true)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) || try == 50 {
				t.Fatal(err)
			}
		}
		time.Sleep(500 * time.Millisecond) // shims that have their answer end
		taken := w.count(0)
		starts, _ := w.history()
		for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			if n, _ := w.history(); n >= starts+10 {
				break
			} else if time.Since(begun) > mostRecovery {
				t.Fatalf("the daemon was started %d times, and does not end, on a file system that it cannot write", n-starts)
			}
		}
		if n := w.count(0); n != taken {
			t.Errorf("%d messages were taken by a disk that cannot be written", n-taken)
		}
		if err := w.v.remountAs(false); err != nil {
			t.Fatal(err)
		}
		a.stop()
		took := w.recover(everything, g)
		w.drain(mostDrain)
		stop()
		w.finish()
		t.Logf("%s: mail is taken again %v after the file system can be written; %v", k.name, took.Round(time.Millisecond), w)
	})
}

// remountAs makes the file system read-only, or writable again.
func (v *volume) remountAs(readOnly bool) error {
	flags := uintptr(unix.MS_REMOUNT)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	return unix.Mount(v.device, v.dir, v.name, flags, v.data)
}

// TestFewFiles takes file descriptors away from the daemon under load, and
// starts it with hardly any.
func TestFewFiles(t *testing.T) {
	limited(t, unix.RLIMIT_NOFILE, func(w *world, g *rand.Rand) uint64 {
		proc, _ := w.running()
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", proc.Process.Pid))
		if err != nil {
			return 16 // it has ended
		}
		return uint64(len(open) + g.IntN(8))
	}, []uint64{8, 20, 40})
}

// TestFileSize bounds the size of the daemon's files: now its log cannot grow,
// now a large body, now nothing.
func TestFileSize(t *testing.T) {
	limited(t, unix.RLIMIT_FSIZE, func(_ *world, g *rand.Rand) uint64 {
		return [...]uint64{0, 4 * kib, 200 * kib, mib, 4 * mib}[g.IntN(5)]
	}, []uint64{0, 4 * kib, 100 * kib})
}

// limited lowers a limit of the running daemon now and then, and starts it with
// others. It may end each time; a supervisor starts it again without a limit.
func limited(t *testing.T, resource int, lower func(*world, *rand.Rand) uint64, atStart []uint64) {
	p := needPrograms(t)
	if p == nil {
		return
	}
	t.Parallel()
	g := chance(t)
	w := newWorld(t, p, setup{low: "1 MB", steps: late()})
	w.up()
	stop := w.supervise()
	a := inject(w.daemon, w.ledger, everything, g, 8, 5*time.Millisecond)
	felt := func() bool {
		_, exits := w.history()
		return w.count(71)+w.count(53) > 0 || exits != "map[]"
	}
	rounds := number(t, "POSTERN_ROUNDS", 2, 10)
	for round := 0; round < rounds || !felt() && round < 10*rounds; round++ {
		time.Sleep(time.Duration(300+g.IntN(400)) * time.Millisecond)
		n := lower(w, g)
		proc, ended := w.running()
		unlimited := w.limit(proc.Process.Pid, resource, n, false)
		select {
		case <-ended:
		case <-time.After(time.Duration(500+g.IntN(1000)) * time.Millisecond):
		}
		unlimited()
	}
	a.stop()
	took := w.recover(everything, g)
	w.retry()
	w.drain(mostDrain)
	if !felt() {
		t.Error("no limit was ever felt")
	}
	t.Logf("mail is taken again after %v; %v", took.Round(time.Millisecond), w)

	// It may come up or not, but it must not lose anything, nor stand there.
	stop()
	w.sendAll(everything, g, 10, 0)
	for _, n := range atStart {
		w.kill()
		w.start()
		proc, ended := w.running()
		w.limit(proc.Process.Pid, resource, n, true)
		for deadline := time.Now().Add(3 * time.Second); !w.serves() && !w.hasEnded() && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		if w.serves() {
			call := make(chan int, 1)
			go func() { call <- send(w.daemon, w.ledger, everything, rand.New(rand.NewPCG(n, 2))) }()
			select {
			case <-call:
			case <-time.After(2 * time.Second):
				w.kill() // it waits for descriptors
				<-call
			}
		}
		select {
		case <-ended:
			t.Logf("started with a limit of %d: ended with %d", n, proc.ProcessState.ExitCode())
		default:
			t.Logf("started with a limit of %d: it runs", n)
		}
	}
	w.kill()
	w.up()
	w.retry()
	w.drain(mostDrain)
	w.sendAll(everything, g, 5, 0)
	w.drain(mostDrain)
	w.finish()
}

// retry has the operator order a retry of everything: what failed for lack of a
// file descriptor would wait for minutes.
func (w *world) retry() {
	w.t.Helper()
	out, err := exec.Command(w.p.postern, "queue", "retry", "--all", "--socket", w.path("admin.sock")).CombinedOutput()
	if err != nil {
		w.t.Fatalf("postern queue retry: %v\n%s", err, out)
	}
}

// limit sets a resource limit of a process, for good or until lift is called.
func (w *world) limit(pid, resource int, n uint64, forGood bool) (lift func()) {
	w.t.Helper()
	var old unix.Rlimit
	set := func(to *unix.Rlimit) {
		if err := unix.Prlimit(pid, resource, to, &old); err != nil && !errors.Is(err, unix.ESRCH) { // it may have ended
			w.t.Fatalf("prlimit: %v", err)
		}
	}
	set(nil)
	before, now := old, unix.Rlimit{Cur: n, Max: old.Max}
	if forGood {
		now.Max = n // or a Go program raises it when it starts
	}
	set(&now)
	return func() { set(&before) }
}

// TestOutOfMemory has the kernel kill the daemon, because its memory group is
// too small for it, again and again.
func TestOutOfMemory(t *testing.T) {
	p := needPrograms(t)
	if p == nil {
		return
	}
	if !thorough() {
		t.Log("make crash takes the daemon's memory away; this run does not")
		return
	}
	t.Parallel()
	group, err := newMemoryGroup(t)
	if err != nil {
		t.Fatalf("memory cannot be taken away here: %v: make crash needs a cgroup with the memory controller, of version 1 or 2, in which it may make others", err)
	}
	g := chance(t)
	w := newWorld(t, p, setup{kind: kinds[0], size: imageSize, low: "1 MB", steps: late()})
	w.joins = group.join
	w.up()
	stop := w.supervise()
	for range number(t, "POSTERN_ROUNDS", 1, 5) {
		w.recover(everything, g)
		a := inject(w.daemon, w.ledger, everything, g, 8, 0)
		time.Sleep(300 * time.Millisecond)
		killed := w.killed()
		// What it uses now is too little for what it is asked to do next; if not,
		// there will be less. The kernel refuses a limit that is too far off.
		proc, _ := w.running()
		room := resident(proc.Process.Pid)
		for begun := time.Now(); w.killed() == killed; {
			if !group.limit(t, room) {
				room += room / 20
			} else {
				room -= room / 10
			}
			for at := time.Now(); time.Since(at) < time.Second && w.killed() == killed; {
				time.Sleep(10 * time.Millisecond)
			}
			if time.Since(begun) > mostRecovery {
				t.Fatalf("the daemon was not killed with %d bytes of memory", room)
			}
		}
		time.Sleep(time.Duration(g.IntN(2000)) * time.Millisecond) // it starts, and is killed
		group.limit(t, unlimitedMemory)
		a.stop()
		took := w.recover(everything, g)
		w.retry()
		w.drain(mostDrain)
		t.Logf("killed %d times with %d MiB; mail is taken again after %v", w.killed()-killed, room>>20, took.Round(time.Millisecond))
	}
	stop()
	w.finish()
	t.Logf("out of memory: %v", w)
}

// killed is how often the daemon was ended by SIGKILL.
func (d *daemon) killed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.exits[-int(unix.SIGKILL)]
}

// resident is the memory of a process that is not of files; at least 16 MiB.
func resident(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	n := int64(16 << 10)
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			if k, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64); err == nil {
				n = max(n, k)
			}
		}
	}
	return n << 10
}

// memoryGroup is a cgroup of our own, whose memory is bounded.
type memoryGroup struct{ dir, file, none string }

const unlimitedMemory = -1

// newMemoryGroup makes a group below this process's (version 1), or beside it
// (version 2, where a group with processes has none below it).
func newMemoryGroup(t *testing.T) (*memoryGroup, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var m *memoryGroup
	why := errors.New("this process is in no memory cgroup")
	for line := range bytes.Lines(own) {
		f := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(f) != 3 || m != nil {
			continue
		}
		switch {
		case contains(strings.Split(f[1], ","), "memory"):
			if at := mounted(string(mounts), "cgroup", "memory"); at != "" {
				m = &memoryGroup{dir: filepath.Join(at, f[2]), file: "memory.limit_in_bytes", none: "-1"}
			}
		case f[1] == "":
			if at := mounted(string(mounts), "cgroup2", ""); at != "" {
				dir := filepath.Dir(filepath.Join(at, f[2]))
				if f[2] == "/" {
					dir = at
				}
				if b, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); err == nil && contains(strings.Fields(string(b)), "memory") {
					m = &memoryGroup{dir: dir, file: "memory.max", none: "max"}
				}
			}
		}
	}
	if m == nil {
		return nil, why
	}
	m.dir = filepath.Join(m.dir, fmt.Sprintf("postern-crash-%d-%d", os.Getpid(), time.Now().UnixNano()))
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		for range 100 {
			if err = os.Remove(m.dir); err == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Errorf("the cgroup stays: %v", err)
	})
	if _, err := os.Stat(filepath.Join(m.dir, m.file)); err != nil {
		return nil, err
	}
	return m, nil
}

// mounted is where a file system of a kind is mounted that has an option.
func mounted(mounts, kind, option string) string {
	for line := range strings.SplitSeq(mounts, "\n") {
		f := strings.Fields(line)
		if len(f) > 3 && f[2] == kind && (option == "" || contains(strings.Split(f[3], ","), option)) {
			return f[1]
		}
	}
	return ""
}

func (m *memoryGroup) join(pid int) error {
	return os.WriteFile(filepath.Join(m.dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o200)
}

// limit bounds the memory. Where the kernel cannot take enough back at once it
// refuses (version 1) or kills.
func (m *memoryGroup) limit(t *testing.T, n int64) (done bool) {
	t.Helper()
	text := m.none
	if n != unlimitedMemory {
		text = strconv.FormatInt(n, 10)
	}
	err := os.WriteFile(filepath.Join(m.dir, m.file), []byte(text), 0o200)
	if err != nil && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
	return err == nil
}
