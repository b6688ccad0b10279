package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Whether clients are asked for certificates.
const (
	ClientNone    = "none"
	ClientRequest = "request"
	ClientRequire = "require"
)

// Policy is what one listener wants of TLS. The zero value is TLS 1.2 and 1.3
// with the ciphers that crypto/tls thinks safe, and the store's certificates.
type Policy struct {
	// Where is the listener's place in the configuration, for messages.
	Where string
	// Pairs are certificates for this listener only, in the place of the
	// store's; the first is the default.
	Pairs []Pair
	// MinVersion is the lowest version: "tls1.0", "tls1.1", "tls1.2" (the
	// default) or "tls1.3". The low ones are for port 25, where the choice is
	// between them and plain text; RFC 8996 forbids them elsewhere.
	MinVersion string
	// Ciphers are the suites for versions up to TLS 1.2, by the names of IANA or
	// OpenSSL; nil leaves the choice to crypto/tls. Those of TLS 1.3 cannot be
	// chosen. The order does not count.
	Ciphers []string
	// ClientCerts says whether clients are asked for a certificate: ClientNone
	// (the default), ClientRequest, which accepts any (Verify tells the good
	// ones), or ClientRequire, which ends the handshake without one that
	// verifies and is for submission, not for port 25.
	ClientCerts string
	// ClientCAs is a PEM file of the authorities that clients' certificates are
	// checked against; "" is the system's.
	ClientCAs string
}

// version is a protocol version and its names: in the configuration, and in
// Received fields, as other MTAs write it.
type version struct {
	id           uint16
	config, name string
}

var versions = [...]version{
	{tls.VersionTLS10, "tls1.0", "TLSv1"},
	{tls.VersionTLS11, "tls1.1", "TLSv1.1"},
	{tls.VersionTLS12, "tls1.2", "TLSv1.2"},
	{tls.VersionTLS13, "tls1.3", "TLSv1.3"},
}

// Config makes a listener's TLS configuration. It reads the listener's pairs,
// so call it while they can be read. The configuration follows changes of the
// files and of what ACME brings; make it once for a listener, not for a
// connection, because session tickets belong to it.
func (s *Store) Config(p Policy) (*tls.Config, error) {
	config, shelf, err := s.build(p)
	if err != nil {
		if p.Where != "" {
			err = fmt.Errorf("%s: %w", p.Where, err)
		}
		return nil, err
	}
	if shelf != s.main {
		s.mu.Lock()
		s.others = append(s.others, shelf)
		s.mu.Unlock()
	}
	return config, nil
}

func (s *Store) build(p Policy) (*tls.Config, *shelf, error) {
	shelf := s.main
	if len(p.Pairs) > 0 {
		shelf = s.newShelf()
		if err := shelf.open(p.Pairs, s.inherited); err != nil {
			return nil, nil, err
		}
	} else if len(shelf.index.Load().all) == 0 && s.acme == nil {
		return nil, nil, errors.New(`TLS without a certificate: name a certificate and a key, set up ACME, or set the fallback to "self-signed"`)
	}
	low, err := minVersion(p.MinVersion)
	if err != nil {
		return nil, nil, err
	}
	suites, err := cipherSuites(p.Ciphers)
	if err != nil {
		return nil, nil, err
	}
	config := &tls.Config{
		MinVersion:     low,
		CipherSuites:   suites,
		GetCertificate: shelf.certificate,
		Time:           s.o.Now,
	}
	if err := clientAuth(config, p); err != nil {
		return nil, nil, err
	}
	if err := s.usable(config, shelf); err != nil {
		return nil, nil, err
	}
	if s.acme != nil {
		s.acme.answer(config)
	}
	return config, shelf, nil
}

func minVersion(name string) (uint16, error) {
	if name == "" {
		return tls.VersionTLS12, nil
	}
	var names []string
	for _, v := range versions {
		if v.config == name {
			return v.id, nil
		}
		names = append(names, v.config)
	}
	return 0, fmt.Errorf("TLS version %q is unknown%s: write one of %s", name, didYouMean(name, names), strings.Join(names, ", "))
}

