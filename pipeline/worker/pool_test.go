package worker

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newPool is a pool for a test, small, and with limits that a test can reach.
func newPool(t testing.TB, o Options) *Pool {
	t.Helper()
	o.Size = or(o.Size, 1)
	o.Deadline = or(o.Deadline, 20*time.Second)
	o.Memory = or(o.Memory, 128<<20)
	o.Scratch = or(o.Scratch, 16<<20)
	o.Wait = or(o.Wait, 30*time.Second)
	p := New(o)
	t.Cleanup(func() { p.Close() })
	return p
}

func do(t testing.TB, p *Pool, job, args string) (string, error) {
	t.Helper()
	b, err := p.Do(context.Background(), Request{Job: job, Args: []byte(args)})
	return string(b), err
}

func must(t testing.TB, p *Pool, job, args, want string) {
	t.Helper()
	if got, err := do(t, p, job, args); err != nil || got != want {
		t.Fatalf("%s %.40q = %.80q, %v; want %.40q", job, args, got, err, want)
	}
}

func TestLayers(t *testing.T) {
	p := newPool(t, Options{})
	must(t, p, "echo", "x", "x")
	s := p.Stats()
	t.Logf("on: %v; missing: %v", s.Layers, s.Missing)
	want := NoNewPrivileges | Limits | Descriptors | Undumpable | Seccomp
	if !raceDetector {
		want |= Memory
	}
	if s.Layers&want != want {
		t.Errorf("missing: %v", want&^s.Layers)
	}
	if s.Live != 1 || s.Idle != 1 || s.Started != 1 || s.Jobs != 1 || s.Running != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestProbes shows what a job cannot do although it goes on living.
func TestProbes(t *testing.T) {
	p := newPool(t, Options{})
	const denied = "operation not permitted"
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ job, args, want string }{
		{"open", "/etc/passwd", denied},
		{"open", secret, denied},
		{"open", "/proc/self/environ", denied},
		{"create", "/tmp/postern-worker-was-here", denied},
		{"memory file", "", denied},
		{"executable", "", denied},
	} {
		if got, err := do(t, p, c.job, c.args); err != nil || !strings.HasSuffix(got, c.want) {
			t.Errorf("%s %s: %q, %v; want %q", c.job, c.args, got, err, c.want)
		}
	}
	got, err := do(t, p, "self", "")
	var env, fds int
	if _, scanned := fmt.Sscanf(got, "env=%d fds=%d", &env, &fds); err != nil || scanned != nil || env != 0 || fds > 10 {
		t.Errorf("a worker has %q, %v", got, err)
	}
	if s := p.Stats(); s.Started != 1 {
		t.Errorf("%d workers started, want the first one to have lived", s.Started)
	}
}

// TestCrimes shows how jobs end that a worker does not survive, and that the
// pool does.
func TestCrimes(t *testing.T) {
	p := newPool(t, Options{Size: 2, Deadline: 2 * time.Minute, Wait: 2 * time.Minute})
	for _, c := range []struct {
		job, how string
		kind     error
	}{
		{"socket", "forbidden system call", ErrDied},
		{"execute", "forbidden system call", ErrDied},
		{"fork", "forbidden system call", ErrDied},
		{"ptrace", "forbidden system call", ErrDied},
		{"kill", "forbidden system call", ErrDied},
		{"allocate", "memory", ErrDied},
		{"exit 0", "exit status 0", ErrDied},
		{"panic", "exit status 2, panic: oops", ErrDied},
		{"overflow", "stack", ErrDied},
		{"garbage", "no head", ErrGarbage},
		{"truncated", "5 bytes", ErrGarbage},
		{"long", "1073741824 bytes", ErrGarbage},
		{"oversize", "too long", ErrGarbage},
		{"overlong", "another length", ErrGarbage},
		{"out of turn", "another request", ErrGarbage},
		{"no kind", "no kind", ErrGarbage},
		{"hello", "no kind", ErrGarbage},
		{"long error", "301 bytes", ErrGarbage},
	} {
		_, err := do(t, p, c.job, "oops")
		if !errors.Is(err, ErrKilledTwo) || !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.how) {
			t.Errorf("%s: %v; want %v twice, %q", c.job, err, c.kind, c.how)
		}
		must(t, p, "echo", "still here", "still here")
	}
	if got, err := do(t, p, "write 1 GiB", ""); err != nil || !strings.Contains(got, "file too large") {
		t.Errorf("writing without end: %q, %v", got, err)
	}
	must(t, p, "echo", "still here", "still here")
}

