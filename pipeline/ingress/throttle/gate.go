package throttle

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Options are the bounds of a Gate. A bound of 0 is none; so the zero Options
// let everybody in.
type Options struct {
	// Total, Address and Network are how many connections may be open at a time:
	// in all, of one address, of one network.
	Total, Address, Network int
	// AddressRate and NetworkRate are how many connections an address and a
	// network may open in a minute. As many may come at once; then each takes its
	// part of the minute. Those that are refused do not count.
	AddressRate, NetworkRate int
	// IPv4Bits and IPv6Bits are the size of a network; 0 means /24 and /64.
	IPv4Bits, IPv6Bits int
	// Exempt are networks that are never refused. Their connections count in the
	// total, though it does not bind them.
	Exempt []netip.Prefix
	// Penalty says for whom the gate is closed; nil: for nobody.
	Penalty *Penalty
	// Remember bounds how many addresses, and how many networks, are remembered
	// that have no connection open; 0 means 65,536. Where more come within a
	// minute, the rates of those that have been gone for longest are forgotten.
	Remember int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Cause is why a connection was refused.
type Cause uint8

// The causes, in the order in which they are looked at.
const (
	Punished Cause = iota
	TotalOpen
	AddressOpen
	NetworkOpen
	AddressRate
	NetworkRate
	causes
)

var causeNames = [causes]string{"penalty", "total", "address", "network", "address-rate", "network-rate"}

// String is the cause's word in logs and metrics.
func (c Cause) String() string {
	if c < causes {
		return causeNames[c]
	}
	return "invalid"
}

var answers = [causes]reply.Reply{
	Punished:    reply.Make(421, reply.Enhanced{Subject: 7, Detail: 0}, "too many errors from your address, please try again later"),
	TotalOpen:   reply.Make(421, reply.Enhanced{Subject: 3, Detail: 2}, "too many connections here, please try again later"),
	AddressOpen: reply.Make(421, reply.Enhanced{Subject: 7, Detail: 0}, "too many connections from your address, please try again later"),
	NetworkOpen: reply.Make(421, reply.Enhanced{Subject: 7, Detail: 0}, "too many connections from your network, please try again later"),
	AddressRate: reply.Make(421, reply.Enhanced{Subject: 7, Detail: 0}, "connections from your address come too fast, please try again later"),
	NetworkRate: reply.Make(421, reply.Enhanced{Subject: 7, Detail: 0}, "connections from your network come too fast, please try again later"),
}

// Refused is the detail of a refusal, for log and metrics. It is within the
// *reply.Error that Admit returns.
type Refused struct {
	Cause Cause
	// Who is the address or network that the bound is about; the zero Prefix for
	// the total.
	Who netip.Prefix
	// Limit is the bound: connections, or for Punished seconds that are left.
	Limit int
}

// Error says which bound of whom was reached.
func (r *Refused) Error() string {
	switch r.Cause {
	case Punished:
		return fmt.Sprintf("the gate is closed for %v for %d s more", r.Who, r.Limit)
	case TotalOpen:
		return fmt.Sprintf("%d connections are open, the most there may be", r.Limit)
	case AddressOpen, NetworkOpen:
		return fmt.Sprintf("%v has %d connections open, the most it may have", r.Who, r.Limit)
	}
	return fmt.Sprintf("%v opened more than %d connections a minute", r.Who, r.Limit)
}

// Gate counts connections. It belongs to the daemon and outlives
// configurations. Safe for concurrent use.
type Gate struct {
	mu        sync.Mutex
	o         Options
	start     time.Time // what clock counts from
	open      int
	addresses class
	networks  class
	refused   [causes]uint64
}

// New makes a gate with nobody in it.
func New(o Options) *Gate {
	g := &Gate{addresses: newClass(), networks: newClass()}
	g.Configure(o)
	g.start = g.o.Now()
	return g
}

// Configure changes the bounds. Connections that are open stay, and count; who
// has more than he may now have gets no further ones. The clock of New stays.
func (g *Gate) Configure(o Options) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.o.Now != nil {
		o.Now = g.o.Now
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Remember == 0 {
		o.Remember = 1 << 16
	}
	o.IPv4Bits, o.IPv6Bits = bits(o.IPv4Bits, 24, 32), bits(o.IPv6Bits, 64, 128)
	o.Exempt = append([]netip.Prefix(nil), o.Exempt...)
	g.o = o
	g.addresses.configure(o.Address, o.AddressRate, o.Remember)
	g.networks.configure(o.Network, o.NetworkRate, o.Remember)
}

// bits is the length of a network's prefix.
func bits(given, def, most int) int {
	if given <= 0 {
		return def
	}
	return min(given, most)
}

// Admit counts a connection in. The caller must call release when it ends;
// more than once does nothing. An error is a *reply.Error with a *Refused in it,
// and nothing is counted. A client without an address, as on a Unix socket,
// counts in the total only.
func (g *Gate) Admit(addr netip.Addr) (release func(), err error) {
	addr = addr.Unmap().WithZone("")
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.clock()
	exempt := g.isExempt(addr)
	if no := g.look(addr, exempt, now); no != nil {
		g.refused[no.Cause]++
		return nil, reply.With(answers[no.Cause], no)
	}
	g.open++
	var a, n *entry
	if addr.IsValid() && !exempt {
		a, n = g.addresses.enter(single(addr), now), g.networks.enter(g.network(addr), now)
	}
	done := false
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if done {
			return
		}
		done = true
		g.open--
		if a != nil {
			now := g.clock()
			g.addresses.leave(a, now)
			g.networks.leave(n, now)
		}
	}, nil
}

