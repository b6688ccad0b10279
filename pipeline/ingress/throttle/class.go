package throttle

import (
	"container/list"
	"net/netip"
	"time"
)

// class is the addresses, or the networks, with what each has open and may
// open. The gate's lock guards it.
type class struct {
	most  int           // open at a time; 0: any number
	every time.Duration // a minute's part of each connection; 0: no rate
	// ahead is how far the connections of one that came all at once reach.
	ahead    time.Duration
	remember int
	entries  map[netip.Prefix]*entry
	// resting are the entries without an open connection, the longest at the
	// back. Those with one are in the map only, and are never forgotten.
	resting *list.List
}

// entry is one address or network.
type entry struct {
	key  netip.Prefix
	open int
	// next is the time at which the connections so far would have been due had
	// they come evenly: the bucket of tokens as one number.
	next time.Duration
	rest *list.Element
}

func newClass() class { return class{entries: map[netip.Prefix]*entry{}, resting: list.New()} }

func (c *class) configure(most, rate, remember int) {
	c.most, c.remember, c.every, c.ahead = most, remember, 0, 0
	if rate > 0 {
		c.every = time.Minute / time.Duration(rate)
		c.ahead = c.every * time.Duration(rate-1)
	}
	for c.resting.Len() > remember {
		c.forget(c.resting.Back().Value.(*entry))
	}
}

// full reports whether there may be no further connection; e is nil for one
// that is not remembered.
func (c *class) full(e *entry) bool { return c.most > 0 && e != nil && e.open >= c.most }

// hasty reports whether the rate forbids a connection now.
func (c *class) hasty(e *entry, now time.Duration) bool {
	return c.every > 0 && e != nil && e.next-now > c.ahead
}

// enter counts a connection in.
func (c *class) enter(key netip.Prefix, now time.Duration) *entry {
	e := c.entries[key]
	if e == nil {
		e = &entry{key: key}
		c.entries[key] = e
	}
	e.open++
	e.next = max(e.next, now) + c.every
	if e.rest != nil {
		c.resting.Remove(e.rest)
		e.rest = nil
	}
	return e
}

// leave counts a connection out. What has nothing open and nothing to wait for
// is forgotten, and so are a few others of that kind: each call makes one entry
// at most, so that none stay for good.
func (c *class) leave(e *entry, now time.Duration) {
	if e.open--; e.open > 0 {
		return
	}
	e.rest = c.resting.PushFront(e)
	for range 3 {
		if oldest := c.resting.Back().Value.(*entry); oldest.next <= now || c.resting.Len() > c.remember {
			if c.forget(oldest); c.resting.Len() == 0 {
				return
			}
		}
	}
	if e.rest != nil && e.next <= now {
		c.forget(e)
	}
}

func (c *class) forget(e *entry) {
	c.resting.Remove(e.rest)
	e.rest = nil
	delete(c.entries, e.key)
}
