package smtp

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// TLSLevel is how much TLS a connection must have.
type TLSLevel uint8

// The levels. From Required on, a message waits rather than go without.
const (
	// Opportunistic takes what TLS there is, with any certificate. Where the
	// handshake fails the message goes in clear, as it would if TLS had not been
	// offered (RFC 7435).
	Opportunistic TLSLevel = iota
	// NoTLS does not use TLS.
	NoTLS
	// Required is TLS with any certificate.
	Required
	// Verified is TLS with a certificate that is valid, from somebody in
	// TLSPolicy.Roots, and for one of TLSPolicy.Names.
	Verified
	// Fingerprint is TLS with a certificate in TLSPolicy.Fingerprints, whatever else
	// it says.
	Fingerprint
)

var levelNames = [...]string{"opportunistic", "none", "required", "verified", "fingerprint"}

// String is the level's word in logs and in the configuration.
func (l TLSLevel) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return "invalid"
}

// ParseTLSLevel is the inverse of String.
func ParseTLSLevel(s string) (TLSLevel, bool) {
	for l, name := range levelNames {
		if s == name {
			return TLSLevel(l), true
		}
	}
	return 0, false
}

// TLSPolicy says how the connections to a host are protected. The zero policy is
// opportunistic.
type TLSPolicy struct {
	Level TLSLevel
	// Implicit begins with TLS, as port 465 has it (RFC 8314 §3.3), so there is no
	// going back to clear. It means nothing with NoTLS.
	Implicit bool
	// Names are those of which a Verified certificate must have one; one that begins
	// with a dot stands for all names below it. None: the host's name, of which only
	// the DNS knows that it belongs to the domain.
	Names []string
	// Roots are whom a Verified certificate may come from; nil: whom the system
	// trusts.
	Roots *x509.CertPool
	// Fingerprints are the SHA-256 of certificates or of their public keys
	// (SubjectPublicKeyInfo), DER.
	Fingerprints [][sha256.Size]byte
}

// Peer is a host that is about to be connected to.
type Peer struct {
	// Domain is that of the recipients, Host the name of the mail exchanger or the
	// route, "" if there is only an address.
	Domain, Host string
	// Authentic is set if the DNS proved that Host belongs to Domain (DNSSEC), or the
	// administrator wrote so (a route).
	Authentic bool
	// Policy is what holds without further knowledge.
	Policy TLSPolicy
}

// Assurance knows of other ways by which a domain tells how its hosts are to be
// reached: DANE (RFC 7672), MTA-STS (RFC 8461).
type Assurance interface {
	// Assure gives the policy for a peer, at least as strict as the one it has. An
	// error means that the host is not used now. It is safe for concurrent use.
	Assure(ctx context.Context, p Peer) (TLSPolicy, error)
}

// requires reports whether there must be TLS.
func (p *TLSPolicy) requires() bool { return p.Level >= Required || p.Implicit && p.Level != NoTLS }

// digest is different for policies that connections must not share.
func (p *TLSPolicy) digest() string {
	if p.Level == Opportunistic && !p.Implicit {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %t", p.Level, p.Implicit)
	switch p.Level {
	case Verified:
		fmt.Fprintf(&b, " %q %p", p.Names, p.Roots)
	case Fingerprint:
		for _, f := range p.Fingerprints {
			b.WriteString(" " + hex.EncodeToString(f[:]))
		}
	}
	return b.String()
}

// TLSState is how a connection was protected. The zero state is in clear.
type TLSState struct {
	// Version and Cipher are TLS's own numbers (crypto/tls).
	Version, Cipher uint16
	// Verified is set if the certificate is the one that the policy asks for; with a
	// policy that takes any, if it is valid and has the host's name.
	Verified bool
	// Resumed is set if an earlier session went on (a ticket).
	Resumed bool
}

// String is the state as it stands in logs, "" in clear.
func (t TLSState) String() string {
	if t.Version == 0 {
		return ""
	}
	s := strings.ReplaceAll(tls.VersionName(t.Version), " ", "") + " " + tls.CipherSuiteName(t.Cipher)
	if t.Verified {
		return s + " verified"
	}
	return s + " unverified"
}

// handshake is one attempt at TLS.
type handshake struct {
	host   string
	policy TLSPolicy
	now    func() time.Time
	wrong  error // what is wrong with the certificate, if anything
}

// config is the handshake's configuration. Verification is done here whatever the
// level is, so that it can be told; resumed sessions pass through it, too.
func (h *handshake) config(tickets tls.ClientSessionCache) *tls.Config {
	c := &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
		VerifyConnection: func(state tls.ConnectionState) error {
			if h.wrong = h.check(state); h.policy.Level >= Verified {
				return h.wrong
			}
			return nil
		},
		ClientSessionCache: tickets, Time: h.now, MinVersion: tls.VersionTLS12,
	}
	if _, err := netip.ParseAddr(h.host); err != nil {
		c.ServerName = h.host
	}
	if h.policy.Level < Verified {
		// Anything is better than nothing (RFC 7435 §3).
		c.MinVersion = tls.VersionTLS10
		for _, s := range tls.CipherSuites() {
			c.CipherSuites = append(c.CipherSuites, s.ID)
		}
		c.CipherSuites = append(c.CipherSuites, tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_CBC_SHA, tls.TLS_RSA_WITH_AES_128_CBC_SHA)
	}
	return c
}

