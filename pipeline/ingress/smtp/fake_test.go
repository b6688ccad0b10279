package smtp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeFilter gives one verdict at one stage, if its condition holds.
type fakeFilter struct {
	stage      pipeline.Stage
	verdict    pipeline.Verdict
	key, value string // the condition; "" always holds
	delay      time.Duration
	hold       *holdUp
	resets     *counter
}

// holdUp is where work waits for the test: it says that it is there, and goes on
// when it may.
type holdUp struct{ there, goOn chan struct{} }

func newHoldUp() *holdUp { return &holdUp{make(chan struct{}), make(chan struct{})} }

func (h *holdUp) wait() {
	if h != nil {
		h.there <- struct{}{}
		<-h.goOn
	}
}

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (f *fakeFilter) Traits() pipeline.Traits {
	return pipeline.Traits{Stages: []pipeline.Stage{f.stage}}
}

func (f *fakeFilter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return f, nil
}
func (f *fakeFilter) Close() error { return nil }

func (f *fakeFilter) Reset() {
	if f.resets != nil {
		f.resets.add()
	}
}

func (f *fakeFilter) say(ctx context.Context, holds bool) (pipeline.Verdict, error) {
	f.hold.wait()
	if f.delay > 0 {
		select {
		case <-time.After(f.delay):
		case <-ctx.Done():
			return pipeline.Verdict{}, ctx.Err()
		}
	}
	if f.key != "" && !holds {
		return pipeline.Verdict{}, nil
	}
	return f.verdict, nil
}

func (f *fakeFilter) session(s *pipeline.Session) bool {
	return map[string]string{"helo": s.Helo, "name": s.PeerName, "tls": s.TLS, "user": s.User, "standing": s.Standing.String()}[f.key] == f.value
}

func (f *fakeFilter) Connect(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	return f.say(ctx, f.session(s))
}

func (f *fakeFilter) Helo(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	return f.say(ctx, f.session(s))
}

func (f *fakeFilter) Sender(ctx context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	return f.say(ctx, f.key == "from" && tx.Envelope.Sender == f.value)
}

func (f *fakeFilter) Recipient(ctx context.Context, _ *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	return f.say(ctx, f.key == "to" && r.Address == f.value)
}

func (f *fakeFilter) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	v, err := f.say(ctx, f.key == "to" || f.key == "has" && strings.Contains(string(m.Bytes()), f.value))
	if f.key == "to" {
		v.Only = []int{}
		for _, n := range tx.Active {
			if tx.Envelope.Recipients[n].Address == f.value {
				v.Only = append(v.Only, n)
			}
		}
	}
	return v, err
}

// fakeRelay is oursOnly with what a test says.
type fakeRelay struct {
	oursOnly
	standing      pipeline.Standing
	env           map[string]string
	admit, sender error
	lots          map[string]string
	// Under TLS:
	tlsStanding *pipeline.Standing
	tlsAdmit    error
}

func (f *fakeRelay) Admit(_ context.Context, s *pipeline.Session) (pipeline.Standing, map[string]string, error) {
	if s.TLS != "" {
		if f.tlsAdmit != nil {
			return pipeline.Stranger, nil, f.tlsAdmit
		}
		if f.tlsStanding != nil {
			return *f.tlsStanding, map[string]string{"DATABYTES": "30"}, nil
		}
	}
	return f.standing, f.env, f.admit
}

func (f *fakeRelay) Sender(context.Context, *pipeline.Session, wire.Mail) error { return f.sender }

func (f *fakeRelay) Recipient(ctx context.Context, s *pipeline.Session, sender string, r envelope.Recipient) (envelope.Recipient, string, error) {
	if s.Standing == pipeline.Stranger {
		if _, _, err := f.oursOnly.Recipient(ctx, s, sender, r); err != nil {
			return r, "", err
		}
	}
	if isPostmaster(r.Address) {
		r.Address += "@example.org"
	}
	return r, f.lots[r.Address], nil
}

// fakeAuth knows joe, whose password is secret.
type fakeAuth struct{}

func (fakeAuth) Authenticate(_ context.Context, _ *pipeline.Session, user, password string) (string, error) {
	switch {
	case user == "trouble":
		return "", errors.New("the password file is on fire")
	case user == "joe" && password == "secret":
		return "joe", nil
	}
	return "", reply.With(authFailed, fmt.Errorf("no such user %q", user))
}

type fakeNames struct {
	confirmed, claimed string
	delay              time.Duration
}

func (f fakeNames) Names(ctx context.Context, _ netip.Addr) (string, string, error) {
	if f.delay > 0 {
		select {
		case <-time.After(f.delay):
		case <-ctx.Done():
			return "", "", ctx.Err()
		}
	}
	return f.confirmed, f.claimed, nil
}

// fakeGate counts, and refuses with err.
type fakeGate struct {
	err     error
	in, out counter
}

func (f *fakeGate) Admit(netip.Addr) (func(), error) {
	if f.err != nil {
		return nil, f.err
	}
	f.in.add()
	return f.out.add, nil
}

// stored is what a fakeSink took.
type stored struct {
	envelope envelope.Envelope
	origin   pipeline.Origin
	text     string
	hold     string
}

type fakeSink struct {
	mu    sync.Mutex
	all   []stored
	err   error
	delay time.Duration
	// forget keeps nothing.
	forget bool
	hold   *holdUp
}

func (f *fakeSink) Submit(ctx context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	f.hold.wait()
	if f.delay > 0 {
		select {
		case <-time.After(f.delay):
		case <-ctx.Done():
			return reply.Trouble, context.Cause(ctx)
		}
	}
	if f.err != nil {
		return reply.Trouble, f.err
	}
	if f.forget {
		return reply.OK, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range all {
		f.all = append(f.all, stored{o.Envelope.Clone(), o.Origin, string(o.Message.Bytes()), o.Hold})
	}
	ok := reply.OK
	ok.Text += fmt.Sprintf(" q%d", len(f.all))
	return ok, nil
}

func (f *fakeSink) taken() []stored {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]stored(nil), f.all...)
}

// pipeListener is a listener whose connections a test makes.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// from is a connection of a peer, as it has one.
type from struct {
	net.Conn
	peer netip.AddrPort
}

func (f from) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(f.peer) }

// dial makes a connection from a peer.
func (l *pipeListener) dial(t *testing.T, peer netip.AddrPort) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	select {
	case l.conns <- from{server, peer}:
	case <-time.After(time.Minute):
		t.Fatal("nobody accepts")
	}
	return client
}

var makeCertificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.example.org"}, DNSNames: []string{"mx.example.org"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// generations is a configuration with one chain of filters.
func generations(t testing.TB, o pipeline.ChainOptions, filters ...*fakeFilter) *pipeline.Generations {
	t.Helper()
	var steps []pipeline.Step
	for i, f := range filters {
		steps = append(steps, pipeline.Step{Name: fmt.Sprintf("fake%d", i+1), Filter: f})
	}
	c, err := pipeline.NewChain("inbound", steps, o)
	if err != nil {
		t.Fatal(err)
	}
	var gs pipeline.Generations
	if err := gs.Swap(pipeline.NewGeneration(1, c)); err != nil {
		t.Fatal(err)
	}
	return &gs
}
