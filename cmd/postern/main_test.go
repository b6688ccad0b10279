package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/program"
	"github.com/postern-mta/postern/pipeline/worker"
)

// TestMain lets the test binary stand in for the programs that the scripts run.
func TestMain(m *testing.M) {
	worker.Main(jobs())
	program.Main()
	// A program that was built with -race sleeps for a second before it ends,
	// unless it is told not to; the scripts run hundreds.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) //nolint:errcheck // it cannot fail
	// A script ends what it has left running by an interrupt, and waits for it.
	// Where a shell started the tests in the background, all would ignore it.
	if signal.Ignored(os.Interrupt) {
		signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	}
	testscript.Main(m, map[string]func(){
		"postern":  func() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) },
		"recorder": func() { os.Exit(record()) },
		"inject":   func() { os.Exit(inject(os.Args[1:])) },
		"leave":    func() { os.Exit(leave(os.Args[1:])) },
		"actor":    actor,
	})
}

// shims are the two programs that must behave alike.
var shims = []string{"c", "go"}

// buildShims builds both shims into dir.
func buildShims(t *testing.T, dir string) map[string]string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]string{"c": filepath.Join(dir, "qmail-queue"), "go": filepath.Join(dir, "qmail-queue-go")}
	source := filepath.Join(root, "cmd", "qmail-queue", "c", "qmail-queue.c")
	builds := [][]string{
		{"cc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", `-DPOSTERN_SOCKET_PATH="/nonexistent/queue.sock"`, "-o", paths["c"], source},
		{"go", "build", "-ldflags", "-X main.socketPath=/nonexistent/queue.sock", "-o", paths["go"], "./cmd/qmail-queue"},
	}
	for _, b := range builds {
		c := exec.Command(b[0], b[1:]...)
		c.Dir = root
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(b, " "), err, out)
		}
	}
	return paths
}

// TestScripts drives the real programs: the daemon, and each script once with
// each shim.
func TestScripts(t *testing.T) {
	shim, remote := buildShims(t, t.TempDir()), buildRemotes(t, t.TempDir())
	examples := buildExamples(t, t.TempDir())
	for _, kind := range shims {
		t.Run(kind, func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Dir:                 "testdata/script",
				RequireExplicitExec: true,
				Setup: func(e *testscript.Env) error {
					recorder, err := exec.LookPath("recorder")
					if err != nil {
						return err
					}
					// Another user's shim must find its way to all of these.
					for _, dir := range []string{filepath.Dir(shim[kind]), filepath.Dir(filepath.Dir(shim[kind])), filepath.Dir(remote[kind]), filepath.Dir(recorder), filepath.Dir(filepath.Dir(recorder)), e.WorkDir, filepath.Dir(e.WorkDir)} {
						if err := os.Chmod(dir, 0o755); err != nil {
							return err
						}
					}
					dir := filepath.Join(e.WorkDir, "run")
					e.Vars = append(e.Vars, "GORACE="+os.Getenv("GORACE"), "SHIM="+shim[kind], "KIND="+kind, "RECORDER="+recorder, "ACTOR="+filepath.Join(filepath.Dir(recorder), "actor"), "RUN="+dir,
						"POSTERN_SOCKET="+filepath.Join(dir, "queue.sock"),
						"REMOTE="+remote[kind], "POSTERN_REMOTE_SOCKET="+filepath.Join(dir, "remote.sock"), "RECORD_DIR="+filepath.Join(dir, "record"), "POSTERN_WAIT=3000",
						"UID="+strconv.Itoa(os.Getuid()), "CONFIG="+filepath.Join(e.WorkDir, "postern.toml"))
					e.Vars = append(e.Vars, "GORACE=atexit_sleep_ms=0") // or each command of a race build sleeps for a second when it ends
					e.Vars = append(e.Vars, "EXAMPLES="+examples)
					e.Vars = append(e.Vars, "LONGEST="+strings.Repeat("a", envelope.MaxAddress-2)+"@b")
					files := map[string]string{
						"odd":     "From: a\r\nSubject: \xe4 \x00 nul\rcr\n\n\x00body \xff\r\r\n.\nno end",
						"bighead": "X-Long: " + strings.Repeat("x", 3000) + "\n\nbody\n",
					}
					for name, content := range files {
						if err := os.WriteFile(filepath.Join(e.WorkDir, name), []byte(content), 0o666); err != nil {
							return err
						}
					}
					return os.MkdirAll(filepath.Join(dir, "record"), 0o777)
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"up": cmdUp, "waitlog": cmdWaitLog, "recorded": cmdRecorded, "same": cmdSame, "sleepfor": cmdSleep, "signal": cmdSignal, "memory": cmdMemory, "empty": cmdEmpty, "waitmail": cmdWaitMail, "waitqueue": cmdWaitQueue, "waitsite": cmdWaitSite, "config": cmdConfig,
				},
				Condition: func(cond string) (bool, error) {
					switch cond {
					case "root":
						return os.Getuid() == 0, nil
					case "c", "go":
						return cond == kind, nil
					}
					return false, fmt.Errorf("unknown condition %q", cond)
				},
			})
		})
	}
}

