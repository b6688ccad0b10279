package limit

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Suspend admits nothing for a key until then; a zero time means until Resume.
// What is open stays, and gets no further messages. It replaces an operator's
// earlier word about the key.
func (g *Gate) Suspend(now time.Time, k Key, until time.Time, why string) {
	g.mu.Lock()
	defer g.unlock()
	g.holds[k] = hold{since: now, until: until, why: why, suspend: true}
}

// Suspended says whether a path is suspended, by an operator or by an answer that
// blocks us, so that nothing may be sent to it over connections that are open; nil
// if it is not.
func (g *Gate) Suspended(now time.Time, p Path) *Refusal {
	g.mu.Lock()
	defer g.unlock()
	return g.suspended(now, p.keys(), p, g.controls[pair{p.Site, p.Source}])
}

// suspended is Suspended; c may be nil. A site that cannot be reached is none
// that has blocked us. The Gate is locked.
func (g *Gate) suspended(now time.Time, keys []Key, p Path, c *Control) (no *Refusal) {
	if len(g.holds) > 0 {
		for _, k := range keys {
			if h, ok := g.holds[k]; ok && h.suspend && h.holds(now) {
				no = tighter(no, h.refusal(k))
			}
		}
	}
	if c != nil && !c.asleep && now.Before(c.until) {
		no = tighter(no, c.refusal(Key{Adapted, p.adapted()}))
	}
	return tighter(no, g.blocksPath(now, p))
}

// Set puts bounds over the configured ones until then; a zero time means until
// Resume.
func (g *Gate) Set(now time.Time, k Key, b Bounds, until time.Time, why string) {
	g.mu.Lock()
	defer g.unlock()
	g.holds[k] = hold{since: now, until: until, why: why, bounds: b}
	g.wakeAll(k)
}

// Restore takes in operators' words that Held listed before a restart, and returns
// how many of them still hold. One that was said since stands.
func (g *Gate) Restore(now time.Time, all []Held) (n int) {
	g.mu.Lock()
	defer g.unlock()
	for _, h := range all {
		held := hold{since: h.Since, until: h.Until, why: h.Why, suspend: h.Suspended, bounds: h.Bounds}
		if _, there := g.holds[h.Key]; !there && held.holds(now) {
			g.holds[h.Key] = held
			n++
		}
	}
	return n
}

// Resume takes an operator's word about a key back and the suspensions that answers
// brought: those of a site or a provider from all sources, those of a source
// everywhere. It reports whether there was anything to take back.
func (g *Gate) Resume(now time.Time, k Key) bool {
	g.mu.Lock()
	defer g.unlock()
	_, found := g.holds[k]
	delete(g.holds, k)
	found = g.unblock(now, k) || found
	g.wakeAll(k)
	if k.Level == Site {
		g.woken = append(g.woken, k.Name)
	}
	return found
}

// Forget forgets what was found out about a site and its provider, as far as
// nothing is open: how many controls of the site there were. A Key's text in its
// place is for what was found out about that address or provider.
func (g *Gate) Forget(site string) (n int) {
	g.mu.Lock()
	defer g.unlock()
	providers := map[string]bool{}
	for p, c := range g.controls {
		if p.site == site && c.open == 0 {
			providers[c.provider] = true
			delete(g.controls, p)
			n++
		}
	}
	for p, c := range g.controls {
		if k, ok := p.shared(); ok && k.Level == Provider && providers[k.Name] && c.open == 0 {
			delete(g.controls, p)
			g.wakeAll(k)
		}
	}
	if k, ok := (pair{site: site}).shared(); ok {
		g.wakeAll(k)
		return n
	}
	g.woken = append(g.woken, site)
	return n
}

func (g *Gate) wakeAll(k Key) {
	if c := g.counters[k]; c != nil {
		g.free(k, len(c.waiting))
	}
}

// sweptAtOnce is how many who wait for the same are woken by Sweep.
const sweptAtOnce = 10

