package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"
)

// Bounds of what is read from a file, in bytes.
const (
	maxCertFile = 1 << 20
	maxKeyFile  = 64 << 10
)

// settle is how long after its last change a file may still change without
// its time telling: the clocks of file systems are coarse.
const settle = 2 * time.Second

// Pair names a certificate and its private key, PEM files both. They may be
// one and the same file.
type Pair struct {
	// Cert holds the server's certificate first, then the chain.
	Cert string
	// Key holds the private key, without a passphrase.
	Key string
	// Where is the place in the configuration ("postern.toml:12"), for messages.
	Where string
}

// held is a certificate that is in use. It does not change, but for warned.
type held struct {
	cert     tls.Certificate
	leaf     *x509.Certificate
	names    []string // lower case, as SNI has them
	source   string   // a file's name, "acme NAME" or "self-signed"
	elliptic bool
	warned   int // the last of thresholds that was told; the shelf's lock guards it
}

// newHeld makes a certificate of two PEM texts. Its error says what is wrong
// with them, not where they come from.
func newHeld(certPEM, keyPEM []byte, source string) (*held, error) {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, diagnose(certPEM, keyPEM, err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, err
		}
	}
	h := &held{cert: cert, leaf: cert.Leaf, source: source}
	_, isECDSA := cert.PrivateKey.(*ecdsa.PrivateKey)
	h.elliptic = isECDSA || cert.Leaf.PublicKeyAlgorithm == x509.Ed25519
	for _, n := range cert.Leaf.DNSNames {
		h.names = append(h.names, sniName(n))
	}
	if len(h.names) == 0 && strings.Contains(cert.Leaf.Subject.CommonName, ".") {
		h.names = []string{sniName(cert.Leaf.Subject.CommonName)}
	}
	return h, nil
}

// sniName is a host name as it is compared: lower case, no final dot.
func sniName(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }

// fingerprint tells certificates apart in the log.
func (h *held) fingerprint() string {
	sum := sha256.Sum256(h.leaf.Raw)
	return fmt.Sprintf("%x", sum[:8])
}

// keyType is what a postmaster calls the certificate's key.
func (h *held) keyType() string {
	if h.leaf.PublicKeyAlgorithm == x509.ECDSA {
		return "ECDSA"
	}
	return h.leaf.PublicKeyAlgorithm.String()
}

// diagnose says in an administrator's words why a pair is no pair, and what to
// do.
func diagnose(certPEM, keyPEM []byte, err error) error {
	chain := certificates(certPEM)
	key := firstKey(keyPEM)
	switch {
	case len(bytes.TrimSpace(certPEM)) == 0:
		return errors.New("the certificate's file is empty: put the certificate and its chain there, in PEM")
	case chain == nil:
		return errors.New("the certificate's file has no whole certificate in PEM (it may be cut short, or in DER): write it again, or convert it with openssl x509 -inform der")
	case len(bytes.TrimSpace(keyPEM)) == 0:
		return errors.New("the key's file is empty: put the private key there, in PEM")
	case key == nil:
		return errors.New("the key's file has no whole private key in PEM (it may be cut short): write it again")
	case key.Type == "ENCRYPTED PRIVATE KEY" || key.Headers["DEK-Info"] != "":
		return errors.New("the private key has a passphrase, which nobody can type for a daemon: remove it with openssl pkey -in KEY -out NEWKEY")
	}
	for i, der := range chain {
		if i > 0 && matchesKey(der, keyPEM) {
			return fmt.Errorf("the key belongs to certificate number %d of the file: the server's own certificate must come first, then its chain", i+1)
		}
	}
	if strings.Contains(err.Error(), "does not match") {
		return errors.New("the key belongs to another certificate: name the key that was made with this one, or put both files of the new pair in place")
	}
	return fmt.Errorf("the pair cannot be used: %w: write both files again", err)
}

// certificates are the DER texts of a PEM file's certificates.
func certificates(text []byte) (ders [][]byte) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return ders
		}
		if b.Type == "CERTIFICATE" {
			ders = append(ders, b.Bytes)
		}
	}
}

// firstKey is the first block of a PEM file that is a private key.
func firstKey(text []byte) *pem.Block {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil || strings.HasSuffix(b.Type, "PRIVATE KEY") {
			return b
		}
	}
}

func matchesKey(der, keyPEM []byte) bool {
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	_, err := tls.X509KeyPair(block, keyPEM)
	return err == nil
}

// signature is what shows that a file has changed.
type signature struct {
	dev, ino uint64
	size     int64
	changed  time.Time
}

func sign(name string) (signature, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return signature{}, err
	}
	if !fi.Mode().IsRegular() {
		return signature{}, &fs.PathError{Op: "read", Path: name, Err: errors.New("is no regular file")}
	}
	s := signature{size: fi.Size(), changed: fi.ModTime()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.dev, s.ino = uint64(st.Dev), st.Ino
	}
	return s, nil
}

// file is a pair that is watched. The shelf's lock guards it.
type file struct {
	Pair
	held    *held
	sum     [sha256.Size]byte
	seen    [2]signature
	settled bool
	failure string // the last look's error, "" if it was good
	told    bool   // failure is in the log
}

// look reads the pair if it may have changed and reports whether f.held is
// another one now. After an error f.held is the old one.
func (f *file) look(now time.Time) (bool, error) {
	var seen [2]signature
	for i, name := range [...]string{f.Cert, f.Key} {
		var err error
		if seen[i], err = sign(name); err != nil {
			return false, f.unreadable(err)
		}
	}
	if f.held != nil && f.failure == "" && f.settled && seen == f.seen {
		return false, nil
	}
	h, sum, err := f.read()
	if err != nil {
		return false, err
	}
	f.seen, f.settled = seen, true
	for _, s := range seen {
		if age := now.Sub(s.changed); age > -settle && age < settle {
			f.settled = false
		}
	}
	if f.held != nil && sum == f.sum {
		return false, nil
	}
	f.held, f.sum = h, sum
	return true, nil
}

func (f *file) read() (*held, [sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	cert, err := readFile(f.Cert, maxCertFile)
	if err != nil {
		return nil, sum, f.unreadable(err)
	}
	key, err := readFile(f.Key, maxKeyFile)
	if err != nil {
		return nil, sum, f.unreadable(err)
	}
	h, err := newHeld(cert, key, f.Cert)
	if err != nil {
		return nil, sum, f.wrong(err)
	}
	return h, sha256.Sum256(joined(cert, key)), nil
}

func joined(cert, key []byte) []byte {
	lengths := fmt.Appendf(nil, "%d %d\n", len(cert), len(key))
	return bytes.Join([][]byte{lengths, cert, key}, nil)
}

func readFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("has more than %d bytes, which no certificate or key needs", most)}
	}
	return text, err
}

// wrong says where a pair is that cannot be used.
func (f *file) wrong(err error) error {
	where := ""
	if f.Where != "" {
		where = f.Where + ": "
	}
	return fmt.Errorf("%scertificate %s with key %s: %w", where, f.Cert, f.Key, err)
}

// unreadable adds what to do about a file that cannot be read.
func (f *file) unreadable(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w for uid %d: restart postern, which reads the pair before it gives up root, or let its group read the file (chgrp and chmod 640, and chmod 750 for the folders above it)", err, os.Geteuid())
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w: put the file there, or correct its name in the configuration", err)
	}
	return f.wrong(err)
}
