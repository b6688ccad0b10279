package rcptcheck

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	start "github.com/postern-mta/postern/pipeline/program"
)

// The test binary is what starts the programs, too.
func TestMain(m *testing.M) {
	start.Main()
	os.Exit(m.Run())
}

// script is a program of a few lines of shell.
func script(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "check")
	write(t, name, "#!/bin/sh\n"+text+"\n", 0o700)
	return name
}

// short is enough for a program that does nothing, and not much.
const short = 300 * time.Millisecond

func programRig(t testing.TB, text string) *rig {
	t.Helper()
	return newRig(t, Options{Checks: []Check{{Program: script(t, text), Wait: time.Minute}}})
}

func TestExitCodes(t *testing.T) {
	r := programRig(t, `exit "${RECIPIENT%@*}"`)
	r.want("known", "0@example.org", "1@example.org", "99@example.org", "110@example.org", "127@example.org")
	r.want("unknown", "100@example.org")
	r.want("error: "+r.checks[0].name()+": exit 111: it cannot tell now", "111@example.org")
	r.want("error: "+r.checks[0].name()+": exit 120", "120@example.org")
	if n := strings.Count(r.log.String(), "means nothing"); n != 4 {
		t.Errorf("%d warnings: %s", n, r.log)
	}
}

// What a program is told, and what it has.
func TestContract(t *testing.T) {
	dir := t.TempDir()
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) // as somebody may have left us
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	r := newRig(t, Options{Checks: []Check{{Program: script(t, `
env >`+dir+`/env
ls -l /proc/self/fd >`+dir+`/fd
ulimit -a >`+dir+`/limits
echo "$0 $1 $2" >`+dir+`/args
pwd >`+dir+`/pwd
read x || echo end >`+dir+`/stdin
echo "220 this is not"; printf 'a \033[31mdialogue\n' >&2`), Args: []string{"one two", "$x"}}}})
	r.want("known", "Joe@Example.org")
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, line := range []string{
		"SENDER=a@example.net", "RECIPIENT=joe@example.org", "HELO=mail.example.net", "TCPREMOTEIP=192.0.2.1",
		"TCPREMOTEHOST=mail.example.net", "TCPREMOTEPORT=2525", "PROTO=TCP", "USE_FD4=1", "PATH=/usr/local/bin:/usr/bin:/bin",
	} {
		if !strings.Contains("\n"+read("env"), "\n"+line+"\n") {
			t.Errorf("it is not told %s: %s", line, read("env"))
		}
	}
	if os.Getenv("HOME") != "" && strings.Contains("\n"+read("env"), "\nHOME=") {
		t.Error("it has our environment")
	}
	if !strings.Contains(read("args"), "one two $x") || read("pwd") != "/\n" || read("stdin") != "end\n" {
		t.Errorf("%q %q %q", read("args"), read("pwd"), read("stdin"))
	}
	for line := range strings.Lines(read("fd")) {
		_, fd, ok := strings.Cut(strings.TrimSpace(line), ":") // the time
		if _, fd, _ = strings.Cut(fd, " "); !ok {
			continue
		}
		switch n, to, _ := strings.Cut(fd, " -> "); {
		case n == "0" && to == "/dev/null", n == "1" && strings.HasSuffix(to, "/fd"), (n == "2" || n == "4") && strings.HasPrefix(to, "pipe:"):
		case n == "3" && strings.HasPrefix(to, "/proc/"), n == "10": // those of ls and of the shell
		default:
			t.Errorf("it has the descriptor %s: %s", n, to)
		}
	}
	if l := read("limits"); !strings.Contains(l, " "+strconv.Itoa(maxFiles)+"\n") {
		t.Errorf("it has the limits\n%s", l)
	}
	if l := r.log.String(); !strings.Contains(l, `220 this is not a ?[31mdialogue`) {
		t.Errorf("the log says %s", l)
	}
}

// One that dies of a signal, one that cannot be run.
func TestCrash(t *testing.T) {
	programRig(t, "kill -SEGV $$").want("error: /", "joe@example.org")
	r := programRig(t, "kill -KILL $$")
	if _, err := r.ask("joe@example.org"); err == nil || !strings.Contains(err.Error(), "it died: signal: killed") {
		t.Errorf("%v", err)
	}
	folder := t.TempDir()
	write(t, folder+"/plain", "exit 0\n", 0o600)
	write(t, folder+"/nobody", "#!/no/such/interpreter\n", 0o700)
	for _, name := range []string{"/plain", "/nobody", "/none", ""} {
		r := newRig(t, Options{Checks: []Check{{Program: folder + name}}})
		if _, err := r.ask("joe@example.org"); err == nil || !strings.Contains(err.Error(), "cannot be run") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// gone waits until a process has ended.
func gone(t testing.TB, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(state), ") Z ") { // init may be slow to see it
			return
		}
		if time.Since(start) > time.Minute {
			unix.Kill(pid, unix.SIGKILL) //nolint:errcheck // the test has failed
			t.Fatalf("process %d lives: %s", pid, state)
		}
	}
}