// Sweep forgets what says nothing any more, and wakes whom time alone has let
// in. The owner calls it about once a minute.
func (g *Gate) Sweep(now time.Time) {
	g.mu.Lock()
	defer g.unlock()
	for k, h := range g.holds {
		if !h.holds(now) {
			delete(g.holds, k)
			g.wakeAll(k)
		}
	}
	found := map[Key]bool{}
	for p, c := range g.controls {
		if c.idle(now) {
			delete(g.controls, p)
			continue
		}
		key, of := Key{Adapted, Path{Site: p.site, Source: p.source}.adapted()}, Key{Site, p.site}
		if k, ok := p.shared(); ok {
			key, of = k, k
			found[k] = true
		}
		if n := g.counters[key]; n != nil && len(n.waiting) > 0 {
			g.free(key, max(0, c.connections(now, most(g.bounds(now, of).Connections))-c.open))
		}
	}
	g.sweepPools(now)
	at := now.UnixNano()
	for k, c := range g.counters {
		if k.Level != Adapted && !found[k] && len(c.waiting) > 0 && g.admits(now, k, g.bounds(now, k)) == nil {
			g.free(k, sweptAtOnce) // whoever was woken for it has no use for it any more
		}
		if c.open == 0 && len(c.waiting) == 0 && c.conns <= at && c.msgs <= at && at-c.last > int64(forgetAfter) {
			delete(g.counters, k)
		}
	}
}

// Held is an operator's word about a key: a suspension, or bounds.
type Held struct {
	Key       Key
	Suspended bool
	Bounds    Bounds
	// Since is when it was said; Until is zero if it holds until Resume.
	Since, Until time.Time
	Why          string
}

// Held lists the operator's words that hold, by key.
func (g *Gate) Held(now time.Time) (all []Held) {
	g.mu.Lock()
	defer g.unlock()
	for k, h := range g.holds {
		if h.holds(now) {
			all = append(all, Held{k, h.suspend, h.bounds, h.since, h.until, h.why})
		}
	}
	slices.SortFunc(all, func(a, b Held) int {
		return cmp.Or(cmp.Compare(a.Key.Level, b.Key.Level), strings.Compare(a.Key.Name, b.Key.Name))
	})
	return all
}

// Line is one limit as an operator sees it.
type Line struct {
	Key  Key
	What string
	// Limit is the bound, "none" without one; Used what there is now.
	Limit, Used string
	// Binds is set if this is what keeps the next connection or message.
	Binds bool
	Until time.Time
	Why   string
}

// Explanation is everything that decides about a path now.
type Explanation struct {
	Path    Path
	Lines   []Line
	Control ControlState
	// Binding is what keeps the next connection, or the next message if there may be
	// another connection; nil if nothing does.
	Binding *Refusal
}

// Explain says what holds for a path, and changes nothing.
func (g *Gate) Explain(now time.Time, p Path, addresses ...string) Explanation {
	g.mu.Lock()
	defer g.unlock()
	e := Explanation{Path: p}
	keys := p.keys()
	for _, a := range addresses {
		keys = append(keys, Key{Address, a})
	}
	e.Binding = g.keeps(now, p)
	for _, k := range keys {
		b := g.bounds(now, k)
		c := g.counters[k]
		if c == nil {
			c = &counter{}
		}
		no := g.look(now, k, b, c)
		for _, l := range []Line{
			{Key: k, What: "connections", Limit: countText(b.Connections), Used: fmt.Sprint(c.open)},
			{Key: k, What: "new connections", Limit: b.NewConnections.String(), Used: fmt.Sprint(c.connsN)},
			{Key: k, What: "messages", Limit: b.Messages.String(), Used: fmt.Sprint(c.msgsN)},
			{Key: k, What: "messages a connection", Limit: countText(b.MessagesEach)},
			{Key: k, What: "recipients a connection", Limit: countText(b.RecipientsEach)},
		} {
			if no != nil && no.What == l.What {
				l.Until, l.Why = no.Until, no.Why
			}
			if l.Limit != "" || l.What == "connections" {
				e.Lines = append(e.Lines, l)
			}
		}
	}
	e.Lines = append(e.Lines, g.shareLines(now, keys, p.Source)...)
	control := g.controls[pair{p.Site, p.Source}]
	if control == nil {
		control = newControl()
	}
	e.Control = control.state(now)
	if e.Binding != nil {
		for i := range e.Lines {
			e.Lines[i].Binds = e.Lines[i].isOf(e.Binding)
		}
	}
	return e
}

