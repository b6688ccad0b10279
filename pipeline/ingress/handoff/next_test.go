package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// program writes a shell script and returns its path.
func program(t *testing.T, dir, script string) string {
	t.Helper()
	path := filepath.Join(dir, "qmail-queue")
	check(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	return path
}

// nextDaemon hands on to a script, which finds its directory in $D.
func nextDaemon(t *testing.T, script string, change func(*Options), steps ...pipeline.Step) (*daemon, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "handoff")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o777))
	path := program(t, dir, "D="+dir+"\n"+script)
	return newDaemon(t, func(o *Options) {
		o.Sink, o.Next = nil, path
		if change != nil {
			change(o)
		}
	}, steps...), dir
}

// takeAll keeps what it reads.
const takeAll = "cat >$D/message; cat <&1 >$D/envelope\n"

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	return string(b)
}

func next(t *testing.T, line map[string]any) map[string]any {
	t.Helper()
	n, ok := line["next"].(map[string]any)
	if !ok {
		t.Fatal(line)
	}
	return n
}

// A real process becomes the next program, and the log knows how it ended.
func TestNextExec(t *testing.T) {
	if !probeEnd() {
		t.Log("this kernel does not tell how a process ended that is not our child; the log must say so")
	}
	for _, c := range []struct {
		name, script string
		exit         any
		answer       string
	}{
		{"ok", "exit 0", 0.0, "250 2.0.0 ok"},
		{"refuses", "exit 31", 31.0, "554 5.3.0 mail server permanently rejected message"},
		{"dies", "kill -9 $$", nil, "451 4.3.0 qq crashed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, dir := nextDaemon(t, takeAll+c.script, func(o *Options) { o.NextMode = NextExec })
			in := "A: b\r\n\r\nx\ry\x00" // nothing of it is changed
			cmd := d.process(7791, nil, d.fed(in), d.fed(list))
			cmd.Run()
			line := d.log.line(t)
			n := next(t, line)
			if n["mode"] != "exec" || line["answer"] != nil {
				t.Error(line)
			}
			if d.srv.tellsEnd {
				if n["exit"] != c.exit || n["answer"] != c.answer || n["pid"] != float64(cmd.Process.Pid) {
					t.Error(n)
				}
				if c.exit == nil && n["signal"] != 9.0 {
					t.Error(n)
				}
			} else if n["exit"] != "unknown" {
				t.Error(n)
			}
			if got := read(t, dir+"/message"); got != in {
				t.Errorf("%q", got)
			}
			if got := read(t, dir+"/envelope"); got != list {
				t.Errorf("%q", got)
			}
		})
	}
}

// Where the kernel does not tell, the log says so; auto waits there.
func TestKernelThatDoesNotTell(t *testing.T) {
	d, _ := nextDaemon(t, takeAll, func(o *Options) { o.NextMode = NextExec })
	d.srv.tellsEnd = false
	check(t, d.process(0, nil, d.fed(mail), d.fed(list)).Run())
	if n := next(t, d.log.line(t)); n["exit"] != "unknown" {
		t.Error(n)
	}
	d, _ = nextDaemon(t, takeAll, nil)
	d.srv.tellsEnd = false
	r := d.call(nil, mail, list)
	if r.next == nil || r.next.Mode != wire.ModeWait {
		t.Errorf("%+v", r.next)
	}
}

func TestExecFails(t *testing.T) {
	d, dir := nextDaemon(t, "", func(o *Options) { o.NextMode = NextExec })
	check(t, os.Remove(dir+"/qmail-queue"))
	err := d.process(0, nil, d.fed(mail), d.fed(list)).Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 71 {
		t.Error(err)
	}
	if n := next(t, d.log.line(t)); n["exit"] != 71.0 {
		t.Error(n)
	}
}

// waitDaemon makes copies of every message and waits for the shim's results.
func waitDaemon(t *testing.T, copies int, change func(*Options)) (*daemon, *Kept) {
	t.Helper()
	var edits []pipeline.Edit
	for i := range copies {
		edits = append(edits, pipeline.Edit{Kind: pipeline.EditCopy, Copy: &pipeline.Copy{Envelope: envelope.To("tap@x", fmt.Sprintf("archive%d@x", i))}})
	}
	var kept *Kept
	d, _ := nextDaemon(t, takeAll, func(o *Options) {
		var err error
		kept, err = OpenKept(KeptOptions{Dir: filepath.Dir(o.Next) + "/kept", Next: o.Next, Log: o.Log, Most: time.Hour, First: time.Hour})
		check(t, err)
		o.Kept, o.NextMode = kept, NextWait
		if change != nil {
			change(o)
		}
	}, says(pipeline.Verdict{Edits: edits}))
	return d, kept
}

// ordered is a call that has its order.
func ordered(t *testing.T, d *daemon) (*client, result) {
	t.Helper()
	c := d.connect()
	check(t, c.hello(nil, 0, int(d.fed(mail).Fd()), int(d.fed(list).Fd())))
	r, err := c.converse()
	check(t, err)
	t.Cleanup(r.close)
	return c, r
}

