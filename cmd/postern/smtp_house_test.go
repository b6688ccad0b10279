package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// gatewayConfig is how the configuration of every gateway begins.
const gatewayConfig = `hostname = "mx.example.org"
state = "$RUN/state"
admin.socket = "$RUN/admin.sock"
log.format = "json"
[queue]
low_space = "1 MB"
resolver = ["127.0.0.1:1"]
`

// gateway is the daemon as an SMTP server.
type gateway struct {
	dir    string
	daemon *exec.Cmd
	env    map[string]string // what $NAME stands for in the configuration
	config string
}

// loopback is an address of this host that no other program listens at: it is
// made of our process id.
func loopback() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 128+pid>>16&127, pid>>8&255, 1|pid&254)
}

// freeAddress is an address where a test can listen. Clients come from
// 127.0.0.1, so none of them takes the port meanwhile.
func freeAddress(t *testing.T) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", loopback()+":0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		address := l.Addr().String()
		if _, again := handedOut.LoadOrStore(address, true); !again {
			return address
		}
	}
}

// handedOut are the addresses that tests have: the system may give one again
// before anybody listens there.
var handedOut sync.Map

// newGateway makes the folder of a gateway. Everybody may enter it, because a
// daemon that is not root must.
func newGateway(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{dir: t.TempDir(), env: map[string]string{"UID": strconv.Itoa(os.Getuid())}}
	g.env["RUN"] = g.dir
	for _, dir := range []string{g.dir, filepath.Dir(g.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// expand puts in what $NAME stands for; $AT_NAME is an address to listen at,
// the same each time.
func (g *gateway) expand(t *testing.T, text string) string {
	t.Helper()
	return os.Expand(text, func(name string) string {
		if _, ok := g.env[name]; !ok && strings.HasPrefix(name, "AT_") {
			g.env[name] = freeAddress(t)
		}
		return g.env[name]
	})
}

// at is where an entrance listens.
func (g *gateway) at(name string) string { return g.env["AT_"+strings.ToUpper(name)] }

// write writes a file, with $NAME put in.
func (g *gateway) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(g.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(g.expand(t, text)), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// boxes makes the Maildirs of a configuration.
func (g *gateway) boxes(t *testing.T, config string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`"\$RUN/mail/(\w+)"`).FindAllStringSubmatch(config, -1) {
		g.box(t, m[1])
	}
}

func (g *gateway) box(t *testing.T, name string) {
	t.Helper()
	for _, dir := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(g.dir, "mail", name, dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
}

// start writes the configuration and starts the daemon.
func (g *gateway) start(t *testing.T, config string) {
	t.Helper()
	if !strings.Contains(config, "control =") {
		config = "control = \"\"\ndomains = [\"example.org\"]\n" + gatewayConfig + config
	}
	g.boxes(t, config)
	g.config = g.write(t, "postern.toml", config)
	g.run(t, exec.Command("postern", "serve", "--grace", "10s", "--config", g.config))
}

// run runs the daemon and waits until it serves.
func (g *gateway) run(t *testing.T, c *exec.Cmd) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(g.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	served := len(g.lines(t, "msg", "serving"))
	g.daemon = c
	g.daemon.Stderr = log
	if err := g.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.stop(t) })
	g.logged(t, served+1, "msg", "serving")
}

// stop ends the daemon as an administrator would.
func (g *gateway) stop(t *testing.T) {
	t.Helper()
	if g.daemon.ProcessState != nil {
		return
	}
	g.daemon.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
	if err := g.daemon.Wait(); err != nil {
		b, _ := os.ReadFile(filepath.Join(g.dir, "log"))
		t.Errorf("the daemon: %v\n%s", err, b)
	}
}

// reload has the daemon read another configuration.
func (g *gateway) reload(t *testing.T, config string) {
	t.Helper()
	if !strings.Contains(config, "control =") {
		config = "control = \"\"\ndomains = [\"example.org\"]\n" + gatewayConfig + config
	}
	g.boxes(t, config)
	g.write(t, "postern.toml", config)
	g.postern(t, "reload")
}

// postern runs a command of the operator's.
func (g *gateway) postern(t *testing.T, args ...string) string {
	t.Helper()
	out, err := g.try(args...)
	if err != nil {
		t.Fatalf("postern %v: %v\n%s", args, err, out)
	}
	return out
}

func (g *gateway) try(args ...string) (string, error) {
	out, err := exec.Command("postern", append(args, "--config", g.config)...).CombinedOutput()
	return string(out), err
}

// entry is a line of the daemon's log.
type entry map[string]any

// lines are the lines of the log in which the attributes are as given: key,
// value, key, value.
func (g *gateway) lines(t *testing.T, want ...string) (all []entry) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range bytes.SplitAfter(b, []byte("\n")) {
		var l entry
		if !bytes.HasSuffix(line, []byte("\n")) || json.Unmarshal(line, &l) != nil {
			continue
		}
		fits := true
		for i := 0; i < len(want); i += 2 {
			fits = fits && fmt.Sprint(l[want[i]]) == want[i+1]
		}
		if fits {
			all = append(all, l)
		}
	}
	return all
}

// logged waits for so many such lines: the daemon logs after it has answered.
func (g *gateway) logged(t *testing.T, count int, want ...string) []entry {
	t.Helper()
	for range 1200 {
		if fit := g.lines(t, want...); len(fit) >= count {
			return fit
		}
		if p := g.daemon; p != nil && ended(p.Process.Pid) {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	b, _ := os.ReadFile(filepath.Join(g.dir, "log"))
	t.Fatalf("the log never had %d lines with %q:\n%s", count, want, b)
	return nil
}

// ended reports whether a process of ours has ended and was not waited for.
func ended(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(b), ") Z ")
}

// arrived waits until a Maildir holds so many messages, and returns them.
func (g *gateway) arrived(t *testing.T, box string, count int) (all []string) {
	t.Helper()
	for range 1200 {
		names, err := filepath.Glob(filepath.Join(g.dir, "mail", box, "new", "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(names) >= count {
			for _, name := range names {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, string(b))
			}
			if len(all) > count {
				t.Fatalf("%d messages in the mailbox of %s, not %d: %q", len(all), box, count, all)
			}
			return all
		}
		time.Sleep(25 * time.Millisecond)
	}
	b, _ := os.ReadFile(filepath.Join(g.dir, "log"))
	t.Fatalf("%d messages never came to the mailbox of %s:\n%s", count, box, b)
	return nil
}

// talk is a conversation with the server.
type talk struct {
	*client
	conn net.Conn
}

// patience bounds a whole conversation.
const patience = 2 * time.Minute

func newTalk(t *testing.T, conn net.Conn) *talk {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &talk{&client{t, textproto.NewConn(conn)}, conn}
}

// dial connects from an address of this host, "" for any, and returns the
// greeting.
func (g *gateway) dial(t *testing.T, entrance, from string) (*talk, string) {
	t.Helper()
	c := g.connect(t, entrance, from)
	return c, c.read()
}

// connect connects and reads nothing.
func (g *gateway) connect(t *testing.T, entrance, from string) *talk {
	t.Helper()
	var d net.Dialer
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := d.Dial("tcp", g.at(entrance))
	if err != nil {
		t.Fatal(err)
	}
	return newTalk(t, conn)
}

// hello is dial and EHLO.
func (g *gateway) hello(t *testing.T, entrance, from string) *talk {
	t.Helper()
	c, greeting := g.dial(t, entrance, from)
	if !strings.HasPrefix(greeting, "220 ") {
		t.Fatalf("the greeting is %q", greeting)
	}
	c.want("EHLO client.example", "250 mx.example.org")
	return c
}

// want says a line and fails unless the answer begins like this.
func (c *talk) want(line, answer string) string {
	c.t.Helper()
	got := c.say(line)
	if !strings.HasPrefix(got, answer) {
		c.t.Errorf("%s is answered %q, want %q", line, got, answer)
	}
	return got
}

// mail sends a message to one recipient and wants the last answer to begin so.
func (c *talk) mail(from, to, content, answer string) {
	c.t.Helper()
	c.want("MAIL FROM:<"+from+">", "250 ")
	c.want("RCPT TO:<"+to+">", "250 ")
	c.data(content, answer)
}

// data sends the message; lines may end in LF alone.
func (c *talk) data(content, answer string) {
	c.t.Helper()
	c.want("DATA", "354 ")
	w := c.DotWriter()
	w.Write([]byte(content)) //nolint:errcheck // the answer tells
	w.Close()                //nolint:errcheck // likewise
	if got := c.read(); !strings.HasPrefix(got, answer) {
		c.t.Errorf("the message is answered %q, want %q", got, answer)
	}
}

// closed fails unless the server has ended the connection, and ends it here too:
// the server waits for that a while.
func (c *talk) closed() {
	c.t.Helper()
	defer c.conn.Close()
	if b, err := c.R.ReadByte(); err == nil {
		c.t.Errorf("the connection goes on with %q", b)
	}
}

// plainLogin is the initial response of AUTH PLAIN.
func plainLogin(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
}

// authority makes certificates.
type authority struct {
	file string // its own certificate, PEM
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	next int64
}

func newAuthority(t *testing.T, g *gateway) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool(), next: 1}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "Authority of a test"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	var cert []byte
	cert, a.key = a.sign(t, template)
	a.cert = template
	a.file = g.write(t, "authority.pem", string(cert))
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a key and a certificate.
func (a *authority) sign(t *testing.T, c *x509.Certificate) (cert []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.next), time.Now().Add(-time.Hour), time.Now().AddDate(0, 2, 0)
	a.next++
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	*c = *made
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

// issue writes NAME.crt and NAME.key for some host names, and for the address
// that the gateways listen at. They take the place of what was there at once.
func (a *authority) issue(t *testing.T, g *gateway, name string, hosts ...string) (serial int64) {
	t.Helper()
	c := &x509.Certificate{
		DNSNames: append(hosts, loopback()), IPAddresses: []net.IP{net.ParseIP(loopback())}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, key := a.sign(t, c)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for ext, content := range map[string][]byte{".key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), ".crt": cert} {
		path := filepath.Join(g.dir, name+ext)
		if err := os.WriteFile(path+".new", content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	return c.SerialNumber.Int64()
}

// trust is a client's TLS configuration.
func (a *authority) trust(host string) *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: host}
}

// startTLS makes TLS of a connection and says EHLO again.
func (c *talk) startTLS(config *tls.Config) (*talk, *tls.ConnectionState) {
	c.t.Helper()
	c.want("STARTTLS", "220 ")
	s := tls.Client(c.conn, config)
	if err := s.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	state := s.ConnectionState()
	n := newTalk(c.t, s)
	n.want("EHLO client.example", "250 mx.example.org")
	return n, &state
}

// offers reports whether the answer to EHLO has a word.
func offers(answer, word string) bool {
	return slices.Contains(strings.Fields(answer), word)
}
