package limit

import (
	"strings"
	"time"
)

// block says that a provider takes nothing from a source for a while.
type block struct {
	since, until time.Time
	why          string
}

// blocked takes in an answer that blocks a source: at all sites of the provider, since
// what they know of our addresses they know together. Hosts that only share a domain may
// be anybody's, such as those that a hoster lets, and one of them must not keep mail from
// the others. The Gate is locked.
func (g *Gate) blocked(now time.Time, p Path, c *Control, pause time.Duration, why string) {
	c.sleep(now, pause, why)
	if p.Provider == "" || strings.Contains(p.Provider, ".") {
		return
	}
	key := pair{p.Provider, p.Source}
	if was, until := g.blocks[key], now.Add(pause); until.After(was.until) {
		since := now
		if now.Before(was.until) {
			since = was.since
		}
		g.blocks[key] = block{since, until, clipped(why, maxWhy)}
	}
}

// blocks is the refusal of a provider that blocks a path's source, nil if it does not.
// The Gate is locked.
func (g *Gate) blocksPath(now time.Time, p Path) *Refusal {
	if p.Provider == "" || len(g.blocks) == 0 {
		return nil
	}
	b, ok := g.blocks[pair{p.Provider, p.Source}]
	if !ok || !now.Before(b.until) {
		return nil
	}
	return &Refusal{Key: Key{Adapted, Path{Site: p.Provider, Source: p.Source}.adapted()}, What: suspendedWhat, Until: b.until, Since: b.since, Why: b.why}
}

// unblock takes back what answers have brought: at a provider, from a source, or at
// the provider of a site. The Gate is locked.
func (g *Gate) unblock(now time.Time, k Key) (found bool) {
	providers := map[string]bool{}
	for p, c := range g.controls {
		switch {
		case k.Level == Site && p.site == k.Name:
			providers[c.provider] = true
		case k.Level == Provider && c.provider == k.Name, k.Level == Source && p.source == k.Name:
		default:
			continue
		}
		if now.Before(c.until) {
			c.resume()
			found = true
			g.woken = append(g.woken, p.site)
		}
	}
	for p, b := range g.blocks {
		if k.Level == Provider && p.site == k.Name || k.Level == Source && p.source == k.Name || k.Level == Site && providers[p.site] {
			found = found || now.Before(b.until)
			delete(g.blocks, p)
		}
	}
	return found
}

// BlockState is a provider that blocks a source.
type BlockState struct {
	Provider string    `json:"provider"`
	Source   string    `json:"source,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Until    time.Time `json:"until"`
	Why      string    `json:"why,omitempty"`
}

// Blocks lists what answers have blocked, in no order.
func (g *Gate) Blocks(now time.Time) (all []BlockState) {
	g.mu.Lock()
	defer g.unlock()
	for p, b := range g.blocks {
		if now.Before(b.until) {
			all = append(all, BlockState{p.site, p.source, b.since, b.until, b.why})
		}
	}
	return all
}

// ImportBlocks takes in what Blocks gave at a time, after a restart, and returns how
// much of it still holds. As with Import, no time has passed if the clock is behind.
func (g *Gate) ImportBlocks(now, exported time.Time, all []BlockState) (n int) {
	g.mu.Lock()
	defer g.unlock()
	shift := min(0, now.Sub(exported))
	for _, b := range all {
		key, until := pair{b.Provider, b.Source}, b.Until.Add(shift)
		if most := now.Add(maxSuspended); until.After(most) {
			until = most
		}
		if named(b.Provider) && now.Before(until) && until.After(g.blocks[key].until) {
			since := b.Since.Add(shift)
			if since.After(now) {
				since = now
			}
			g.blocks[key] = block{since, until, clipped(b.Why, maxWhy)}
			n++
		}
	}
	return n
}

// sweepPools forgets blocks that are over, and counts of other days.
func (g *Gate) sweepPools(now time.Time) {
	for k, b := range g.blocks {
		if !now.Before(b.until) {
			delete(g.blocks, k)
		}
	}
	for k, q := range g.quotas {
		if q.kept == 0 && q.day != Date(now).Unix()/86400 {
			delete(g.quotas, k)
		}
	}
}
