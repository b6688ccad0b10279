package main

import (
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// TestNoDaemon: missing, or refusing.
func TestNoDaemon(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		check(t, c.listener.Close()) // unlinks the socket
		c.waits(short)
		c.start()
		c.reports(noDaemon)

		c = newCaller(t, p)
		c.listener.SetUnlinkOnClose(false)
		check(t, c.listener.Close()) // refuses
		c.waits(short)
		c.start()
		c.reports(noDaemon)
	})
}

// TestDaemonStartsLate: a restart of the daemon is not seen by the caller.
func TestDaemonStartsLate(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		check(t, c.listener.Close())
		c.start() // with the default patience
		time.Sleep(short)
		c.listen()
		d := c.accept()
		d.receive()
		d.send(wire.Exit{Code: 71, Text: "Zback"})
		c.reports("Zback\n\x00")
	})
}

// TestDaemonDies at each step.
func TestDaemonDies(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for i, frames := range [][]string{
			nil,
			{ok},
			{ok, "B"},
			{ok, "E"},
			{ok, "E", "B", "Tr\x00"},
			{ok, "E", "N\x00\x01\x00/bin/true\x00"},
		} {
			c := newCaller(t, p)
			d := c.greeted()
			for _, f := range frames {
				d.raw(f)
			}
			d.conn.Close()
			if code := c.wait(); code != 0 || c.said != died {
				t.Errorf("step %d: exit %d, %q", i, code, c.said)
			}
		}
	})
}

// TestSilence: a daemon that is stopped, at each step, and one that is slow
// although it gives signs of life.
func TestSilence(t *testing.T) {
	const quick = "A\x01\x2c\x01\x00\x00\xff\xff\xff\x00" // beat 300 ms
	each(t, func(t *testing.T, p program) {
		for i, frames := range [][]string{nil, {quick}, {quick, "E"}, {quick, "E", "Tr\x00"}, {quick, "E", "N\x00\x01\x00/bin/true\x00"}} {
			c := newCaller(t, p)
			c.waits(short)
			d := c.greeted()
			for _, f := range frames {
				d.raw(f)
			}
			if code := c.wait(); code != 0 || c.said != slow {
				t.Errorf("step %d: exit %d, %q", i, code, c.said)
			}
		}
		c := newCaller(t, p)
		d := c.greeted()
		d.raw("A\x01\xff\xff\xff\x00\x2c\x01\x00\x00") // slow 300 ms
		d.raw("E")
		c.reports(slow)

		c = newCaller(t, program{path: p.quick})
		d = c.greeted()
		d.raw(ok) // and never an E
		c.reports(slow)
	})
}

// TestSlowIsNotQuiet: beats keep a delivery alive for longer than beat.
func TestSlowIsNotQuiet(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.greeted()
		d.raw("A\x01\xe8\x03\x00\x00\xff\xff\xff\x00") // beat 1 s
		d.raw("E")
		for range 6 {
			time.Sleep(short)
			d.raw("B")
		}
		d.send(wire.Text{Chunk: []byte("Klate\n\x00")})
		d.send(wire.Exit{})
		c.reports("Klate\n\x00")
	})
}

// TestGarbage: frames that are malformed or out of their place.
func TestGarbage(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		next := "N\x00\x01\x00/bin/true\x00"
		for _, frames := range [][]string{
			{"B"},
			{"E"},
			{"Tx\x00"},
			{next},
			{"P\x00\x00"},
			{"Q"},
			{"A"},
			{"A\x02\x01\x00\x00\x00\x01\x00\x00\x00"},
			{"A\x01\x00\x00\x00\x00\x01\x00\x00\x00"},
			{ok, ok},
			{ok, "T"},
			{ok, "T" + strings.Repeat("x", wire.MaxChunk+1)},
			{ok, "Bx"},
			{ok, "Ex"},
			{ok, "H"},
			{ok, "X"},
			{ok, "X\x00\x00\x01\x00"},
			{ok, "X\x00\x06\x00\x00"},
			{ok, "X\x00\x00\x01\x00K"},
			{ok, "N\x01\x01\x00/bin/true\x00"},
			{ok, "N\x00\x02\x00/bin/true\x00"},
			{ok, "N\x00\x01\x00bin/true\x00"},
			{ok, "N\x00\x01\x00/bin/true"},
			{ok, next, next},
			{ok, next, "E"},
			{ok, next, "Tx\x00"},
			{ok, next, "X\x00\x00\x00\x00"},
			{ok, next, "P\x01\x00"},
			{ok, next, "P\x00\x00"},
		} {
			c := newCaller(t, p)
			d := c.greeted()
			for _, f := range frames {
				d.raw(f)
			}
			if code := c.wait(); code != 0 || c.said != nonsense && c.said != died {
				t.Errorf("%q: exit %d, %q", frames, code, c.said)
			}
		}
	})
}

