package greylist

import (
	"context"
	"net/netip"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
)

// client is what a client is known by.
type client struct {
	network string
	// domain is the registrable domain of its name, "" if it has none that counts.
	domain string
}

// name is what its triplets are recorded under.
func (c client) name() string {
	if c.domain != "" {
		return c.domain
	}
	return c.network
}

// names are all that it may have been allowed under.
func (c client) names() []string {
	if c.domain != "" {
		return []string{c.domain, c.network}
	}
	return []string{c.network}
}

// clientOf is the client of a session.
func (f *Filter) clientOf(ctx context.Context, s *pipeline.Session, addr netip.Addr) client {
	c := client{network: f.network(addr)}
	if f.byName && !madeOf(s.PeerName, addr) {
		if domain := registrable(s.PeerName); domain != "" && f.confirmed(ctx, s, addr) {
			c.domain = domain
		}
	}
	return c
}

// network is the network of an address, in words.
func (f *Filter) network(addr netip.Addr) string {
	bits := f.bits6
	if addr.Is4() {
		bits = f.bits4
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return addr.String()
	}
	return p.String()
}

// confirmed reports whether the forward DNS confirms a session's name. Our own
// servers have asked; who calls a shim need not have.
func (f *Filter) confirmed(ctx context.Context, s *pipeline.Session, addr netip.Addr) bool {
	if s.Protocol == "smtp" || s.Protocol == "lmtp" {
		return true
	}
	if f.resolver == nil {
		return false
	}
	found, err := f.resolver.LookupHost(ctx, s.PeerName)
	if err != nil {
		return false
	}
	for _, text := range found[:min(len(found), 100)] {
		if a, err := netip.ParseAddr(text); err == nil && a.Unmap() == addr {
			return true
		}
	}
	return false
}

// registrable is the domain that somebody has registered of a host's name:
// below it all names are of one owner. "" if there is none.
func registrable(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if !pipeline.IsFQDN(name) {
		return ""
	}
	domain, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil || len(domain) > maxPart {
		return ""
	}
	return domain
}

// madeOf reports whether a name was made of an address, as providers name their
// customers' lines: two of the IPv4 address's numbers stand in it, or all four as
// hexadecimal digits; of IPv6, two of its groups.
func madeOf(name string, addr netip.Addr) bool {
	if addr.Is4() {
		b := addr.As4()
		const hex = "0123456789abcdef"
		var digits strings.Builder
		for _, x := range b {
			digits.WriteByte(hex[x>>4])
			digits.WriteByte(hex[x&15])
		}
		if strings.Contains(strings.ToLower(name), digits.String()) {
			return true
		}
		numbers := map[int]bool{}
		for _, x := range b {
			numbers[int(x)] = true
		}
		return stand(name, 10, numbers) >= min(2, len(numbers))
	}
	b := addr.As16()
	groups := map[int]bool{}
	for i := 0; i < 16; i += 2 {
		if g := int(b[i])<<8 | int(b[i+1]); g > 0 {
			groups[g] = true
		}
	}
	return stand(name, 16, groups) >= min(2, len(groups))
}

// stand counts which of the numbers stand in a name as words of digits, zeros in
// front of them aside.
func stand(name string, base int, numbers map[int]bool) int {
	seen := map[int]bool{}
	value, length := 0, 0
	end := func() {
		if length > 0 && length <= 4 && numbers[value] {
			seen[value] = true
		}
		value, length = 0, 0
	}
	for i := range len(name) {
		d := digit(name[i], base)
		if d < 0 {
			end()
			continue
		}
		if length++; length <= 4 {
			value = value*base + d
		}
	}
	end()
	return len(seen)
}

func digit(c byte, base int) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case base == 16 && c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case base == 16 && c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// sender is what of a sender's address counts.
func (f *Filter) sender(address string) string {
	address = strings.ToLower(address)
	if !f.normalise || address == "" {
		return address
	}
	local, domain := envelope.Local(address), address[len(envelope.Local(address)):]
	if tag, rest, ok := cutTag(local, "prvs"); ok && len(tag) == 10 { // BATV: prvs=0123456789=local
		local = rest
	} else if _, rest, ok := strings.Cut(local, "=prvs="); ok && len(rest) == 10 { // Barracuda's way round
		local = strings.TrimSuffix(local, "=prvs="+rest)
	}
	local = withoutSRS(local)
	return collapse(local) + domain
}

// cutTag cuts "name=tag=" off.
func cutTag(local, name string) (tag, rest string, ok bool) {
	if !strings.HasPrefix(local, name) || len(local) <= len(name) || !strings.ContainsRune("=+-", rune(local[len(name)])) {
		return "", "", false
	}
	return strings.Cut(local[len(name)+1:], "=")
}

// withoutSRS leaves hash and time out of an SRS address:
// srs0=HASH=TT=domain=local, srs1=HASH=host==HASH=TT=domain=local.
func withoutSRS(local string) string {
	if hash, rest, ok := cutTag(local, "srs0"); ok && hash != "" {
		if _, original, ok := strings.Cut(rest, "="); ok {
			return "srs0=" + original
		}
	}
	if hash, rest, ok := cutTag(local, "srs1"); ok && hash != "" {
		if parts := strings.SplitN(rest, "=", 5); len(parts) == 5 {
			return "srs1=" + parts[0] + "=" + parts[4]
		}
	}
	return local
}

// collapse makes a # of every word that holds a digit.
func collapse(local string) string {
	var b strings.Builder
	for len(local) > 0 {
		n := strings.IndexAny(local, "=+-._")
		if n < 0 {
			n = len(local)
		}
		if word := local[:n]; strings.ContainsAny(word, "0123456789") {
			b.WriteByte('#')
		} else {
			b.WriteString(word)
		}
		if n < len(local) {
			b.WriteByte(local[n])
			n++
		}
		local = local[n:]
	}
	return b.String()
}
