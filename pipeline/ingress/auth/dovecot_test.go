package auth

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// greeting is what a Dovecot 2.3 says first.
const greeting = "VERSION\t1\t2\nMECH\tLOGIN\tplaintext\nMECH\tPLAIN\tplaintext\nSPID\t7\nCUID\t1\nCOOKIE\t0123456789abcdef0123456789abcdef\nDONE\n"

// dovecotStub plays a server after the protocol's description. What it answers
// to a request is answer's business.
type dovecotStub struct {
	t       *testing.T
	socket  string
	greets  string
	answer  func(c *stubConn, r stubRequest)
	conns   atomic.Int32
	serving sync.WaitGroup

	mu   sync.Mutex
	l    net.Listener
	open map[net.Conn]bool
	cpid map[string]bool
}

type stubConn struct {
	net.Conn
	mu sync.Mutex
}

func (c *stubConn) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.Conn, format, args...) //nolint:errcheck // the client may be gone
}

type stubRequest struct {
	id, user, password string
	fields             []string
}

func newStub(t *testing.T, answer func(*stubConn, stubRequest)) *dovecotStub {
	d := &dovecotStub{t: t, socket: filepath.Join(t.TempDir(), "auth-client"), greets: greeting, answer: answer, open: map[net.Conn]bool{}, cpid: map[string]bool{}}
	d.start()
	t.Cleanup(d.stop)
	return d
}

// now says how requests are answered from now on.
func (d *dovecotStub) now(answer func(*stubConn, stubRequest)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer = answer
}

func (d *dovecotStub) start() {
	l := must(net.Listen("unix", d.socket))(d.t)
	d.l = l
	d.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.conns.Add(1)
			d.mu.Lock()
			d.open[c] = true
			d.mu.Unlock()
			d.serving.Go(func() {
				d.serve(&stubConn{Conn: c})
				c.Close()
				d.mu.Lock()
				delete(d.open, c)
				d.mu.Unlock()
			})
		}
	})
}

func (d *dovecotStub) stop() {
	d.l.Close()
	d.mu.Lock()
	for c := range d.open {
		c.Close()
	}
	d.mu.Unlock()
	d.serving.Wait()
}

func (d *dovecotStub) serve(c *stubConn) {
	in := bufio.NewReader(c)
	version, err := in.ReadString('\n')
	if err != nil {
		return
	}
	cpid, err := in.ReadString('\n')
	if err != nil {
		return
	}
	d.mu.Lock()
	again := d.cpid[cpid]
	d.cpid[cpid] = true
	d.mu.Unlock()
	if version != "VERSION\t1\t1\n" || !strings.HasPrefix(cpid, "CPID\t") || again {
		d.t.Errorf("handshake %q %q, again: %v", version, cpid, again)
	}
	c.say("%s", d.greets)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		resp, ok := strings.CutPrefix(f[len(f)-1], "resp=")
		if f[0] != "AUTH" || len(f) < 5 || f[2] != "PLAIN" || !strings.HasPrefix(f[3], "service=") || !ok {
			d.t.Errorf("request %q", line)
			return
		}
		plain := strings.Split(string(must(base64.StdEncoding.DecodeString(resp))(d.t)), "\x00")
		if len(plain) != 3 || plain[0] != "" {
			d.t.Errorf("response %q", plain)
			return
		}
		d.mu.Lock()
		answer := d.answer
		d.mu.Unlock()
		go answer(c, stubRequest{id: f[1], user: plain[1], password: plain[2], fields: f[3 : len(f)-1]})
	}
}

// usual answers as a server does.
func usual(c *stubConn, r stubRequest) {
	switch r.password {
	case "right":
		c.say("OK\t%s\tuser=%s\tunknown=x\n", r.id, strings.ToLower(r.user))
	case "nameless":
		c.say("OK\t%s\n", r.id)
	case "odd":
		c.say("OK\t%s\tuser=a\x01tb\n", r.id)
	case "temp":
		c.say("FAIL\t%s\tuser=%s\ttemp\n", r.id, r.user)
	case "temp_fail":
		c.say("FAIL\t%s\tuser=%s\tcode=temp_fail\treason=Database\x01tdown\n", r.id, r.user)
	case "disabled":
		c.say("FAIL\t%s\tuser=%s\tcode=user_disabled\tuser_disabled\treason=Gone \x1b away\n", r.id, r.user)
	case "cont":
		c.say("CONT\t%s\tb2g=\n", r.id)
	default:
		c.say("FAIL\t%s\tuser=%s\n", r.id, r.user)
	}
}

func dovecot(t *testing.T, o DovecotOptions) (*Dovecot, *log) {
	t.Helper()
	l := &log{}
	o.Log = l.logger()
	d := must(NewDovecot(o))(t)
	t.Cleanup(func() { check(t, d.Close()) })
	return d, l
}

