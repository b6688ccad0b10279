package serverstest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Program is a real server that runs for a test, with a folder of its own that
// everybody may read. The zero value is not ready: use NewProgram.
type Program struct {
	// Dir is its folder, which has a short path; Socket is to be its socket there.
	Dir, Socket string
	// Command is what is run, with its arguments.
	Command []string
	// Ready asks the server whether it answers.
	Ready func(context.Context) error

	t   testing.TB
	cmd *exec.Cmd
}

// NewProgram makes a folder with these files for a server of Debian's, which the test
// needs.
func NewProgram(t testing.TB, name string, files map[string]string) *Program {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("this test needs Debian's %s: make deps installs it", name)
	}
	dir, err := os.MkdirTemp("", name) // the test's own is closed to the server's user, and too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := &Program{t: t, Dir: dir, Socket: filepath.Join(dir, "s")}
	t.Cleanup(p.Stop)
	return p
}

// Start starts the server and waits until it answers.
func (p *Program) Start() {
	p.t.Helper()
	os.Remove(p.Socket)
	p.cmd = exec.Command(p.Command[0], p.Command[1:]...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, err := os.Create(filepath.Join(p.Dir, "out"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	for range 1200 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := p.Ready(ctx)
		cancel()
		if err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	b, _ := os.ReadFile(out.Name())
	p.t.Fatalf("%s does not start: %s", p.Command[0], b)
}

// Stop kills the server with its children.
func (p *Program) Stop() {
	if p.cmd != nil {
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // it may have ended
		p.cmd.Wait()                                      //nolint:errcheck // it was killed
		p.cmd = nil
	}
}
