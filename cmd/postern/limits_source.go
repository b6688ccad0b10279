package main

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/limit"
)

// avoidFor is for how long a source is passed over that could not be used, where the
// pool has others.
const avoidFor = 5 * time.Minute

// maxAvoided bounds what is remembered of that.
const maxAvoided = 10_000

// avoids reports whether a source is to be passed over at a site.
func (l *limits) avoids(now time.Time, at link) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Before(l.avoided[at]) || now.Before(l.avoided[link{source: at.source}])
}

// avoid has a source passed over: at a site whose servers it cannot reach, or
// everywhere where its address is not this machine's.
func (l *limits) avoid(now time.Time, at link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.avoided) >= maxAvoided {
		clear(l.avoided)
	}
	l.avoided[at] = now.Add(avoidFor)
}

// tryOthers has a message that could not leave from its source wait for another of
// the pool, if there is one: that was no attempt. Else the results stand, which name
// the source.
func (l *limits) tryOthers(v *permit, got []smtp.Result) {
	var fault *smtp.SourceError
	for _, r := range got {
		if r.NotNow != nil || !errors.As(r.Err, &fault) {
			return // something was tried, or waits
		}
	}
	if fault == nil {
		return
	}
	now, at := l.now(), v.at()
	others := false
	for _, s := range l.config().Shares(v.pool) {
		name := l.sourceName(s.Source)
		others = others || name != at.source && !l.avoids(now, link{at.site, name})
	}
	if fault.Address.IsValid() {
		l.avoid(now, link{source: at.source})
	} else {
		l.avoid(now, at)
	}
	if !others {
		return
	}
	for i := range got {
		got[i].NotNow = &smtp.NotNow{Until: now, Why: fault.Error()}
	}
}

// tryAll passes no source over any more: a new configuration may be there because an
// address is.
func (l *limits) tryAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.avoided)
}

// sayLost tells of sources whose addresses are not this machine's, before mail meets
// them.
func sayLost(c *config.Config, log *slog.Logger) {
	for _, name := range c.SourcesUsed() {
		s := c.Source[name]
		if s == nil {
			continue
		}
		for _, a := range []config.IP{s.IPv4, s.IPv6} {
			if !a.IsValid() {
				continue
			}
			conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: a.AsSlice()}) // no packet is sent or taken
			if err != nil {
				log.Warn("a source address cannot be used on this machine: mail takes the other sources of its pool, or waits until there is one. Give this machine the address (ip address show)",
					"source", name, "address", a.Addr.String(), "error", err)
				continue
			}
			conn.Close() //nolint:errcheck // nothing was written
		}
	}
}

// avoidedUntil is until when a source is passed over at a site, zero if it is not.
func (l *limits) avoidedUntil(now time.Time, at link) (until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range []link{at, {source: at.source}} {
		if t := l.avoided[k]; t.After(now) && t.After(until) {
			until = t
		}
	}
	return until
}

// hasSources reports whether there is more to leave from than the address that the
// system chooses.
func (l *limits) hasSources() bool {
	used := l.config().SourcesUsed()
	return len(used) > 1 || used[0] != config.DefaultLimits
}

// sourcesHere are the sources that mail for a site may leave from, in all pools.
func (l *limits) sourcesHere(now time.Time, p limit.Path) (all []api.SiteSource) {
	if !l.hasSources() {
		return nil
	}
	for _, name := range l.config().SourcesUsed() {
		p.Source = l.sourceName(name)
		x := l.gate.Explain(now, p)
		s := api.SiteSource{
			Name: name, Pools: l.config().PoolsOf(name), Connections: x.Control.Open, Allowed: x.Control.Limit, Binding: refusalOf(x.Binding),
			Avoided: isoTime(l.avoidedUntil(now, link{p.Site, p.Source})),
		}
		if w, ok := l.gate.WarmupOf(now, p); ok {
			s.Warmup = &api.SourceWarmup{Day: w.Day, Days: w.Days, Most: w.Most, Used: w.Used, To: w.To}
		}
		all = append(all, s)
	}
	return all
}

// bindingHere is what keeps the next connection to a site from all sources of the
// default pool, of which first is the first's.
func (l *limits) bindingHere(now time.Time, p limit.Path, first *limit.Refusal) *limit.Refusal {
	no := first
	for _, s := range l.config().Shares(config.DefaultPool)[1:] {
		p.Source = l.sourceName(s.Source)
		other := l.gate.Explain(now, p).Binding
		if other == nil || no == nil {
			return nil
		}
		no = limit.Sooner(now, no, other)
	}
	return no
}

// Sources is admin.Limits.
func (l *limits) Sources() []api.Source {
	now, c := l.now(), l.config()
	all := []api.Source{}
	for _, name := range c.SourcesUsed() {
		counted := l.sourceName(name)
		from := l.source(name)
		s := api.Source{Name: name, Hello: cmp.Or(from.Hello, c.Hostname), Pools: c.PoolsOf(name), Avoided: isoTime(l.avoidedUntil(now, link{source: counted}))}
		if from.IPv4.IsValid() {
			s.IPv4 = from.IPv4.String()
		}
		if from.IPv6.IsValid() {
			s.IPv6 = from.IPv6.String()
		}
		w := c.WarmupOf(name)
		if most, bound := w.Budget(now); bound {
			day, _ := w.Day(now)
			s.Warmup = &api.SourceWarmup{Day: day, Days: len(w.Plan), Most: most}
		}
		for _, site := range l.gate.Sites(now) {
			if site.Source != counted {
				continue
			}
			s.Connections += site.Control.Open
			if !site.Control.Until.IsZero() {
				s.Suspended = append(s.Suspended, api.SourceSuspended{Level: limit.Site.String(), Name: site.Site, Until: isoTime(site.Control.Until), Why: clean(site.Control.Why)})
			}
		}
		s.Suspended = append(l.blocked(now, counted), s.Suspended...)
		all = append(all, s)
	}
	return all
}

// blocked is where a source is suspended by an operator or by a provider's answers.
func (l *limits) blocked(now time.Time, source string) (all []api.SourceSuspended) {
	for _, h := range l.gate.Held(now) {
		if h.Suspended && h.Key.Level == limit.Source && h.Key.Name == source {
			all = append(all, api.SourceSuspended{Level: limit.Source.String(), Name: source, Until: isoTime(h.Until), Why: clean(h.Why)})
		}
	}
	blocks := l.gate.Blocks(now)
	slices.SortFunc(blocks, func(a, b limit.BlockState) int { return cmp.Compare(a.Provider, b.Provider) })
	for _, b := range blocks {
		if b.Source == source {
			all = append(all, api.SourceSuspended{Level: limit.Provider.String(), Name: b.Provider, Until: isoTime(b.Until), Why: clean(b.Why)})
		}
	}
	return all
}
