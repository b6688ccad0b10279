package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// Users that own nothing, and limits for confined.
const (
	someone      = 65533
	someoneElse  = "uid=65532"
	noProcess    = someoneElse + " nproc=0"
	addressSpace = "as=8000000" // softlimit -m 8000000
)

// confined starts the shim under limits.
func (c *caller) confined(limits string) *daemon {
	c.t.Helper()
	self, err := os.Executable()
	check(c.t, err)
	c.args = append([]string{c.path}, c.args...)
	c.path = self
	c.env = append(c.env, roleVariable+"="+limits)
	return c.greeted()
}

// plain is true for the builds that run in little memory and without threads: not the Go twin (see its doc), not the
// sanitizers.
func plain(p program) bool { return p.plain }

// root reports whether the test may change user ids.
func root(t *testing.T) bool {
	if os.Geteuid() != 0 {
		t.Log("not root: users and process limits are not tested")
		return false
	}
	return true
}

// copyOf installs the program for an owner and with a mode.
func (c *caller) copyOf(owner int, mode os.FileMode) string {
	c.t.Helper()
	from, err := os.Open(c.p.path)
	check(c.t, err)
	defer from.Close()
	path := filepath.Join(c.dir, "copy")
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	check(c.t, err)
	_, err = io.Copy(to, from)
	check(c.t, err)
	check(c.t, to.Close())
	check(c.t, os.Chown(path, owner, owner))
	check(c.t, os.Chmod(path, mode))
	return path
}

// TestPrivileged: a setuid or setgid shim goes to the compiled-in socket, whatever the environment says.
func TestPrivileged(t *testing.T) {
	if !root(t) {
		return
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: built.socket})
	check(t, err)
	defer l.Close()
	check(t, os.Chmod(built.socket, 0o666))
	for _, p := range built.programs { // one after the other: they share the socket
		if p.name == "Sanitized" {
			continue // refuses to run with more rights than its caller
		}
		for _, mode := range []os.FileMode{0o755 | os.ModeSetuid, 0o755 | os.ModeSetgid, 0o755} {
			c := newCaller(t, p)
			c.path = c.copyOf(someone, mode)
			other := c.listener
			if mode != 0o755 {
				c.listener = l
				c.env = append(c.env, "POSTERN_WAIT=0")
			}
			d := c.confined(someoneElse)
			if got := d.hello.Flags&wire.FlagPrivileged != 0; got != (mode != 0o755) {
				t.Errorf("%s with mode %v: privileged %v", p.name, mode, got)
			}
			d.send(wire.Exit{Code: 31})
			c.exits(31)
			c.listener = other
		}
	}
}

// TestLittleMemory: qmail-smtpd's children run under softlimit.
func TestLittleMemory(t *testing.T) {
	eachOf(t, plain, func(t *testing.T, p program) {
		c := newCaller(t, p)
		r := c.recorder()
		d := c.confined(addressSpace)
		d.send(wire.Accepted{Beat: 600_000, Slow: 600_000})
		d.hand(wire.ModeWait, 3, r.path())
		for i := range uint16(3) {
			if got := d.result(); got.Index != i || got.Exit != 0 {
				t.Errorf("%+v", got)
			}
		}
		c.exits(0)
	})
}

// TestNoMoreProcesses: at RLIMIT_NPROC one pair is exec'd in place, several are put off.
func TestNoMoreProcesses(t *testing.T) {
	if !root(t) {
		return
	}
	eachOf(t, plain, func(t *testing.T, p program) {
		c := newCaller(t, p)
		echo, err := os.OpenFile("/bin/echo", os.O_RDONLY, 0) // any program that needs no process of its own
		check(t, err)
		echo.Close()
		c.args = []string{"done"}
		r, w := c.pipe()
		d := c.confined(noProcess)
		d.send(wire.Accepted{Beat: 600_000, Slow: 600_000})
		d.send(wire.Next{Mode: wire.ModeWait, Count: 1, Path: "/bin/echo"})
		d.send(wire.Pair{}, c.file(""), w)
		d.sees(wire.FellBack{PID: uint32(c.process.Pid)})
		d.seesEOF()
		c.exits(0)
		w.Close()
		if got := contents(t, r); got != "done\n" {
			t.Errorf("the program said %q", got)
		}

		c = newCaller(t, p)
		next := c.recorder()
		d = c.confined(noProcess)
		d.send(wire.Accepted{Beat: 600_000, Slow: 600_000})
		d.hand(wire.ModeWait, 3, next.path())
		d.sees(wire.Result{Exit: 71})
		d.seesEOF()
		c.exits(71)
		if next.runs() != 0 {
			t.Error("it ran")
		}
	})
}

// TestConfinedArguments checks the tests' own launcher: the shim sees its arguments and no trace of the launcher.
func TestConfinedArguments(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.args = []string{"one"}
		d := c.confined("")
		if !slices.Equal(d.args, []string{p.path, "one"}) || slices.ContainsFunc(d.env, func(e string) bool { return e == roleVariable+"=" }) {
			t.Errorf("%q %q", d.args, d.env)
		}
		d.send(wire.Exit{})
		c.exits(0)
	})
}
