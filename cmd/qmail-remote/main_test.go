package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// built are the builds of the shim; the tests treat all alike.
var built map[string]string

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	inGo, inC := filepath.Join(dir, "go"), filepath.Join(dir, "c")
	if err := command("go", "build", "-trimpath", "-o", inGo, "."); err != nil {
		return 0, err
	}
	built = map[string]string{"Go": inGo}
	if _, err := exec.LookPath("cc"); err != nil {
		if os.Getenv("CI") == "true" {
			return 0, errors.New("no C compiler: install cc, the C shim must be tested")
		}
		fmt.Fprintln(os.Stderr, "note: no C compiler, only the Go twin is tested")
		return m.Run(), nil
	}
	if err := command("cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", inC, "c/qmail-remote.c"); err != nil {
		return 0, err
	}
	built["C"] = inC
	return m.Run(), nil
}

func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w\n%s", name, args, err, out)
	}
	return nil
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestReport: what qmail-rspawn reads.
func TestReport(t *testing.T) {
	for name, path := range built {
		for _, row := range []struct {
			args []string
			want string
		}{
			{nil, improper},
			{[]string{"host"}, improper},
			{[]string{"host", "sender@a"}, improper},
			{[]string{"", ""}, improper},
			{[]string{"host", "sender@a", "recipient@b"}, unserved},
			{[]string{"host", "", "recipient@b"}, unserved},
			{[]string{"host", "sender@a", string(bytes.Repeat([]byte("r"), 100_000)), "recipient@c"}, unserved},
		} {
			cmd := exec.Command(path, row.args...)
			out, err := cmd.Output() // an exit code but 0 is an error
			if err != nil || string(out) != row.want {
				t.Errorf("%s with %d arguments: %q, %v", name, len(row.args), out, err)
			}
		}
	}
	for _, text := range []string{improper, unserved} {
		if first := text[0]; (first != 'D' && first != 'Z') || bytes.IndexByte([]byte(text), 0) != len(text)-1 || text[len(text)-2] != '\n' {
			t.Errorf("%q is not one report", text)
		}
	}
}

// run starts the program with a file as stdout, nil for none.
func run(t *testing.T, path string, stdout *os.File) *os.Process {
	t.Helper()
	p, err := os.StartProcess(path, []string{path, "host", "sender", "recipient"}, &os.ProcAttr{Files: []*os.File{nil, stdout}})
	check(t, err)
	return p
}

// exits0 waits for the program.
func exits0(t *testing.T, name string, p *os.Process) {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() { p.Kill() })
	defer timer.Stop()
	state, err := p.Wait()
	check(t, err)
	if state.ExitCode() != 0 {
		t.Errorf("%s: %v", name, state)
	}
}

// TestNobodyReads: that is no reason for a bounce.
func TestNobodyReads(t *testing.T) {
	for name, path := range built {
		exits0(t, name, run(t, path, nil))
		r, w, err := os.Pipe()
		check(t, err)
		check(t, r.Close())
		exits0(t, name, run(t, path, w))
		check(t, w.Close())
	}
}

// TestFullPipe: a pipe that takes the report only when it is read, and does not block.
func TestFullPipe(t *testing.T) {
	for name, path := range built {
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
		pid, err := syscall.ForkExec(path, []string{path, "host", "sender", "recipient"}, &syscall.ProcAttr{Files: []uintptr{uintptr(fd), uintptr(fd), 2}})
		check(t, err)
		check(t, w.Close())
		time.Sleep(100 * time.Millisecond)
		out, err := io.ReadAll(r)
		check(t, err)
		p, err := os.FindProcess(pid)
		check(t, err)
		exits0(t, name, p)
		if got := string(out[min(filled, len(out)):]); got != unserved {
			t.Errorf("%s: %q", name, got)
		}
		check(t, r.Close())
	}
}
