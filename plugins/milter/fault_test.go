package milter

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

// until has a milter go on until it hears a command, whose data it has read.
func until(c *serverstest.Conn, command byte) bool {
	for {
		code, _, err := next(c.R)
		switch {
		case err != nil:
			return false
		case code == command:
			return true
		case code == 'O':
			io.WriteString(c, newFake(nil).terms()) //nolint:errcheck // the next read fails
		case code != 'D' && code != 'A':
			io.WriteString(c, packet('c', "")) //nolint:errcheck // the next read fails
		}
	}
}

// at says something to a command, and goes.
func at(command byte, text string) func(*serverstest.Conn) {
	return func(c *serverstest.Conn) {
		if until(c, command) {
			c.Say(text)
		}
	}
}

// forever repeats something after a command.
func forever(command byte, text string) func(*serverstest.Conn) {
	return func(c *serverstest.Conn) {
		if until(c, command) {
			for {
				if _, err := io.WriteString(c, text); err != nil {
					return
				}
			}
		}
	}
}

// faults are what a milter may do wrong, each at its stage.
func faults() []serverstest.Fault {
	hang := func(command byte, text string) func(*serverstest.Conn) {
		return func(c *serverstest.Conn) {
			if until(c, command) {
				c.Say(text)
				c.Hang()
			}
		}
	}
	all := []serverstest.Fault{
		{Name: "closes at once", Play: func(*serverstest.Conn) {}},
		{Name: "hangs at connect", Slow: true, Play: func(c *serverstest.Conn) { c.Hang() }},
		{Name: "another protocol", Play: func(c *serverstest.Conn) { c.Say("220 mail.example.org ESMTP\r\n"); io.Copy(io.Discard, c.R) }}, //nolint:errcheck // it ends in any case
		{Name: "wrong version", Play: at('O', (&fake{version: 99}).terms())},
		{Name: "half a negotiation", Play: at('O', newFake(nil).terms()[:9])},
		{Name: "half a negotiation, and hangs", Slow: true, Play: hang('O', newFake(nil).terms()[:9])},
		{Name: "a negotiation of a gigabyte", Play: at('O', "\x40\x00\x00\x00O")},
		{Name: "two negotiations", Play: at('O', newFake(nil).terms()+newFake(nil).terms())},
		{Name: "resets in the body", Play: func(c *serverstest.Conn) {
			if until(c, 'N') {
				io.WriteString(c, packet('c', "")) //nolint:errcheck // see Hang
				io.CopyN(io.Discard, c.R, 20_000)  //nolint:errcheck // see Hang
				if tcp, ok := c.Conn.(*net.TCPConn); ok {
					tcp.SetLinger(0) //nolint:errcheck // it is about to go
				}
			}
		}},
		{Name: "answers early, and closes", Play: func(c *serverstest.Conn) {
			if until(c, 'B') {
				io.WriteString(c, strings.Repeat(packet('c', ""), 20)+packet('a', "")) //nolint:errcheck // see Hang
				io.Copy(io.Discard, c.R)                                               //nolint:errcheck // see Hang
			}
		}},
		{Name: "changes for ever", Play: forever('E', packet('h', "X-A\x00b\x00"))},
		{Name: "large changes for ever", Play: forever('E', packet('h', "X-A\x00"+strings.Repeat("b", 60_000)+"\x00"))},
		{Name: "a body without end", Play: forever('E', packet('b', strings.Repeat("b", 60_000)))},
		{Name: "a packet of a gigabyte", Play: forever('E', "\x40\x00\x00\x00b"+strings.Repeat("b", 60_000))},
		{Name: "a long packet", Play: at('E', packet('h', "X-A\x00"+strings.Repeat("b", 90_000)+"\x00"))},
		{Name: "alive for ever", Play: forever('E', packet('p', ""))},
		{Name: "alive, slowly", Slow: true, Play: func(c *serverstest.Conn) {
			for ok := until(c, 'E'); ok; time.Sleep(20 * time.Millisecond) {
				_, err := io.WriteString(c, packet('p', ""))
				ok = err == nil
			}
		}},
		{Name: "a byte a time", Slow: true, Play: func(c *serverstest.Conn) {
			if until(c, 'E') {
				for _, b := range []byte(eom(packet('h', "X-Slow\x00value\x00"))["E"]) {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			}
		}},
		{Name: "changes, then nothing", Play: at('E', packet('h', "X-A\x00b\x00")+packet('b', "x"))},
		{Name: "changes, then hangs", Slow: true, Play: hang('E', packet('h', "X-A\x00b\x00")+packet('b', "x"))},
		{Name: "changes, then garbage", Play: at('E', packet('h', "X-A\x00b\x00")+"\x00\xff garbage\n\r\n")},
		{Name: "half a change", Play: at('E', packet('h', "X-A\x00b")+packet('a', ""))},
		{Name: "a change without a name", Play: at('E', packet('h', "X-A")+packet('a', ""))},
		{Name: "a change without a number", Play: at('E', packet('m', "\x00")+packet('a', ""))},
		{Name: "two answers", Play: at('E', packet('a', "")+packet('r', ""))},
		{Name: "half an answer", Play: at('E', packet('a', "")[:3])},
		{Name: "all but a byte", Play: at('E', packet('a', "")[:4])},
		{Name: "an empty packet", Play: at('E', "\x00\x00\x00\x00")},
		{Name: "an unknown answer", Play: at('E', packet('Z', ""))},
		{Name: "a change before the end", Play: at('B', packet('h', "X-A\x00b\x00"))},
		{Name: "a skip that was not agreed", Play: at('B', packet('s', ""))},
		{Name: "a skip of the end", Play: at('E', packet('s', ""))},
		{Name: "a reply of 250", Play: at('E', packet('y', "250 2.0.0 ok\x00"))},
		{Name: "a reply without a code", Play: at('E', packet('y', "go away\x00"))},
		{Name: "an empty reply", Play: at('E', packet('y', ""))},
		{Name: "a reply of two codes", Play: at('E', packet('y', "550-a\r\n450 b\x00"))},
		{Name: "a reply of 10,000 lines", Play: at('E', packet('y', strings.Repeat("550-a\r\n", 10_000)+"550 b\x00"))},
	}
	for _, command := range "CHMRTLNBE" {
		c := byte(command)
		all = append(all,
			serverstest.Fault{Name: fmt.Sprintf("crashes at %c", c), Play: at(c, "")},
			serverstest.Fault{Name: fmt.Sprintf("garbage at %c", c), Play: at(c, "\x00\x00\x00\x05\xff garbage")},
			serverstest.Fault{Name: fmt.Sprintf("hangs at %c", c), Slow: true, Play: hang(c, "")},
		)
	}
	return all
}

// bounded keeps what has no end short.
const bounded = "body = 4_000_000"

// Whatever a milter does wrong, the filter fails in time and the message stays as
// it was; with another milter beside it, that one judges.
func TestFaults(t *testing.T) {
	for _, fault := range faults() {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(fault.Name+" by "+network, func(t *testing.T) {
				t.Parallel()
				bad := serverstest.Start(t, network, fault.Play)
				f := newFilter(t, bounded, bad.Address)
				within := 20 * time.Second
				if fault.Slow {
					within = time.Second
				}
				v, err := filtertest.Judge(f, large, within)
				if err == nil || v.Action != pipeline.Continue || v.Body != nil || v.Edits != nil || !strings.Contains(err.Error(), bad.Address) {
					t.Fatalf("%v, %v", v, err)
				}
				if text := err.Error(); strings.ContainsAny(text, "\r\n") || !utf8.ValidString(text) || len(text) > 1000 {
					t.Errorf("an error of %d bytes: %q", len(text), text)
				}
				good := newFake(eom(packet('h', "X-Good\x00b\x00")))
				f = newFilter(t, bounded, bad.Address, good.start(t).Address)
				if fault.Slow {
					within = 6 * time.Second // of which each has a half
				}
				if v, err = filtertest.Judge(f, large, within); err != nil || fmt.Sprint(edits(v)) != "[append X-Good: b]" || v.Body != nil {
					t.Errorf("beside one that works: %v, %v", v, err)
				}
			})
		}
	}
}

