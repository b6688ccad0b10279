//go:build interop

package smtp_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// debian is where make interop unpacks Debian's packages.
const debian = "../../../bin/debian"

// users that the servers insist on, who exist for them alone.
const users = "Debian-exim:x:9001:9001::/tmp:/bin/false\npostfix:x:9002:9002::/tmp:/bin/false\nopensmtpd:x:9003:9003::/tmp:/bin/false\nopensmtpq:x:9004:9004::/tmp:/bin/false\n"

const groups = "Debian-exim:x:9001:\npostfix:x:9002:\nopensmtpd:x:9003:\nopensmtpq:x:9004:\npostdrop:x:9005:\n"

// inside runs a program in a mount namespace of its own, where the users are and
// the places that OpenSMTPD will have are empty.
const inside = `mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/group" /etc/group &&
mount -t tmpfs none /var/spool && mount -t tmpfs none /run && mount -t tmpfs none /var/lib || exit 9
s=/var/spool/smtpd; mkdir -p -m 711 $s /var/lib/opensmtpd/empty
mkdir -m 700 $s/purge $s/queue $s/incoming $s/temporary $s/corrupt; chown opensmtpq $s/*
mkdir -m 770 $s/offline; chown root:opensmtpq $s/offline
shift; exec "$@"`

// peer is a server that others wrote, which relays all it takes to a sink.
type peer struct {
	name, address string
	trusts        *x509.CertPool
	sink          *smtptest.Server
	log           bytes.Buffer
}

func unpacked(t *testing.T, path string) string {
	t.Helper()
	full, err := filepath.Abs(filepath.Join(debian, path))
	if err == nil {
		_, err = os.Stat(full)
	}
	if err != nil {
		t.Fatalf("%v: make interop unpacks it", err)
	}
	return full
}

