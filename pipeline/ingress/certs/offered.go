package certs

import (
	"crypto/tls"
	"slices"
	"strings"
)

// Offer is what a listener offers to clients.
type Offer struct {
	// Versions as "TLSv1.2", the lowest first.
	Versions []string
	Ciphers  []Cipher
}

// Cipher is one suite of an offer.
type Cipher struct {
	// Name is IANA's.
	Name string
	// Versions are those of the offer that it works with.
	Versions []string
	// Insecure suites are there only because the policy names them.
	Insecure bool
}

// Offered lists what a client can get from a listener with this policy and the
// certificates that are there now; while there is none, with any certificate.
func (s *Store) Offered(p Policy) (Offer, error) {
	config, shelf, err := s.build(p)
	if err != nil {
		return Offer{}, err
	}
	elliptic, rsa := false, false
	all := shelf.index.Load().all
	for _, h := range all {
		elliptic, rsa = elliptic || h.elliptic, rsa || !h.elliptic
	}
	var o Offer
	for _, v := range versions {
		if v.id >= config.MinVersion {
			o.Versions = append(o.Versions, v.name)
		}
	}
	suites := tls.CipherSuites()
	if config.CipherSuites != nil {
		suites = allSuites()
	}
	for _, suite := range suites {
		chosen := config.CipherSuites == nil || slices.Contains(config.CipherSuites, suite.ID)
		fits := len(all) == 0 || forElliptic(suite.Name) && elliptic || !forElliptic(suite.Name) && rsa
		if !isTLS13(suite) && (!chosen || !fits) {
			continue
		}
		c := Cipher{Name: suite.Name, Insecure: suite.Insecure}
		for _, v := range versions {
			if v.id >= config.MinVersion && slices.Contains(suite.SupportedVersions, v.id) {
				c.Versions = append(c.Versions, v.name)
			}
		}
		if len(c.Versions) > 0 {
			o.Ciphers = append(o.Ciphers, c)
		}
	}
	return o, nil
}

// String is a line for each version.
func (o Offer) String() string {
	var b strings.Builder
	for _, v := range o.Versions {
		b.WriteString(v + ":")
		for _, c := range o.Ciphers {
			if !slices.Contains(c.Versions, v) {
				continue
			}
			b.WriteString(" " + c.Name)
			if c.Insecure {
				b.WriteString("(insecure)")
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}
