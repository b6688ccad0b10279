package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

const short = 300 * time.Millisecond

// TestReport: without a daemon the mail stays, and who calls without enough
// arguments hears what qmail-remote says.
func TestReport(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, row := range []struct {
			args []string
			want string
		}{
			{nil, improper},
			{[]string{"host"}, improper},
			{[]string{"host", "sender@a"}, improper},
			{[]string{"", ""}, improper},
			{[]string{"host", "sender@a", "recipient@b"}, noDaemon},
			{[]string{"host", "", "recipient@b"}, noDaemon},
			{[]string{"host", "sender@a", string(bytes.Repeat([]byte("r"), 100_000)), "recipient@c"}, noDaemon},
		} {
			cmd := exec.Command(p.path, row.args...)
			cmd.Env = []string{"POSTERN_WAIT=0"}
			out, err := cmd.Output() // an exit code but 0 is an error
			if err != nil || string(out) != row.want {
				t.Errorf("%d arguments: %q, %v", len(row.args), out, err)
			}
		}
	})
	for _, text := range []string{improper, unreadable, tooLong, noDaemon, died, slow, nonsense, loop, noNext} {
		if first := text[0]; (first != 'D' || text != improper) && first != 'Z' || strings.IndexByte(text, 0) != len(text)-1 || text[len(text)-2] != '\n' {
			t.Errorf("%q is not one temporary report", text)
		}
	}
}

// TestDelivered: the daemon's report is printed byte for byte, whatever its size.
func TestDelivered(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, want := range []string{
			"r\x00K127.0.0.1 accepted message.\nRemote host said: 250 ok 3\n\x00",
			"h127.0.0.1 does not like recipient.\nRemote host said: 550 no\n\x00s1\n\x00r\x00Z\xff\n\x00",
			"\x00",
			strings.Repeat("s127.0.0.1 does not like recipient.\nRemote host said: 450 later\n\x00", 10_000) + "DGiving up on 127.0.0.1.\n\x00",
			strings.Repeat("r\x00", wire.MaxReport/2),
		} {
			c := newCaller(t, p)
			d := c.accepted()
			d.send(wire.Envelope{})
			go func() {
				for rest := []byte(want); len(rest) > 0; {
					n := min(len(rest), wire.MaxChunk)
					d.send(wire.Text{Chunk: rest[:n]})
					rest = rest[n:]
				}
				d.send(wire.Beat{})
				d.send(wire.Exit{})
			}()
			c.reports(want)
		}
	})
}

// TestAnswer: an exit code's text is the report, one line; without one there is
// none to be had.
func TestAnswer(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, row := range []struct {
			before string
			packet string
			want   string
		}{
			{"", "X\x47\x00\x05\x00Zwait", "Zwait\n\x00"},
			{ok, "X\x1f\x00\x03\x00Dno", "Dno\n\x00"},
			{ok, "X\x1f\x05\x07\x00Dn\x00\n\xffo\r", "Dn???o?\n\x00"},
			{ok, string(wire.Exit{Code: 1, Text: "Z" + strings.Repeat("x", wire.MaxText-1)}.Append(nil)), "Z" + strings.Repeat("x", wire.MaxText-1) + "\n\x00"},
			{"", "X\x00\x00\x00\x00", nonsense},
			{ok, "X\x47\x00\x00\x00", nonsense},
		} {
			c := newCaller(t, p)
			d := c.greeted()
			if row.before != "" {
				d.raw(row.before)
			}
			d.raw(row.packet)
			c.reports(row.want)
		}
	})
}