// look finds what forbids a connection, nil if nothing does.
func (g *Gate) look(addr netip.Addr, exempt bool, now time.Duration) *Refused {
	if exempt {
		return nil
	}
	if g.o.Penalty != nil {
		if left, closed := g.o.Penalty.Closed(addr); closed {
			return &Refused{Punished, g.o.Penalty.key(addr), int((left + time.Second - 1) / time.Second)}
		}
	}
	if g.o.Total > 0 && g.open >= g.o.Total {
		return &Refused{Cause: TotalOpen, Limit: g.o.Total}
	}
	if !addr.IsValid() {
		return nil
	}
	host, network := single(addr), g.network(addr)
	a, n := g.addresses.entries[host], g.networks.entries[network]
	switch {
	case g.addresses.full(a):
		return &Refused{AddressOpen, host, g.o.Address}
	case g.networks.full(n):
		return &Refused{NetworkOpen, network, g.o.Network}
	case g.addresses.hasty(a, now):
		return &Refused{AddressRate, host, g.o.AddressRate}
	case g.networks.hasty(n, now):
		return &Refused{NetworkRate, network, g.o.NetworkRate}
	}
	return nil
}

// Strike counts points against an address that is not exempt; see Penalty.
func (g *Gate) Strike(addr netip.Addr, points int) {
	addr = addr.Unmap().WithZone("")
	g.mu.Lock()
	p, exempt := g.o.Penalty, g.isExempt(addr)
	g.mu.Unlock()
	if p != nil && !exempt {
		p.Strike(addr, points)
	}
}

// Counts is what a gate knows of itself, for metrics.
type Counts struct {
	// Open are the connections counted in.
	Open int
	// Addresses and Networks are those remembered, with a connection open or not.
	Addresses, Networks int
	// Refused counts refusals by cause since the start.
	Refused [causes]uint64
}

// Counts are the gate's numbers now.
func (g *Gate) Counts() Counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Counts{g.open, len(g.addresses.entries), len(g.networks.entries), g.refused}
}

// clock is the time since the gate was made. It does not jump with the wall
// clock.
func (g *Gate) clock() time.Duration { return g.o.Now().Sub(g.start) }

func (g *Gate) isExempt(addr netip.Addr) bool {
	for _, p := range g.o.Exempt {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func (g *Gate) network(addr netip.Addr) netip.Prefix {
	if addr.Is4() {
		return within(addr, g.o.IPv4Bits)
	}
	return within(addr, g.o.IPv6Bits)
}

func single(addr netip.Addr) netip.Prefix { return within(addr, addr.BitLen()) }

// within is the network of an address, whose prefix is no longer than the
// address is.
func within(addr netip.Addr, bits int) netip.Prefix {
	p, _ := addr.Prefix(bits) // they are in range: see bits
	return p
}
