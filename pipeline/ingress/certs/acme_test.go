package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline/ingress/certs"
)

const day = 24 * time.Hour

// manage runs Manage until the test ends, before the store is closed.
func manage(t *testing.T, s *certs.Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Manage(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Manage: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 6000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited a minute for %s", what)
}

// presented is the certificate that a client gets and verifies.
func presented(t *testing.T, config *tls.Config, roots *x509.CertPool, name string) *x509.Certificate {
	t.Helper()
	_, c, err := shake(config, &tls.Config{RootCAs: roots, ServerName: name})
	if err != nil {
		t.Fatal(err)
	}
	return c.PeerCertificates[0]
}

// TestACME is the life of a certificate: none yet, obtained by http-01, used,
// kept over a restart, not renewed while the server is down, renewed when it
// is back.
func TestACME(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent(),
		// The test server's, which has no end.
		goleak.IgnoreAnyFunction("github.com/letsencrypt/pebble/v2/va.VAImpl.processTasks"),
		// certmagic's, one for a directory and an e-mail: see the package's comment.
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*RingBufferRateLimiter).loop"),
	)
	t.Run("life", acmeLife)
}

func acmeLife(t *testing.T) {
	httpPort, listener := freePort(t)
	server := newACMEServer(t, httpPort, 1)
	log, clock := new(journal), newClock()
	o := certs.Options{
		State: t.TempDir(), Log: log.logger(), Now: clock.now,
		ACME: &certs.ACME{
			Names: []string{"mx.example.org", "Mail.Example.Net."}, Directory: server.directory, Roots: server.rootFile,
			Email: "postmaster@example.org", Agreed: true, Listener: listener,
		},
	}
	s := open(t, o)
	config := configure(t, s, certs.Policy{})
	if s.Ready(certs.Policy{}) {
		t.Error("ready before there is a certificate")
	}
	if _, _, err := shake(config, &tls.Config{ServerName: "mx.example.org"}); err == nil {
		t.Error("a handshake without a certificate")
	}
	stop := manage(t, s)
	eventually(t, "both certificates", func() bool { return len(s.Expires()) == 2 })
	if !s.Ready(certs.Policy{}) {
		t.Error("not ready")
	}
	first := presented(t, config, server.pool, "mx.example.org")
	presented(t, config, server.pool, "mail.example.net")
	if first.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("a %v key", first.PublicKeyAlgorithm)
	}
	if n := server.orders.Load(); n != 2 {
		t.Errorf("%d orders for two names", n)
	}
	checkModes(t, o.State)
	checkNothingElse(t, httpPort)
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// After a restart the certificates are there at once, and no order is made.
	o.ACME.Listener, o.ACME.HTTP = nil, listener.Addr().String()
	s = open(t, o)
	config = configure(t, s, certs.Policy{})
	if !first.Equal(presented(t, config, server.pool, "mx.example.org")) {
		t.Error("another certificate after a restart")
	}

	// Renewal is due, but the server is down: the old one stays.
	server.down()
	clock.add(80 * day)
	manage(t, s)
	failures := func() int { return len(log.lines("not renewed by the ACME server, the old one stays in use")) }
	eventually(t, "two failures", func() bool { return failures() == 2 })
	line := log.lines("not renewed by the ACME server")[0]
	for _, want := range []string{"name=mx.example.org", "refused", "see that this host can reach the directory's address", "failures=1", "again="} {
		if !strings.Contains(line, want) {
			t.Errorf("log has no %q: %s", want, line)
		}
	}
	if _, c, err := shake(config, &tls.Config{InsecureSkipVerify: true, ServerName: "mx.example.org"}); err != nil || !first.Equal(c.PeerCertificates[0]) {
		t.Errorf("the old certificate is not served: %v", err)
	}

	// It is back: the operator asks, and new clients get a new certificate.
	server.up(t)
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "renewal", func() bool { return len(log.lines("TLS certificate obtained")) == 4 })
	second := presented(t, config, server.pool, "mx.example.org")
	if second.Equal(first) || second.NotBefore.Before(first.NotBefore) {
		t.Error("no new certificate")
	}
	if n := server.orders.Load(); n != 4 {
		t.Errorf("%d orders", n)
	}
}

// checkModes: nobody else reads what is in the state folder.
func checkModes(t *testing.T, state string) {
	t.Helper()
	keys := 0
	err := filepath.Walk(filepath.Join(state, "acme"), func(name string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", name, fi.Mode())
		}
		if filepath.Ext(name) == ".key" {
			keys++
		}
		return nil
	})
	if err != nil || keys != 3 { // two names and the account
		t.Errorf("%d keys, %v", keys, err)
	}
}

// checkNothingElse: the challenge's port answers nothing but challenges.
func checkNothingElse(t *testing.T, port int) {
	t.Helper()
	address := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String()
	for _, path := range []string{"/", "/.well-known/acme-challenge/unknown", "/.well-known/acme-challenge/../../etc/passwd"} {
		request, err := http.NewRequest(http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host, request.Close = "mx.example.org", true
		response, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s %q", path, response.Status, body)
		}
	}
}

