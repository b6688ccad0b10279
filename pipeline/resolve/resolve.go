// Package resolve asks the DNS what a mail system needs to know: mail
// exchangers, addresses, texts and names.
//
// It promises that every look-up ends by its deadline, that an answer of any
// size or shape is bounded before it is kept, that "there is no such name" and
// "nobody could tell" are never confused, and that the same question asked at
// the same time goes out once. A Resolver is safe for concurrent use; a daemon
// has one.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sort"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/idna"
)

// Options of New. The zero value asks the servers of /etc/resolv.conf.
type Options struct {
	// Servers are "address:port" of recursive resolvers; default resolv.conf's.
	Servers []string
	// Timeout bounds one exchange with one server (default 5 s), Deadline a whole
	// look-up (default 20 s).
	Timeout, Deadline time.Duration
	// Rounds is how often each server is asked; default 2.
	Rounds int
	// CacheEntries bounds the cache; default 65,536.
	CacheEntries int
	// MaxTTL bounds how long an answer is kept (default 1 h); MaxNegativeTTL
	// how long an absence is (default 5 min).
	MaxTTL, MaxNegativeTTL time.Duration
	// TrustAD believes the servers' DNSSEC flag (RFC 4035 §3.2.3): only for
	// validating servers on a path that nobody can forge.
	TrustAD bool
	// Now is the clock of the cache; default time.Now.
	Now func() time.Time
}

// The bounds of what is kept of one answer.
const (
	maxRecords = 300
	maxChain   = 8
	maxText    = 64 << 10
)

// Resolver asks and remembers.
type Resolver struct {
	o     Options
	cache *cache
}

// New returns a Resolver. It fails if there is no server to ask.
func New(o Options) (*Resolver, error) {
	if len(o.Servers) == 0 {
		c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil {
			return nil, fmt.Errorf("resolver: %w", err)
		}
		for _, s := range c.Servers {
			o.Servers = append(o.Servers, net.JoinHostPort(s, c.Port))
		}
	}
	if len(o.Servers) == 0 {
		return nil, errors.New("resolver: no DNS server is configured (name one, or see /etc/resolv.conf)")
	}
	defaults := []struct {
		d   *time.Duration
		def time.Duration
	}{{&o.Timeout, 5 * time.Second}, {&o.Deadline, 20 * time.Second}, {&o.MaxTTL, time.Hour}, {&o.MaxNegativeTTL, 5 * time.Minute}}
	for _, x := range defaults {
		if *x.d == 0 {
			*x.d = x.def
		}
	}
	if o.Rounds == 0 {
		o.Rounds = 2
	}
	if o.CacheEntries == 0 {
		o.CacheEntries = 1 << 16
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Resolver{o: o, cache: newCache(o.CacheEntries, o.Now)}, nil
}

// MX is where a domain takes its mail.
type MX struct {
	// Hosts by preference; among equals in the order of their names. There are none
	// if Null is set, or if no record names what can be a host.
	Hosts []Host
	// Null is set for a domain that takes no mail (RFC 7505 §3); Hosts is empty.
	Null bool
	// Implicit is set if the domain has no MX and stands for itself (RFC 5321 §5.1).
	Implicit bool
	// Authentic is set if the answer was validated (DNSSEC).
	Authentic bool
}

// Host is one mail exchanger: a lower-case name without the final dot.
type Host struct {
	Name       string
	Preference uint16
}

// LookupMX asks for a domain's mail exchangers. A domain that exists without MX
// is its own; whether that host has an address is the caller's to find out. A
// domain that does not exist is a *net.DNSError with IsNotFound.
func (r *Resolver) LookupMX(ctx context.Context, domain string) (MX, error) {
	a, err := r.ask(ctx, domain, dns.TypeMX)
	if err != nil {
		return MX{}, err
	}
	mx := MX{Authentic: a.authentic}
	for _, rr := range a.records {
		m := rr.(*dns.MX)
		if name := host(m.Mx); name != "" {
			mx.Hosts = append(mx.Hosts, Host{name, m.Preference})
		} else if m.Mx == "." {
			mx.Null = true
		}
	}
	switch {
	case len(mx.Hosts) > 0:
		mx.Null = false
	case len(a.records) == 0:
		name, err := ascii(domain)
		if err != nil {
			return MX{}, notFound(domain, err)
		}
		mx.Hosts, mx.Implicit = []Host{{Name: name}}, true
	}
	sort.SliceStable(mx.Hosts, func(i, k int) bool {
		a, b := mx.Hosts[i], mx.Hosts[k]
		if a.Preference != b.Preference {
			return a.Preference < b.Preference
		}
		return a.Name < b.Name
	})
	return mx, nil
}

// LookupAddrs asks for a host's addresses, IPv6 and IPv4 together. It fails as
// not found if there is neither, and temporarily if one question could not be
// answered and the other gave nothing.
func (r *Resolver) LookupAddrs(ctx context.Context, name string) ([]netip.Addr, error) {
	type result struct {
		a   answer
		err error
	}
	v6 := make(chan result, 1)
	go func() {
		a, err := r.ask(ctx, name, dns.TypeAAAA)
		v6 <- result{a, err}
	}()
	four, err4 := r.ask(ctx, name, dns.TypeA)
	six := <-v6
	all := addrsOf(append(append([]dns.RR(nil), six.a.records...), four.records...))
	if len(all) > 0 {
		return all, nil
	}
	for _, err := range []error{err4, six.err} {
		if err != nil && !IsNotFound(err) {
			return nil, err
		}
	}
	return nil, notFound(name, errors.New("host has no address"))
}

// addrsOf are the addresses in records, those of IPv4 in their own form.
func addrsOf(records []dns.RR) []netip.Addr {
	var all []netip.Addr
	for _, rr := range records {
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, a.Unmap())
		}
	}
	return all
}

