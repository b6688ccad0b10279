package smtp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue/egress/site"
)

// maxHosts is how many hosts of the same preference are looked up; of more, the
// ones are chosen at random.
const maxHosts = 8

// maxUnknown is how many preferences may turn out to have hosts that cannot be looked
// up for now: each takes as long as a look-up may, and then mail waits for the DNS.
const maxUnknown = 5

// maxHopeless is how many addresses may turn out to be of a network that this
// machine is not on; they do not count as tried.
const maxHopeless = 20

// target is where a domain's mail goes.
type target struct {
	domain string
	site   site.Site
	port   uint16
	// groups are hosts by preference, the best first.
	groups []group
	routed bool
	// discard is set if mail goes nowhere.
	discard bool
	// implicit is set if the domain has no MX, authentic if the DNS proved which
	// hosts it has.
	implicit, authentic bool
}

// group are hosts of the same preference, or in place of them an address or a
// socket.
type group struct {
	hosts   []string
	address netip.Addr
	hop     Hop // how they take mail; its Port is filled in
}

// Site is the site of a domain: its route's host, or the hosts of its MX. An
// error is a *reply.Error; a permanent one means that the domain takes no mail.
// The Resolver's cache makes asking cheap.
func (x *Exit) Site(ctx context.Context, domain string) (site.Site, error) {
	to, err := x.locate(ctx, domain)
	if err != nil {
		return site.Site{}, err
	}
	return to.site, nil
}

func (x *Exit) hostsOf(ctx context.Context, domain string) (*target, error) {
	to := &target{domain: domain, port: x.o.Port}
	if x.o.Routes != nil {
		if hops := x.o.Routes(domain); len(hops) > 0 {
			if !hops[0].IsMX() {
				to.route(hops)
				return to, nil
			}
			if hops[0].Port != 0 {
				to.port = hops[0].Port
			}
		}
	}
	if strings.HasPrefix(domain, "[") {
		a, ok := wire.Literal(domain)
		if !ok {
			return nil, reply.With(noHost(domain), fmt.Errorf("%q is no address literal", domain))
		}
		to.groups, to.site = []group{{address: a, hop: Hop{Port: to.port}}}, site.Of(domain)
		return to, nil
	}
	return to, x.exchangers(ctx, to)
}

// route makes the target the hops of a route.
func (to *target) route(hops []Hop) {
	to.routed = true
	var names []string
	for _, h := range hops {
		if h.Port == 0 {
			if h.Port = transports[h.Transport].port; h.Port == 0 {
				h.Port = to.port
			}
		}
		g := group{hop: h}
		name := h.Host
		switch a, err := netip.ParseAddr(h.Host); {
		case h.Transport == Discard:
			to.discard, name = true, h.String()
		case h.Socket != "":
			name = "unix:" + h.Socket
		case err == nil:
			g.address = a.Unmap()
		default:
			if a, ok := wire.Literal(h.Host); ok {
				g.address = a
			} else {
				g.hosts = []string{h.Host}
			}
		}
		names = append(names, name)
		to.groups = append(to.groups, g)
	}
	to.site = site.Of(names...)
}

// exchangers makes the target the hosts of the domain's MX.
func (x *Exit) exchangers(ctx context.Context, to *target) error {
	mx, err := x.o.Resolver.LookupMX(ctx, to.domain)
	switch {
	case resolve.IsNotFound(err):
		return reply.With(noHost(to.domain), err)
	case err != nil:
		return reply.With(dnsTrouble, err)
	case mx.Null:
		return reply.With(nullMX(to.domain), errors.New("null MX"))
	case len(mx.Hosts) == 0:
		return reply.With(noAddress, errors.New("no MX names a host"))
	}
	to.implicit, to.authentic = mx.Implicit, mx.Authentic || mx.Implicit
	var names []string
	for i, h := range mx.Hosts {
		if i == 0 || h.Preference != mx.Hosts[i-1].Preference {
			to.groups = append(to.groups, group{hop: Hop{Port: to.port}})
		}
		last := &to.groups[len(to.groups)-1].hosts
		*last = append(*last, h.Name)
		names = append(names, h.Name)
	}
	to.site = site.Of(names...)
	return nil
}

// candidate is an address to try.
type candidate struct {
	host    string
	address netip.AddrPort
	hop     Hop
}

// name is the address, or the socket.
func (c candidate) name() string {
	if c.hop.Socket != "" {
		return "unix:" + c.hop.Socket
	}
	return c.address.Addr().String()
}

// String is the candidate as it stands in Result.Where.
func (c candidate) String() string {
	if c.hop.Socket != "" {
		return c.name()
	}
	s := "[" + c.name() + "]"
	if c.address.Port() != 25 {
		s += ":" + fmt.Sprint(c.address.Port())
	}
	if c.host != "" {
		s = c.host + " " + s
	}
	return s
}

// walk goes over a target's addresses in the order in which they are tried, and
// looks hosts up when their turn comes.
type walk struct {
	x      *Exit
	to     *target
	source Source
	group  int // the next one to look up
	ready  []candidate
	seen   spots
	tried  int
	given  bool // there was an address
	// passed is set if addresses were passed over because they did not answer lately,
	// the first of them until then.
	passed bool
	until  time.Time
	soft   error // a host could not be looked up for now
	// unknown are the preferences of which that is true.
	unknown int
	unasked bool // there were more hosts than are looked up
	self    bool // this machine is one of the hosts
	lacks   bool // the source has no address for some of the hosts' addresses
	// unwanted: some of them are of a family that is not connected to
	unwanted bool
}

