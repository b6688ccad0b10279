package rules

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// lowerASCII lowers the letters A to Z and leaves every other byte alone.
func lowerASCII(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				b[i] = lowerByte(b[i])
			}
			return string(b)
		}
	}
	return s
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// equalFold compares with the case of ASCII letters ignored. strings.EqualFold takes any two malformed bytes for equal,
// and the Kelvin sign for a k.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lowerByte(a[i]) != lowerByte(b[i]) {
			return false
		}
	}
	return true
}

// changeCase is lower and upper: whole Unicode where s is valid UTF-8, else the ASCII letters only.
func changeCase(s string, whole func(string) string, ascii func(string) string) string {
	if utf8.ValidString(s) {
		return whole(s)
	}
	return ascii(s)
}

func upperASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// domainOf returns what follows the last @, with ASCII letters lowered and one final dot dropped; "" without an @.
func domainOf(addr string) string {
	i := strings.LastIndexByte(addr, '@')
	if i < 0 {
		return ""
	}
	return lowerASCII(strings.TrimSuffix(addr[i+1:], "."))
}

// localOf returns what precedes the last @, as it is; the whole without an @.
func localOf(addr string) string {
	if i := strings.LastIndexByte(addr, '@'); i >= 0 {
		return addr[:i]
	}
	return addr
}

// inDomain says whether a host, or the host of an address, is the domain or below it.
func inDomain(s, domain string) bool {
	host := strings.TrimSuffix(s[strings.LastIndexByte(s, '@')+1:], ".")
	domain = strings.TrimSuffix(domain, ".")
	if domain == "" || len(host) < len(domain) {
		return false
	}
	cut := len(host) - len(domain)
	return equalFold(host[cut:], domain) && (cut == 0 || host[cut-1] == '.')
}

// checkDomain refuses the literals that could be meant as something else.
func checkDomain(domain string) error {
	if domain == "" || strings.HasPrefix(domain, ".") || strings.ContainsAny(domain, "@*? ") {
		return fmt.Errorf(`indomain takes a domain such as "example.org", not %s`, quote(domain))
	}
	return nil
}

// globs are patterns of like.
type globs struct{ patterns []string }

func newGlobs(patterns []string) (any, error) {
	g := &globs{patterns: make([]string, len(patterns))}
	for i, p := range patterns {
		g.patterns[i] = lowerASCII(p)
	}
	return g, nil
}

func (g *globs) match(s string) bool {
	for _, p := range g.patterns {
		if globMatch(p, s) {
			return true
		}
	}
	return false
}

// globMatch matches a lowered pattern: * is any run of bytes, ? one character (or one byte that is none). It goes back
// only to the last *, so it takes at most len(pattern)·len(s) steps.
func globMatch(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == '?':
			_, size := utf8.DecodeRuneInString(s[i:])
			i += size
			p++
		case p < len(pattern) && pattern[p] == lowerByte(s[i]):
			i++
			p++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// networks are the arguments of cidr.
type networks struct{ prefixes []netip.Prefix }

func newNetworks(texts []string) (any, error) {
	n := &networks{}
	for _, t := range texts {
		p, err := parseNetwork(t)
		if err != nil {
			return nil, err
		}
		n.prefixes = append(n.prefixes, p)
	}
	return n, nil
}

// parseNetwork reads a.b.c.d/n, an IPv6 prefix, or one address. IPv4-mapped networks become IPv4 ones.
func parseNetwork(text string) (netip.Prefix, error) {
	bad := fmt.Errorf(`%s is no network such as "10.0.0.0/8" or "2001:db8::/32"`, quote(text))
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, bad
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, bad
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, bad
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s has bits beyond its length, did you mean %q?", quote(text), p.Masked())
	}
	return p, nil
}

// contains says whether the address is in one of the networks; what is no address is in none.
func (n *networks) contains(ip string) bool {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return false
	}
	a = a.Unmap().WithZone("")
	for _, p := range n.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
