package handoff

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// clock is a clock that the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// keeper is a Kept with a script as its next program.
type keeper struct {
	t    *testing.T
	dir  string
	o    KeptOptions
	log  *journal
	kept *Kept
}

func newKeeper(t *testing.T, script string) *keeper {
	t.Helper()
	dir := t.TempDir()
	k := &keeper{t: t, dir: dir, log: &journal{lines: make(chan map[string]any, 100)}}
	k.o = KeptOptions{
		Dir: filepath.Join(dir, "kept"), Next: program(t, dir, "D="+dir+"\n"+script), Log: slog.New(slog.NewJSONHandler(k.log, nil)),
		First: time.Millisecond, Most: 5 * time.Millisecond,
	}
	k.open()
	return k
}

func (k *keeper) open() {
	k.t.Helper()
	var err error
	k.kept, err = OpenKept(k.o)
	check(k.t, err)
}

// run retries until the returned function is called.
func (k *keeper) run() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		k.kept.run(context.Background(), quit)
	}()
	return sync.OnceFunc(func() { close(quit); <-done })
}

func (k *keeper) hold() *Held {
	k.t.Helper()
	h, err := k.kept.Hold("id/../1", envelope.To("a@x", "b@x"), message.FromString(mail))
	check(k.t, err)
	return h
}

