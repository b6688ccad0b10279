package state

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Space is one filter's name space. It is safe for concurrent use, and so are
// several of the same name, which are the same.
type Space struct {
	store *Store
	name  string
}

// check is what is wrong with the arguments of a call.
func (p *Space) check(key string) error {
	switch {
	case p.name == "" || len(p.name) > MaxName:
		return fmt.Errorf("state: the name of a space has 1 to %d bytes", MaxName)
	case key == "" || len(key) > MaxKey:
		return fmt.Errorf("state: a key has 1 to %d bytes, not %d", MaxKey, len(key))
	}
	return nil
}

// Get is a copy of the value of a key. Where the store is of no use, there is
// none; an error is about this entry.
func (p *Space) Get(_ context.Context, key string) (value []byte, found bool, err error) {
	if err := p.check(key); err != nil {
		return nil, false, err
	}
	s, full := p.store, dataOf(p.name, key)
	now := s.clock.read()
	s.mu.Lock()
	c, known := s.waiting[string(full)]
	if !known {
		c, known = s.writing[string(full)]
	}
	s.mu.Unlock()
	if known {
		if c.gone || c.expiry <= now {
			return nil, false, nil
		}
		return append([]byte{}, c.value...), true, nil
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.unavailable() != nil {
		return nil, false, nil
	}
	b, err := s.get(full)
	if err != nil || b == nil {
		return nil, false, err
	}
	r, err := decodeRecord(b)
	switch {
	case err != nil:
		s.noteDamage(err)
		return nil, false, fmt.Errorf("state: %s: %w", p.name, err)
	case r.expiry <= now:
		return nil, false, nil
	}
	return r.value, true, nil
}

// Put sets the value of a key, for ttl (which is cut to MaxTTL). It waits while
// too much waits to be written, as long as the context allows.
func (p *Space) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	switch {
	case len(value) > MaxValue:
		return fmt.Errorf("state: a value has at most %d bytes, not %d", MaxValue, len(value))
	case ttl <= 0:
		return errors.New("state: an entry lives longer than 0")
	}
	seconds := int64((min(ttl, MaxTTL) + time.Second - 1) / time.Second)
	return p.change(ctx, key, change{value: append([]byte(nil), value...), expiry: p.store.clock.read() + seconds})
}

// Delete removes a key.
func (p *Space) Delete(ctx context.Context, key string) error {
	return p.change(ctx, key, change{gone: true})
}

// change has the writer change a key.
func (p *Space) change(ctx context.Context, key string, c change) error {
	if err := p.check(key); err != nil {
		return err
	}
	s, full := p.store, string(dataOf(p.name, key))
	for {
		if err := s.unavailable(); err != nil {
			return err
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return fmt.Errorf("%w: it is closed", ErrUnavailable)
		}
		before, again := s.waiting[full]
		cost := s.cost + len(c.value) - len(before.value)
		if !again {
			cost += len(full) + entryCost
		}
		if cost <= maxWaiting {
			s.waiting[full], s.cost = c, cost
			s.mu.Unlock()
			if cost > maxWaiting/2 {
				s.wake()
			}
			return nil
		}
		room := s.room
		s.mu.Unlock()
		s.wake()
		select {
		case <-room:
		case <-s.dead:
		case <-s.stop:
		case <-ctx.Done():
			return fmt.Errorf("%w: it is not written as fast as it comes: %w", ErrUnavailable, ctx.Err())
		}
	}
}

func (s *Store) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// Entry is an entry as Scan finds it.
type Entry struct {
	Key   string
	Value []byte
	// Left is how long it has to live.
	Left time.Duration
}

// Scan calls each for the entries whose keys begin with prefix and come after
// another key ("": all), in their order, until it returns false. What was put
// before is among them. It is for commands: it waits for the disk.
func (p *Space) Scan(ctx context.Context, prefix, from string, each func(Entry) bool) error {
	if err := p.check("x" + prefix); err != nil {
		return err
	}
	s := p.store
	if err := s.Flush(ctx); err != nil {
		return err
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	if err := s.unavailable(); err != nil {
		return err
	}
	low := dataOf(p.name, prefix)
	o := &pebble.IterOptions{LowerBound: low, UpperBound: after(low)}
	if from != "" {
		if start := append(dataOf(p.name, from), 0); string(start) > string(low) {
			o.LowerBound = start
		}
	}
	it, err := s.db.NewIter(o)
	if err != nil {
		return err
	}
	defer it.Close()
	now := s.clock.read()
	for it.First(); it.Valid(); it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, key, ok := splitData(it.Key())
		r, err := decodeRecord(it.Value())
		if !ok || err != nil {
			s.noteDamage(errRecord)
			continue
		}
		if r.expiry > now && !each(Entry{key, append([]byte{}, r.value...), time.Duration(r.expiry-now) * time.Second}) {
			return nil
		}
	}
	if err := it.Error(); err != nil {
		s.noteDamage(err)
		return err
	}
	return nil
}

// Usage is how many entries the space has, expired ones that the sweeper has not
// met included, and how many bytes their keys and values have, as of what was
// last written.
func (p *Space) Usage() (entries, bytes int64) {
	s := p.store
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if u := s.w.usage[p.name]; u != nil {
		return u.entries, u.bytes
	}
	return 0, 0
}
