package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/limit"
)

// limits joins the queue, which asks who may be delivered to, and the exit, which
// opens connections, to the Gate. It belongs to the daemon.
type limits struct {
	gate      *limit.Gate
	providers []limit.KnownProvider
	now       func() time.Time
	config    func() *config.Config
	// exit tells of free connections, and where domains are; wake calls sites that
	// wait. Both are set once, before anything is asked.
	exit *smtp.Exit
	wake func(site string)

	done chan struct{} // closed to end the sweeping
	wg   sync.WaitGroup

	mu    sync.Mutex
	paths map[string]limit.Path // by site
	free  map[string]int        // leaves given for free connections, by site
}

// maxPaths bounds what is remembered of sites; what is forgotten is found again
// with the next look at the DNS.
const maxPaths = 200_000

func newLimits(c func() *config.Config) (*limits, error) {
	classes, err := limit.ShippedClasses()
	if err != nil {
		return nil, err
	}
	providers, err := limit.ShippedProviders()
	if err != nil {
		return nil, err
	}
	l := &limits{providers: providers, now: time.Now, config: c, paths: map[string]limit.Path{}, free: map[string]int{}}
	l.gate = limit.New(limit.Options{Classes: classes, Bounds: l.bounds, Wake: func(site string) { l.wake(site) }})
	return l, nil
}

// bounds are what the configuration gives a key.
func (l *limits) bounds(k limit.Key) limit.Bounds {
	switch k.Level {
	case limit.Site:
		return limit.Bounds{Connections: l.config().Queue.Domain}
	case limit.Provider:
		for i := range l.providers {
			if l.providers[i].Name == k.Name {
				return l.providers[i].Bounds
			}
		}
	}
	return limit.Bounds{}
}

// locate is the site of a domain: the hosts that take its mail, so that all their
// domains share what they are given.
func (l *limits) locate(ctx context.Context, domain string) (string, error) {
	place, err := l.exit.Locate(ctx, domain)
	if err != nil {
		return "", err
	}
	p := limit.Path{Site: place.Site.Name}
	if !place.Routed {
		p.Provider = limit.ProviderOf(l.providers, place.Hosts)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.paths) >= maxPaths {
		clear(l.paths)
	}
	l.paths[p.Site] = p
	return p.Site, nil
}

func (l *limits) path(site string) limit.Path {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, ok := l.paths[site]; ok {
		return p
	}
	return limit.Path{Site: site}
}

// permit is leave to deliver: over a connection that is free, or a new one.
type permit struct {
	l      *limits
	site   string
	ticket atomic.Pointer[ticket]
	free   bool
}

// admit is the queue's question, with the queue locked.
func (l *limits) admit(now time.Time, site string) (queue.Leave, *queue.Wait) {
	_, free := l.exit.Connections(site)
	l.mu.Lock()
	if l.free[site] < free {
		l.free[site]++
		l.mu.Unlock()
		return &permit{l: l, site: site, free: true}, nil
	}
	l.mu.Unlock()
	t, no := l.gate.Open(now, l.path(site))
	if no != nil {
		return nil, &queue.Wait{Until: no.Until}
	}
	v := &permit{l: l, site: site}
	v.ticket.Store(&ticket{l: l, t: t})
	return v, nil
}

// take is the ticket, for the exit, which has it from then on.
func (v *permit) take() smtp.Ticket {
	if t := v.ticket.Swap(nil); t != nil {
		return t
	}
	return nil
}

// back takes a ticket that the exit had no use for.
func (v *permit) back(t smtp.Ticket) {
	if mine, ok := t.(*ticket); ok {
		v.ticket.Store(mine)
	}
}

// Release gives up what was not used.
func (v *permit) Release() {
	if t := v.ticket.Swap(nil); t != nil {
		t.t.Return(v.l.now())
	}
	if !v.free {
		return
	}
	v.l.mu.Lock()
	defer v.l.mu.Unlock()
	if v.l.free[v.site]--; v.l.free[v.site] <= 0 {
		delete(v.l.free, v.site)
	}
}

// Open is the exit's question, for a connection that no leave was given for.
func (l *limits) Open(site string) (smtp.Ticket, error) {
	t, no := l.gate.Open(l.now(), l.path(site))
	if no != nil {
		return nil, notNow(no)
	}
	return &ticket{l: l, t: t}, nil
}

func notNow(no *limit.Refusal) error { return &smtp.NotNow{Until: no.Until, Why: no.String()} }

// ticket is a limit.Ticket as the exit knows it.
type ticket struct {
	l *limits
	t *limit.Ticket
}

// At says where the connection goes. The address counts by itself for IPv4 and by
// its /64 for IPv6, of which anybody has plenty.
func (t *ticket) At(a netip.Addr) error {
	name := a.String()
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			name = p.String()
		}
	}
	if no := t.t.At(t.l.now(), name); no != nil {
		return notNow(no)
	}
	return nil
}

func (t *ticket) Greeted()              { t.t.Greeted(t.l.now()) }
func (t *ticket) Unreachable(err error) { t.t.Unreachable(t.l.now(), err.Error()) }
func (t *ticket) Taken()                { t.t.Taken(t.l.now()) }
func (t *ticket) Close()                { t.t.Close(t.l.now()) }

func (t *ticket) Message(recipients int) error {
	if no := t.t.Message(t.l.now(), recipients); no != nil {
		return notNow(no)
	}
	return nil
}

func (t *ticket) Said(answer wire.Reply, early bool) {
	a := limit.Answer{Code: answer.Code, Text: answer.Text, Early: early}
	if answer.Coded {
		a.Enhanced = fmt.Sprintf("%d.%d.%d", answer.Code/100, answer.Enhanced.Subject, answer.Enhanced.Detail)
	}
	t.t.Said(t.l.now(), a)
}

// gateEvery is how often the Gate forgets and looks who may go on.
const gateEvery = 10 * time.Second

// start looks after the Gate until close.
func (l *limits) start() {
	l.done = make(chan struct{})
	l.wg.Go(func() {
		tick := time.NewTicker(gateEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				l.gate.Sweep(l.now())
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
	}
}
