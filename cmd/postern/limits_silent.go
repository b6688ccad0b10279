package main

import (
	"context"
	"strings"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/queue/limit"
)

// forgetSilent forgets that servers did not answer: those of a domain's or a site's
// hosts, or an address. It returns how many were forgotten.
func (l *limits) forgetSilent(ctx context.Context, k limit.Key, s api.SiteChange) (n int) {
	if l.exit == nil {
		return 0
	}
	names := []string{s.Name}
	if k.Level == limit.Site {
		// Also the name of a site is made of hosts or addresses, unless there are many.
		names = append(names, strings.Split(k.Name, ",")...)
		if place, err := l.exit.Locate(ctx, s.Name); err == nil && s.Level != "site" {
			names = append(names, place.Hosts...)
		}
	}
	for _, name := range names {
		if name != "" {
			n += l.exit.Forget(name)
		}
	}
	return n
}
