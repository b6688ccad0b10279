package handoff

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
)

// moment is a point in a message's passage at which something goes wrong.
type moment struct {
	name  string
	stage string // as the log has it
	// reach takes a call to that point.
	reach func(*testing.T, *daemon, *client)
}

// begun takes a call as far as a message and an envelope are given; an empty
// list stays open.
func begun(t *testing.T, d *daemon, c *client, content string, whole bool, list string) {
	t.Helper()
	mr, mw := d.pipe()
	er, ew := d.pipe()
	check(t, c.hello(nil, 0, int(mr.Fd()), int(er.Fd())))
	_, err := io.WriteString(mw, content)
	check(t, err)
	if whole {
		check(t, mw.Close())
	}
	_, err = io.WriteString(ew, list)
	check(t, err)
}

// large makes the daemon spool the message.
var large = mail + strings.Repeat("x\n", message.InMemory)

var moments = []moment{
	{"before the hello", "hello", func(t *testing.T, d *daemon, _ *client) {
		until(t, "the session", func() bool { return d.srv.Sessions() == 1 })
	}},
	{"in the hello", "hello", func(t *testing.T, d *daemon, c *client) {
		r, _ := d.pipe()
		h := wire.Hello{Program: wire.ProgramQueue, Argc: 1, ArgsLen: 10}
		check(t, c.send(h.Append(nil), int(r.Fd()), int(r.Fd())))
		until(t, "the session", func() bool { return d.srv.Sessions() == 1 })
	}},
	{"before the message", "reading message", func(t *testing.T, d *daemon, c *client) {
		begun(t, d, c, "", false, "")
		accepted(t, c)
	}},
	{"in the message", "reading message", func(t *testing.T, d *daemon, c *client) {
		begun(t, d, c, large, false, "")
		accepted(t, c)
		until(t, "the message to be spooled", func() bool { return len(d.spooled()) == 1 })
	}},
	{"after the message", "reading envelope", func(t *testing.T, d *daemon, c *client) {
		begun(t, d, c, large, true, "")
		accepted(t, c)
		until(t, "the message to be spooled", func() bool { return len(d.spooled()) == 1 })
		time.Sleep(20 * time.Millisecond) // that it is at its end cannot be seen
	}},
	{"in the envelope", "reading envelope", func(t *testing.T, d *daemon, c *client) {
		begun(t, d, c, mail, true, "Fa@b\x00Tc")
		accepted(t, c)
		time.Sleep(20 * time.Millisecond)
	}},
	{"in the chain", "chain", func(t *testing.T, d *daemon, c *client) {
		begun(t, d, c, mail, true, list)
		<-d.judging
	}},
	{"in the sink", "commit", func(t *testing.T, d *daemon, c *client) {
		begun(t, d, c, mail, true, list)
		<-d.judging
		d.judged <- struct{}{}
		<-d.sink.begun
	}},
}

func accepted(t *testing.T, c *client) {
	t.Helper()
	for r := (result{}); r.accepted == (wire.Accepted{}); {
		_, err := c.step(&r)
		check(t, err)
	}
}

// slowDaemon stops in the chain and in the sink until it is told to go on.
func slowDaemon(t *testing.T) *daemon {
	t.Helper()
	judging, judged := make(chan struct{}), make(chan struct{})
	d := newDaemon(t, nil, step(func(ctx context.Context, _ *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
		judging <- struct{}{}
		select {
		case <-judged:
			return pipeline.Verdict{}, nil
		case <-ctx.Done():
			return pipeline.Verdict{}, ctx.Err()
		}
	}))
	d.judging, d.judged = judging, judged
	d.sink.begun, d.sink.resume = make(chan struct{}), make(chan struct{})
	return d
}

