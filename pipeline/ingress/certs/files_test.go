package certs_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/certs"
)

// TestSNI is the table of names.
func TestSNI(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	pairs := []certs.Pair{
		a.pair(t, dir, "1", leaf{serial: 1, names: []string{"mx.example.org", "mx2.example.org"}}),
		a.pair(t, dir, "2", leaf{serial: 2, names: []string{"mail.example.net", "*.example.net"}}),
		a.pair(t, dir, "3", leaf{serial: 3, names: []string{"Special.Example.NET"}}),
		a.pair(t, dir, "4", leaf{serial: 4, names: []string{"*.b.example.net"}}),
	}
	own := a.pair(t, dir, "9", leaf{serial: 9, names: []string{"submission.example.org"}})
	s := open(t, certs.Options{Pairs: pairs})
	config := configure(t, s, certs.Policy{})
	listener := configure(t, s, certs.Policy{Pairs: []certs.Pair{own}})
	for name, want := range map[string]int64{
		"":                    1,
		"mx.example.org":      1,
		"MX2.Example.Org":     1,
		"mail.example.net":    2,
		"other.example.net":   2,
		"special.example.net": 3,
		"b.example.net":       2,
		"a.b.example.net":     4,
		"x.a.b.example.net":   1, // a wildcard is for one label
		"example.net":         1,
		"unknown.invalid":     1,
		"localhost":           1,
	} {
		if got := serial(t, config, name); got != want {
			t.Errorf("%q gets certificate %d, want %d", name, got, want)
		}
		if got := serial(t, listener, name); got != 9 {
			t.Errorf("%q gets certificate %d from the listener with its own", name, got)
		}
	}
	if n := len(s.Expires()); n != 5 {
		t.Errorf("%d certificates listed", n)
	}
}

// TestKeyChoice gives each client a certificate that it can check.
func TestKeyChoice(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	rsa := a.pair(t, dir, "rsa", leaf{names: []string{"mx.example.org"}, rsa: true})
	ec := a.pair(t, dir, "ec", leaf{names: []string{"mx.example.org"}})
	onlyEC := a.pair(t, dir, "only", leaf{names: []string{"ec.example.org"}})
	old := a.pair(t, dir, "old", leaf{names: []string{"mx.example.org"}, notAfter: time.Now().Add(-time.Hour)})
	for name, tc := range map[string]struct {
		pairs  []certs.Pair
		sni    string
		client *tls.Config
		want   x509.PublicKeyAlgorithm
	}{
		"TLS 1.3":                     {[]certs.Pair{rsa, ec}, "mx.example.org", &tls.Config{}, x509.ECDSA},
		"TLS 1.2":                     {[]certs.Pair{rsa, ec}, "mx.example.org", &tls.Config{MaxVersion: tls.VersionTLS12}, x509.ECDSA},
		"RSA ciphers":                 {[]certs.Pair{ec, rsa}, "mx.example.org", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}, x509.RSA},
		"RSA ciphers, unknown name":   {[]certs.Pair{ec, rsa}, "x.invalid", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}, x509.RSA},
		"RSA ciphers, ECDSA name":     {[]certs.Pair{rsa, onlyEC}, "ec.example.org", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}, x509.RSA},
		"TLS 1.0":                     {[]certs.Pair{rsa, ec}, "mx.example.org", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}, x509.ECDSA},
		"the one in force":            {[]certs.Pair{old, rsa}, "mx.example.org", &tls.Config{}, x509.RSA},
		"expired is better than none": {[]certs.Pair{old}, "mx.example.org", &tls.Config{}, x509.ECDSA},
	} {
		s := open(t, certs.Options{Pairs: tc.pairs})
		tc.client.InsecureSkipVerify, tc.client.ServerName = true, tc.sni
		_, c, err := shake(configure(t, s, certs.Policy{MinVersion: "tls1.0"}), tc.client)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := c.PeerCertificates[0].PublicKeyAlgorithm; got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// TestBrokenPairs: what is wrong is told at the start, with what to do; and
// later the old pair stays in use, told once.
func TestBrokenPairs(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue(t, leaf{names: []string{"mx.example.org"}})
	_, otherKey := a.issue(t, leaf{names: []string{"mx.example.org"}})
	der, _ := pem.Decode(cert)
	locked := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{0x30, 0}})
	huge := bytes.Repeat([]byte("#\n"), 1<<20)
	for name, tc := range map[string]struct {
		cert, key []byte
		want      string
	}{
		"truncated key":         {cert, key[:len(key)/2], "no whole private key in PEM (it may be cut short)"},
		"empty key":             {cert, nil, "the key's file is empty"},
		"key of another":        {cert, otherKey, "the key belongs to another certificate"},
		"passphrase":            {cert, locked, "has a passphrase"},
		"certificate for key":   {cert, cert, "no whole private key"},
		"truncated":             {cert[:len(cert)/2], key, "no whole certificate in PEM (it may be cut short, or in DER)"},
		"empty certificate":     {[]byte("\n"), key, "the certificate's file is empty"},
		"DER":                   {der.Bytes, key, "openssl x509 -inform der"},
		"chain upside down":     {append(a.pem(), cert...), key, "certificate number 2 of the file: the server's own certificate must come first"},
		"no certificate at all": {huge, key, "has more than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, log, clock := t.TempDir(), new(journal), newClock()
			p := a.pair(t, dir, "mx", leaf{serial: 5, names: []string{"mx.example.org"}})
			s := open(t, certs.Options{Pairs: []certs.Pair{p}, Log: log.logger(), Now: clock.now, Poll: 5 * time.Second})
			config := configure(t, s, certs.Policy{})
			put(t, p.Cert, tc.cert)
			put(t, p.Key, tc.key)

			_, err := certs.New(certs.Options{Pairs: []certs.Pair{p}})
			for _, want := range []string{tc.want, "postern.toml:7: certificate " + p.Cert + " with key " + p.Key + ": "} {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("at the start: %v\nwant %s", err, want)
				}
			}
			for look := range 4 {
				clock.add(6 * time.Second)
				if got := serial(t, config, "mx.example.org"); got != 5 {
					t.Errorf("certificate %d", got)
				}
				if n := len(log.lines("TLS certificate not replaced")); n != min(look, 1) {
					t.Errorf("told %d times after look %d", n, look+1)
				}
			}
			if err := s.Reload(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Reload: %v", err)
			}
			if n := len(log.lines("TLS certificate not replaced")); n != 1 {
				t.Errorf("told %d times", n)
			}

			a.pair(t, dir, "mx", leaf{serial: 6, names: []string{"mx.example.org"}})
			if err := s.Reload(); err != nil {
				t.Error(err)
			}
			if got := serial(t, config, "mx.example.org"); got != 6 {
				t.Errorf("after the repair certificate %d", got)
			}
		})
	}
}

