package certs_test

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/ingress/certs"
)

// TestVersions tries every version against every policy.
func TestVersions(t *testing.T) {
	a := newAuthority(t)
	s := open(t, certs.Options{Pairs: []certs.Pair{a.pair(t, t.TempDir(), "mx", leaf{names: []string{"mx.example.org"}})}})
	all := []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13}
	names := []string{"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}
	for _, tc := range []struct {
		minimum string
		lowest  int
	}{{"", 2}, {"tls1.0", 0}, {"tls1.1", 1}, {"tls1.2", 2}, {"tls1.3", 3}} {
		policy := certs.Policy{MinVersion: tc.minimum}
		config := configure(t, s, policy)
		for i, v := range all {
			_, c, err := shake(config, &tls.Config{RootCAs: a.pool, ServerName: "mx.example.org", MinVersion: v, MaxVersion: v})
			if ok := err == nil; ok != (i >= tc.lowest) {
				t.Errorf("minimum %q, client %s: %v", tc.minimum, names[i], err)
			} else if ok && !strings.HasPrefix(certs.Describe(c), names[i]+" TLS_") {
				t.Errorf("minimum %q, client %s: described as %q", tc.minimum, names[i], certs.Describe(c))
			}
		}
		offer, err := s.Offered(policy)
		if err != nil || !slices.Equal(offer.Versions, names[tc.lowest:]) {
			t.Errorf("minimum %q: offered %v, %v", tc.minimum, offer.Versions, err)
		}
	}
}

// TestOfferedIsTrue tries every suite in every version up to TLS 1.2 and
// compares what the handshakes say with what is listed.
func TestOfferedIsTrue(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	ec := a.pair(t, dir, "ec", leaf{names: []string{"mx.example.org"}})
	rsa := a.pair(t, dir, "rsa", leaf{names: []string{"mx.example.org"}, rsa: true})
	for name, tc := range map[string]struct {
		pairs  []certs.Pair
		policy certs.Policy
	}{
		"default, both":   {[]certs.Pair{ec, rsa}, certs.Policy{}},
		"default, RSA":    {[]certs.Pair{rsa}, certs.Policy{}},
		"default, ECDSA":  {[]certs.Pair{ec}, certs.Policy{}},
		"old, both":       {[]certs.Pair{ec, rsa}, certs.Policy{MinVersion: "tls1.0"}},
		"chosen":          {[]certs.Pair{ec, rsa}, certs.Policy{Ciphers: []string{"ecdhe-rsa-aes128-gcm-sha256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"}}},
		"chosen, ancient": {[]certs.Pair{rsa}, certs.Policy{MinVersion: "tls1.0", Ciphers: []string{"AES128-SHA", "DES-CBC3-SHA", "ECDHE-RSA-AES256-SHA"}}},
		"newest only":     {[]certs.Pair{ec}, certs.Policy{MinVersion: "tls1.3"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, certs.Options{Pairs: tc.pairs})
			config := configure(t, s, tc.policy)
			offer, err := s.Offered(tc.policy)
			if err != nil {
				t.Fatal(err)
			}
			for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
				for id, v := range map[uint16]string{tls.VersionTLS10: "TLSv1", tls.VersionTLS11: "TLSv1.1", tls.VersionTLS12: "TLSv1.2"} {
					_, c, err := shake(config, &tls.Config{RootCAs: a.pool, ServerName: "mx.example.org", MinVersion: id, MaxVersion: id, CipherSuites: []uint16{suite.ID}})
					got := err == nil && c.CipherSuite == suite.ID
					listed := slices.ContainsFunc(offer.Ciphers, func(c certs.Cipher) bool { return c.Name == suite.Name && slices.Contains(c.Versions, v) })
					if got != listed {
						t.Errorf("%s with %s: handshake %v (%v), listed %v", suite.Name, v, got, err, listed)
					}
				}
			}
			for _, c := range offer.Ciphers {
				if c.Insecure && tc.policy.Ciphers == nil {
					t.Errorf("%s is insecure and offered by default", c.Name)
				}
			}
			if !strings.Contains(offer.String(), "TLSv1.3: ") || !strings.Contains(offer.String(), " TLS_AES_128_GCM_SHA256") {
				t.Errorf("offer reads %q", offer)
			}
		})
	}
}

