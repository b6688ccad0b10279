package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/queue/store"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// daemon is postern serve with its state in one folder and everything else, log
// and sockets, in another that no fault reaches.
type daemon struct {
	p              *programs
	t              *testing.T
	folder, state  string
	low            string // queue.low_space
	sink           string // host:port for out.example
	boxes, outside string // folders of Maildirs: for box.example, which may be on the image, and for away.example

	supervised bool // it may end by itself
	// joins puts a new process where it belongs; nil leaves it where it is.
	joins func(pid int) error

	mu     sync.Mutex
	proc   *exec.Cmd
	ended  chan struct{} // closed when proc has ended
	exits  map[int]int   // how often it ended with which code; minus a signal's number
	deaths []time.Time
	starts int
}

func (d *daemon) path(name string) string { return filepath.Join(d.folder, name) }

// configure writes the configuration and makes all Maildirs. Retries come
// quickly, and there is no resolver: nothing leaves but by the route.
func (d *daemon) configure() {
	d.t.Helper()
	text := fmt.Sprintf(`hostname = "mx.crash.example"
control = ""
trusted = ["0"]
state = %q
admin.socket = %q
log.format = "json"
[listen.queue]
socket = %q
next = "queue"
[queue]
low_space = %q
retry = "list 1s"
resolver = ["127.0.0.1:1"]
[chain]
inbound = ["tap"]
[filter.tap]
rules = ["T:^split@:%s"]
[route]
"out.example" = %q
[mailbox]
"@box.example" = "%s/%%l"
"@away.example" = "%s/%%l"
"@mx.crash.example" = "%s/reports"
%q = "%s/reports"
`, d.state, d.path("admin.sock"), d.path("queue.sock"), d.low, copyAddress, d.sink, d.boxes, d.outside, d.outside, sender, d.outside)
	if err := os.WriteFile(d.path("postern.toml"), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	for _, box := range d.maildirs() {
		for _, sub := range []string{"tmp", "new", "cur"} {
			if err := os.MkdirAll(filepath.Join(box, sub), 0o700); err != nil {
				d.t.Fatal(err)
			}
		}
	}
	// They were there long before the power fails.
	syscall.Sync()
	d.exits = map[int]int{}
	d.t.Cleanup(func() {
		d.kill()
		if d.t.Failed() {
			d.t.Logf("the daemon's last words:\n%s", tail(d.path("log"), 6000))
		}
	})
}

// locals are the local parts that have a Maildir in each domain.
var locals = []string{"joe", "ann", "split", "copies"}

// Reports to the sender, and to the postmaster, come to a Maildir where nothing
// must be.
const (
	copyAddress = "copies@box.example"
	sender      = "load@box.example"
)

func (d *daemon) maildirs() []string {
	all := []string{filepath.Join(d.outside, "reports")}
	for _, local := range locals {
		all = append(all, filepath.Join(d.boxes, local), filepath.Join(d.outside, local))
	}
	return all
}

// start runs the daemon; it does not wait until it serves.
func (d *daemon) start() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(); err != nil {
		d.t.Fatal(err)
	}
}

// begin starts the process; d.mu is held.
func (d *daemon) begin() error {
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(d.p.postern, "serve", "--config", d.path("postern.toml"), "--grace", "20s")
	c.Dir, c.Stderr, c.Stdout = d.folder, log, log
	if err := c.Start(); err != nil {
		return err
	}
	if d.joins != nil {
		if err := d.joins(c.Process.Pid); err != nil {
			return err
		}
	}
	ended := make(chan struct{})
	d.proc, d.ended = c, ended
	d.starts++
	go func() {
		c.Wait() //nolint:errcheck // how it ended is what counts
		d.mu.Lock()
		defer d.mu.Unlock()
		code := c.ProcessState.ExitCode()
		if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			code = -int(ws.Signal())
		}
		d.exits[code]++
		d.deaths = append(d.deaths, time.Now())
		close(ended)
	}()
	return nil
}

// running gives the process; nil if there was none.
func (d *daemon) running() (*exec.Cmd, chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.proc, d.ended
}

func (d *daemon) hasEnded() bool {
	_, ended := d.running()
	select {
	case <-ended:
		return true
	default:
		return false
	}
}

func (d *daemon) history() (starts int, exits string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.starts, fmt.Sprint(d.exits)
}