// One that hangs is killed with all that it has started.
func TestHang(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, Options{Checks: []Check{{Wait: short, Program: script(t, "sleep 600 & echo $! >"+dir+"/child; trap '' TERM HUP; sleep 600")}}})
	var err error
	for range 100 { // a busy machine may kill it before it has started its child
		if _, err = r.ask("joe@example.org"); err == nil || !strings.Contains(err.Error(), "it was killed: context deadline exceeded") {
			t.Fatalf("%v", err)
		}
		if b, _ := os.ReadFile(dir + "/child"); len(b) > 1 {
			gone(t, dir+"/child")
			return
		}
	}
	t.Fatal("it never started a child")
}

// What a program leaves behind is killed when it ends, and is not waited for,
// even if it has its output open.
func TestFork(t *testing.T) {
	dir := t.TempDir()
	r := programRig(t, "sleep 600 & echo $! >"+dir+"/child; (sleep 600 & echo $! >"+dir+"/grandchild); exit 100")
	r.want("unknown", "joe@example.org")
	gone(t, dir+"/child")
	gone(t, dir+"/grandchild")
	// One that has left the group is found, too.
	r = programRig(t, "setsid sh -c 'echo $$ >"+dir+"/stray; exec sleep 600' & while ! [ -s "+dir+"/stray ]; do :; done; exit 100")
	r.want("unknown", "joe@example.org")
	gone(t, dir+"/stray")
}

// One that floods is read to its end, or killed; the log hears little.
func TestFlood(t *testing.T) {
	r := programRig(t, "head -c 20000000 /dev/zero | tr '\\0' x; exit 100")
	r.want("unknown", "joe@example.org")
	if l := len(r.log.String()); l > maxOutput+1000 || !strings.Contains(r.log.String(), fmt.Sprintf("(and %d bytes more)", 20_000_000-maxOutput)) {
		t.Errorf("%d bytes of log", l)
	}
	r = newRig(t, Options{Checks: []Check{{Wait: short, Program: script(t, "exec yes")}}})
	if _, err := r.ask("joe@example.org"); err == nil || !strings.Contains(err.Error(), "it was killed") {
		t.Errorf("%v", err)
	}
}

// Who may tell of a client does not choose what a program loads.
func TestForeignEnvironment(t *testing.T) {
	s := filtertest.Stranger()
	s.Env = map[string]string{"PATH": "/nowhere", "LD_PRELOAD": "/nowhere.so", "BASH_ENV": "/nowhere", "X": "() { :; }; exit 1", "TCPLOCALPORT": "25"}
	env := environment("joe@example.org", &pipeline.Transaction{Session: s})
	for _, name := range []string{"LD_PRELOAD", "BASH_ENV", "X"} {
		if slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, name+"=") }) {
			t.Errorf("a program is told %s", name)
		}
	}
	if !slices.Contains(env, "TCPLOCALPORT=25") || !slices.Contains(env, "PATH=/usr/local/bin:/usr/bin:/bin") {
		t.Errorf("a program is told %q", env)
	}
}

// One that reads its input finds its end, and one that writes to a full disk
// stops: it may not fill ours.
func TestInputAndFiles(t *testing.T) {
	programRig(t, "cat; exit 100").want("unknown", "joe@example.org")
	name := filepath.Join(t.TempDir(), "big")
	const most = 1 << 20
	fill := func(how string) *rig {
		return newRig(t, Options{MaxFile: most, Checks: []Check{{Program: script(t, how+" head -c 100000000 /dev/zero >"+name+"; exit 100"), Wait: time.Minute}}})
	}
	fill("trap '' XFSZ;").want("unknown", "joe@example.org")
	if info, err := os.Stat(name); err != nil || info.Size() > most {
		t.Errorf("%v %v", info, err)
	}
	if _, err := fill("exec").ask("joe@example.org"); err == nil || !strings.Contains(err.Error(), "larger than 1048576 bytes (max_file)") {
		t.Error(err)
	}
	// A log of years is no reason to fail.
	if err := os.Truncate(name, 3<<30); err != nil {
		t.Fatal(err)
	}
	programRig(t, "echo x >>"+name+" && exit 100").want("unknown", "joe@example.org")
}

