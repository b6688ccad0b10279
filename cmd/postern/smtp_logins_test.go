package main

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The daemon is started as root and becomes nobody. Everything that needs root
// must be had before.
const rootConfig = `user = "nobody"
domains = ["example.org"]
control = ""
hostname = "mx.example.org"
state = "$RUN/run/state"
admin.socket = "$RUN/run/admin.sock"
log.format = "json"
[listen.low]
address = "$AT_LOW"
next = "discard"
[listen.file]
address = "$AT_FILE"
service = "submission"
auth = ["file"]
next = "discard"
[listen.program]
address = "$AT_PROGRAM"
service = "submission"
tarpit = "0s"
tls = "off"
auth_clear = true
auth = ["program"]
next = "discard"
[listen.root]
address = "$AT_ROOT"
service = "submission"
tls = "off"
auth_clear = true
auth = ["root"]
next = "discard"
[listen.dovecot]
address = "$AT_DOVECOT"
service = "submission"
tls = "off"
auth_clear = true
auth = ["dovecot"]
next = "discard"
[listen.all]
address = "$AT_ALL"
service = "submission"
tls = "off"
auth_clear = true
auth = ["file", "program", "dovecot"]
next = "discard"
[certificate.one]
cert = "$RUN/one.crt"
key = "$RUN/one.key"
[auth.file]
file = "$RUN/users"
[auth.program]
kind = "checkpassword"
program = ["$RUN/checkpassword", "$RUN/program.uid"]
[auth.root]
kind = "checkpassword"
root = true
program = ["$RUN/checkpassword", "$RUN/root.uid"]
[auth.dovecot]
socket = "$RUN/dovecot/auth-client"
`

// A checkpassword program that notes as whom it ran, for two users.
const checkpassword = `#!/bin/sh
said=$(tr '\000' '|' <&3)
case $said in
"bob@example.org|bob's secret|"*) id -u >>"$1"; exit 0 ;;
"broken@example.org|"*) exit 111 ;;
esac
exit 1
`

const dovecotConfig = `base_dir = $RUN/dovecot/run
state_dir = $RUN/dovecot/state
log_path = $RUN/dovecot/log
ssl = no
protocols =
auth_mechanisms = plain
auth_failure_delay = 0
passdb {
  driver = passwd-file
  args = username_format=%u $RUN/dovecot/users
}
userdb {
  driver = static
  args = uid=65534 gid=65534 home=/nonexistent
}
service auth {
  unix_listener $RUN/dovecot/auth-client {
    mode = 0600
    user = nobody
  }
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
service stats {
  unix_listener stats-writer {
    mode = 0600
  }
}
`

// startDovecot runs Debian's Dovecot for one user.
func startDovecot(t *testing.T, g *gateway) {
	t.Helper()
	g.write(t, "dovecot/users", "dora@example.org:{PLAIN}dora's secret\n")
	c := exec.Command("/usr/sbin/dovecot", "-F", "-c", g.write(t, "dovecot/conf", dovecotConfig))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatalf("%v: install Debian's package dovecot-core (make deps does)", err)
	}
	t.Cleanup(func() {
		c.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		c.Wait()                          //nolint:errcheck // by our signal
	})
	for range 400 {
		if conn, err := net.Dial("unix", filepath.Join(g.dir, "dovecot", "auth-client")); err == nil {
			conn.Close()
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	b, _ := os.ReadFile(filepath.Join(g.dir, "dovecot", "log"))
	t.Fatalf("dovecot does not listen:\n%s", b)
}

// TestSMTPAsRoot starts the daemon as root, which gives it up, and has users
// log in by everything there is.
func TestSMTPAsRoot(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("run this test as root: it is about what is done before root is given up")
	}
	g := newGateway(t)
	g.env["AT_LOW"] = loopback() + ":25"
	ca := newAuthority(t, g)
	first := ca.issue(t, g, "one", "mx.example.org")
	addUser(t, g, clientSender, clientPassword)
	if err := os.Chown(filepath.Join(g.dir, "users"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "checkpassword"), []byte(checkpassword), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "program.uid"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(g.dir, "program.uid"), 0o666); err != nil {
		t.Fatal(err)
	}
	startDovecot(t, g)
	g.start(t, rootConfig)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(g.daemon.Process.Pid) + "/status")
	if err != nil || !strings.Contains(string(status), "\nUid:\t65534\t65534\t65534\t65534\n") {
		t.Fatalf("the daemon is not nobody (%v):\n%s", err, status)
	}
	t.Run("logins", func(t *testing.T) { testLogins(t, g) })
	t.Run("keys", func(t *testing.T) { testKeysOfRoot(t, g, ca, first) })
	t.Run("ports", func(t *testing.T) { testPortsOfRoot(t, g) })
}

// attempt is one login.
type attempt struct{ entrance, user, password, answer string }

var attempts = []attempt{
	{"program", "bob@example.org", "bob's secret", "235 2.7.0 "},
	{"program", "bob@example.org", "wrong", "535 5.7.8 "},
	{"program", "broken@example.org", "any", "454 4.7.0 "},
	{"root", "bob@example.org", "bob's secret", "235 2.7.0 "},
	{"root", "broken@example.org", "any", "454 4.7.0 "},
	{"root", "nobody@example.org", "any", "535 5.7.8 "},
	{"dovecot", "dora@example.org", "dora's secret", "235 2.7.0 "},
	{"dovecot", "dora@example.org", "wrong", "535 5.7.8 "},
	{"all", clientSender, clientPassword, "235 2.7.0 "},
	{"all", "bob@example.org", "bob's secret", "235 2.7.0 "},
	{"all", "dora@example.org", "dora's secret", "235 2.7.0 "},
	{"all", "nobody@example.org", "any", "535 5.7.8 "},
}

