package rules

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Limits of tcprules sources.
const (
	MaxTCPLine = 64 << 10 // bytes of a line
	MaxTCPKeys = 1 << 20  // rules, with the ranges written out
)

// TCPClient is whom tcprules are asked about.
type TCPClient struct {
	// IP is the client's address, TCPREMOTEIP. One mapped from IPv4 counts as that, and a zone does not count.
	IP netip.Addr
	// Host is its name, TCPREMOTEHOST, "" if none is known: then no rule about hosts applies.
	Host string
	// Info is TCPREMOTEINFO, "" if it is not known.
	Info string
}

// TCPVerdict is what tcprules say about a client. The zero verdict is that of a client without a rule: it is let in.
type TCPVerdict struct {
	Deny bool
	// Env is what the rule assigns, of which RELAYCLIENT may be there and empty; nil if it assigns nothing.
	Env map[string]string
	// Found is set if there was a rule, and Rule is its address as it is written in a source: "10.0.", "=.example.org",
	// "" for the rule of last resort.
	Found bool
	Rule  string
}

// Finder looks keys up, as [CDB] and [CDBFile] do.
type Finder interface {
	// Find appends the first value of key to dst.
	Find(key, dst []byte) (value []byte, ok bool, err error)
}

// TCPRules decide about clients by their address, as tcpserver -x does. They do not change and are safe for concurrent use.
//
// The first rule that exists of these is the client's (tcprules(1), rules.c): info@ip, info@=host, ip, =host, prefixes of
// the address from the longest that end with a dot, networks from the smallest (ucspi-tcp6), =.suffixes of the host from
// the longest, =, and the empty address. For IPv6 the address is written as RFC 5952 has it, and prefixes end with a colon
// (Debian's ucspi-tcp-ipv6). Host names are compared without regard to case.
type TCPRules struct {
	find     Finder
	networks networkLengths
	warnings []error
	records  []CDBRecord // of a source, in its order
}

// CompiledTCPRules are rules that tcprules has compiled: a cdb of its own, or of ucspi-tcp6's, or of Debian's
// ucspi-tcp-ipv6.
func CompiledTCPRules(compiled Finder) *TCPRules {
	return &TCPRules{find: compiled, networks: networkLengths{unknown: true}}
}

// networkLengths is which keys of networks there are, by their length: a client lies in up to 128 of them.
type networkLengths struct {
	unknown bool // there may be any
	lengths [2 + 128 + 1]bool
}

// add takes note of a key.
func (l *networkLengths) add(key string) {
	if key != "" && (key[0] == '_' || key[0] == '^') && len(key) < len(l.lengths) {
		l.lengths[len(key)] = true
	}
}

func (l *networkLengths) has(length int) bool { return l.unknown || l.lengths[length] }

// Warnings are the lines of a source that tcprules takes and that can match no client, with what was probably meant.
func (t *TCPRules) Warnings() []error { return slices.Clone(t.warnings) }

// Records are what tcprules writes for this source; of compiled rules there are none.
func (t *TCPRules) Records() []CDBRecord { return slices.Clone(t.records) }

// Match says what the rules are for a client. An error is one of the compiled file, and no answer.
func (t *TCPRules) Match(c TCPClient) (TCPVerdict, error) {
	s := tcpSearch{find: t.find}
	s.key, s.value = make([]byte, 0, 160), make([]byte, 0, 256)
	found, err := s.search(c, &t.networks)
	if err != nil || !found {
		return TCPVerdict{}, err
	}
	v := TCPVerdict{Found: true, Rule: tcpAddress(s.key)}
	if err := v.decode(s.value); err != nil {
		return TCPVerdict{}, err
	}
	return v, nil
}

// decode reads a value: D for deny, +NAME=VALUE for a variable, each with a NUL at its end (tcpserver.c:found). Whatever
// else there is means nothing.
func (v *TCPVerdict) decode(value []byte) error {
	if len(value) > MaxTCPLine {
		return fmt.Errorf("tcprules: the rule %s has %d bytes, at most %d are read", quote(v.Rule), len(value), MaxTCPLine)
	}
	for {
		entry, rest, ok := bytes.Cut(value, []byte{0})
		if !ok {
			return nil
		}
		value = rest
		switch {
		case len(entry) == 0:
		case entry[0] == 'D':
			v.Deny = true
		case entry[0] == '+':
			name, text, ok := bytes.Cut(entry[1:], []byte{'='})
			if !ok || len(name) == 0 {
				continue
			}
			if v.Env == nil {
				v.Env = map[string]string{}
			}
			v.Env[string(name)] = string(text)
		}
	}
}

// String lays a verdict out as tcprulescheck does, for people.
func (v TCPVerdict) String() string {
	var b strings.Builder
	if v.Found {
		fmt.Fprintf(&b, "rule %s:\n", clean(v.Rule, maxShown))
	} else {
		b.WriteString("default:\n")
	}
	if v.Deny {
		b.WriteString("deny connection\n")
		return b.String()
	}
	for _, name := range slices.Sorted(maps.Keys(v.Env)) {
		fmt.Fprintf(&b, "set environment variable %s=%s\n", clean(name, maxShown), clean(v.Env[name], maxMessage))
	}
	b.WriteString("allow connection\n")
	return b.String()
}

