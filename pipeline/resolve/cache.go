package resolve

import (
	"container/list"
	"context"
	"sync"
	"time"
)

type question struct {
	name string
	kind uint16
}

// cache keeps answers until they expire, the least recently used going first,
// and lets one asker at a time go out for each question.
type cache struct {
	mu      sync.Mutex
	max     int
	now     func() time.Time
	entries map[question]*list.Element // of *entry
	order   *list.List
	flights map[question]*flight
}

type entry struct {
	q     question
	a     answer
	until time.Time
}

// flight is a question that is under way.
type flight struct {
	done chan struct{}
	a    answer
	err  error
}

func newCache(max int, now func() time.Time) *cache {
	return &cache{max: max, now: now, entries: map[question]*list.Element{}, order: list.New(), flights: map[question]*flight{}}
}

// get answers q from the cache, or has ask do it. The asking goes on for the
// others if the caller's context ends first; deadline bounds it.
func (c *cache) get(ctx context.Context, q question, deadline time.Duration, ask func(context.Context, question) (answer, error)) (answer, error) {
	c.mu.Lock()
	if e, ok := c.entries[q]; ok {
		if kept := e.Value.(*entry); c.now().Before(kept.until) {
			c.order.MoveToFront(e)
			c.mu.Unlock()
			return kept.a, nil
		}
		c.drop(e)
	}
	f, ok := c.flights[q]
	if !ok {
		f = &flight{done: make(chan struct{})}
		c.flights[q] = f
		go c.fly(context.WithoutCancel(ctx), q, f, deadline, ask)
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.a, f.err
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

func (c *cache) fly(ctx context.Context, q question, f *flight, deadline time.Duration, ask func(context.Context, question) (answer, error)) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	f.a, f.err = ask(ctx, q)
	c.mu.Lock()
	current := c.flights[q] == f
	if current {
		delete(c.flights, q)
	}
	if current && f.err == nil && f.a.ttl > 0 {
		c.entries[q] = c.order.PushFront(&entry{q, f.a, c.now().Add(f.a.ttl)})
		for c.order.Len() > c.max {
			c.drop(c.order.Back())
		}
	}
	c.mu.Unlock()
	close(f.done)
}

func (c *cache) drop(e *list.Element) {
	delete(c.entries, e.Value.(*entry).q)
	c.order.Remove(e)
}

// forget drops the answers for a name, and has questions that are under way asked
// again by whoever comes next. It returns how many answers there were.
func (c *cache) forget(name string, kinds []uint16) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, kind := range kinds {
		q := question{name, kind}
		if e, ok := c.entries[q]; ok {
			c.drop(e)
			n++
		}
		delete(c.flights, q)
	}
	return n
}
