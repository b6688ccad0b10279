package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"golang.org/x/net/idna"

	"github.com/postern-mta/postern/pipeline/reply"
)

// acmeSource begins the source of a certificate that ACME brought.
const acmeSource = "acme "

// acmeProtocol is the ALPN name of the tls-alpn-01 challenge (RFC 8737 §6.2).
const acmeProtocol = "acme-tls/1"

// Limits of one attempt and of what is told of it.
const (
	attemptTimeout = 10 * time.Minute
	orderTimeout   = 3 * time.Minute
	hintTimeout    = 30 * time.Second
	maxProblem     = 400 // bytes
)

// backoff is how long to wait after the first, second, ... failure in a row.
// Public servers allow about five failed validations a name and hour.
var backoff = [...]time.Duration{
	5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour,
}

// ACME says from whom certificates are obtained, and how the server's
// challenges are answered (RFC 8555 §8.3, RFC 8737). DNS challenges, and so
// wildcards, are not to be had.
type ACME struct {
	// Where is the place in the configuration, for messages.
	Where string
	// Names are host names; each gets a certificate of its own, the first is
	// the default.
	Names []string
	// Directory is the server's URL; "" is Let's Encrypt's.
	Directory string
	// Roots is a PEM file of the authorities that the server's own certificate
	// is checked against; "" is the system's.
	Roots string
	// Email is the account's contact. It is required: the account is kept under
	// it.
	Email string
	// Agreed says that the administrator agrees to the server's terms of
	// service. New refuses to go on without.
	Agreed bool
	// HTTP is the address where http-01 is answered (":80"), which New opens;
	// "" answers no http-01.
	HTTP string
	// Listener answers http-01 in the place of HTTP, when the daemon has the
	// socket already. Close closes it.
	Listener net.Listener
	// TLSALPN is the address (":443") of a listener that uses a configuration of
	// this store and answers tls-alpn-01 with it; "" does not.
	TLSALPN string
	// RSA asks for RSA 2048 keys in the place of ECDSA P-256.
	RSA bool
}

// manager drives certmagic: one attempt at a time, by our clock.
type manager struct {
	s       *Store
	o       ACME
	log     *slog.Logger
	storage certmagic.Storage
	cache   *certmagic.Cache // always empty; a certmagic.Config must have one
	config  *certmagic.Config
	issuer  *certmagic.ACMEIssuer // the first: whose storage keys, and renewal hints
	http    net.Listener
	names   []*managed
}

// managed is one name and its certificate. Only Manage's goroutine uses it,
// after New.
type managed struct {
	name     string
	held     *held // nil while there is none
	broken   bool  // what is in storage is of no use
	failures int
	next     time.Time // no attempt before
	renew    time.Time
	hint     time.Time // when to ask for the next renewal hint (RFC 9773)
}

func newManager(s *Store, o ACME) (*manager, error) {
	m := &manager{s: s, o: o, log: s.o.Log}
	m.storage = newStorage(filepath.Join(s.o.State, "acme"))
	for _, step := range [...]func() error{m.checkOptions, m.listen, m.wire} {
		err := step()
		if err == nil {
			continue
		}
		if o.Where != "" {
			err = fmt.Errorf("%s: %w", o.Where, err)
		}
		if m.o.Listener != nil {
			m.http = nil // still the caller's
		}
		return nil, errors.Join(err, m.close())
	}
	for _, n := range m.names {
		m.load(n)
	}
	m.publish()
	return m, nil
}

func (m *manager) checkOptions() error {
	o := &m.o
	switch {
	case len(o.Names) == 0:
		return errors.New("ACME needs the host names to obtain certificates for: set names")
	case o.Email == "":
		return errors.New("ACME needs an e-mail address for the account: set email, postmaster's will do")
	case !o.Agreed:
		return errors.New("ACME needs your word that you agree to the server's terms of service: read them, then set agreed to true")
	case m.s.o.State == "":
		return errors.New("ACME needs the state folder to keep account and certificates: set it")
	case o.HTTP == "" && o.Listener == nil && o.TLSALPN == "":
		return errors.New(`ACME needs a way to answer challenges: set http to ":80", or tls-alpn to ":443" if a listener is there`)
	}
	if o.Directory == "" {
		o.Directory = certmagic.LetsEncryptProductionCA
	}
	seen := make(map[string]bool)
	for _, n := range o.Names {
		ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(n, "."))
		switch {
		case strings.HasPrefix(n, "*."):
			return fmt.Errorf("ACME name %q: wildcards need DNS challenges, which are not to be had: name the hosts one by one", n)
		case err != nil || net.ParseIP(n) != nil || !strings.Contains(ascii, "."):
			return fmt.Errorf("ACME name %q is no full host name: write one as mx.example.org", n)
		case seen[ascii]:
			return fmt.Errorf("ACME name %q is there twice: take one out", n)
		}
		seen[ascii] = true
		m.names = append(m.names, &managed{name: ascii})
	}
	return nil
}

