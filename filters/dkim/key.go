package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Key is a key to sign with.
type Key struct {
	// Domain and Selector are d= and s=.
	Domain, Selector string
	// Signer is an *rsa.PrivateKey or an ed25519.PrivateKey.
	Signer crypto.Signer
	// print is the key's fingerprint, "" if nobody took it.
	print string
}

// NewKey is a key of a domain, whose names it checks and makes as the DNS has
// them.
func NewKey(domain, selector string, signer crypto.Signer) (Key, error) {
	d, ok := asciiName(domain)
	if !ok {
		return Key{}, fmt.Errorf("%q is no domain", reply.Clean(domain, 80))
	}
	s, ok := asciiName(selector)
	if !ok || len(s)+len(middle)+len(d) > maxName {
		return Key{}, fmt.Errorf("%q is no selector", reply.Clean(selector, 80))
	}
	return Key{Domain: d, Selector: s, Signer: signer}, nil
}

// Algorithm is the word of a=.
func (k Key) Algorithm() string {
	if _, ok := k.Signer.Public().(ed25519.PublicKey); ok {
		return ed25519SHA256
	}
	return rsaSHA256
}

// Query is the key's name in the DNS.
func (k Key) Query() string { return k.Selector + middle + k.Domain }

// maxKeyFile bounds a file with a key, in bytes.
const maxKeyFile = 64 << 10

// ParseKey reads a private key: PEM with PKCS #8, or PKCS #1 for RSA. Its
// errors hold nothing of the key.
func ParseKey(content []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, errors.New("it is no PEM file")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		if block.Headers["DEK-Info"] != "" {
			return nil, errors.New("the key is encrypted: take the passphrase off with openssl pkey")
		}
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("the key is encrypted: take the passphrase off with openssl pkey")
	default:
		return nil, fmt.Errorf("it holds no private key but %q", block.Type)
	}
	if err != nil {
		return nil, errors.New("the private key cannot be read: the file is damaged, or its key is of no known kind")
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if err := checkRSA(&k.PublicKey); err != nil {
			return nil, err
		}
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, errors.New("the key is neither RSA nor Ed25519")
}

// GenerateKey makes a key and its PEM file: of Ed25519 where bits is 0, else of
// RSA.
func GenerateKey(bits int) (crypto.Signer, []byte, error) {
	var key crypto.Signer
	var err error
	switch {
	case bits == 0:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case bits < minBits || bits > maxBits:
		return nil, nil, fmt.Errorf("an RSA key has %d to %d bits, not %d", minBits, maxBits, bits)
	default:
		key, err = rsa.GenerateKey(rand.Reader, bits)
	}
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