// Keeps is what keeps the next connection of a path, or the next message if there may
// be another connection; nil if nothing does. It changes nothing.
func (g *Gate) Keeps(now time.Time, p Path) *Refusal {
	g.mu.Lock()
	defer g.unlock()
	return g.keeps(now, p)
}

// keeps is Keeps; the Gate is locked.
func (g *Gate) keeps(now time.Time, p Path) (no *Refusal) {
	control := g.controls[pair{p.Site, p.Source}]
	if control == nil {
		control = newControl()
	}
	if no := g.suspended(now, p.keys(), p, control); no != nil {
		return no // whatever else there is would not let it go
	}
	for _, k := range p.keys() {
		if g.counters[k] != nil {
			no = tighter(no, g.admits(now, k, g.bounds(now, k)))
		}
	}
	no = tighter(tighter(no, g.lookControl(now, p, control)), g.exhausted(now, p, true))
	no = tighter(no, g.providerAdmits(now, p))
	if no == nil {
		no = g.lookMessage(now, p, control)
	}
	return no
}

func countText(n int) string {
	switch {
	case n == None:
		return "none"
	case n == 0:
		return ""
	}
	return fmt.Sprint(n)
}

// look is admits without making a counter.
func (g *Gate) look(now time.Time, k Key, b Bounds, c *counter) *Refusal {
	if g.counters[k] != nil {
		return g.admits(now, k, b)
	}
	if h, ok := g.holds[k]; ok && h.suspend && h.holds(now) {
		return h.refusal(k)
	}
	return nil
}

// lookControl is controlAdmits without a probe being begun.
func (g *Gate) lookControl(now time.Time, p Path, c *Control) *Refusal {
	copied := *c
	copied.moves = nil
	return g.controlAdmits(now, p, &copied)
}

// lookMessage is what would keep a message that had a connection.
func (g *Gate) lookMessage(now time.Time, p Path, c *Control) (no *Refusal) {
	for _, k := range p.keys() {
		n, r := g.counters[k], g.bounds(now, k).Messages
		if n == nil || !r.IsSet() {
			continue
		}
		if wait := r.waitFor(now.UnixNano(), n.msgs); wait > 0 {
			no = tighter(no, &Refusal{Key: k, What: "messages", Limit: r.String(), Until: now.Add(wait)})
		}
	}
	pace := c.pace
	if _, until, ok := pace.begin(now); !ok {
		no = tighter(no, &Refusal{Key: Key{Adapted, p.adapted()}, What: "messages", Limit: pace.String(), Until: until})
	}
	return no
}

// SiteState is a site with what is known of it, for a list.
type SiteState struct {
	Site, Source string
	Control      ControlState
}

// Sites lists the sites that are remembered, by name.
func (g *Gate) Sites(now time.Time) []SiteState {
	g.mu.Lock()
	defer g.unlock()
	all := make([]SiteState, 0, len(g.controls))
	for p, c := range g.controls {
		if _, ok := p.shared(); !ok {
			all = append(all, SiteState{p.site, p.source, c.state(now)})
		}
	}
	slices.SortFunc(all, func(a, b SiteState) int {
		if n := strings.Compare(a.Site, b.Site); n != 0 {
			return n
		}
		return strings.Compare(a.Source, b.Source)
	})
	return all
}
