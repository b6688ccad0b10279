package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/egress/site"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/limit"
)

// limits joins the queue, which asks who may be delivered to, and the exit, which
// opens connections, to the Gate. It belongs to the daemon.
type limits struct {
	gate   *limit.Gate
	now    func() time.Time
	config func() *config.Config
	// exit tells of free connections, and where domains are; queue wakes sites that
	// wait, and resolver finds the addresses of hosts, for people. They are set once,
	// before anything is asked.
	exit     *smtp.Exit
	queue    *queue.Queue // nil for none
	resolver smtp.Resolver

	done chan struct{} // closed to end the sweeping
	wg   sync.WaitGroup
	kept *limitsKept

	counts  limitCounts
	waiters waiters

	mu    sync.Mutex
	sites map[string]*knownSite
	free  map[link]int // leaves given for free connections
	// balances deal out messages to the sources of each pool, and avoided are the
	// sources that are not to be used, at a site or, with none, at all.
	balances map[string]*limit.Balance
	avoided  map[link]time.Time
}

// knownSite is a site with what it counts for under a configuration.
type knownSite struct {
	hosts  []string
	routed bool
	path   limit.Path
	under  *config.Config
}

// maxSites bounds what is remembered of sites; what is forgotten is found again
// with the next look at the DNS.
const maxSites = 200_000

func newLimits(c func() *config.Config, resolver smtp.Resolver) (*limits, error) {
	classes, err := limit.ShippedClasses()
	if err != nil {
		return nil, err
	}
	l := &limits{now: time.Now, config: c, resolver: resolver, sites: map[string]*knownSite{}, free: map[link]int{}, balances: map[string]*limit.Balance{}, avoided: map[link]time.Time{}}
	l.gate = limit.New(limit.Options{
		Classes: classes, Bounds: func(k limit.Key) limit.Bounds { return l.limited(k).Bounds }, Wake: l.wake,
		Warmup: func(source string) limit.Warmup { return l.config().WarmupOf(source) },
	})
	return l, nil
}

func (l *limits) wake(site string) {
	if l.queue != nil {
		l.queue.Admissible(site)
	}
	l.waiters.wake(site)
}

// limited are the limits that the configuration in force gives a key.
func (l *limits) limited(k limit.Key) config.Limited {
	c := l.config()
	switch k.Level {
	case limit.Source:
		return c.SourceLimits(k.Name)
	case limit.Provider:
		return c.ProviderLimits(k.Name)
	case limit.Group:
		return c.GroupLimits(k.Name)
	case limit.Site:
		return c.SiteLimits(l.path(k.Name).Groups)
	case limit.Address:
		return c.AddressLimits(c.GroupsOfAddressName(k.Name))
	}
	return config.Limited{}
}

// connections is the most connections that a site may have, 0 for no bound.
func (l *limits) connections(site string) int {
	return max(0, l.limited(limit.Key{Level: limit.Site, Name: site}).Connections)
}

// locate is the site of a domain: the hosts that take its mail, so that all their
// domains share what they are given.
func (l *limits) locate(ctx context.Context, domain string) (string, error) {
	place, err := l.exit.Locate(ctx, domain)
	if err != nil {
		return "", err
	}
	l.learn(place)
	return place.Site.Name, nil
}

// learn notes what a site counts for.
func (l *limits) learn(place smtp.Place) limit.Path {
	c := l.config()
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sites[place.Site.Name]; s != nil && s.under == c && s.routed == place.Routed {
		return s.path
	}
	if len(l.sites) >= maxSites {
		clear(l.sites)
	}
	s := &knownSite{hosts: place.Hosts, routed: place.Routed}
	s.place(place.Site.Name, c)
	l.sites[place.Site.Name] = s
	return s.path
}

// place finds what a site counts for. A group that it is in by its domain comes
// first.
func (s *knownSite) place(name string, c *config.Config) {
	s.under = c
	s.path = limit.Path{Site: name, Groups: c.GroupsOfHosts(s.hosts), Routed: s.routed}
	if g := site.Group(name); g != "" {
		s.path.Groups = append([]string{g}, slices.DeleteFunc(s.path.Groups, func(other string) bool { return other == g })...)
	}
	if !s.routed {
		s.path.Provider = limit.ProviderOf(c.Providers(), s.hosts)
	}
}