// LookupHost is LookupAddrs with the addresses as strings.
func (r *Resolver) LookupHost(ctx context.Context, name string) ([]string, error) {
	addrs, err := r.LookupAddrs(ctx, name)
	all := make([]string, len(addrs))
	for i, a := range addrs {
		all[i] = a.String()
	}
	return all, err
}

// LookupTXT asks for the texts of a name, the strings of each record joined.
// A name without texts is not found.
func (r *Resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	a, err := r.ask(ctx, name, dns.TypeTXT)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, rr := range a.records {
		all = append(all, strings.Join(rr.(*dns.TXT).Txt, ""))
	}
	if len(all) == 0 {
		return nil, notFound(name, errors.New("name has no text"))
	}
	return all, nil
}

// LookupAddr asks for the names of an address, lower-case and without a dot at
// the end. What comes back is what somebody claims.
func (r *Resolver) LookupAddr(ctx context.Context, address string) ([]string, error) {
	reverse, err := dns.ReverseAddr(address)
	if err != nil {
		return nil, notFound(address, err)
	}
	a, err := r.ask(ctx, reverse, dns.TypePTR)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, rr := range a.records {
		if name := host(rr.(*dns.PTR).Ptr); name != "" {
			all = append(all, name)
		}
	}
	if len(all) == 0 {
		return nil, notFound(address, errors.New("address has no name"))
	}
	return all, nil
}

// host is a name from an answer, "" for the root and for what is no host name:
// labels may hold any byte, and such names end up in logs and headers.
func host(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if len(name) > 253 {
		return ""
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return ""
		}
	}
	return name
}

// ascii is a name as the DNS has it (RFC 5891 §4).
func ascii(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	for i := 0; i < len(name); i++ {
		if name[i] >= 0x80 {
			return idna.Lookup.ToASCII(name)
		}
	}
	return strings.ToLower(name), nil
}

// IsNotFound reports whether an error says that there is no such name or
// record; every other error is temporary.
func IsNotFound(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsNotFound
}

func notFound(name string, err error) error {
	return &net.DNSError{Err: err.Error(), Name: printable(name), IsNotFound: true}
}

func temporary(name string, err error) error {
	var timeout net.Error
	return &net.DNSError{
		Err: err.Error(), Name: printable(name), IsTemporary: true,
		IsTimeout: errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout(),
	}
}

