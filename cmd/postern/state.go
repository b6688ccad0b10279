package main

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/reply"
)

// stateDir is the directory that belongs to one daemon at a time: lock, secret,
// spool, kept copies.
type stateDir struct {
	path   string
	lock   *os.File
	secret []byte
}

const (
	lockName   = "lock"
	secretName = "secret"
	secretSize = 32
)

// openState takes the directory for this process. If another holds it, the
// error says who.
func openState(path string, log *slog.Logger) (*stateDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer lock.Close()
		return nil, fmt.Errorf("state directory %s is held by %s", path, lockHolder(lock))
	}
	who := fmt.Sprintf("postern, process %d, since %s\n", os.Getpid(), time.Now().UTC().Format(time.RFC3339))
	if err := errors.Join(lock.Truncate(0), writeAt(lock, who)); err != nil {
		// The words are for people. A disk without a block left must not keep the
		// daemon from starting: what it delivers makes room.
		log.Warn("cannot write into the lock who holds it", "lock", lock.Name(), "error", err)
	}
	s := &stateDir{path: path, lock: lock}
	if s.secret, err = readSecret(path); errors.Is(err, fs.ErrNotExist) {
		s.secret, err = makeSecret(path)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func lockHolder(lock *os.File) string {
	b := make([]byte, 200)
	n, _ := lock.ReadAt(b, 0)
	if who := reply.Clean(string(b[:n]), 200); who != "" {
		return who
	}
	return "another process"
}

// readSecret reads the installation's secret.
func readSecret(path string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(path, secretName))
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	if len(b) != secretSize {
		return nil, fmt.Errorf("secret %s has %d bytes instead of %d: restore it, or remove it to have a new one made (marks made with the old one are then no longer known)",
			filepath.Join(path, secretName), len(b), secretSize)
	}
	return b, nil
}

// makeSecret makes the secret and has it on disk before it is used: a mark made
// with a secret that a crash takes away would be worth nothing.
func makeSecret(path string) ([]byte, error) {
	secret := make([]byte, secretSize)
	rand.Read(secret) //nolint:errcheck // it cannot fail
	name := filepath.Join(path, secretName)
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	_, err = f.Write(secret)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(name+".new", name)
	}
	if err == nil {
		err = syncDir(path)
	}
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	return secret, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// derive gives the function that makes keys of the secret.
func derive(secret []byte) func(purpose string) []byte {
	return func(purpose string) []byte {
		key, err := hkdf.Expand(sha256.New, secret, "postern "+strings.ToLower(purpose), sha256.Size)
		if err != nil {
			panic("postern: " + err.Error()) // only for lengths that are not used here
		}
		return key
	}
}

// Close gives the directory up.
func (s *stateDir) Close() error { return s.lock.Close() }