// listen opens the address of http-01, or takes it over.
func (m *manager) listen() (err error) {
	if m.o.Listener != nil {
		m.http = m.o.Listener
		return nil
	}
	if m.o.HTTP == "" {
		return nil
	}
	if from := m.s.o.From; from != nil && from.acme != nil && from.acme.o.HTTP == m.o.HTTP {
		if m.http, err = double(from.acme.http); err == nil {
			return nil
		}
	}
	if m.http, err = net.Listen("tcp", m.o.HTTP); err != nil {
		return fmt.Errorf("ACME's http-01 challenge: %w: stop what uses the address, or give postern another that port 80 is forwarded to", err)
	}
	return nil
}

// double makes a second listener of the same socket, so that either may be
// closed.
func double(l net.Listener) (net.Listener, error) {
	f, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, errors.ErrUnsupported
	}
	file, err := f.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return net.FileListener(file)
}

// wire makes certmagic's parts. Every field that would be filled from its
// global defaults with something of effect is set here.
func (m *manager) wire() error {
	logger := zap.New(&zapCore{log: m.log, now: m.s.o.Now, bound: &bound{}})
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return m.config, nil },
		Logger:           logger,
	})
	keys := certmagic.StandardKeyGenerator{KeyType: certmagic.P256}
	if m.o.RSA {
		keys.KeyType = certmagic.RSA2048
	}
	m.config = certmagic.New(m.cache, certmagic.Config{
		Storage:            m.storage,
		Logger:             logger,
		KeySource:          keys,
		OCSP:               certmagic.OCSPConfig{DisableStapling: true},
		RenewalWindowRatio: certmagic.DefaultRenewalWindowRatio,
		Issuers:            []certmagic.Issuer{}, // see below
	})
	template := certmagic.ACMEIssuer{
		CA:                m.o.Directory,
		Email:             m.o.Email,
		Agreed:            true,
		CertObtainTimeout: orderTimeout,
		Logger:            logger,
	}
	if m.o.Roots != "" {
		pool, err := readPool(m.o.Roots)
		if err != nil {
			return err
		}
		template.TrustedRoots = pool
	}
	// An issuer for each kind of challenge, because each has an address of its
	// own; they share the account.
	if m.http != nil {
		i := template
		i.DisableTLSALPNChallenge = true
		var err error
		if i.ListenHost, i.AltHTTPPort, err = hostPort(m.http.Addr().String()); err != nil {
			return err
		}
		m.config.Issuers = append(m.config.Issuers, certmagic.NewACMEIssuer(m.config, i))
	}
	if m.o.TLSALPN != "" {
		i := template
		i.DisableHTTPChallenge = true
		var err error
		if i.ListenHost, i.AltTLSALPNPort, err = hostPort(m.o.TLSALPN); err != nil {
			return err
		}
		m.config.Issuers = append(m.config.Issuers, certmagic.NewACMEIssuer(m.config, i))
	}
	m.issuer = m.config.Issuers[0].(*certmagic.ACMEIssuer)
	return nil
}

func hostPort(address string) (string, int, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("ACME address %q: %w", address, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", 0, fmt.Errorf("ACME address %q: the port must be a number", address)
	}
	return host, n, nil
}

// answer makes a configuration answer tls-alpn-01. Only a client that asks for
// nothing but the challenge's protocol gets a configuration with ALPN: others
// would be refused for offering protocols of their own (RFC 7301 §3.2).
func (m *manager) answer(config *tls.Config) {
	if m.o.TLSALPN == "" {
		return
	}
	challenge := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{acmeProtocol},
		GetCertificate: m.config.GetCertificate,
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmeProtocol {
			if _, active := certmagic.GetACMEChallenge(hello.ServerName); active {
				return challenge, nil
			}
		}
		return nil, nil
	}
}

