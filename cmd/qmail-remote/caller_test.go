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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// frame is what every frame can do.
type frame interface{ Append([]byte) []byte }

// caller is one run of a shim, seen from both sides: the test is qmail-rspawn
// and the daemon.
type caller struct {
	t        *testing.T
	dir      string
	listener *net.UnixListener

	path  string
	args  []string // with argv[0]
	env   []string // besides the socket's
	stdin *os.File // nil is closed

	out     *os.File // the reading end of stdout
	stdout  *os.File
	process *os.Process
	ended   sync.Once
	state   *os.ProcessState
	said    string
}

// newCaller listens, and prepares a run.
func newCaller(t *testing.T, p program) *caller {
	t.Helper()
	dir, err := os.MkdirTemp(built.dir, "run")
	check(t, err)
	c := &caller{t: t, dir: dir, path: p.path, args: []string{"qmail-remote", "host.example", "a@b", "c@d"}, env: []string{"PATH=/usr/bin:/bin"}}
	c.listen()
	c.stdin = c.file("Subject: hello\n\nbody\n")
	c.out, c.stdout, err = os.Pipe()
	check(t, err)
	t.Cleanup(func() {
		c.listener.Close()
		c.stdout.Close()
		if c.process != nil {
			c.process.Kill()
			c.wait()
		}
		c.out.Close()
		os.RemoveAll(dir)
	})
	return c
}

func (c *caller) socket() string { return filepath.Join(c.dir, "s") }

func (c *caller) listen() {
	c.t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: c.socket()})
	check(c.t, err)
	c.listener = l
}

// file makes an open file with the content, at offset 0.
func (c *caller) file(content string) *os.File {
	c.t.Helper()
	f, err := os.CreateTemp(c.dir, "file")
	check(c.t, err)
	c.t.Cleanup(func() { f.Close() })
	_, err = f.WriteString(content)
	check(c.t, err)
	_, err = f.Seek(0, io.SeekStart)
	check(c.t, err)
	return f
}

// script makes a program that says what it was given.
func (c *caller) script(content string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, "next")
	// A child that is forked while the file is open for writing has it open, too,
	// until it is another program, and nobody can run the file so long (ETXTBSY).
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	check(c.t, os.WriteFile(path, []byte("#!/bin/sh\n"+content), 0o755))
	return path
}

// waits sets the shim's patience.
func (c *caller) waits(d time.Duration) {
	c.env = append(c.env, fmt.Sprintf("POSTERN_WAIT=%d", d.Milliseconds()))
}

func (c *caller) start() {
	c.t.Helper()
	p, err := os.StartProcess(c.path, c.args, &os.ProcAttr{
		Env: append(slices.Clone(c.env), "POSTERN_REMOTE_SOCKET="+c.socket()), Files: []*os.File{c.stdin, c.stdout, os.Stderr},
	})
	check(c.t, err)
	c.process = p
	c.stdout.Close()
}

// wait reads what the shim says to the end, and returns its exit code, -1 for a
// signal.
func (c *caller) wait() int {
	c.ended.Do(func() {
		timer := time.AfterFunc(patience, func() { c.process.Kill() })
		defer timer.Stop()
		all, _ := io.ReadAll(c.out)
		c.said = string(all)
		c.state, _ = c.process.Wait()
	})
	return c.state.ExitCode()
}

// reports checks that the shim ends with exit 0 and this report.
func (c *caller) reports(want string) {
	c.t.Helper()
	if code := c.wait(); code != 0 || c.said != want {
		c.t.Fatalf("exit %d, %.300q, want %.300q", code, c.said, want)
	}
}

// daemon is the other end of a run.
type daemon struct {
	c     *caller
	conn  *net.UnixConn
	hello wire.Hello
	args  []string
	given []*os.File
}

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
	packet, files := d.receive()
	h, err := wire.ParseHello(packet)
	check(c.t, err)
	d.hello, d.given = h, files
	var l wire.Lists
	done, err := l.Start(h)
	for check(c.t, err); !done; check(c.t, err) {
		packet, files := d.receive()
		data, err := wire.ParseData(packet)
		check(c.t, err)
		if len(files) > 0 {
			c.t.Fatal("descriptors with a D")
		}
		done, err = l.Add(data.Chunk)
		check(c.t, err)
	}
	var env []string
	d.args, env, err = l.Split()
	check(c.t, err)
	if len(env) > 0 || len(d.given) != 1 || h.Program != wire.ProgramRemote {
		c.t.Fatalf("%+v, %d descriptors, environment %q", h, len(d.given), env)
	}
	return d
}

// ok is an A whose times do not end in a test.
const ok = "A\x01\xff\xff\xff\x00\xff\xff\xff\x00"

// accepted is greeted, and says A.
func (c *caller) accepted() *daemon {
	c.t.Helper()
	d := c.greeted()
	d.raw(ok)
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

// raw sends a packet, with descriptors. A shim that has ended does not mind.
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
	if _, _, err := d.conn.WriteMsgUnix([]byte(packet), oob, nil); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		d.c.t.Fatal(err)
	}
}

func (d *daemon) send(f frame, files ...*os.File) {
	d.c.t.Helper()
	d.raw(string(f.Append(nil)), files...)
}

// sees checks the shim's next frames.
func (d *daemon) sees(want ...frame) {
	d.c.t.Helper()
	for _, f := range want {
		if got, _ := d.receive(); !bytes.Equal(got, f.Append(nil)) {
			d.c.t.Fatalf("the shim said %q, want %q", got, f.Append(nil))
		}
	}
}

func (d *daemon) seesEOF() {
	d.c.t.Helper()
	if got, _ := d.receive(); got != nil {
		d.c.t.Fatalf("the shim said %q, want end of file", got)
	}
}
