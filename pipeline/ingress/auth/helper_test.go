package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
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

func helper(t *testing.T, o ProgramOptions) (*Helper, *log) {
	t.Helper()
	l := &log{}
	h := must(StartHelper(HelperOptions{Program: o, Log: l.logger()}))(t)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h, l
}

func TestHelper(t *testing.T) {
	h, l := helper(t, ProgramOptions{Argv: []string{script(t, knows), "true"}, Concurrency: 3})
	name, err := h.Authenticate(bg, from("192.0.2.1"), "alice", "open sesame")
	if err != nil || name != "alice" {
		t.Error(name, err)
	}
	in := func(user, password string) error {
		_, err := h.Authenticate(bg, from("2001:db8::1"), user, password)
		return err
	}
	is535(t, in("alice", "1"))
	is454(t, in("alice", "111"), "exit 111: it had a temporary problem")
	is454(t, in("alice", "100"), "exit 100")
	is535(t, in("alice", strings.Repeat("0", maxRequest)))
	is535(t, in("", "1"))
	// More at a time than may run.
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if i%2 == 0 {
				if err := in("alice", "open sesame"); err != nil {
					t.Error(err)
				}
			} else {
				is535(t, in("alice", "1"))
			}
		})
	}
	all.Wait()
	if s := l.take(); s != "" {
		t.Error(s)
	}
}

