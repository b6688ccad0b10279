package config

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/rules"
)

// Outbound is the table [outbound]: how mail leaves over the network.
type Outbound struct {
	Hello    string        `toml:"hello" doc:"the name given in EHLO, where the source that mail leaves from has none of its own; it should be the one that the DNS has for our address" unset:"control/helohost, else hostname"`
	Connect  time.Duration `toml:"connect_timeout" doc:"for how long a connection may take to come about, to each address" unset:"control/timeoutconnect, else 30s"`
	Timeout  time.Duration `toml:"timeout" doc:"for how long a server may take for each answer; the one to the whole message has ten minutes at least, because shorter waits make duplicates" unset:"control/timeoutremote, else those of RFC 5321 §4.5.3.2"`
	Family   string        `toml:"family" oneof:"both|ipv4-first|ipv6-first|ipv4|ipv6" doc:"by which of IPv4 and IPv6 servers are connected to: both lets them take turns among the hosts of one preference, IPv6 first; ipv4-first and ipv6-first try all addresses of one before the other; with ipv4 or ipv6 the mail for servers without such an address waits"`
	TLSTrace bool          `toml:"tls_header" doc:"put a field X-Postern-TLS on top of what leaves by SMTP or LMTP, which says how its connection is protected: version, cipher, whether the certificate was verified, the level that was asked for, and between whom; it is never signed, because it comes to be after the last filter. The log has all of it without this"`
	EightBit string        `toml:"eight_bit" oneof:"convert|send|refuse" doc:"what becomes of a message with bytes above 127 where the server takes 7 bits only (no 8BITMIME): convert encodes its parts before we sign it (DKIM signatures of others do not outlive that), and sends what cannot be encoded, such as parts with a signature of their own, as it is; send sends all as it is; refuse encodes, and gives up what cannot be (5.6.3)"`
	Chunking bool          `toml:"chunking" doc:"send messages in chunks (BDAT) to servers that offer it"`
	Keep     time.Duration `toml:"keep" doc:"for how long a connection is kept for the next message to the same server; 0 closes it at once"`
	Wait     time.Duration `toml:"wait" doc:"for how long a call of qmail-remote (next = \"deliver\") waits for room below the limits of what is sent, before its message is put off and qmail tries again by its own schedule; it holds one of qmail's deliveries (concurrencyremote) meanwhile"`
	Messages int           `toml:"messages" min:"1" doc:"the most messages that go over one connection"`
}

// DefaultTLS is the name of the table [tls.NAME] for domains that no other has.
const DefaultTLS = "default"

// TLS is a table [tls.NAME]: how connections to the servers of some domains are
// protected.
type TLS struct {
	Domains      []string `toml:"domains" doc:"the recipients' domains; .example.org means every domain below example.org. [tls.default] has none: it is for all that no other table names"`
	Level        string   `toml:"level" oneof:"none|opportunistic|required|verified|fingerprint" doc:"none: no TLS; opportunistic: what TLS there is, with any certificate, and in clear where there is none or it does not work; required: any certificate, and mail waits where there is no TLS; verified: the certificate must be valid, and for one of names; fingerprint: it must be one of fingerprints"`
	Names        []string `toml:"names" doc:"for verified: the names of which the certificate must have one; .example.org means any below example.org" unset:"the name of the mail exchanger, which only the DNS vouches for, or of the route's host"`
	CA           string   `toml:"ca" path:"file" doc:"for verified: the certificates of those who may have signed it, PEM" unset:"the system's"`
	Fingerprints []string `toml:"fingerprints" doc:"for fingerprint: the SHA-256 of certificates or of their public keys, in hexadecimal, with colons or without, as openssl x509 -fingerprint -sha256 tells it"`

	roots        *x509.CertPool
	fingerprints [][sha256.Size]byte
}

func (t *TLS) prepare() { t.Level = "opportunistic" }

// Roots are those of CA; nil where there is none.
func (t *TLS) Roots() *x509.CertPool { return t.roots }

// SHA256 are the Fingerprints, read.
func (t *TLS) SHA256() [][sha256.Size]byte { return t.fingerprints }

// TLSOf is the table for a recipient's domain: the one that names it, or the
// nearest domain above it, else [tls.default]; nil if there is none.
func (c *Config) TLSOf(domain string) *TLS {
	domain = strings.ToLower(domain)
	if t, ok := c.tls[domain]; ok {
		return t
	}
	for at := range len(domain) {
		if domain[at] == '.' {
			if t, ok := c.tls[domain[at:]]; ok {
				return t
			}
		}
	}
	return c.TLS[DefaultTLS]
}

