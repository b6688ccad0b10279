package smtp

import (
	"context"
	"slices"
	"strings"

	"github.com/postern-mta/postern/queue/egress/site"
)

// Place is the far end of a domain's mail.
type Place struct {
	Site site.Site
	// Hosts are the names of the hosts, in small letters, sorted; none for an
	// address.
	Hosts []string
	// Routed is set if a route says so, and not the DNS.
	Routed bool
}

// Locate is Site, with the hosts. Errors are Site's.
func (x *Exit) Locate(ctx context.Context, domain string) (Place, error) {
	to, err := x.locate(ctx, domain)
	if err != nil {
		return Place{}, err
	}
	p := Place{Site: to.site, Routed: to.routed}
	for _, g := range to.groups {
		for _, h := range g.hosts {
			p.Hosts = append(p.Hosts, strings.ToLower(strings.TrimSuffix(h, ".")))
		}
	}
	slices.Sort(p.Hosts)
	p.Hosts = slices.Compact(p.Hosts)
	return p, nil
}

// locate finds where a domain's mail goes, and to which site.
func (x *Exit) locate(ctx context.Context, domain string) (*target, error) {
	to, err := x.hostsOf(ctx, domain)
	if err == nil && x.o.Group != nil {
		to.site = to.site.In(x.o.Group(domain))
	}
	return to, err
}

// group is the group that the site is in.
func (to *target) group() string { return site.Group(to.site.Name) }
