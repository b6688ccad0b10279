package main

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

func TestExitCodesPassThrough(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		step := 1
		if !p.cheap {
			step = 15
		}
		for code := 0; code < 256; code += step {
			c := newCaller(t, p)
			d := c.accepted()
			d.send(wire.Exit{Code: uint8(code), Text: "Dtext"})
			c.exits(code)
			d.hangUp()
		}
	})
}

// TestAnswerComesFirst: a daemon that takes no more may answer without A.
func TestAnswerComesFirst(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.greeted()
		d.send(wire.Exit{Code: 53})
		c.exits(53)
	})
}

// TestDialects: which descriptor gets the text, and with which exit code. Each descriptor is p (writing end of a pipe),
// r (reading end), f (file) or absent (closed).
func TestDialects(t *testing.T) {
	const auto, netqmail, notqmail, sagredo, indimail, none = wire.DialectAuto, wire.DialectNetqmail, wire.DialectNotqmail,
		wire.DialectSagredo, wire.DialectIndimail, wire.DialectNone
	rows := []struct {
		name    string
		dialect wire.Dialect
		fds     map[int]byte
		errorFD string // "unset" for none
		code    int
		on      int // where the text is, 0 for nowhere
	}{
		{"auto, nothing", auto, nil, "unset", 31, 0},
		{"auto, 6", auto, map[int]byte{6: 'p'}, "unset", 82, 6},
		{"auto, 4", auto, map[int]byte{4: 'p'}, "unset", 82, 4},
		{"auto, 4 and 6", auto, map[int]byte{4: 'p', 6: 'p'}, "unset", 82, 6},
		{"auto, 4 and a file at 6", auto, map[int]byte{4: 'p', 6: 'f'}, "unset", 82, 4},
		{"auto, 4 and a reading end at 6", auto, map[int]byte{4: 'p', 6: 'r'}, "unset", 82, 4},
		{"auto, ERROR_FD", auto, map[int]byte{4: 'p', 6: 'p', 9: 'p'}, "9", 88, 9},
		{"auto, ERROR_FD is stderr", auto, map[int]byte{2: 'p'}, "2", 88, 2},
		{"auto, stderr alone", auto, map[int]byte{2: 'p'}, "unset", 31, 0},
		{"auto, ERROR_FD closed", auto, map[int]byte{4: 'p'}, "9", 82, 4},
		{"auto, ERROR_FD off", auto, map[int]byte{4: 'p'}, "-1", 82, 4},
		{"auto, ERROR_FD is the message", auto, nil, "0", 31, 0},
		{"auto, ERROR_FD is ours", auto, nil, "3", 31, 0},
		{"auto, ERROR_FD is no number", auto, map[int]byte{6: 'p', 9: 'p'}, "9x", 82, 6},
		{"auto, ERROR_FD is empty", auto, map[int]byte{6: 'p'}, "", 82, 6},
		{"auto, ERROR_FD is huge", auto, map[int]byte{6: 'p'}, "99999999999999999999999999", 82, 6},
		{"netqmail", netqmail, map[int]byte{4: 'p', 6: 'p', 9: 'p'}, "9", 82, 4},
		{"netqmail without 4", netqmail, map[int]byte{6: 'p', 9: 'p'}, "9", 31, 0},
		{"netqmail, file", netqmail, map[int]byte{4: 'f'}, "unset", 31, 0},
		{"notqmail", notqmail, map[int]byte{4: 'p', 6: 'p', 9: 'p'}, "9", 82, 6},
		{"notqmail without 6", notqmail, map[int]byte{4: 'p'}, "unset", 31, 0},
		{"notqmail, reading end", notqmail, map[int]byte{6: 'r'}, "unset", 31, 0},
		{"sagredo", sagredo, map[int]byte{4: 'p', 6: 'p'}, "unset", 82, 4},
		{"sagredo, ERROR_FD", sagredo, map[int]byte{4: 'p', 9: 'p'}, "9", 82, 9},
		{"sagredo, ERROR_FD closed", sagredo, map[int]byte{4: 'p'}, "9", 31, 0},
		{"sagredo, ERROR_FD off", sagredo, map[int]byte{4: 'p'}, "-1", 31, 0},
		{"sagredo, ERROR_FD is no number", sagredo, map[int]byte{4: 'p'}, "x", 82, 4},
		{"indimail", indimail, map[int]byte{2: 'p', 4: 'p', 6: 'p'}, "unset", 88, 2},
		{"indimail, ERROR_FD", indimail, map[int]byte{2: 'p', 9: 'p'}, "9", 88, 9},
		{"indimail, ERROR_FD off", indimail, map[int]byte{2: 'p'}, "-1", 31, 0},
		{"indimail, stderr is a file", indimail, map[int]byte{2: 'f'}, "unset", 31, 0},
		{"none", none, map[int]byte{2: 'p', 4: 'p', 6: 'p', 9: 'p'}, "9", 31, 0},
	}
	each(t, func(t *testing.T, p program) {
		for _, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				c := newCaller(t, p)
				readers := map[int]*os.File{}
				for fd, what := range row.fds {
					r, w := c.pipe()
					switch what {
					case 'p':
						c.fd(fd, w)
						readers[fd] = r
					case 'r':
						c.fd(fd, r)
					case 'f':
						f := c.file("")
						c.fd(fd, f)
						readers[fd] = f
					}
				}
				if row.errorFD != "unset" {
					c.env = append(c.env, "ERROR_FD="+row.errorFD)
				}
				d := c.accepted()
				d.send(wire.Exit{Code: 31, Dialect: row.dialect, Text: "Dno thanks (#5.7.1)"})
				c.exits(row.code)
				for fd, r := range readers {
					want := ""
					if fd == row.on {
						want = "Dno thanks (#5.7.1)"
					}
					if got := contents(t, r); got != want {
						t.Errorf("on %d: %q, want %q", fd, got, want)
					}
				}
			})
		}
	})
}

