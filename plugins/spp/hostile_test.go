package spp

import (
	"context"
	"fmt"
	"os"
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

// failing wants a program to fail, and the log of the trace to say how. timeout
// is the filter's; 0 is enough for everything.
func failing(t *testing.T, timeout time.Duration, script, want string) {
	t.Helper()
	f, err := New(filtertest.Env(t), Options{Mail: []string{":" + script}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := pipeline.NewChain("inbound", []pipeline.Step{{Name: Name, Filter: f, Timeout: timeout}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := &rig{t: t, chain: c}
	r.connect(nil)
	defer r.judge.Close()
	r.want("mail a@example.net", "defer 451 4.3.0 temporary trouble here, please try again later")
	if got := r.trace("sender"); !strings.Contains(got, want) {
		t.Errorf("%s: %s, want %s", script, got, want)
	}
}

// short is enough for a program that does little, and not much.
const short = time.Second

// gone waits until the process whose number a file holds is gone.
func gone(t *testing.T, file string) {
	t.Helper()
	var b []byte
	for range 1500 {
		if b, _ = os.ReadFile(file); len(b) > 1 {
			pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				t.Fatal(err)
			}
			if unix.Kill(pid, 0) == unix.ESRCH || dead(pid) {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: process %s goes on", file, b)
}

// dead reports whether a process waits for its parent only.
func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// A program that crashes has failed, whatever it said before.
func TestCrash(t *testing.T) {
	failing(t, 0, "echo N; kill -SEGV $$", "it died: signal: segmentation fault")
	failing(t, 0, "echo E550 no; kill -9 $$", "it died: signal: killed")
	failing(t, 0, "exit 120", "exit 120: it cannot be run")
	f, err := New(filtertest.Env(t), Options{Mail: []string{"/no/such/program"}, Rcpt: []string{write(t, t.TempDir()+"/x", "no program", 0o644)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.runner.run(context.Background(), "/no/such/program", "/", nil); err == nil || !strings.Contains(err.Error(), "cannot be run") {
		t.Error(err)
	}
	f.runner.programs = nil
	if _, err := f.runner.run(context.Background(), ":", "/", nil); err == nil || !strings.Contains(err.Error(), "no programs are run here") {
		t.Error(err)
	}
}

// A program that says nothing, or reads its input, lets pass: there is nothing to
// be read.
func TestSilent(t *testing.T) {
	r := newRig(t, Options{Connection: []string{":exit 0", ":cat; echo Pread"}, Mail: []string{":exec 1>&- 2>&-; exit 1"}})
	r.want("greet", "continue [read]", "mail a@example.net", "continue")
}

// A program that closes its descriptors, and goes on, is waited for and killed.
func TestClosed(t *testing.T) {
	failing(t, short, "echo N; exec 0<&- 1>&- 2>&-; exec sleep 600", "it was killed: context deadline exceeded")
}

// A program that writes without an end is killed; the log hears little.
func TestFlood(t *testing.T) {
	failing(t, 0, "exec yes Pmore", fmt.Sprintf("it wrote more than %d bytes", maxOutput))
	failing(t, 0, "echo A; exec head -c 1000000000 /dev/zero", fmt.Sprintf("it wrote more than %d bytes", maxOutput))
	failing(t, 0, "head -c 20000 /dev/zero | tr '\\0' E", "it wrote a line of 20000 bytes")
	failing(t, 0, "i=0; while [ $i -le 1000 ]; do echo C$i; i=$((i+1)); done", "it wrote more than 1000 commands")
	failing(t, 0, "i=0; while [ $i -le 32 ]; do echo P$i; i=$((i+1)); done", "it prints more than 32 lines")
	failing(t, 0, "i=0; while [ $i -le 50 ]; do echo LRx; i=$((i+1)); done", "more than 50 errors")
	failing(t, 0, "i=0; while [ $i -le 200 ]; do echo HX: x; i=$((i+1)); done", "more than 200 header fields")
	r := newRig(t, Options{Connection: []string{":head -c 1000000000 /dev/zero | tr '\\0' x >&2; echo Pdone"}})
	r.want("greet", "continue [done]")
	if l := len(r.log.String()); l > maxSaid+1000 || !strings.Contains(r.log.String(), "(and 999998000 bytes more)") {
		t.Errorf("%d bytes of log: %.300s", l, r.log)
	}
}

// A program that hangs, in the beginning or behind its answer, is killed with all
// that it has started.
func TestHang(t *testing.T) {
	dir := t.TempDir()
	failing(t, 3*short, "trap '' TERM HUP; sleep 600 & echo $! >"+dir+"/child; echo E550 no; sleep 600", "it was killed: context deadline exceeded")
	gone(t, dir+"/child")
	failing(t, short, "exec sleep 600", "it was killed: context deadline exceeded")
	failing(t, short, "echo $$ >"+dir+"/stopped; kill -STOP $$", "it was killed: context deadline exceeded")
	gone(t, dir+"/stopped")
}

// What a program leaves behind is killed when it ends, and is not waited for,
// even if it holds its output.
func TestFork(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, Options{Connection: []string{":sleep 600 & echo $! >" + dir + "/child; setsid sh -c 'echo $$ >" + dir + "/stray; exec sleep 600' & while ! [ -s " + dir + "/stray ]; do :; done; echo Pdone"}})
	r.want("greet", "continue [done]")
	gone(t, dir+"/child")
	gone(t, dir+"/stray")
}

// Memory, processor time and files are bounded.
func TestLimits(t *testing.T) {
	perl := func(what string) string { return "exec perl -e '" + what + "'" }
	f := func(o Options, script string) error {
		o.Mail = []string{":" + script}
		f, err := New(filtertest.Env(t), o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err = f.runner.run(ctx, o.Mail[0], "/", nil)
		return err
	}
	out := filepath.Join(t.TempDir(), "reached")
	for limit, reached := range map[int64]bool{64 << 20: false, 2 << 30: true} { // it exits when it has no memory left, which means nothing
		if err := f(Options{Memory: limit}, perl(`my $x = "x" x (256 << 20); open(my $f, ">", "`+out+`")`)); err != nil {
			t.Errorf("memory: %v", err)
		}
		if err := os.Remove(out); (err == nil) != reached {
			t.Errorf("with a limit of %d bytes a program had 256 MiB: %v", limit, err == nil)
		}
	}
	if err := f(Options{CPU: time.Second}, "while :; do :; done"); err == nil || !strings.Contains(err.Error(), "it died: signal") {
		t.Errorf("processor time: %v", err)
	}
	if err := f(Options{MaxFile: 1 << 20}, "exec head -c 100000000 /dev/zero >"+out); err == nil || !strings.Contains(err.Error(), "larger than 1048576 bytes (max_file)") {
		t.Errorf("a file: %v", err)
	}
	// A log of years is no reason to fail.
	if err := os.Truncate(out, 3<<30); err != nil {
		t.Fatal(err)
	}
	if err := f(Options{}, "echo x >>"+out); err != nil {
		t.Errorf("a log: %v", err)
	}
}

// Only so many programs run at a time, and who waits too long has failed.
func TestPlaces(t *testing.T) {
	f, err := New(filtertest.Env(t), Options{Mail: []string{":x"}, Concurrency: 2})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	one := ":mkdir " + dir + "/a 2>/dev/null && { sleep 0.05; rmdir " + dir + "/a; exit 0; }; mkdir " + dir + "/b 2>/dev/null && { sleep 0.05; rmdir " + dir + "/b; exit 0; }; exit 120"
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := f.runner.run(context.Background(), one, "/", []string{"PATH=/usr/bin:/bin"}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	f.runner.places <- struct{}{}
	f.runner.places <- struct{}{}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := f.runner.run(ctx, one, "/", nil); err == nil || !strings.Contains(err.Error(), "2 programs run already") {
		t.Error(err)
	}
}

// A message that an earlier filter held is released without its session: what
// programs say of it then is about the envelope.
func TestReleased(t *testing.T) {
	r := newRig(t, Options{Data: []string{":echo \"HX-Spp: $SMTPMAILFROM $SMTPRCPTTO $SMTPRCPTCOUNT $SMTPRCPTCOUNTALL $SMTPRCPTHOSTSOK\""}})
	r.say("greet")
	tx := &pipeline.Transaction{ID: "t", Session: r.session}
	tx.Envelope.Sender = "a@example.net"
	tx.Envelope.Recipients = envelope.To("", "b@example.org", "c@elsewhere.example").Recipients
	m := message.FromString("Subject: x\n\nbody\n")
	defer m.Body().Release()
	o, err := r.chain.Resume(context.Background(), tx, m, pipeline.Resume{From: Name})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Release()
	if len(o.Outgoing) != 1 || !strings.HasPrefix(o.Outgoing[0].Message.Head().String(), "X-Spp: a@example.net c@elsewhere.example 2 2 0\n") {
		t.Errorf("%+v", o.Outgoing)
	}
}

// Ten thousand calls, good and bad, leave no descriptor, goroutine, process or
// file behind.
func TestNothingLeaks(t *testing.T) {
	env := filtertest.Env(t)
	starter := program.New(program.Options{})
	defer starter.Close()
	env.Programs = starter
	dir := t.TempDir()
	good := write(t, dir+"/good", "#!/bin/true\n", 0o755)
	f, err := New(env, Options{Rcpt: []string{good}, Concurrency: 8})
	if err != nil {
		t.Fatal(err)
	}
	bad := []string{"/no/such/program", ":kill -9 $$", ":echo E550 no", ":sleep 600 & exit 0", ":exit 120", ":exec 1>&- 2>&-"}
	call := func(n int) {
		line := good
		if n%50 == 0 {
			line = bad[n/50%len(bad)]
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = f.runner.run(ctx, line, dir, []string{"PATH=/usr/bin:/bin"})
	}
	for n := range 300 {
		call(n)
	}
	before := count(t)
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for n := w; n < filtertest.Soak(); n += 4 {
				call(n)
			}
		})
	}
	all.Wait()
	after := count(t)
	for range 600 { // what is killed takes a moment to end
		if after.processes <= before.processes && after.goroutines <= before.goroutines && after.descriptors <= before.descriptors {
			break
		}
		time.Sleep(50 * time.Millisecond)
		after = count(t)
	}
	if after.processes > before.processes || after.goroutines > before.goroutines || after.descriptors > before.descriptors {
		t.Errorf("%+v, before %+v", after, before)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("files: %v %v", files, err)
	}
}

type counts struct{ descriptors, goroutines, processes int }

// count is what this process has open, and how many processes come from it.
func count(t *testing.T) counts {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	parents := map[int]int{}
	procs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		var state string
		var parent int
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err == nil {
			parents[pid] = parent
		}
	}
	c := counts{descriptors: len(fds), goroutines: runtime.NumGoroutine()}
	for pid := range parents {
		for up := pid; up > 1; up = parents[up] {
			if parents[up] == os.Getpid() {
				c.processes++
				break
			}
		}
	}
	return c
}