// What a helper runs sees the environment that the peer gives, and nothing of
// the helper's.
func TestHelperSurroundings(t *testing.T) {
	t.Setenv("SECRET", "of the daemon")
	out := filepath.Join(t.TempDir(), "out")
	h, _ := helper(t, ProgramOptions{Argv: []string{script(t, "exec >"+out+"; cat <&3 >/dev/null; env; trap; ls -l /proc/$$/fd; grep Sig[IC] /proc/$$/status\n")}, Env: []string{"A=b"}})
	_, err := h.Authenticate(bg, from("192.0.2.1"), "alice", "secret")
	check(t, err)
	got := string(must(os.ReadFile(out))(t))
	for _, want := range []string{"TCPREMOTEIP=192.0.2.1\n", "TCPREMOTEPORT=4711\n", "A=b\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	// Signals 32 and 33 are the C library's own: whoever started us may ignore
	// them, and nobody can change that.
	_, mask, _ := strings.Cut(got, "SigIgn:\t")
	mask, _, _ = strings.Cut(mask, "\n")
	if ignored, err := strconv.ParseUint(mask, 16, 64); err != nil || ignored&^(3<<31) != 0 {
		t.Errorf("signals are ignored: %v in\n%s", err, got)
	}
	if strings.Contains(got, "SECRET") || strings.Contains(got, "socket:") {
		t.Errorf("something of ours was handed down:\n%s", got)
	}
}

// A client that is gone is not waited for; its slot comes back when the program
// has ended.
func TestHelperAbandoned(t *testing.T) {
	h, _ := helper(t, ProgramOptions{Argv: []string{script(t, "cat <&3 >/dev/null; sleep 1; exit 0\n")}, Concurrency: 1})
	ctx, cancel := context.WithTimeout(bg, 50*time.Millisecond)
	defer cancel()
	_, err := h.Authenticate(ctx, from("192.0.2.1"), "alice", "secret")
	is454(t, err, "waiting for the checkpassword helper")
	_, err = h.Authenticate(ctx, from("192.0.2.1"), "alice", "secret")
	is454(t, err, "waiting for one of 1 others")
	_, err = h.Authenticate(bg, from("192.0.2.1"), "alice", "secret")
	check(t, err)
}

// Signals for the daemon's group do not end the helper; its own death is told,
// and puts every login off.
func TestHelperDies(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	h, l := helper(t, ProgramOptions{Argv: []string{script(t, "sleep 1000 & echo $! >"+file+"; wait\n")}})
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		check(t, h.process.Process.Signal(s))
	}
	done := make(chan error)
	go func() {
		_, err := h.Authenticate(bg, from("192.0.2.1"), "alice", "secret")
		done <- err
	}()
	for range 1000 {
		if b, _ := os.ReadFile(file); len(b) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	check(t, h.process.Process.Kill())
	is454(t, <-done, "the checkpassword helper is gone: restart the daemon")
	_, err := h.Authenticate(bg, from("192.0.2.1"), "alice", "secret")
	is454(t, err, "is gone")
	<-h.read
	if s := l.take(); strings.Count(s, "level=ERROR") != 1 || !strings.Contains(s, "restart the daemon") {
		t.Error(s)
	}
	check(t, exec.Command("sh", "-c", "kill -9 $(cat "+file+")").Run()) // nobody was left to do so
}

// A helper that is closed takes with it what it runs.
func TestHelperClose(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	l := &log{}
	h := must(StartHelper(HelperOptions{Program: ProgramOptions{Argv: []string{script(t, "sleep 1000 & echo $! >"+file+"; wait\n")}}, Log: l.logger()}))(t)
	done := make(chan error)
	go func() {
		_, err := h.Authenticate(bg, from("192.0.2.1"), "alice", "secret")
		done <- err
	}()
	for range 1000 {
		if b, _ := os.ReadFile(file); len(b) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	check(t, h.Close())
	is454(t, <-done, "")
	if alive(t, file) {
		t.Error("what the helper ran lives on")
	}
	if s := l.take(); s != "" {
		t.Error(s)
	}
}

func TestStartHelperErrors(t *testing.T) {
	good := ProgramOptions{Argv: []string{script(t, "exit 0\n")}}
	null := must(os.OpenFile(os.DevNull, os.O_WRONLY, 0))(t)
	defer null.Close()
	for _, c := range []struct {
		o    HelperOptions
		want string
	}{
		{HelperOptions{}, "absolute path"},
		{HelperOptions{Program: good, Command: []string{"/nonexistent"}}, "no such file"},
		{HelperOptions{Program: good, Command: []string{"/bin/false"}}, "did not start"},
		{HelperOptions{Program: good, Command: []string{"/bin/sh", "-c", "printf x >&3; sleep 0.1"}}, "malformed packet"},
	} {
		c.o.Stderr = null
		if _, err := StartHelper(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	for _, options := range []string{"", "{}", `{"Argv":["/bin/true"],"Shell":true}`} {
		if err := ServeHelper(options, nil); err == nil {
			t.Errorf("%q was served", options)
		}
	}
}

// A helper tells a daemon that breaks the format nothing more.
func TestHelperRefusesNonsense(t *testing.T) {
	p, _ := program(t, ProgramOptions{Argv: []string{script(t, "echo ran >&2; exit 0\n")}})
	for _, nonsense := range [][]byte{{1}, question{user: "a", password: "b"}.append(nil, 0), append(question{user: "a", password: "b"}.append(nil, 1), 'x'), bytes.Repeat([]byte{1}, 1000), question{user: "a\n", password: "b"}.append(nil, 1)} {
		ours, theirs, err := socketPair()
		check(t, err)
		end := must(unixConn(theirs))(t)
		done := make(chan error)
		go func() {
			done <- serveHelper(end, p)
			end.Close()
		}()
		b := make([]byte, maxAnswer)
		must(ours.Read(b))(t)
		must(ours.Write(nonsense))(t)
		if err := <-done; !errors.Is(err, errPacket) {
			t.Errorf("%q: %v", nonsense, err)
		}
		if n, err := ours.Read(b); err == nil {
			t.Errorf("%q was answered: %q", nonsense, b[:n])
		}
		ours.Close()
	}
}

// The daemon without rights asks a program that only root can use.
func TestHelperKeepsRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: a helper keeps its rights")
	}
	path := script(t, "cat <&3 >/dev/null; test -r /etc/shadow && echo as $(id -u) && exit 111\n")
	check(t, os.Chmod(path, 0o700))
	argv := must(json.Marshal([]string{path}))(t)
	got, err := exec.Command("/proc/self/exe", "dropping-daemon", string(argv)).CombinedOutput()
	if err != nil || !strings.Contains(string(got), "uid 65534: checkpassword program: exit 111: it had a temporary problem; it printed: as 0\n") {
		t.Errorf("%v\n%s", err, got)
	}
}

// droppingDaemon starts a helper, gives up root and asks.
func droppingDaemon(args []string) error {
	var o ProgramOptions
	if err := json.Unmarshal([]byte(args[0]), &o.Argv); err != nil {
		return err
	}
	h, err := StartHelper(HelperOptions{Program: o})
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups([]int{65534}), syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
		return err
	}
	if _, err := os.ReadFile(o.Argv[0]); err == nil {
		return errors.New("root was not given up")
	}
	_, err = h.Authenticate(bg, from("192.0.2.1"), "alice", "secret")
	fmt.Printf("uid %d: %v\n", os.Getuid(), err)
	return h.Close()
}

func FuzzHelperQuestion(f *testing.F) {
	f.Add(question{user: "alice", password: "secret"}.append(nil, 1))
	f.Add(question{user: "alice@example.org", password: "secret", peer: netip.MustParseAddrPort("192.0.2.1:4711")}.append(nil, 1<<32-1))
	f.Add(question{user: "alice", password: "secret", peer: netip.MustParseAddrPort("[2001:db8::1]:1")}.append(nil, 77))
	f.Add([]byte{1, 0, 0, 0, 1, 0, 0, 0, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		id, q, err := parseQuestion(b)
		if err != nil {
			return
		}
		if len(b) > maxQuestion || q.check() != nil || id == 0 {
			t.Errorf("%d bytes, id %d, %v", len(b), id, q.check())
		}
		if again := q.append(nil, id); !bytes.Equal(again, b) {
			t.Errorf("%q became %q", b, again)
		}
	})
}

func FuzzHelperAnswer(f *testing.F) {
	f.Add(answer{code: answerYes}.append(nil, 0))
	f.Add(answer{code: answerNo, detail: "no"}.append(nil, 1))
	f.Add(troubled("exit %d", 111).append(nil, 1<<32-1))
	f.Add([]byte{1, 0, 0, 0, 1, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		id, a, err := parseAnswer(b)
		if err != nil {
			return
		}
		if len(a.detail) > maxDetail || a.detail != reply.Clean(a.detail, maxDetail) || a.code > answerNo {
			t.Errorf("%+v", a)
		}
		id2, a2, err := parseAnswer(a.append(nil, id))
		if err != nil || id2 != id || a2 != a {
			t.Errorf("%+v became %+v: %v", a, a2, err)
		}
	})
}

// BenchmarkProgram is what a login costs that a program checks: directly, and by
// a helper; the floor is the process alone.
func BenchmarkProgram(b *testing.B) {
	path := filepath.Join(b.TempDir(), "checkpassword")
	check(b, os.WriteFile(path, []byte("#!/bin/sh\ncat <&3 >/dev/null\n"), 0o755))
	floor := 0.0
	b.Run("floor-sh", func(b *testing.B) {
		for b.Loop() {
			c := exec.Command(path)
			null := must(os.Open(os.DevNull))(b)
			c.ExtraFiles = []*os.File{null}
			check(b, c.Run())
			null.Close()
		}
		floor = float64(b.Elapsed()) / float64(b.N)
	})
	p := must(NewProgram(ProgramOptions{Argv: []string{path}}, nil))(b)
	h := must(StartHelper(HelperOptions{Program: ProgramOptions{Argv: []string{path}}}))(b)
	defer h.Close()
	for name, backend := range map[string]Backend{"direct": p, "helper": h} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := backend.Authenticate(bg, from("192.0.2.1"), "alice", "secret"); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/floor, "x-floor")
		})
	}
}