// TestACMEByTLS answers tls-alpn-01 on a listener of ours, which serves a
// self-signed certificate until the real one is there.
func TestACMEByTLS(t *testing.T) {
	port, listener := freePort(t)
	server := newACMEServer(t, 1, port)
	log := new(journal)
	s := open(t, certs.Options{
		State: t.TempDir(), Log: log.logger(), Fallback: certs.FallbackSelfSigned, Hostname: "mx.example.org",
		ACME: &certs.ACME{
			Names: []string{"mx.example.org"}, Directory: server.directory, Roots: server.rootFile, RSA: true,
			Email: "postmaster@example.org", Agreed: true, TLSALPN: listener.Addr().String(),
		},
	})
	config := configure(t, s, certs.Policy{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			_ = tls.Server(c, config).Handshake()
			c.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })

	if !s.Ready(certs.Policy{}) || s.Expires()[0].Source != "self-signed" {
		t.Errorf("no fallback: %+v", s.Expires())
	}
	stop := manage(t, s)
	defer stop()
	eventually(t, "the certificate", func() bool { return s.Expires()[0].Source == "acme mx.example.org" })
	if c := presented(t, config, server.pool, "mx.example.org"); c.PublicKeyAlgorithm != x509.RSA {
		t.Errorf("a %v key", c.PublicKeyAlgorithm)
	}
	// Once the challenge is over, its protocol is one like any other.
	_, c, err := shake(config, &tls.Config{RootCAs: server.pool, ServerName: "mx.example.org", NextProtos: []string{"acme-tls/1"}})
	if err != nil || c.NegotiatedProtocol != "" {
		t.Errorf("%q, %v", c.NegotiatedProtocol, err)
	}
}

// TestACMEValidationFails: the server cannot reach us. That is told once with
// what to do, and put off; a broken file in the state folder is replaced.
func TestACMEValidationFails(t *testing.T) {
	wrong, elsewhere := freePort(t)
	elsewhere.Close()
	server := newACMEServer(t, wrong, 1)
	log, state := new(journal), t.TempDir()
	o := certs.Options{State: state, Log: log.logger(), ACME: &certs.ACME{
		Names: []string{"mx.example.org"}, Directory: server.directory, Roots: server.rootFile,
		Email: "postmaster@example.org", Agreed: true, HTTP: "127.0.0.1:0",
	}}
	s := open(t, o)
	configure(t, s, certs.Policy{})
	stop := manage(t, s)
	eventually(t, "a failure", func() bool { return len(log.lines("no TLS certificate from the ACME server")) > 0 })
	line := log.lines("no TLS certificate from the ACME server")[0]
	for _, want := range []string{"refused", "see that http://mx.example.org/.well-known/acme-challenge/ leads to 127.0.0.1:", "DNS, firewall, port 80"} {
		if !strings.Contains(line, want) {
			t.Errorf("log has no %q: %s", want, line)
		}
	}
	if s.Ready(certs.Policy{}) {
		t.Error("ready")
	}
	stop()
	s.Close()

	// The next start has the right port, and rubbish in the folder.
	site := filepath.Join(state, "acme", "certificates", strings.ReplaceAll(server.address, ":", "-")+"-dir", "mx.example.org")
	if err := os.MkdirAll(site, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{".crt", ".key", ".json"} {
		put(t, filepath.Join(site, "mx.example.org"+suffix), []byte("rubbish"))
	}
	o.ACME.HTTP = (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: wrong}).String()
	s = open(t, o)
	config := configure(t, s, certs.Policy{})
	manage(t, s)
	eventually(t, "the certificate", func() bool { return s.Ready(certs.Policy{}) })
	presented(t, config, server.pool, "mx.example.org")
	if len(log.lines("is broken in the state folder")) != 1 {
		t.Errorf("the rubbish was not found in %s", site)
	}
}

// TestACMETakenOver: a new configuration answers at the same address while the
// old one still has it.
func TestACMETakenOver(t *testing.T) {
	port, listener := freePort(t)
	listener.Close()
	server := newACMEServer(t, port, 1)
	o := certs.Options{State: t.TempDir(), ACME: &certs.ACME{
		Names: []string{"mx.example.org"}, Directory: server.directory, Roots: server.rootFile,
		Email: "postmaster@example.org", Agreed: true, HTTP: listener.Addr().String(),
	}}
	old := open(t, o)
	o.From = old
	s := open(t, o)
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	manage(t, s)
	eventually(t, "the certificate", func() bool { return s.Ready(certs.Policy{}) })
}

// TestACMEOptions is what an administrator reads.
func TestACMEOptions(t *testing.T) {
	_, taken := freePort(t)
	defer taken.Close()
	whole := certs.ACME{Where: "postern.toml:20", Names: []string{"mx.example.org"}, Email: "postmaster@example.org", Agreed: true, HTTP: taken.Addr().String()}
	for want, change := range map[string]func(*certs.ACME){
		"set names":                              func(a *certs.ACME) { a.Names = nil },
		"set email":                              func(a *certs.ACME) { a.Email = "" },
		"set agreed to true":                     func(a *certs.ACME) { a.Agreed = false },
		`set http to ":80"`:                      func(a *certs.ACME) { a.HTTP = "" },
		"wildcards need DNS challenges":          func(a *certs.ACME) { a.Names = []string{"*.example.org"} },
		`"localhost" is no full host name`:       func(a *certs.ACME) { a.Names = []string{"localhost"} },
		`"192.0.2.1" is no full host name`:       func(a *certs.ACME) { a.Names = []string{"192.0.2.1"} },
		`"MX.example.org" is there twice`:        func(a *certs.ACME) { a.Names = append(a.Names, "MX.example.org") },
		"address already in use: stop what uses": func(*certs.ACME) {},
		"/nonexistent/roots.pem":                 func(a *certs.ACME) { a.HTTP, a.Roots = "127.0.0.1:0", "/nonexistent/roots.pem" },
		"the port must be a number":              func(a *certs.ACME) { a.HTTP, a.TLSALPN = "", ":https" },
	} {
		a := whole
		a.Names = append([]string(nil), whole.Names...)
		change(&a)
		_, err := certs.New(certs.Options{State: t.TempDir(), ACME: &a})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "postern.toml:20: ") {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}
