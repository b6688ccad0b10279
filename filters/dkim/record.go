package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Bounds of keys. RFC 8301 §3.2 forbids shorter ones; longer ones cost more
// than a stranger may ask for.
const (
	minBits   = 1024
	maxBits   = 8192
	maxRecord = 4 << 10 // bytes of a key record
)

// record is a public key as the DNS has it (RFC 6376 §3.6.1).
type record struct {
	key crypto.PublicKey
	// text is a record of the bare key.
	text string
	// algorithm is the word of a= that the key is for.
	algorithm string
	// testing and strict are the flags y and s.
	testing, strict bool
}

// Why a key does not do. Their words are results' reasons.
var (
	errNoKey   = errors.New("no key")
	errRevoked = errors.New("key revoked")
	errShort   = fmt.Errorf("key has fewer than %d bits", minBits)
	errLong    = fmt.Errorf("key has more than %d bits", maxBits)
)

// temporary is an error that may be gone the next time.
type temporary struct{ error }

// Unwrap is the error itself.
func (t temporary) Unwrap() error { return t.error }

// texts asks for the texts of one name in the DNS.
type texts func(ctx context.Context, name string) ([]string, error)

// maxRecords bounds the records that are kept: about a megabyte.
const maxRecords = 250

// records keeps keys that were read, by the text of their record: most mail is
// signed by few. It is safe for concurrent use.
type records struct {
	mu    sync.Mutex
	known map[string]*record
}

// parse is parseRecord.
func (r *records) parse(text string) (*record, error) {
	r.mu.Lock()
	known := r.known[text]
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
	one, err := parseRecord(text)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil || len(r.known) >= maxRecords {
		r.known = map[string]*record{}
	}
	r.known[strings.Clone(text)] = one
	return one, nil
}

// fetch asks for a key. A temporary error says that nobody could tell.
func (r *records) fetch(ctx context.Context, look texts, name string) (*record, error) {
	answers, err := look(ctx, name)
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return nil, errNoKey
	case err != nil:
		return nil, temporary{fmt.Errorf("the key could not be looked up: %w", err)}
	}
	if len(answers) == 1 {
		return r.parse(answers[0])
	}
	// Several records are undefined (RFC 6376 §3.6.2.2). A domain with a wild
	// card has others there that are no keys.
	var keys []string
	for _, a := range answers {
		if t, err := parseTags(a[:min(len(a), maxRecord)]); err == nil {
			if _, is := t["p"]; is {
				keys = append(keys, a)
			}
		}
	}
	switch {
	case len(answers) == 0:
		return nil, errNoKey
	case len(keys) > 1:
		return nil, errors.New("several keys under one name")
	case len(keys) == 1:
		return r.parse(keys[0])
	}
	return r.parse(answers[0])
}

// parseRecord reads a key record.
func parseRecord(s string) (*record, error) {
	if len(s) > maxRecord {
		return nil, fmt.Errorf("key record of more than %d bytes", maxRecord)
	}
	t, err := parseTags(s)
	if err != nil {
		return nil, fmt.Errorf("key record: %w", err)
	}
	if v, given := t["v"]; given && v != "DKIM1" {
		return nil, errors.New("key record of another version")
	}
	p, given := t["p"]
	switch {
	case !given:
		return nil, errors.New("key record without a key")
	case p == "":
		return nil, errRevoked
	}
	if h, given := t["h"]; given && !slices.Contains(list(h), "sha256") {
		return nil, errors.New("key is not for sha256")
	}
	if services, given := t["s"]; given && !slices.ContainsFunc(list(services), func(s string) bool { return s == "*" || s == "email" }) {
		return nil, errors.New("key is not for mail")
	}
	r := &record{text: "v=DKIM1; p=" + unspace(p)}
	for _, flag := range list(t["t"]) {
		r.testing = r.testing || flag == "y"
		r.strict = r.strict || flag == "s"
	}
	kind, given := t["k"]
	if !given {
		kind = "rsa"
	}
	r.text += "; k=" + kind
	b, err := decode64(p, maxRecord)
	if err != nil {
		return nil, errors.New("key is no base64")
	}
	return r, r.set(kind, b)
}

// set reads the key itself.
func (r *record) set(kind string, b []byte) error {
	switch kind {
	case "rsa":
		key, err := parseRSA(b)
		if err != nil {
			return errors.New("key is no RSA key")
		}
		r.key, r.algorithm = key, rsaSHA256
		return checkRSA(key)
	case "ed25519": // RFC 8463 §4: the bare key
		if len(b) != ed25519.PublicKeySize {
			return fmt.Errorf("key is no Ed25519 key: it has %d bytes", len(b))
		}
		r.key, r.algorithm = ed25519.PublicKey(b), ed25519SHA256
		return nil
	}
	return fmt.Errorf("key of unknown kind k=%s", reply.Clean(kind, 20))
}

// parseRSA reads a key in either of the two forms that there are (RFC 6376
// §3.6.1 and erratum 3017).
func parseRSA(b []byte) (*rsa.PublicKey, error) {
	if key, err := x509.ParsePKIXPublicKey(b); err == nil {
		if r, ok := key.(*rsa.PublicKey); ok {
			return r, nil
		}
		return nil, errors.New("another kind of key")
	}
	return x509.ParsePKCS1PublicKey(b)
}

func checkRSA(key *rsa.PublicKey) error {
	switch bits := key.N.BitLen(); {
	case bits < minBits:
		return errShort
	case bits > maxBits:
		return errLong
	}
	return nil
}

// recordOf is the record of a key that is not in the DNS.
func recordOf(key crypto.PublicKey) (*record, error) {
	text, err := Record(key)
	if err != nil {
		return nil, err
	}
	return parseRecord(text)
}

// Record is the text of the DNS record that publishes a key, an *rsa.PublicKey
// or an ed25519.PublicKey (RFC 6376 §3.6.1, RFC 8463 §4).
func Record(key crypto.PublicKey) (string, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		b, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			return "", err
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(b), nil
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(k), nil
	}
	return "", fmt.Errorf("no DKIM key: %T", key)
}