// Whenever the shim goes away before the commit, nothing is stored and nothing
// is left open or lying about.
func TestHangUps(t *testing.T) {
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			d := slowDaemon(t)
			before := open(t)
			c := d.connect()
			m.reach(t, d, c)
			c.conn.Close()
			line := d.log.line(t)
			if line["given_up"] != m.stage || line["answer"] != nil {
				t.Error(line)
			}
			until(t, "the session to end", func() bool { return d.srv.Sessions() == 0 })
			if all := d.sink.all(); len(all) != 0 {
				t.Error("stored:", all)
			}
			if left := d.spooled(); len(left) != 0 {
				t.Error("spooled:", left)
			}
			// The test holds both ends of two pipes at most.
			if now := open(t); now > before+4 {
				t.Errorf("%d descriptors, %d before", now, before)
			}
		})
	}
}

// Once the commit has begun the message is stored, though nobody hears of it.
func TestHangUpAfterTheCommitBegan(t *testing.T) {
	d := slowDaemon(t)
	d.sink.deaf = true
	c := d.connect()
	moments[len(moments)-1].reach(t, d, c)
	c.conn.Close()
	if line := d.log.line(t); line["answer"] != "250 2.0.0 ok" || line["caller_gone"] != true {
		t.Error(line)
	}
	if all := d.sink.all(); len(all) != 1 {
		t.Error(all)
	}
}

// A daemon that is told to stop at once leaves every message to its caller.
func TestStopAtOnce(t *testing.T) {
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			d := slowDaemon(t)
			c := d.connect()
			m.reach(t, d, c)
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			check(t, d.srv.Shutdown(ctx))
			c.hangsUp(t)
			if line := d.log.line(t); line["answer"] != nil || line["given_up"] != m.stage {
				t.Error(line)
			}
			if all := d.sink.all(); len(all) != 0 {
				t.Error("stored:", all)
			}
			if _, err := dial(d.path); err == nil {
				t.Error("it still listens")
			}
		})
	}
}

// A daemon that is told to stop finishes what has begun.
func TestStopGracefully(t *testing.T) {
	for _, m := range moments[6:] {
		t.Run(m.name, func(t *testing.T) {
			d := slowDaemon(t)
			c := d.connect()
			m.reach(t, d, c)
			stopped := make(chan error)
			go func() { stopped <- d.srv.Shutdown(context.Background()) }()
			until(t, "the listener to be closed", func() bool {
				other, err := dial(d.path)
				if err == nil {
					other.conn.Close()
				}
				return err != nil
			})
			go func() {
				select {
				case d.judged <- struct{}{}:
					<-d.sink.begun
				case <-time.After(100 * time.Millisecond):
				}
				close(d.sink.resume)
			}()
			r, err := c.converse()
			check(t, err)
			c.conn.Close()
			check(t, <-stopped)
			if r.exit.Code != 0 || len(d.sink.all()) != 1 {
				t.Error(r.exit, d.sink.all())
			}
		})
	}
}

// The end of Serve's context stops the daemon too.
func TestServeEndsWithItsContext(t *testing.T) {
	path := t.TempDir() + "/s"
	s, err := New(Options{Chains: &pipeline.Generations{}, Sink: &sink{}, Path: path, Log: slog.New(slog.DiscardHandler)})
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	c, err := dial(path)
	check(t, err)
	defer c.conn.Close()
	until(t, "the session", func() bool { return s.Sessions() == 1 })
	cancel()
	check(t, <-done)
	c.hangsUp(t)
}

// What the daemon read may have a hole if the shim gave it up for dead: it
// hangs up first and empties the pipes then.
func TestShimGaveUpWhileWeSlept(t *testing.T) {
	d := newDaemon(t, nil)
	mr, mw := d.pipe()
	er, ew := d.pipe()
	c := d.connect()
	check(t, c.hello(nil, 0, int(mr.Fd()), int(er.Fd())))
	accepted(t, c)
	c.conn.Close()
	io.WriteString(mw, mail)
	mw.Close()
	io.WriteString(ew, list)
	if line := d.log.line(t); line["answer"] != nil {
		t.Error(line)
	}
	if all := d.sink.all(); len(all) != 0 {
		t.Error(all)
	}
}