// TestDescriptorsOutOfPlace: more or fewer than belong there.
func TestDescriptorsOutOfPlace(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, try := range []func(c *caller, d *daemon){
			func(c *caller, d *daemon) { d.raw("B", c.file("")) },
			func(c *caller, d *daemon) {
				d.raw("N\x00\x01\x00/bin/true\x00")
				d.raw("P\x00\x00", c.file(""), c.file(""))
			},
			func(c *caller, d *daemon) { d.raw("N\x00\x01\x00/bin/true\x00", c.file("")) },
		} {
			c := newCaller(t, p)
			d := c.accepted()
			try(c, d)
			c.reports(died)
		}
	})
}

// TestRandomFrames: whatever a daemon says, the shim ends with exit 0 and one
// report of its own, or with what is one.
func TestRandomFrames(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		r := rand.New(rand.NewPCG(7, 1))
		kinds := "ABENPTXab"
		for range 60 {
			c := newCaller(t, p)
			c.waits(short)
			d := c.greeted()
			if r.IntN(4) > 0 {
				d.raw(ok)
			}
			for range r.IntN(6) {
				b := []byte{kinds[r.IntN(len(kinds))]}
				for range r.IntN(12) {
					b = append(b, byte(r.IntN(4)))
				}
				d.raw(string(b))
			}
			d.conn.Close()
			if code := c.wait(); code != 0 || len(c.said) < 2 || c.said[len(c.said)-1] != 0 {
				t.Fatalf("exit %d, %q", code, c.said)
			}
		}
	})
}

// TestLaterVersions: kinds in lower case are passed over.
func TestLaterVersions(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.greeted()
		for _, packet := range []string{"z", ok, "a" + strings.Repeat("x", 10000), "E", "m", "TK\n\x00", "q", "X\x00\x00\x00\x00"} {
			d.raw(packet)
		}
		c.reports("K\n\x00")
	})
}

// TestKilled: the daemon sees the end of a shim that is killed.
func TestKilled(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.accepted()
		check(t, c.process.Kill())
		d.seesEOF()
		if c.wait() != -1 || c.said != "" {
			t.Errorf("%v, %q", c.state, c.said)
		}
	})
}

// TestPrivileged: a shim with more rights than its caller goes to the socket
// that is compiled in, whatever the environment says.
func TestPrivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: set-uid shims are not tested")
		return
	}
	for _, p := range built.programs {
		if p.name == "Sanitized" {
			continue // refuses to run with more rights than its caller
		}
		c := newCaller(t, p)
		content, err := os.ReadFile(p.path)
		check(t, err)
		path := c.dir + "/copy"
		check(t, os.WriteFile(path, content, 0o700))
		check(t, os.Chown(path, 65533, 65533))
		check(t, os.Chmod(path, 0o755|os.ModeSetuid))
		c.path = path
		c.env = append(c.env, "POSTERN_WAIT=60000")
		for _, dir := range []string{built.dir, c.dir} {
			check(t, os.Chmod(dir, 0o755))
		}
		c.start()
		check(t, c.listener.SetDeadline(time.Now().Add(short)))
		if conn, err := c.listener.AcceptUnix(); err == nil {
			conn.Close()
			t.Errorf("%s believed $POSTERN_REMOTE_SOCKET", p.name)
		}
		check(t, c.process.Signal(syscall.SIGKILL)) // it waits for the daemon for 10 s
	}
}
