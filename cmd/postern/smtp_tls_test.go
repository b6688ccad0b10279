package main

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

const tlsConfig = `[listen.mx]
address = "$AT_MX"
next = "discard"
rate = 0
per_address = 0
per_network = 0
[listen.strict]
address = "$AT_STRICT"
service = "submission"
tls = "implicit"
tls_min = "1.3"
next = "discard"
certificates = ["two"]
relay = "true"
[listen.chosen]
address = "$AT_CHOSEN"
tls_ciphers = ["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]
tls_client = true
next = "discard"
[listen.bare]
address = "$AT_BARE"
tls = "off"
next = "discard"
[certificate.one]
cert = "$RUN/one.crt"
key = "$RUN/one.key"
[certificate.two]
cert = "$RUN/two.crt"
key = "$RUN/two.key"
`

// TestSMTPTLS: which certificate is shown to whom, what is offered, and
// certificates that change while mail flows.
func TestSMTPTLS(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	ca := newAuthority(t, g)
	one, two := ca.issue(t, g, "one", "mx.example.org"), ca.issue(t, g, "two", "two.example.org", "*.more.example.org")
	g.start(t, tlsConfig)
	t.Run("names", func(t *testing.T) {
		for name, want := range map[string]int64{"mx.example.org": one, "two.example.org": two, "any.more.example.org": two, "TWO.example.org": two} {
			c, state := g.hello(t, "mx", "").startTLS(ca.trust(name))
			if got := state.PeerCertificates[0].SerialNumber.Int64(); got != want {
				t.Errorf("%s is shown certificate %d, not %d", name, got, want)
			}
			c.want("QUIT", "221 ")
		}
		config := ca.trust("")
		config.InsecureSkipVerify = true //nolint:gosec // a client that names no host cannot check one
		_, state := g.hello(t, "mx", "").startTLS(config)
		if got := state.PeerCertificates[0].SerialNumber.Int64(); got != one {
			t.Errorf("without a name certificate %d is shown, not the first one, %d", got, one)
		}
	})
	t.Run("versions", func(t *testing.T) { testVersions(t, g, ca) })
	t.Run("offered", func(t *testing.T) {
		said := g.postern(t, "check")
		for _, want := range []string{
			`TLS of listen\.chosen \(tls = "offer"\) with mx\.example\.org[^\n]* until 20\d\d-\d\d-\d\d; two\.example\.org[^\n]*:\n  TLSv1\.2: TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\n  TLSv1\.3: TLS_AES_128_GCM_SHA256 `,
			`TLS of listen\.strict \(tls = "implicit"\) with two\.example\.org[^\n]*:\n  TLSv1\.3: TLS_AES_128_GCM_SHA256 TLS_AES_256_GCM_SHA384 TLS_CHACHA20_POLY1305_SHA256\n`,
		} {
			if !regexp.MustCompile(want).MatchString(said) {
				t.Errorf("postern check has not %q:\n%s", want, said)
			}
		}
		if strings.Contains(said, "TLS of listen.bare") {
			t.Errorf("postern check says:\n%s", said)
		}
	})
	t.Run("injection", func(t *testing.T) { testSTARTTLSInjection(t, g) })
	t.Run("change", func(t *testing.T) { testChangeUnderLoad(t, g, ca) })
	t.Run("broken", func(t *testing.T) {
		g.write(t, "two.crt", "nonsense")
		if out, err := g.try("check"); err == nil || !strings.Contains(out, "two.crt") {
			t.Errorf("postern check: %v: %s", err, out)
		}
	})
}

