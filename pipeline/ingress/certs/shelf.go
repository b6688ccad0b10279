package certs

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// shelf is one set of certificates: the daemon's, or a listener's own.
type shelf struct {
	log  *slog.Logger
	now  func() time.Time
	poll time.Duration

	index  atomic.Pointer[index]
	looked atomic.Int64 // when, in Unix nanoseconds

	mu       sync.Mutex
	files    []*file
	acquired []*held // by ACME
	fallback *held   // in use while there is nothing else
}

// open reads all pairs, or says which one is wrong. Old finds the certificate
// of a pair that may no longer be read.
func (s *shelf) open(pairs []Pair, old func(Pair) *file) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range pairs {
		f := &file{Pair: p}
		if _, err := f.look(s.now()); err != nil {
			o := old(p)
			if o == nil {
				errs = append(errs, err)
				continue
			}
			*f = *o
			f.Pair, f.failure, f.told = p, err.Error(), true
			s.log.Warn("TLS certificate's files cannot be read again, those read before are kept", "error", err)
		}
		s.files = append(s.files, f)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	s.looked.Store(s.now().UnixNano())
	s.rebuild()
	return nil
}

// find is the file of a pair, a copy, or nil.
func (s *shelf) find(p Pair) *file {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		if f.Cert == p.Cert && f.Key == p.Key && f.held != nil {
			c := *f
			return &c
		}
	}
	return nil
}

// rebuild makes the index anew and warns of what comes to its end. The caller
// has the lock.
func (s *shelf) rebuild() {
	var all []*held
	for _, f := range s.files {
		if f.held != nil {
			all = append(all, f.held)
		}
	}
	all = append(all, s.acquired...)
	if len(all) == 0 && s.fallback != nil {
		all = append(all, s.fallback)
	}
	s.index.Store(newIndex(all))
	s.warn()
}

// setAcquired takes what ACME has brought.
func (s *shelf) setAcquired(list []*held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acquired = list
	s.rebuild()
}

// certificate is tls.Config.GetCertificate.
func (s *shelf) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := s.now()
	s.glance(now)
	if h := s.index.Load().choose(hello, now); h != nil {
		return &h.cert, nil
	}
	return nil, errors.New("there is no certificate yet")
}

// glance looks at the files if it is time. Of many handshakes one does it, the
// others go on with what there is.
func (s *shelf) glance(now time.Time) {
	if since := now.UnixNano() - s.looked.Load(); since >= 0 && since < int64(s.poll) {
		return
	}
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	if since := now.UnixNano() - s.looked.Load(); since >= 0 && since < int64(s.poll) {
		return
	}
	_ = s.look(now, false)
}

// reload looks at the files now and tells every failure at once.
func (s *shelf) reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.look(s.now(), true)
}

func (s *shelf) look(now time.Time, asked bool) error {
	var errs []error
	changed := false
	for _, f := range s.files {
		another, err := f.look(now)
		if err != nil {
			errs = append(errs, err)
			s.failed(f, err, asked)
			continue
		}
		if f.failure != "" && f.told && !another {
			s.log.Info("TLS certificate's files are in order again", "certificate", f.Cert)
		}
		f.failure, f.told = "", false
		if another {
			changed = true
			s.log.Info("TLS certificate replaced", "certificate", f.Cert, "names", strings.Join(f.held.names, " "),
				"key", f.held.keyType(), "expires", f.held.leaf.NotAfter, "sha256", f.held.fingerprint())
		}
	}
	s.looked.Store(now.UnixNano())
	if changed {
		s.rebuild()
	} else {
		s.warn()
	}
	return errors.Join(errs...)
}

// failed tells of a failure once: at once if somebody asked, else when it is
// there a second time.
func (s *shelf) failed(f *file, err error, asked bool) {
	text := err.Error()
	again := text == f.failure
	if !again {
		f.failure, f.told = text, false
	}
	if f.told || !again && !asked {
		return
	}
	f.told = true
	s.log.Error("TLS certificate not replaced, the old one stays in use", "error", text, "expires", f.held.leaf.NotAfter)
}