// One that cannot be reached.
func TestAway(t *testing.T) {
	gone := newFake(nil).start(t)
	gone.Stop()
	if _, err := filtertest.Judge(newFilter(t, "", gone.Address), small, time.Second); err == nil {
		t.Error("no error")
	}
	// Nobody answers at an address of a network that leads nowhere, or it is refused.
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	i := newFilter(t, "", "tcp:192.0.2.1:9").open(t)
	if _, err := i.Message(ctx, filtertest.Transaction(), message.FromString(small)); err == nil || time.Since(start) > 10*time.Second {
		t.Error(err)
	}
}

// A change that was not negotiated is a lie.
func TestUnasked(t *testing.T) {
	for code, need := range needs {
		says := packet(code, "X-A\x00b\x00")
		if code == 'i' || code == 'm' {
			says = indexed(code, 1, "X-A", "b")
		}
		fake := newFake(eom(says))
		fake.actions &^= need
		if v, err := filtertest.Judge(newFilter(t, "", fake.start(t).Address), small, 10*time.Second); err == nil || !strings.Contains(err.Error(), "it has not asked for") {
			t.Errorf("%c: %v, %v", code, v, err)
		}
	}
}

// Faults, and ten thousand messages, leave nothing behind: no descriptor, no
// goroutine, no spool file.
func TestLeaks(t *testing.T) {
	s := serverstest.Start(t, "unix", func(*serverstest.Conn) {})
	spool, err := message.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range faults() {
		if !fault.Slow {
			serverstest.Leaks(t, s, []serverstest.Fault{fault}, func() error {
				f := newFilter(t, bounded, s.Address)
				f.spool = spool
				_, err := filtertest.Judge(f, large, 20*time.Second)
				return err
			})
		}
	}
	emptySpool(t, spool)
	fake := newFake(map[string]string{"E": packet('b', "new body") + packet('h', "X-A\x00b\x00") + packet('a', "")})
	fake.flags = gomilter.OptNoHeaderReply | gomilter.OptNoBodyReply
	f := newFilter(t, "", fake.start(t).Address)
	goroutines, descriptors := runtime.NumGoroutine(), serverstest.Descriptors(t)
	for n := range filtertest.Soak() {
		v := filtertest.Must(t, f, small)
		v.Body.Release()
		if n%100 == 0 {
			fake.words()
			fake.macros()
		}
	}
	f.Close()
	for range 3000 {
		if runtime.NumGoroutine() <= goroutines && serverstest.Descriptors(t) <= descriptors {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before; %d descriptors, %d before", runtime.NumGoroutine(), goroutines, serverstest.Descriptors(t), descriptors)
}

// A kept connection that nobody uses is closed in the end.
func TestIdle(t *testing.T) {
	p := &pool{now: time.Now}
	s := newFake(nil).start(t)
	f := newFilter(t, "", s.Address)
	filtertest.Must(t, f, small)
	for _, one := range f.pool.idle[s.Address] {
		one.timer.Reset(0)
	}
	for range 30_000 {
		f.pool.mu.Lock()
		n := len(f.pool.idle[s.Address])
		f.pool.mu.Unlock()
		if n == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if one := f.pool.take(s.Address); one != nil {
		t.Error("it was kept")
	}
	p.close()
	if p.wants("x") {
		t.Error("a closed pool takes connections")
	}
}

// Large bodies are spooled, and a message whose body cannot be read is nobody's
// fault but ours.
func TestBodies(t *testing.T) {
	piece := packet('b', strings.Repeat("a line of the new body\r\n", 2000))
	fake := newFake(eom(strings.Repeat(piece, 40)))
	f := newFilter(t, "", fake.start(t).Address)
	spool, err := message.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f.spool = spool
	v := filtertest.Must(t, f, large)
	if v.Body.Size() != 40*2000*23 || v.Body.SpoolName() == "" {
		t.Errorf("%d bytes in %q", v.Body.Size(), v.Body.SpoolName())
	}
	v.Body.Release()
	emptySpool(t, spool)
	broken := message.StoredBody{At: strings.NewReader("short"), Size: 1000, LFs: 1}.Open()
	defer broken.Release()
	i := f.open(t)
	defer i.Close()
	if _, err := i.Message(t.Context(), filtertest.Transaction(), message.New(message.Head{}, broken)); err == nil || !strings.Contains(err.Error(), "reading the message") || f.set.Failing() != nil {
		t.Errorf("%v, failing %v", err, f.set.Failing())
	}
}

// emptySpool fails if there is more in a spool than its lock.
func emptySpool(t *testing.T, spool *message.Directory) {
	t.Helper()
	left, err := os.ReadDir(spool.Path())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if info, err := e.Info(); err != nil || info.Size() > 0 {
			t.Errorf("%s is left in the spool", e.Name())
		}
	}
}

// A milter that crashes under load, and comes back.
func TestUnderLoad(t *testing.T) {
	fake := newFake(nil)
	s := fake.start(t)
	f := newFilter(t, "reuse = false", s.Address)
	serverstest.UnderLoad(t, func() (bool, error) {
		_, err := filtertest.Judge(f, small, 2*time.Second)
		return err == nil, nil
	}, func() { s.Play(func(*serverstest.Conn) {}) }, func() { s.Play(fake.play) })
}
