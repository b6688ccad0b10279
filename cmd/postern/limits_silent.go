package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue/egress/site"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/limit"
)

// errForget says what can be forgotten.
var errForget = errors.New("only a domain or a site can be forgotten, and an address: nothing is found out about anything else")

// forget forgets what was found out about a domain's site, a site or an address: its
// limits, that servers did not answer, and what the DNS has said of the domain and
// its hosts. A domain that the DNS does not tell of just now can be forgotten, too:
// that is what may have been remembered.
func (l *limits) forget(ctx context.Context, s api.SiteChange) (api.SiteChanged, error) {
	done := api.SiteChanged{Level: s.Level, Name: s.Name}
	var names []string
	switch s.Level {
	case "domain", "":
		done.Level, done.Name = "domain", strings.ToLower(strings.TrimSuffix(s.Name, "."))
		names = []string{done.Name}
		if place, err := l.exit.Locate(ctx, done.Name); err == nil {
			l.learn(place)
			done.Level, done.Name = limit.Site.String(), place.Site.Name
			names = append(names, place.Hosts...)
		}
	case limit.Site.String(), limit.Address.String():
		k, err := l.key(ctx, s.Level, s.Name)
		if err != nil {
			return done, err
		}
		done.Name = k.Name
		names = []string{s.Name}
	default:
		return done, errForget
	}
	var f api.SiteForgotten
	if done.Level == limit.Site.String() {
		names = append(names, l.hosts(done.Name)...)
		done.Unkept = unkept(l.say(func() { f.Learned = l.gate.Forget(done.Name) }, true))
	}
	if done.Level == limit.Address.String() {
		k := limit.Key{Level: limit.Address, Name: done.Name}
		done.Unkept = unkept(l.say(func() { f.Learned = l.gate.Forget(k.String()) }, true))
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		f.Silent = append(f.Silent, l.forgetSilent(name)...)
		if n := l.forgetAnswers(name); n > 0 {
			f.Answers += n
			f.Names = append(f.Names, name)
		}
	}
	if done.Changed = f.Learned+len(f.Silent)+f.Answers > 0; done.Changed {
		done.Forgotten = &f
	}
	return done, nil
}

// hosts are the hosts of a site, as far as they are known.
func (l *limits) hosts(name string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sites[name]; s != nil && len(s.hosts) > 0 {
		return s.hosts
	}
	return site.Hosts(name)
}

// forgetSilent forgets that the addresses of a host, or an address, did not answer,
// and returns those.
func (l *limits) forgetSilent(name string) (all []string) {
	for _, d := range l.exit.Dead() {
		if isHost(&d, name) {
			all = append(all, d.Address.String())
		}
	}
	if len(all) > 0 {
		l.exit.Forget(name)
	}
	return all
}

// isHost reports whether a name or an address is that of a server.
func isHost(d *smtp.Dead, name string) bool {
	if a, ok := literal(name); ok {
		return d.Address.Addr() == a.Unmap()
	}
	return strings.EqualFold(d.Host, strings.TrimSuffix(name, "."))
}

// forgetAnswers drops what the DNS has said of a name.
func (l *limits) forgetAnswers(name string) int {
	if _, ok := literal(name); ok {
		return 0
	}
	if r, ok := l.resolver.(interface{ Forget(name string) int }); ok {
		return r.Forget(name)
	}
	return 0
}

// literal is the address that a host is, if it is one.
func literal(host string) (netip.Addr, bool) {
	if a, ok := wire.Literal(host); ok {
		return a, true
	}
	a, err := netip.ParseAddr(host)
	return a, err == nil
}

func isLiteral(host string) bool {
	_, ok := literal(host)
	return ok
}

// silentHosts are the servers that did not answer lately, by host name, or by address
// where they have none.
func (l *limits) silentHosts() map[string][]api.SiteSilent {
	now, all := l.now(), map[string][]api.SiteSilent{}
	for _, d := range l.exit.Dead() {
		host := strings.ToLower(strings.TrimSuffix(d.Host, "."))
		if host == "" {
			host = d.Address.Addr().String()
		}
		all[host] = append(all[host], silentOf(&d, now))
	}
	return all
}

func silentOf(d *smtp.Dead, now time.Time) api.SiteSilent {
	s := api.SiteSilent{Address: d.Address.String(), Host: d.Host, Failures: d.Failures, Last: isoTime(d.Last)}
	if now.Before(d.Until) {
		s.Until = isoTime(d.Until)
	}
	return s
}

// silent are the servers among hosts and addresses that did not answer lately.
func (l *limits) silent(hosts []string, addresses []netip.Addr) (all []api.SiteSilent) {
	now := l.now()
	for _, d := range l.exit.Dead() {
		if !slices.Contains(addresses, d.Address.Addr()) && !slices.ContainsFunc(hosts, func(h string) bool { return isHost(&d, h) }) {
			continue
		}
		all = append(all, silentOf(&d, now))
	}
	return all
}

// unkept is an error of say as it is told.
func unkept(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