// kill ends it without a warning, and waits until it is gone.
func (d *daemon) kill() {
	proc, ended := d.running()
	if proc == nil {
		return
	}
	proc.Process.Kill() //nolint:errcheck // it may have ended by itself
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		d.t.Errorf("the daemon does not die")
	}
}

// freeze stops it where it stands: no thread of it runs any more, but for those
// that wait for the disk, which stop before they can tell anybody what came of
// it.
func (d *daemon) freeze() {
	d.t.Helper()
	proc, _ := d.running()
	proc.Process.Signal(syscall.SIGSTOP) //nolint:errcheck // it may have ended by itself
	for range 10_000 {
		if d.hasEnded() || frozen(proc.Process.Pid) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	d.t.Fatal("the daemon cannot be stopped")
}

func frozen(pid int) bool {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		// PID (NAME) STATE ...
		_, rest, _ := strings.Cut(string(b), ") ")
		if rest == "" || !strings.ContainsRune("TtDZX", rune(rest[0])) {
			return false
		}
	}
	return true
}

// terminate ends it in good order.
func (d *daemon) terminate() {
	d.t.Helper()
	proc, ended := d.running()
	proc.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended by itself
	select {
	case <-ended:
	case <-time.After(40 * time.Second):
		d.t.Fatalf("the daemon does not end")
	}
	if code := proc.ProcessState.ExitCode(); code != 0 {
		d.t.Fatalf("the daemon ended with %d after SIGTERM", code)
	}
}

// mostStart bounds a start, with a log to read again, on a busy machine.
const mostStart = 60 * time.Second

// wait waits until the daemon serves, and says how long that took. That it ends
// instead is a failure.
func (d *daemon) wait() time.Duration {
	d.t.Helper()
	begun := time.Now()
	for !d.serves() {
		if d.hasEnded() {
			d.t.Fatalf("the daemon does not start:\n%s", tail(d.path("log"), 3000))
		}
		if time.Since(begun) > mostStart {
			d.t.Fatalf("the daemon does not serve after %v", mostStart)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begun)
}

// serves reports whether somebody listens on the admin socket, which is the
// last thing that a starting daemon opens.
func (d *daemon) serves() bool {
	conn, err := net.Dial("unix", d.path("admin.sock"))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// supervise starts the daemon again whenever it ends, until stop is called.
func (d *daemon) supervise() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	d.supervised = true
	go func() {
		defer close(done)
		for {
			_, ended := d.running()
			select {
			case <-quit:
				return
			case <-ended:
			}
			select {
			case <-quit:
				return
			case <-time.After(100 * time.Millisecond):
			}
			d.mu.Lock()
			err := d.begin()
			d.mu.Unlock()
			if err != nil {
				d.t.Errorf("supervisor: %v", err)
				return
			}
		}
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			close(quit)
			<-done
			d.supervised = false
		})
	}
	d.t.Cleanup(stop)
	return stop
}

// examine opens the store while no daemon does, and reports what is wrong with
// it and how many messages it holds.
func (d *daemon) examine() (messages int) {
	d.t.Helper()
	s, err := pebble.Open(pebble.Options{
		Dir: filepath.Join(d.state, "queue"), LowBytes: -1, LowInodes: -1, Ballast: -1,
		Log:   slog.New(slog.NewTextHandler(io.Discard, nil)),
		Fatal: func(err error) { panic(err) },
	})
	if err != nil {
		d.t.Fatalf("opening the store: %v", err)
	}
	err = s.Verify(context.Background(), func(problem string) { d.t.Errorf("verify: %s", problem) })
	if err != nil {
		d.t.Fatalf("verify: %v", err)
	}
	r, err := s.Reader()
	if err == nil {
		err = errors.Join(r.Scan(0, func(*store.Entry) error { messages++; return nil }), r.Close())
	}
	if err = errors.Join(err, s.Close()); err != nil {
		d.t.Fatalf("reading the store: %v", err)
	}
	return messages
}

// leftovers are files that should have gone with their messages.
func (d *daemon) leftovers() []string {
	var all []string
	for _, dir := range []string{"bodies", "spool"} {
		names, err := os.ReadDir(filepath.Join(d.state, "queue", dir))
		if err != nil {
			d.t.Fatal(err)
		}
		for _, e := range names {
			all = append(all, dir+"/"+e.Name())
		}
	}
	return all
}

// said counts the lines of the log that hold a text.
func (d *daemon) said(text string) int {
	b, err := os.ReadFile(d.path("log"))
	if err != nil {
		d.t.Fatal(err)
	}
	return strings.Count(string(b), text)
}
