package limit

import (
	"fmt"
	"strings"
	"time"
)

// Beyond a site, servers may count what all sites of an address, or of a provider,
// have open from a source. When one more is refused while other sites have
// connections there, that is found out by a Control like that of a site, which
// begins with what was open: until then there is none. Its pair has the key's text
// in place of a site, "address 192.0.2.1", which no site is called, so that it is
// listed, exported and forgotten as sites are.

// share is what is open of a key from a source.
type share struct {
	open, accepted int
	sites          map[string]int // accepted, by site
}

// joined is a ticket's part in a share.
type joined struct {
	key  Key
	pair pair
	conn conn
}

// shared is the key that a Control's pair is about, if it is no site.
func (p pair) shared() (Key, bool) {
	for _, l := range [...]Level{Provider, Address} {
		if name, ok := strings.CutPrefix(p.site, l.String()+" "); ok {
			return Key{l, name}, true
		}
	}
	return Key{}, false
}

// Offer has a site ask again that waits for a key, as if something of it had ended:
// there is a connection that others may use.
func (g *Gate) Offer(k Key) {
	g.mu.Lock()
	defer g.unlock()
	g.free(k, 1)
}

// shareAdmits looks whether what was found out about a key would admit a connection
// from a source. It changes nothing. The Gate is locked.
func (g *Gate) shareAdmits(now time.Time, k Key, source string) *Refusal {
	c := g.controls[pair{k.String(), source}]
	if c == nil {
		return nil
	}
	if allowed := c.would(now, most(g.bounds(now, k).Connections)); c.open >= allowed {
		return &Refusal{Key: k, What: "connections", Limit: fmt.Sprint(allowed)}
	}
	return nil
}

// providerAdmits is shareAdmits for the provider of a path.
func (g *Gate) providerAdmits(now time.Time, p Path) *Refusal {
	if p.Provider == "" {
		return nil
	}
	return g.shareAdmits(now, Key{Provider, p.Provider}, p.Source)
}

// would is what connections would say, without beginning a probe.
func (c *Control) would(now time.Time, most int) int {
	copied := *c
	copied.moves = nil
	return copied.connections(now, most)
}

// join counts a ticket for a key. The Gate is locked.
func (t *Ticket) join(now time.Time, k Key) {
	j := joined{key: k, pair: pair{k.String(), t.path.Source}}
	s := t.g.shares[j.pair]
	if s == nil {
		s = &share{sites: map[string]int{}}
		t.g.shares[j.pair] = s
	}
	s.open++
	if c := t.g.controls[j.pair]; c != nil {
		c.connections(now, most(t.g.bounds(now, k).Connections)) // a probe may begin
		j.conn = c.opened(now)
	}
	t.joined = append(t.joined, j)
}

// part takes a ticket out of the shares of a level, and of all if it is levels.
func (t *Ticket) part(now time.Time, level Level) {
	kept := t.joined[:0]
	for _, j := range t.joined {
		if level != levels && j.key.Level != level {
			kept = append(kept, j)
			continue
		}
		s := t.g.shares[j.pair]
		if j.conn.greeting > 0 {
			s.accepted--
			s.left(t.path.Site)
		}
		if s.open--; s.open == 0 {
			delete(t.g.shares, j.pair)
		}
		if c := t.g.controls[j.pair]; c != nil {
			c.closed(now, &j.conn)
		}
	}
	t.joined = kept
}

// left counts an accepted connection of a site off.
func (s *share) left(site string) {
	if s.sites[site]--; s.sites[site] <= 0 {
		delete(s.sites, site)
	}
}

// shareGreeted notes that a ticket's connection was accepted.
func (t *Ticket) shareGreeted(now time.Time) {
	for i := range t.joined {
		j := &t.joined[i]
		if j.conn.greeting > 0 {
			continue
		}
		s := t.g.shares[j.pair]
		s.accepted++
		s.sites[t.path.Site]++
		if c := t.g.controls[j.pair]; c != nil {
			c.greeted(now, &j.conn)
		} else {
			j.conn.accepted, j.conn.greeting = true, 1
		}
	}
}

// shareTaken notes a message that was taken.
func (t *Ticket) shareTaken(now time.Time) {
	for i := range t.joined {
		j := &t.joined[i]
		c := t.g.controls[j.pair]
		if c == nil {
			continue
		}
		was := c.limit
		c.succeeded(now, &j.conn, most(t.g.bounds(now, j.key).Connections))
		t.g.free(j.key, c.limit-was)
	}
}

// shareRefused notes a refusal for the number of connections: at the narrowest level
// that can be what it is about.
func (t *Ticket) shareRefused(now time.Time, why string) {
	for i := len(t.joined) - 1; i >= 0; i-- {
		j := &t.joined[i]
		s, c := t.g.shares[j.pair], t.g.controls[j.pair]
		if !s.explains(t.path.Site, j, c) {
			continue
		}
		if c == nil {
			c = newControl()
			c.limit, c.open, c.accepted, c.greetings = s.open, s.open, s.accepted, 1
			t.g.controls[j.pair] = c
		}
		c.tooMany(now, &j.conn, why)
		return
	}
}

// explains reports whether a refusal of a site's connection may be about a share: other
// sites have connections there, or it has refused before. A provider has many servers
// with limits of their own, so there the site must have none itself, or the provider
// be at its limit.
func (s *share) explains(site string, j *joined, c *Control) bool {
	own := s.sites[site]
	others := s.accepted > own
	if j.conn.greeting > 0 {
		own-- // this one
	}
	if j.key.Level == Address {
		return others || c != nil
	}
	if c == nil {
		return others && own == 0
	}
	return own == 0 || c.open >= c.limit
}

// shareLines are what was found out about the shares that keys stand for.
func (g *Gate) shareLines(now time.Time, keys []Key, source string) (all []Line) {
	for _, k := range keys {
		p := pair{k.String(), source}
		if c := g.controls[p]; c != nil {
			all = append(all, Line{
				Key: Key{Adapted, Path{Site: p.site, Source: source}.adapted()}, What: "connections",
				Limit: fmt.Sprint(c.would(now, most(g.bounds(now, k).Connections))), Used: fmt.Sprint(c.open),
			})
		}
	}
	return all
}

// isOf reports whether a line is the limit that a refusal is about: of two of the same
// key, one configured and one found out, the one that says the same.
func (l *Line) isOf(no *Refusal) bool {
	found := strings.HasPrefix(l.Key.Name, no.Key.String()) && l.Key.Level == Adapted
	return l.What == no.What && (found || l.Key == no.Key) && (l.What != "connections" || l.Limit == no.Limit)
}