// testVersions: the lowest version, and the ciphers that were chosen.
func testVersions(t *testing.T, g *gateway, ca *authority) {
	dial := func(entrance string, change func(*tls.Config)) (*tls.ConnectionState, error) {
		config := ca.trust("two.example.org")
		change(config)
		c, err := tls.Dial("tcp", g.at(entrance), config)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		said, err := textproto.NewReader(newTalk(t, c).R).ReadLine()
		if err != nil || !strings.HasPrefix(said, "220 ") {
			t.Errorf("the greeting is %q (%v)", said, err)
		}
		state := c.ConnectionState()
		return &state, nil
	}
	if state, err := dial("strict", func(*tls.Config) {}); err != nil || state.Version != tls.VersionTLS13 {
		t.Errorf("TLS 1.3: %v, %v", state, err)
	}
	if _, err := dial("strict", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }); err == nil {
		t.Error("TLS 1.2 where 1.3 is the lowest")
	}
	config := ca.trust("mx.example.org")
	config.MaxVersion = tls.VersionTLS12
	c, state := g.hello(t, "chosen", "").startTLS(config)
	if state.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 {
		t.Errorf("the cipher is %s", tls.CipherSuiteName(state.CipherSuite))
	}
	c.mail("cipher@client.example", "joe@example.org", "Subject: x\n\nbody\n", "250 ")
	g.logged(t, 1, "msg", "message", "from", "cipher@client.example", "tls", "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")
}

// testSTARTTLSInjection: what stands behind STARTTLS in the same segment is
// never carried out (CVE-2011-0411).
func testSTARTTLSInjection(t *testing.T, g *gateway) {
	c := g.hello(t, "mx", "127.0.9.9")
	if _, err := c.conn.Write([]byte("STARTTLS\r\nMAIL FROM:<injected@client.example>\r\n")); err != nil {
		t.Fatal(err)
	}
	if said := c.read(); !strings.HasPrefix(said, "554 ") {
		t.Errorf("the answer is %q", said)
	}
	c.closed()
	l := g.logged(t, 1, "msg", "session", "peer", "127.0.9.9")[0]
	if l["transactions"] != 0.0 {
		t.Errorf("the log has %v", l)
	}
}

// testChangeUnderLoad renames new certificates into place while clients connect
// and while sessions are open. None of them fails, and the new one is shown soon.
func testChangeUnderLoad(t *testing.T, g *gateway, ca *authority) {
	open, _ := g.hello(t, "mx", "").startTLS(ca.trust("mx.example.org"))
	var newest, shown atomic.Int64
	var all sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		all.Add(1)
		go func() {
			defer all.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := oneOverTLS(g.at("mx"), ca.trust("mx.example.org"))
				if err != nil {
					t.Errorf("a session failed: %v", err)
					return
				}
				for was := shown.Load(); got > was && !shown.CompareAndSwap(was, got); was = shown.Load() {
				}
			}
		}()
	}
	for change := range 3 {
		newest.Store(ca.issue(t, g, "one", "mx.example.org"))
		if change == 1 {
			g.postern(t, "reload") // the others are found without
		}
		for i := 0; shown.Load() < newest.Load(); i++ {
			if i == 600 {
				t.Errorf("certificate %d was never shown", newest.Load())
				break
			}
			time.Sleep(25 * time.Millisecond)
		}
	}
	close(stop)
	all.Wait()
	open.mail("open@client.example", "joe@example.org", "Subject: x\n\nbody\n", "250 ")
}

// oneOverTLS sends a message over STARTTLS, and returns the number of the
// certificate that it was shown.
func oneOverTLS(address string, config *tls.Config) (int64, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience)) //nolint:errcheck // sockets have deadlines
	c := textproto.NewConn(conn)
	say := func(line string, code int) {
		if err == nil && line != "" {
			err = c.PrintfLine("%s", line)
		}
		if err == nil {
			_, _, err = c.ReadResponse(code)
		}
	}
	say("", 220)
	say("EHLO client.example", 250)
	say("STARTTLS", 220)
	if err != nil {
		return 0, err
	}
	secure := tls.Client(conn, config)
	if err := secure.Handshake(); err != nil {
		return 0, err
	}
	c = textproto.NewConn(secure)
	for _, step := range []struct {
		line string
		code int
	}{{"EHLO client.example", 250}, {"MAIL FROM:<a@client.example>", 250}, {"RCPT TO:<joe@example.org>", 250}, {"DATA", 354}, {"Subject: x\r\n\r\nbody\r\n.", 250}, {"QUIT", 221}} {
		say(step.line, step.code)
	}
	return secure.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), err
}