func printable(name string) string {
	if len(name) > 255 {
		name = name[:255]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
}

// kinds are those that are asked for.
var kinds = [...]uint16{dns.TypeMX, dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypePTR}

// Forget drops what is remembered of a name, so that the DNS is asked again, and
// returns how many answers that were. Who waits for an answer gets it still; what
// arrives after Forget for a question before it is not remembered.
func (r *Resolver) Forget(name string) int {
	q, err := ascii(name)
	if err != nil {
		return 0
	}
	return r.cache.forget(dns.Fqdn(q), kinds[:])
}

// answer is what is kept of a response. An empty answer without an error is a
// name that exists without such records.
type answer struct {
	records   []dns.RR
	authentic bool
	missing   bool // there is no such name
	ttl       time.Duration
}

// ask answers from the cache or asks the servers.
func (r *Resolver) ask(ctx context.Context, name string, kind uint16) (answer, error) {
	q, err := ascii(name)
	if err == nil {
		if _, ok := dns.IsDomainName(q); !ok || q == "" {
			err = errors.New("not a domain name")
		}
	}
	if err != nil {
		return answer{}, notFound(name, err)
	}
	a, err := r.cache.get(ctx, question{dns.Fqdn(q), kind}, r.o.Deadline, r.resolve)
	if err != nil {
		return answer{}, temporary(name, err)
	}
	if a.missing {
		return answer{}, notFound(name, errors.New("no such domain"))
	}
	return a, nil
}

// resolve follows aliases that the server left to us.
func (r *Resolver) resolve(ctx context.Context, q question) (answer, error) {
	seen := map[string]bool{}
	ttl, authentic := r.o.MaxTTL, true
	for range maxChain {
		seen[q.name] = true
		m, err := r.exchange(ctx, q)
		if err != nil {
			return answer{}, err
		}
		a, next, err := r.read(m, q)
		if err != nil {
			return answer{}, err
		}
		ttl, authentic = min(ttl, a.ttl), authentic && a.authentic
		if a.ttl, a.authentic = ttl, authentic; next == "" {
			return a, nil
		}
		if q.name = next; seen[next] {
			return answer{}, errCircle
		}
	}
	return answer{}, errChain
}

var (
	errCircle = errors.New("aliases (CNAME) lead in a circle")
	errChain  = fmt.Errorf("more than %d aliases (CNAME) in a row", maxChain)
)

// read takes what answers q out of a response; next is an alias whose target
// the response does not hold.
func (r *Resolver) read(m *dns.Msg, q question) (a answer, next string, err error) {
	a = answer{authentic: m.AuthenticatedData && r.o.TrustAD, missing: m.Rcode == dns.RcodeNameError, ttl: r.o.MaxTTL}
	alias := map[string]string{}
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok && len(alias) < maxRecords {
			alias[strings.ToLower(c.Hdr.Name)] = strings.ToLower(c.Target)
			a.ttl = min(a.ttl, time.Duration(c.Hdr.Ttl)*time.Second)
		}
	}
	name := strings.ToLower(q.name)
	for i := 0; alias[name] != ""; i++ {
		if i > len(alias) {
			return answer{}, "", errCircle
		}
		if i == maxChain {
			return answer{}, "", errChain
		}
		name = alias[name]
	}
	text, stray := 0, false
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Rrtype != q.kind || len(a.records) == maxRecords {
			continue
		}
		if strings.ToLower(h.Name) != name {
			stray = true
			continue
		}
		if text += dns.Len(rr); text > maxText {
			break
		}
		a.records = append(a.records, rr)
		a.ttl = min(a.ttl, time.Duration(h.Ttl)*time.Second)
	}
	if len(a.records) > 0 {
		a.missing = false
		return a, "", nil
	}
	if stray {
		// Not to be taken for an absence.
		return answer{}, "", errors.New("the answer is about another name")
	}
	if name != strings.ToLower(q.name) && !a.missing {
		return a, name, nil
	}
	a.ttl = min(a.ttl, r.o.MaxNegativeTTL)
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			a.ttl = min(a.ttl, time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second)
		}
	}
	return a, "", nil
}

// exchange asks the servers in turn until one gives an answer that says
// something: NOERROR or NXDOMAIN.
func (r *Resolver) exchange(ctx context.Context, q question) (*dns.Msg, error) {
	var last error
	start := rand.IntN(len(r.o.Servers))
	for i := range r.o.Rounds * len(r.o.Servers) {
		server := r.o.Servers[(start+i)%len(r.o.Servers)]
		m, err := r.one(ctx, q, server)
		if err == nil {
			return m, nil
		}
		last = fmt.Errorf("server %s: %w", server, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// one is one exchange, over TCP if the answer did not fit.
func (r *Resolver) one(ctx context.Context, q question, server string) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.kind)
	m.SetEdns0(1232, r.o.TrustAD)
	m.AuthenticatedData = r.o.TrustAD
	for _, network := range []string{"udp", "tcp"} {
		ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
		c := dns.Client{Net: network, UDPSize: 1232, Timeout: r.o.Timeout}
		m.Id = dns.Id()
		in, _, err := c.ExchangeContext(ctx, m, server)
		cancel()
		switch {
		case err != nil:
			return nil, err
		case !in.Response || len(in.Question) != 1 || !strings.EqualFold(in.Question[0].Name, q.name) || in.Question[0].Qtype != q.kind:
			return nil, errors.New("the answer is to another question")
		case in.Truncated && network == "udp":
			continue
		case in.Rcode != dns.RcodeSuccess && in.Rcode != dns.RcodeNameError:
			return nil, fmt.Errorf("it answered %s", dns.RcodeToString[in.Rcode])
		case in.Truncated:
			return nil, errors.New("the answer is cut short over TCP")
		case isLame(in):
			return nil, errors.New("it neither knows the answer nor asks for it")
		}
		return in, nil
	}
	return nil, errors.New("no answer")
}

// isLame reports whether a response says nothing: its server is not the one to
// know, and sends on instead of asking. Taken for an absence, it would bounce
// mail.
func isLame(m *dns.Msg) bool {
	if m.Authoritative || len(m.Answer) > 0 || m.Rcode != dns.RcodeSuccess {
		return false
	}
	referral := false
	for _, rr := range m.Ns {
		switch rr.(type) {
		case *dns.SOA:
			return false
		case *dns.NS:
			referral = true
		}
	}
	return referral || !m.RecursionAvailable
}
