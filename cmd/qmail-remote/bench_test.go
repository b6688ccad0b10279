package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// benchConfig has an entrance that hands on unsigned mail, and one that signs.
const benchConfig = `hostname = "mx.example.org"
control = ""
trusted = ["$UID"]
state = "$DIR/state"
admin.socket = "$DIR/admin.sock"
[listen.remote]
socket = "$DIR/remote.sock"
next = "$DIR/next"
[chain]
delivery = ["dkim-sign"]
[filter.dkim-sign]
keys = ["$DIR/keys"]
`

// nextSource is the least that a qmail-remote can do: read the message to its
// end, and report.
const nextSource = `#include <unistd.h>
int main(void)
{
	static char b[65536];
	static const char report[] = "r\0K192.0.2.1 accepted message.\nRemote host said: 250 ok\n";
	while (read(0, b, sizeof b) > 0)
		;
	_exit(write(1, report, sizeof report) != (ssize_t)sizeof report);
}
`

// BenchmarkCall measures one call as qmail-rspawn makes it: the next program
// alone, and through each shim and a real daemon, for mail that is not signed
// and for mail that is, of which every message is another. The floor is the
// next program, which does nothing but read; a real qmail-remote takes as long
// as the network does.
func BenchmarkCall(b *testing.B) {
	if len(built.programs) < 2 {
		b.Fatal("no C compiler: install cc")
	}
	dir := b.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	check(b, os.WriteFile(at("next.c"), []byte(nextSource), 0o644))
	check(b, command("cc", "-O2", "-static", "-o", at("next"), at("next.c")))
	check(b, command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", at("postern"), "../postern"))
	check(b, command(at("postern"), "dkim", "keygen", "example.org", "--keys", at("keys"), "--selector", "s", "--type", "rsa"))
	config := os.Expand(benchConfig, func(name string) string {
		return map[string]string{"DIR": dir, "UID": strconv.Itoa(os.Getuid())}[name]
	})
	check(b, os.WriteFile(at("postern.toml"), []byte(config), 0o644))
	log, err := os.Create(at("log"))
	check(b, err)
	defer log.Close()
	daemon := exec.Command(at("postern"), "serve", "--config", at("postern.toml"))
	daemon.Stderr = log
	check(b, daemon.Start())
	defer func() {
		daemon.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		if err := daemon.Wait(); err != nil {
			b.Error(err)
		}
	}()
	for tries := 0; ; tries++ {
		text, err := os.ReadFile(at("log"))
		check(b, err)
		if bytes.Contains(text, []byte("msg=serving")) {
			break
		} else if tries == 400 {
			b.Fatalf("the daemon does not start:\n%s", text)
		}
		time.Sleep(25 * time.Millisecond)
	}
	programs := []struct{ name, path string }{{"next", at("next")}}
	for _, p := range built.programs {
		if p.name != "Sanitized" {
			programs = append(programs, struct{ name, path string }{p.name, p.path})
		}
	}
	for _, kind := range []struct{ name, by, sender string }{{"unsigned", "from network", "a@example.org"}, {"signed", "for bounce", ""}} {
		b.Run(kind.name, func(b *testing.B) {
			took := make([][]time.Duration, len(programs))
			seq := 0
			for going, n := true, 0; going || n < 300; n++ {
				if going {
					going = b.Loop()
				}
				for i, p := range programs {
					seq++
					d, err := call(p.path, at("remote.sock"), benchMessage(kind.by, seq), kind.sender, dir)
					if err != nil {
						b.Fatal(p.name, err)
					}
					took[i] = append(took[i], d)
				}
			}
			floor := 0.0
			report := "p50 of one call, in ms:"
			for i, p := range programs {
				slices.Sort(took[i])
				own := took[i][len(took[i])/2].Seconds() * 1e3
				b.ReportMetric(own, p.name+"-ms")
				report += fmt.Sprintf("\n  %-5s %6.3f", p.name, own)
				if i == 0 {
					floor = own
					continue
				}
				b.ReportMetric(own-floor, p.name+"-more-ms")
				b.ReportMetric(own/floor, p.name+"-ratio")
				report += fmt.Sprintf("  %+.3f  %.2f times the program alone", own-floor, own/floor)
			}
			b.ReportMetric(0, "ns/op") // of all programs together: says nothing
			b.Log(report)
		})
	}
}

// benchMessage is 4 KiB that no other message has.
func benchMessage(by string, n int) []byte {
	m := fmt.Appendf(nil, "Received: (qmail %d invoked %s); 1 Jan 2026 00:00:00 -0000\nFrom: a@example.org\nTo: b@example.net\nSubject: hello\nMessage-ID: <%d@example.org>\n\n", n, by, n)
	for len(m) < 4096 {
		m = append(m, "A line of the body, as long as such lines are, and then a little more.\n"...)
	}
	return append(m[:4095], '\n')
}

// call runs a program as qmail-rspawn does, with a file and a pipe.
func call(path, socket string, message []byte, sender, dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "mess")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err = f.Write(message); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return 0, err
	}
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer syscall.Close(pipe[0])
	begun := time.Now()
	pid, err := syscall.ForkExec(path, []string{"qmail-remote", "example.net", sender, "b@example.net"}, &syscall.ProcAttr{
		Env: []string{"POSTERN_REMOTE_SOCKET=" + socket}, Files: []uintptr{f.Fd(), uintptr(pipe[1]), 2},
	})
	syscall.Close(pipe[1])
	if err != nil {
		return 0, err
	}
	var status syscall.WaitStatus
	for {
		if _, err = syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			break
		}
	}
	took := time.Since(begun)
	said := make([]byte, 200)
	n, _ := syscall.Read(pipe[0], said)
	if err == nil && (status != 0 || !bytes.HasPrefix(said[:n], []byte("r\x00K"))) {
		err = fmt.Errorf("exit %d, %q", status.ExitStatus(), said[:n])
	}
	return took, err
}
