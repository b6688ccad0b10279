package pipeline

import (
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// HeloLiteral is the address of a HELO that is an address literal
// (RFC 5321 §4.1.3), "[192.0.2.1]" or "[IPv6:2001:db8::1]"; the tag may be
// missing, as many clients leave it out. ok is false for anything else.
func (s *Session) HeloLiteral() (addr netip.Addr, ok bool) {
	in, ok := strings.CutPrefix(s.Helo, "[")
	if !ok {
		return netip.Addr{}, false
	}
	if in, ok = strings.CutSuffix(in, "]"); !ok {
		return netip.Addr{}, false
	}
	const tag = "ipv6:"
	tagged := len(in) >= len(tag) && strings.EqualFold(in[:len(tag)], tag)
	if tagged {
		in = in[len(tag):]
	}
	addr, err := netip.ParseAddr(in)
	if err != nil || addr.Zone() != "" || tagged && addr.Is4() {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// HeloMatches reports whether the client's name for itself is true: PeerName,
// or the literal of its address.
func (s *Session) HeloMatches() bool {
	if addr, ok := s.HeloLiteral(); ok {
		return addr == s.Peer.Addr().Unmap().WithZone("")
	}
	helo := strings.TrimSuffix(s.Helo, ".")
	return helo != "" && strings.EqualFold(helo, strings.TrimSuffix(s.PeerName, "."))
}

// HeloFQDN reports whether the client's name for itself has the form of a host
// name in the DNS.
func (s *Session) HeloFQDN() bool { return IsFQDN(s.Helo) }

// IsFQDN reports whether a name has the form of a full host name in the DNS
// (RFC 5321 §2.3.5): at least two labels, the last no number. Underscores are
// let pass, since many honest hosts have them, and so are letters of other
// scripts in UTF-8 (RFC 6531 §3.7.1) and a dot at the end.
func IsFQDN(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if len(name) > 253 || !utf8.ValidString(name) {
		return false
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notInLabel) {
			return false
		}
	}
	return len(labels) > 1 && strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

// notInLabel reports whether a character cannot stand in a host name.
func notInLabel(r rune) bool {
	switch {
	case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '-', r == '_':
		return false
	}
	return r < utf8.RuneSelf || !unicode.In(r, unicode.L, unicode.M, unicode.N)
}
