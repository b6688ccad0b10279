package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const milterConfig = `
[listen.mx]
address = "$AT_MX"
next = "queue"
tarpit = "1ms"
chain = "inbound"
[chain]
inbound = ["first", "second"]
[filter.first]
kind = "milter"
address = ["unix:$RUN/first"]
[filter.second]
kind = "milter"
address = ["inet:9@192.0.2.1", "unix:$RUN/second"]
timeout = "20s"
when = 'sender != "alone@example.net"'
[mailbox]
"bob@example.org" = "$RUN/mail/bob"
"ann@example.org" = "$RUN/mail/ann"
`

// startMilter starts the test's milter on libmilter, which does as the names say
// that it is told.
func startMilter(t *testing.T, socket string) *exec.Cmd {
	t.Helper()
	os.Remove(socket) //nolint:errcheck // it may not be there
	c := exec.Command("/usr/bin/python3", filepath.Join("..", "..", "plugins", "milter", "testdata", "words.py"), "unix:"+socket)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		t.Fatalf("this test needs Debian's python3-milter, which make deps installs: %v", err)
	}
	t.Cleanup(func() {
		c.Process.Kill() //nolint:errcheck // it may have ended
		c.Wait()         //nolint:errcheck // it was killed
	})
	for range 300 {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			os.Chmod(socket, 0o777) //nolint:errcheck // the daemon may be another user
			return c
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.Process.Kill() //nolint:errcheck // it may have ended
	c.Wait()         //nolint:errcheck // it was killed
	t.Fatalf("the milter does not start (make deps installs python3-milter): %s", said.String())
	return nil
}

// TestSMTPMilter has two milters on libmilter judge what comes to the SMTP server:
// each answer is heard at its stage, changes of both arrive, one that dies and
// comes back between two commands knows what it was told.
func TestSMTPMilter(t *testing.T) {
	g := newGateway(t)
	first := startMilter(t, filepath.Join(g.dir, "first"))
	startMilter(t, filepath.Join(g.dir, "second"))
	g.start(t, milterConfig)

	c, _ := g.dial(t, "mx", "")
	c.want("EHLO reject.example", "550 5.7.1 no no 100% no")
	c = g.hello(t, "mx", "")
	c.want("MAIL FROM:<reject@example.net>", "553 5.1.8 no such sender")
	c.want("MAIL FROM:<a@example.net> BODY=8BITMIME RET=HDRS", "250 ")
	c.want("RCPT TO:<reject@example.org>", "550 5.1.1 no such user")
	c.want("RCPT TO:<later@example.org>", "451 4.2.1 a little later")
	c.want("RCPT TO:<bob@example.org> NOTIFY=NEVER", "250 ")
	c.data("Do: tell\r\nSubject:odd   \r\n\r\nbody\r\n", "250 ")
	got := g.arrived(t, "bob", 1)[0]
	for _, told := range []string{"connect ", "mx.example.org", "mail <a@example.net> ('RET=HDRS',) True None", "rcpt <bob@example.org> ('NOTIFY=NEVER',) local", "body 6 fields "} {
		if strings.Count(got, told) < 2 { // by each of them
			t.Errorf("%q was not told to both:\n%s", told, got)
		}
	}
	if !strings.Contains(got, "\nDo: tell\nSubject:odd   \n") {
		t.Errorf("what no milter touched has changed:\n%s", got)
	}

	// Another transaction of the session, in which the first milter dies and comes
	// back; the second one is asked for others only.
	c.want("MAIL FROM:<alone@example.net>", "250 ")
	c.want("RCPT TO:<bob@example.org>", "250 ")
	c.want("RCPT TO:<ann@example.org>", "250 ")
	first.Process.Kill() //nolint:errcheck // it may have ended
	first.Wait()         //nolint:errcheck // it was killed
	startMilter(t, filepath.Join(g.dir, "first"))
	c.data("Do: tell not=<bob@example.org> from=<b@example.net> body=2\r\n\r\nbody\r\n", "250 ")
	if got = g.arrived(t, "ann", 1)[0]; strings.Count(got, "X-Told: rcpt <bob@example.org> () local") != 1 || !strings.Contains(got, "Return-Path: <b@example.net>") || strings.Count(got, "a new body\n") != 2000 {
		t.Errorf("%.2000s", got)
	}
	for do, answer := range map[string]string{"reject": "554 5.7.1 message refused", "tempfail": "451 4.7.1 ", "discard": "250 ", "hold=because": "250 "} {
		c.mail("a@example.net", "bob@example.org", "Do: "+do+"\r\n\r\nbody\r\n", answer)
	}
	if list := g.postern(t, "quarantine", "list"); !strings.Contains(list, "held: because") {
		t.Errorf("quarantine: %s", list)
	}
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RSET", "250 ")
	c.want("EHLO again.example", "250")
	c.want("MAIL FROM:<hangup@example.net>", "421 4.3.2 going away")
	c.closed()
	if got := g.arrived(t, "bob", 1); len(got) != 1 {
		t.Errorf("%d messages for bob", len(got))
	}
	g.stop(t)
}
