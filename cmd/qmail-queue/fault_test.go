package main

import (
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

const short = 300 * time.Millisecond

// ok is an A whose times do not end in a test.
const ok = "A\x01\xff\xff\xff\x00\xff\xff\xff\x00"

func TestNoDaemon(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		check(t, c.listener.Close()) // unlinks the socket
		c.waits(short)
		c.start()
		c.written()
		c.exits(71)

		c = newCaller(t, p)
		c.listener.SetUnlinkOnClose(false)
		check(t, c.listener.Close()) // refuses
		c.waits(short)
		c.start()
		c.written()
		c.exits(71)
	})
}

// TestNoDaemonAndMuchToWrite: a caller that holds the reading ends itself, as mailfront 2.12 does, gets no EPIPE; it can
// write all it has nevertheless, whether the daemon is missing, refuses, or dies.
func TestNoDaemonAndMuchToWrite(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, name := range []string{"missing", "refusing", "dying"} {
			c := newCaller(t, p)
			for _, f := range c.files[:2] {
				fd, err := syscall.Dup(int(f.Fd()))
				check(t, err)
				defer syscall.Close(fd)
			}
			c.waits(short)
			switch name {
			case "missing":
				check(t, c.listener.Close())
				c.start()
			case "refusing":
				c.start()
				c.accept().hangUp()
			case "dying":
				d := c.greeted()
				d.raw(ok)
				d.hangUp()
			}
			fill(t, c.message, strings.Repeat("line\n", 1<<16))
			fill(t, c.envelope, strings.Repeat("Trecipient@example.org\x00", 1<<13))
			if code := c.wait(); code != 71 {
				t.Errorf("%s: exit %d", name, code)
			}
		}
	})
}

// TestDaemonStartsLate: a restart of the daemon is not seen by the caller.
func TestDaemonStartsLate(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		check(t, c.listener.Close())
		c.start() // with the default patience
		time.Sleep(short)
		c.running()
		c.listen()
		d := c.accept()
		d.readHello()
		d.send(wire.Exit{})
		c.exits(0)
	})
}

// TestFullBacklog: a daemon that is stopped, and whose backlog is full, is as good as none.
func TestFullBacklog(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		check(t, c.listener.Close())
		const kind = syscall.SOCK_SEQPACKET | syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
		name := &syscall.SockaddrUnix{Name: c.socket()}
		l, err := syscall.Socket(syscall.AF_UNIX, kind, 0)
		check(t, err)
		defer syscall.Close(l)
		check(t, syscall.Bind(l, name))
		check(t, syscall.Listen(l, 0))
		for err == nil {
			fd, failed := syscall.Socket(syscall.AF_UNIX, kind, 0)
			check(t, failed)
			defer syscall.Close(fd)
			err = syscall.Connect(fd, name)
		}
		if err != syscall.EAGAIN {
			t.Fatal(err)
		}
		c.waits(short)
		c.start()
		c.written()
		c.exits(71)
	})
}

// TestSilence: a daemon that holds the descriptors and does nothing. The caller can write all it has, and the daemon can
// see that the shim had hung up before it read the first byte.
func TestSilence(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, name := range []string{"no A", "no beat"} {
			c := newCaller(t, p)
			if name == "no A" {
				c.waits(short)
			}
			d := c.greeted()
			if name == "no beat" {
				d.send(wire.Accepted{Beat: 300, Slow: 600_000})
			}
			d.seesEOF()
			c.running()
			fill(t, c.message, strings.Repeat("line\n", 1<<16))
			fill(t, c.envelope, strings.Repeat("Trecipient@example.org\x00", 1<<13))
			if code := c.wait(); code != 71 {
				t.Errorf("%s: exit %d", name, code)
			}
			d.hangUp()
		}
	})
}

// TestStopped: not even accepted; the descriptors wait in the backlog.
func TestStopped(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.waits(short)
		c.start()
		fill(t, c.message, strings.Repeat("line\n", 1<<16))
		fill(t, c.envelope, "Fa\x00Tb\x00\x00")
		c.exits(71)
	})
}

// TestSilentCallerToo: neither daemon nor caller do anything; that ends as well.
func TestSilentCallerToo(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.path = p.quick
		c.waits(short)
		d := c.greeted()
		c.exits(71)
		d.hangUp()
	})
}

// TestSilenceAfterEnvelope: the caller has written all; it may still hold its ends open.
func TestSilenceAfterEnvelope(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.greeted()
		d.send(wire.Accepted{Beat: 300, Slow: 600_000})
		d.send(wire.Envelope{})
		c.exits(71)
		d.hangUp()
	})
}

func TestBeats(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.greeted()
		d.send(wire.Accepted{Beat: 2000, Slow: 1500})
		for range 4 { // longer than beat and slow, before E
			time.Sleep(700 * time.Millisecond)
			c.running()
			d.send(wire.Beat{})
		}
		d.send(wire.Envelope{})
		d.send(wire.Exit{Code: 12})
		c.exits(12)
	})
}

// TestSlow: a daemon that beats, but does not answer.
func TestSlow(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.greeted()
		d.send(wire.Accepted{Beat: 600_000, Slow: 1000})
		d.send(wire.Envelope{})
		begun := time.Now()
		for { // a second E does not start the timer again
			if _, _, err := d.conn.WriteMsgUnix([]byte("E"), nil, nil); err != nil {
				break
			}
			if time.Since(begun) > patience {
				t.Fatal("it waits for as long as the daemon talks")
			}
			time.Sleep(100 * time.Millisecond)
		}
		c.exits(71)
		if took := time.Since(begun); took < 900*time.Millisecond {
			t.Errorf("gave up after %v", took)
		}
	})
}

