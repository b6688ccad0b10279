package throttle

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// PenaltyOptions are the rules of a Penalty. The zero value works.
type PenaltyOptions struct {
	// Points is how many points close the gate (default 20), Forget how long it
	// takes until as many are forgotten (default 10 min): they go one by one.
	Points int
	Forget time.Duration
	// Close is how long the gate stays closed; default 10 min.
	Close time.Duration
	// IPv6Bits is the size of the network that is taken for one client; 0 means
	// /64. Of IPv4 it is the address.
	IPv6Bits int
	// Remember bounds how many clients are remembered; 0 means 65,536. Beyond it
	// those that have been good for longest are forgotten, and then those for
	// whom the gate has been closed for longest.
	Remember int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Penalty counts strikes against clients that misbehave: that send too many bad
// commands, fail to log in, look for addresses. Who has collected too many finds
// the gate closed for a while, and starts anew when it opens. Sessions that are
// open go on. Safe for concurrent use.
type Penalty struct {
	o     PenaltyOptions
	start time.Time
	point time.Duration // how long one point is remembered

	mu      sync.Mutex
	clients map[netip.Prefix]*client
	// striking are those with points, closed those for whom the gate is closed;
	// in both the one that came last is in front.
	striking, closed *list.List
}

// client is one that has points or is closed out.
type client struct {
	key netip.Prefix
	// until is when the last point is forgotten, or when the gate opens.
	until time.Duration
	shut  bool
	at    *list.Element // of striking or closed
}

// NewPenalty makes a Penalty that has nothing against anybody.
func NewPenalty(o PenaltyOptions) *Penalty {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&o.Forget, 10 * time.Minute}, {&o.Close, 10 * time.Minute}} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
	for _, n := range []struct {
		value *int
		def   int
	}{{&o.Points, 20}, {&o.Remember, 1 << 16}} {
		if *n.value <= 0 {
			*n.value = n.def
		}
	}
	o.IPv6Bits = bits(o.IPv6Bits, 64, 128)
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Penalty{
		o: o, start: o.Now(), point: max(o.Forget/time.Duration(o.Points), 1),
		clients: map[netip.Prefix]*client{}, striking: list.New(), closed: list.New(),
	}
}

// Strike counts points against an address. Points that are not positive do
// nothing, and neither do strikes against one for whom the gate is closed.
func (p *Penalty) Strike(addr netip.Addr, points int) {
	key := p.key(addr)
	if points <= 0 || !key.IsValid() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	c := p.clients[key]
	if c != nil && c.shut && now >= c.until {
		p.forget(c)
		c = nil
	}
	switch {
	case c == nil:
		c = &client{key: key}
		p.clients[key] = c
		c.at = p.striking.PushFront(c)
	case c.shut:
		return
	default:
		p.striking.MoveToFront(c.at)
	}
	c.until = max(c.until, now) + p.point*time.Duration(min(points, p.o.Points))
	if c.until-now >= p.point*time.Duration(p.o.Points) {
		p.striking.Remove(c.at)
		c.at, c.shut, c.until = p.closed.PushFront(c), true, now+p.o.Close
	}
	p.tidy(now)
}

// tidy forgets what is over, a few at a time, and what is too much.
func (p *Penalty) tidy(now time.Duration) {
	for range 2 {
		for _, l := range []*list.List{p.striking, p.closed} {
			if e := l.Back(); e != nil && e.Value.(*client).until <= now {
				p.forget(e.Value.(*client))
			}
		}
	}
	for len(p.clients) > p.o.Remember {
		oldest := p.striking.Back()
		if oldest == nil {
			oldest = p.closed.Back()
		}
		p.forget(oldest.Value.(*client))
	}
}

func (p *Penalty) forget(c *client) {
	l := p.striking
	if c.shut {
		l = p.closed
	}
	l.Remove(c.at)
	delete(p.clients, c.key)
}

// Closed reports whether the gate is closed for an address, and for how long it
// still is.
func (p *Penalty) Closed(addr netip.Addr) (left time.Duration, closed bool) {
	key := p.key(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[key]
	if c == nil || !c.shut {
		return 0, false
	}
	left = c.until - p.clock()
	if left <= 0 {
		p.forget(c)
		return 0, false
	}
	return left, true
}

// Pardon forgets what there is against an address.
func (p *Penalty) Pardon(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.clients[p.key(addr)]; c != nil {
		p.forget(c)
	}
}

// Remembered is how many clients there is something against.
func (p *Penalty) Remembered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.clients)
}

// key is the client that an address belongs to; the zero Prefix for none.
func (p *Penalty) key(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	switch {
	case !addr.IsValid():
		return netip.Prefix{}
	case addr.Is4():
		return single(addr)
	}
	return within(addr, p.o.IPv6Bits)
}

func (p *Penalty) clock() time.Duration { return p.o.Now().Sub(p.start) }
