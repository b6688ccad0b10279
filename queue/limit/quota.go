package limit

import (
	"fmt"
	"strings"
	"time"
)

// quota is what a source in warm-up has begun on a day.
type quota struct {
	day  int64 // since the epoch
	used int
	// kept is for messages that have leave and are not over.
	kept int
}

// Used is how many messages a source has begun on a day to a provider, or a site
// without one.
type Used struct {
	Source string `json:"source"`
	// To is the provider as "provider google", or "site mx.example.org".
	To   string    `json:"to"`
	Day  time.Time `json:"day"`
	Used int       `json:"used"`
}

// quotaKey is what a path's messages count for in warm-up.
type quotaKey struct {
	source string
	to     Key
}

func (p Path) quotaKey() quotaKey {
	if p.Provider != "" {
		return quotaKey{p.Source, Key{Provider, p.Provider}}
	}
	return quotaKey{p.Source, Key{Site, p.Site}}
}

// budget is what a path may begin today; bound is false where there is no bound. The
// Gate is locked.
func (g *Gate) budget(now time.Time, p Path) (most int, w Warmup, bound bool) {
	if g.o.Warmup == nil || p.Routed {
		return 0, Warmup{}, false
	}
	w = g.o.Warmup(p.Source)
	most, bound = w.Budget(now)
	return most, w, bound
}

// quota is a path's, of today. The Gate is locked.
func (g *Gate) quota(now time.Time, p Path) *quota {
	key, day := p.quotaKey(), Date(now).Unix()/86400
	q := g.quotas[key]
	if q == nil {
		q = &quota{day: day}
		g.quotas[key] = q
	}
	if q.day != day {
		q.day, q.used = day, 0
	}
	return q
}

// exhausted is the refusal of a path whose budget is used up by what was begun and
// kept for others; nil if it is not. The Gate is locked.
func (g *Gate) exhausted(now time.Time, p Path, kept bool) *Refusal {
	most, w, bound := g.budget(now, p)
	if !bound {
		return nil
	}
	q, used := g.quotas[p.quotaKey()], 0
	if q != nil {
		if q.day == Date(now).Unix()/86400 {
			used = q.used
		}
		if kept {
			used += q.kept
		}
	}
	if used < most {
		return nil
	}
	to := p.quotaKey().to
	return &Refusal{Key: Key{Source, p.Source}, What: warmupWhat, Limit: fmt.Sprintf("%d to %s", most, to), Until: w.next(now)}
}

// warmupWhat is Refusal.What of a source whose budget of the day is used up.
const warmupWhat = "messages a day in warm-up"

// Keep sets a message of a source's budget aside for one that has leave, until Give; a
// path without a budget needs none.
func (g *Gate) Keep(now time.Time, p Path) *Refusal {
	g.mu.Lock()
	defer g.unlock()
	if no := g.exhausted(now, p, true); no != nil {
		return no
	}
	if _, _, bound := g.budget(now, p); bound {
		g.quota(now, p).kept++
	}
	return nil
}

// Give gives back what Keep has set aside: the message is begun, or is not.
func (g *Gate) Give(p Path) {
	g.mu.Lock()
	defer g.unlock()
	if q := g.quotas[p.quotaKey()]; q != nil {
		q.kept = max(0, q.kept-1)
	}
}

// begun counts a message of a path. The Gate is locked.
func (g *Gate) begun(now time.Time, p Path) {
	if _, _, bound := g.budget(now, p); bound {
		g.quota(now, p).used++
	}
}

// ExportUsed is what sources in warm-up have begun today, and ImportUsed takes that
// in after a restart; what was counted since is added.
func (g *Gate) ExportUsed(now time.Time) []Used {
	g.mu.Lock()
	defer g.unlock()
	all := make([]Used, 0, len(g.quotas))
	for k, q := range g.quotas {
		if q.used > 0 && q.day == Date(now).Unix()/86400 {
			all = append(all, Used{k.source, k.to.String(), Date(now), q.used})
		}
	}
	return all
}

// ImportUsed is the inverse of ExportUsed; what is of another day, or is not
// understood, is dropped.
func (g *Gate) ImportUsed(now time.Time, all []Used) (n int) {
	g.mu.Lock()
	defer g.unlock()
	for _, u := range all {
		to, ok := parseTo(u.To)
		if !ok || !u.Day.Equal(Date(now)) || u.Used < 1 || u.Used > maxCount || len(u.Source) > maxName {
			continue
		}
		p := Path{Source: u.Source, Site: to.Name}
		if to.Level == Provider {
			p.Provider = to.Name
		}
		g.quota(now, p).used += u.Used
		n++
	}
	return n
}

func parseTo(s string) (Key, bool) {
	for _, level := range []Level{Provider, Site} {
		word := level.String() + " "
		if name, ok := strings.CutPrefix(s, word); ok && named(name) {
			return Key{level, name}, true
		}
	}
	return Key{}, false
}

// WarmupState is a source's warm-up towards the end of a path, for people.
type WarmupState struct {
	// Day is the plan's, of Days; before the first it is less than 1.
	Day, Days int
	// Most is today's budget and Used what of it is used, for messages to To.
	Most, Used int
	To         string
}

// WarmupOf tells of a path's warm-up; false if it has none.
func (g *Gate) WarmupOf(now time.Time, p Path) (WarmupState, bool) {
	g.mu.Lock()
	defer g.unlock()
	most, w, bound := g.budget(now, p)
	if !bound {
		return WarmupState{}, false
	}
	day, _ := w.Day(now)
	s := WarmupState{Day: day, Days: len(w.Plan), Most: most, To: p.quotaKey().to.String()}
	if q := g.quotas[p.quotaKey()]; q != nil && q.day == Date(now).Unix()/86400 {
		s.Used = q.used
	}
	return s, true
}