// TestHalfAReport is a bounce to qmail-rspawn, so there is none.
func TestHalfAReport(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for name, row := range map[string]struct {
			frames []frame
			want   string
		}{
			"no end":       {nil, died},
			"no NUL":       {[]frame{wire.Text{Chunk: []byte("\x00Khalf")}, wire.Exit{}}, nonsense},
			"another code": {[]frame{wire.Exit{Code: 71}}, nonsense},
			"with a text":  {[]frame{wire.Exit{Code: 71, Text: "Zno"}}, nonsense},
			"then a next":  {[]frame{wire.Next{Count: 1, Path: "/bin/true"}}, nonsense},
		} {
			c := newCaller(t, p)
			d := c.accepted()
			d.send(wire.Text{Chunk: []byte("r\x00h1.2.3.4 does not like recipient.\n\x00")})
			for _, f := range row.frames {
				d.send(f)
			}
			d.conn.Close()
			if c.wait(); c.said != row.want || c.state.ExitCode() != 0 {
				t.Errorf("%s: %v %q", name, c.state, c.said)
			}
		}
		c := newCaller(t, p)
		d := c.accepted()
		for n := 0; n <= wire.MaxReport; n += wire.MaxChunk {
			d.send(wire.Text{Chunk: make([]byte, wire.MaxChunk)})
		}
		c.reports(nonsense)
	})
}

// TestNext: the next program gets the descriptor that came, the arguments as
// they are, argv[0] too, and one hop more.
func TestNext(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.env = append(c.env, "ONE=1")
		c.args = []string{"qmail-remote", "host", "", "c d@e", "\xff*'"}
		c.script(`cat; printf '%s|' "$0" "$@" $ONE $POSTERN_HOPS; exit 0`)
		d := c.accepted()
		if !slices.Equal(d.args, c.args) {
			t.Errorf("%q", d.args)
		}
		if b, err := io.ReadAll(d.given[0]); err != nil || string(b) != "Subject: hello\n\nbody\n" {
			t.Errorf("%q, %v", b, err)
		}
		d.send(wire.Envelope{})
		d.send(wire.Next{Count: 1, Path: c.dir + "/next"})
		d.send(wire.Pair{}, c.file("signed\n"))
		d.seesEOF()
		c.reports("signed\n" + c.dir + "/next|host||c d@e|\xff*'|1|1|")
	})
}

// TestFirstArgument: a program sees argv[0] as the shim got it.
func TestFirstArgument(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.args = []string{"odd name", "/proc/self/cmdline", "/dev/null", "/dev/null"}
		d := c.accepted()
		d.send(wire.Next{Count: 1, Path: "/bin/cat"})
		d.send(wire.Pair{}, c.file(""))
		c.reports(strings.Join(c.args, "\x00") + "\x00")
	})
}

// TestNextCannotRun: what is not there, not executable, or the shim itself is
// no reason for a bounce (notqmail's issue of a missing qmail-remote).
func TestNextCannotRun(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, row := range []struct{ path, hops, want string }{
			{"/nonexistent/qmail-remote", "", noNext},
			{"/etc/passwd", "", noNext},
			{"/", "", noNext},
			{p.path, "", loop},
			{"/bin/true", "POSTERN_HOPS=5", loop},
			{"/bin/true", "POSTERN_HOPS=99999999999999999999", loop},
		} {
			c := newCaller(t, p)
			if row.hops != "" {
				c.env = append(c.env, row.hops)
			}
			d := c.accepted()
			d.send(wire.Next{Count: 1, Path: row.path})
			d.send(wire.Pair{}, c.file("x"))
			d.sees(wire.Result{Exit: 71})
			c.reports(row.want)
		}
	})
}

// TestOffset: the descriptor goes over as it is; whoever reads it finds the
// offset that the caller left.
func TestOffset(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		_, err := c.stdin.Seek(9, io.SeekStart)
		check(t, err)
		d := c.accepted()
		if at, err := d.given[0].Seek(0, io.SeekCurrent); at != 9 || err != nil {
			t.Errorf("offset %d, %v", at, err)
		}
		d.send(wire.Exit{Code: 71, Text: "Zno"})
		c.reports("Zno\n\x00")
		if at, err := c.stdin.Seek(0, io.SeekCurrent); at != 9 || err != nil {
			t.Errorf("afterwards %d, %v", at, err)
		}
	})
}