// load reads the certificate that is in storage, if there is one.
func (m *manager) load(n *managed) bool {
	ctx := context.Background()
	cert, err := m.storage.Load(ctx, certmagic.StorageKeys.SiteCert(m.issuer.IssuerKey(), n.name))
	var key []byte
	if err == nil {
		key, err = m.storage.Load(ctx, certmagic.StorageKeys.SitePrivateKey(m.issuer.IssuerKey(), n.name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		m.log.Error("certificate from ACME cannot be read: give the state folder to postern's user", "name", n.name, "error", err)
		return false
	}
	h, err := newHeld(cert, key, acmeSource+n.name)
	if err != nil {
		n.broken = true
		m.log.Warn("certificate from ACME is broken in the state folder, another will be obtained", "name", n.name, "error", err)
		return false
	}
	n.held, n.broken = h, false
	life := h.leaf.NotAfter.Sub(h.leaf.NotBefore)
	n.renew = h.leaf.NotAfter.Add(-life / 3)
	n.hint = m.s.o.Now()
	return true
}

// publish gives the shelf what there is.
func (m *manager) publish() {
	var list []*held
	for _, n := range m.names {
		if n.held != nil {
			list = append(list, n.held)
		}
	}
	m.s.main.setAcquired(list)
}

// pass does what is due and says when to come again. Asked means that what was
// put off is due now.
func (m *manager) pass(ctx context.Context, asked bool) time.Duration {
	wait := check
	for _, n := range m.names {
		if asked {
			n.next, n.failures = time.Time{}, 0
		}
		if n.held != nil {
			m.askHint(ctx, n)
		}
		now := m.s.o.Now()
		due := n.held == nil || !now.Before(n.renew)
		if due && !now.Before(n.next) && ctx.Err() == nil {
			m.attempt(ctx, n)
		}
		if n.held == nil || !m.s.o.Now().Before(n.renew) {
			wait = min(wait, max(time.Second, n.next.Sub(m.s.o.Now())))
		}
	}
	return wait
}

// attempt tries once to obtain or renew.
func (m *manager) attempt(ctx context.Context, n *managed) {
	limited, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	var err error
	if n.broken { // it would count as obtained
		err = m.storage.Delete(limited, certmagic.StorageKeys.CertsSitePrefix(m.issuer.IssuerKey(), n.name))
	}
	switch {
	case err != nil:
	case n.held == nil:
		err = m.config.ObtainCertSync(limited, n.name)
	default:
		err = m.config.RenewCertSync(limited, n.name, true)
	}
	now := m.s.o.Now()
	if err == nil && !m.load(n) {
		err = errors.New("the new certificate cannot be read in the state folder")
	}
	if err != nil {
		if ctx.Err() == nil {
			m.failed(n, now, err)
		}
		return
	}
	n.failures = 0
	// A clock that is wrong must not make us ask again and again.
	n.next = now.Add(min(day, n.held.leaf.NotAfter.Sub(n.held.leaf.NotBefore)/10))
	m.publish()
	m.log.Info("TLS certificate obtained", "name", n.name, "directory", m.o.Directory, "key", n.held.keyType(),
		"expires", n.held.leaf.NotAfter, "sha256", n.held.fingerprint())
}

// failed puts the next attempt off and says why.
func (m *manager) failed(n *managed, now time.Time, err error) {
	wait := backoff[min(n.failures, len(backoff)-1)]
	n.failures++
	if n.held != nil && n.held.leaf.NotAfter.Sub(now) < 3*day {
		wait = min(wait, time.Hour)
	}
	wait += time.Duration(rand.Int64N(int64(wait / 10)))
	n.next = now.Add(wait)
	args := []any{
		"name", n.name, "directory", m.o.Directory, "error", reply.Clean(err.Error(), maxProblem),
		"failures", n.failures, "again", n.next, "do", m.advice(n, err),
	}
	if n.held == nil {
		m.log.Error("no TLS certificate from the ACME server", args...)
		return
	}
	m.log.Warn("TLS certificate not renewed by the ACME server, the old one stays in use",
		append(args, "expires", n.held.leaf.NotAfter)...)
}

func (m *manager) advice(n *managed, err error) string {
	var network *net.OpError
	var unknown *net.DNSError
	if errors.As(err, &network) || errors.As(err, &unknown) {
		return "see that this host can reach the directory's address; it is tried again by itself"
	}
	if m.http != nil {
		return "see that http://" + n.name + "/.well-known/acme-challenge/ leads to " + m.http.Addr().String() +
			" on this host from everywhere (DNS, firewall, port 80)"
	}
	return "see that " + n.name + " port 443 leads to the listener at " + m.o.TLSALPN + " from everywhere"
}

// askHint asks the server when it would like a renewal (RFC 9773): it may know
// of a revocation to come. What it says can put a renewal off only until a
// sixth of the certificate's life is left.
func (m *manager) askHint(ctx context.Context, n *managed) {
	now := m.s.o.Now()
	if now.Before(n.hint) || !now.Before(n.renew) || ctx.Err() != nil {
		return
	}
	n.hint = now.Add(6 * time.Hour)
	limited, cancel := context.WithTimeout(ctx, hintTimeout)
	defer cancel()
	info, err := m.issuer.GetRenewalInfo(limited, certmagic.Certificate{Certificate: n.held.cert})
	if err != nil || info.SelectedTime.IsZero() {
		m.log.Debug("no renewal hint from the ACME server", "name", n.name, "error", err)
		return
	}
	leaf := n.held.leaf
	latest := leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 6)
	if n.renew = info.SelectedTime; n.renew.After(latest) {
		n.renew = latest
	}
	m.log.Debug("renewal hint from the ACME server", "name", n.name, "renew", n.renew)
}

func (m *manager) close() error {
	if m.cache != nil {
		m.cache.Stop()
	}
	if m.http != nil {
		if err := m.http.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	return nil
}
