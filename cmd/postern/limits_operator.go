package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue/egress/site"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/limit"
)

var _ admin.Limits = (*limits)(nil)

// isoTime is a time as the API says it, "" for none.
func isoTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// List is admin.Limits.
func (l *limits) List(from string, most int) []api.SiteState {
	all, now := []api.SiteState{}, l.now()
	queued, dead := l.queuedAt(), l.silentHosts()
	for _, s := range l.gate.Sites(now) {
		if s.Site+"\x00"+s.Source < from || len(all) == most {
			continue
		}
		p := l.path(s.Site)
		p.Source = s.Source
		c := controlOf(s.Control)
		c.Moves = c.Moves[max(0, len(c.Moves)-1):]
		all = append(all, api.SiteState{
			Site: s.Site, Source: s.Source, Provider: p.Provider, Groups: p.Groups, Queued: queued[s.Site], SiteControl: c,
			Binding: refusalOf(l.gate.Keeps(now, p)),
		})
		if len(dead) == 0 {
			continue
		}
		for _, h := range l.hosts(s.Site) {
			all[len(all)-1].Silent = append(all[len(all)-1].Silent, dead[h]...)
		}
	}
	return all
}

// queuedAt is how many recipients wait for each site.
func (l *limits) queuedAt() map[string]int {
	if l.queue == nil {
		return nil
	}
	all := map[string]int{}
	for _, s := range l.queue.Sites() {
		all[s.Name] += s.Queued + s.InFlight
	}
	return all
}

func controlOf(c limit.ControlState) api.SiteControl {
	s := api.SiteControl{
		Connections: c.Open, Accepted: c.Accepted, Allowed: c.Limit, Ceiling: c.Ceiling, Probing: c.Probing, Probe: isoTime(c.ProbeAt),
		Rate: c.Rate, Measured: c.Measured, Failures: c.Failures, Since: isoTime(c.Since), Suspended: isoTime(c.Until), Why: clean(c.Why),
	}
	if !c.Said.Time.IsZero() {
		s.Said = &api.SiteSaid{Time: isoTime(c.Said.Time), Class: c.Said.Class.String(), Text: clean(c.Said.Text)}
	}
	for _, m := range c.Moves {
		s.Moves = append(s.Moves, api.SiteMove{Time: isoTime(m.Time), What: m.What, From: m.From, To: m.To, Why: clean(m.Why)})
	}
	return s
}

// Held is admin.Limits.
func (l *limits) Held() []api.SiteHeld {
	all := []api.SiteHeld{}
	for _, h := range l.gate.Held(l.now()) {
		all = append(all, heldOf(h))
	}
	return all
}

func heldOf(h limit.Held) api.SiteHeld {
	return api.SiteHeld{
		Level: h.Key.Level.String(), Name: h.Key.Name, Suspended: h.Suspended, SiteBounds: boundsText(h.Bounds), Since: isoTime(h.Since), Until: isoTime(h.Until), Why: clean(h.Why),
	}
}

// boundsText is bounds as the configuration writes them.
func boundsText(b limit.Bounds) api.SiteBounds {
	number := func(n int) string {
		switch n {
		case 0:
			return ""
		case limit.None:
			return "none"
		}
		return strconv.Itoa(n)
	}
	return api.SiteBounds{
		Connections: number(b.Connections), ConnectionRate: b.NewConnections.String(), MessageRate: b.Messages.String(),
		MessagesPerConnection: number(b.MessagesEach), RecipientsPerConnection: number(b.RecipientsEach),
	}
}