// testLogins: each backend says yes, no, and that it does not know.
func testLogins(t *testing.T, g *gateway) {
	for i, a := range attempts {
		t.Run(fmt.Sprintf("%s-%d", a.entrance, i), func(t *testing.T) {
			t.Parallel()
			c := g.hello(t, a.entrance, fmt.Sprintf("127.1.%d.1", i))
			start := time.Now()
			if i%2 == 0 {
				c.want("AUTH PLAIN "+plainLogin(a.user, a.password), a.answer)
			} else {
				c.want("AUTH LOGIN", "334 VXNlcm5hbWU6")
				c.want(base64.StdEncoding.EncodeToString([]byte(a.user)), "334 UGFzc3dvcmQ6")
				c.want(base64.StdEncoding.EncodeToString([]byte(a.password)), a.answer)
			}
			if took := time.Since(start); a.answer[0] == '5' && took < 700*time.Millisecond {
				t.Errorf("a failure is told after %v", took)
			}
			if a.answer[0] == '2' {
				c.mail(a.user, "far@elsewhere.example", "Subject: x\n\nbody\n", "250 ")
				g.logged(t, 1, "msg", "message", "user", a.user, "entrance", a.entrance, "standing", "auth")
			} else {
				c.want("MAIL FROM:<"+a.user+">", "530 5.7.0 ")
				c.want("QUIT", "221 ")
				g.logged(t, 1, "msg", "session", "peer", fmt.Sprintf("127.1.%d.1", i), "failed_logins", "1", "failed_user", a.user)
			}
		})
	}
	t.Run("clear", func(t *testing.T) { // no login without TLS, unless the entrance says so
		c := g.hello(t, "file", "")
		if said := c.say("EHLO client.example"); offers(said, "AUTH") || !offers(said, "STARTTLS") {
			t.Errorf("EHLO is answered %q", said)
		}
		c.want("AUTH PLAIN "+plainLogin(clientSender, clientPassword), "530 5.7.0 ")
		c.want("QUIT", "221 ")
	})
	t.Run("three", func(t *testing.T) { // failures end the session, later ones take longer
		t.Parallel()
		c := g.hello(t, "program", "127.1.100.1")
		c.want("AUTH PLAIN "+plainLogin("eve@example.org", "1"), "535 ")
		c.want("AUTH PLAIN "+plainLogin("eve@example.org", "2"), "535 ")
		c.want("AUTH PLAIN "+plainLogin("eve@example.org", "3"), "535 ")
		if said := c.read(); !strings.HasPrefix(said, "421 4.7.0 ") {
			t.Errorf("the third failure is followed by %q", said)
		}
		c.closed()
		g.logged(t, 1, "msg", "session", "peer", "127.1.100.1", "failed_logins", "3", "ended", "too many failed logins")
	})
}

// testKeysOfRoot: a key that only root may read serves, and one that takes its
// place does not, with a word about it.
func testKeysOfRoot(t *testing.T, g *gateway, ca *authority, first int64) {
	for name, want := range map[string]string{"program.uid": "65534\n", "root.uid": "0\n"} {
		b, err := os.ReadFile(filepath.Join(g.dir, name))
		if err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s has %q (%v)", name, b, err)
		}
	}
	serial := func() int64 {
		t.Helper()
		c, state := g.hello(t, "low", "").startTLS(ca.trust("mx.example.org"))
		defer c.conn.Close()
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	if got := serial(); got != first {
		t.Errorf("the certificate is number %d, not %d", got, first)
	}
	ca.issue(t, g, "one", "mx.example.org")
	g.postern(t, "reload")
	l := g.logged(t, 1, "level", "ERROR")[0]
	if said := fmt.Sprint(l["error"], l["msg"]); !strings.Contains(said, "permission denied") || !strings.Contains(said, "one.key") {
		t.Errorf("the log says %v", l)
	}
	if got := serial(); got != first {
		t.Errorf("the certificate is number %d, not the old one, %d", got, first)
	}
}

// testPortsOfRoot: a port that needs root is kept over reloads, and another one
// cannot be had any more.
func testPortsOfRoot(t *testing.T, g *gateway) {
	c := g.hello(t, "low", "")
	g.env["AT_OTHER"] = loopback() + ":587"
	other := "[listen.other]\naddress = \"$AT_OTHER\"\nnext = \"discard\"\n"
	g.write(t, "postern.toml", rootConfig+other)
	out, err := g.try("reload")
	if err == nil || !strings.Contains(out, "listen.other") || !strings.Contains(out, "root") {
		t.Errorf("%v: %s", err, out)
	}
	g.write(t, "postern.toml", strings.Replace(rootConfig, "[listen.low]\n", "[listen.low]\nmessages = 7\n", 1))
	if out, err := g.try("reload"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if said := c.read(); !strings.HasPrefix(said, "421 4.3.2 ") {
		t.Errorf("a session that waits hears %q", said)
	}
	if said := g.hello(t, "low", "").say("EHLO client.example"); !strings.Contains(said, "MAILMAX=7") {
		t.Errorf("after the reload EHLO is answered %q", said)
	}
}
