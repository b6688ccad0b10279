package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// measured is a server that is measured.
type measured struct {
	name    string
	process *os.Process
	// beside is a program that works for it; nil for none.
	beside *os.Process
	// settle waits until nothing is being done; nil if nothing is left to be done
	// once the clients are answered.
	settle func()
}

// startServer starts a program whose output goes to a file, and returns what ends
// it. That is also called at the end.
func startServer(b testing.TB, name, output string, c *exec.Cmd) (measured, func()) {
	b.Helper()
	out, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	c.Stdout, c.Stderr = out, out
	ended := make(chan struct{})
	if err := startTied(c, ended); err != nil {
		b.Fatalf("%s: %v", name, err)
	}
	stop := sync.OnceFunc(func() {
		defer close(ended)
		c.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		kill := time.AfterFunc(clientPatience, func() { c.Process.Kill() })
		defer kill.Stop()
		var exit *exec.ExitError
		if err := c.Wait(); errors.As(err, &exit) && exit.ExitCode() > 0 {
			text, _ := os.ReadFile(output)
			b.Errorf("%s: %v\n%s", name, err, text)
		}
	})
	b.Cleanup(stop)
	return measured{name: name, process: c.Process}, stop
}

// startTied starts a program that is told to end when this one dies, however that
// happens. The system looks at the thread that started it, which stays until the
// program has ended.
func startTied(c *exec.Cmd, ended <-chan struct{}) error {
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Pdeathsig = syscall.SIGTERM
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			<-ended
		}
	}()
	return <-started
}

// endWith has a process group end when this program dies, for one whose leader has
// changed its user and thereby forgotten what startTied arranged. It is for the time
// until the leader has ended of itself, which the function returned is told.
func endWith(b testing.TB, group int) (ended func()) {
	b.Helper()
	watcher := exec.Command("sh", "-c", `read word || exec env kill -TERM -- "-$1"`, "sh", strconv.Itoa(group))
	watcher.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := watcher.StdinPipe()
	if err == nil {
		err = watcher.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		io.WriteString(in, "ended\n") //nolint:errcheck // it sees the end of the pipe all the same
		watcher.Wait()                //nolint:errcheck // nothing depends on it
	}
}

// await waits until somebody listens at an address.
func await(b testing.TB, address string) {
	b.Helper()
	for range 800 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	b.Fatalf("nobody listens at %s", address)
}

