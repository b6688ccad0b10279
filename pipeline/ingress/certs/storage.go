package certs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/sys/unix"
)

// lockPoll is how often a lock that another process has is tried.
const lockPoll = 100 * time.Millisecond

// storage is certmagic's file storage with locks of the kernel's: they end with
// the process that has them, and need no goroutine that keeps them fresh.
type storage struct {
	certmagic.Storage
	locks string // folder

	mu   sync.Mutex
	open map[string]*os.File
}

func newStorage(dir string) *storage {
	return &storage{
		Storage: &certmagic.FileStorage{Path: dir},
		locks:   filepath.Join(dir, "locks"),
		open:    make(map[string]*os.File),
	}
}

// Lock implements certmagic.Locker.
func (s *storage) Lock(ctx context.Context, name string) error {
	if err := os.MkdirAll(s.locks, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.locks, certmagic.StorageKeys.Safe(name)+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return errors.Join(err, f.Close())
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), f.Close())
		case <-tick.C:
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[name] = f
	return nil
}

// Unlock implements certmagic.Locker.
func (s *storage) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.open[name]
	if f == nil {
		return fmt.Errorf("lock %q is not ours", name)
	}
	delete(s.open, name)
	return f.Close()
}
