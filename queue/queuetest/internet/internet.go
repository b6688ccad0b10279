package internet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/foxcpp/go-mockdns"

	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// Internet is names and servers. Its methods may be called from any goroutine, but
// for those that declare names, which come before Resolver.
type Internet struct {
	t        smtptest.TB
	listener net.Listener
	port     uint16
	done     sync.WaitGroup

	mu        sync.Mutex
	hosts     map[netip.Addr]*entrance
	zones     map[string]mockdns.Zone
	dns       *mockdns.Server
	authority *smtptest.Authority

	mail ledger
}

// New makes an Internet without any names, which ends with the test.
func New(t smtptest.TB) *Internet {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatalf("internet: %v", err)
	}
	n := &Internet{t: t, listener: l, hosts: map[netip.Addr]*entrance{}, zones: map[string]mockdns.Zone{}}
	n.mail.init()
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		n.port = a.AddrPort().Port()
	}
	n.done.Go(n.accept)
	t.Cleanup(func() {
		l.Close()
		n.done.Wait()
		if n.dns != nil {
			n.dns.Close()
		}
	})
	return n
}

// Port is where all servers listen.
func (n *Internet) Port() uint16 { return n.port }

// accept hands connections to the server at the address that they are for. Where
// nobody lives they are closed.
func (n *Internet) accept() {
	for {
		conn, err := n.listener.Accept()
		if err != nil {
			return
		}
		at, ok := conn.LocalAddr().(*net.TCPAddr)
		if !ok {
			conn.Close()
			continue
		}
		n.mu.Lock()
		e := n.hosts[at.AddrPort().Addr().Unmap()]
		n.mu.Unlock()
		if e == nil || !e.enter(conn) {
			conn.Close()
		}
	}
}

// entrance is the listener of one address.
type entrance struct {
	at    net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (e *entrance) enter(conn net.Conn) bool {
	select {
	case e.conns <- conn:
		return true
	case <-e.done:
		return false
	}
}

// Accept is net.Listener.
func (e *entrance) Accept() (net.Conn, error) {
	select {
	case conn := <-e.conns:
		return conn, nil
	case <-e.done:
		return nil, net.ErrClosed
	}
}

// Close is net.Listener.
func (e *entrance) Close() error {
	e.once.Do(func() { close(e.done) })
	return nil
}

// Addr is net.Listener.
func (e *entrance) Addr() net.Addr { return e.at }

// settle has a server live at an address.
func (n *Internet) settle(address netip.Addr, o smtptest.Options) {
	e := &entrance{at: net.TCPAddrFromAddrPort(netip.AddrPortFrom(address, n.port)), conns: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	taken := n.hosts[address] != nil
	n.hosts[address] = e
	n.mu.Unlock()
	if taken || !address.Is4() || !address.IsLoopback() {
		n.t.Fatalf("internet: %v is no free address of 127.0.0.0/8", address)
	}
	s := smtptest.Serve(e, o)
	n.t.Cleanup(func() { s.Close() })
}

// Domain declares a domain whose mail goes to these hosts, the best first; those
// that are separated by spaces are as good as one another.
func (n *Internet) Domain(name string, hosts ...string) {
	var mx []net.MX
	for i, equals := range hosts {
		for h := range strings.FieldsSeq(equals) {
			mx = append(mx, net.MX{Host: h + ".", Pref: uint16(10 * (i + 1))})
		}
	}
	n.declare(name, func(z *mockdns.Zone) { z.MX = mx })
}

// Names declares further addresses of a host.
func (n *Internet) Names(host string, addresses ...string) {
	n.declare(host, func(z *mockdns.Zone) { z.A = append(z.A, addresses...) })
}

// Fails has every question about a name fail for now.
func (n *Internet) Fails(name string) {
	n.declare(name, func(z *mockdns.Zone) { z.Err = fmt.Errorf("%s has no nameserver that answers", name) })
}

func (n *Internet) declare(name string, change func(*mockdns.Zone)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dns != nil {
		n.t.Fatalf("internet: %s is declared when names are asked for already", name)
	}
	z := n.zones[name+"."]
	change(&z)
	n.zones[name+"."] = z
}

type silence struct{}

func (silence) Printf(string, ...any) {}

// Nameserver is the address of the DNS server, "127.0.0.1:1053". It starts it, after
// which no names are declared any more.
func (n *Internet) Nameserver() string {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dns == nil {
		var err error
		if n.dns, err = mockdns.NewServerWithLogger(n.zones, silence{}, false); err != nil {
			n.t.Fatalf("internet: %v", err)
		}
	}
	return n.dns.LocalAddr().String()
}

// Resolver is a new one, as the daemon has it, that asks the Nameserver.
func (n *Internet) Resolver() *resolve.Resolver {
	n.t.Helper()
	r, err := resolve.New(resolve.Options{Servers: []string{n.Nameserver()}})
	if err != nil {
		n.t.Fatalf("internet: %v", err)
	}
	return r
}

// Letter makes a message for somebody, which is expected to arrive from now on.
func (n *Internet) Letter(from string, to ...string) *Letter { return n.mail.letter(from, to) }

// Wait waits until all letters are there; the error says what is missing.
func (n *Internet) Wait(ctx context.Context) error { return n.mail.wait(ctx) }

// WaitFor waits until so many letters are there, each counted once for each of its
// recipients.
func (n *Internet) WaitFor(ctx context.Context, count int) error { return n.mail.waitFor(ctx, count) }

// Tally is what has come of the letters.
func (n *Internet) Tally() Tally {
	n.mail.mu.Lock()
	defer n.mail.mu.Unlock()
	return n.mail.tally
}

// tls is the configuration of a host with this kind of TLS; nil for none.
func (n *Internet) tls(host string, kind TLS) (o smtptest.Options) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if kind != NoTLS && n.authority == nil {
		n.authority = smtptest.NewAuthority(n.t)
	}
	switch kind {
	case NoTLS:
	case SelfSigned:
		o.TLS = smtptest.TLS((*smtptest.Authority)(nil).Issue(n.t, time.Time{}, "localhost"))
	case Expired:
		o.TLS = smtptest.TLS(n.authority.Issue(n.t, time.Now().Add(-time.Hour), host))
	default:
		o.TLS = smtptest.TLS(n.authority.Issue(n.t, time.Time{}, host))
	}
	return o
}

// Authority signs the certificates of hosts with GoodTLS.
func (n *Internet) Authority() *smtptest.Authority {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.authority == nil {
		n.authority = smtptest.NewAuthority(n.t)
	}
	return n.authority
}
