package qfilter

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/program"
)

// hostile is a program that misbehaves, made once.
var hostile = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hostile")
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "hostile")
	out, err := exec.Command("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", name, "../testdata/hostile.c").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return name, err
})

// doing is a command line of the program.
func doing(t testing.TB, things ...string) []string {
	t.Helper()
	name, err := hostile()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{name}, things...)
}

// short is enough for a program that does nothing, and not much.
const short = 300 * time.Millisecond

// Whatever a program does wrong, the message is as it was and the filter has
// failed, in time; a program that does nothing changes nothing.
func TestHostile(t *testing.T) {
	for _, c := range []struct {
		name   string
		things []string
		o      Options
		within time.Duration
		err    string // "" lets the message pass
	}{
		{name: "exits without reading"},
		{name: "says nothing, reads all", things: []string{"closefd=1", "copy"}},
		{name: "closes all"},
		{name: "crashes", things: []string{"crash"}, err: "it died: signal: segmentation fault"},
		{name: "is killed", things: []string{"crash=9"}, err: "it died: signal: killed"},
		{name: "crashes in the middle", things: []string{"copy=20", "crash"}, err: "it died: signal: segmentation fault"},
		{name: "exits in the middle", things: []string{"copy=20", "exit=1"}, err: "exit 1"},
		{name: "crashes after an envelope", things: []string{"say=4,Fx", "crash"}, err: "it died"},
		{name: "half an envelope", things: []string{"say=4,Fx@y.example"}, err: "the envelope that it wrote cannot be used"},
		{name: "an envelope of nonsense", things: []string{"say=4,nonsense"}, err: "the envelope that it wrote cannot be used"},
		{name: "another queue", things: []string{"say=5,/bin/other"}, err: "the queue program /bin/other: write into the table queues"},
		{name: "hangs at the start", things: []string{"hang"}, within: short, err: "no answer within"},
		{name: "hangs in the middle", things: []string{"copy=20", "hang"}, within: short, err: "no answer within"},
		{name: "hangs with all written", things: []string{"copy", "hang"}, within: short, err: "no answer within"},
		{name: "hears no signal", things: []string{"deaf"}, within: short, err: "no answer within"},
		{name: "stops", things: []string{"copy", "stop"}, within: short, err: "no answer within"},
		{name: "spins", things: []string{"spin"}, within: short, err: "no answer within"},
		{name: "spins for long", things: []string{"spin"}, o: Options{CPU: time.Second}, err: "it died: signal: CPU time limit exceeded"},
		{name: "floods the message", things: []string{"flood=1"}, err: "it wrote more than 16777333 bytes to one of its files (max_output)"},
		{name: "floods the envelope", things: []string{"flood=4"}, err: "max_output"},
		{name: "floods the queue", things: []string{"flood=5"}, err: "max_output"},
		{name: "floods, and does not hear", things: []string{"deaflood=1"}, o: Options{MaxOutput: 1 << 20}, err: "it wrote more than 1048693 bytes to one of its files (max_output)"},
		{name: "floods an envelope, and does not hear", things: []string{"deaflood=4"}, o: Options{MaxOutput: 1 << 20}, err: "max_output"},
		{name: "floods a queue, and does not hear", things: []string{"deaflood=5"}, o: Options{MaxOutput: 1 << 20}, err: "max_output"},
		{name: "grows its file", things: []string{"grow=1"}, err: "it made a file larger than 4294967296 bytes (max_file)"},
		{name: "floods, and waits", things: []string{"flood=1", "hang"}, err: "max_output"},
		{name: "cuts its message", things: []string{"cut=0"}, err: "exit 107"},
		{name: "floods the log", things: []string{"flood=2"}},
		{name: "floods the text", things: []string{"flood=6"}},
		{name: "floods the text of a no", things: []string{"say=6,Z", "flood=6", "exit=82"}, err: "-"},
		{name: "eats memory", things: []string{"eat"}, o: Options{Memory: 32 << 20}, err: "exit 111"},
		{name: "leaves a child", things: []string{"leave"}},
		{name: "hides a child", things: []string{"hide"}},
		{name: "leaves many", things: []string{"fork=50"}},
		{name: "leaves them, and hangs", things: []string{"leave", "hide", "fork=10", "hang"}, within: 2 * time.Second, err: "no answer within"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			note := filepath.Join(t.TempDir(), "note")
			if c.name == "closes all" {
				c.things = []string{"close"}
			}
			c.o.Command, c.o.Env = doing(t, c.things...), map[string]string{"HOSTILE_NOTE": note}
			if c.within == 0 {
				c.within = time.Minute
			}
			r := newRigWithin(t, c.o, c.within)
			got := r.run(plain)
			switch c.err {
			case "":
				if got.text != plain || got.err != "" {
					t.Errorf("%.300v", got)
				}
			case "-":
				if got.action != pipeline.Defer || !strings.HasPrefix(got.reply, "451 4.3.0 x") || len(got.reply) > 600 {
					t.Errorf("%.900v", got)
				}
			default:
				if got.action != pipeline.Defer || !strings.HasPrefix(got.reply, "451 4.3.0 temporary trouble") || !strings.Contains(got.err, c.err) || got.text != "" {
					t.Errorf("%.300v, want %s", got, c.err)
				}
			}
			gone(t, note)
			if n := len(r.log.String()); n > maxSaid+1000 {
				t.Errorf("%d bytes of log", n)
			}
		})
	}
}