// TestSlow shows jobs that do not end: each fails once, by its deadline.
func TestSlow(t *testing.T) {
	p := newPool(t, Options{})
	for _, job := range []string{"loop", "close", "partial", "stop"} {
		must(t, p, "echo", "warm", "warm")
		_, err := p.Do(context.Background(), Request{Job: job, Deadline: 300 * time.Millisecond})
		// One that closes its socket has ended, as far as the pool can see.
		if job == "close" && errors.Is(err, ErrKilledTwo) {
			continue
		}
		if !errors.Is(err, ErrSlow) || errors.Is(err, ErrKilledTwo) {
			t.Errorf("%s: %v, want %v", job, err, ErrSlow)
		}
	}
	b, err := p.Do(context.Background(), Request{Job: "overdue", Deadline: 10 * time.Second})
	if string(b) != "in time" {
		t.Errorf("a job that heeds its context: %q, %v", b, err)
	}
	if s := p.Stats(); s.Slow < 3 {
		t.Errorf("stats %+v", s)
	}
}

// TestOutside shows workers that are killed and stopped from outside, idle ones
// and busy ones.
func TestOutside(t *testing.T) {
	p := newPool(t, Options{Backoff: time.Millisecond})
	pid := func() int {
		t.Helper()
		must(t, p, "echo", "", "")
		p.mu.Lock()
		defer p.mu.Unlock()
		for w := range p.live {
			return w.pid
		}
		t.Fatal("no worker")
		return 0
	}
	for range 3 {
		if err := unix.Kill(pid(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		must(t, p, "echo", "another", "another")
	}
	if err := unix.Kill(pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Do(context.Background(), Request{Job: "echo", Deadline: 200 * time.Millisecond}); !errors.Is(err, ErrSlow) {
		t.Errorf("a stopped worker: %v", err)
	}
	// A busy one: the job is tried on another and times out there.
	victim := pid()
	time.AfterFunc(300*time.Millisecond, func() { _ = unix.Kill(victim, unix.SIGKILL) })
	_, err := p.Do(context.Background(), Request{Job: "loop", Deadline: time.Second})
	if !errors.Is(err, ErrSlow) {
		t.Errorf("a worker killed during its job: %v", err)
	}
	if s := p.Stats(); s.Died < 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestContext(t *testing.T) {
	p := newPool(t, Options{})
	must(t, p, "echo", "warm", "warm")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := p.Do(ctx, Request{Job: "loop"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a context that ended: %v", err)
	}
	must(t, p, "echo", "x", "x")
	if _, err := p.Do(ctx, Request{Job: "echo"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a context that had ended: %v", err)
	}
}

func TestBusy(t *testing.T) {
	p := newPool(t, Options{Queue: 1, Wait: 50 * time.Millisecond, Deadline: 2 * time.Second})
	for p.Stats().Idle == 0 {
		time.Sleep(time.Millisecond)
	}
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := do(t, p, "loop", ""); !errors.Is(err, ErrSlow) {
			t.Errorf("the job that runs: %v", err)
		}
	})
	for p.Stats().Running == 0 {
		time.Sleep(time.Millisecond)
	}
	all.Go(func() {
		if _, err := do(t, p, "echo", ""); !errors.Is(err, ErrBusy) {
			t.Errorf("the job that waits: %v", err)
		}
	})
	all.Wait()
}

func TestClosed(t *testing.T) {
	p := newPool(t, Options{Size: 2})
	must(t, p, "echo", "x", "x")
	time.AfterFunc(100*time.Millisecond, func() { p.Close() })
	if _, err := do(t, p, "loop", ""); !errors.Is(err, ErrClosed) {
		t.Errorf("a job during Close: %v", err)
	}
	p.Close()
	if _, err := do(t, p, "echo", ""); !errors.Is(err, ErrClosed) {
		t.Errorf("a job after Close: %v", err)
	}
}

// TestBodies passes bodies of all sizes and kinds.
func TestBodies(t *testing.T) {
	directory := t.TempDir()
	p := newPool(t, Options{Directory: directory})
	content := bytes.Repeat([]byte("0123456789abcdef"), 20<<10)
	file, err := os.Create(filepath.Join(directory, "body"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, size := range []int{0, 1, 4 << 10, inlineBody, inlineBody + 1, len(content)} {
		for _, args := range []int{0, 100, inlineArgs, inlineArgs + 1, 200_000} {
			if err := os.WriteFile(file.Name(), content[:size], 0o600); err != nil {
				t.Fatal(err)
			}
			want := digest(string(content[:args]), string(content[:size]))
			for _, r := range []Request{
				{Body: bytes.NewReader(content[:size])},
				{Body: file},
			} {
				r.Job, r.Args, r.Size = "sum", content[:args], int64(size)
				got, err := p.Do(context.Background(), r)
				if err != nil || hex.EncodeToString(got) != want {
					t.Errorf("%d bytes of args, %d of body in a %T: %x, %v", args, size, r.Body, got, err)
				}
			}
		}
	}
	short := Request{Job: "sum", Body: strings.NewReader("short"), Size: 6}
	if _, err := p.Do(context.Background(), short); err == nil {
		t.Error("a body that is shorter than it says was passed")
	}
	short = Request{Job: "sum", Body: file, Size: int64(len(content)) + 1}
	if _, err := p.Do(context.Background(), short); !strings.Contains(fmt.Sprint(err), "unexpected EOF") {
		t.Errorf("a file that is shorter than it says: %v", err)
	}
	left, err := os.ReadDir(directory)
	if err != nil || len(left) != 1 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
}

// TestBodyReadOnly shows that a worker cannot change the file of a body.
func TestBodyReadOnly(t *testing.T) {
	p := newPool(t, Options{})
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err = file.Write(make([]byte, inlineBody+1)); err != nil {
		t.Fatal(err)
	}
	for fd := 5; fd < 16; fd++ {
		got, err := p.Do(context.Background(), Request{Job: "write body", Args: []byte{byte(fd)}, Body: file, Size: inlineBody + 1})
		if err != nil || string(got) == "done" {
			t.Errorf("descriptor %d: %q, %v", fd, got, err)
		}
	}
}

func TestScratch(t *testing.T) {
	content := strings.Repeat("0123456789", 20_000)
	for _, size := range []int{0, 10, chunk - 1, chunk, chunk + 1, len(content)} {
		want := digest(content[:size], content[:size], content[:size])
		for _, directory := range []string{"", t.TempDir()} {
			p := newPool(t, Options{Directory: directory})
			for range 3 {
				r := Request{Job: "scratch", Body: strings.NewReader(content[:size]), Size: int64(size)}
				got, err := p.Do(context.Background(), r)
				if err != nil || hex.EncodeToString(got) != want {
					t.Errorf("%d bytes in %q: %x, %v", size, directory, got, err)
				}
			}
			p.Close()
		}
		got, err := useScratch(context.Background(), nil, strings.NewReader(content[:size]), int64(size), NewScratch(nil, 16<<20))
		if err != nil || hex.EncodeToString(got) != want {
			t.Errorf("%d bytes in memory: %x, %v", size, got, err)
		}
	}
}

func TestAnswers(t *testing.T) {
	p := newPool(t, Options{Answer: 200_000})
	content := strings.Repeat("0123456789", 20_000)
	for _, size := range []int{0, 1, piece - 1, piece, piece + 1, len(content)} {
		must(t, p, "echo", content[:size], content[:size])
	}
	var job JobError
	if _, err := do(t, p, "echo", content+"x"); !errors.As(err, &job) {
		t.Errorf("an answer above the bound: %v", err)
	}
	if _, err := do(t, p, "fail", "no\nway\x1b[31m\xff"); !errors.As(err, &job) || err.Error() != "no way [31m" {
		t.Errorf("the error of a job: %v", err)
	}
	if _, err := do(t, p, "nothing", ""); !errors.As(err, &job) {
		t.Errorf("a job that is not there: %v", err)
	}
	if s := p.Stats(); s.Started != 1 {
		t.Errorf("%d workers started, want 1", s.Started)
	}
	tries := 0
	_, err := p.Do(context.Background(), Request{Job: "echo", Decode: func([]byte) error { tries++; return errors.New("not mine") }})
	if !errors.Is(err, ErrKilledTwo) || !errors.Is(err, ErrGarbage) || tries != 2 {
		t.Errorf("an answer that does not decode: %v, %d tries", err, tries)
	}
}

// TestMany does many jobs with replacements and looks for what is left behind.
func TestMany(t *testing.T) {
	before := descriptors(t)
	replaced := 0
	var mu sync.Mutex
	p := newPool(t, Options{Size: 2, Jobs: 2500, Report: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Replaced {
			replaced++
		} else if e.Err != nil {
			t.Errorf("worker %d: %v", e.PID, e.Err)
		}
	}})
	body := strings.Repeat("x", 4096)
	want := digest("", body)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 2500 {
				got, err := p.Do(context.Background(), Request{Job: "sum", Body: strings.NewReader(body), Size: 4096})
				if err != nil || hex.EncodeToString(got) != want {
					t.Errorf("%x, %v", got, err)
					return
				}
			}
		})
	}
	all.Wait()
	p.Close()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	var status unix.WaitStatus
	if pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if replaced < 2 || p.Stats().Replaced != uint64(replaced) {
		t.Errorf("%d workers replaced, stats %+v", replaced, p.Stats())
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
