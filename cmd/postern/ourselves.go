package main

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// ourselves tells which hosts are this one, so that mail for them would come back in:
// the one of our name, and those at whose port 25 this daemon listens itself. Other
// addresses of this host may be another server's.
type ourselves struct {
	config func() *config.Config
	// interfaces are the addresses of this host, and now the clock; nil: the system's.
	interfaces func() ([]net.Addr, error)
	now        func() time.Time

	mu    sync.Mutex
	known []netip.Addr
	until time.Time
}

// interfacesFor is for how long this host's addresses are remembered.
const interfacesFor = time.Minute

// is is smtp.Options.Self.
func (o *ourselves) is(host string, address netip.Addr) bool {
	c := o.config()
	if strings.EqualFold(host, c.Hostname) {
		return true
	}
	address = address.Unmap()
	for _, l := range c.Listen {
		at, port, err := net.SplitHostPort(l.Address)
		if err != nil || port != "25" || !address.IsValid() {
			continue
		}
		a, err := netip.ParseAddr(at)
		switch {
		case err == nil && !a.IsUnspecified():
			if a.Unmap() == address {
				return true
			}
		case at == "" || err == nil && (a.Is6() || address.Is4()):
			if slices.Contains(o.addresses(), address) {
				return true
			}
		}
	}
	return false
}

// addresses are those of this host's interfaces. Where they cannot be had, there are
// none: then a loop ends with the hops that a message may have.
func (o *ourselves) addresses() []netip.Addr {
	o.mu.Lock()
	defer o.mu.Unlock()
	now, list := time.Now, net.InterfaceAddrs
	if o.now != nil {
		now = o.now
	}
	if o.interfaces != nil {
		list = o.interfaces
	}
	if now().Before(o.until) {
		return o.known
	}
	o.known, o.until = nil, now().Add(interfacesFor)
	all, err := list()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if p, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok {
				o.known = append(o.known, ip.Unmap())
			}
		}
	}
	return o.known
}
