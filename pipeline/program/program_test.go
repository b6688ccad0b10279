package program

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The test binary is what starts the programs, too, and some of them.
func TestMain(m *testing.M) {
	Main()
	if os.Getenv(asDaemon) != "" {
		beDaemon(os.Args[1])
		os.Exit(1)
	}
	if os.Getenv(asStranger) != "" {
		if err := beStranger(os.Args[1]); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// newStarter is a starter for a test.
func newStarter(t testing.TB, o Options) *Starter {
	t.Helper()
	s := New(o)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// within is a context that a test does not exceed.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// output runs a shell with a script, and returns what it writes.
func output(t testing.TB, s *Starter, spec Spec, script string) (string, Ending) {
	t.Helper()
	spec.Path, spec.Args = "/bin/sh", []string{"sh", "-c", script}
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	files := map[int]*os.File{1: theirs, 2: theirs}
	for n, f := range spec.Files {
		files[n] = f
	}
	spec.Files = files
	p, err := s.Start(spec)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(ours)
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Wait(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(b), e
}

func TestContract(t *testing.T) {
	s := newStarter(t, Options{})
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, []byte("four"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	said, e := output(t, s, Spec{Env: []string{"A=\xff b", "PATH=/usr/bin:/bin"}, Dir: dir, Files: map[int]*os.File{4: f}}, `
pwd; umask; echo "$A"; cat <&4; echo; cat; ls /proc/self/fd | tr '\n' ' '; exit 7`)
	if want := dir + "\n0077\n\xff b\nfour\n0 1 2 3 4 "; said != want || e.Exit != 7 || e.Signal != 0 {
		t.Errorf("%q, want %q: %v", said, want, e)
	}
	if said, _ = output(t, s, Spec{}, "export -p"); strings.Contains(said, "HOME") {
		t.Errorf("it has the environment %q", said)
	}
}

func TestErrors(t *testing.T) {
	s := newStarter(t, Options{})
	dir := t.TempDir()
	for name, text := range map[string]string{"plain": "exit 0", "bad": "\x00\x01", "nobody": "#!/no/such/interpreter\n"} {
		mode := os.FileMode(0o700)
		if name == "plain" {
			mode = 0o600
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		spec Spec
		want error
	}{
		{Spec{Path: dir + "/none"}, ErrNotFound},
		{Spec{Path: dir + "/plain/none"}, ErrNotFound},
		{Spec{Path: dir + "/nobody"}, ErrNotFound},
		{Spec{Path: "true"}, ErrNotFound},
		{Spec{Path: ""}, ErrNotFound},
		{Spec{Path: "/bin/true", Dir: dir + "/none"}, ErrNotFound},
		{Spec{Path: dir + "/plain"}, ErrNotExecutable},
		{Spec{Path: dir + "/bad"}, ErrNotExecutable},
		{Spec{Path: dir}, ErrNotExecutable},
		{Spec{Path: "/bin/true", Env: []string{"A=" + strings.Repeat("x", 1<<20)}}, ErrShortage},
		{Spec{Path: "/bin/true", Args: []string{strings.Repeat("x", MaxSpec)}}, ErrShortage},
		{Spec{Path: "/bin/true", User: "nobody"}, ErrUser},
	} {
		_, err := s.Start(c.spec)
		var temporary interface{ Temporary() bool }
		if !errors.Is(err, c.want) || !errors.As(err, &temporary) || !temporary.Temporary() {
			t.Errorf("%.40q: %v, want %v", c.spec.Path, err, c.want)
		}
	}
	for _, spec := range []Spec{
		{Path: "/bin/true", Dir: "here"},
		{Path: "/bin/true", Args: []string{"a\x00b"}},
		{Path: "/bin/true", Files: map[int]*os.File{MaxFile + 1: os.Stdin}},
		{Path: "/bin/true", Files: map[int]*os.File{3: nil}},
		{Path: "/bin/true", Limits: Limits{CPU: -2}},
	} {
		if _, err := s.Start(spec); err == nil {
			t.Errorf("%+v is started", spec)
		}
	}
}
