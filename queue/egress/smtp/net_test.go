package smtp_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// internet is a small one: names, and servers behind addresses.
type internet struct {
	t     testing.TB
	mx    map[string]resolve.MX
	mxErr map[string]error
	hosts map[string][]string
	soft  map[string]bool // hosts that cannot be looked up for now
	sinks map[string]*smtptest.Server
	fails map[string]error
	// straight connects to the address itself.
	straight bool

	mu     sync.Mutex
	dialed []string
}

func newInternet(t testing.TB) *internet {
	return &internet{
		t: t, mx: map[string]resolve.MX{}, mxErr: map[string]error{}, hosts: map[string][]string{}, soft: map[string]bool{},
		sinks: map[string]*smtptest.Server{}, fails: map[string]error{},
	}
}

var errTemporary = &net.DNSError{Err: "server misbehaving", IsTemporary: true}

func (n *internet) LookupMX(_ context.Context, domain string) (resolve.MX, error) {
	if err := n.mxErr[domain]; err != nil {
		return resolve.MX{}, err
	}
	if mx, ok := n.mx[domain]; ok {
		return mx, nil
	}
	return resolve.MX{Hosts: []resolve.Host{{Name: domain}}, Implicit: true}, nil
}

func (n *internet) LookupAddrs(_ context.Context, host string) ([]netip.Addr, error) {
	if n.soft[host] {
		return nil, errTemporary
	}
	var all []netip.Addr
	for _, a := range n.hosts[host] {
		all = append(all, netip.MustParseAddr(a))
	}
	if len(all) == 0 {
		return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
	}
	return all, nil
}

var errRefused = &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}

func (n *internet) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, address)
	n.mu.Unlock()
	if err := n.fails[address]; err != nil {
		return nil, err
	}
	if n.straight {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	s, ok := n.sinks[address]
	if !ok { // a black hole
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return new(net.Dialer).DialContext(ctx, network, s.Addr().String())
}

func (n *internet) dials() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.dialed...)
}

// serve puts a server with these faults behind a host with one address.
func (n *internet) serve(host, address string, steps ...smtptest.Step) *smtptest.Server {
	n.hosts[host] = append(n.hosts[host], address)
	s := smtptest.New(n.t, steps...)
	n.sinks[netip.AddrPortFrom(netip.MustParseAddr(address), 25).String()] = s
	return s
}

// refuse puts nothing behind a host's address.
func (n *internet) refuse(host, address string) {
	n.hosts[host] = append(n.hosts[host], address)
	n.fails[netip.AddrPortFrom(netip.MustParseAddr(address), 25).String()] = errRefused
}

func exchangers(hosts ...resolve.Host) resolve.MX { return resolve.MX{Hosts: hosts} }

// exit has no luck in its order and little patience.
func (n *internet) exit(o smtp.Options) *smtp.Exit {
	n.t.Helper()
	d := 300 * time.Millisecond
	o.Resolver, o.Dialer, o.Hello = n, n, "us.test"
	o.Shuffle = func(int, func(i, j int)) {}
	if o.Timeouts == (wire.Timeouts{}) {
		o.Timeouts = wire.Timeouts{Greeting: d, Hello: d, Mail: d, Rcpt: d, Secure: 10 * d, Login: d, Data: d, Write: d, Dot: d, Quit: d}
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = d
	}
	x, err := smtp.New(o)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { x.Close(context.Background()) })
	return x
}

// put puts a server with these options behind a host's address.
func (n *internet) put(host, address string, o smtptest.Options) *smtptest.Server {
	n.hosts[host] = append(n.hosts[host], address)
	s := smtptest.Start(n.t, o)
	n.sinks[netip.AddrPortFrom(netip.MustParseAddr(address), 25).String()] = s
	return s
}

const sample = "Subject: sample\n\n.text\n"

func job(domain string, recipients ...string) *smtp.Job {
	return &smtp.Job{Domain: domain, Envelope: envelope.To("sender@us.test", recipients...), Content: message.FromString(sample)}
}

// one delivers to one recipient and returns its result.
func one(t testing.TB, x *smtp.Exit, j *smtp.Job) smtp.Result {
	t.Helper()
	all := x.Deliver(t.Context(), j)
	if len(all) != 1 {
		t.Fatalf("%d results", len(all))
	}
	return all[0]
}

var errShutdown = errors.New("shutting down")