// startPeer starts a server. Its files say $DIR for a folder of its own, $PORT for
// where it listens, and $SINK for the port of the sink.
func startPeer(t *testing.T, name string, files map[string]string, env []string, command ...string) *peer {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	p := &peer{name: name, address: l.Addr().String(), sink: smtptest.New(t)}
	_, port, _ := net.SplitHostPort(p.address)
	fill := strings.NewReplacer("$DIR", dir, "$PORT", port, "$SINK", strconv.Itoa(int(p.sink.AddrPort().Port())))
	for file, text := range files {
		write(t, filepath.Join(dir, file), fill.Replace(text), 0o644)
	}
	for file, base := range map[string]string{"passwd": users, "group": groups} {
		was, err := os.ReadFile("/etc/" + file)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, file), string(was)+base, 0o644)
	}
	made, err := exec.Command("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=peer.test", "-addext", "subjectAltName=DNS:peer.test",
		"-keyout", filepath.Join(dir, "key.pem"), "-out", filepath.Join(dir, "cert.pem")).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, made)
	}
	cert, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	p.trusts = x509.NewCertPool()
	p.trusts.AppendCertsFromPEM(cert)
	args := []string{"-m", "sh", "-c", inside, "sh", dir}
	for _, a := range command {
		args = append(args, fill.Replace(a))
	}
	c := exec.Command("unshare", args...)
	c.Env, c.Stdout, c.Stderr = append(os.Environ(), env...), &p.log, &p.log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		c.Wait()                          //nolint:errcheck // likewise
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.log.Bytes())
		}
	})
	for range 400 {
		if conn, err := net.Dial("tcp", p.address); err == nil {
			conn.Close()
			return p
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("%s does not listen", name)
	return nil
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

const eximConf = `primary_hostname = peer.test
exim_path = $EXIM
spool_directory = $DIR/spool
log_file_path = $DIR/spool/%slog
pid_file_path = $DIR/spool/pid
daemon_smtp_ports = $PORT
local_interfaces = 127.0.0.1
tls_advertise_hosts = *
tls_certificate = $DIR/cert.pem
tls_privatekey = $DIR/key.pem
auth_advertise_hosts = *
chunking_advertise_hosts = *
acl_smtp_rcpt = rcpt
acl_smtp_data = accept
host_lookup =
rfc1413_query_timeout = 0s
keep_environment =
begin acl
rcpt:
  deny local_parts = no
  accept
begin routers
out:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = out
begin transports
out:
  driver = smtp
  port = $SINK
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth2}{joe}}{eq{$auth3}{secret}}}}
  server_set_id = $auth2
`

const postfixMain = `compatibility_level = 3.6
queue_directory = $DIR/spool
data_directory = $DIR/data
mail_owner = postfix
setgid_group = postdrop
maillog_file = /dev/stdout
myhostname = peer.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
local_recipient_maps =
relayhost = [127.0.0.1]:$SINK
smtpd_tls_cert_file = $DIR/cert.pem
smtpd_tls_key_file = $DIR/key.pem
smtpd_tls_security_level = may
smtpd_recipient_restrictions = check_recipient_access inline:{no@d.test=REJECT}, permit_mynetworks, reject
import_environment = MAIL_CONFIG TZ LD_LIBRARY_PATH
`

const postfixMaster = `127.0.0.1:$PORT inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`

const opensmtpdConf = `pki peer.test cert "$DIR/cert.pem"
pki peer.test key "$DIR/key.pem"
listen on 127.0.0.1 port $PORT tls pki peer.test hostname peer.test
action out relay host smtp://127.0.0.1:$SINK
match from any for rcpt-to "no@d.test" reject
match from any for any action out
`

func startExim(t *testing.T) *peer {
	exim := unpacked(t, "exim4-daemon-light/usr/sbin/exim4")
	return startPeer(t, "Exim", map[string]string{"exim.conf": strings.ReplaceAll(eximConf, "$EXIM", exim), "spool/.keep": ""}, nil,
		"sh", "-c", "chown -R Debian-exim $DIR/spool $DIR/key.pem && exec "+exim+" -C $DIR/exim.conf -bdf")
}

func startPostfix(t *testing.T) *peer {
	root := unpacked(t, "postfix")
	lib := filepath.Join(root, "usr/lib/postfix")
	places := fmt.Sprintf("daemon_directory = %s/sbin\ncommand_directory = %s/usr/sbin\nshlib_directory = %s\nmeta_directory = %s/etc/postfix\n", lib, root, lib, root)
	return startPeer(t, "Postfix", map[string]string{"etc/main.cf": postfixMain + places, "etc/master.cf": postfixMaster}, []string{"LD_LIBRARY_PATH=" + lib},
		"sh", "-c", `cd $DIR && mkdir -p data spool && cd spool && mkdir active bounce corrupt defer deferred flush hold incoming private saved trace public maildrop pid &&
chown postfix ../data * && chown root pid && chgrp postdrop public maildrop && chmod 710 public && chmod 730 maildrop && chmod 700 private &&
exec `+lib+`/sbin/master -c $DIR/etc -d`)
}

func startOpenSMTPD(t *testing.T) *peer {
	return startPeer(t, "OpenSMTPD", map[string]string{"smtpd.conf": opensmtpdConf}, nil, unpacked(t, "opensmtpd/usr/sbin/smtpd"), "-d", "-f", "$DIR/smtpd.conf")
}

// shapes are what may break on the way.
var shapes = map[string]string{
	"plain":  "Hello.\n",
	"dots":   ".\n..\n.x\n\n.\n",
	"eight":  "Gr\u00fc\u00dfe \xe4\n",
	"long":   strings.Repeat("y", 990) + "\n",
	"large":  strings.Repeat("a line of many, and more of it\n", 10_000),
	"blanks": "a  \n\t\n \n",
}

// TestInterop sends everything to the servers that most mail meets.
func TestInterop(t *testing.T) {
	for _, start := range []func(*testing.T) *peer{startExim, startPostfix, startOpenSMTPD} {
		p := start(t)
		verified := smtp.TLSPolicy{Level: smtp.Verified, Roots: p.trusts, Names: []string{"peer.test"}}
		for _, c := range []struct {
			name  string
			o     smtp.Options
			with  string // the servers
			login bool
		}{
			{name: "clear", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{Level: smtp.NoTLS})}, with: "Exim Postfix OpenSMTPD"},
			{name: "TLS kept", o: smtp.Options{TLS: fixed(verified)}, with: "Exim Postfix"},
			{name: "TLS resumed", o: smtp.Options{TLS: fixed(verified), Idle: -1}, with: "Exim Postfix"},
			{name: "chunks", o: smtp.Options{TLS: fixed(verified), Chunking: true}, with: "Exim Postfix"},
			{name: "login", o: smtp.Options{TLS: fixed(verified)}, with: "Exim", login: true},
			// Debian's OpenSMTPD offers TLS, and breaks in every handshake where it is
			// unpacked and not installed, also in that of openssl s_client.
			{name: "broken TLS", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{})}, with: "OpenSMTPD"},
			{name: "login in clear", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{Level: smtp.NoTLS})}, with: "Exim", login: true},
		} {
			if !strings.Contains(c.with, p.name) {
				continue
			}
			t.Run(p.name+" "+c.name, func(t *testing.T) { p.take(t, c.o, c.login) })
		}
	}
}