// acmeServer is Let's Encrypt's test server, which asks http-01 at a port of this
// host, and is not there until it is opened.
type acmeServer struct {
	directory, roots string
	open             atomic.Bool
}

func newACMEServer(t *testing.T, g *gateway, port int) *acmeServer {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_AUTHZREUSE", "0")
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "default"}})
	asks := va.New(quiet, port, 0, false, loopbackNames(t), store)
	web := wfe.New(quiet, store, asks, authority, []string{"pebble.test"}, false, false, 0, 0)
	front := web.Handler()
	p := &acmeServer{}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.open.Load() {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return
		}
		front.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	p.roots = g.write(t, "pebble.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	p.directory = server.URL + wfe.DirectoryPath
	return p
}

// loopbackNames is a name server that finds every name at our loopback address.
func loopbackNames(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", loopback()+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(loopback())})
		}
		w.WriteMsg(m) //nolint:errcheck // who asked asks again
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.ActivateAndServe() //nolint:errcheck // it ends with the test
	}()
	t.Cleanup(func() {
		server.Shutdown() //nolint:errcheck // likewise
		<-done
	})
	return l.Addr().String()
}

const acmeConfig = `[listen.mx]
address = "$AT_MX"
next = "discard"
[listen.submission]
address = "$AT_SUBMISSION"
service = "submission"
relay = "true"
next = "discard"
[acme]
names = ["mx.example.org"]
directory = "$DIRECTORY"
agree = true
address = "$AT_HTTP"
ca = "$ROOTS"
`

// TestSMTPACME: the daemon fetches a certificate by http-01. Until it has one it
// offers no STARTTLS, and what needs TLS is put off.
func TestSMTPACME(t *testing.T) {
	g := newGateway(t)
	g.env["AT_HTTP"] = freeAddress(t)
	_, port, _ := net.SplitHostPort(g.env["AT_HTTP"])
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	p := newACMEServer(t, g, n)
	g.env["DIRECTORY"], g.env["ROOTS"] = p.directory, p.roots
	g.start(t, acmeConfig)
	if said := g.postern(t, "config", "show"); !strings.Contains(said, `"postmaster@mx.example.org"`) {
		t.Errorf("the address for the authority is not postmaster's:\n%s", said)
	}
	mx, submission := g.hello(t, "mx", ""), g.hello(t, "submission", "")
	if said := mx.say("EHLO client.example"); offers(said, "STARTTLS") {
		t.Errorf("STARTTLS is offered without a certificate: %q", said)
	}
	mx.want("STARTTLS", "454 4.7.0 ")
	mx.mail("early@client.example", "joe@example.org", "Subject: x\n\nbody\n", "250 ")
	submission.want("MAIL FROM:<a@example.org>", "454 4.7.0 ")
	p.open.Store(true)
	g.postern(t, "reload") // or it would try again by itself, in a minute
	for i := 0; ; i++ {
		if offers(mx.say("EHLO client.example"), "STARTTLS") {
			break
		}
		if i == 400 {
			t.Fatalf("there is no certificate: %v", g.lines(t, "level", "ERROR"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	_, state := mx.startTLS(&tls.Config{InsecureSkipVerify: true, ServerName: "mx.example.org"}) //nolint:gosec // pebble's root is nobody's
	if cert := state.PeerCertificates[0]; cert.VerifyHostname("mx.example.org") != nil || !strings.Contains(cert.Issuer.CommonName, "Pebble") {
		t.Errorf("the certificate is %v of %v", cert.DNSNames, cert.Issuer)
	}
	if kept, err := filepath.Glob(filepath.Join(g.dir, "state", "tls", "*")); err != nil || len(kept) == 0 {
		t.Errorf("nothing is kept: %v", err)
	}
	if said := g.postern(t, "check"); !strings.Contains(said, "what ACME brings for mx.example.org") {
		t.Errorf("postern check says:\n%s", said)
	}
	submission.conn.Close()
}
