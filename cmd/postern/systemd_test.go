package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// supervisor hears what a daemon tells.
type supervisor struct {
	t    *testing.T
	conn *net.UnixConn
	path string
}

func newSupervisor(t *testing.T) *supervisor {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &supervisor{t, c, path}
}

// hears fails unless the next thing that the daemon tells begins like this.
func (s *supervisor) hears(want string) {
	s.t.Helper()
	b := make([]byte, 200)
	s.conn.SetReadDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // sockets have deadlines
	n, err := s.conn.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), want) {
		s.t.Fatalf("the supervisor hears %q (%v), want %q", b[:n], err, want)
	}
}

// start runs postern serve with a socket handed over, and returns its output.
func (s *supervisor) start(config string, socket *os.File) (*exec.Cmd, *strings.Builder) {
	s.t.Helper()
	var out strings.Builder
	c := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec postern serve --config "$0"`, config)
	c.Env = append(os.Environ(), "NOTIFY_SOCKET="+s.path)
	c.ExtraFiles, c.Stderr = []*os.File{socket}, &out
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	return c, &out
}

// A supervisor opens the socket and keeps it: callers wait while the daemon is
// started again, and it tells what it is about.
func TestSupervisor(t *testing.T) {
	dir := t.TempDir()
	shim := buildShims(t, t.TempDir())["c"]
	socket := filepath.Join(dir, "queue.sock")
	file := filepath.Join(dir, "postern.toml")
	config := fmt.Sprintf("hostname = \"mx.example.org\"\ncontrol = \"\"\ntrusted = []\nstate = %q\nadmin.socket = %q\n[listen.queue]\nsocket = %q\nnext = \"discard\"\n", filepath.Join(dir, "state"), filepath.Join(dir, "admin.sock"), socket)
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	handed, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	defer handed.Close()
	caller := exec.Command("sh", "-c", `printf 'Subject: x\n\nbody\n' | "$0" 1<"$1"`, shim, filepath.Join(dir, "envelope"))
	caller.Env = append(os.Environ(), "POSTERN_SOCKET="+socket)
	if err := os.WriteFile(filepath.Join(dir, "envelope"), []byte("Fa@b\x00Tc@d\x00\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := caller.Start(); err != nil { // before there is a daemon
		t.Fatal(err)
	}
	s := newSupervisor(t)
	d, out := s.start(file, handed)
	s.hears(stateReady)
	if err := caller.Wait(); err != nil {
		t.Errorf("the caller that waited: %v", err)
	}
	d.Process.Signal(syscall.SIGHUP) //nolint:errcheck // the next line sees it
	s.hears("RELOADING=1\nMONOTONIC_USEC=")
	s.hears(stateReady)
	d.Process.Signal(syscall.SIGTERM) //nolint:errcheck // likewise
	s.hears(stateStopping)
	if err := d.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("a socket that is not the daemon's was removed: %v", err)
	}
	if strings.Contains(out.String(), "level=ERROR") {
		t.Error(out)
	}
}

// A socket that no entrance names, and one of the wrong kind, are told of.
func TestSupervisorMistakes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "postern.toml")
	config := fmt.Sprintf("control = \"\"\ntrusted = []\nstate = %q\nadmin.socket = %q\n[listen.queue]\nsocket = %q\nnext = \"discard\"\n", filepath.Join(dir, "state"), filepath.Join(dir, "admin.sock"), filepath.Join(dir, "queue.sock"))
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSupervisor(t)
	other, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: filepath.Join(dir, "other.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	stray, err := other.File()
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	d, out := s.start(file, stray)
	s.hears(stateReady)
	d.Process.Signal(syscall.SIGTERM) //nolint:errcheck // the next lines see it
	s.hears(stateStopping)
	if err := d.Wait(); err != nil || !strings.Contains(out.String(), "a socket that no entrance names") {
		t.Errorf("%v\n%s", err, out)
	}
	wrong, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	d, out = s.start(file, wrong)
	if err := d.Wait(); err == nil || !strings.Contains(out.String(), "ListenSequentialPacket=") {
		t.Errorf("%v\n%s", err, out)
	}
}