func TestDovecot(t *testing.T) {
	var fields atomic.Pointer[[]string]
	stub := newStub(t, func(c *stubConn, r stubRequest) { fields.Store(&r.fields); usual(c, r) })
	d, l := dovecot(t, DovecotOptions{Socket: stub.socket})
	in := func(password string) error {
		t.Helper()
		name, err := d.Authenticate(bg, from("192.0.2.1"), "Alice@example.org", password)
		if (name != "") != (err == nil) {
			t.Errorf("%q %v", name, err)
		}
		return err
	}
	name, err := d.Authenticate(bg, from("192.0.2.1"), "Alice@Example.org", "right")
	if name != "alice@example.org" || err != nil {
		t.Error(name, err)
	}
	if got := strings.Join(*fields.Load(), " "); got != "service=smtp nologin secured rip=192.0.2.1 rport=4711" {
		t.Error(got)
	}
	name, err = d.Authenticate(bg, from("192.0.2.1"), "Alice", "nameless")
	if name != "Alice" || err != nil {
		t.Error(name, err)
	}
	is535(t, in("wrong"))
	err = in("disabled")
	is535(t, err)
	if !strings.Contains(err.Error(), "code user_disabled, reason Gone ? away") {
		t.Error(err)
	}
	is454(t, in("temp"), "a temporary failure")
	is454(t, in("temp_fail"), "reason Database down")
	is454(t, in("cont"), "asks on")
	is454(t, in("odd"), "what is no name")
	is535(t, in("a\x00b"))
	is535(t, in(""))
	s := from("2001:db8::1")
	s.TLS = ""
	_, err = d.Authenticate(bg, s, "alice", "right")
	check(t, err)
	if got := strings.Join(*fields.Load(), " "); got != "service=smtp nologin rip=2001:db8::1 rport=4711" {
		t.Error(got)
	}
	if n := stub.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if s := l.take(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "connected to dovecot") {
		t.Error(s)
	}
}

// Logins share the connection, and answers come in any order.
func TestDovecotTogether(t *testing.T) {
	var held []stubRequest
	var mu sync.Mutex
	stub := newStub(t, nil)
	stub.now(func(c *stubConn, r stubRequest) {
		mu.Lock()
		defer mu.Unlock()
		if held = append(held, r); len(held) == 10 {
			for i := range held {
				c.say("UNKNOWN\tline\n")
				usual(c, held[len(held)-1-i])
			}
			held = nil
		}
	})
	d, _ := dovecot(t, DovecotOptions{Socket: stub.socket, Concurrency: 10})
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			user, password := fmt.Sprint("user", i), []string{"right", "wrong"}[i%2]
			name, err := d.Authenticate(bg, from("192.0.2.1"), user, password)
			switch {
			case i%2 == 1:
				is535(t, err)
			case name != user || err != nil:
				t.Errorf("%s is %s, %v", user, name, err)
			}
		})
	}
	all.Wait()
	if n := stub.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestDovecotComesAndGoes(t *testing.T) {
	stub := newStub(t, usual)
	d, l := dovecot(t, DovecotOptions{Socket: stub.socket, Timeout: 2 * time.Second})
	in := func(password string) error {
		_, err := d.Authenticate(bg, from("192.0.2.1"), "alice", password)
		return err
	}
	check(t, in("right"))
	stub.stop()
	is454(t, in("right"), "dovecot at "+stub.socket)
	l.waitFor(t, "the next login makes another")
	stub.start()
	check(t, in("right"))
	// One that goes away in the middle is asked once more, not for ever.
	var asked atomic.Int32
	stub.now(func(c *stubConn, r stubRequest) {
		if asked.Add(1) == 1 || r.password == "gone" {
			c.Close()
			return
		}
		usual(c, r)
	})
	check(t, in("right"))
	if asked.Load() != 2 {
		t.Errorf("asked %d times", asked.Load())
	}
	asked.Store(0)
	is454(t, in("gone"), "connection was lost")
	if asked.Load() != 2 {
		t.Errorf("asked %d times", asked.Load())
	}
	// One that is silent is left, and what it says too late is not heard.
	stub.now(func(*stubConn, stubRequest) {})
	ctx, cancel := context.WithTimeout(bg, 50*time.Millisecond)
	defer cancel()
	_, err := d.Authenticate(ctx, from("192.0.2.1"), "alice", "right")
	is454(t, err, "no answer: context deadline exceeded")
	stub.now(usual)
	check(t, in("right"))
	is535(t, in("wrong"))
}