// A caller that goes away ends the program, and so does the chain's deadline.
func TestCancelled(t *testing.T) {
	r := programRig(t, "sleep 600")
	ctx, cancel := context.WithTimeout(context.Background(), short)
	defer cancel()
	if _, err := r.askIn(ctx, &instance{filter: r.Filter}, "", "joe@example.org"); err == nil {
		t.Error("it ended well")
	}
	if _, err := r.askIn(ctx, &instance{filter: r.Filter}, "", "joe@example.org"); err == nil {
		t.Error("it was started for nobody")
	}
}

// What a program said when it was called with other arguments is no answer.
func TestArguments(t *testing.T) {
	name := script(t, `[ "$1" = yes ] || exit 100`)
	check := func(args ...string) Check { return Check{Program: name, Args: args, Wait: time.Minute} }
	kept := Options{ValidFor: time.Minute, InvalidFor: time.Minute, Checks: []Check{check(), check("no"), check("no", "yes"), check("yes")}}
	newRig(t, kept).want("known", "joe@example.org", "joe@example.org")
	kept.Need, kept.Checks = needAll, []Check{check("yes"), check("no")}
	newRig(t, kept).want("unknown", "joe@example.org", "joe@example.org")
}

// Only so many programs run at a time.
func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, Options{Programs: 2, Checks: []Check{{Each: true, Program: script(t, `
mkdir `+dir+`/a 2>/dev/null && { sleep 0.02; rmdir `+dir+`/a; exit 0; }
mkdir `+dir+`/b 2>/dev/null && { sleep 0.02; rmdir `+dir+`/b; exit 0; }
exit 100`)}}})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { r.want("known", "joe@example.org") })
	}
	all.Wait()
	full := newRig(t, Options{Programs: 1, Checks: []Check{{Program: script(t, "exit 0")}}})
	p := full.checks[0].source.(*program)
	p.runner.places <- struct{}{}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := full.askIn(ctx, &instance{filter: full.Filter}, "", "joe@example.org"); err == nil || !strings.Contains(err.Error(), "1 programs run already") {
		t.Errorf("%v", err)
	}
	<-p.runner.places
}

// What programs say is kept, for a time, and not too much of it.
func TestCache(t *testing.T) {
	dir := t.TempDir()
	name := script(t, `echo x >>`+dir+`/asked; case $RECIPIENT in no*) exit 100;; later*) exit 111;; esac; exit 0`)
	asked := func(r *rig, want int) {
		t.Helper()
		b, err := os.ReadFile(dir + "/asked")
		if err != nil || len(b)/2 != want {
			t.Errorf("asked %d times, want %d: %v", len(b)/2, want, err)
		}
	}
	o := Options{ValidFor: time.Hour, InvalidFor: time.Minute, CacheSize: 3, Checks: []Check{{Program: name}}}
	r := newRig(t, o)
	for range 3 {
		r.want("known", "joe@example.org", "Joe@example.org")
		r.want("unknown", "no@example.org")
	}
	asked(r, 2)
	for range 2 {
		r.want("error", "later@example.org")
	}
	asked(r, 4)
	r.wait(time.Minute)
	r.want("unknown", "no@example.org")
	r.want("known", "joe@example.org")
	asked(r, 5)
	r.wait(59 * time.Minute)
	r.want("known", "joe@example.org")
	asked(r, 6)
	r.want("known", "1@example.org", "2@example.org", "joe@example.org", "3@example.org", "4@example.org", "joe@example.org")
	asked(r, 10)
	r.want("known", "1@example.org")
	asked(r, 11)
	r.wait(-1000 * time.Hour) // a clock that goes back keeps nothing for ever
	r.want("known", "1@example.org")
	asked(r, 12)
	if n := len(r.checks[0].source.(*program).kept.known); n > 3 {
		t.Errorf("%d answers are kept", n)
	}
	o.Checks[0].Each = true
	r = newRig(t, o)
	r.want("known", "joe@example.org", "joe@example.org")
	asked(r, 14)
	o.Checks[0].Each, o.ValidFor = false, 0
	r = newRig(t, o)
	r.want("known", "joe@example.org", "joe@example.org")
	asked(r, 16)
}

// What no environment can hold.
func TestNUL(t *testing.T) {
	r := programRig(t, "exit 0")
	r.want("unknown", "a\x00b@example.org")
	if v, err := r.askIn(context.Background(), &instance{filter: r.Filter}, "a\x00b@example.net", "joe@example.org"); err != nil || v.Action != 0 {
		t.Errorf("%+v %v", v, err)
	}
}

