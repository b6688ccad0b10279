package smtp

import (
	"net/netip"
	"sync"
	"time"
)

// maxRemembered is how many addresses a memory holds.
const maxRemembered = 10_000

// memory holds addresses for a while. It is safe for concurrent use.
type memory struct {
	mu    sync.Mutex
	until map[netip.AddrPort]time.Time
}

// has reports whether an address is held.
func (m *memory) has(a netip.AddrPort, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	until, ok := m.until[a]
	if ok && !now.Before(until) {
		delete(m.until, a)
		ok = false
	}
	return ok
}

// hold holds an address, and drops what is over or, if nothing is, any other,
// where there is no room.
func (m *memory) hold(a netip.AddrPort, now, until time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.until == nil {
		m.until = map[netip.AddrPort]time.Time{}
	}
	if len(m.until) >= maxRemembered {
		for other, until := range m.until {
			if !now.Before(until) {
				delete(m.until, other)
			}
		}
	}
	for other := range m.until {
		if len(m.until) < maxRemembered {
			break
		}
		delete(m.until, other)
	}
	m.until[a] = until
}