// cipherSuites turns names into numbers.
func cipherSuites(names []string) ([]uint16, error) {
	if len(names) == 0 {
		return nil, nil
	}
	known := make(map[string]uint16)
	var candidates []string
	for _, suite := range allSuites() {
		if isTLS13(suite) {
			continue
		}
		for _, n := range [...]string{suite.Name, opensslName(suite.Name)} {
			known[n] = suite.ID
			candidates = append(candidates, n)
		}
	}
	var ids []uint16
	for _, n := range names {
		id, ok := known[strings.ToUpper(n)]
		if !ok {
			return nil, unknownSuite(n, candidates)
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func unknownSuite(name string, candidates []string) error {
	for _, suite := range tls.CipherSuites() {
		if isTLS13(suite) && strings.EqualFold(suite.Name, name) {
			return fmt.Errorf("cipher %s belongs to TLS 1.3, whose suites are always on and cannot be chosen: take it out of the list", suite.Name)
		}
	}
	return fmt.Errorf("cipher %q is unknown or not to be had%s: postern check lists the names", name, didYouMean(name, candidates))
}

func allSuites() []*tls.CipherSuite {
	return append(tls.CipherSuites(), tls.InsecureCipherSuites()...)
}

func isTLS13(c *tls.CipherSuite) bool { return slices.Contains(c.SupportedVersions, tls.VersionTLS13) }

// opensslName is how OpenSSL, and so most MTAs' documentation, calls a suite:
// it leaves out TLS, WITH, the mode CBC and the exchange RSA, and writes
// AES128 and 3DES (DES-CBC3) in one.
func opensslName(iana string) string {
	kex, rest, _ := strings.Cut(strings.TrimPrefix(iana, "TLS_"), "_WITH_")
	rest = strings.NewReplacer("AES_128", "AES128", "AES_256", "AES256", "_CBC_", "_", "3DES_EDE_CBC", "DES-CBC3", "RC4_128", "RC4").Replace(rest)
	if strings.HasPrefix(rest, "CHACHA20_POLY1305") {
		rest = "CHACHA20_POLY1305"
	}
	if kex != "RSA" {
		rest = kex + "_" + rest
	}
	return strings.ReplaceAll(rest, "_", "-")
}

func clientAuth(config *tls.Config, p Policy) error {
	switch p.ClientCerts {
	case "", ClientNone:
		return nil
	case ClientRequest:
		config.ClientAuth = tls.RequestClientCert
	case ClientRequire:
		config.ClientAuth = tls.RequireAndVerifyClientCert
	default:
		return fmt.Errorf("client certificates %q is unknown%s: write %q, %q or %q", p.ClientCerts,
			didYouMean(p.ClientCerts, []string{ClientNone, ClientRequest, ClientRequire}), ClientNone, ClientRequest, ClientRequire)
	}
	if p.ClientCAs == "" {
		return nil
	}
	pool, err := readPool(p.ClientCAs)
	config.ClientCAs = pool
	return err
}

// readPool reads a file of authorities.
func readPool(name string) (*x509.CertPool, error) {
	text, err := readFile(name, maxCertFile)
	if err != nil {
		return nil, fmt.Errorf("authorities' certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate in PEM: put the authorities' certificates there", name)
	}
	return pool, nil
}

// usable refuses a list of ciphers that no certificate can be used with.
func (s *Store) usable(config *tls.Config, shelf *shelf) error {
	all := shelf.index.Load().all
	if config.CipherSuites == nil || config.MinVersion >= tls.VersionTLS13 || len(all) == 0 {
		return nil
	}
	for _, h := range all {
		for _, id := range config.CipherSuites {
			if forElliptic(tls.CipherSuiteName(id)) == h.elliptic {
				return nil
			}
		}
	}
	return fmt.Errorf("none of the ciphers works with the certificate's %s key: add some whose names have %s",
		all[0].keyType(), map[bool]string{true: "ECDSA", false: "RSA"}[all[0].elliptic])
}

// forElliptic reports whether a suite up to TLS 1.2 needs a certificate with an
// elliptic key (RFC 8422 §2), RSA otherwise.
func forElliptic(suite string) bool { return strings.Contains(suite, "_ECDSA_") }