// cmdConfig writes $CONFIG: the common beginning, then the named files.
func cmdConfig(ts *testscript.TestScript, neg bool, args []string) {
	run := ts.Getenv("RUN")
	var b strings.Builder
	fmt.Fprintf(&b, "hostname = \"mx.example.org\"\ncontrol = \"\"\ntrusted = [\"%s\"]\nstate = \"%s/state\"\nadmin.socket = \"%s/admin.sock\"\nlog.format = \"json\"\n", ts.Getenv("UID"), run, run)
	for _, a := range args {
		b.WriteString(os.Expand(ts.ReadFile(a), ts.Getenv))
	}
	ts.Check(os.WriteFile(ts.Getenv("CONFIG"), []byte(b.String()), 0o644))
}

// cmdUp waits until the daemon answers on its admin socket.
func cmdUp(ts *testscript.TestScript, neg bool, args []string) {
	client := admin.NewClient(filepath.Join(ts.Getenv("RUN"), "admin.sock"))
	for range 400 {
		if s, err := client.Status(context.Background()); err == nil {
			ts.Check(os.WriteFile(filepath.Join(ts.Getenv("RUN"), "pid"), []byte(strconv.Itoa(s.PID)), 0o666))
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("the daemon does not answer")
}

// cmdWaitLog waits until a file holds a text.
func cmdWaitLog(ts *testscript.TestScript, neg bool, args []string) {
	name := ts.MkAbs(args[0])
	for range 400 {
		b, _ := os.ReadFile(name)
		if bytes.Contains(b, []byte(args[1])) {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	b, _ := os.ReadFile(name)
	ts.Fatalf("%s never held %q:\n%s", args[0], args[1], b)
}

// cmdRecorded checks how many messages the recorder took.
func cmdRecorded(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	names, err := filepath.Glob(filepath.Join(ts.Getenv("RECORD_DIR"), "*.env"))
	ts.Check(err)
	if len(names) != want {
		ts.Fatalf("the recorder took %d messages, not %d", len(names), want)
	}
}

// cmdSame compares two files byte for byte, without printing large ones.
func cmdSame(ts *testscript.TestScript, neg bool, args []string) {
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if bytes.Equal(a, b) == neg {
		ts.Fatalf("%s has %d bytes and %s %d; same: %v", args[0], len(a), args[1], len(b), !neg)
	}
}

// cmdEmpty waits until a directory is empty: a daemon tidies up after it has
// answered.
func cmdEmpty(ts *testscript.TestScript, neg bool, args []string) {
	var names []os.DirEntry
	for range 400 {
		var err error
		names, err = os.ReadDir(ts.MkAbs(args[0]))
		ts.Check(err)
		if len(names) == 0 {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("%s still holds %v", args[0], names)
}

// cmdWaitMail waits until a Maildir holds so many new messages.
func cmdWaitMail(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	var names []string
	for range 400 {
		names, err = filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "new", "*"))
		ts.Check(err)
		if len(names) == want {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("%s holds %d messages, not %d", args[0], len(names), want)
}

// signals are those that scripts send.
var signals = map[string]syscall.Signal{"TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT, "KILL": syscall.SIGKILL}

// cmdSignal sends the daemon a signal.
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	b, err := os.ReadFile(filepath.Join(ts.Getenv("RUN"), "pid"))
	ts.Check(err)
	pid, err := strconv.Atoi(string(b))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, signals[args[0]]))
}

// cmdMemory fails if the daemon's peak memory exceeds so many MiB.
func cmdMemory(ts *testscript.TestScript, neg bool, args []string) {
	pid, err := os.ReadFile(filepath.Join(ts.Getenv("RUN"), "pid"))
	ts.Check(err)
	b, err := os.ReadFile("/proc/" + string(pid) + "/status")
	ts.Check(err)
	most, err := strconv.Atoi(args[0])
	ts.Check(err)
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kb, err := strconv.Atoi(f[1])
			ts.Check(err)
			ts.Logf("the daemon's peak memory is %d MiB", kb>>10)
			if kb>>10 > most {
				ts.Fatalf("the daemon's peak memory is %d MiB, more than %d", kb>>10, most)
			}
			return
		}
	}
	ts.Fatalf("no VmHWM")
}

func cmdSleep(ts *testscript.TestScript, neg bool, args []string) {
	d, err := time.ParseDuration(args[0])
	ts.Check(err)
	time.Sleep(d)
}

// record plays a site's qmail-queue: it keeps what it is given in $RECORD_DIR
// as N.msg and N.env, writes $RECORD_TEXT to descriptor $RECORD_FD, and exits
// with $RECORD_EXIT.
func record() int {
	dir := os.Getenv("RECORD_DIR")
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return 62
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return 62
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*.msg"))
	base := filepath.Join(dir, strconv.Itoa(len(names)+1))
	for fd, suffix := range []string{".msg", ".env"} {
		content, err := io.ReadAll(os.NewFile(uintptr(fd), suffix))
		if err != nil {
			return 54
		}
		if err := os.WriteFile(base+suffix, content, 0o666); err != nil {
			return 53
		}
	}
	if text := os.Getenv("RECORD_TEXT"); text != "" {
		fd, _ := strconv.Atoi(os.Getenv("RECORD_FD"))
		io.WriteString(os.NewFile(uintptr(fd), "error"), text) //nolint:errcheck // the test sees what arrived
	}
	code, _ := strconv.Atoi(os.Getenv("RECORD_EXIT"))
	return code
}

// injection is what inject is told.
type injection struct {
	shim, from, raw, fd0, wrap string
	to                         []string
	count, errFD, uid, size    int
	offset                     int64
	env                        []string
}

// inject calls the shim as a qmail program would, and prints what came of it:
// "exit N" and "text T".
func inject(args []string) int {
	var in injection
	fs := flag.NewFlagSet("inject", flag.ContinueOnError)
	fs.StringVar(&in.shim, "shim", os.Getenv("SHIM"), "the shim")
	fs.StringVar(&in.from, "from", "", "envelope sender")
	fs.StringVar(&in.raw, "raw", "", "the whole envelope, Go-quoted")
	fs.StringVar(&in.fd0, "fd0", "pipe", "what descriptor 0 is: pipe or file")
	fs.Int64Var(&in.offset, "offset", 0, "the offset of a file")
	fs.IntVar(&in.count, "count", 0, "add so many recipients")
	fs.IntVar(&in.errFD, "errfd", 0, "the descriptor that is a pipe for the error text; 0 for none")
	fs.IntVar(&in.uid, "uid", 0, "the uid to call as, if not our own")
	fs.IntVar(&in.size, "size", 0, "append so many bytes to the message (a pipe only)")
	fs.StringVar(&in.wrap, "wrap", "", "a command that is to run the shim")
	fs.Func("to", "envelope recipient", func(s string) error { in.to = append(in.to, s); return nil })
	fs.Func("env", "NAME=VALUE for the shim", func(s string) error { in.env = append(in.env, s); return nil })
	if err := fs.Parse(args); err != nil {
		return 2
	}
	exit, text, err := in.run(fs.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("exit %d\ntext %s\n", exit, text)
	return 0
}

// lines is an endless body.
type lines struct{}

func (lines) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
		if i%64 == 63 {
			p[i] = '\n'
		}
	}
	return len(p), nil
}

func (in *injection) envelope() ([]byte, error) {
	if in.raw != "" {
		s, err := strconv.Unquote(`"` + in.raw + `"`)
		return []byte(s), err
	}
	for i := range in.count {
		in.to = append(in.to, fmt.Sprintf("user%d@example.org", i))
	}
	return envelope.Append(nil, envelope.To(in.from, in.to...))
}

func (in *injection) run(file string) (exit int, text string, err error) {
	env, err := in.envelope()
	if err != nil {
		return 0, "", err
	}
	message, err := os.Open(file)
	if err != nil {
		return 0, "", err
	}
	defer message.Close()
	envR, envW, err := os.Pipe()
	if err != nil {
		return 0, "", err
	}
	defer envR.Close()
	words := append(strings.Fields(in.wrap), in.shim)
	c := exec.Command(words[0], words[1:]...)
	if in.uid != 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(in.uid), Gid: uint32(in.uid)}}
	}
	c.Env = append(os.Environ(), in.env...)
	c.Stdout, c.Stderr = envR, os.Stderr
	if in.fd0 == "file" {
		if _, err := message.Seek(in.offset, io.SeekStart); err != nil {
			return 0, "", err
		}
		c.Stdin = message
	} else {
		// A reader that is no file forces a pipe.
		c.Stdin = io.MultiReader(message, io.LimitReader(lines{}, int64(in.size)))
	}
	var said bytes.Buffer
	if in.errFD != 0 {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, "", err
		}
		defer r.Close()
		if in.errFD == 2 {
			c.Stderr = w
		} else {
			c.ExtraFiles = make([]*os.File, in.errFD-2)
			c.ExtraFiles[in.errFD-3] = w
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			io.Copy(&said, r) //nolint:errcheck // the pipe ends with the shim
		}()
		defer w.Close()
		defer func() {
			w.Close()
			<-done
			text = said.String()
		}()
	}
	if err := c.Start(); err != nil {
		return 0, "", err
	}
	go func() {
		envW.Write(env) //nolint:errcheck // a shim that refuses early does not read it
		envW.Close()
	}()
	var failed *exec.ExitError
	if err := c.Wait(); err != nil && !errors.As(err, &failed) && !errors.Is(err, syscall.EPIPE) {
		return 0, "", err
	}
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return -int(ws.Signal()), "", nil
	}
	return c.ProcessState.ExitCode(), "", nil
}