// tcpSearch looks for a client's rule. When it is found, key and value are it.
type tcpSearch struct {
	find       Finder
	key, value []byte
	err        error
}

// try looks up what is in key.
func (s *tcpSearch) try() bool {
	var ok bool
	s.value, ok, s.err = s.find.Find(s.key, s.value[:0])
	return ok || s.err != nil
}

func (s *tcpSearch) search(c TCPClient, networks *networkLengths) (found bool, err error) {
	ip, host := c.IP.Unmap().WithZone(""), lowerASCII(c.Host)
	found = s.exact(ip, host, c.Info) || s.prefixes(ip) || s.networks(ip, networks) || host != "" && s.suffixes(host)
	if !found {
		s.key = s.key[:0]
		found = s.try()
	}
	return found && s.err == nil, s.err
}

// exact tries the rules for this very client.
func (s *tcpSearch) exact(ip netip.Addr, host, info string) bool {
	if info != "" {
		s.key = append(append(s.key[:0], info...), '@')
		if s.address(ip) {
			return true
		}
		if host != "" {
			s.key = append(append(append(s.key[:0], info...), "@="...), host...)
			if s.try() {
				return true
			}
		}
	}
	s.key = s.key[:0]
	if s.address(ip) {
		return true
	}
	if host == "" {
		return false
	}
	s.key = append(append(s.key[:0], '='), host...)
	return s.try()
}

// address tries key with the address in each form in which the programs write it.
func (s *tcpSearch) address(ip netip.Addr) bool {
	if !ip.IsValid() {
		return false
	}
	n := len(s.key)
	s.key = ip.AppendTo(s.key)
	if s.try() {
		return true
	}
	if ip.Is4() {
		return false
	}
	for _, digits := range [...]string{"0123456789ABCDEF", "0123456789abcdef"} {
		s.key = appendExpanded(s.key[:n], ip, digits)
		if s.try() {
			return true
		}
	}
	return false
}

// appendExpanded writes an IPv6 address with all its zeros, as ucspi-tcp6 does (ip6_fmt_str).
func appendExpanded(b []byte, ip netip.Addr, digits string) []byte {
	for i, c := range ip.As16() {
		if i > 0 && i%2 == 0 {
			b = append(b, ':')
		}
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}

// prefixes tries what the address begins with, up to a dot or a colon.
func (s *tcpSearch) prefixes(ip netip.Addr) bool {
	if !ip.IsValid() {
		return false
	}
	end := byte('.')
	if ip.Is6() {
		end = ':'
	}
	s.key = ip.AppendTo(s.key[:0])
	for n := len(s.key); n > 0; n-- {
		if s.key[n-1] == end {
			if s.key = s.key[:n]; s.try() {
				return true
			}
		}
	}
	return false
}

// networks tries the networks around the address. Some versions of ucspi-tcp6 write a NUL after the bits.
func (s *tcpSearch) networks(ip netip.Addr, there *networkLengths) bool {
	if !ip.IsValid() {
		return false
	}
	var room [1 + 128 + 1]byte
	all := appendNetwork(room[:0], ip, ip.BitLen())
	for n := len(all); n > 1; n-- {
		s.key = append(s.key[:0], all[:n]...)
		if there.has(n) && s.try() {
			return true
		}
		s.key = append(s.key, 0)
		if there.has(n+1) && s.try() {
			return true
		}
	}
	return false
}

// appendNetwork writes the key of a network: _ or ^ and a character for each bit, 0 where it is 0. A 1 is another
// character each time, to spread the hashes (ip4_bitstring and ip6_bitstring of ucspi-tcp6).
func appendNetwork(b []byte, ip netip.Addr, bits int) []byte {
	const letters = "abcdefghijklmnopqrstuvwxyz123456"
	mark, text := byte('^'), ip.AsSlice()
	if ip.Is4() {
		mark = '_'
	}
	b = append(b, mark)
	ones := byte(0)
	for i := range bits {
		switch {
		case text[i/8]&(0x80>>(i%8)) == 0:
			b = append(b, '0')
		case ip.Is4():
			b = append(b, letters[i])
		default:
			b = append(b, '`'+ones)
			ones++
		}
	}
	return b
}

// suffixes tries what the host ends with, and = itself, the rule for every host that has a name.
func (s *tcpSearch) suffixes(host string) bool {
	for i := range len(host) {
		if host[i] == '.' {
			s.key = append(append(s.key[:0], '='), host[i:]...)
			if s.try() {
				return true
			}
		}
	}
	s.key = append(s.key[:0], '=')
	return s.try()
}

// tcpAddress is a key as its rule is written.
func tcpAddress(key []byte) string {
	if len(key) == 0 || key[0] != '_' && key[0] != '^' {
		return string(key)
	}
	bits := bytes.TrimSuffix(key[1:], []byte{0})
	room := make([]byte, 16)
	if key[0] == '_' {
		room = room[:4]
	}
	if len(bits) > len(room)*8 {
		return string(key)
	}
	for i, c := range bits {
		if c != '0' {
			room[i/8] |= 0x80 >> (i % 8)
		}
	}
	ip, _ := netip.AddrFromSlice(room)
	return netip.PrefixFrom(ip, len(bits)).String()
}
