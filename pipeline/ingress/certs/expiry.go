package certs

import (
	"slices"
	"strings"
	"time"
)

const day = 24 * time.Hour

// thresholds are how long before its end a certificate is told of.
var thresholds = [...]time.Duration{14 * day, 7 * day, 1 * day, 0}

// Expiry tells when a certificate ends.
type Expiry struct {
	// Names are those that the certificate is for.
	Names []string
	// Source is the certificate's file, "acme NAME" or "self-signed".
	Source string
	// Key is the kind of its key: "ECDSA", "RSA", "Ed25519".
	Key string
	// NotAfter is its last second.
	NotAfter time.Time
}

// Expires lists the certificates in use, for metrics and for the operator.
func (s *Store) Expires() []Expiry {
	var list []Expiry
	for _, shelf := range s.shelves() {
		for _, h := range shelf.index.Load().all {
			list = append(list, Expiry{slices.Clone(h.names), h.source, h.keyType(), h.leaf.NotAfter})
		}
	}
	return list
}

// level is how many thresholds a certificate has passed. Those that are more
// than half of its life do not count: a certificate of six days is not ending.
func (h *held) level(now time.Time) int {
	left, life := h.leaf.NotAfter.Sub(now), h.leaf.NotAfter.Sub(h.leaf.NotBefore)
	n := 0
	for i, t := range thresholds {
		if left <= t && t <= life/2 {
			n = i + 1
		}
	}
	return n
}

// warn tells of certificates that come to their end, once for each threshold.
// The caller has the lock.
func (s *shelf) warn() {
	now := s.now()
	for _, h := range s.index.Load().all {
		n := h.level(now)
		if n <= h.warned {
			continue
		}
		h.warned = n
		args := []any{"certificate", h.source, "names", strings.Join(h.names, " "), "expires", h.leaf.NotAfter, "do", h.remedy()}
		if n == len(thresholds) {
			s.log.Error("TLS certificate has expired, senders that check it will not deliver", args...)
			continue
		}
		s.log.Warn("TLS certificate expires soon", append(args, "days", int(h.leaf.NotAfter.Sub(now)/day))...)
	}
}

func (h *held) remedy() string {
	switch {
	case strings.HasPrefix(h.source, acmeSource):
		return "see why its renewal fails in the ACME warnings of this log"
	case h.source == selfSignedSource:
		return "restart postern, which makes a new one"
	}
	return "renew it and put the new certificate and key in the same files; they are picked up without a restart"
}
