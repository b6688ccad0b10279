package main

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/limit"
)

// link is a site and the source, as a Path has it, that it is gone to from.
type link struct{ site, source string }

// from is what a site counts for from a source of a pool.
func (l *limits) from(site, source string) limit.Path {
	p := l.path(site)
	p.Source = l.sourceName(source)
	return p
}

// sourceName is a source as it counts: the system's choice only where it has a table.
func (l *limits) sourceName(source string) string {
	if _, there := l.config().Source[source]; there {
		return source
	}
	return ""
}

// source is a source of a pool, for the exit.
func (l *limits) source(name string) smtp.Source {
	s := l.config().Source[name]
	if s == nil {
		return smtp.Source{}
	}
	return smtp.Source{Name: name, IPv4: s.IPv4.Addr, IPv6: s.IPv6.Addr, Hello: s.Helo}
}

// choice are the sources of a pool that a message for a site may leave from, as long
// as they are not refused.
type choice struct {
	l        *limits
	at       lane
	balance  *limit.Balance
	sources  []string // of the configuration, parallel to what follows
	paths    []limit.Path
	weighted []limit.Candidate
	no       *limit.Refusal
}

// choose begins a choice. Those that are avoided are in it only where there are no
// others.
func (l *limits) choose(now time.Time, at lane) *choice {
	c := &choice{l: l, at: at, balance: l.balance(at.pool)}
	shares := l.config().Shares(at.pool)
	for pass := 0; pass < 2 && len(c.paths) == 0 && c.no == nil; pass++ {
		for _, s := range shares {
			p := l.from(at.site, s.Source)
			if pass == 0 && len(shares) > 1 && l.avoids(now, link{at.site, p.Source}) {
				continue
			}
			if no := l.gate.Suspended(now, p); no != nil {
				c.no = limit.Sooner(now, c.no, no)
				continue
			}
			c.sources, c.paths = append(c.sources, s.Source), append(c.paths, p)
			c.weighted = append(c.weighted, limit.Candidate{Source: p.Source, Weight: s.Weight, Ready: l.spare(link{at.site, p.Source})})
		}
	}
	return c
}

// balance is a pool's.
func (l *limits) balance(pool string) *limit.Balance {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.balances[pool]
	if b == nil {
		b = &limit.Balance{}
		l.balances[pool] = b
	}
	return b
}

// spare reports whether there is a free connection that nobody is on his way to.
func (l *limits) spare(at link) bool {
	free := l.exit.Free(at.site, at.source)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.free[at] < free
}

// drop takes a source out of the choice that is refused.
func (c *choice) drop(i int, no *limit.Refusal, now time.Time) {
	c.no = limit.Sooner(now, c.no, no)
	c.sources, c.paths = append(c.sources[:i:i], c.sources[i+1:]...), append(c.paths[:i:i], c.paths[i+1:]...)
	c.weighted = append(c.weighted[:i:i], c.weighted[i+1:]...)
}

// next is the source that a message leaves from, with a ticket, or with none over a
// free connection; -1 if all refuse.
func (c *choice) next(now time.Time) (int, *limit.Ticket) {
	order := c.balance.Order(c.weighted)
	ready := -1
	for k, i := range order {
		if c.weighted[i].Ready {
			ready = k
			break
		}
	}
	if ready < 0 {
		paths := make([]limit.Path, len(order))
		for k, i := range order {
			paths[k] = c.paths[i]
		}
		t, k, no := c.l.gate.OpenFirst(now, paths)
		if no != nil {
			c.no = limit.Sooner(now, c.no, no)
			return -1, nil
		}
		return order[k], t
	}
	for _, i := range order[:ready] {
		if t := c.l.gate.Try(now, c.paths[i]); t != nil {
			return i, t
		}
	}
	return order[ready], nil
}

// permit is leave to deliver from a source: over a connection that is free, or a new
// one.
type permit struct {
	l      *limits
	pool   string
	source smtp.Source
	path   limit.Path
	ticket atomic.Pointer[ticket]
	free   atomic.Bool // a free connection is promised, and was not taken yet
	over   atomic.Bool
}

// at is where the permit is for.
func (v *permit) at() link { return link{v.path.Site, v.path.Source} }

// admit is the queue's question, with the queue locked.
func (l *limits) admit(now time.Time, site, pool string) (queue.Leave, *queue.Wait) {
	leave, no := l.allow(now, lane{site: site, pool: pool})
	if no != nil {
		return nil, &queue.Wait{Until: no.Until}
	}
	return leave, nil
}

// allow gives leave for one message, from one of the pool's sources, or says what
// stands in the way of all.
func (l *limits) allow(now time.Time, at lane) (*permit, *limit.Refusal) {
	c := l.choose(now, at)
	for len(c.paths) > 0 {
		i, t := c.next(now)
		if i < 0 {
			break
		}
		if no := l.gate.Keep(now, c.paths[i]); no != nil {
			if t != nil {
				t.Return(now)
			}
			c.drop(i, no, now)
			continue
		}
		c.balance.Chose(c.weighted, i)
		v := &permit{l: l, pool: at.pool, path: c.paths[i], source: l.source(c.sources[i])}
		if t != nil {
			v.ticket.Store(l.counted(t, v.path))
			return v, nil
		}
		l.mu.Lock()
		l.free[v.at()]++
		l.mu.Unlock()
		v.free.Store(true)
		return v, nil
	}
	l.counts.refused(c.no)
	l.makeRoom(c.no, at.site)
	return nil, c.no
}