// benchAddress is an address where a server can listen.
func benchAddress(b testing.TB) string {
	b.Helper()
	l, err := net.Listen("tcp", loopback()+":0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// processorTime is what a process and its descendants have used. It counts in
// hundredths of a second.
func processorTime(pid int) time.Duration {
	children, own, ended := map[int][]int{}, map[int]int64{}, int64(0)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := bytes.Cut(text, []byte(") ")) // behind the program's name
		f := strings.Fields(string(rest))
		number := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
		id, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		parent := int(number(1))
		children[parent] = append(children[parent], id)
		own[id] = number(11) + number(12)
		if id == pid {
			ended = number(13) + number(14)
		}
	}
	ticks := ended
	for all := []int{pid}; len(all) > 0; {
		id := all[0]
		ticks += own[id]
		all = append(all[1:], children[id]...)
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// flushes is how often the device of a directory was flushed so far, by whomever.
func flushes(b testing.TB, dir string) int64 {
	b.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev)))
	f := strings.Fields(string(text))
	if err != nil || len(f) < 16 {
		b.Fatalf("how often the disk of %s is flushed cannot be seen (%v): set TMPDIR to a directory on a disk", dir, err)
	}
	n, err := strconv.ParseInt(f[15], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// startSink starts Debian's smtp-sink, which forgets what it is sent.
func startSink(b testing.TB, dir string) (measured, dialer) {
	b.Helper()
	at := benchAddress(b)
	args := []string{"inet:" + at, "1000"}
	if os.Getuid() == 0 {
		args = append([]string{"-u", "root"}, args...)
	}
	c := exec.Command(filepath.Join(postfixDir, "usr/sbin/smtp-sink"), args...)
	c.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(postfixDir, "usr/lib/postfix"))
	s, _ := startServer(b, "smtp-sink", filepath.Join(dir, "smtp-sink.log"), c)
	await(b, at)
	return s, dialer{address: at}
}

// postfixMain is Postfix's configuration. What $NAME stands for is put in. Where
// there is a choice it is the faster one for Postfix: it looks nothing up, takes
// mail as fast as it comes (in_flow_delay), and writes no log, for nobody listens
// to it. The users are of Debian's, that are on any system.
const postfixMain = `compatibility_level = 3.6
queue_directory = $DIR/queue
data_directory = $DIR/data
daemon_directory = $POSTFIX/usr/lib/postfix/sbin
command_directory = $POSTFIX/usr/sbin
meta_directory = $DIR/conf
shlib_directory = $POSTFIX/usr/lib/postfix
import_environment = LD_LIBRARY_PATH=$POSTFIX/usr/lib/postfix MAIL_CONFIG LANG=C
mail_owner = mail
setgid_group = daemon
default_privs = nobody
myhostname = mx.example.org
mydestination =
relay_domains = example.org
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
local_recipient_maps =
inet_protocols = ipv4
disable_dns_lookups = yes
smtpd_peername_lookup = no
smtpd_tls_security_level = none
message_size_limit = 0
in_flow_delay = 0
defer_transports = smtp relay
`

// postfixMaster are its services: one entrance whose messages go to the queue
// manager and are deferred, because there are no deliveries over the network;
// and one whose messages go on hold, of which the queue manager hears nothing.
const postfixMaster = `$DEFER inet n - n - - smtpd
$HOLD inet n - n - - smtpd
  -o smtpd_recipient_restrictions=check_client_access,static:HOLD,permit_mynetworks,reject
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
local unix - n n - - local
anvil unix - - n - 1 anvil
`

// postfix is Debian's Postfix, which takes mail and delivers none.
type postfix struct {
	measured
	queue              string
	deferring, holding dialer
}

// startPostfix starts it out of the unpacked package, with a configuration and a
// queue of its own.
func startPostfix(b testing.TB, dir string) *postfix {
	b.Helper()
	p := &postfix{queue: filepath.Join(dir, "queue"), deferring: dialer{address: benchAddress(b)}, holding: dialer{address: benchAddress(b)}}
	values := map[string]string{"DEFER": p.deferring.address, "HOLD": p.holding.address}
	p.measured = launchPostfix(b, dir, postfixMain, postfixMaster, values)
	p.settle = p.drain
	await(b, p.deferring.address)
	await(b, p.holding.address)
	return p
}

// launchPostfix starts Postfix with a configuration, in which DIR and POSTFIX
// stand for its own directory and for where it was unpacked.
func launchPostfix(b testing.TB, dir, main, master string, values map[string]string) measured {
	b.Helper()
	if os.Getuid() != 0 {
		b.Fatal("Postfix must be started by root: run the benchmark as root")
	}
	lib, err := filepath.Abs(postfixDir)
	if err != nil {
		b.Fatal(err)
	}
	values["DIR"], values["POSTFIX"] = dir, lib
	for name, text := range map[string]string{"main.cf": main, "master.cf": master} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "conf"), 0o755), os.WriteFile(filepath.Join(dir, "conf", name), []byte(os.Expand(text, func(n string) string { return values[n] })), 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	must := func(name string, mode fs.FileMode, group string) {
		path := filepath.Join(dir, name)
		err := errors.Join(os.MkdirAll(path, 0o700), os.Chmod(path, mode))
		if err == nil && group != "" {
			err = command("chown", group, path)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	must("", 0o755, "")
	must("queue", 0o755, "")
	must("queue/pid", 0o755, "")
	for _, name := range []string{"active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"} {
		must("queue/"+name, 0o700, "mail")
	}
	must("data", 0o700, "mail")
	must("queue/maildrop", 0o730, "mail:daemon")
	must("queue/public", 0o710, "mail:daemon")
	for up := filepath.Dir(dir); up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil { // its daemons are not root
			b.Fatal(err)
		}
	}
	c := exec.Command(filepath.Join(lib, "usr/lib/postfix/sbin/master"), "-c", filepath.Join(dir, "conf"), "-d")
	c.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(lib, "usr/lib/postfix"))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it ends its process group when it is ended
	m, stop := startServer(b, "postfix", filepath.Join(dir, "log"), c)
	ended := endWith(b, m.process.Pid)
	b.Cleanup(func() {
		stop()
		ended()
	})
	return m
}

// drain waits until the queue manager has put away what came.
func (p *postfix) drain() {
	for p.messages("incoming")+p.messages("active") > 0 {
		time.Sleep(10 * time.Millisecond)
	}
}

// messages is how many there are in a part of the queue.
func (p *postfix) messages(part string) (n int) {
	filepath.WalkDir(filepath.Join(p.queue, part), func(_ string, e fs.DirEntry, err error) error { //nolint:errcheck // what leaves meanwhile is not counted
		if err == nil && e.Type().IsRegular() {
			n++
		}
		return nil
	})
	return n
}

// command runs a program.
func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
