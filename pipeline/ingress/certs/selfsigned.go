package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	selfSignedSource = "self-signed"
	selfSignedFile   = "self-signed.pem"
	selfSignedLife   = 10 * 365 * day
)

// selfSigned gives the installation's own certificate, which is kept in state
// with its key. A new one is made for another host name or when the old one
// nears its end, always of the same key, so that what pins it (RFC 7671, "3 1
// 1") goes on matching.
func selfSigned(state, hostname string, now time.Time) (*held, error) {
	if state == "" || hostname == "" {
		return nil, errors.New("a self-signed certificate needs the host name and the state folder: set both")
	}
	name := filepath.Join(state, selfSignedFile)
	text, err := readFile(name, maxKeyFile)
	var key *ecdsa.PrivateKey
	switch {
	case err == nil:
		h, err := newHeld(text, text, selfSignedSource)
		if err != nil {
			return nil, fmt.Errorf("self-signed certificate %s: %w, or remove the file and a new one is made", name, err)
		}
		if slices.Contains(h.names, sniName(hostname)) && h.leaf.NotAfter.Sub(now) > 30*day {
			return h, nil
		}
		key, _ = h.cert.PrivateKey.(*ecdsa.PrivateKey)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("self-signed certificate: %w: give the file to postern's user, or remove it and a new one is made", err)
	}
	if key == nil {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	if text, err = makeSelfSigned(key, hostname, now); err != nil {
		return nil, fmt.Errorf("self-signed certificate for %q: %w", hostname, err)
	}
	if err := keep(name, text); err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w: postern must be able to write to %s", err, state)
	}
	return newHeld(text, text, selfSignedSource)
}

// makeSelfSigned is certificate and key in PEM.
func makeSelfSigned(key *ecdsa.PrivateKey, hostname string, now time.Time) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		DNSNames:              []string{sniName(hostname)},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(selfSignedLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if len(hostname) <= 64 { // RFC 5280 appendix A, ub-common-name
		template.Subject = pkix.Name{CommonName: sniName(hostname)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = errors.Join(pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return b.Bytes(), err
}

// keep writes a file that only its owner may read, whole or not at all. Its
// owner is the folder's, so that a daemon which was root when it wrote the file
// can read it later.
func keep(name string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), owned(f, filepath.Dir(name)), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func owned(f *os.File, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}
