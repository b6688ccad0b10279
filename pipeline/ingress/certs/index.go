package certs

import (
	"crypto/tls"
	"slices"
	"strings"
	"time"
)

// index finds certificates by name. It never changes: a new one takes its
// place.
type index struct {
	all      []*held
	named    map[string][]*held // with wildcards as they are written
	defaults []*held
}

// newIndex takes certificates in the order of their preference; the first is
// the default.
func newIndex(all []*held) *index {
	x := &index{all: all, named: make(map[string][]*held)}
	byKey := slices.Clone(all)
	slices.SortStableFunc(byKey, func(a, b *held) int {
		switch {
		case a.elliptic == b.elliptic:
			return 0
		case a.elliptic:
			return -1
		}
		return 1
	})
	for _, h := range byKey {
		for _, n := range slices.Compact(slices.Sorted(slices.Values(h.names))) {
			x.named[n] = append(x.named[n], h)
		}
	}
	if len(all) > 0 {
		x.defaults = all[:1]
		if len(all[0].names) > 0 {
			x.defaults = x.named[all[0].names[0]]
		}
	}
	return x
}

// lookup finds the certificates for a name, nil if there are none.
func (x *index) lookup(name string) []*held {
	if name == "" {
		return nil
	}
	name = sniName(name)
	if list := x.named[name]; list != nil {
		return list
	}
	if _, rest, ok := strings.Cut(name, "."); ok {
		return x.named["*."+rest]
	}
	return nil
}

// choose takes the best certificate for a client, nil if there is none at all.
func (x *index) choose(hello *tls.ClientHelloInfo, now time.Time) *held {
	named := x.lookup(hello.ServerName)
	probe := *hello
	probe.ServerName = "" // the name is ours to judge: an unknown one gets the default
	var expired *held
	for _, list := range [...][]*held{named, x.defaults} {
		for _, h := range list {
			if probe.SupportsCertificate(&h.cert) != nil {
				continue
			}
			if now.Before(h.leaf.NotAfter) {
				return h
			}
			if expired == nil {
				expired = h
			}
		}
		if expired != nil {
			return expired
		}
	}
	switch {
	case len(named) > 0:
		return named[0]
	case len(x.defaults) > 0:
		return x.defaults[0]
	}
	return nil
}
