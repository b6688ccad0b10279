package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/state"
)

// memory is what filters remember. It is opened when it is first used: a
// program that takes one message does without, if its filters do.
type memory struct {
	dir string
	log *slog.Logger
	// entries and bytes bound what each filter may have it remember.
	entries, bytes int64
	once           sync.Once
	kept           *state.Store
	err            error
}

// memoryDir is where it lies in the state directory.
func memoryDir(c *config.Config) string { return filepath.Join(c.State, "state") }

func newMemory(c *config.Config, log *slog.Logger) *memory {
	return &memory{dir: memoryDir(c), log: log, entries: c.Limits.StateEntries, bytes: c.Limits.StateSize}
}

func (m *memory) store() (*state.Store, error) {
	m.once.Do(func() {
		m.kept, m.err = state.Open(state.Options{Dir: m.dir, Log: m.log, Now: time.Now, Entries: m.entries, Bytes: m.bytes})
	})
	return m.kept, m.err
}

// stats are what each filter has it remember; none if it cannot.
func (m *memory) stats() []state.Stats {
	if m == nil {
		return nil
	}
	store, err := m.store()
	if err != nil {
		return nil
	}
	return store.Stats()
}

// close brings it to the disk, if it was opened.
func (m *memory) close() error {
	if m == nil {
		return nil
	}
	m.once.Do(func() { m.err = errors.New("it is closed") })
	if m.kept == nil {
		return nil
	}
	return m.kept.Close()
}

// space is what one filter remembers.
type space struct {
	memory *memory
	name   string
}

// Get is pipeline.State.
func (s space) Get(ctx context.Context, key string) ([]byte, bool, error) {
	store, err := s.memory.store()
	if err != nil {
		return nil, false, err
	}
	return store.Space(s.name).Get(ctx, key)
}

// Put is pipeline.State.
func (s space) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	store, err := s.memory.store()
	if err != nil {
		return err
	}
	return store.Space(s.name).Put(ctx, key, value, ttl)
}

// Delete is pipeline.State.
func (s space) Delete(ctx context.Context, key string) error {
	store, err := s.memory.store()
	if err != nil {
		return err
	}
	return store.Space(s.name).Delete(ctx, key)
}

// Scan is admin.Space.
func (s space) Scan(ctx context.Context, prefix, from string, each func(state.Entry) bool) error {
	store, err := s.memory.store()
	if err != nil {
		return err
	}
	return store.Space(s.name).Scan(ctx, prefix, from, each)
}

// options are how the daemon reads its configuration.
func (d *daemon) options() config.Options {
	o := loadOptions(d.env())
	if d.memory != nil {
		o.State = func(filter string) pipeline.State { return space{d.memory, filter} }
	}
	if d.plugins != nil {
		o.Plugins = d.plugins
	}
	return o
}

// remembered is what a configured filter remembers, for the admin socket.
func (d *daemon) remembered(filter string) admin.Space {
	if c := d.current.Load(); d.memory == nil || c == nil || c.Filter[filter] == nil {
		return nil
	}
	return space{d.memory, filter}
}

// glance is what a filter of the daemon remembers, for a command that must change
// nothing: what is put is thrown away. Where no daemon answers, nothing is known.
type glance struct {
	*admin.ClientSpace
	missed func(error)
}

// Get is pipeline.State.
func (g glance) Get(ctx context.Context, key string) ([]byte, bool, error) {
	value, ok, err := g.ClientSpace.Get(ctx, key)
	if err != nil {
		g.missed(err)
		return nil, false, nil
	}
	return value, ok, nil
}

// Put is pipeline.State.
func (glance) Put(context.Context, string, []byte, time.Duration) error { return nil }

// Delete is pipeline.State.
func (glance) Delete(context.Context, string) error { return nil }

// glances give each filter a glance at what the daemon has it remember.
type glances struct {
	client *admin.Client
	mu     sync.Mutex
	err    error
}

func (g *glances) state(filter string) pipeline.State {
	return glance{g.client.State(filter, "explain"), func(err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.err = err
	}}
}

// missed is why what filters remember is not known, nil if it is, or nobody
// asked.
func (g *glances) missed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}