// What a program says for the peer to hear, and the codes of others than 100.
func TestText(t *testing.T) {
	for name, c := range map[string]struct {
		text, recipient string
		want            string
	}{
		"refused":              {"echo '550 5.7.1 we do not know you' >&4; exit 100", "", "reject 550 5.7.1 we do not know you"},
		"without a status":     {"echo 553 gone >&4; exit 100", "", "reject 553 5.0.0 gone"},
		"put off":              {"echo '450 come back' >&4; exit 100", "", "defer 450 4.0.0 come back"},
		"not a code":           {"echo hello >&4; exit 100", "", "reject 550 5.1.1 no mailbox"},
		"a yes":                {"echo 250 ok >&4; exit 100", "", "reject 550 5.1.1 no mailbox"},
		"two lines":            {"printf '550 a\r\n250 ok\n' >&4; exit 100", "", "reject 550 5.0.0 a 250 ok"},
		"over the limit":       {"exit 113", "", "defer 451 4.3.0 you have exceeded your messaging limits"},
		"over, in its words":   {"echo 421 4.7.0 enough >&4; exit 113", "", "defer 421 4.7.0 enough"},
		"over, for good":       {"echo 550 never >&4; exit 113", "", "defer 451 4.3.0 you have exceeded"},
		"says no, means yes":   {"echo 550 no >&4; exit 0", "", "continue"},
		"abstains":             {"exit 112", "", "continue"},
		"does not know":        {"echo 550 no >&4; exit 111", "", "error"},
		"says a lot":           {"{ echo 550 5.7.1 begins; head -c 5000 /dev/zero | tr '\\0' x; } >&4; exit 100", "", "reject 550 5.7.1 begins xxx"},
		"floods":               {"head -c 1000000 /dev/zero | tr '\\0' 5 >&4; exit 100", "", "reject 550 5.1.1"},
		"leaves it to a child": {"sleep 600 4>&4 & exit 100", "", "reject 550 5.1.1"},
	} {
		r := newRig(t, Options{InvalidFor: time.Hour, ValidFor: time.Hour, Checks: []Check{{Program: script(t, c.text)}}})
		for range 2 { // nothing is kept of what is not for all
			v, err := r.ask("joe@example.org")
			got := v.Action.String() + " " + v.Reply.SMTP()
			if err != nil {
				got = "error: " + err.Error()
			}
			if !strings.HasPrefix(got, c.want) || strings.Contains(got, "bytes more") {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
			if is := v.Action == pipeline.Reject; is != (len(v.Symbols) == 1) {
				t.Errorf("%s: %v and %v", name, v.Action, v.Symbols)
			}
		}
	}
	// One that abstains leaves it to the others.
	r := newRig(t, Options{Checks: []Check{{Program: script(t, "exit 112")}, {List: []string{"joe@example.org"}}}})
	r.want("known", "joe@example.org")
	r.want("unknown", "jane@example.org")
	r = newRig(t, Options{Need: needAll, Checks: []Check{{Program: script(t, "exit 112")}, {List: []string{"joe@example.org"}}}})
	r.want("known", "joe@example.org")
}

// The process that starts programs is started again when it has died, and what it
// did is an error.
func TestStarterDies(t *testing.T) {
	dir := t.TempDir()
	r := programRig(t, "[ $RECIPIENT = 100@example.org ] && exit 100; echo $$ >"+dir+"/pid; kill -KILL $PPID; exec sleep 600")
	r.want("unknown", "100@example.org")
	if _, err := r.ask("joe@example.org"); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("%v", err)
	}
	gone(t, dir+"/pid")
	r.want("unknown", "100@example.org")
}

// Where nothing may be run, as when a configuration is only looked at, a check by
// a program is an error.
func TestNoPrograms(t *testing.T) {
	f, err := New(pipeline.Env{}, Options{Checks: []Check{{Program: script(t, "exit 0")}}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if v, err := new(rig).askIn(context.Background(), &instance{filter: f}, "a@example.net", "joe@example.org"); err == nil {
		t.Errorf("%+v", v)
	}
}

// Programs that all have their limits from the start: none sees others.
func TestLimitsAtOnce(t *testing.T) {
	const many = 72
	r := newRig(t, Options{Programs: many, Checks: []Check{{Each: true, Program: script(t, fmt.Sprintf(
		`[ "$(ulimit -Sf) $(ulimit -Hn) $(ulimit -Hc) $(ulimit -Hd)" = "%d %d 0 %d" ] || exit 100`, defaultMaxFile>>9, maxFiles, maxMemory>>10))}}})
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			for range 2 {
				r.want("known", "joe@example.org")
			}
		})
	}
	all.Wait()
}