// A client that is gone leaves the connection to the others.
func TestDovecotClientGone(t *testing.T) {
	late := make(chan func(), 1)
	stub := newStub(t, nil)
	stub.now(func(c *stubConn, r stubRequest) {
		if r.user == "slow" {
			late <- func() { usual(c, r) }
			return
		}
		usual(c, r)
	})
	d, _ := dovecot(t, DovecotOptions{Socket: stub.socket, Concurrency: 2})
	ctx, cancel := context.WithCancel(bg)
	done := make(chan error)
	go func() {
		_, err := d.Authenticate(ctx, from("192.0.2.1"), "slow", "right")
		done <- err
	}()
	answer := <-late
	cancel()
	is454(t, <-done, "context canceled")
	answer()
	_, err := d.Authenticate(bg, from("192.0.2.1"), "alice", "wrong")
	is535(t, err)
	if n := stub.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	check(t, d.asking.take(bg))
	check(t, d.asking.take(bg))
	_, err = d.Authenticate(ctx, from("192.0.2.1"), "alice", "right")
	is454(t, err, "waiting for one of 2 others")
	d.asking.give()
	d.asking.give()
	// A closed one serves those who still have it, and keeps no connection.
	check(t, d.Close())
	_, err = d.Authenticate(bg, from("192.0.2.1"), "alice", "right")
	check(t, err)
	for range 400 {
		stub.mu.Lock()
		n := len(stub.open)
		stub.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("a connection stays open")
}

func TestDovecotOddServers(t *testing.T) {
	for _, c := range []struct{ name, greets, want string }{
		{"other version", "VERSION\t2\t0\nDONE\n", "another version"},
		{"no version", "MECH\tPLAIN\nDONE\n", "did not tell its version"},
		{"no PLAIN", "VERSION\t1\t1\nMECH\tCRAM-MD5\nDONE\n", "does not offer PLAIN"},
		{"endless line", strings.Repeat("x", maxDovecotLine), "a line has more than"},
		{"endless handshake", strings.Repeat("MECH\tX\n", maxDovecotHandshake), "more than 200 lines"},
		{"silent", "", "deadline exceeded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stub := newStub(t, usual)
			stub.greets = c.greets
			d, _ := dovecot(t, DovecotOptions{Socket: stub.socket, Timeout: 300 * time.Millisecond})
			_, err := d.Authenticate(bg, from("192.0.2.1"), "alice", "right")
			is454(t, err, c.want)
		})
	}
	// After the handshake too, nonsense is trouble and nothing else.
	for _, nonsense := range []string{"OK\n", "OK\tx\tuser=alice\n", "OK\t99999999999\n", "FAIL\t-1\n", strings.Repeat("OK", maxDovecotLine)} {
		stub := newStub(t, func(c *stubConn, _ stubRequest) { c.say("%s", nonsense) })
		d, _ := dovecot(t, DovecotOptions{Socket: stub.socket})
		_, err := d.Authenticate(bg, from("192.0.2.1"), "alice", "right")
		is454(t, err, "connection was lost")
	}
	d, _ := dovecot(t, DovecotOptions{Socket: filepath.Join(t.TempDir(), "none")})
	_, err := d.Authenticate(bg, from("192.0.2.1"), "alice", "right")
	is454(t, err, "no such file")
	for _, o := range []DovecotOptions{{}, {Socket: "relative"}, {Socket: "/x", Service: "a\tb"}} {
		if _, err := NewDovecot(o); err == nil {
			t.Errorf("%+v", o)
		}
	}
}

func FuzzDovecot(f *testing.F) {
	f.Add(greeting + "OK\t1\tuser=alice\n")
	f.Add(greeting + "FAIL\t1\tuser=alice\ttemp\tcode=temp_fail\treason=a\x01tb\x01\n")
	f.Add(greeting + "CONT\t1\tb2g=\nOK\t2\n")
	f.Add("VERSION\t1\nDONE\n")
	f.Add("OK\t1\n")
	d := &Dovecot{}
	f.Fuzz(func(t *testing.T, said string) {
		var h handshake
		lines := strings.Split(said, "\n")
		for len(lines) > 0 && !h.done {
			if h.read(lines[0]) != nil {
				break
			}
			lines = lines[1:]
		}
		if h.done && (!h.version || !h.plain) {
			t.Error("a handshake without version or PLAIN is done")
		}
		for _, line := range lines {
			r, err := parseDovecotReply(line)
			if err != nil || !r.known() {
				continue
			}
			name, err := d.result(r, "alice")
			if err == nil && (!strings.HasPrefix(line, "OK\t") || plausible(name, "x") != nil) {
				t.Errorf("%q let %q in", line, name)
			}
			if err != nil && strings.HasPrefix(line, "FAIL\t") && (strings.Contains(line, "\ttemp\t") || strings.HasSuffix(line, "\ttemp")) {
				is454(t, err, "")
			}
		}
	})
}

var _ io.Closer = (*Dovecot)(nil)