// take is the ticket, for the exit, which has it from then on.
func (v *permit) take() smtp.Ticket {
	if t := v.ticket.Swap(nil); t != nil {
		return t
	}
	return nil
}

// lend gives a job what there is leave for. When a free connection is taken for it, a
// promise is kept, or the ticket is for others.
func (v *permit) lend(job *smtp.Job) {
	job.Source, job.Ticket = v.source, v.take()
	job.Reuses = func() {
		if t, ok := job.Ticket.(*ticket); ok {
			job.Ticket = nil
			t.Return()
		}
		v.settle()
	}
}

// settle takes a promise off the account.
func (v *permit) settle() bool {
	if !v.free.Swap(false) {
		return false
	}
	v.l.mu.Lock()
	defer v.l.mu.Unlock()
	if v.l.free[v.at()]--; v.l.free[v.at()] <= 0 {
		delete(v.l.free, v.at())
	}
	return true
}

// back takes a ticket that the exit had no use for.
func (v *permit) back(t smtp.Ticket) {
	if mine, ok := t.(*ticket); ok {
		v.ticket.Store(mine)
	}
}

// Release gives up what was not used.
func (v *permit) Release() {
	if v.over.Swap(true) {
		return
	}
	v.l.gate.Give(v.path)
	if t := v.ticket.Swap(nil); t != nil {
		t.Return()
	}
	if v.settle() {
		// While this counted, others may have been refused a connection that is free
		// now, or will be.
		v.l.wake(v.path.Site)
	}
}

// Open is the exit's question, for a connection that no leave was given for.
func (l *limits) Open(site, source string, again bool) (smtp.Ticket, error) {
	p := l.path(site)
	p.Source, p.Again = source, again
	t, no := l.gate.Open(l.now(), p)
	if no != nil {
		l.counts.refused(no)
		l.makeRoom(no, site)
		return nil, notNow(no)
	}
	return l.counted(t, p), nil
}

// counted is a ticket that counts in the metrics.
func (l *limits) counted(t *limit.Ticket, p limit.Path) *ticket {
	k := &ticket{l: l, t: t, provider: l.providerLabel(p.Provider)}
	l.counts.opened(k.provider, 1)
	return k
}

// spareAfter is how long a connection that has become free is left for the next
// message of its own site, where others wait for what it counts for.
const spareAfter = 20 * time.Millisecond

// freed has the next message of a site ask for a connection that has become free.
// A site that waits for room at the same address may use it as well. If there is
// none, and others wait for room at the provider, a group or a source, the connection
// is closed.
func (l *limits) freed(name string, at netip.Addr) {
	l.wake(name)
	if at.IsValid() {
		l.gate.Offer(limit.Key{Level: limit.Address, Name: l.config().AddressName(at)})
	}
	if !l.wanted(name) {
		return
	}
	time.AfterFunc(spareAfter, func() {
		if l.wanted(name) {
			l.exit.Spare(func(other, source string) bool {
				p := l.path(name)
				p.Source = source
				return other == name && l.gate.Wanted(p) && !l.promised(link{other, source})
			})
		}
	})
}

// wanted reports whether others wait for what a connection to a site counts for, from
// any source.
func (l *limits) wanted(name string) bool {
	p := l.path(name)
	if l.gate.Wanted(p) {
		return true
	}
	for source := range l.config().Source {
		if p.Source = source; l.gate.Wanted(p) {
			return true
		}
	}
	return false
}

// makeRoom closes a free connection of another site that counts for what has no
// room; the one that was refused is woken then.
func (l *limits) makeRoom(no *limit.Refusal, refused string) {
	if k := no.Key; no.What == "connections" && (k.Level == limit.Source || k.Level == limit.Provider || k.Level == limit.Group) {
		l.exit.Spare(func(name, source string) bool {
			p := l.path(name)
			p.Source = source
			return name != refused && counts(&p, k) && !l.promised(link{name, source})
		})
	}
}

// promised reports whether a free connection of a site is for a message that is on
// its way to it.
func (l *limits) promised(at link) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.free[at] > 0
}

// pool is the lane of a message: its pool's name, "" for the default one.
func (l *limits) pool(sender, chosen string) string {
	if pool := l.config().PoolOf(sender, chosen); pool != config.DefaultPool {
		return pool
	}
	return ""
}

// anySource is a source for a message of which nobody knows yet where it goes.
func (l *limits) anySource(pool string) smtp.Source {
	c := choice{balance: l.balance(pool)}
	for _, s := range l.config().Shares(pool) {
		c.sources = append(c.sources, s.Source)
		c.weighted = append(c.weighted, limit.Candidate{Source: l.sourceName(s.Source), Weight: s.Weight})
	}
	return l.source(c.sources[c.balance.Order(c.weighted)[0]])
}