// take sends every shape and looks what arrives at the sink.
func (p *peer) take(t *testing.T, o smtp.Options, login bool) {
	n := newInternet(t)
	host, port, _ := net.SplitHostPort(p.address)
	number, _ := strconv.ParseUint(port, 10, 16)
	o.Routes = to(smtp.Hop{Host: host, Port: uint16(number)})
	o.Timeouts.Quit, o.ConnectTimeout = time.Second, 5*time.Second
	o.Timeouts.Greeting, o.Timeouts.Dot = 10*time.Second, 10*time.Second
	if login {
		o.Login = func(string, string) *smtp.Credentials {
			return &smtp.Credentials{User: "joe", Password: "secret", Clear: true}
		}
	}
	n.straight = true
	x := n.exit(o)
	p.sink.Forget()
	for name, text := range shapes {
		j := job("d.test", name+"@d.test", "no@d.test", "a b@d.test")
		head := "Received: from nowhere\nMessage-ID: <" + name + "@us.test>\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nFrom: a@us.test\nTo: b@d.test\nSubject: " + name + "\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n"
		j.Content = message.FromString(head + text)
		results := x.Deliver(t.Context(), j)
		if results[0].Reply.Class != reply.Success || results[1].Reply.Class != reply.Permanent || results[0].TLS.Verified != (o.TLS("", "").Level == smtp.Verified) {
			t.Fatalf("%s: %+v", name, results)
		}
	}
	for name, text := range shapes {
		var got *smtptest.Message
		eventually(t, "no "+name+" at the sink", func() bool {
			for _, m := range p.sink.Messages() {
				for _, a := range m.Addresses() {
					if a == name+"@d.test" {
						got = m
					}
				}
			}
			return got != nil
		})
		if !strings.HasSuffix(string(got.Content), "\n\n"+text) {
			t.Errorf("%s: sent %.300q, arrived %.1500q", name, text, got.Content)
		}
	}
}

// TestSmtpSink is what Debian's smtp-sink can do that others do not.
func TestSmtpSink(t *testing.T) {
	root := unpacked(t, "postfix")
	for _, c := range []struct {
		options string
		want    string // the reply
		perhaps bool
	}{
		{options: "", want: "250"},
		{options: "-e", want: "250"}, // HELO alone
		{options: "-8", want: "250"}, // no 8BITMIME
		{options: "-p", want: "250"}, // no PIPELINING
		{options: "-N", want: "250"}, // no DSN
		{options: "-f RCPT", want: "500"},
		{options: "-r RCPT", want: "450"},
		{options: "-r MAIL", want: "450"},
		{options: "-r DATA", want: "450"},
		{options: "-f .", want: "500"},
		{options: "-q CONNECT", want: "451 4.4.2"},
		{options: "-q EHLO", want: "451 4.4.2"},
		{options: "-q MAIL", want: "451 4.4.2"},
		{options: "-q DATA", want: "451 4.4.2"},
		{options: "-q .", want: "451 4.4.2", perhaps: true},
		{options: "-Q RCPT", want: "421"},
		{options: "-Q .", want: "421"},
	} {
		t.Run(c.options, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			address := l.Addr().(*net.TCPAddr)
			k := exec.Command(filepath.Join(root, "usr/sbin/smtp-sink"), append(strings.Fields(c.options+" -u root"), "inet:"+address.String(), "100")...)
			k.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(root, "usr/lib/postfix"))
			k.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := k.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { k.Process.Kill(); k.Wait() }) //nolint:errcheck // it was told to
			eventually(t, "it does not listen", func() bool {
				conn, err := net.Dial("tcp", address.String())
				if err == nil {
					conn.Close()
				}
				return err == nil
			})
			n := newInternet(t)
			n.straight = true
			x := n.exit(smtp.Options{Routes: to(smtp.Hop{Host: "127.0.0.1", Port: uint16(address.Port)})})
			for range 2 { // the second over the kept connection, if there is one
				r := one(t, x, job("d.test", "r@d.test"))
				if !strings.HasPrefix(r.Reply.SMTP(), c.want) || r.Perhaps != c.perhaps {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}
