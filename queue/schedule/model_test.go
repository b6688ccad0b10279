package schedule

import (
	"maps"
	"slices"
	"time"
)

// The model keeps recipients in a map and answers every question by looking at
// all of them.
type model struct {
	items map[mkey]*mitem
	sites map[string]*msite
	where map[[2]string]string // channel, domain -> site, of domains with mail
	chans map[string]Channel
	byDef int
	now   time.Time
	out   []*mbatch
}

type mkey struct {
	id   uint64
	rcpt uint32
}

type mitem struct {
	mkey
	channel, domain string
	due             time.Time
	attempts        int
	state           State
	hold, gone      bool
}

type msite struct {
	limit     int
	suspended time.Time
	forever   bool
	paced     time.Time
	succeeded time.Time
	strikes   int
}

type mbatch struct {
	Batch
	items []*mitem
}

// modelWindow is short, so that successes are often too long ago.
const modelWindow = 2 * time.Minute

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (m *model) site(name string) *msite {
	if m.sites[name] == nil {
		m.sites[name] = &msite{}
	}
	return m.sites[name]
}

func (m *model) alive(name string) bool {
	st := m.site(name)
	return !st.succeeded.IsZero() && m.now.Sub(st.succeeded) <= modelWindow && st.strikes < strikes
}

func (m *model) inflight(match func(*mbatch) bool) int {
	n := 0
	for _, b := range m.out {
		if match(b) {
			n++
		}
	}
	return n
}

// open tells whether a site's own rules let a batch be taken.
func (m *model) open(name string) bool {
	st := m.site(name)
	limit := m.byDef
	if st.limit > 0 {
		limit = st.limit
	}
	if !m.alive(name) {
		limit = min(limit, DefaultProbe)
	}
	return m.inflight(func(b *mbatch) bool { return b.Site == name }) < limit &&
		!st.forever && !st.suspended.After(m.now) && !st.paced.After(m.now)
}

func (m *model) unproven(s *Schedule, channel string) int {
	c := s.channels[s.chanByKey[channel]]
	return c.flying[newcomer] + c.flying[waiting] + c.flying[failing]
}

// mayTake lists the recipients that Take may not refuse at a time: living sites
// while the channel has a slot, others while the part open to everyone has one.
func (m *model) mayTake(s *Schedule, at time.Time) []*mitem {
	var all []*mitem
	for _, it := range m.items {
		if it.state != Queued || it.due.After(at) {
			continue
		}
		c := m.chans[it.channel]
		site := m.where[[2]string{it.channel, it.domain}]
		full := m.inflight(func(b *mbatch) bool { return b.Channel == it.channel })
		most := c.Limit - int(float64(c.Limit)*c.Reserve)
		rest := max(1, most-int(float64(most)*c.Reserve))
		if full >= c.Limit || !m.open(site) {
			continue
		}
		if m.alive(site) || m.unproven(s, it.channel) < rest {
			all = append(all, it)
		}
	}
	return all
}

func (m *model) match(sel Select) func(*mitem) bool {
	return func(it *mitem) bool {
		return !it.gone && (sel.ID == 0 || sel.ID == it.id) && (sel.IDs == nil || slices.Contains(sel.IDs, it.id)) &&
			(sel.Channel == "" || sel.Channel == it.channel) && (sel.Domain == "" || sel.Domain == it.domain) &&
			(sel.Site == "" || sel.Site == m.where[[2]string{it.channel, it.domain}]) &&
			(sel.Match == nil || sel.Match(Item{Recipient: it.rcpt, Attempts: it.attempts, Due: it.due, State: it.state}))
	}
}

// tidy forgets domains without recipients and asks the route of new ones.
func (m *model) tidy() {
	used := map[[2]string]bool{}
	for _, it := range m.items {
		used[[2]string{it.channel, it.domain}] = true
	}
	maps.DeleteFunc(m.where, func(k [2]string, _ string) bool { return !used[k] })
}

func (m *model) locate(channel, domain string) {
	k := [2]string{channel, domain}
	if _, ok := m.where[k]; !ok {
		m.where[k] = route(channel, domain)
	}
}

func route(_, domain string) string {
	if domain >= "d5" {
		return "shared"
	}
	return ""
}

// home is what the schedule makes of route's answer.
func (m *model) home(channel, domain string) {
	m.locate(channel, domain)
	if k := [2]string{channel, domain}; m.where[k] == "" {
		m.where[k] = domain
	}
}