func TestWaitMode(t *testing.T) {
	d, _ := waitDaemon(t, 0, nil)
	for _, c := range []struct {
		result wire.Result
		exit   any
	}{
		{wire.Result{PID: 7}, 0.0},
		{wire.Result{Exit: 53, PID: 7}, 53.0},
		{wire.Result{Exit: 81, Signal: 11, PID: 7}, nil},
		{wire.Result{Exit: 71}, 71.0},
	} {
		conn, r := ordered(t, d)
		if r.next == nil || r.next.Mode != wire.ModeWait || len(r.pairs) != 1 {
			t.Fatalf("%+v", r)
		}
		content, _ := io.ReadAll(r.pairs[0].message)
		to, _ := io.ReadAll(r.pairs[0].envelope)
		if string(content) != mail || string(to) != list {
			t.Errorf("%q %q", content, to)
		}
		if at, err := r.pairs[0].message.Seek(0, io.SeekStart); at != 0 || err != nil {
			t.Error("the message cannot be rewound:", err)
		}
		check(t, conn.send(c.result.Append(nil)))
		conn.conn.Close()
		if n := next(t, d.log.line(t)); n["exit"] != c.exit || n["mode"] != "wait" {
			t.Error(n)
		}
	}
	conn, _ := ordered(t, d)
	conn.conn.Close() // killed while it waited
	if n := next(t, d.log.line(t)); n["exit"] != "unknown" {
		t.Error(n)
	}
	conn, _ = ordered(t, d)
	check(t, conn.send([]byte("Rubbish")))
	conn.hangsUp(t)
	if n := next(t, d.log.line(t)); n["exit"] != "unknown" {
		t.Error(n)
	}
}

// What the shim reports decides which copies are tried again.
func TestCopies(t *testing.T) {
	ok := func(i int) wire.Result { return wire.Result{Index: uint16(i), PID: 9} }
	no := func(i int) wire.Result { return wire.Result{Index: uint16(i), PID: 9, Exit: 53} }
	for _, c := range []struct {
		name    string
		results []wire.Result
		kept    int
	}{
		{"all taken", []wire.Result{ok(0), ok(1), ok(2)}, 0},
		{"one refused", []wire.Result{ok(0), no(1), ok(2)}, 1},
		{"one not reported", []wire.Result{ok(0), ok(1)}, 1},
		{"main refused", []wire.Result{no(0)}, 0},
		{"killed before the first result", nil, 2},
		{"a copy that there is not", []wire.Result{ok(0), ok(5)}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, kept := waitDaemon(t, 2, nil)
			conn, r := ordered(t, d)
			if len(r.pairs) != 3 {
				t.Fatalf("%+v", r)
			}
			if n, _ := kept.Len(); n != 2 {
				t.Errorf("%d copies are safe while the shim is at work", n)
			}
			to, _ := io.ReadAll(r.pairs[2].envelope)
			content, _ := io.ReadAll(r.pairs[2].message)
			if string(to) != "Ftap@x\x00Tarchive1@x\x00\x00" || string(content) != mail {
				t.Errorf("%q %q", to, content)
			}
			for _, result := range c.results {
				check(t, conn.send(result.Append(nil)))
			}
			conn.conn.Close()
			line := next(t, d.log.line(t))
			if line["copies"] != 2.0 || line["kept"] != float64(c.kept) {
				t.Error(line)
			}
			// Those that are kept are tried at once, and the script takes them.
			until(t, "the copies to get through", func() bool { n, _ := kept.Len(); return n == 0 })
			if c.kept > 0 && read(t, filepath.Dir(d.srv.o.Next)+"/message") != mail {
				t.Error("what was tried again is not the message")
			}
		})
	}
}

// A message that cannot go on is deferred, and the log says why.
func TestNextCannotTakeIt(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Options)
		copies int
		log    string
	}{
		{"copies and nowhere to keep them", func(o *Options) { o.Kept = nil }, 1, "no directory is set"},
		{"too many copies", nil, wire.MaxPairs, "at most 128"},
		{"nothing more can be kept", func(o *Options) { o.Kept.o.Messages = 1 }, 2, "may hold no more"},
		{"the directory is gone", func(o *Options) { check(t, os.Remove(o.Kept.o.Dir)) }, 1, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, kept := waitDaemon(t, c.copies, c.change)
			r := d.call(nil, mail, list)
			if r.exit == nil || r.exit.Code != 71 && r.exit.Code != 53 {
				t.Fatalf("%+v", r)
			}
			if !d.log.has(c.log) {
				t.Error(d.log.line(t))
			}
			if n, bytes := kept.Len(); n != 0 || bytes != 0 {
				t.Errorf("%d kept, %d bytes", n, bytes)
			}
		})
	}
	d, _ := nextDaemon(t, takeAll, nil, says(pipeline.Verdict{Action: pipeline.Quarantine}))
	if r := d.call(nil, mail, list); r.exit == nil || r.exit.Code != 71 || !d.log.has("quarantined") {
		t.Errorf("%+v", r)
	}
	d, dir := nextDaemon(t, takeAll, nil, says(pipeline.Verdict{Action: pipeline.Discard}))
	if r := d.call(nil, mail, list); r.exit == nil || r.exit.Code != 0 {
		t.Errorf("%+v", r)
	}
	if exists(dir + "/message") {
		t.Error("a discarded message was handed on")
	}
}

