package certs_test

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// acmeServer is Let's Encrypt's test server, in this process: its own
// authority, real validation of http-01 and tls-alpn-01 on ports that are free.
type acmeServer struct {
	directory string
	rootFile  string         // of its HTTPS
	pool      *x509.CertPool // of what it issues
	address   string
	handler   http.Handler
	server    *httptest.Server
	orders    atomic.Int64 // that were accepted
}

// newACMEServer starts one that finds every name at 127.0.0.1 and validates on
// the ports given.
func newACMEServer(t *testing.T, httpPort, tlsPort int) *acmeServer {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "10")
	t.Setenv("PEBBLE_AUTHZREUSE", "0")
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "default"}})
	validation := va.New(quiet, httpPort, tlsPort, false, nameServer(t), store)
	front := wfe.New(quiet, store, validation, authority, []string{"pebble.test"}, false, false, 0, 0)
	s := &acmeServer{pool: x509.NewCertPool(), address: "127.0.0.1:0"}
	s.pool.AddCert(authority.GetRootCert(0).Cert)
	inner := front.Handler()
	s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &answered{ResponseWriter: w}
		inner.ServeHTTP(answer, r)
		if r.URL.Path == "/order-plz" && answer.status == http.StatusCreated {
			s.orders.Add(1)
		}
	})
	s.up(t)
	t.Cleanup(s.down)
	s.rootFile = filepath.Join(t.TempDir(), "roots.pem")
	put(t, s.rootFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw}))
	s.directory = s.server.URL + wfe.DirectoryPath
	return s
}

// answered remembers a response's status: some nonces are rejected on purpose,
// so requests are not what to count.
type answered struct {
	http.ResponseWriter
	status int
}

func (a *answered) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

// up lets it listen, always at the same address.
func (s *acmeServer) up(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	s.server = httptest.NewUnstartedServer(s.handler)
	s.server.Listener.Close()
	s.server.Listener = l
	s.server.StartTLS()
}

func (s *acmeServer) down() {
	s.server.CloseClientConnections()
	s.server.Close()
}

// nameServer answers every question for an address with 127.0.0.1.
func nameServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
				A:   net.IP(netip.MustParseAddr("127.0.0.1").AsSlice()),
			})
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ActivateAndServe()
	}()
	t.Cleanup(func() {
		_ = server.Shutdown()
		<-done
	})
	return l.Addr().String()
}

// freePort finds a port at which a test may listen a moment later.
func freePort(t *testing.T) (int, net.Listener) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l.Addr().(*net.TCPAddr).Port, l
}