// pick is the next address, whatever is known of it.
func (w *walk) pick(ctx context.Context) (candidate, bool) {
	most := w.most(w.x.o.MaxAddresses)
	if w.tried >= most {
		return candidate{}, false
	}
	spare := w.ready
	if w.tried > 0 && w.tried == most-1 {
		w.ready = nil
	}
	for len(w.ready) == 0 && w.group < len(w.to.groups) && w.unknown < maxUnknown && ctx.Err() == nil {
		w.look(ctx, w.to.groups[w.group])
		w.group++
	}
	if len(w.ready) == 0 {
		w.ready = spare
	}
	if len(w.ready) == 0 {
		return candidate{}, false
	}
	i := max(0, slices.IndexFunc(w.ready, func(c candidate) bool { return w.x.kept.has(c, w.source) }))
	c := w.ready[i]
	if len(w.ready) == 1 {
		w.ready = nil
	} else {
		w.ready = slices.Delete(slices.Clone(w.ready), i, i+1)
	}
	w.tried++
	return c, true
}

// most is a bound on tries. Each hop of a route gets one.
func (w *walk) most(n int) int {
	if w.to.routed {
		return max(n, len(w.to.groups))
	}
	return n
}

// more reports whether there may be addresses that were not given.
func (w *walk) more() bool { return len(w.ready) > 0 || w.group < len(w.to.groups) }

// look looks the hosts of one preference up and makes their addresses ready.
func (w *walk) look(ctx context.Context, g group) {
	switch {
	case g.hop.Socket != "":
		w.ready = append(w.ready, candidate{hop: g.hop})
		return
	case g.address.IsValid():
		if !w.isSelf("", g.address, g.hop.Port) {
			w.offer("", g.hop, []netip.Addr{g.address})
		}
		return
	}
	hosts := append([]string(nil), g.hosts...)
	w.x.o.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	for _, h := range hosts {
		if w.isSelf(h, netip.Addr{}, g.hop.Port) {
			return
		}
	}
	if len(hosts) > maxHosts {
		hosts, w.unasked = hosts[:maxHosts], true
	}
	found, errs := make([][]netip.Addr, len(hosts)), make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		if a, err := netip.ParseAddr(h); err == nil {
			found[i] = []netip.Addr{a} // an MX must not name an address, but some do (dns.c:dns_ipplus)
			continue
		}
		wg.Go(func() { found[i], errs[i] = w.x.o.Resolver.LookupAddrs(ctx, h) })
	}
	wg.Wait()
	unknown := 0
	for i, h := range hosts {
		if errs[i] != nil && !resolve.IsNotFound(errs[i]) {
			w.soft, unknown = fmt.Errorf("host %s: %w", h, errs[i]), 1
		}
		for _, a := range found[i] {
			if w.isSelf(h, a, g.hop.Port) {
				w.ready = nil
				return
			}
		}
	}
	w.unknown += unknown
	for i, h := range hosts {
		addrs := append([]netip.Addr(nil), found[i]...)
		w.x.o.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
		w.offer(h, g.hop, addrs)
	}
	w.ready = w.family().order(w.ready)
}

// isSelf notes whether a host is this one, and then leaves out what is left. Whoever
// wrote 127.0.0.1 into the DNS meant our port 25, where mail would come back in as if
// it were from here.
func (w *walk) isSelf(host string, a netip.Addr, port uint16) bool {
	switch {
	case w.to.routed, a.IsValid() && port != 25:
		return false
	case a.Unmap().IsLoopback():
	case w.x.o.Self == nil, !w.x.o.Self(host, a):
		return false
	}
	w.self, w.group = true, len(w.to.groups)
	return true
}

// family is what the configuration in force says of IPv4 and IPv6.
func (w *walk) family() Family { return w.x.manner.Load().family }

// offer makes those addresses ready that can be tried at all.
func (w *walk) offer(host string, hop Hop, addrs []netip.Addr) {
	for _, a := range addrs {
		a = a.Unmap()
		c := candidate{host, netip.AddrPortFrom(a, hop.Port), hop}
		at := spot{c.address, hop.Transport}
		if w.seen.has(at) || a.IsUnspecified() || a.IsMulticast() {
			continue
		}
		if !w.family().admits(a) {
			w.unwanted = true
			continue
		}
		if _, ok := w.source.reaching(a); !ok {
			w.lacks = true
			continue
		}
		w.seen.add(at)
		w.ready = append(w.ready, c)
	}
}

// hopeless takes back an address of a network that this machine is not on.
func (w *walk) hopeless() {
	if w.seen.len() < maxHopeless {
		w.tried--
	}
}

// nothing is the result if there was no address to try.
func (w *walk) nothing() Result {
	name := w.to.domain
	switch {
	case w.passed:
		return Result{Reply: noConn, Err: w.errDead()}
	case w.self:
		return Result{Reply: ambiguous}
	case w.lacks:
		fault := &SourceError{Source: w.source}
		return Result{Reply: noSource(fault), Err: fault}
	case w.unwanted:
		return Result{Reply: noFamily(w.family())}
	case w.soft != nil:
		return Result{Reply: dnsTrouble, Err: w.soft}
	case w.unasked: // others are chosen the next time
		return Result{Reply: dnsTrouble, Err: fmt.Errorf("none of %d hosts has an address, and there are more of the same preference", maxHosts)}
	case w.to.routed:
		return Result{Reply: noRouteHost(w.to.groups[0].hop.Host)}
	case w.to.implicit:
		return Result{Reply: noHost(name)}
	}
	return Result{Reply: noAddress}
}
