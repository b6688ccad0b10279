package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// caller is one run of a shim, seen from both sides: the test is the caller and the daemon.
type caller struct {
	t        *testing.T
	p        program
	dir      string
	listener *net.UnixListener

	path  string     // run this in place of p.path
	args  []string   // after argv[0]
	env   []string   // besides POSTERN_SOCKET
	files []*os.File // fds 0, 1, 2 and on; nil is closed

	message, envelope *os.File // the caller's ends of fds 0 and 1
	process           *os.Process
	ended             sync.Once
	state             *os.ProcessState
}

// newCaller listens, and prepares a run with pipes as fds 0 and 1.
func newCaller(t *testing.T, p program) *caller {
	dir, err := os.MkdirTemp(built.dir, "run")
	check(t, err)
	c := &caller{t: t, p: p, dir: dir, path: p.path}
	check(t, os.Chmod(dir, 0o755))
	c.listen()
	r0, w0 := c.pipe()
	r1, w1 := c.pipe()
	c.files, c.message, c.envelope = []*os.File{r0, r1, os.Stderr}, w0, w1
	c.env = []string{"PATH=/usr/bin:/bin"}
	t.Cleanup(func() {
		c.listener.Close()
		if c.process != nil {
			c.process.Kill()
			c.wait()
		}
		os.RemoveAll(dir)
	})
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *caller) socket() string { return filepath.Join(c.dir, "s") }

func (c *caller) listen() {
	c.t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: c.socket()})
	check(c.t, err)
	check(c.t, os.Chmod(c.socket(), 0o666))
	c.listener = l
}

// pipe makes a pipe that the test closes at the latest.
func (c *caller) pipe() (r, w *os.File) {
	r, w, err := os.Pipe()
	check(c.t, err)
	c.t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// file makes an open file with the content, at offset 0.
func (c *caller) file(content string) *os.File {
	f, err := os.CreateTemp(c.dir, "file")
	check(c.t, err)
	c.t.Cleanup(func() { f.Close() })
	_, err = f.WriteString(content)
	check(c.t, err)
	_, err = f.Seek(0, io.SeekStart)
	check(c.t, err)
	return f
}

// fd puts f at descriptor n.
func (c *caller) fd(n int, f *os.File) {
	for len(c.files) <= n {
		c.files = append(c.files, nil)
	}
	c.files[n] = f
}

// waits sets the shim's patience.
func (c *caller) waits(d time.Duration) {
	c.env = append(c.env, fmt.Sprintf("POSTERN_WAIT=%d", d.Milliseconds()))
}

// start runs the shim. The test's copies of its descriptors are closed, but for stderr and regular files.
func (c *caller) start() {
	c.t.Helper()
	argv := append([]string{c.path}, c.args...)
	env := append(slices.Clone(c.env), "POSTERN_SOCKET="+c.socket())
	p, err := os.StartProcess(c.path, argv, &os.ProcAttr{Env: env, Files: c.files})
	check(c.t, err)
	c.process = p
	for _, f := range c.files {
		if f == nil || f == os.Stderr {
			continue
		}
		if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() {
			f.Close()
		}
	}
}

// written closes the caller's ends, as callers do that have written all.
func (c *caller) written() {
	c.message.Close()
	c.envelope.Close()
}

// wait returns the exit code, -1 for a signal.
func (c *caller) wait() int {
	c.ended.Do(func() {
		timer := time.AfterFunc(patience, func() { c.process.Kill() })
		defer timer.Stop()
		c.state, _ = c.process.Wait()
	})
	return c.state.ExitCode()
}

// exits checks how the shim ends.
func (c *caller) exits(want int) {
	c.t.Helper()
	if code := c.wait(); code != want {
		c.t.Fatalf("exit %d (%v), want %d", code, c.state, want)
	}
}

// running fails the test if the shim has ended.
func (c *caller) running() {
	c.t.Helper()
	if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.process.Pid)); err != nil || bytes.Contains(state, []byte(") Z ")) {
		c.t.Fatalf("the shim has ended: %s %v", state, err)
	}
}

// daemon is the other end of a run.
type daemon struct {
	c    *caller
	conn *net.UnixConn

	hello     wire.Hello
	args, env []string
	given     []*os.File // the descriptors that came with the hello
}