// TestPickedUp: a handshake sees a new pair, but does not look too often, and
// half of a change is no change and no noise.
func TestPickedUp(t *testing.T) {
	a := newAuthority(t)
	dir, log, clock := t.TempDir(), new(journal), newClock()
	names := []string{"mx.example.org"}
	p := a.pair(t, dir, "mx", leaf{serial: 1, names: names})
	s := open(t, certs.Options{Pairs: []certs.Pair{p}, Log: log.logger(), Now: clock.now, Poll: 5 * time.Second})
	config := configure(t, s, certs.Policy{})

	cert, key := a.issue(t, leaf{serial: 2, names: names})
	put(t, p.Cert, cert)
	clock.add(time.Second)
	if got := serial(t, config, ""); got != 1 {
		t.Errorf("looked after a second: certificate %d", got)
	}
	clock.add(5 * time.Second)
	if got := serial(t, config, ""); got != 1 {
		t.Errorf("half of a change: certificate %d", got)
	}
	put(t, p.Key, key)
	clock.add(5 * time.Second)
	if got := serial(t, config, ""); got != 2 {
		t.Errorf("whole change: certificate %d", got)
	}
	if len(log.lines("not replaced")) != 0 || len(log.lines("TLS certificate replaced")) != 1 {
		t.Errorf("log: %s", log.lines(""))
	}

	// Written over in place, same length and within the file system's tick.
	for i := int64(3); i < 8; i++ {
		cert, key := a.issue(t, leaf{serial: i, names: names, rsa: true})
		for name, text := range map[string][]byte{p.Cert: cert, p.Key: key} {
			if err := os.WriteFile(name, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		clock.add(5 * time.Second)
		if got := serial(t, config, ""); got != i {
			t.Errorf("written over: certificate %d, want %d", got, i)
		}
	}

	if err := os.Remove(p.Key); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err == nil || !strings.Contains(err.Error(), "put the file there, or correct its name") {
		t.Errorf("missing: %v", err)
	}
	if got := serial(t, config, ""); got != 7 {
		t.Errorf("missing key: certificate %d", got)
	}
}

// asNobody runs f without the right to read what is root's.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f() // the files have mode 0: not even ours
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := syscall.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// TestRootOnly: a pair read before root was dropped is used on, the failing
// reload says what to do, and a new configuration takes the pair over.
func TestRootOnly(t *testing.T) {
	a := newAuthority(t)
	dir, log := t.TempDir(), new(journal)
	p := a.pair(t, dir, "mx", leaf{serial: 1, names: []string{"mx.example.org"}})
	s := open(t, certs.Options{Pairs: []certs.Pair{p}, Log: log.logger()})
	config := configure(t, s, certs.Policy{})
	a.pair(t, dir, "mx", leaf{serial: 2, names: []string{"mx.example.org"}})
	if err := os.Chmod(p.Key, 0); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		err := s.Reload()
		if err == nil || !strings.Contains(err.Error(), "permission denied") || !strings.Contains(err.Error(), "restart postern, which reads the pair before it gives up root") {
			t.Errorf("Reload: %v", err)
		}
		if _, err := certs.New(certs.Options{Pairs: []certs.Pair{p}}); err == nil {
			t.Error("a first start without the right to read")
		}
		next, err := certs.New(certs.Options{Pairs: []certs.Pair{p}, From: s, Log: log.logger()})
		if err != nil {
			t.Error(err)
			return
		}
		defer next.Close()
		c, err := next.Config(certs.Policy{Pairs: []certs.Pair{p}})
		if err != nil {
			t.Error(err)
			return
		}
		if got := serial(t, c, ""); got != 1 {
			t.Errorf("taken over: certificate %d", got)
		}
	})
	if got := serial(t, config, ""); got != 1 {
		t.Errorf("certificate %d", got)
	}
	if len(log.lines("TLS certificate not replaced")) != 1 {
		t.Errorf("log: %s", log.lines(""))
	}
	// The administrator follows the advice; no time in the file changes.
	if err := os.Chmod(p.Key, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Error(err)
	}
	if got := serial(t, config, ""); got != 2 {
		t.Errorf("readable again: certificate %d", got)
	}
}