// tlsNeeds are the keys of [tls.NAME] that mean something at one level only.
var tlsNeeds = map[string]string{"names": "verified", "ca": "verified", "fingerprints": "fingerprint"}

func (l *loader) checkOutbound() {
	l.checkTalk()
	l.tls = map[string]*TLS{}
	for _, name := range sorted(l.TLS) {
		t, path := l.TLS[name], "tls."+name
		l.checkTLSDomains(t, name, path)
		for _, key := range sorted(tlsNeeds) {
			if at := path + "." + key; l.written(at) && t.Level != tlsNeeds[key] && !l.bad[path+".level"] {
				l.add(l.at(at), "%s is for level = %q only, and this is %s", at, tlsNeeds[key], show(t.Level))
			}
		}
		for i, n := range t.Names {
			if !validHost(strings.TrimPrefix(n, ".")) {
				l.add(l.atItem(path+".names", i), "%s.names: %s is no host name", path, show(n))
			}
		}
		l.checkFingerprints(t, path)
		if t.CA == "" || l.bad[path+".ca"] {
			continue
		}
		var err error
		if t.roots, err = readRoots(t.CA); err != nil {
			l.add(l.at(path+".ca"), "%s.ca: %v", path, err)
		}
	}
}

// checkTalk is about how we speak to servers.
func (l *loader) checkTalk() {
	seconds := func(to *time.Duration) func(int) { return func(n int) { *to = time.Duration(n) * time.Second } }
	l.controlInt("outbound.connect_timeout", "timeoutconnect", seconds(&l.Outbound.Connect))
	l.controlInt("outbound.timeout", "timeoutremote", seconds(&l.Outbound.Timeout))
	for _, x := range []struct {
		key string
		d   time.Duration
	}{{"outbound.connect_timeout", l.Outbound.Connect}, {"outbound.timeout", l.Outbound.Timeout}, {"outbound.keep", l.Outbound.Keep}, {"outbound.wait", l.Outbound.Wait}} {
		if x.d < 0 && !l.bad[x.key] {
			l.add(l.at(x.key), "%s must not be less than 0", x.key)
		}
	}
	at := l.at("outbound.hello")
	if line, ok := l.Files.First("helohost"); ok && !l.written("outbound.hello") {
		l.Outbound.Hello, at = line.Text, l.Files.at("helohost", line.No)
		l.from["outbound.hello"] = l.where(at)
	}
	if h := l.Outbound.Hello; h != "" && !validHost(h) && !l.bad["outbound.hello"] {
		if _, ok := smtp.Literal(h); !ok {
			l.add(at, "%s is no host name, and no address in brackets", show(h))
		}
	}
}

func (l *loader) checkTLSDomains(t *TLS, name, path string) {
	switch at := l.at(path + ".domains"); {
	case l.bad[path+".domains"]:
	case name == DefaultTLS && len(t.Domains) > 0:
		l.add(at, "%s.domains: this table is for all domains that no other names; give it another name, or leave domains out", path)
	case name != DefaultTLS && len(t.Domains) == 0:
		l.suggest(at, rules.Suggest(name, []string{DefaultTLS}), "%s.domains is missing: name the recipients' domains, or write [tls.default] for all", path)
	}
	for i, d := range t.Domains {
		key := strings.ToLower(d)
		switch other, there := l.tls[key]; {
		case !validHost(strings.TrimPrefix(d, ".")):
			l.add(l.atItem(path+".domains", i), "%s.domains: %s is no domain", path, show(d))
		case there && other != t:
			l.add(l.atItem(path+".domains", i), "%s.domains: %s stands in another table [tls.NAME] as well", path, show(d))
		default:
			l.tls[key] = t
		}
	}
}

func (l *loader) checkFingerprints(t *TLS, path string) {
	if t.Level == "fingerprint" && len(t.Fingerprints) == 0 && !l.bad[path+".fingerprints"] {
		l.add(l.at(path+".fingerprints"), "%s.fingerprints is missing: level = \"fingerprint\" needs it", path)
	}
	for i, text := range t.Fingerprints {
		sum, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
		if err != nil || len(sum) != sha256.Size {
			l.add(l.atItem(path+".fingerprints", i), "%s.fingerprints: %s is no SHA-256: write 64 hexadecimal digits", path, show(text))
			continue
		}
		t.fingerprints = append(t.fingerprints, [sha256.Size]byte(sum))
	}
}

// readRoots reads certificates, PEM.
func readRoots(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, cause(err)
	}
	pool := x509.NewCertPool()
	if len(text) > MaxFile || !pool.AppendCertsFromPEM(bytes.TrimSpace(text)) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", show(path))
	}
	return pool, nil
}
