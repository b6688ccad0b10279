package main

import (
	"maps"
	"slices"
	"sync"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/queue/limit"
)

// limitCounts counts what limits do, for the metrics: only by names of which there
// are few.
type limitCounts struct {
	mu          sync.Mutex
	connections map[string]int // by provider
	refusals    map[[2]string]uint64
	answers     map[string]uint64
}

// otherProvider stands for all that have no table.
const otherProvider = "other"

// providerLabel is a provider as it is counted.
func (l *limits) providerLabel(name string) string {
	if slices.ContainsFunc(l.config().Providers(), func(p limit.KnownProvider) bool { return p.Name == name }) {
		return name
	}
	return otherProvider
}

func (c *limitCounts) opened(provider string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.connections == nil {
		c.connections = map[string]int{}
	}
	c.connections[provider] += n
}

func (c *limitCounts) refused(no *limit.Refusal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refusals == nil {
		c.refusals = map[[2]string]uint64{}
	}
	c.refusals[[2]string{no.Key.Level.String(), no.What}]++
}

func (c *limitCounts) answered(class limit.Class) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answers == nil {
		c.answers = map[string]uint64{}
	}
	c.answers[class.String()]++
}

// Stats is admin.Limits.
func (l *limits) Stats() admin.LimitStats {
	now := l.now()
	s := admin.LimitStats{Suspended: map[string]int{"operator": 0, "answers": 0}}
	for _, h := range l.gate.Held(now) {
		if h.Suspended {
			s.Suspended["operator"]++
		}
	}
	blocked := map[[2]string]bool{}
	for _, b := range l.gate.Blocks(now) {
		blocked[[2]string{b.Provider, b.Source}] = true
		s.Suspended["answers"]++
	}
	for _, site := range l.gate.Sites(now) {
		// A site of a provider that blocks us is suspended with it.
		if !site.Control.Until.IsZero() && !blocked[[2]string{l.path(site.Site).Provider, site.Source}] {
			s.Suspended["answers"]++
		}
	}
	l.counts.mu.Lock()
	defer l.counts.mu.Unlock()
	s.Connections, s.Refused, s.Answers = maps.Clone(l.counts.connections), maps.Clone(l.counts.refusals), maps.Clone(l.counts.answers)
	return s
}
