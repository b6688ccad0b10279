package pipeline

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzHelo: whatever a client calls itself, it is at most one of a host name and
// a literal, a host name has nothing that could break a line or a header, and a
// literal is the address that it spells.
func FuzzHelo(f *testing.F) {
	for _, s := range []string{"mail.example.net", "[192.0.2.1]", "[IPv6:2001:db8::1]", "a.b\r\n", "[IPv6:]", "b\u00fccher.example.", "..", "[::ffff:192.0.2.1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, helo string) {
		s := &Session{Helo: helo, PeerName: "mail.example.net", Peer: netip.MustParseAddrPort("192.0.2.1:25")}
		addr, literal := s.HeloLiteral()
		if literal && s.HeloFQDN() {
			t.Errorf("%q is both", helo)
		}
		if literal != addr.IsValid() || literal && (addr.Is4In6() || addr.Zone() != "") {
			t.Errorf("%q: %v", helo, addr)
		}
		if s.HeloFQDN() && (strings.ContainsAny(helo, " \t\r\n\x00\x7f\"'()<>[]:;@\\,") || len(helo) > 254 || !strings.Contains(helo, ".")) {
			t.Errorf("%q is a host name", helo)
		}
		if matches := s.HeloMatches(); matches && !(literal && addr == s.Peer.Addr()) && !strings.EqualFold(strings.TrimSuffix(helo, "."), s.PeerName) {
			t.Errorf("%q matches", helo)
		}
		if literal {
			if again, ok := (&Session{Helo: "[IPv6:" + addr.String() + "]"}).HeloLiteral(); addr.Is6() && (!ok || again != addr) {
				t.Errorf("%q: %v, again %v", helo, addr, again)
			}
		}
	})
}