// gone waits until the processes that are noted in a file have ended. They have,
// when a call ends; only the last of them may still be on its way to a grave.
func gone(t testing.TB, note string) {
	t.Helper()
	b, err := os.ReadFile(note)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, word := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); alive(pid); time.Sleep(time.Millisecond) {
			if time.Since(start) > time.Minute {
				unix.Kill(pid, unix.SIGKILL) //nolint:errcheck // the test has failed
				t.Fatalf("process %d lives", pid)
			}
		}
	}
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// One that kills the process that starts programs has failed, and the next is
// started by another.
func TestStarterDies(t *testing.T) {
	s := program.New(program.Options{})
	defer s.Close()
	r := newRig(t, Options{Command: doing(t, "starter")})
	r.env.Programs = s
	f, err := New(r.env, Options{Command: doing(t, "starter")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tx := transaction()
	if _, err := (instance{f}).Message(ctx, tx, message.FromString(plain)); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("%v", err)
	}
	f.commands[0].args = doing(t)
	if v, err := (instance{f}).Message(ctx, tx, message.FromString(plain)); err != nil || v.Action != pipeline.Continue {
		t.Errorf("%v %v", v, err)
	}
}

func transaction() *pipeline.Transaction {
	return &pipeline.Transaction{ID: "t1", Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org"), Active: []int{0}}
}

// Only so many messages are with programs at a time, and who waits for too long
// has failed.
func TestConcurrency(t *testing.T) {
	dir := t.TempDir()
	one := script(t, `mkdir `+dir+`/a 2>/dev/null && { sleep 0.02; rmdir `+dir+`/a; exit 0; }
mkdir `+dir+`/b 2>/dev/null && { sleep 0.02; rmdir `+dir+`/b; exit 0; }
exit 1`)
	r := newRig(t, Options{Command: []string{one}, Concurrency: 2})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { r.want(plain, plain) })
	}
	all.Wait()
	f, err := New(environment(t), Options{Command: []string{one}, Concurrency: 1})
	if err != nil {
		t.Fatal(err)
	}
	f.places <- struct{}{}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := (instance{f}).Message(ctx, transaction(), message.FromString(plain)); err == nil || !strings.Contains(err.Error(), "1 messages are with programs already") {
		t.Errorf("%v", err)
	}
}