// parseBounds is the inverse of boundsText.
func parseBounds(b api.SiteBounds) (limit.Bounds, error) {
	var parsed limit.Bounds
	for _, f := range []struct {
		name, text string
		into       any
	}{
		{"connections", b.Connections, &parsed.Connections},
		{"connection_rate", b.ConnectionRate, &parsed.NewConnections},
		{"message_rate", b.MessageRate, &parsed.Messages},
		{"messages_per_connection", b.MessagesPerConnection, &parsed.MessagesEach},
		{"recipients_per_connection", b.RecipientsPerConnection, &parsed.RecipientsEach},
	} {
		if f.text == "" {
			continue
		}
		var err error
		switch into := f.into.(type) {
		case *int:
			var n config.Number
			err = n.UnmarshalText([]byte(f.text))
			*into = int(n)
		case *limit.Rate:
			*into, err = limit.ParseRate(f.text)
		}
		if err != nil {
			return parsed, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return parsed, nil
}

// mostExplained bounds the hosts that are looked up for people, and the addresses
// that they are shown.
const mostExplained = 16

// Explain is admin.Limits. It changes nothing.
func (l *limits) Explain(ctx context.Context, name string) (api.SiteExplanation, error) {
	domain, place, err := l.find(ctx, strings.ToLower(strings.TrimSuffix(name, ".")))
	if err != nil {
		return api.SiteExplanation{}, err
	}
	now, c := l.now(), l.config()
	p := l.path(place.Site.Name)
	p.Source = l.sourceName(c.Shares(config.DefaultPool)[0].Source)
	e := api.SiteExplanation{Domain: domain, Site: p.Site, Provider: p.Provider, Source: p.Source, Routed: place.Routed, Hosts: append([]string{}, place.Hosts...), Addresses: []string{}}
	var names []string
	addresses := l.addresses(ctx, place)
	e.Silent = l.silent(append(l.hosts(p.Site), place.Hosts...), addresses)
	for _, a := range addresses {
		e.Addresses = append(e.Addresses, a.String())
		if name := c.AddressName(a); !slices.Contains(names, name) {
			names = append(names, name)
		}
		for _, g := range c.GroupsOfAddress(a) {
			if !slices.Contains(p.Groups, g) {
				p.Groups = append(slices.Clip(p.Groups), g)
			}
		}
	}
	e.Groups = p.Groups
	x := l.gate.Explain(now, p, names...)
	held := l.gate.Held(now)
	for _, h := range held {
		if slices.ContainsFunc(x.Lines, func(line limit.Line) bool { return line.Key == h.Key }) {
			e.Held = append(e.Held, heldOf(h))
		}
	}
	e.Limits = l.lines(now, p, x, held)
	e.Sources = l.sourcesHere(now, p)
	e.Binding = refusalOf(l.bindingHere(now, p, x.Binding))
	e.Control = controlOf(x.Control)
	e.Queue, e.Calls = l.queued(p.Site), l.waiters.count(p.Site)
	return e, nil
}

// find finds the site of a domain, or the one of a name that the list of sites has;
// domain is "" for the latter.
func (l *limits) find(ctx context.Context, name string) (domain string, place smtp.Place, err error) {
	if !strings.ContainsAny(name, ",=") { // which no domain has
		if place, err = l.exit.Locate(ctx, name); err == nil {
			l.learn(place)
			return name, place, nil
		}
	}
	l.mu.Lock()
	s := l.sites[name]
	l.mu.Unlock()
	switch {
	case s != nil:
		return "", smtp.Place{Site: site.Site{Name: name}, Hosts: s.hosts, Routed: s.routed}, nil
	case slices.ContainsFunc(l.gate.Sites(l.now()), func(s limit.SiteState) bool { return s.Site == name }):
		return "", smtp.Place{Site: site.Site{Name: name}, Hosts: slices.DeleteFunc(site.Hosts(name), isLiteral)}, nil
	case err == nil:
		return "", place, fmt.Errorf("%s: %w: no mail was sent to such a site lately", clean(name), admin.ErrNotFound)
	}
	return "", place, fmt.Errorf("%s: %w", clean(name), err)
}

func refusalOf(no *limit.Refusal) *api.SiteRefusal {
	if no == nil {
		return nil
	}
	return &api.SiteRefusal{Level: no.Key.Level.String(), Name: no.Key.Name, What: no.What, Limit: no.Limit, Since: isoTime(no.Since), Until: isoTime(no.Until), Why: clean(no.Why)}
}

// queued is what waits for a site, in all lanes, nil for nothing. Where there is
// mail in several, the rest is as in the first of them.
func (l *limits) queued(name string) *api.Site {
	if l.queue == nil {
		return nil
	}
	var all *api.Site
	for _, s := range l.queue.Sites() {
		if s.Name != name {
			continue
		}
		a := admin.SiteOf(s)
		if all == nil {
			all = &a
			continue
		}
		all.Lane = ""
		all.Domains += a.Domains
		all.Queued += a.Queued
		all.InFlight += a.InFlight
		all.Held += a.Held
		all.Due += a.Due
		all.Connections += a.Connections
	}
	return all
}

// lines are the limits of a path with where they come from, and what was found
// out as one more.
func (l *limits) lines(now time.Time, p limit.Path, x limit.Explanation, held []limit.Held) []api.SiteLimit {
	all := []api.SiteLimit{}
	tightest, least := -1, 0
	add := func(s api.SiteLimit) {
		if n, err := strconv.Atoi(s.Limit); err == nil && s.What == "connections" && (tightest < 0 || n < least) {
			tightest, least = len(all), n
		}
		all = append(all, s)
	}
	for _, line := range x.Lines {
		if line.Limit == "" {
			continue
		}
		of := l.limited(line.Key)
		from := of.From(line.What)
		if line.Key.Level == limit.Adapted {
			from = "what it answered"
		}
		for _, h := range held {
			if h.Key == line.Key && !h.Suspended && operatorSaid(h.Bounds, line.What) {
				from = "operator" + untilText(h.Until) + optional(": ", clean(h.Why))
			}
		}
		add(api.SiteLimit{
			Level: line.Key.Level.String(), Name: line.Key.Name, What: line.What, Limit: line.Limit, Used: line.Used, From: cmp.Or(from, "default"),
			Binds: line.Binds, Until: isoTime(line.Until),
		})
	}
	adapted := api.SiteLimit{
		Level: limit.Adapted.String(), Name: p.Site, What: "connections", Limit: strconv.Itoa(x.Control.Limit), Used: strconv.Itoa(x.Control.Open), From: "what has worked so far",
	}
	rate := api.SiteLimit{Level: limit.Adapted.String(), Name: p.Site, What: "messages", From: "what it answered"}
	if x.Control.Rate > 0 {
		rate.Limit = limit.RateText(x.Control.Rate)
	}
	for _, m := range x.Control.Moves {
		switch m.What {
		case "connections":
			adapted.From = "since " + isoTime(m.Time) + ": " + clean(m.Why)
		case "messages":
			rate.From = "since " + isoTime(m.Time) + ": " + clean(m.Why)
		}
	}
	for _, s := range []*api.SiteLimit{&adapted, &rate} {
		if no := x.Binding; no != nil && no.Key.Level == limit.Adapted && no.What == s.What {
			s.Binds, s.Until = true, isoTime(no.Until)
		}
		if s.Limit != "" {
			add(*s)
		}
	}
	if tightest >= 0 {
		all[tightest].Tightest = true
	}
	return all
}

// operatorSaid reports whether bounds say anything about one of the limits.
func operatorSaid(b limit.Bounds, what string) bool {
	switch what {
	case "connections":
		return b.Connections != 0
	case "new connections":
		return b.NewConnections.Count != 0
	case "messages":
		return b.Messages.Count != 0
	case "messages a connection":
		return b.MessagesEach != 0
	}
	return b.RecipientsEach != 0
}

func untilText(t time.Time) string { return optional(" until ", isoTime(t)) }

// addresses are those of a site's hosts, as far as they are found.
func (l *limits) addresses(ctx context.Context, place smtp.Place) (all []netip.Addr) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	hosts := place.Hosts
	if len(hosts) == 0 {
		hosts = site.Hosts(place.Site.Name) // an address, of a route or a literal
	}
	for _, h := range hosts[:min(len(hosts), mostExplained)] {
		if a, ok := wire.Literal(h); ok {
			all = append(all, a)
		} else if a, err := netip.ParseAddr(h); err == nil {
			all = append(all, a)
		} else if found, err := l.resolver.LookupAddrs(ctx, h); err == nil {
			all = append(all, found...)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	return all[:min(len(all), mostExplained)]
}

// levels are what an operator may speak of, but for a domain.
var levels = map[string]limit.Level{
	"source": limit.Source, "provider": limit.Provider, "group": limit.Group, "site": limit.Site, "address": limit.Address,
}

// key is what a change is about.
func (l *limits) key(ctx context.Context, level, name string) (limit.Key, error) {
	c := l.config()
	switch level {
	case "domain", "":
		place, err := l.exit.Locate(ctx, strings.ToLower(strings.TrimSuffix(name, ".")))
		if err != nil {
			return limit.Key{}, fmt.Errorf("%s: %w", clean(name), err)
		}
		l.learn(place)
		return limit.Key{Level: limit.Site, Name: place.Site.Name}, nil
	case "address":
		a, err := netip.ParseAddr(strings.Trim(name, "[]"))
		if err != nil {
			if p, err := netip.ParsePrefix(name); err == nil {
				a = p.Addr()
			} else {
				return limit.Key{}, fmt.Errorf("%s is no address", clean(name))
			}
		}
		return limit.Key{Level: limit.Address, Name: c.AddressName(a)}, nil
	case "group":
		if name == config.DefaultLimits || c.Site[name] == nil {
			return limit.Key{}, fmt.Errorf("group %q: %w: there is no table [site.%s]", clean(name), admin.ErrNotFound, clean(name))
		}
	case "source":
		if c.Source[name] == nil {
			return limit.Key{}, fmt.Errorf("source %q: %w: there is no table [source.%s], so it does not count", clean(name), admin.ErrNotFound, clean(name))
		}
	}
	found, ok := levels[level]
	if !ok {
		return limit.Key{}, fmt.Errorf("level %q: use domain, site, provider, group, address or source", clean(level))
	}
	return limit.Key{Level: found, Name: name}, nil
}

// Change is admin.Limits.
func (l *limits) Change(ctx context.Context, what string, s api.SiteChange) (api.SiteChanged, error) {
	if what == "forget" {
		return l.forget(ctx, s)
	}
	k, err := l.key(ctx, s.Level, s.Name)
	if err != nil {
		return api.SiteChanged{}, err
	}
	b, err := parseBounds(s.SiteBounds)
	if err != nil {
		return api.SiteChanged{}, err
	}
	now := l.now()
	var until time.Time
	if s.For > 0 {
		until = now.Add(time.Duration(s.For) * time.Second)
	}
	why := s.Reason
	if s.By != "" {
		why = strings.TrimPrefix(why+", by "+s.By, ", ")
	}
	done := api.SiteChanged{Level: k.Level.String(), Name: k.Name, Changed: true}
	var do func()
	switch what {
	case "limit":
		if b == (limit.Bounds{}) {
			return done, errors.New("no limit is given")
		}
		do = func() { l.gate.Set(now, k, b, until, why) }
		done.Until = isoTime(until)
	case "suspend":
		do = func() { l.gate.Suspend(now, k, until, why) }
		done.Until = isoTime(until)
	case "resume":
		do = func() { done.Changed = l.gate.Resume(now, k) }
	}
	done.Unkept = unkept(l.say(do, what == "resume"))
	if what != "suspend" {
		l.wakeThose(func(p *limit.Path) bool { return k.Level == limit.Source || counts(p, k) }) // any source may be chosen
	}
	return done, nil
}

// counts reports whether a path counts for a key, as far as is known before a
// connection.
func counts(p *limit.Path, k limit.Key) bool {
	switch k.Level {
	case limit.Source:
		return p.Source == k.Name
	case limit.Provider:
		return p.Provider == k.Name
	case limit.Site:
		return p.Site == k.Name
	case limit.Group:
		return slices.Contains(p.Groups, k.Name)
	}
	return true
}
