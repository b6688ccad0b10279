package smtp

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// key is what messages must agree on to share a connection.
type key struct {
	address netip.AddrPort
	socket  string
	lmtp    bool
	source  Source
	policy  string
	login   string
	group   string // of the site
}

// link is a connection that is ready for a message. It is for one goroutine, or
// kept.
type link struct {
	key    key
	site   string
	c      *wire.Client
	tls    TLSState
	ticket Ticket // nil without a Gate
	hello  string // the name that was given in EHLO
	opened time.Time
	sent   int // messages that it has carried
	spent  bool
	reused bool
	timer  *time.Timer // while it is kept
}

// kept are the connections that are open and free, and the counts of those that
// are open at all. It is safe for concurrent use.
type kept struct {
	o      *Options
	manner *atomic.Pointer[manner]

	mu     sync.Mutex
	closed bool
	idle   []*link // the one free for longest first
	open   map[string]int
	wg     sync.WaitGroup // of those that are closed in passing
}

// opened counts a connection.
func (k *kept) opened(l *link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add(l.site, 1)
}

// add counts connections of a site; k is locked.
func (k *kept) add(site string, n int) {
	if k.open == nil {
		k.open = map[string]int{}
	}
	if k.open[site] += n; k.open[site] <= 0 {
		delete(k.open, site)
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
	site := l.site // from now on it may be somebody else's
	k.idle = append(k.idle, l)
	l.timer = time.AfterFunc(k.manner.Load().idle, func() { k.expire(l) })
	var over *link
	if len(k.idle) > k.o.MaxIdle {
		over = k.remove(0)
		k.closeSoon(over)
	}
	k.mu.Unlock()
	if k.o.Freed != nil && over != l {
		k.o.Freed(site)
	}
}

// remove takes the connection at an index out; k is locked.
func (k *kept) remove(i int) *link {
	l := k.idle[i]
	k.idle = slices.Delete(k.idle, i, i+1)
	l.timer.Stop()
	return l
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

// expire closes a connection that nobody has wanted.
func (k *kept) expire(l *link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if i := slices.Index(k.idle, l); i >= 0 {
		k.closeSoon(k.remove(i))
	}
}

// take is a free connection for the key, the one used last; nil if there is none.
// Those on which the server has spoken or hung up are closed on the way.
// It counts for the given site from now on.
func (k *kept) take(of key, site string) *link {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := len(k.idle) - 1; i >= 0; i-- {
		if k.idle[i].key != of {
			continue
		}
		l := k.remove(i)
		if l.c.Quiet() {
			k.add(l.site, -1)
			k.add(site, 1)
			l.site, l.reused = site, true
			return l
		}
		l.c.Close()
		k.closeSoon(l)
	}
	return nil
}

// drop closes all free connections of a key.
func (k *kept) drop(of key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := len(k.idle) - 1; i >= 0; i-- {
		if k.idle[i].key == of {
			k.closeSoon(k.remove(i))
		}
	}
}

// has reports whether there is a free connection to an address from a source.
func (k *kept) has(c candidate, from Source) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.idle, func(l *link) bool {
		return l.key.source == from && l.key.address == c.address && l.key.socket == c.hop.Socket && l.key.lmtp == (c.hop.Transport == LMTP)
	})
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
		i := slices.IndexFunc(k.idle, func(l *link) bool { return l.site == site })
		if k.open[site] < most || i < 0 {
			k.mu.Unlock()
			return
		}
		l := k.remove(i)
		k.mu.Unlock()
		k.close(ctx, l)
	}
}

// end closes all free connections, and those that become free.
func (k *kept) end(ctx context.Context) {
	k.mu.Lock()
	k.closed = true
	all := k.idle
	k.idle = nil
	for _, l := range all {
		l.timer.Stop()
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
	for _, l := range k.idle {
		if l.site == site {
			free++
		}
	}
	return k.open[site], free
}