func TestTexts(t *testing.T) {
	long := "D" + strings.Repeat("x", wire.MaxText-1)
	rows := []struct {
		name    string
		code    uint8
		dialect wire.Dialect
		text    string
		want    string
		exit    int
	}{
		{"none", 71, wire.DialectNetqmail, "", "", 71},
		{"one byte", 31, wire.DialectNetqmail, "D", "", 31},
		{"two bytes", 31, wire.DialectNetqmail, "Dx", "", 31},
		{"three bytes", 31, wire.DialectNetqmail, "Dxy", "Dxy", 82},
		{"temporary", 71, wire.DialectNetqmail, "Zlater", "Zlater", 82},
		{"success", 0, wire.DialectNetqmail, "Dno", "", 0},
		{"two lines", 31, wire.DialectNetqmail, "Dno\r\n250 ok\x00\x1f\x7f\xff~ ", "Dno??250 ok????~ ", 82},
		{"netqmail, long", 31, wire.DialectNetqmail, long, long[:255], 82},
		{"indimail, long", 31, wire.DialectIndimail, long, long, 88},
	}
	each(t, func(t *testing.T, p program) {
		for _, row := range rows {
			c := newCaller(t, p)
			r, w := c.pipe()
			c.fd(row.dialect.Channels()[0].FD, w)
			d := c.accepted()
			d.send(wire.Exit{Code: row.code, Dialect: row.dialect, Text: row.text})
			if code := c.wait(); code != row.exit {
				t.Errorf("%s: exit %d, want %d", row.name, code, row.exit)
			}
			if got := contents(t, r); got != row.want {
				t.Errorf("%s: %q, want %q", row.name, got, row.want)
			}
		}
	})
}

// waitUnread waits until nobody can read a pipe any more: a program that another
// test is just starting holds our descriptors until it is executed.
func waitUnread(t *testing.T, w int) {
	t.Helper()
	for range 1000 {
		fds := []unix.PollFd{{Fd: int32(w), Events: unix.POLLOUT}}
		if _, err := unix.Poll(fds, 0); err == nil && fds[0].Revents&unix.POLLERR != 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("somebody still reads the pipe")
}

// TestTextThatCannotBeWritten: the special code would promise a text.
func TestTextThatCannotBeWritten(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		r, w := c.pipe()
		watch, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		check(t, err)
		defer unix.Close(watch)
		c.fd(4, w)
		d := c.accepted()
		check(t, r.Close())
		waitUnread(t, watch)
		d.send(wire.Exit{Code: 31, Text: "Dno"})
		c.exits(31) // not SIGPIPE either

		c = newCaller(t, p)
		c.path = p.quick
		_, w = c.pipe()
		fd := int(w.Fd())
		check(t, syscall.SetNonblock(fd, true))
		for err := error(nil); err == nil; {
			if _, err = syscall.Write(fd, make([]byte, 4096)); err != nil && !errors.Is(err, syscall.EAGAIN) {
				t.Fatal(err)
			}
		}
		check(t, syscall.SetNonblock(fd, false))
		c.fd(4, w)
		d = c.accepted()
		d.send(wire.Exit{Code: 31, Text: "Dno"})
		c.exits(31)
	})
}

// TestEarlyRefusal: the daemon refuses while the caller is still writing. The shim goes at once, and the caller gets
// EPIPE as soon as the daemon has closed what it was given.
func TestEarlyRefusal(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.accepted()
		written := make(chan error, 1)
		go func() {
			_, err := io.Copy(c.message, strings.NewReader(strings.Repeat("line\n", 1<<18)))
			written <- err
		}()
		d.send(wire.Exit{Code: 31})
		d.hangUp()
		c.exits(31)
		if err := <-written; !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the caller got %v", err)
		}
	})
}
