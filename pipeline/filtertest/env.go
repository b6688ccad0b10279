package filtertest

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/program"
)

// Env is what a filter gets of a daemon that knows nothing: a log that nobody
// reads, the name mx.example.org, a clock that stands still, an empty DNS, an
// empty State and a spool of its own.
func Env(t testing.TB) pipeline.Env {
	t.Helper()
	now := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	programs := program.New(program.Options{})
	t.Cleanup(func() {
		if err := programs.Close(); err != nil {
			t.Error(err)
		}
	})
	return pipeline.Env{
		Log: slog.New(slog.DiscardHandler), Host: "mx.example.org", Now: func() time.Time { return now },
		Resolver: NoDNS{}, State: new(State), Spool: newSpool(t), Programs: programs,
		Secret: func(purpose string) []byte {
			sum := sha256.Sum256([]byte(purpose))
			return sum[:]
		},
	}
}

// Stranger is a session of somebody on the network.
func Stranger() *pipeline.Session {
	return &pipeline.Session{
		ID: "s1", Entrance: "mx", Protocol: "smtp", UID: -1, Peer: netip.MustParseAddrPort("192.0.2.1:2525"),
		PeerName: "mail.example.net", Helo: "mail.example.net", Env: map[string]string{"TCPREMOTEIP": "192.0.2.1"},
		Ours: func(domain string) bool { return domain == "example.org" },
	}
}

// NoDNS is a Resolver to whom no name is known.
type NoDNS struct{}

func unknown(name string) error {
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// LookupTXT finds nothing.
func (NoDNS) LookupTXT(_ context.Context, name string) ([]string, error) { return nil, unknown(name) }

// LookupHost finds nothing.
func (NoDNS) LookupHost(_ context.Context, name string) ([]string, error) { return nil, unknown(name) }

// LookupAddr finds nothing.
func (NoDNS) LookupAddr(_ context.Context, address string) ([]string, error) {
	return nil, unknown(address)
}

// State is a pipeline.State in memory. The zero State is empty; it forgets by
// the system's clock.
type State struct {
	mu     sync.Mutex
	values map[string]stored
}

type stored struct {
	value []byte
	until time.Time
}

// Get is the value of a key.
func (s *State) Get(_ context.Context, key string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.values[key]
	if !ok || !time.Now().Before(v.until) {
		return nil, false, nil
	}
	return append([]byte(nil), v.value...), true, nil
}

// Put sets the value of a key.
func (s *State) Put(_ context.Context, key string, value []byte, ttl time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values == nil {
		s.values = map[string]stored{}
	}
	s.values[key] = stored{append([]byte(nil), value...), time.Now().Add(ttl)}
	return nil
}

// Delete removes a key.
func (s *State) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.values, key)
	return nil
}

// spool is a directory whose files can be counted.
type spool struct{ *message.Directory }

func newSpool(t testing.TB) spool {
	t.Helper()
	d, err := message.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return spool{d}
}

func (s spool) count(t testing.TB) int {
	t.Helper()
	files, err := os.ReadDir(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// touch is an Env that counts what is done with it.
func touch(e pipeline.Env, n *atomic.Int32) pipeline.Env {
	e.State = touchedState{e.State, n}
	e.Resolver = touchedResolver{e.Resolver, n}
	e.Spool = touchedSpool{e.Spool, n}
	e.Programs = touchedPrograms{e.Programs, n}
	return e
}

type touchedState struct {
	pipeline.State
	n *atomic.Int32
}

func (s touchedState) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	s.n.Add(1)
	return s.State.Put(ctx, key, value, ttl)
}

func (s touchedState) Delete(ctx context.Context, key string) error {
	s.n.Add(1)
	return s.State.Delete(ctx, key)
}

type touchedResolver struct {
	pipeline.Resolver
	n *atomic.Int32
}

func (r touchedResolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	r.n.Add(1)
	return r.Resolver.LookupTXT(ctx, name)
}

func (r touchedResolver) LookupHost(ctx context.Context, name string) ([]string, error) {
	r.n.Add(1)
	return r.Resolver.LookupHost(ctx, name)
}

func (r touchedResolver) LookupAddr(ctx context.Context, address string) ([]string, error) {
	r.n.Add(1)
	return r.Resolver.LookupAddr(ctx, address)
}

type touchedPrograms struct {
	pipeline.Programs
	n *atomic.Int32
}

func (p touchedPrograms) Start(spec program.Spec) (*program.Process, error) {
	p.n.Add(1)
	return p.Programs.Start(spec)
}

type touchedSpool struct {
	message.Spooler
	n *atomic.Int32
}

func (s touchedSpool) Create() (string, message.File, error) {
	s.n.Add(1)
	return s.Spooler.Create()
}
