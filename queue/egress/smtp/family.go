package smtp

import "net/netip"

// Family says which of IPv4 and IPv6 servers are connected to by. The zero value lets
// them take turns, IPv6 first.
type Family uint8

// The families. First means that the other one is tried after it, among the hosts of
// the same preference.
const (
	TakeTurns Family = iota
	IPv4First
	IPv6First
	IPv4Only
	IPv6Only
)

// admits reports whether an address is connected to at all.
func (f Family) admits(a netip.Addr) bool {
	return f != IPv4Only && f != IPv6Only || a.Is4() == (f == IPv4Only)
}

// order puts addresses in the order in which they are tried; those of one family stay
// in theirs.
func (f Family) order(all []candidate) []candidate {
	var byFamily [2][]candidate
	for _, c := range all {
		n := 0
		if c.address.Addr().Is4() != (f == IPv4First) {
			n = 1
		}
		byFamily[n] = append(byFamily[n], c)
	}
	if f != TakeTurns {
		return append(byFamily[0], byFamily[1]...)
	}
	mixed := make([]candidate, 0, len(all))
	for i := range all {
		for _, family := range byFamily {
			if i < len(family) {
				mixed = append(mixed, family[i])
			}
		}
	}
	return mixed
}

// String is the family as noFamily names it.
func (f Family) String() string {
	return [...]string{"both", "IPv4 first", "IPv6 first", "IPv4", "IPv6"}[f]
}
