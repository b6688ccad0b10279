package auth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

// script writes a program that only root can change.
func script(t *testing.T, lines string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "checkpassword")
	check(t, os.WriteFile(path, []byte("#!/bin/sh\n"+lines), 0o755))
	return path
}

// knows is a checkpassword program that knows alice and her password, and ends
// with the code that any other password is.
const knows = `q=$(tr '\0' '|' <&3)
case $q in
'alice|open sesame||') shift 0; exec "$@" ;;
*\|*\|\|) q=${q%||}; exit ${q#*|} ;;
esac
echo "odd question"; exit 99
`

func program(t *testing.T, o ProgramOptions) (*Program, *log) {
	t.Helper()
	l := &log{}
	return must(NewProgram(o, l.logger()))(t), l
}

func TestProgram(t *testing.T) {
	p, _ := program(t, ProgramOptions{Argv: []string{script(t, knows), "true"}})
	name, err := p.Authenticate(bg, from("192.0.2.1"), "alice", "open sesame")
	if err != nil || name != "alice" {
		t.Error(name, err)
	}
	in := func(user, password string) error {
		t.Helper()
		name, err := p.Authenticate(bg, from("192.0.2.1"), user, password)
		if name != "" {
			t.Error(name)
		}
		return err
	}
	is535(t, in("alice", "1"))
	is535(t, in("bob", "1"))
	for _, c := range []struct{ code, want string }{{"111", "exit 111: it had a temporary problem"}, {"2", "used wrongly"}, {"3", "exit 3, which means nothing"}, {"100", "exit 100"}, {"255", "exit 255"}} {
		is454(t, in("alice", c.code), c.want)
	}
	// 512 bytes, and not one more.
	is535(t, in("alice", strings.Repeat("0", maxRequest-len("alice")-4)+"1"))
	is535(t, in("alice", strings.Repeat("0", maxRequest-len("alice")-3)+"1"))
	is535(t, in("al\x00ice", "1"))
	// Success is the last word of what the program becomes.
	p, _ = program(t, ProgramOptions{Argv: []string{script(t, knows), "false"}})
	is535(t, in("alice", "open sesame"))
}

func TestProgramMisbehaves(t *testing.T) {
	for _, c := range []struct{ name, lines, want string }{
		{"does not read", "exit 0\n", "did not read descriptor 3"},
		{"reads in part", "head -c 3 <&3 >/dev/null; exit 0\n", "did not read descriptor 3"},
		{"prints", "cat <&3 >/dev/null; echo 'no\x1b database'; echo here >&2; exit 111\n", "exit 111: it had a temporary problem; it printed: no? database here"},
		{"prints for ever", "cat <&3 >/dev/null; yes; exit 0\n", "killed, because context deadline exceeded; it printed: y y y"},
		{"hangs", "sleep 1000\n", "killed, because context deadline exceeded"},
		{"is killed", "kill -9 $$\n", "signal: killed"},
		{"cannot run", "", "exit 0 and did not read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _ := program(t, ProgramOptions{Argv: []string{script(t, c.lines)}, Timeout: 500 * time.Millisecond})
			if c.name == "cannot run" {
				check(t, os.WriteFile(p.o.Argv[0], []byte("#!/nonexistent\n"), 0o755))
				c.want = "no such file"
			}
			_, err := p.Authenticate(bg, from("192.0.2.1"), "alice", "secret")
			is454(t, err, c.want)
			if err != nil && (strings.Contains(err.Error(), "secret") || len(err.Error()) > maxDetail || err.Error() != reply.Clean(err.Error(), maxDetail)) {
				t.Errorf("%q", err)
			}
		})
	}
}