// check says what is wrong with a server's certificate.
func (h *handshake) check(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server has no certificate")
	}
	leaf := state.PeerCertificates[0]
	if h.policy.Level == Fingerprint {
		certificate, key := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		for _, f := range h.policy.Fingerprints {
			if f == certificate || f == key {
				return nil
			}
		}
		return fmt.Errorf("the certificate has the fingerprint %x and its key %x, and neither is one of those that are wanted", certificate, key)
	}
	o := x509.VerifyOptions{Roots: h.policy.Roots, Intermediates: x509.NewCertPool(), CurrentTime: h.now()}
	for _, c := range state.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(o); err != nil {
		return err
	}
	names := h.policy.Names
	if len(names) == 0 {
		names = []string{h.host}
	}
	for _, name := range names {
		if isFor(leaf, name) {
			return nil
		}
	}
	return fmt.Errorf("the certificate is for %s, and none of %s", described(leaf), strings.Join(names, ", "))
}

// isFor reports whether a certificate is for a name, or with a dot in front, for
// one below it.
func isFor(leaf *x509.Certificate, name string) bool {
	if !strings.HasPrefix(name, ".") {
		return name != "" && leaf.VerifyHostname(name) == nil
	}
	for _, n := range leaf.DNSNames {
		if n = strings.TrimSuffix(n, "."); len(n) > len(name) && strings.EqualFold(n[len(n)-len(name):], name) {
			return true
		}
	}
	return false
}

// described names whom a certificate is for.
func described(leaf *x509.Certificate) string {
	names := leaf.DNSNames
	for _, a := range leaf.IPAddresses {
		names = append(names[:len(names):len(names)], a.String())
	}
	if len(names) == 0 {
		return "no name"
	}
	if len(names) > 5 {
		names = append(names[:5:5], "...")
	}
	return fmt.Sprintf("%q", names)
}

// state tells of a handshake that has succeeded.
func (h *handshake) state(s *tls.ConnectionState) TLSState {
	return TLSState{Version: s.Version, Cipher: s.CipherSuite, Verified: h.wrong == nil, Resumed: s.DidResume}
}

// startTLS begins TLS as the policy wants it.
func (l *link) startTLS(ctx context.Context, x *Exit, policy TLSPolicy, host string) error {
	h := &handshake{host: host, policy: policy, now: x.o.Now}
	begin := l.c.StartTLS
	if policy.Implicit {
		begin = l.c.Handshake
	}
	if err := begin(ctx, h.config(x.tickets)); err != nil {
		if h.wrong != nil && policy.Level >= Verified {
			return &wire.Error{Phase: wire.Secure, Err: fmt.Errorf("%w: %w", errCertificate, h.wrong)}
		}
		return err
	}
	l.tls = h.state(l.c.TLS())
	if h.wrong != nil {
		x.o.Log.Debug("the certificate is not verified, which the policy does not ask for", "host", host, "error", h.wrong)
	}
	return nil
}

// errCertificate: the certificate is not what the policy asks for.
var errCertificate = errors.New("the server's certificate cannot be trusted")