// Where nothing starts programs, as in a check of the configuration.
func TestNoPrograms(t *testing.T) {
	f, err := New(pipeline.Env{}, Options{Command: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (instance{f}).Message(context.Background(), transaction(), message.FromString(plain)); err == nil || !strings.Contains(err.Error(), "nothing here that starts programs") {
		t.Errorf("%v", err)
	}
}

// A log of years is no reason to fail, only one that is too large even for it.
func TestOwnLog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	r := newRig(t, Options{Command: []string{script(t, "echo x >>"+log)}})
	for _, c := range []struct {
		size int64
		ok   bool
	}{{3 << 30, true}, {5 << 30, false}} {
		if err := os.WriteFile(log, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(log, c.size); err != nil {
			t.Fatal(err)
		}
		if c.ok {
			r.want(plain, plain)
		} else {
			r.fails(plain, "larger than 4294967296 bytes (max_file)")
		}
	}
}

// What a program has written to a disk that is full by then may be cut off.
func TestFullDisk(t *testing.T) {
	f, err := New(environment(t), Options{Command: []string{sample(t, "add-header"), "X: y"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{10, message.InMemory} {
		m := message.FromString(plain + strings.Repeat("x\n", size))
		for _, free := range []int64{minFree - 1, minFree} {
			f.free = func(*os.File) (int64, error) { return free, nil }
			v, err := (instance{f}).Message(context.Background(), transaction(), m)
			if full := free < minFree; full != (err != nil && strings.Contains(err.Error(), "may be cut off")) || !full && len(v.Edits) != 1 {
				t.Errorf("%d bytes, %d free: %+v %v", size, free, v, err)
			}
		}
		f.free = freeSpace
		if v, err := (instance{f}).Message(context.Background(), transaction(), m); err != nil || len(v.Edits) != 1 {
			t.Errorf("%d bytes: %+v %v", size, v, err)
		}
	}
}

// A spool that has no room, or none at all: then files are in memory.
func TestSpool(t *testing.T) {
	e := environment(t)
	full := &fullSpool{Spooler: e.Spool}
	e.Spool = full
	f, err := New(e, Options{Command: []string{"sed", "s/hello/changed/; $a footer"}})
	if err != nil {
		t.Fatal(err)
	}
	big := message.FromString(plain + strings.Repeat("x\n", message.InMemory))
	for n := range 3 {
		full.left = n
		if _, err := (instance{f}).Message(context.Background(), transaction(), big); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("%d: %v", n, err)
		}
	}
	f.env.Spool = nil
	for _, m := range []message.Message{big, message.FromString(plain)} {
		v, err := (instance{f}).Message(context.Background(), transaction(), m)
		if err != nil || len(v.Edits) != 1 || v.Edits[0].Head.Get("Subject") != "changed" || v.Body.Size() != m.Body().Size()+7 {
			t.Errorf("%+v %v", v, err)
		}
	}
}

type fullSpool struct {
	message.Spooler
	left int
}

func (s *fullSpool) Create() (string, message.File, error) {
	if s.left--; s.left < 0 {
		return "", nil, unix.ENOSPC
	}
	return s.Spooler.Create()
}

// After ten thousand calls, good and bad, there is nothing left: no descriptor,
// no goroutine, no process, no file.
func TestNothingLeaks(t *testing.T) {
	env := environment(t)
	spool := t.TempDir()
	var err error
	if env.Spool, err = message.OpenDirectory(spool); err != nil {
		t.Fatal(err)
	}
	var filters []*Filter
	for _, things := range [][]string{
		{}, {"copy"}, {"say=1,A: b\n\nnew\n"}, {"say=4,Fx"}, {"exit=31"}, {"exit=99"}, {"crash"}, {"say=6,Dno", "exit=82"}, {"leave"}, {"close"},
	} {
		f, err := New(env, Options{Command: doing(t, things...)})
		if err != nil {
			t.Fatal(err)
		}
		filters = append(filters, f)
	}
	missing, err := New(env, Options{Command: []string{"/nonexistent"}})
	if err != nil {
		t.Fatal(err)
	}
	filters = append(filters, missing)
	call := func(n int) {
		v, err := (instance{filters[n%len(filters)]}).Message(context.Background(), transaction(), message.FromString(plain))
		if v.Body.Release(); n%len(filters) == 0 && err != nil {
			t.Error(err)
		}
	}
	for n := range 100 {
		call(n)
	}
	descriptors, goroutines, processes := count(t, "/proc/self/fd"), runtime.NumGoroutine(), children(t)
	var all sync.WaitGroup
	for k := range 8 {
		all.Go(func() {
			for n := k; n < filtertest.Soak(); n += 8 {
				call(n)
			}
		})
	}
	all.Wait()
	for start := time.Now(); ; time.Sleep(time.Millisecond) { // a goroutine may be on its last line
		d, g, p, f := count(t, "/proc/self/fd"), runtime.NumGoroutine(), children(t), count(t, spool)
		if d <= descriptors && g <= goroutines && p <= processes && f == 0 {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("%d descriptors, %d before; %d goroutines, %d before; %d processes, %d before; %d files", d, descriptors, g, goroutines, p, processes, f)
		}
	}
}

func count(t testing.TB, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// children counts the processes that have been started from the program that
// misbehaves, and those of this one.
func children(t testing.TB) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	name, err := hostile()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if to, err := os.Readlink("/proc/" + p.Name() + "/exe"); err == nil && to == name {
			n++
		}
	}
	return n
}
