package program

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// accounts are those of users, who must be there: these tests need root.
func accounts(t *testing.T, names ...string) (all []Account) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	for _, name := range names {
		a, err := LookupAccount(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	return all
}

// A program runs as one of the users that were named, with the groups of that user
// and none of ours.
func TestUsers(t *testing.T) {
	all := accounts(t, "nobody", "mail", "8")
	all[1].Groups = []uint32{12, 13, all[1].GID}
	s := newStarter(t, Options{Users: all[:2]})
	if all[2].Name != "mail" || all[2].UID != 8 {
		t.Errorf("%+v", all[2])
	}
	for user, want := range map[string]string{
		"nobody": fmt.Sprintf("%d %[1]d %[1]d %[1]d|%d %[2]d %[2]d %[2]d|%[2]d", all[0].UID, all[0].GID),
		"65534":  fmt.Sprintf("%d %[1]d %[1]d %[1]d|%d %[2]d %[2]d %[2]d|%[2]d", all[0].UID, all[0].GID),
		"mail":   "8 8 8 8|8 8 8 8|8 12 13",
		"8":      "8 8 8 8|8 8 8 8|8 12 13",
	} {
		said, e := output(t, s, Spec{User: user, Env: []string{"PATH=/usr/bin:/bin"}}, "exec cat /proc/self/status")
		status := map[string]string{}
		for line := range strings.Lines(said) {
			name, value, _ := strings.Cut(line, ":")
			status[name] = strings.Join(strings.Fields(value), " ")
		}
		if got := status["Uid"] + "|" + status["Gid"] + "|" + status["Groups"]; got != want || e.Exit != 0 {
			t.Errorf("%s: %s, want %s: %v", user, got, want, e)
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			if strings.Trim(status[set], "0") != "" {
				t.Errorf("%s: %s is %s", user, set, status[set])
			}
		}
	}
	for _, user := range []string{"", "root", "0", "daemon", "1", "nobody\x00", "-1", "4294967295"} {
		if _, err := s.Start(Spec{Path: "/bin/true", User: user}); !errors.Is(err, ErrUser) {
			t.Errorf("%q: %v", user, err)
		}
	}
	for _, name := range []string{"root", "0", "nobody here", "", "4294967296"} {
		if a, err := LookupAccount(name); err == nil {
			t.Errorf("%q is %+v", name, a)
		}
	}
}

// What the user may not do is told apart, too.
func TestUserErrors(t *testing.T) {
	s := newStarter(t, Options{Users: accounts(t, "nobody")})
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/ours", []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for dir := dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	closed := filepath.Join(dir, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []Spec{{Path: dir + "/ours"}, {Path: "/bin/true", Dir: closed}, {Path: closed + "/none"}} {
		spec.User = "nobody"
		if _, err := s.Start(spec); !errors.Is(err, ErrPermission) {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

// A starter does as it is told by the process that made it, and by no other, even
// if that has the socket; and what it runs cannot look into it.
func TestControlIsOurs(t *testing.T) {
	s := newStarter(t, Options{Users: accounts(t, "nobody")})
	if err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	control, err := s.child.control.File()
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for above := filepath.Dir(dir); above != os.TempDir() && above != "/"; above = filepath.Dir(above) {
		if err := os.Chmod(above, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	packet := func(path string) []byte {
		r := request{path: "/bin/mkdir", dir: "/", args: []string{"mkdir", path}, limits: Limits{}.withDefaults()}
		return r.append(head(kindStart, 1<<20))
	}
	c := exec.Command("/proc/self/exe", string(packetHex(packet(dir+"/theirs"))))
	c.Env, c.ExtraFiles = append(os.Environ(), asStranger+"=1"), []*os.File{control}
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := s.child.send(packet(dir+"/ours"), nil); err != nil {
		t.Fatal(err)
	}
	for ctx := within(t); ; {
		if _, err := os.Stat(dir + "/ours"); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the starter does not even do as we tell it")
		}
	}
	if _, err := os.Stat(dir + "/theirs"); err == nil {
		t.Error("it does what a stranger tells it")
	}
	said, _ := output(t, s, Spec{User: "nobody", Env: []string{"PATH=/usr/bin:/bin"}}, "ls /proc/$PPID/fd/; cat /proc/$PPID/environ")
	if strings.Count(said, "ermission denied") != 2 {
		t.Errorf("%s", said)
	}
}

// asStranger has the test binary send a packet, for TestControlIsOurs.
const asStranger = "PROGRAM_TEST_STRANGER"

func packetHex(b []byte) string { return fmt.Sprintf("%x", b) }

func beStranger(hex string) error {
	var b []byte
	if _, err := fmt.Sscanf(hex, "%x", &b); err != nil {
		return err
	}
	return unix.Sendmsg(3, b, nil, nil, unix.MSG_NOSIGNAL)
}

// The process for users is run again by its keeper, which stays root; what its
// programs have left is dead by then.
func TestKeeper(t *testing.T) {
	died := make(chan error, 10)
	s := newStarter(t, Options{Users: accounts(t, "nobody"), Died: func(err error) { died <- err }})
	if err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	keeper := s.child.process.Pid
	for range 2 {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		p, err := s.Start(Spec{
			Path: "/bin/sh", Dir: dir, Env: []string{"PATH=/usr/bin:/bin"}, User: "nobody",
			Args: []string{"sh", "-c", "setsid sh -c 'echo $$ >child; exec sleep 600' & (setsid sh -c 'setsid sleep 600 & echo $! >orphan; exec sleep 600' &); echo $PPID >starter; exec sleep 600"},
		})
		if err != nil {
			t.Fatal(err)
		}
		child, orphan, starter := pidIn(t, dir+"/child"), pidIn(t, dir+"/orphan"), pidIn(t, dir+"/starter")
		if starter == keeper {
			t.Fatal("there is no keeper")
		}
		if err := unix.Kill(starter, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(within(t)); !errors.Is(err, ErrGone) {
			t.Errorf("%v %v", e, err)
		}
		if alive(p.Pid()) || alive(child) || alive(orphan) {
			t.Error("something of it lives")
		}
		if err := <-died; !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		if _, e := output(t, s, Spec{User: "nobody"}, "exit 5"); e.Exit != 5 {
			t.Error(e)
		}
	}
	if s.child.process.Pid != keeper {
		t.Error("the daemon has started another one")
	}
}

// Rights that a service gives the daemon without making it root are not its
// programs'.
func TestNoAmbientRights(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Inheritable |= 1 << unix.CAP_CHOWN
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_CHOWN, 0, 0); err != nil {
		t.Fatal(err)
	}
	s := newStarter(t, Options{})
	if err := s.Ready(); err != nil { // on this thread
		t.Fatal(err)
	}
	if got := capabilities(t, fmt.Sprintf("/proc/%d/status", s.child.process.Pid), "CapAmb"); got == 0 {
		t.Fatal("the starter does not have what it is to take away")
	}
	said, _ := output(t, s, Spec{Env: []string{"PATH=/usr/bin:/bin"}}, "exec cat /proc/self/status")
	file := filepath.Join(t.TempDir(), "status")
	if err := os.WriteFile(file, []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := capabilities(t, file, "CapAmb"); got != 0 {
		t.Errorf("a program has %#x", got)
	}
}

// capabilities is a set in a file like /proc/PID/status.
func capabilities(t *testing.T, file, set string) uint64 {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, set+":"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s says nothing of %s", file, set)
	return 0
}

// A daemon that the kernel spares when it is short of memory does not have its
// programs spared.
func TestUnspare(t *testing.T) {
	file := filepath.Join(t.TempDir(), "oom_score_adj")
	for was, want := range map[string]string{"-1000\n": "0", "-1\n": "0", "0\n": "0\n", "500\n": "500\n"} {
		if err := os.WriteFile(file, []byte(was), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unspare(file); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%q became %q, want %q: %v", was, got, want, err)
		}
	}
	if err := unspare(filepath.Join(file, "none")); err == nil {
		t.Error("no error of a file that is not there")
	}
}

// Close does not wait for ever for a process that cannot be killed.
func TestCloseStuck(t *testing.T) {
	t.Parallel()
	ours, theirs, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	process, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	defer process.Wait() //nolint:errcheck // it is only there
	s := New(Options{})
	s.child = &child{control: ours, process: process, lost: make(chan struct{}), kept: true, timeout: s.timeout}
	if err := s.Close(); !errors.Is(err, ErrStuck) {
		t.Error(err)
	}
}
