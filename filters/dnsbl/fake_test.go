package dnsbl

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeDNS is a Resolver whose names are a table: addresses by name, and the
// words of an error where the name is an exclamation. It keeps what it was asked.
type fakeDNS struct {
	a   map[string][]string
	txt map[string][]string
	// fails are names that nobody can tell, hangs those that take for ever.
	fails, hangs map[string]bool

	mu    sync.Mutex
	asked []string
}

func (d *fakeDNS) LookupHost(ctx context.Context, name string) ([]string, error) {
	d.mu.Lock()
	d.asked = append(d.asked, name)
	d.mu.Unlock()
	if d.hangs[name] {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if d.fails[name] {
		return nil, &net.DNSError{Err: "server 192.0.2.53:53: it answered SERVFAIL", Name: name, IsTemporary: true}
	}
	if all := d.a[name]; len(all) > 0 {
		return all, nil
	}
	return nil, &net.DNSError{Err: "no such domain", Name: name, IsNotFound: true}
}

func (d *fakeDNS) LookupTXT(_ context.Context, name string) ([]string, error) {
	if all := d.txt[name]; len(all) > 0 {
		return all, nil
	}
	return nil, &net.DNSError{Err: "no such domain", Name: name, IsNotFound: true}
}

func (d *fakeDNS) LookupAddr(_ context.Context, address string) ([]string, error) {
	return nil, &net.DNSError{Err: "no such domain", Name: address, IsNotFound: true}
}

func (d *fakeDNS) questions() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.asked...)
}

func weight(w float64) *float64 { return &w }

// rig is a chain with a dnsbl filter.
type rig struct {
	chain *pipeline.Chain
	log   *bytes.Buffer
	now   time.Time
}

func newRig(t testing.TB, dns pipeline.Resolver, o Options) *rig {
	t.Helper()
	r := &rig{log: new(bytes.Buffer), now: time.Unix(1_800_000_000, 0)}
	env := pipeline.Env{Resolver: dns, Log: slog.New(slog.NewTextHandler(r.log, nil)), Now: func() time.Time { return r.now }}
	f, err := New(env, o)
	if err != nil {
		t.Fatal(err)
	}
	traits := f.Traits()
	r.chain, err = pipeline.NewChain("inbound", []pipeline.Step{{Name: Name, Filter: f, OnError: traits.OnError, Always: traits.Always}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.chain.Close() })
	return r
}

// stranger is a client with an address.
func stranger(addr string) *pipeline.Session {
	s := filtertest.Stranger()
	s.Peer = netip.AddrPortFrom(netip.MustParseAddr(addr), 25)
	return s
}

// run is what becomes of a message.
func (r *rig) run(t testing.TB, s *pipeline.Session, from string) *pipeline.Outcome {
	t.Helper()
	tx := &pipeline.Transaction{ID: "t1", Session: s, Envelope: envelope.To(from, "r@example.org")}
	o := r.chain.Run(context.Background(), tx, message.FromString("Subject: x\n\nbody\n"))
	t.Cleanup(o.Release)
	return o
}

// trace is what the filter said at a stage.
func trace(o *pipeline.Outcome, stage pipeline.Stage) pipeline.Entry {
	for _, e := range o.Trace {
		if e.Stage == stage.String() {
			return e
		}
	}
	return pipeline.Entry{}
}
