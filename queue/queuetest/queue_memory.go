package queuetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// Memory is a store that keeps everything in maps, for tests of what stands on
// a store. It outlives a queue and can be opened by the next; what it has
// applied is on its stable storage at once. Bodies stay as they came.
type Memory struct {
	mu       sync.Mutex
	last     store.ID
	now      func() time.Time
	messages map[store.ID]*kept
	order    []store.ID // ascending; those that are gone are skipped
	policies map[string][]byte
	// fail, if set, is asked before each Apply.
	fail func(*store.Batch) error
}

type kept struct {
	message store.Message
	body    *message.Body
	states  map[uint32]store.State
	hold    *store.Hold
}

// NewMemory makes a store whose ids follow a clock; nil is the system's.
func NewMemory(now func() time.Time) *Memory {
	if now == nil {
		now = time.Now
	}
	return &Memory{now: now, messages: map[store.ID]*kept{}, policies: map[string][]byte{}}
}

// Fail has every Apply ask f first; an error leaves the batch undone.
func (m *Memory) Fail(f func(*store.Batch) error) {
	m.mu.Lock()
	m.fail = f
	m.mu.Unlock()
}

// NewID is store.Store.
func (m *Memory) NewID() store.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = max(m.last+1, store.FirstID(m.now()))
	return m.last
}

// Apply is store.Store.
func (m *Memory) Apply(ctx context.Context, b *store.Batch, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if m.fail != nil {
		if err := m.fail(b); err != nil {
			return err
		}
	}
	for _, c := range b.States {
		if k := m.messages[c.ID]; k != nil && int(c.Recipient) >= len(k.message.Envelope.Recipients) {
			return fmt.Errorf("message %v: a state for recipient %d", c.ID, c.Recipient)
		}
	}
	bodies := map[store.ID]*message.Body{}
	for i := range b.Puts {
		p := &b.Puts[i]
		if m.messages[p.Message.ID] != nil || len(p.Message.Envelope.Recipients) == 0 {
			return fmt.Errorf("message %v cannot be put", p.Message.ID)
		}
		if p.Message.Body.Of == p.Message.ID {
			bodies[p.Message.ID] = p.Body
		}
	}
	for i := range b.Puts {
		m.put(&b.Puts[i], bodies)
	}
	for _, c := range b.States {
		if k := m.messages[c.ID]; k != nil {
			k.states[c.Recipient] = c.State
		}
	}
	for _, c := range b.Holds {
		if k := m.messages[c.ID]; k != nil {
			k.hold = c.Hold
		}
	}
	for _, id := range b.Removes {
		if k := m.messages[id]; k != nil {
			delete(m.messages, id)
			k.body.Release() //nolint:errcheck // nothing depends on it
		}
	}
	for _, p := range b.Policies {
		m.policies[p.Name] = slices.Clone(p.Value)
		if len(p.Value) == 0 {
			delete(m.policies, p.Name)
		}
	}
	return nil
}

func (m *Memory) put(p *store.Put, bodies map[store.ID]*message.Body) {
	k := &kept{message: p.Message, body: bodies[p.Message.Body.Of].Retain(), states: map[uint32]store.State{}, hold: p.Hold}
	k.message.Envelope = p.Message.Envelope.Clone()
	m.messages[p.Message.ID] = k
	m.order = append(m.order, p.Message.ID)
	slices.Sort(m.order)
}

// Len is the number of messages.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.messages)
}

// Reader is store.Store. Unlike one on a disk it sees what is applied later.
func (m *Memory) Reader() (store.Reader, error) { return memoryReader{m}, nil }

type memoryReader struct{ m *Memory }

func (r memoryReader) Close() error { return nil }

func (r memoryReader) Message(id store.ID) (*store.Message, error) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	k := r.m.messages[id]
	if k == nil {
		return nil, store.ErrNotFound
	}
	c := k.message
	c.Envelope = c.Envelope.Clone()
	return &c, nil
}

func (r memoryReader) Body(m *store.Message) (*message.Body, error) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	k := r.m.messages[m.ID]
	switch {
	case k == nil:
		return nil, store.ErrNotFound
	case k.body.Size() != m.Body.Size:
		return nil, reply.With(reply.Internal, fmt.Errorf("a body of %d bytes, not %d", k.body.Size(), m.Body.Size))
	}
	return k.body.Retain(), nil
}

func (r memoryReader) Scan(from store.ID, f func(*store.Entry) error) error {
	for {
		e := r.next(from)
		if e == nil {
			return nil
		}
		if err := f(e); err != nil {
			return err
		}
		from = e.Message.ID + 1
	}
}

// next is the first message with id >= from.
func (r memoryReader) next(from store.ID) *store.Entry {
	m := r.m
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order = slices.DeleteFunc(m.order, func(id store.ID) bool { return m.messages[id] == nil })
	i, _ := slices.BinarySearch(m.order, from)
	if i == len(m.order) {
		return nil
	}
	k := m.messages[m.order[i]]
	c := k.message
	e := &store.Entry{Message: &c, Hold: k.hold}
	for n := range c.Envelope.Recipients {
		if s, ok := k.states[uint32(n)]; ok {
			e.States = append(e.States, store.SetState{ID: c.ID, Recipient: uint32(n), State: s})
		}
	}
	return e
}

func (r memoryReader) Policies() ([]store.Policy, error) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	var all []store.Policy
	for name, v := range r.m.policies {
		all = append(all, store.Policy{Name: name, Value: slices.Clone(v)})
	}
	slices.SortFunc(all, func(a, b store.Policy) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
