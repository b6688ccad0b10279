package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
)

// maxSubject bounds the client's name in a description, in bytes.
const maxSubject = 128

// Describe says in one short line of plain ASCII how a connection is
// encrypted, for Session.TLS, Received fields and the log: version and cipher,
// and the subject of a client's certificate if it was verified ("TLSv1.3
// TLS_AES_128_GCM_SHA256, client CN=mx.example.org"). It has no parentheses,
// quotes, semicolons or backslashes, so that it may stand in a comment (RFC
// 5322 §3.2.2). It is "" before the handshake.
func Describe(cs tls.ConnectionState) string {
	if !cs.HandshakeComplete {
		return ""
	}
	text := versionName(cs.Version) + " " + tls.CipherSuiteName(cs.CipherSuite)
	if len(cs.VerifiedChains) == 0 || len(cs.VerifiedChains[0]) == 0 {
		return text
	}
	if subject := subjectOf(cs.VerifiedChains[0][0]); subject != "" {
		text += ", client " + subject
	}
	return text
}

func versionName(id uint16) string {
	for _, v := range versions {
		if v.id == id {
			return v.name
		}
	}
	return fmt.Sprintf("TLS-%04x", id)
}

// subjectOf is a certificate's subject, or the first name it is for, cleaned
// and cut.
func subjectOf(c *x509.Certificate) string {
	subject := c.Subject.String()
	if subject == "" && len(c.DNSNames) > 0 {
		subject = c.DNSNames[0]
	}
	return cleanSubject(subject)
}

// cleanSubject leaves of a name what cannot end a comment, a field or a word of
// the log.
func cleanSubject(s string) string {
	if len(s) > 4*maxSubject {
		s = s[:4*maxSubject]
	}
	s = strings.Map(func(r rune) rune {
		if strings.ContainsRune("()<>[]{}\"'`;\\&|$", r) {
			return '?'
		}
		return r
	}, s)
	return strings.TrimSpace(reply.Clean(s, maxSubject))
}

// Verify checks the certificate that a client gave because it was requested,
// against config.ClientCAs (the system's authorities if there are none), and
// returns the state with VerifiedChains set if it holds. A state without a
// certificate, or with one that does not hold, comes back as it is: a stranger
// may present anything.
func Verify(config *tls.Config, cs tls.ConnectionState) tls.ConnectionState {
	if config.ClientAuth != tls.RequestClientCert || len(cs.PeerCertificates) == 0 || len(cs.VerifiedChains) > 0 {
		return cs
	}
	o := x509.VerifyOptions{
		Roots:         config.ClientCAs,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if config.Time != nil {
		o.CurrentTime = config.Time()
	}
	for _, c := range cs.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	if chains, err := cs.PeerCertificates[0].Verify(o); err == nil {
		cs.VerifiedChains = chains
	}
	return cs
}
