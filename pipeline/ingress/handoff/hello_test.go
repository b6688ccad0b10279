package handoff

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// open counts this process's descriptors.
func open(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(entries)
}

func TestBadHellos(t *testing.T) {
	d := newDaemon(t, nil)
	d.exits(0, mail, list) // whatever is opened once is open now
	good := wire.Hello{Program: wire.ProgramQueue, Argc: 1, ArgsLen: 2, Chunk: []byte("q\x00")}
	remote, list0, huge, many := good, good, good, good
	remote.Program = wire.ProgramRemote
	list0.Argc = 2
	huge.ArgsLen = maxArgs + 1
	many.ArgsLen = 4
	null, err := os.Open("/dev/null")
	check(t, err)
	defer null.Close()
	fd := int(null.Fd())
	until(t, "the first session to end", func() bool { return d.srv.Sessions() == 0 })
	before := open(t)
	for _, c := range []struct {
		name    string
		packets [][]byte
		fds     []int
		second  []int
	}{
		{"remote", [][]byte{remote.Append(nil)}, []int{fd}, nil},
		{"no descriptors", [][]byte{good.Append(nil)}, nil, nil},
		{"one descriptor", [][]byte{good.Append(nil)}, []int{fd}, nil},
		{"three descriptors", [][]byte{good.Append(nil)}, []int{fd, fd, fd}, nil},
		{"200 descriptors", [][]byte{good.Append(nil)}, repeat(fd, 200), nil},
		{"wrong argc", [][]byte{list0.Append(nil)}, []int{fd, fd}, nil},
		{"huge arguments", [][]byte{huge.Append(nil)}, []int{fd, fd}, nil},
		{"more than announced", [][]byte{many.Append(nil), wire.Data{Chunk: []byte("abc")}.Append(nil)}, []int{fd, fd}, nil},
		{"descriptors with data", [][]byte{many.Append(nil), wire.Data{Chunk: []byte("a\x00")}.Append(nil)}, []int{fd, fd}, []int{fd, fd}},
		{"version", [][]byte{{'H', 9, 'q'}}, []int{fd, fd}, nil},
		{"nonsense", [][]byte{[]byte("EHLO me\r\n")}, nil, nil},
		{"result", [][]byte{wire.Result{}.Append(nil)}, nil, nil},
		{"too long", [][]byte{make([]byte, wire.MaxPacket+100)}, []int{fd, fd}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := d.connect()
			conn.send(c.packets[0], c.fds...)
			for _, p := range c.packets[1:] {
				conn.send(p, c.second...)
			}
			conn.hangsUp(t)
			conn.conn.Close()
			if line := d.log.line(t); line["given_up"] != "hello" || line["error"] == nil {
				t.Error(line)
			}
		})
	}
	until(t, "the sessions to end", func() bool { return d.srv.Sessions() == 0 })
	until(t, "the descriptors to be closed", func() bool { return open(t) <= before })
}

func repeat(fd, n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = fd
	}
	return all
}

// Frames that come after the hello, but out of place.
func TestBadFrames(t *testing.T) {
	d := newDaemon(t, nil)
	null, err := os.Open("/dev/null")
	check(t, err)
	defer null.Close()
	for name, send := range map[string]func(*client) error{
		"data":        func(c *client) error { return c.send(wire.Data{Chunk: []byte("x")}.Append(nil)) },
		"result":      func(c *client) error { return c.send(wire.Result{}.Append(nil)) },
		"unknown":     func(c *client) error { return c.send([]byte("Q")) },
		"descriptors": func(c *client) error { return c.send([]byte("q"), int(null.Fd())) },
		"cut":         func(c *client) error { return c.send(append([]byte("q"), make([]byte, wire.MaxPacket)...)) },
	} {
		t.Run(name, func(t *testing.T) {
			d.t = t
			mr, _ := d.pipe()
			er, _ := d.pipe()
			c := d.connect()
			check(t, c.hello(nil, 0, int(mr.Fd()), int(er.Fd())))
			check(t, send(c))
			c.hangsUp(t)
			if line := d.log.line(t); line["error"] != errMalformed.Error() || line["given_up"] != "reading message" {
				t.Error(line)
			}
		})
	}
	c := d.connect()
	check(t, c.hello(nil, 0, int(d.fed(mail).Fd()), int(d.fed(list).Fd())))
	check(t, c.send([]byte("later versions may say this"))) // begins with a lower-case letter
	if r, err := c.converse(); err != nil || r.exit.Code != 0 {
		t.Error(r.exit, err)
	}
}

func TestHelloTakesTooLong(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.waits.hello = 20 * time.Millisecond })
	c := d.connect()
	c.hangsUp(t)
	if line := d.log.line(t); line["given_up"] != "hello" {
		t.Error(line)
	}
}

func TestLargeEnvironment(t *testing.T) {
	d := newDaemon(t, nil)
	env := []string{"TCPREMOTEIP=2001:db8::1", "RELAYCLIENT="}
	for i := range 60 {
		env = append(env, fmt.Sprintf("V%d=%s", i, strings.Repeat("x", 1000)))
	}
	if r := d.call(env, mail, list); r.exit == nil || r.exit.Code != 0 {
		t.Fatal(r.exit)
	}
	if line := d.log.line(t); line["standing"] != "relay" || line["peer"] != "2001:db8::1" {
		t.Error(line)
	}
	// Cut before TCPREMOTEIP came: it must not pass for local mail.
	env = []string{"V=" + strings.Repeat("x", wire.MaxEnv-3), "TCPREMOTEIP=192.0.2.1"}
	if r := d.call(env, mail, list); r.exit == nil || r.exit.Code != 0 {
		t.Fatal(r.exit)
	}
	if line := d.log.line(t); line["standing"] != "external" || line["chain"] != "inbound" {
		t.Error(line)
	}
}
