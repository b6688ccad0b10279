package clamav

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clamd "github.com/dutchcoders/go-clamd"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers"
)

// real is Debian's clamd with signatures of our own.
type real struct {
	t       testing.TB
	dir     string
	address string
	cmd     *exec.Cmd
}

// newReal starts one with more lines for its configuration.
func newReal(t testing.TB, limits string) *real {
	t.Helper()
	if _, err := exec.LookPath("clamd"); err != nil {
		t.Fatal("this test needs Debian's clamav-daemon: make deps installs it")
	}
	r := &real{t: t, dir: t.TempDir()}
	r.address = "unix:" + filepath.Join(r.dir, "s")
	r.write("db/own.ndb", "Own.Eicar:0:*:"+hex.EncodeToString(clamd.EICAR)+"\nOwn.Start:0:0:"+hex.EncodeToString([]byte("only at the start"))+"\n")
	r.write("db/own.hdb", "aa15bcf478d165efd2065190eb473bcb:544:Own.Test.File\n")
	r.write("clamd.conf", fmt.Sprintf("LocalSocket %s/s\nFixStaleSocket yes\nDatabaseDirectory %s/db\nTemporaryDirectory %s\nForeground yes\nLogFile %s/log\nMaxThreads 4\nAlertExceedsMax yes\n%s\n", r.dir, r.dir, r.dir, r.dir, limits))
	r.start()
	t.Cleanup(r.stop)
	return r
}

func (r *real) write(name, text string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	os.Chmod(r.dir, 0o755)
}

// start starts clamd and waits until it answers.
func (r *real) start() {
	r.t.Helper()
	r.cmd = exec.Command("clamd", "-c", filepath.Join(r.dir, "clamd.conf"))
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := os.Create(filepath.Join(r.dir, "out"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	r.cmd.Stdout, r.cmd.Stderr = out, out
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	_, path, _ := strings.Cut(r.address, ":")
	server := &servers.Server{Network: "unix", Address: path}
	for range 600 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		answer, err := ask(ctx, server, "PING")
		cancel()
		if err == nil && answer == "PONG" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	b, _ := os.ReadFile(out.Name())
	r.t.Fatalf("clamd does not start: %s", b)
}

// stop kills clamd.
func (r *real) stop() {
	if r.cmd != nil {
		r.cmd.Process.Kill()
		r.cmd.Wait()
		r.cmd = nil
	}
}

// The real clamd finds the test virus wherever it is hidden, by itself or in what
// the filter lays open for it.
func TestClamd(t *testing.T) {
	r := newReal(t, "")
	f, alone := newFilter(t, "", r.address), newFilter(t, "parts = \"none\"", r.address)
	var missed []string
	for _, c := range tricks(clamd.EICAR) {
		if v := must(t, f, c.text); v.Action != pipeline.Reject || !strings.Contains(v.Reply.Text, "Own.Eicar.UNOFFICIAL") {
			t.Errorf("%s: %v %s", c.name, v.Action, v.Reason)
		}
		if v := must(t, alone, c.text); v.Action == pipeline.Continue {
			missed = append(missed, c.name)
		}
		if v := must(t, f, strings.ReplaceAll(c.text, "Subject: hello", "Subject: hullo")); v.Action != pipeline.Reject {
			t.Errorf("%s: %v %s", c.name, v.Action, v.Reason)
		}
	}
	for _, c := range tricks([]byte("nothing to see here, move on, please, and do not stop")) {
		if v := must(t, f, c.text); v.Action != pipeline.Continue {
			t.Errorf("clean, %s: %v %s", c.name, v.Action, v.Reason)
		}
	}
	if len(missed) == 0 {
		t.Error("clamd alone misses nothing: the parts need not be scanned")
	}
	t.Logf("clamd alone misses: %s", strings.Join(missed, ", "))
	for range 20 {
		must(t, f, "")
	}
}

// The files that ClamAV's authors test with are all found, plain and attached.
func TestClamdFiles(t *testing.T) {
	r := newReal(t, "")
	f := newFilter(t, "", r.address)
	files, err := filepath.Glob("/usr/share/clamav-testfiles/clam*")
	if err != nil || len(files) < 40 {
		t.Fatal("this test needs Debian's clamav-testfiles: make deps installs it")
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := "From: a@example.net\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n--b\n" +
			"Content-Type: application/octet-stream; name=" + filepath.Base(file) + "\nContent-Transfer-Encoding: base64\n\n" + encoded(b) + "--b--\n"
		if v := must(t, f, text); v.Action != pipeline.Reject {
			t.Errorf("%s: %v %s", file, v.Action, v.Reason)
		}
	}
}

// Beyond clamd's own limits: told by it, or a failure that says what to change.
func TestClamdLimits(t *testing.T) {
	r := newReal(t, "StreamMaxLength 1M\nMaxFileSize 900K")
	f := newFilter(t, "", r.address)
	over := "Subject: x\n\n" + strings.Repeat("over and over\n", 100_000)
	if _, err := judge(f, over, 20*time.Second); err == nil || !strings.Contains(err.Error(), "StreamMaxLength") {
		t.Error(err)
	}
	if v := must(t, f, over[:950_000]); v.Action != pipeline.Reject || v.Symbols[0].Name != symbolUnscannable {
		t.Errorf("%v %s", v.Action, v.Reason)
	}
	if v := must(t, newFilter(t, "max = 1000", r.address), over); v.Symbols[0].Name != symbolUnscannable {
		t.Error(v)
	}
}

// clamd is killed, stopped and started while mail comes in: nothing that has a
// virus passes, nothing hangs, and a little later mail is scanned again.
func TestClamdRestarts(t *testing.T) {
	r := newReal(t, "")
	f := newFilter(t, "connections = 4", r.address)
	clean, bad := message.FromString(large), message.FromString(large+string(clamd.EICAR))
	var passed, caught, failed atomic.Int64
	done := make(chan struct{})
	var senders sync.WaitGroup
	for i := range 6 {
		senders.Go(func() {
			for n := i; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				m := clean
				if n%2 == 1 {
					m = bad
				}
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				v, err := f.Message(ctx, transaction(), m)
				cancel()
				switch {
				case err != nil:
					failed.Add(1)
					time.Sleep(5 * time.Millisecond)
				case v.Action == pipeline.Reject && n%2 == 1:
					caught.Add(1)
				case v.Action == pipeline.Continue && n%2 == 0:
					passed.Add(1)
				default:
					t.Errorf("message %d: %v %s", n, v.Action, v.Reason)
					return
				}
			}
		})
	}
	// works waits until messages of both kinds are judged again.
	works := func(what string) {
		t.Helper()
		p, c := passed.Load(), caught.Load()
		for range 1500 {
			if passed.Load() > p+5 && caught.Load() > c+5 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("nothing is scanned %s", what)
	}
	fails := func() {
		t.Helper()
		n := failed.Load()
		for range 1500 {
			if failed.Load() > n+5 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error("nothing fails while clamd is away")
	}
	works("at first")
	r.stop()
	fails()
	r.start()
	works("after a restart")
	r.cmd.Process.Signal(syscall.SIGSTOP)
	fails()
	r.cmd.Process.Signal(syscall.SIGCONT)
	works("after a pause")
	close(done)
	senders.Wait()
	t.Logf("%d passed, %d caught, %d failed", passed.Load(), caught.Load(), failed.Load())
}