func (k *keeper) files() []string {
	k.t.Helper()
	entries, err := os.ReadDir(k.o.Dir)
	check(k.t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (k *keeper) len() int { n, _ := k.kept.Len(); return n }

func TestKeptIsTriedUntilTaken(t *testing.T) {
	k := newKeeper(t, `test "$POSTERN_HOPS" = 4 || exit 81
echo x >>$D/tries; test $(wc -l <$D/tries) -ge 4 || exit 53
`+takeAll)
	defer k.run()()
	k.hold().Retry()
	until(t, "the copy to get through", func() bool { return k.len() == 0 })
	if read(t, k.dir+"/message") != mail || read(t, k.dir+"/envelope") != "Fa@x\x00Tb@x\x00\x00" {
		t.Error("something else came through")
	}
	if n := strings.Count(read(t, k.dir+"/tries"), "x"); n != 4 {
		t.Error(n)
	}
	if left := k.files(); len(left) != 0 {
		t.Error(left)
	}
	if !k.log.has("exit 53 (qq write error or disk full)") || !k.log.has("got through") {
		t.Error("the log does not say it")
	}
}

// A copy that nobody has decided about is not tried, but survives a crash.
func TestKeptSurvives(t *testing.T) {
	k := newKeeper(t, takeAll)
	stop := k.run()
	k.hold()
	time.Sleep(20 * time.Millisecond)
	if exists(k.dir + "/message") {
		t.Error("tried while the shim was at work")
	}
	stop()
	k.open() // as after a crash
	if n, bytes := k.kept.Len(); n != 1 || bytes != int64(len(mail)) {
		t.Error(n, bytes)
	}
	defer k.run()()
	until(t, "the copy to get through", func() bool { return k.len() == 0 })
	if read(t, k.dir+"/message") != mail {
		t.Error("something else came through")
	}
}

func TestKeptIsDropped(t *testing.T) {
	k := newKeeper(t, takeAll)
	h := k.hold()
	if len(k.files()) != 2 {
		t.Error(k.files())
	}
	h.Drop()
	if n, bytes := k.kept.Len(); n != 0 || bytes != 0 || len(k.files()) != 0 {
		t.Error(n, bytes, k.files())
	}
}

// After its lifetime a copy is left where the administrator finds it.
func TestKeptIsSetAside(t *testing.T) {
	k := newKeeper(t, "exit 31")
	c := &clock{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	k.o.Now = c.now
	k.open()
	h := k.hold()
	k.kept.try(context.Background(), h)
	if k.len() != 1 {
		t.Fatal("given up at once")
	}
	c.advance(7 * 24 * time.Hour)
	k.kept.try(context.Background(), h)
	if n, bytes := k.kept.Len(); n != 0 || bytes != 0 {
		t.Error(n, bytes)
	}
	files := k.files()
	if len(files) != 2 || !strings.HasSuffix(files[0], ".env.failed") || !strings.HasSuffix(files[1], ".msg.failed") {
		t.Fatal(files)
	}
	if !k.log.has(files[1]) || !k.log.has("set aside") || read(t, filepath.Join(k.o.Dir, files[1])) != mail {
		t.Error("the log does not say where it is")
	}
	k.open()
	if k.len() != 0 || len(k.files()) != 2 {
		t.Error("taken up again:", k.files())
	}
}

func TestKeptPausesGrow(t *testing.T) {
	k := newKeeper(t, "exit 71")
	c := &clock{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	k.o.Now, k.o.First, k.o.Most = c.now, time.Minute, 5*time.Minute
	k.open()
	h := k.hold()
	for _, want := range []time.Duration{1, 2, 4, 5, 5} {
		k.kept.try(context.Background(), h)
		if got := h.due.Sub(c.now()); got != want*time.Minute {
			t.Errorf("%v, want %v min", got, int(want))
		}
	}
	h.tries = 200
	k.kept.try(context.Background(), h)
	if got := h.due.Sub(c.now()); got != 5*time.Minute {
		t.Error(got)
	}
}

func TestKeptIsBounded(t *testing.T) {
	k := newKeeper(t, "")
	k.o.Messages = 2
	k.open()
	k.hold()
	k.hold()
	_, err := k.kept.Hold("3", envelope.To("a"), message.FromString(mail))
	if reply.Of(err) != reply.NoSpace || len(k.files()) != 4 {
		t.Error(err)
	}
	k.o.Messages, k.o.Bytes = 10, int64(3*len(mail)-1)
	k.open()
	if _, err = k.kept.Hold("3", envelope.To("a"), message.FromString(mail)); reply.Of(err) != reply.NoSpace {
		t.Error(err)
	}
}

// An error on the way to the disk leaves nothing, and is temporary.
func TestKeptCannotWrite(t *testing.T) {
	k := newKeeper(t, "")
	broken := message.StoredBody{At: failing{}, Size: 10}.Open()
	defer broken.Release()
	_, err := k.kept.Hold("1", envelope.To("a"), message.New(message.Head{}, broken))
	if reply.Of(err) != reply.NoSpace || k.len() != 0 || len(k.files()) != 0 {
		t.Error(err, k.files())
	}
	_, err = k.kept.Hold("1", envelope.To("a\x00"), message.FromString(mail))
	if err == nil || k.len() != 0 || len(k.files()) != 0 {
		t.Error(err, k.files())
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("EIO") }

// What a crash left half-way is no message and goes; what cannot be
// understood stays, and the log names it.
func TestKeptRecovers(t *testing.T) {
	k := newKeeper(t, "")
	for name, content := range map[string]string{
		"1-a-x.msg": mail, "2-b-x.msg": mail, "2-b-x.env.new": "F", "3-c-x.env": list, "odd.env": list, "odd.msg": mail, "README": "x",
	} {
		check(t, os.WriteFile(filepath.Join(k.o.Dir, name), []byte(content), 0o600))
	}
	k.open()
	if k.len() != 0 {
		t.Error(k.len())
	}
	if left := strings.Join(k.files(), " "); left != "3-c-x.env README odd.env odd.msg" {
		t.Error(left)
	}
	if !k.log.has("3-c-x.env") || !k.log.has("odd.env") {
		t.Error("the log does not name them")
	}
}

// The end of the context ends a program that hangs; its message stays.
func TestKeptProgramHangs(t *testing.T) {
	k := newKeeper(t, "echo >$D/begun; exec sleep 1000")
	k.hold().Retry()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	quit := make(chan struct{})
	go func() { defer close(done); k.kept.run(ctx, quit) }()
	until(t, "the program to begin", func() bool { return exists(k.dir + "/begun") })
	close(quit)
	cancel()
	<-done
	if k.len() != 1 || len(k.files()) != 2 {
		t.Error(k.files())
	}
	k.o.Timeout = 10 * time.Millisecond
	k.open()
	defer k.run()()
	until(t, "the time-out", func() bool { return k.log.has("killed") })
	if k.len() != 1 {
		t.Error(k.len())
	}
}

// The next program can only read what it is given.
func TestHeldIsReadOnly(t *testing.T) {
	k := newKeeper(t, "")
	p, err := k.hold().open()
	check(t, err)
	defer p.close()
	if _, err := p.message.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written to")
	}
	if b, _ := io.ReadAll(p.envelope); string(b) != "Fa@x\x00Tb@x\x00\x00" {
		t.Errorf("%q", b)
	}
}