// TestManyRecipients: arguments in pieces, as many as there are.
func TestManyRecipients(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, n := range []int{1000, 20_000} {
			c := newCaller(t, p)
			c.args = []string{"qmail-remote", "host", "a@b"}
			for i := range n {
				c.args = append(c.args, fmt.Sprintf("recipient-%d-with-a-longish-local-part@host.example", i))
			}
			d := c.accepted()
			if !slices.Equal(d.args, c.args) {
				t.Fatalf("%d arguments came of %d", len(d.args), len(c.args))
			}
			c.script(`echo $#`)
			d.send(wire.Next{Count: 1, Path: c.dir + "/next"})
			d.send(wire.Pair{}, c.file(""))
			c.reports(fmt.Sprintf("%d\n", n+2))
		}
	})
}

// TestLittleMemory: qmail-send may run under softlimit -m. The Go twin needs
// more; its package says so.
func TestLittleMemory(t *testing.T) {
	for _, p := range built.programs {
		if !p.plain {
			continue
		}
		self, err := os.Executable()
		check(t, err)
		c := newCaller(t, p)
		c.env = append(c.env, roleVariable+"=8000000") // softlimit -m 8000000
		c.args = append([]string{"confine", p.path, "host", "a@b"}, slices.Repeat([]string{"recipient@host.example"}, 1000)...)
		c.path = self
		d := c.accepted()
		want := strings.Repeat("r\x00", wire.MaxReport/4) + "K1.2.3.4 accepted message.\n\x00"
		for rest := []byte(want); len(rest) > 0; {
			n := min(len(rest), wire.MaxChunk)
			d.send(wire.Text{Chunk: rest[:n]})
			rest = rest[n:]
		}
		d.send(wire.Exit{})
		c.reports(want)
	}
}

// TestNoDescriptors: without a message there is nothing to send, without a
// reader nobody to tell, and neither is a bounce.
func TestNoDescriptors(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.stdin = nil
		c.start()
		c.reports(unreadable)

		c = newCaller(t, p)
		c.stdout.Close()
		c.stdout = nil
		proc, err := os.StartProcess(c.path, c.args, &os.ProcAttr{
			Env: append(c.env, "POSTERN_REMOTE_SOCKET="+c.socket()), Files: []*os.File{c.stdin, nil, nil},
		})
		check(t, err)
		c.process = proc
		d := c.accept()
		d.receive()
		d.raw(ok)
		d.send(wire.Text{Chunk: []byte("K\x00")})
		d.send(wire.Exit{})
		d.seesEOF() // and no report on the socket
		c.reports("")
	})
}

// TestNobodyReads: that is no reason for a bounce either.
func TestNobodyReads(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		c.out.Close()
		d := c.accepted()
		d.send(wire.Exit{Code: 71, Text: "Zno"})
		c.reports("")
	})
}

// TestFullPipe: a pipe that takes the report only when it is read, and does not
// block.
func TestFullPipe(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		r, w, err := os.Pipe()
		check(t, err)
		fd := int(w.Fd())
		check(t, syscall.SetNonblock(fd, true))
		filled := 0
		for {
			n, err := syscall.Write(fd, make([]byte, 4096))
			if errors.Is(err, syscall.EAGAIN) {
				break
			}
			check(t, err)
			filled += n
		}
		// Not os.StartProcess, which would make the pipe block again.
		pid, err := syscall.ForkExec(p.path, []string{p.path, "host", "sender", "recipient"}, &syscall.ProcAttr{Env: []string{"POSTERN_WAIT=0"}, Files: []uintptr{uintptr(fd), uintptr(fd), 2}})
		check(t, err)
		check(t, w.Close())
		time.Sleep(100 * time.Millisecond)
		out, err := io.ReadAll(r)
		check(t, err)
		proc, err := os.FindProcess(pid)
		check(t, err)
		state, err := proc.Wait()
		check(t, err)
		if got := string(out[min(filled, len(out)):]); got != noDaemon || state.ExitCode() != 0 {
			t.Errorf("%q, %v", got, state)
		}
		check(t, r.Close())
	})
}