// TestTotal: the daemon beats, and the envelope never ends: as with qmail-queue, exit 52.
func TestTotal(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.path = p.quick
		c.accepted()
		c.exits(52)
	})
}

// TestDaemonDies: after each frame, at once and while the shim waits. Once it has all pairs, it needs no daemon.
func TestDaemonDies(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.start()
		c.written()
		c.accept().hangUp() // before or while the hello is sent
		c.exits(71)
		frames := []string{ok, "B", "E", "N\x01\x02\x00/bin/true\x00", "P\x01\x00"}
		for n := range len(frames) + 1 {
			for _, pause := range []time.Duration{0, 50 * time.Millisecond} {
				c := newCaller(t, p)
				d := c.greeted()
				c.written()
				for _, f := range frames[:n] {
					if f[0] == 'P' {
						d.raw(f, os.Stdin, os.Stdin)
					} else {
						d.raw(f)
					}
				}
				time.Sleep(pause)
				d.hangUp()
				if code := c.wait(); code != 71 {
					t.Errorf("after %q: exit %d", frames[:n], code)
				}
			}
		}
	})
}

// TestGarbage: whatever the daemon says that the format does not allow, the shim answers temporarily. "+2" stands for
// two descriptors.
func TestGarbage(t *testing.T) {
	next := "N\x01\x02\x00/bin/true\x00"
	long := strings.Repeat("x", wire.MaxPath)
	rows := map[string][]string{
		"unknown kind":         {ok, "Q"},
		"control byte":         {ok, "\x00"},
		"empty packet":         {ok, ""},
		"too long":             {ok, strings.Repeat("z", wire.MaxPacket+1)},
		"another version":      {"A\x02" + ok[2:]},
		"A with a byte more":   {ok + "\x00"},
		"A without beat":       {"A\x01\x00\x00\x00\x00\x01\x00\x00\x00"},
		"A without slow":       {"A\x01\x01\x00\x00\x00\x00\x00\x00\x00"},
		"A twice":              {ok, ok},
		"B before A":           {"B"},
		"E before A":           {"E"},
		"N before A":           {next},
		"P before N":           {ok, "P\x00\x00+2"},
		"B with a byte more":   {ok, "B\x00"},
		"E with a byte more":   {ok, "E\x00"},
		"B with a descriptor":  {ok, "B+1"},
		"X too short":          {ok, "X\x00\x00\x00"},
		"X too long":           {ok, "X\x00\x00\x00\x00D"},
		"X without its text":   {ok, "X\x1f\x00\x04\x00Dno"},
		"X of another letter":  {ok, "X\x1f\x00\x03\x00Kno"},
		"X of another dialect": {ok, "X\x1f\x06\x00\x00"},
		"X with too much text": {ok, "X\x1f\x00\x00\x04D" + long[:1023]},
		"X after N":            {ok, next, "X\x00\x00\x00\x00"},
		"E after N":            {ok, next, "E"},
		"N twice":              {ok, next, next},
		"N of no pairs":        {ok, "N\x01\x00\x00/bin/true\x00"},
		"N of too many pairs":  {ok, "N\x01\x81\x00/bin/true\x00"},
		"N of another mode":    {ok, "N\x02\x01\x00/bin/true\x00"},
		"N to exec two":        {ok, "N\x00\x02\x00/bin/true\x00"},
		"N of a relative path": {ok, "N\x01\x01\x00bin/true\x00"},
		"N without its NUL":    {ok, "N\x01\x01\x00/bin/true"},
		"N with two NULs":      {ok, "N\x01\x01\x00/bin\x00true\x00"},
		"N without a path":     {ok, "N\x01\x01\x00\x00"},
		"N of a long path":     {ok, "N\x01\x01\x00/" + long + "\x00"},
		"P without descriptor": {ok, next, "P\x00\x00"},
		"P with one":           {ok, next, "P\x00\x00+1"},
		"P with three":         {ok, next, "P\x00\x00+3"},
		"P twice":              {ok, next, "P\x00\x00+2", "P\x00\x00+2"},
		"P of no pair":         {ok, next, "P\x02\x00+2"},
		"P too short":          {ok, next, "P\x00+2"},
		"P too long":           {ok, next, "P\x00\x00\x00+2"},
		"the shim's own frame": {ok, "R\x00\x00\x00\x00\x00\x00\x00\x00"},
	}
	each(t, func(t *testing.T, p program) {
		for name, packets := range rows {
			c := newCaller(t, p)
			d := c.greeted()
			c.written()
			for _, packet := range packets {
				packet, count, _ := strings.Cut(packet, "+")
				n, _ := strconv.Atoi(count) // 0 without a count
				d.raw(packet, slices.Repeat([]*os.File{os.Stdin}, n)...)
			}
			if code := c.wait(); code != 71 {
				t.Errorf("%s: exit %d", name, code)
			}
			d.hangUp()
		}
	})
}

// TestLowerCaseIsIgnored: a later daemon may say more.
func TestLowerCaseIsIgnored(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.greeted()
		for _, packet := range []string{"z", ok, "a" + strings.Repeat("x", 10000), "E", "m", "X\x1f\x00\x00\x00"} {
			d.raw(packet)
		}
		c.exits(31)
	})
}

// TestKilled: the daemon sees the end of a shim that is killed, and of the caller's pipe.
func TestKilled(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.accepted()
		check(t, c.process.Kill())
		d.seesEOF()
		c.exits(-1)
		check(t, c.message.Close())
		if b, err := io.ReadAll(d.given[0]); len(b) != 0 || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
}