// TestPolicyErrors is what an administrator reads.
func TestPolicyErrors(t *testing.T) {
	a := newAuthority(t)
	rsa := a.pair(t, t.TempDir(), "rsa", leaf{names: []string{"mx.example.org"}, rsa: true})
	s := open(t, certs.Options{Pairs: []certs.Pair{rsa}})
	for _, tc := range []struct {
		policy certs.Policy
		want   string
	}{
		{certs.Policy{MinVersion: "tls12"}, `postern.toml:3: TLS version "tls12" is unknown, did you mean "tls1.2"?: write one of tls1.0, tls1.1, tls1.2, tls1.3`},
		{certs.Policy{Ciphers: []string{"ECDHE-RSA-AES128-GCM-SHA265"}}, `did you mean "ECDHE-RSA-AES128-GCM-SHA256"?`},
		{certs.Policy{Ciphers: []string{"TLS_ECDHE_RSA_WITH_AES128_GCM_SHA256"}}, `did you mean "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"?`},
		{certs.Policy{Ciphers: []string{"TLS_AES_128_GCM_SHA256"}}, "belongs to TLS 1.3"},
		{certs.Policy{Ciphers: []string{"ECDHE-ECDSA-AES128-GCM-SHA256"}}, "none of the ciphers works with the certificate's RSA key"},
		{certs.Policy{ClientCerts: "requests"}, `did you mean "request"?`},
		{certs.Policy{ClientCerts: "request", ClientCAs: "/nonexistent/ca.pem"}, "/nonexistent/ca.pem"},
		{certs.Policy{ClientCerts: "request", ClientCAs: rsa.Key}, "has no certificate in PEM"},
		{certs.Policy{Pairs: []certs.Pair{{Cert: "/nonexistent/a.pem", Key: rsa.Key, Where: "postern.toml:9"}}}, "postern.toml:9: certificate /nonexistent/a.pem"},
	} {
		tc.policy.Where = "postern.toml:3"
		_, err := s.Config(tc.policy)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "postern.toml:3: ") {
			t.Errorf("%+v:\n got %v\nwant %s", tc.policy, err, tc.want)
		}
	}
	if _, err := open(t, certs.Options{}).Config(certs.Policy{}); err == nil || !strings.Contains(err.Error(), "TLS without a certificate") {
		t.Errorf("no certificate at all: %v", err)
	}
	if _, err := certs.New(certs.Options{Fallback: "selfsigned"}); err == nil || !strings.Contains(err.Error(), `did you mean "self-signed"?`) {
		t.Errorf("fallback: %v", err)
	}
}

// TestALPNIsIgnored lets clients that offer protocols of their own in.
func TestALPNIsIgnored(t *testing.T) {
	a := newAuthority(t)
	s := open(t, certs.Options{Pairs: []certs.Pair{a.pair(t, t.TempDir(), "mx", leaf{names: []string{"mx.example.org"}})}})
	_, c, err := shake(configure(t, s, certs.Policy{}), &tls.Config{RootCAs: a.pool, ServerName: "mx.example.org", NextProtos: []string{"smtp"}})
	if err != nil || c.NegotiatedProtocol != "" {
		t.Errorf("%q, %v", c.NegotiatedProtocol, err)
	}
}

// TestTickets resumes sessions, also after the certificate was replaced.
func TestTickets(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	l := leaf{names: []string{"mx.example.org"}}
	s := open(t, certs.Options{Pairs: []certs.Pair{a.pair(t, dir, "mx", l)}})
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := configure(t, s, certs.Policy{})
		client := &tls.Config{RootCAs: a.pool, ServerName: "mx.example.org", MaxVersion: v, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		for i := range 3 {
			if i == 2 {
				a.pair(t, dir, "mx", l)
				if err := s.Reload(); err != nil {
					t.Fatal(err)
				}
			}
			if _, c, err := shake(config, client); err != nil || c.DidResume != (i > 0) {
				t.Errorf("%s, handshake %d: resumed %v, %v", tls.VersionName(v), i, c.DidResume, err)
			}
		}
	}
}
