package smtp

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// place is where a connection goes and where it comes from.
type place struct {
	address netip.AddrPort
	socket  string
	lmtp    bool
	source  Source
}

// key is what messages must agree on to share a connection.
type key struct {
	place
	policy string
	login  string
	group  string // of the site
}

// link is a connection that is ready for a message. It is for one goroutine, or
// kept.
type link struct {
	key    key
	site   string
	c      *wire.Client
	tls    TLSState
	ticket Ticket // nil without a Gate
	counts string // the site that the ticket is for
	hello  string // the name that was given in EHLO
	opened time.Time
	sent   int // messages that it has carried
	spent  bool
	reused bool

	// While it is kept: for how long, and where it stands in each chain.
	until time.Time
	chain [chains]neighbors
}

// kept are the connections that are open and free, and the counts of those that
// are open at all. Finding, keeping and pushing out one of them takes as long
// whatever their number is. It is safe for concurrent use.
type kept struct {
	o      *Options
	manner *atomic.Pointer[manner]

	mu     sync.Mutex
	closed bool
	idle   chain // the one free for longest first
	keys   map[key]*chain
	places map[place]int // free ones
	sites  map[string]*siteLinks
	timer  *time.Timer    // for the first of idle; nil while there is none
	wg     sync.WaitGroup // of those that are closed in passing
}

// siteLinks are the connections of a site.
type siteLinks struct {
	open int
	free chain
}

// opened counts a connection.
func (k *kept) opened(l *link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add(l.site, 1)
}

// add counts connections of a site; k is locked.
func (k *kept) add(site string, n int) {
	of := k.of(site)
	of.open += n
	k.forget(site, of)
}

// of are the connections of a site, to be changed; k is locked.
func (k *kept) of(site string) *siteLinks {
	of := k.sites[site]
	if of == nil {
		if k.sites == nil {
			k.sites = map[string]*siteLinks{}
		}
		of = &siteLinks{free: chain{of: ofSite}}
		k.sites[site] = of
	}
	return of
}

// forget forgets a site without connections; k is locked.
func (k *kept) forget(site string, of *siteLinks) {
	if of.open <= 0 && of.free.len == 0 {
		delete(k.sites, site)
	}
}

// close ends a connection and counts it off when the peer has closed.
func (k *kept) close(ctx context.Context, l *link) {
	l.c.Quit(ctx) //nolint:errcheck // nothing depends on it
	if l.ticket != nil {
		l.ticket.Close()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add(l.site, -1)
}

// ended counts a connection off that was never to be kept.
func (k *kept) ended(site string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add(site, -1)
}

// give keeps a connection for the next message, or closes it.
func (k *kept) give(ctx context.Context, l *link) {
	now := k.o.Now()
	limit := k.manner.Load().maxMessages
	if n := l.c.Capabilities().MailMax; n > 0 { // LIMITS (RFC 9422 §4.1)
		limit = min(limit, n)
	}
	if !l.c.Usable() || l.sent == 0 || l.spent || l.sent >= limit || k.stale(l) || now.Sub(l.opened) >= k.o.MaxAge {
		k.close(ctx, l)
		return
	}
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		k.close(ctx, l)
		return
	}
	site, at := l.site, l.key.address.Addr() // from now on it may be somebody else's
	k.keep(l)
	var over *link
	if k.idle.len > k.o.MaxIdle {
		over = k.idle.first
		k.remove(over)
		k.closeSoon(over)
	}
	k.mu.Unlock()
	if k.o.Freed != nil && over != l {
		k.o.Freed(site, at)
	}
}

// keep puts a connection to those that are free; k is locked.
func (k *kept) keep(l *link) {
	if k.keys == nil {
		k.keys, k.places = map[key]*chain{}, map[place]int{}
	}
	same := k.keys[l.key]
	if same == nil {
		same = &chain{of: ofKey}
		k.keys[l.key] = same
	}
	idle := k.manner.Load().idle
	l.until = time.Now().Add(idle)
	k.idle.push(l)
	same.push(l)
	k.of(l.site).free.push(l)
	k.places[l.key.place]++
	if k.timer == nil {
		k.timer = time.AfterFunc(idle, k.expire)
	}
}

// remove takes a free connection out; k is locked.
func (k *kept) remove(l *link) {
	k.idle.remove(l)
	same := k.keys[l.key]
	if same.remove(l); same.len == 0 {
		delete(k.keys, l.key)
	}
	of := k.sites[l.site]
	of.free.remove(l)
	k.forget(l.site, of)
	if k.places[l.key.place]--; k.places[l.key.place] == 0 {
		delete(k.places, l.key.place)
	}
}

// closeSoon closes a connection that nobody waits for; k is locked, and not
// closed, so that Close waits for it.
func (k *kept) closeSoon(l *link) {
	k.wg.Add(1)
	go func() {
		defer k.wg.Done()
		k.close(context.Background(), l)
	}()
}

