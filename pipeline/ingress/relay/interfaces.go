package relay

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// refresh is how long the host's addresses are believed.
const refresh = 10 * time.Second

// Interfaces are the addresses of this host, asked for anew when they are
// needed and older than ten seconds. It is safe for concurrent use; the zero
// value is ready.
type Interfaces struct {
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Addresses lists them; nil means net.InterfaceAddrs.
	Addresses func() ([]net.Addr, error)

	mu    sync.Mutex
	known map[netip.Addr]bool
	asked time.Time
}

// Has reports whether an address is one of this host's. If they cannot be
// listed, those that were known stay.
func (f *Interfaces) Has(ip netip.Addr) bool {
	now, list := f.Now, f.Addresses
	if now == nil {
		now = time.Now
	}
	if list == nil {
		list = net.InterfaceAddrs
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := now(); f.known == nil || t.Sub(f.asked) >= refresh || t.Before(f.asked) {
		f.asked = t
		if all, err := list(); err == nil {
			f.known = make(map[netip.Addr]bool, len(all))
			for _, a := range all {
				if p, err := netip.ParsePrefix(a.String()); err == nil {
					f.known[p.Addr().Unmap()] = true
				}
			}
		}
	}
	return f.known[ip.Unmap().WithZone("")]
}
