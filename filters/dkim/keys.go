package dkim

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/postern-mta/postern/pipeline"
)

// Bounds of a Keys.
const (
	maxCachedKeys = 10_000
	maxSelectors  = 8 // keys that sign one message
	maxFiles      = 1000
)

// keySuffix ends a key's name in a folder of ours.
const keySuffix = ".pem"

// Keys finds the keys of domains on disk. A key is parsed once, and again when
// its file has changed. Safe for concurrent use.
type Keys struct {
	places    []string
	selectors []string

	mu      sync.Mutex
	parsed  map[string]parsedKey
	folders map[string]folder
}

type parsedKey struct {
	stamp  stamp
	signer crypto.Signer
	// print tells the key from others.
	print string
}

type folder struct {
	stamp stamp
	names []string // sorted
}

// stamp tells whether a file is the one that was read.
type stamp struct {
	device, inode uint64
	size          int64
	changed, made syscall.Timespec
}

// settling is how long after a change of a file another one might leave the
// same stamp: file systems count in ticks. Until then it is read each time.
const settling = time.Second

func (s stamp) settled() bool { return time.Since(time.Unix(s.changed.Unix())) > settling }

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.device, s.inode, s.changed, s.made = uint64(st.Dev), st.Ino, st.Mtim, st.Ctim
	}
	return s
}

// KeyFileError is a key that is there and cannot be used. Its text holds no
// path, since it may reach a sender; Path is for the log.
type KeyFileError struct {
	Domain string
	Path   string
	// Err is what is wrong.
	Err error
}

// Error says which domain's key it is.
func (e *KeyFileError) Error() string { return "a key of " + e.Domain + " cannot be used" }

// Unwrap is what is wrong.
func (e *KeyFileError) Unwrap() error { return e.Err }

// NewKeys makes a Keys of places, each a folder that holds DOMAIN/SELECTOR.pem,
// or a pattern of qmail-dk with a % for the domain. selectors, if there are
// any, are the only ones used of a folder. Nothing is read before it is needed.
func NewKeys(places, selectors []string) (*Keys, error) {
	k := &Keys{parsed: map[string]parsedKey{}, folders: map[string]folder{}}
	for i, p := range places {
		if !filepath.IsAbs(p) {
			return nil, pipeline.AtKey(fmt.Sprintf("keys[%d]", i), fmt.Errorf("%q is no absolute path", p))
		}
		if dir, file := filepath.Split(p); strings.Contains(p, "%") {
			if _, ok := asciiName(file); !ok || strings.Contains(file, "%") || !strings.Contains(dir, "%") {
				return nil, pipeline.AtKey(fmt.Sprintf("keys[%d]", i), fmt.Errorf("%q does not end with a selector: write it like /etc/domainkeys/%%/default", p))
			}
		}
		k.places = append(k.places, filepath.Clean(p))
	}
	for i, s := range selectors {
		name, ok := asciiName(s)
		if !ok {
			return nil, pipeline.AtKey(fmt.Sprintf("selectors[%d]", i), fmt.Errorf("%q is no selector", s))
		}
		k.selectors = append(k.selectors, name)
	}
	return k, nil
}

// For are the keys that sign for a domain: its own, else those of the nearest
// domain above it that belongs to the same owner. There may be none. An error
// is a *KeyFileError.
func (k *Keys) For(domain string) ([]Key, error) {
	domain, ok := asciiName(domain)
	if !ok {
		return nil, nil
	}
	top := organization(domain)
	for d := domain; ; {
		keys, err := k.of(d)
		if err != nil || len(keys) > 0 {
			return keys, err
		}
		_, above, found := strings.Cut(d, ".")
		if d == top || !found || !isBelow(above, top) {
			return nil, nil
		}
		d = above
	}
}

// of are the keys of a domain itself, from the first place that has any.
func (k *Keys) of(domain string) ([]Key, error) {
	if suffix, icann := publicsuffix.PublicSuffix(domain); icann && suffix == domain && strings.Contains(domain, ".") {
		return nil, nil // co.uk: nobody is responsible for all below it
	}
	var all []Key
	for _, place := range k.places {
		paths, err := k.paths(place, domain)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			parsed, err := k.load(path)
			switch {
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			case err != nil:
				return nil, &KeyFileError{domain, path, err}
			case len(all) < maxSelectors:
				all = append(all, Key{domain, selectorOf(path), parsed.signer, parsed.print})
			}
		}
	}
	return all, nil
}

func selectorOf(path string) string {
	return strings.ToLower(strings.TrimSuffix(filepath.Base(path), keySuffix))
}

// paths are the files of a domain's keys in a place.
func (k *Keys) paths(place, domain string) ([]string, error) {
	if strings.Contains(place, "%") {
		return []string{strings.ReplaceAll(place, "%", domain)}, nil
	}
	dir := filepath.Join(place, domain)
	var paths []string
	if len(k.selectors) > 0 {
		for _, s := range k.selectors {
			paths = append(paths, filepath.Join(dir, s+keySuffix))
		}
		return paths, nil
	}
	names, err := k.names(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, &KeyFileError{domain, dir, err}
	}
	for _, n := range names {
		paths = append(paths, filepath.Join(dir, n))
	}
	return paths, nil
}

// names are the files of keys in a folder. It is read when it has changed.
func (k *Keys) names(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	s := stampOf(info)
	k.mu.Lock()
	known, ok := k.folders[path]
	k.mu.Unlock()
	if ok && known.stamp == s {
		return known.names, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		selector, is := strings.CutSuffix(n, keySuffix)
		_, ok := asciiName(selector)
		return !is || !ok
	})
	slices.Sort(names)
	if s.settled() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if len(k.folders) >= maxCachedKeys {
			clear(k.folders)
		}
		k.folders[path] = folder{s, names}
	}
	return names, nil
}

// load is the key in a file. Only a file that has changed is read.
func (k *Keys) load(path string) (parsedKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return parsedKey{}, err
	}
	s := stampOf(info)
	k.mu.Lock()
	known, ok := k.parsed[path]
	k.mu.Unlock()
	if ok && known.stamp == s {
		return known, nil
	}
	if !info.Mode().IsRegular() {
		return parsedKey{}, errors.New("it is no file")
	}
	content, s, err := readKey(path)
	if err != nil {
		return parsedKey{}, err
	}
	signer, err := ParseKey(content)
	if err != nil {
		return parsedKey{}, err
	}
	p := parsedKey{s, signer, fingerprint(signer.Public())}
	if s.settled() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if len(k.parsed) >= maxCachedKeys {
			clear(k.parsed)
		}
		k.parsed[path] = p
	}
	return p, nil
}

// fingerprint tells keys apart.
func fingerprint(k crypto.PublicKey) string {
	b, _ := x509.MarshalPKIXPublicKey(k) // of RSA and Ed25519 it cannot fail
	sum := sha256.Sum256(b)
	return string(sum[:])
}

// readKey reads a key's file, with the stamp of what was read.
func readKey(path string) ([]byte, stamp, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, stamp{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(content) > maxKeyFile {
		err = fmt.Errorf("it has more than %d bytes", maxKeyFile)
	}
	return content, stampOf(info), err
}