// TestExpiry: each threshold is told once, and not to short-lived certificates.
func TestExpiry(t *testing.T) {
	a := newAuthority(t)
	dir, log, clock := t.TempDir(), new(journal), newClock()
	end := clock.now().Add(20 * 24 * time.Hour)
	pairs := []certs.Pair{
		a.pair(t, dir, "long", leaf{names: []string{"long.example.org"}, notAfter: end, life: 90 * 24 * time.Hour}),
		a.pair(t, dir, "short", leaf{names: []string{"short.example.org"}, notAfter: end, life: 6 * 24 * time.Hour}),
	}
	s := open(t, certs.Options{Pairs: pairs, Log: log.logger(), Now: clock.now})
	for _, tc := range []struct {
		left        time.Duration
		long, short int
	}{
		{15, 0, 0}, {14, 1, 0}, {13, 1, 0}, {7, 2, 0}, {6, 2, 0}, {2, 2, 0}, {1, 3, 1}, {0, 4, 2}, {-3, 4, 2},
	} {
		clock.add(end.Add(-tc.left * 24 * time.Hour).Sub(clock.now()))
		if err := s.Reload(); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]int{"long.example.org": tc.long, "short.example.org": tc.short} {
			if got := log.lines("names=" + name); len(got) != want {
				t.Errorf("%d days left, %s: told %d times, want %d: %s", tc.left, name, len(got), want, got)
			}
		}
	}
	if n := len(log.lines("has expired, senders that check it will not deliver")); n != 2 {
		t.Errorf("%d lines of the end", n)
	}
	for _, e := range s.Expires() {
		if !e.NotAfter.Equal(end.Truncate(time.Second)) || e.Key != "ECDSA" || !strings.HasPrefix(e.Source, dir) || len(e.Names) != 1 {
			t.Errorf("%+v", e)
		}
	}
	already := new(journal)
	open(t, certs.Options{Pairs: pairs[:1], Log: already.logger(), Now: clock.now})
	if len(already.lines("has expired")) != 1 || len(already.lines("level=ERROR")) != 1 {
		t.Errorf("expired at the start: %s", already.lines(""))
	}
}

// TestSelfSigned: made once, kept, and its key outlives another host name.
func TestSelfSigned(t *testing.T) {
	state := t.TempDir()
	give := func(hostname string, now time.Time) *x509.Certificate {
		t.Helper()
		s := open(t, certs.Options{Fallback: certs.FallbackSelfSigned, Hostname: hostname, State: state, Now: func() time.Time { return now }})
		if !s.Ready(certs.Policy{}) {
			t.Error("not ready")
		}
		_, c, err := shake(configure(t, s, certs.Policy{}), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		return c.PeerCertificates[0]
	}
	first := give("MX.example.org", time.Now())
	if err := first.VerifyHostname("mx.example.org"); err != nil || first.PublicKeyAlgorithm != x509.ECDSA {
		t.Error(err, first.PublicKeyAlgorithm)
	}
	if !first.Equal(give("mx.example.org", time.Now())) {
		t.Error("another certificate after a restart")
	}
	for name, other := range map[string]*x509.Certificate{
		"name": give("mx2.example.org", time.Now()),
		"end":  give("mx2.example.org", first.NotAfter.Add(-29*24*time.Hour)),
	} {
		if other.Equal(first) || !bytes.Equal(other.RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
			t.Errorf("%s: the same certificate, or another key", name)
		}
	}
	entries, err := os.ReadDir(state)
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	if fi, err := entries[0].Info(); err != nil || fi.Mode().Perm() != 0o600 {
		t.Error(fi.Mode(), err)
	}
	put(t, state+"/"+entries[0].Name(), []byte("rubbish"))
	if _, err := certs.New(certs.Options{Fallback: "self-signed", Hostname: "mx.example.org", State: state}); err == nil || !strings.Contains(err.Error(), "or remove the file and a new one is made") {
		t.Errorf("rubbish: %v", err)
	}
	if _, err := certs.New(certs.Options{Fallback: "self-signed"}); err == nil {
		t.Error("without name and folder")
	}
}