// What the program gets: its environment, directory, descriptors, process group
// and limits.
func TestProgramSurroundings(t *testing.T) {
	t.Setenv("SECRET", "of the daemon")
	out := filepath.Join(t.TempDir(), "out")
	p, l := program(t, ProgramOptions{
		Argv: []string{script(t, `exec >`+out+`
env | sort; pwd; ls -l /proc/$$/fd; cut -d' ' -f5 /proc/$$/stat; echo pid $$
for l in c v t n f; do echo $l $(ulimit -$l) $(ulimit -H -$l); done; od -c <&3`), "true"},
		Env: []string{"TCPLOCALPORT=587"}, Memory: 300 << 20, CPU: 1500 * time.Millisecond, Files: 20,
	})
	_, err := p.Authenticate(bg, from("192.0.2.1"), "al ice", "se'c;ret")
	check(t, err)
	got := string(must(os.ReadFile(out))(t))
	for _, want := range []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n", "\nPROTO=TCP\n", "\nTCPREMOTEIP=192.0.2.1\n", "\nTCPREMOTEPORT=4711\n", "\nTCPLOCALPORT=587\n",
		"\n/\n", " 0 -> /dev/null\n", " 3 -> pipe:", "\nc 0 0\n", "\nv 307200 307200\n", "\nt 2 2\n", "\nn 20 20\n", "\nf 131072 131072\n",
	} {
		if !strings.Contains("\n"+got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "SECRET") || strings.Contains(got, "socket:") || strings.Contains(got, " 4 ->") {
		t.Errorf("something of ours was handed down:\n%s", got)
	}
	pid := got[strings.Index(got, "pid ")+4:]
	pid = pid[:strings.IndexByte(pid, '\n')]
	if !strings.Contains(got, "\n"+pid+"\npid "+pid+"\n") {
		t.Errorf("no process group of its own:\n%s", got)
	}
	if s := l.take(); s != "" {
		t.Error(s)
	}
	_, err = p.Authenticate(bg, from("2001:db8::1"), "alice", "secret")
	check(t, err)
	got = string(must(os.ReadFile(out))(t))
	for _, want := range []string{"PROTO=TCP6\n", "TCPREMOTEIP=2001:db8::1\n", "TCP6REMOTEIP=2001:db8::1\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// alive reports whether a process whose number stands in a file runs.
func alive(t *testing.T, file string) bool {
	t.Helper()
	pid := strings.TrimSpace(string(must(os.ReadFile(file))(t)))
	if pid == "" {
		t.Fatal("no pid in " + file)
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// Nothing that the program leaves behind lives on, and nothing waits for it.
func TestProgramLeavesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	for _, c := range []struct {
		name, lines string
		cancel      bool
	}{
		{"child of its group", "cat <&3 >/dev/null; sleep 1000 & echo $! >" + file + "; exit 0\n", false},
		{"deadline", "sleep 1000 & echo $! >" + file + "; wait\n", false},
		{"client gone", "sleep 1000 & echo $! >" + file + "; wait\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			os.Remove(file) //nolint:errcheck // it may not be there
			p, _ := program(t, ProgramOptions{Argv: []string{script(t, c.lines)}, Timeout: 2 * time.Second})
			ctx, cancel := context.WithCancel(bg)
			defer cancel()
			if c.cancel {
				p.o.Timeout = time.Hour
				go func() {
					for {
						if b, _ := os.ReadFile(file); len(b) > 0 {
							cancel()
							return
						}
						time.Sleep(5 * time.Millisecond)
					}
				}()
			}
			_, err := p.Authenticate(ctx, from("192.0.2.1"), "alice", "secret")
			if (err == nil) != (c.name == "child of its group") {
				t.Error(err)
			}
			for range 400 { // the kernel kills in its own time
				if !alive(t, file) {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
			t.Error("a child lives on")
		})
	}
	// One that left the group is not waited for.
	p, _ := program(t, ProgramOptions{Argv: []string{script(t, "cat <&3 >/dev/null; setsid sleep 1000 & echo $! >"+file+"; sleep 0.2; exit 0\n")}})
	_, err := p.Authenticate(bg, from("192.0.2.1"), "alice", "secret")
	check(t, err)
	pid := must(strconv.Atoi(strings.TrimSpace(string(must(os.ReadFile(file))(t)))))(t)
	syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it is this test's
}

func TestProgramConcurrency(t *testing.T) {
	dir := t.TempDir()
	p, _ := program(t, ProgramOptions{Concurrency: 2, Argv: []string{script(t, `cat <&3 >/dev/null
touch `+dir+`/$$; ls `+dir+` | wc -l >>`+dir+`.seen; sleep 0.05; rm `+dir+`/$$; exit 0`)}})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := p.Authenticate(bg, from("192.0.2.1"), "alice", "secret"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, n := range strings.Fields(string(must(os.ReadFile(dir + ".seen"))(t))) {
		if n != "1" && n != "2" {
			t.Errorf("%s ran at a time", n)
		}
	}
	check(t, p.running.take(bg))
	check(t, p.running.take(bg))
	ctx, cancel := context.WithCancel(bg)
	cancel()
	_, err := p.Authenticate(ctx, from("192.0.2.1"), "alice", "secret")
	is454(t, err, "waiting for one of 2 others")
}

func TestProgramOptions(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: they make programs of other users")
	}
	good := script(t, "exit 0\n")
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	check(t, os.Mkdir(open, 0o755))
	check(t, os.Chmod(open, 0o777))
	for name, mode := range map[string]os.FileMode{"writable": 0o775, "plain": 0o644, "his": 0o755, "open/program": 0o755} {
		check(t, os.WriteFile(filepath.Join(dir, name), nil, 0o755))
		check(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	check(t, os.Chown(filepath.Join(dir, "his"), 12345, 0))
	check(t, os.Symlink("his", filepath.Join(dir, "link")))
	for _, c := range []struct {
		o    ProgramOptions
		want string
	}{
		{ProgramOptions{}, "absolute path"},
		{ProgramOptions{Argv: []string{"checkpassword"}}, "absolute path"},
		{ProgramOptions{Argv: []string{"/nonexistent/checkpassword"}}, "no such file"},
		{ProgramOptions{Argv: []string{dir}}, "not an executable file"},
		{ProgramOptions{Argv: []string{dir + "/plain"}}, "not an executable file"},
		{ProgramOptions{Argv: []string{good, "a\x00b"}}, "holds a NUL"},
		{ProgramOptions{Argv: []string{good}, Env: []string{"=x"}}, "not NAME=VALUE"},
		{ProgramOptions{Argv: []string{dir + "/writable"}}, dir + "/writable can be changed by others"},
		{ProgramOptions{Argv: []string{dir + "/his"}}, dir + "/his can be changed by others"},
		{ProgramOptions{Argv: []string{dir + "/link"}}, dir + "/his can be changed by others"},
		{ProgramOptions{Argv: []string{open + "/program"}}, open + " can be changed by others"},
	} {
		if _, err := NewProgram(c.o, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.o.Argv, err, c.want)
		}
	}
}

// A program that has become somebody else cannot be killed by a daemon without
// rights: the login is put off all the same, and the program keeps its slot.
func TestProgramUnkillable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: they make setuid programs")
	}
	dir := t.TempDir()
	check(t, os.Chmod(filepath.Dir(dir), 0o755))
	self := must(os.ReadFile("/proc/self/exe"))(t)
	plain, setuid := filepath.Join(dir, "plain"), filepath.Join(dir, "setuid")
	check(t, os.WriteFile(plain, self, 0o755))
	check(t, os.WriteFile(setuid, self, 0o755))
	check(t, os.Chmod(setuid, 0o755|os.ModeSetuid))
	cmd := exec.Command(plain, "unprivileged-daemon", setuid)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	got, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(got), "cannot be killed") || strings.Count(string(got), "cannot be given limits") != 1 || !strings.Contains(string(got), "slots free: 1 of 2") {
		t.Errorf("%v\n%s", err, got)
	}
}

// unprivilegedDaemon runs a setuid program that cannot be killed.
func unprivilegedDaemon(args []string) error {
	l := &log{}
	p, err := NewProgram(ProgramOptions{Argv: []string{args[0], "become-root"}, Timeout: time.Second, Concurrency: 2}, l.logger())
	if err != nil {
		return err
	}
	_, err = p.Authenticate(bg, from("192.0.2.1"), "alice", "secret")
	fmt.Println(err, reply.Of(err), l.take())
	fmt.Printf("slots free: %d of %d\n", cap(p.running)-len(p.running), cap(p.running))
	return nil
}

// becomeRoot is a setuid program that its caller cannot kill, for some seconds.
func becomeRoot([]string) error {
	if err := syscall.Setreuid(0, 0); err != nil {
		return err
	}
	time.Sleep(6 * time.Second)
	return errors.New("nobody killed it")
}
