package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/internal/shim"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

func TestHello(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.args = []string{"", "a b", "\xff\n"}
		c.env = []string{"TCPREMOTEIP=192.0.2.1", "RELAYCLIENT=", "QMAIL=\xfe\n"}
		d := c.greeted()
		if d.hello.Program != wire.ProgramQueue || d.hello.Flags != 0 || d.hello.PPID != uint32(os.Getpid()) {
			t.Errorf("hello %+v", d.hello)
		}
		if want := append([]string{p.path}, c.args...); !slices.Equal(d.args, want) {
			t.Errorf("arguments %q, want %q", d.args, want)
		}
		if want := append(c.env, "POSTERN_SOCKET="+c.socket()); !slices.Equal(d.env, want) {
			t.Errorf("environment %q, want %q", d.env, want)
		}
		if len(d.given) != 2 {
			t.Fatalf("%d descriptors", len(d.given))
		}
		d.send(wire.Accepted{Beat: 600_000, Slow: 600_000})
		fill(t, c.message, "Subject: x\n\nbody\x00\r\n")
		if got := contents(t, d.given[0]); got != "Subject: x\n\nbody\x00\r\n" {
			t.Errorf("message %q", got)
		}
		fill(t, c.envelope, "Fa@b\x00Tc@d\x00\x00")
		if got := contents(t, d.given[1]); got != "Fa@b\x00Tc@d\x00\x00" {
			t.Errorf("envelope %q", got)
		}
		d.send(wire.Envelope{})
		d.send(wire.Exit{})
		c.exits(0)
		d.seesEOF()
	})
}

// TestDescriptorsAreLeftAlone: a file is passed at its offset, which the shim does not move, and no flag of a caller's
// descriptor changes.
func TestDescriptorsAreLeftAlone(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		message, envelope := c.file("skipped message"), c.file("Fa\x00Tb\x00\x00")
		_, err := message.Seek(8, io.SeekStart)
		check(t, err)
		c.fd(0, message)
		c.fd(1, envelope)
		r, w := c.pipe()
		c.fd(4, w)
		flags := func(f *os.File) int { return shim.Fcntl(int(f.Fd()), syscall.F_GETFL, 0) }
		before := []int{flags(message), flags(envelope), flags(r)}
		d := c.accepted()
		if at, err := message.Seek(0, io.SeekCurrent); at != 8 || err != nil {
			t.Errorf("offset %d, %v", at, err)
		}
		if got := contents(t, d.given[0]); got != "message" {
			t.Errorf("message %q", got)
		}
		d.send(wire.Exit{Code: 31})
		c.exits(31)
		if after := []int{flags(message), flags(envelope), flags(r)}; !slices.Equal(before, after) {
			t.Errorf("flags %v, were %v", after, before)
		}
	})
}

func TestClosedDescriptors(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, fd := range []int{0, 1} {
			c := newCaller(t, p)
			c.files[fd] = nil
			c.start()
			c.exits(54)
		}
		c := newCaller(t, p)
		c.files[2] = nil // the socket may become fd 2: no text must go there
		d := c.accepted()
		d.send(wire.Exit{Code: 31, Dialect: wire.DialectIndimail, Text: "Dno"})
		c.exits(31)
		d.seesEOF()
	})
}

// TestLongLists: environment and arguments that need several packets, the limits, and what does not fit.
func TestLongLists(t *testing.T) {
	word := strings.Repeat("w", 100<<10)
	environment := func(total int) []string { // of that many bytes with the NULs and POSTERN_SOCKET
		var env []string
		for total > 0 {
			n := min(total, 1000)
			if total-n < 100 {
				n = total
			}
			env = append(env, fmt.Sprintf("X%02d=", len(env))+strings.Repeat("x", n-5))
			total -= n
		}
		return env
	}
	each(t, func(t *testing.T, p program) {
		for _, row := range []struct {
			name string
			args []string
			env  []string // may leave room for POSTERN_SOCKET or not
			cut  string   // an entry that does not fit
		}{
			{name: "three packets", env: environment(40000)},
			{name: "long arguments", args: []string{word, word, word}, env: environment(100)},
			{name: "an entry too long", env: []string{"A=b", "BIG=" + word, "RELAYCLIENT="}, cut: "BIG=" + word},
			{name: "exactly full", env: environment(wire.MaxEnv)},
			{name: "full but one", env: environment(wire.MaxEnv + 1)},
		} {
			c := newCaller(t, p)
			last := "POSTERN_SOCKET=" + c.socket()
			c.args, c.env = row.args, row.env
			cut := row.cut
			if row.name == "exactly full" {
				c.env = environment(wire.MaxEnv - len(last) - 1)
			}
			if row.name == "full but one" {
				c.env = environment(wire.MaxEnv - len(last))
				cut = last
			}
			d := c.greeted()
			want := slices.DeleteFunc(append(slices.Clone(c.env), last), func(e string) bool { return e == cut })
			if !slices.Equal(d.env, want) || (d.hello.Flags&wire.FlagEnvironmentCut != 0) != (cut != "") {
				t.Errorf("%s: %d entries, want %d; flags %d", row.name, len(d.env), len(want), d.hello.Flags)
			}
			if !slices.Equal(d.args[1:], row.args) {
				t.Errorf("%s: the arguments differ", row.name)
			}
			d.send(wire.Exit{Code: 11})
			c.exits(11)
		}
		c := newCaller(t, p)
		c.args = slices.Repeat([]string{word}, 11)
		c.start()
		c.exits(71)
	})
}

// TestHelloThatIsNotRead: the daemon stops in the middle of a long hello, so that the shim cannot go on sending.
func TestHelloThatIsNotRead(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.args = slices.Repeat([]string{strings.Repeat("w", 100<<10)}, 9)
		c.waits(300 * time.Millisecond)
		c.start()
		d := c.accept()
		c.message.Close()
		c.envelope.Close()
		c.exits(71)
		d.hangUp()
	})
}

func TestSocketPath(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, path := range []string{"/" + strings.Repeat("x", 107), filepath.Join("/", strings.Repeat("x", 4000)), "@abstract"} {
			c := newCaller(t, p)
			c.env = []string{"POSTERN_SOCKET=" + path, "POSTERN_WAIT=0"} // the first of two counts
			c.start()
			c.written()
			c.exits(71)
		}
	})
}
