package main

import (
	"bytes"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	// mailfrontTarget is in messages a second.
	mailfrontTarget   = 400
	mailfrontSessions = 4
)

const mailfrontBenchConfig = `hostname = "mx.example.org"
control = ""
trusted = ["%[2]d"]
state = "%[1]s/state"
admin.socket = "%[1]s/admin.sock"
[listen.queue]
socket = "%[1]s/queue.sock"
next = "%[1]s/queue"
[chain]
inbound = ["policy", "header", "tap"]
[filter.policy]
kind = "rule"
rule = [{when = 'header("Subject") == "lottery"', action = "reject"}]
[filter.header]
rule = [{op = "add", name = "X-Scanned", value = "from ${ip}"}]
[filter.tap]
rules = ["T:^boss@:archive@example.org"]
`

// BenchmarkMailfront is messages of 4 KiB a second through Debian's mailfront
// under tcpserver, in four sessions at once: with three filters through the C shim
// and the daemon, beside a program that runs three programs as filters, as
// qmail-qfilter does, and beside no filter at all. All end at the same program,
// which takes what it reads and keeps nothing.
func BenchmarkMailfront(b *testing.B) {
	for program, pack := range callers {
		if _, err := exec.LookPath(program); err != nil {
			b.Fatalf("%v: install Debian's package %s (make deps does)", err, pack)
		}
	}
	dir := b.TempDir()
	queue := filepath.Join(dir, "queue")
	shim := filepath.Join(dir, "qmail-queue")
	for to, source := range map[string]string{queue: "testdata/forks/forks.c", shim: "../qmail-queue/c/qmail-queue.c"} {
		c := exec.Command("cc", "-O2", "-static", `-DPOSTERN_SOCKET_PATH="/nonexistent/queue.sock"`, "-o", to, source)
		if out, err := c.CombinedOutput(); err != nil {
			b.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
	}
	for _, name := range []string{"pass", "chain"} {
		if err := os.Link(queue, filepath.Join(dir, name)); err != nil {
			b.Fatal(err)
		}
	}
	startBenchDaemon(b, dir)
	var forks float64
	for _, c := range []struct{ name, program string }{
		{"nothing", queue}, {"three-programs", filepath.Join(dir, "chain")}, {"shim", shim},
	} {
		b.Run(c.name, func(b *testing.B) {
			each := sendThrough(b, frontOf(b, dir, c.program))
			switch c.name {
			case "three-programs":
				forks = each
			case "shim":
				b.ReportMetric(each/mailfrontTarget, "x-target")
				b.ReportMetric(each/forks, "x-three-programs")
			}
		})
	}
}

// startBenchDaemon starts the daemon and waits until it serves.
func startBenchDaemon(b *testing.B, dir string) {
	file := filepath.Join(dir, "postern.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, mailfrontBenchConfig, dir, os.Getuid()), 0o600); err != nil {
		b.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	d := exec.Command("postern", "serve", "--config", file)
	d.Stderr = log
	if err := d.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		d.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		if err := d.Wait(); err != nil {
			b.Errorf("the daemon: %v", err)
		}
	})
	for range 1200 {
		if text, err := os.ReadFile(log.Name()); err == nil && bytes.Contains(text, []byte("msg=serving")) {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	text, _ := os.ReadFile(log.Name())
	b.Fatalf("the daemon does not serve:\n%s", text)
}

// frontOf starts mailfront with a program as its qmail-queue, and returns where
// it listens.
func frontOf(b *testing.B, dir, program string) string {
	home := filepath.Join(b.TempDir(), "home")
	if err := os.MkdirAll(filepath.Join(home, "control"), 0o777); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "control", "rcpthosts"), []byte("example.org\n"), 0o666); err != nil {
		b.Fatal(err)
	}
	server := exec.Command("tcpserver", "-R", "-H", "-l", "mx.example.org", "-1", "127.0.0.1", "0", "/usr/sbin/smtpfront-qmail")
	server.Env = append(os.Environ(), "QMAILHOME="+home, "QMAILQUEUE="+program, "FILTERS=3", "POSTERN_SOCKET="+filepath.Join(dir, "queue.sock"))
	port, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		server.Process.Kill() //nolint:errcheck // it may have ended
		server.Wait()         //nolint:errcheck // by our signal
	})
	line := make([]byte, 16)
	n, err := port.Read(line)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := strconv.Atoi(strings.TrimSpace(string(line[:n]))); err != nil {
		b.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strings.TrimSpace(string(line[:n])))
}

// sendThrough sends b.N messages in all, each of which must be taken, and
// returns how many went through in a second.
func sendThrough(b *testing.B, address string) float64 {
	message := "Subject: hello\nFrom: a@b.example\nTo: joe@example.org\n\n" + strings.Repeat("All work and no play makes Jack a dull boy, they say.\n", 75)
	sessions := make([]*textproto.Conn, mailfrontSessions)
	for i := range sessions {
		c, err := textproto.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		sessions[i] = c
		if err := speak(c, "", "EHLO client.example"); err != nil {
			b.Fatal(err)
		}
		if err := sendOne(c, message); err != nil {
			b.Fatal(err)
		}
	}
	var next atomic.Int64
	var all sync.WaitGroup
	b.ResetTimer()
	for _, c := range sessions {
		all.Go(func() {
			for next.Add(1) <= int64(b.N) {
				if err := sendOne(c, message); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.StopTimer()
	each := float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(each, "messages/s")
	return each
}

// speak says lines and reads the reply to each; "" only reads one.
func speak(c *textproto.Conn, lines ...string) error {
	for _, line := range lines {
		if line != "" {
			if err := c.PrintfLine("%s", line); err != nil {
				return err
			}
		}
		code, text, err := c.ReadResponse(0)
		if err != nil {
			return err
		}
		if code >= 400 {
			return fmt.Errorf("%q is answered %d %s", line, code, text)
		}
	}
	return nil
}

func sendOne(c *textproto.Conn, message string) error {
	if err := speak(c, "MAIL FROM:<a@b.example>", "RCPT TO:<joe@example.org>", "DATA"); err != nil {
		return err
	}
	w := c.DotWriter()
	if _, err := w.Write([]byte(message)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return speak(c, "")
}
