package dkim

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"
)

// maxCached bounds the signatures that are kept: about a megabyte.
const maxCached = 1000

// cache keeps what was made, so that a message for a thousand recipients is
// signed once. Whoever asks while it is being made waits. Safe for concurrent
// use.
type cache struct {
	now  func() time.Time
	life time.Duration

	mu      sync.Mutex
	entries map[[sha256.Size]byte]*entry
	order   [][sha256.Size]byte // oldest first
}

type entry struct {
	made  time.Time
	done  chan struct{} // closed when value and err are set
	value string
	err   error
}

func newCache(now func() time.Time, life time.Duration) *cache {
	return &cache{now: now, life: life, entries: map[[sha256.Size]byte]*entry{}}
}

// get is the value for a key, made by make if it is not there. What failed is
// made again the next time; who only waited for it makes it himself.
func (c *cache) get(ctx context.Context, key [sha256.Size]byte, make func() (string, error)) (string, error) {
	for {
		e, mine := c.entry(key)
		if mine {
			c.fill(key, e, make)
			return e.value, e.err
		}
		select {
		case <-e.done:
		case <-ctx.Done():
			return "", ctx.Err()
		}
		if e.err == nil {
			return e.value, nil
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
	}
}

// fill fills an entry in, or lets others do it if make fails or panics.
func (c *cache) fill(key [sha256.Size]byte, e *entry, make func() (string, error)) {
	e.err = errUnmade
	defer func() {
		if e.err != nil {
			c.forget(key, e)
		}
		close(e.done)
	}()
	e.value, e.err = make()
}

// errUnmade is the error of a value whose maker panicked.
var errUnmade = errors.New("the signature was not made")

// entry is that of a key, and whether the caller is to fill it in.
func (c *cache) entry(key [sha256.Size]byte) (e *entry, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if e, ok := c.entries[key]; ok && now.Sub(e.made) < c.life && !now.Before(e.made) {
		return e, false
	}
	if _, ok := c.entries[key]; !ok {
		for len(c.order) >= maxCached {
			delete(c.entries, c.order[0])
			c.order = c.order[1:]
		}
		c.order = append(c.order, key)
	}
	e = &entry{made: now, done: make(chan struct{})}
	c.entries[key] = e
	return e, true
}

func (c *cache) forget(key [sha256.Size]byte, e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[key] == e {
		e.made = time.Time{}
	}
}