// accept waits for the shim to connect.
func (c *caller) accept() *daemon {
	c.t.Helper()
	check(c.t, c.listener.SetDeadline(time.Now().Add(patience)))
	conn, err := c.listener.AcceptUnix()
	check(c.t, err)
	c.t.Cleanup(func() { conn.Close() })
	return &daemon{c: c, conn: conn}
}

// greeted starts the shim and reads its hello.
func (c *caller) greeted() *daemon {
	c.t.Helper()
	c.start()
	d := c.accept()
	d.readHello()
	return d
}

// accepted is greeted, and says A with times that do not end in a test.
func (c *caller) accepted() *daemon {
	c.t.Helper()
	d := c.greeted()
	d.send(wire.Accepted{Beat: 600_000, Slow: 600_000})
	return d
}

// receive returns a packet and its descriptors; nil for end of file.
func (d *daemon) receive() ([]byte, []*os.File) {
	d.c.t.Helper()
	check(d.c.t, d.conn.SetReadDeadline(time.Now().Add(patience)))
	b, oob := make([]byte, wire.MaxPacket+1), make([]byte, 256)
	n, oobn, _, _, err := d.conn.ReadMsgUnix(b, oob)
	if n <= 0 && (err == nil || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
		return nil, nil
	}
	check(d.c.t, err)
	var files []*os.File
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	check(d.c.t, err)
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		check(d.c.t, err)
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			f := os.NewFile(uintptr(fd), "given")
			d.c.t.Cleanup(func() { f.Close() })
			files = append(files, f)
		}
	}
	return b[:n], files
}

func (d *daemon) readHello() {
	t := d.c.t
	t.Helper()
	packet, files := d.receive()
	h, err := wire.ParseHello(packet)
	check(t, err)
	d.hello, d.given = h, files
	var l wire.Lists
	done, err := l.Start(h)
	for check(t, err); !done; check(t, err) {
		packet, files := d.receive()
		data, err := wire.ParseData(packet)
		check(t, err)
		if len(files) > 0 {
			t.Fatal("descriptors with a D")
		}
		done, err = l.Add(data.Chunk)
		check(t, err)
	}
	d.args, d.env, err = l.Split()
	check(t, err)
}

// raw sends a packet, with descriptors.
func (d *daemon) raw(packet string, files ...*os.File) {
	d.c.t.Helper()
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = syscall.UnixRights(fds...)
	}
	_, _, err := d.conn.WriteMsgUnix([]byte(packet), oob, nil)
	check(d.c.t, err)
}

func (d *daemon) send(f interface{ Append([]byte) []byte }, files ...*os.File) {
	d.c.t.Helper()
	d.raw(string(f.Append(nil)), files...)
}

// hangUp closes all that the daemon holds.
func (d *daemon) hangUp() {
	d.conn.Close()
	for _, f := range d.given {
		f.Close()
	}
}

// sees checks the shim's next frame; nil is end of file.
func (d *daemon) sees(want ...interface{ Append([]byte) []byte }) {
	d.c.t.Helper()
	for _, f := range want {
		got, _ := d.receive()
		if w := f.Append(nil); !bytes.Equal(got, w) {
			d.c.t.Fatalf("the shim said %q, want %q", got, w)
		}
	}
}

func (d *daemon) seesEOF() {
	d.c.t.Helper()
	if got, _ := d.receive(); got != nil {
		d.c.t.Fatalf("the shim said %q, want end of file", got)
	}
}

// result returns the shim's next frame, which must be an R.
func (d *daemon) result() wire.Result {
	d.c.t.Helper()
	got, _ := d.receive()
	r, err := wire.ParseResult(got)
	if err != nil {
		d.c.t.Fatalf("the shim said %q, want an R: %v", got, err)
	}
	return r
}

// contents are what can be read from a descriptor.
func contents(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(f)
	check(t, err)
	return string(b)
}

// fill writes to the caller's end of a pipe and closes it.
func fill(t *testing.T, f *os.File, content string) {
	t.Helper()
	check(t, f.SetWriteDeadline(time.Now().Add(patience)))
	_, err := io.Copy(f, strings.NewReader(content))
	check(t, err)
	check(t, f.Close())
}