// What a filter holds goes into quarantine first; where the next program
// refuses the rest it comes out again, because the caller will try again with
// all of it. In doubt it stays.
func TestNextQuarantine(t *testing.T) {
	const two = "Fa@example.org\x00Tb@example.net\x00Tc@example.net\x00\x00"
	some := pipeline.Verdict{Action: pipeline.Quarantine, Only: []int{0}}
	for _, c := range []struct {
		name         string
		verdict      pipeline.Verdict
		fail         error
		code         int          // of the answer, if the shim gets no order
		result       *wire.Result // what the shim reports, if it gets one; nil: it dies
		held, undone int
	}{
		{"all", pipeline.Verdict{Action: pipeline.Quarantine, Reason: "bad"}, nil, 0, nil, 1, 0},
		{"it cannot be stored", some, reply.With(reply.NoSpace, errors.New("full")), 53, nil, 0, 0},
		{"some", some, nil, -1, &wire.Result{PID: 7}, 1, 0},
		{"the rest is refused", some, nil, -1, &wire.Result{PID: 7, Exit: 31}, 1, 1},
		{"nobody knows", some, nil, -1, nil, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var held, undone atomic.Int32
			d, _ := nextDaemon(t, takeAll, func(o *Options) {
				o.NextMode = NextWait
				o.Quarantine = func(_ context.Context, all []pipeline.Outgoing) (func(), error) {
					if len(all) != 1 || all[0].Hold == "" || c.fail != nil {
						return nil, c.fail
					}
					held.Add(1)
					return func() { undone.Add(1) }, nil
				}
			}, says(c.verdict))
			conn := d.connect()
			check(t, conn.hello(nil, 0, int(d.fed(mail).Fd()), int(d.fed(two).Fd())))
			r, err := conn.converse()
			check(t, err)
			defer r.close()
			if c.code >= 0 {
				if r.exit == nil || int(r.exit.Code) != c.code || r.next != nil {
					t.Errorf("%+v", r)
				}
			} else {
				if r.next == nil || len(r.pairs) != 1 {
					t.Fatalf("%+v", r)
				}
				if to, _ := io.ReadAll(r.pairs[0].envelope); string(to) != "Fa@example.org\x00Tc@example.net\x00\x00" {
					t.Errorf("the rest is for %q", to)
				}
				if c.result != nil {
					check(t, conn.send(c.result.Append(nil)))
				}
			}
			conn.conn.Close()
			d.log.line(t)
			if int(held.Load()) != c.held || int(undone.Load()) != c.undone {
				t.Errorf("held %d times, taken back %d times", held.Load(), undone.Load())
			}
		})
	}
}

// A shim that hangs up before it has its order leaves nothing behind; one that
// hangs up between the chain and the order neither.
func TestHangUpBeforeTheOrder(t *testing.T) {
	judging := make(chan struct{})
	var d *daemon
	d, dir := nextDaemon(t, takeAll, nil, step(func(ctx context.Context, _ *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
		close(judging)
		<-ctx.Done()
		return pipeline.Verdict{}, nil
	}))
	c := d.connect()
	check(t, c.hello(nil, 0, int(d.fed(mail).Fd()), int(d.fed(list).Fd())))
	<-judging
	c.conn.Close()
	if line := d.log.line(t); line["next"] != nil || line["given_up"] != "chain" {
		t.Error(line)
	}
	if exists(dir + "/message") {
		t.Error("handed on")
	}
}

// A stop at once while the shim is at work keeps its copies, as it is not
// known what became of them.
func TestStopWhileTheShimIsAtWork(t *testing.T) {
	d, kept := waitDaemon(t, 1, nil)
	conn, _ := ordered(t, d)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	check(t, d.srv.Shutdown(ctx))
	conn.hangsUp(t)
	if n := next(t, d.log.line(t)); n["exit"] != "unknown" || n["kept"] != 1.0 {
		t.Error(n)
	}
	if n, _ := kept.Len(); n != 1 {
		t.Error(n)
	}
	again, err := OpenKept(kept.o)
	check(t, err)
	if n, bytes := again.Len(); n != 1 || bytes != int64(len(mail)) {
		t.Error(n, bytes)
	}
}

// The memory of large messages: the descriptor is a spool file.
func TestNextTakesLargeMessages(t *testing.T) {
	d, dir := nextDaemon(t, takeAll, func(o *Options) { o.NextMode = NextExec })
	check(t, d.process(0, nil, d.file(large, 0), d.memory(list)).Run())
	d.log.line(t)
	if got := read(t, dir+"/message"); got != large {
		t.Errorf("%d bytes", len(got))
	}
}
