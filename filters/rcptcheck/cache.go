package rcptcheck

import (
	lru "container/list"
	"sync"
	"time"
)

// cache keeps what programs said, for a time. It is safe for concurrent use.
type cache struct {
	now     func() time.Time
	size    int
	yes, no time.Duration

	mu    sync.Mutex
	known map[string]*lru.Element // of *kept
	order lru.List                // the one that was asked for last is in front
}

type kept struct {
	key   string
	valid bool
	since time.Time
}

// get is what is known of a key.
func (c *cache) get(key string) (valid, ok bool) {
	if c == nil {
		return false, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.known[key]
	if e == nil {
		return false, false
	}
	k := e.Value.(*kept)
	if age := c.now().Sub(k.since); age < 0 || age >= c.life(k.valid) { // older than new: the clock has been set back
		c.remove(e)
		return false, false
	}
	c.order.MoveToFront(e)
	return k.valid, true
}

func (c *cache) life(valid bool) time.Duration {
	if valid {
		return c.yes
	}
	return c.no
}

// put keeps an answer, and forgets the one that was not asked for for the
// longest time if there are too many.
func (c *cache) put(key string, valid bool) {
	if c == nil || c.life(valid) <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.known[key]; e != nil {
		c.remove(e)
	}
	if c.known == nil {
		c.known = map[string]*lru.Element{}
	}
	c.known[key] = c.order.PushFront(&kept{key, valid, c.now()})
	for len(c.known) > c.size {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(e *lru.Element) {
	delete(c.known, c.order.Remove(e).(*kept).key)
}