// path is what a site counts for, from whatever source.
func (l *limits) path(name string) limit.Path {
	c := l.config()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sites[name]
	if s == nil {
		// From before a restart: what its name tells.
		s = &knownSite{hosts: slices.DeleteFunc(site.Hosts(name), isLiteral)}
	}
	if s.under != c {
		s.place(name, c)
	}
	return s.path
}

// reloaded has every site that waits ask again, under the new configuration.
func (l *limits) reloaded() { l.wakeThose(func(*limit.Path) bool { return true }) }

// wakeThose has sites ask again.
func (l *limits) wakeThose(which func(*limit.Path) bool) {
	l.mu.Lock()
	var all []string
	for name, s := range l.sites {
		if which(&s.path) {
			all = append(all, name)
		}
	}
	l.mu.Unlock()
	for _, name := range all {
		l.wake(name)
	}
}

func notNow(no *limit.Refusal) error { return &smtp.NotNow{Until: no.Until, Why: no.String()} }

// ticket is a limit.Ticket as the exit knows it.
type ticket struct {
	l        *limits
	t        *limit.Ticket
	provider string // as it is counted
	over     sync.Once
}

// At says where the connection goes.
func (t *ticket) At(a netip.Addr) error {
	c := t.l.config()
	if no := t.t.At(t.l.now(), c.AddressName(a), c.GroupsOfAddress(a)...); no != nil {
		t.l.counts.refused(no)
		return notNow(no)
	}
	return nil
}

// TakeOver has a connection count for another site.
func (t *ticket) TakeOver(other smtp.Ticket, a netip.Addr) {
	if o, ok := other.(*ticket); ok {
		t.t.TakeOver(t.l.now(), o.t, t.l.config().GroupsOfAddress(a)...)
		o.end()
	}
}

func (t *ticket) Greeted()              { t.t.Greeted(t.l.now()) }
func (t *ticket) Unreachable(err error) { t.t.Unreachable(t.l.now(), err.Error()) }
func (t *ticket) Taken()                { t.t.Taken(t.l.now()) }

// Close ends the connection.
func (t *ticket) Close() {
	t.end()
	t.t.Close(t.l.now())
}

// Return gives up a ticket that was not used for one.
func (t *ticket) Return() {
	t.end()
	t.t.Return(t.l.now())
}

func (t *ticket) end() { t.over.Do(func() { t.l.counts.opened(t.provider, -1) }) }

func (t *ticket) Message(recipients int) error {
	if no := t.t.Message(t.l.now(), recipients); no != nil {
		t.l.counts.refused(no)
		return notNow(no)
	}
	return nil
}

func (t *ticket) Said(answer wire.Reply, early bool) (over bool) {
	a := limit.Answer{Code: answer.Code, Text: answer.Text, Early: early}
	if answer.Coded {
		a.Enhanced = fmt.Sprintf("%d.%d.%d", answer.Code/100, answer.Enhanced.Subject, answer.Enhanced.Detail)
	}
	class := t.t.Said(t.l.now(), a).Class
	t.l.counts.answered(class)
	return class == limit.Count
}

// gateEvery is how often the Gate forgets and looks who may go on.
const gateEvery = 10 * time.Second

// start looks after the Gate until close.
func (l *limits) start() {
	l.done = make(chan struct{})
	l.wg.Go(func() {
		tick, keep := time.NewTicker(gateEvery), time.NewTicker(keepEvery)
		defer tick.Stop()
		defer keep.Stop()
		for {
			select {
			case <-tick.C:
				l.gate.Sweep(l.now())
			case <-keep.C:
				l.keepLearned()
			case <-l.done:
				return
			}
		}
	})
}

func (l *limits) close() {
	if l.done != nil {
		close(l.done)
		l.wg.Wait()
		l.keepLearned()
	}
}
