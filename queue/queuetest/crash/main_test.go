package crash

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideEnv holds the folder of this run in the process that is inside the name
// spaces, and whyEnv why there are none.
const (
	insideEnv = "POSTERN_CRASH_INSIDE"
	whyEnv    = "POSTERN_CRASH_WHY"
)

// TestMain runs the tests in a process of their own, the first of its process
// name space: when it ends, or this one does, everything below it ends too, its
// mounts with it.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" || os.Getenv(whyEnv) != "" {
		os.Exit(inside(m))
	}
	os.Exit(outside())
}

func outside() int {
	readSources()
	// The system sends Pdeathsig when the thread that started the child ends.
	runtime.LockOSThread()
	dir, err := os.MkdirTemp("", "postern-crash-")
	if err != nil {
		return failed(err)
	}
	defer os.RemoveAll(dir)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	c := again(insideEnv + "=" + dir)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err = c.Start(); err != nil {
		c = again(whyEnv + "=this process may not make name spaces of its own: " + err.Error())
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err = c.Start()
	}
	if err != nil {
		return failed(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	select {
	case err = <-done:
	case <-stop:
		c.Process.Kill() //nolint:errcheck // it may have ended by itself
		<-done
		return 130
	}
	var code *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code) && code.ExitCode() > 0:
		return code.ExitCode()
	}
	return failed(err)
}

func again(env string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Env = append(os.Environ(), env)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	return c
}

func failed(err error) int {
	fmt.Fprintln(os.Stderr, "crash:", err)
	return 1
}

// readSources looks at every file that the daemon is made of, so that the
// cache of test results knows that a result depends on them: they are no
// imports of this package.
func readSources() {
	out, err := exec.Command("go", "list", "-deps", "-json=Dir,GoFiles,Module", "../../../cmd/postern").Output()
	if err != nil {
		return // the build will say so
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir     string
			GoFiles []string
			Module  *struct{ Main bool }
		}
		if err := d.Decode(&p); err != nil {
			break
		}
		if p.Module == nil || !p.Module.Main {
			continue
		}
		for _, name := range p.GoFiles {
			os.Stat(filepath.Join(p.Dir, name)) //nolint:errcheck // that it is asked is what counts
		}
	}
	os.Stat(shimSource) //nolint:errcheck // likewise
}

const shimSource = "../../../cmd/qmail-queue/c/qmail-queue.c"

// inside is the first process of the name spaces.
func inside(m *testing.M) int {
	if os.Getenv(whyEnv) == "" {
		// Nothing that is mounted here is seen outside, and /proc shows the
		// processes of this name space.
		if err := errors.Join(
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("proc", "/proc", "proc", 0, ""),
		); err != nil {
			return failed(fmt.Errorf("mounting in a name space of our own: %w", err))
		}
	}
	return m.Run()
}

// programs are those under test.
type programs struct {
	dir           string // of this run
	postern, shim string
}

var built struct {
	programs
	why error // why nothing can be tested here
}

// needPrograms builds the daemon as it is shipped and the shim, once, and gives
// nil if nothing of this can run here, after failing or saying so.
func needPrograms(t *testing.T) *programs {
	t.Helper()
	if built.postern == "" && built.why == nil {
		built.why = able()
		if built.why == nil {
			build(t)
		}
	}
	if built.why == nil {
		return &built.programs
	}
	if os.Getenv("CI") == "true" || thorough() {
		t.Fatalf("crashes cannot be tested here: %v. make crash needs root, loop devices, mkfs.ext4 and mkfs.xfs", built.why)
	}
	t.Logf("NOT TESTED HERE: %v. Run make crash as root on a machine with loop devices, mkfs.ext4 and mkfs.xfs", built.why)
	return nil
}

// onKinds runs a test on every kind of file system, beside others.
func onKinds(t *testing.T, test func(*testing.T, *programs, kind)) {
	p := needPrograms(t)
	if p == nil {
		return
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			test(t, p, k)
		})
	}
}

// able says why crashes cannot be tested here.
func able() error {
	if os.Getuid() != 0 {
		return errors.New("this process is not root")
	}
	if why := os.Getenv(whyEnv); why != "" {
		return errors.New(why)
	}
	for _, kind := range kinds {
		if _, err := exec.LookPath(kind.mkfs[0]); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func build(t *testing.T) {
	t.Helper()
	p := programs{dir: os.Getenv(insideEnv)}
	p.postern, p.shim = filepath.Join(p.dir, "postern"), filepath.Join(p.dir, "qmail-queue")
	// As the tests are built, so that nothing is compiled again.
	for _, words := range [][]string{
		{"go", "build", "-ldflags", "-s -w", "-o", p.postern, "../../../cmd/postern"},
		{"cc", "-O2", "-Wall", "-Wextra", "-static", `-DPOSTERN_SOCKET_PATH="/nonexistent/queue.sock"`, "-o", p.shim, shimSource},
	} {
		c := exec.Command(words[0], words[1:]...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
		}
	}
	built.programs = p
}

// folder makes a folder for one test, with a short name: it holds sockets.
func (p *programs) folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(p.dir, "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func thorough() bool { return os.Getenv("POSTERN_CRASH") != "" }

// number is a count from the environment, with defaults for the short and the
// long run.
func number(t *testing.T, name string, short, long int) int {
	t.Helper()
	n := short
	if thorough() {
		n = long
	}
	if s := os.Getenv(name); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 1 {
			t.Fatalf("%s=%s: want a number above 0", name, s)
		}
	}
	return n
}

// chance gives the choices of one test.
func chance(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("POSTERN_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("POSTERN_SEED=%s: %v", s, err)
		}
	}
	t.Logf("POSTERN_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// tail is the end of a file, for a failure's report.
func tail(name string, most int64) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > most {
		f.Seek(-most, io.SeekEnd) //nolint:errcheck // then there is more of it
	}
	b, _ := io.ReadAll(io.LimitReader(f, most))
	return string(b)
}
