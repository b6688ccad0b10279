package resolve

import (
	"context"
	"errors"
	"net/netip"
	"sort"
	"strings"

	"github.com/miekg/dns"
)

const (
	// maxNames bounds how many names of an address are tried: nobody needs ten,
	// and each costs a question that a stranger chose.
	maxNames = 10
	// nameShare is the part of the deadline that one name may use up.
	nameShare = 4
)

// Names tells what the DNS calls an address: confirmed is a name that the
// reverse DNS gives and that has the address among its own (the "iprev" of
// RFC 8601 §3), claimed is that name too, or where none is confirmed one that
// the reverse DNS gives. Of several names the first by the alphabet counts, and
// ten are tried at most. Names with bytes that no host name has, or that could
// be taken for an IPv4 address, are not names.
//
// Both are "" without an error where there is no name. The error is temporary,
// and says that another answer could have come if the DNS had been whole: with
// it claimed may be set, confirmed never is. The whole ends by the Deadline.
func (r *Resolver) Names(ctx context.Context, addr netip.Addr) (confirmed, claimed string, err error) {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		return "", "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.o.Deadline)
	defer cancel()
	names, err := r.LookupAddr(ctx, addr.String())
	switch {
	case IsNotFound(err):
		return "", "", nil
	case err != nil:
		return "", "", err
	}
	names = hostNames(names)
	if len(names) == 0 {
		return "", "", nil
	}
	var trouble error
	for _, name := range names[:min(len(names), maxNames)] {
		ok, err := r.has(ctx, name, addr)
		if ok {
			return name, name, nil
		}
		if err != nil && trouble == nil {
			trouble = err
		}
	}
	return "", names[0], trouble
}

// hostNames sorts names and leaves out those that occur twice or end in a
// number (RFC 1123 §2.1).
func hostNames(names []string) []string {
	sorted := append([]string(nil), names...)
	sort.Strings(sorted)
	kept := sorted[:0]
	for _, name := range sorted {
		last := name[strings.LastIndexByte(name, '.')+1:]
		if strings.Trim(last, "0123456789") != "" && (len(kept) == 0 || kept[len(kept)-1] != name) {
			kept = append(kept, name)
		}
	}
	return kept
}

// has reports whether a name has an address. That it has none is no error.
func (r *Resolver) has(ctx context.Context, name string, addr netip.Addr) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, r.o.Deadline/nameShare)
	defer cancel()
	kind := dns.TypeA
	if addr.Is6() {
		kind = dns.TypeAAAA
	}
	a, err := r.ask(ctx, name, kind)
	if err != nil {
		if IsNotFound(err) {
			return false, nil
		}
		return false, err
	}
	for _, found := range addrsOf(a.records) {
		if found == addr {
			return true, nil
		}
	}
	return false, nil
}

// LookupA asks for the IPv4 addresses of a name and for nothing else: what a
// DNS list answers is one (RFC 5782 §2.1), and a question for IPv6 addresses
// would only use up what its operator allows. A name without any is not found.
func (r *Resolver) LookupA(ctx context.Context, name string) ([]netip.Addr, error) {
	a, err := r.ask(ctx, name, dns.TypeA)
	if err != nil {
		return nil, err
	}
	all := addrsOf(a.records)
	if len(all) == 0 {
		return nil, notFound(name, errors.New("name has no IPv4 address"))
	}
	return all, nil
}