// expire closes the connections that nobody has wanted.
func (k *kept) expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = nil
	if k.closed {
		return
	}
	now := time.Now()
	for l := k.idle.first; l != nil; l = k.idle.first {
		if left := l.until.Sub(now); left > 0 {
			k.timer = time.AfterFunc(left, k.expire)
			return
		}
		k.remove(l)
		k.closeSoon(l)
	}
}

// reset closes free connections that would be made otherwise now, and has the others
// wait no longer than they would now; k is locked.
func (k *kept) reset() {
	idle := k.manner.Load().idle
	most := time.Now().Add(idle)
	for l, after := k.idle.first, (*link)(nil); l != nil; l = after {
		if after = l.chain[ofAll].after; k.stale(l) {
			k.remove(l)
			k.closeSoon(l)
		} else if l.until.After(most) {
			l.until = most
		}
	}
	if k.timer != nil {
		k.timer.Reset(max(idle, 0)) // which is soon enough for the first
	}
}

// take is a free connection for the key, the one used last; nil if there is none.
// Those on which the server has spoken or hung up are closed on the way.
// It counts for the given site from now on.
func (k *kept) take(of *key, site string) *link {
	for {
		l := k.last(of, site)
		if l == nil || l.c.Quiet() {
			return l
		}
		l.c.Close()
		k.mu.Lock()
		closed := k.closed
		if !closed {
			k.closeSoon(l)
		}
		k.mu.Unlock()
		if closed {
			k.close(context.Background(), l)
		}
	}
}

// ownLook is how many of the connections for a key are looked at for one of the same
// site, which need not be counted for another one.
const ownLook = 16

// last takes the connection for the key that was used last, of the same site if there
// is one among those used lately, whatever it is like.
func (k *kept) last(of *key, site string) *link {
	k.mu.Lock()
	defer k.mu.Unlock()
	same := k.keys[*of]
	if same == nil {
		return nil
	}
	l := same.last
	for other, n := l, 0; other != nil && n < ownLook; other, n = other.chain[ofKey].before, n+1 {
		if other.site == site {
			l = other
			break
		}
	}
	k.remove(l)
	k.add(site, 1)
	k.add(l.site, -1)
	l.site, l.reused = site, true
	return l
}

// untake keeps a connection again that was taken for a site that has no room for it.
func (k *kept) untake(ctx context.Context, l *link) {
	k.mu.Lock()
	k.add(l.site, -1)
	k.add(l.counts, 1)
	l.site = l.counts
	k.mu.Unlock()
	k.give(ctx, l)
}

// drop closes all free connections of a key.
func (k *kept) drop(of *key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for same := k.keys[*of]; same != nil && same.len > 0; {
		l := same.last
		k.remove(l)
		k.closeSoon(l)
	}
}

// has reports whether there is a free connection to an address from a source.
func (k *kept) has(c candidate, from Source) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.places[place{address: c.address, socket: c.hop.Socket, lmtp: c.hop.Transport == LMTP, source: from}] > 0
}

// makeRoom closes free connections of a site while there are as many open as it
// may have, and waits for that.
func (k *kept) makeRoom(ctx context.Context, site string) {
	if k.o.Connections == nil {
		return
	}
	most := k.o.Connections(site)
	for most > 0 {
		k.mu.Lock()
		of := k.sites[site]
		if of == nil || of.open < most || of.free.len == 0 {
			k.mu.Unlock()
			return
		}
		l := of.free.first
		k.remove(l)
		k.mu.Unlock()
		k.close(ctx, l)
	}
}

// giveWay closes the connection of a site from a source that is free for longest, and waits
// for that; false if there is none.
func (k *kept) giveWay(ctx context.Context, site, source string) bool {
	k.mu.Lock()
	var l *link
	if of := k.sites[site]; of != nil {
		for l = of.free.first; l != nil && l.key.source.Name != source; l = l.chain[ofSite].after {
		}
	}
	if l != nil {
		k.remove(l)
	}
	k.mu.Unlock()
	if l == nil {
		return false
	}
	k.close(ctx, l)
	return true
}

// end closes all free connections, and those that become free.
func (k *kept) end(ctx context.Context) {
	k.mu.Lock()
	k.closed = true
	if k.timer != nil {
		k.timer.Stop()
	}
	var all []*link
	for l := k.idle.first; l != nil; l = k.idle.first {
		k.remove(l)
		all = append(all, l)
	}
	k.mu.Unlock()
	for _, l := range all {
		k.wg.Go(func() { k.close(ctx, l) })
	}
	k.wg.Wait()
}

// count is how many connections of a site are open, and how many of them free.
func (k *kept) count(site string) (open, free int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if of := k.sites[site]; of != nil {
		return of.open, of.free.len
	}
	return 0, 0
}
