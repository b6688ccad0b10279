package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/ingress/certs"
)

// TestClientCertificates: what a client presents is told only if it verifies.
func TestClientCertificates(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	cas := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(cas, a.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, certs.Options{Pairs: []certs.Pair{a.pair(t, dir, "mx", leaf{names: []string{"mx.example.org"}})}})
	load := func(cert, key []byte) []tls.Certificate {
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{c}
	}
	subject := pkix.Name{CommonName: "relay.example.com", Organization: []string{"Ex) by \"evil\"; ample"}}
	good := load(a.issue(t, leaf{client: true, subject: subject}))
	nameless := load(a.issue(t, leaf{client: true, names: []string{"relay.example.com"}}))
	forged := load(stranger.issue(t, leaf{client: true, subject: pkix.Name{CommonName: "relay.example.com"}}))
	wrongUse := load(a.issue(t, leaf{subject: pkix.Name{CommonName: "relay.example.com"}}))
	for name, tc := range map[string]struct {
		mode   string
		client []tls.Certificate
		want   string // after version and cipher
		fails  bool
	}{
		"none, good":         {"none", good, "", false},
		"request, nothing":   {"request", nil, "", false},
		"request, good":      {"request", good, ", client CN=relay.example.com,O=Ex? by ??evil???? ample", false},
		"request, by name":   {"request", nameless, ", client relay.example.com", false},
		"request, forged":    {"request", forged, "", false},
		"request, wrong use": {"request", wrongUse, "", false},
		"require, good":      {"require", nameless, ", client relay.example.com", false},
		"require, nothing":   {"require", nil, "", true},
		"require, forged":    {"require", forged, "", true},
	} {
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			config := configure(t, s, certs.Policy{ClientCerts: tc.mode, ClientCAs: cas})
			client := &tls.Config{RootCAs: a.pool, ServerName: "mx.example.org", MaxVersion: v, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}
			if tc.client != nil {
				client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tc.client[0], nil }
			}
			state, _, err := shake(config, client)
			if tc.fails {
				if err == nil {
					t.Errorf("%s, %s: handshake was made", name, tls.VersionName(v))
				}
				continue
			}
			if err != nil {
				t.Errorf("%s, %s: %v", name, tls.VersionName(v), err)
				continue
			}
			got := certs.Describe(certs.Verify(config, state))
			base := strings.Join(strings.Fields(got)[:2], " ")
			if rest := strings.TrimPrefix(got, strings.TrimSuffix(base, ",")); rest != tc.want {
				t.Errorf("%s, %s: %q, want %q", name, tls.VersionName(v), rest, tc.want)
			}
		}
	}
}

func TestDescribeUnknown(t *testing.T) {
	for _, tc := range []struct {
		state tls.ConnectionState
		want  string
	}{
		{tls.ConnectionState{}, ""},
		{tls.ConnectionState{HandshakeComplete: true, Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256}, "TLSv1.3 TLS_AES_128_GCM_SHA256"},
		{tls.ConnectionState{HandshakeComplete: true, Version: 0x0305, CipherSuite: 0x13ff}, "TLS-0305 0x13FF"},
	} {
		if got := certs.Describe(tc.state); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

// FuzzDescribe: no subject gets out of a comment, a line or its bounds.
func FuzzDescribe(f *testing.F) {
	f.Add("mx.example.org", "Example Inc.", "relay")
	f.Add("a\r\nBcc: x", "\x00(((", "\\")
	f.Add(strings.Repeat("ü(", 200), "\xff\xfe", "`$(x)`")
	f.Add("", "", "\" ; '")
	f.Fuzz(func(t *testing.T, name, organization, dns string) {
		c := &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{dns}}
		if organization != "" {
			c.Subject.Organization = []string{organization}
		}
		got := certs.Describe(tls.ConnectionState{
			HandshakeComplete: true, Version: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			VerifiedChains: [][]*x509.Certificate{{c}},
		})
		rest, ok := strings.CutPrefix(got, "TLSv1.2 TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")
		if !ok || len(rest) > len(", client ")+128 {
			t.Errorf("%q", got)
		}
		for _, b := range []byte(rest) {
			if b < 0x20 || b > 0x7e || strings.IndexByte("()<>[]{}\"'`;\\&|$", b) >= 0 {
				t.Errorf("%q has %q", got, b)
			}
		}
	})
}
