package smtp_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// trouble is what the first host makes.
type trouble struct {
	step   *smtptest.Step
	steps  []smtptest.Step
	script func(*smtptest.Moment) *smtptest.Step
	dial   error // of connecting
	silent bool  // nobody is there
	// tls is in place of the mode's; clear is for none.
	tls   *tls.Config
	clear bool
}

// today is outside of simulated time.
var today = time.Now()

// scene is a domain with one host or two in simulated time, of which the first makes
// trouble.
type scene struct {
	t       *testing.T
	net     *exchange
	exit    *smtp.Exit
	gate    *ledger
	servers []*smtptest.Server
	most    int64 // bytes to read
	secure  bool  // the servers know TLS
}

// mostRead is how much of what servers say is read from a connection, in bytes: a
// reply's 64 KiB and what else belongs to a conversation; mostSecure is that under TLS
// with the records of small writes.
const (
	mostRead   = 80 << 10
	mostSecure = 160 << 10
)

func newScene(t *testing.T, m mode, bad trouble, another bool) *scene {
	s := &scene{t: t, net: newExchange(), gate: &ledger{t: t}, most: mostRead}
	if m.tls != nil {
		s.most, s.secure = mostSecure, true
	}
	s.net.segment, s.net.window = m.segment, 1<<10
	n := newInternet(t)
	n.mx["d.test"] = exchangers(resolve.Host{Name: "mx1.d.test", Preference: 1})
	n.hosts["mx1.d.test"] = []string{"192.0.2.1"}
	port := ":25"
	if m.o.Routes != nil {
		port = ":24"
	}
	switch {
	case bad.dial != nil:
		s.net.fails["192.0.2.1"+port] = &net.OpError{Op: "dial", Err: bad.dial}
	case !bad.silent:
		o := smtptest.Options{Extensions: m.offers, TLS: m.tls, Implicit: m.implicit && !bad.clear, Steps: bad.steps, Script: bad.script}
		if bad.tls != nil || bad.clear {
			o.TLS = bad.tls
		}
		if bad.step != nil {
			o.Steps = []smtptest.Step{*bad.step}
		}
		s.serve("192.0.2.1"+port, o)
	}
	o := m.o
	if another {
		n.mx["d.test"] = exchangers(resolve.Host{Name: "mx1.d.test", Preference: 1}, resolve.Host{Name: "mx2.d.test", Preference: 2})
		n.hosts["mx2.d.test"] = []string{"192.0.2.2"}
		s.serve("192.0.2.2"+port, smtptest.Options{Extensions: m.offers, TLS: m.tls, Implicit: m.implicit})
	} else if o.Routes != nil {
		hops := o.Routes("d.test")
		o.Routes = to(hops[:1]...)
	}
	o.Resolver, o.Dialer, o.Hello, o.Gate = n, s.net, "us.test", s.gate
	o.Shuffle = func(int, func(i, k int)) {}
	start := time.Now()
	o.Now = func() time.Time { return today.Add(time.Since(start)) } // when certificates are valid
	var err error
	if s.exit, err = smtp.New(o); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *scene) serve(address string, o smtptest.Options) {
	s.servers = append(s.servers, smtptest.Serve(s.net.listen(address), o))
}

// job is a message to two recipients that is longer than the connections' windows.
func (s *scene) job() *smtp.Job {
	j := job("d.test", "a@d.test", "b@d.test")
	j.Content = message.FromString(sample + strings.Repeat("0123456789abcdef\n", 300))
	return j
}

// close checks that nothing is left.
func (s *scene) close() {
	open, read := s.net.open()
	if open > 0 {
		s.t.Errorf("%d connections are left", open)
	}
	if read > s.most {
		s.t.Errorf("%d bytes were read from one connection", read)
	}
	if n, _ := s.exit.Connections("mx1.d.test"); n != 0 {
		s.t.Errorf("%d connections are counted", n)
	}
	s.gate.allClosed()
	for _, server := range s.servers {
		server.Close()
	}
}

// outcome is what came of the recipients in a word each, once if it is the same, and
// the time it took. It must be true: who is said to have the message has it, who may
// have it is marked, and nobody is given up without a server's word.
func (s *scene) outcome(results []smtp.Result, took time.Duration) string {
	var words []string
	for i, r := range results {
		to := [...]string{"a@d.test", "b@d.test"}[i]
		has := s.whoHas(to)
		w := ""
		switch r.Reply.Class {
		case reply.Success:
			if w = "first"; r.Address == netip.MustParseAddr("192.0.2.2") {
				w = "next"
			}
			if code, ok := has[w]; !ok || code != 0 && code != 250 { // 0: it said so in words of its own
				s.t.Errorf("%s is said to have the message of %s: %+v", to, r.Where, r)
			}
			if s.secure && r.TLS.Version == 0 {
				w += "-in-clear"
			}
		case reply.Permanent:
			w = "refused " + r.Phase.String()
			if r.Said.Code < 500 || !r.Remote {
				s.t.Errorf("%s is given up, and no server said so: %+v", to, r)
			}
		default:
			if w = "deferred " + r.Phase.String(); r.Perhaps {
				w = "perhaps " + r.Phase.String()
			}
			for _, code := range has {
				if (code == 0 && r.Said.Code == 0 || code/100 == 2) && !r.Perhaps {
					s.t.Errorf("%s may have the message, and nobody says so: %+v", to, r)
				}
			}
		}
		if !clean(r.Reply.SMTP()) || len(r.Reply.SMTP()) > 512 || !clean(strings.ReplaceAll(r.Said.Text, "\n", "")) {
			s.t.Errorf("%q is not clean", r.Reply.SMTP())
		}
		words = append(words, w)
	}
	if words[0] == words[1] {
		words = words[:1]
	}
	if took = took.Round(time.Second); took > 0 {
		words = append(words, strings.Replace(took.String(), "m0s", "m", 1))
	}
	return strings.Join(words, " ")
}

// whoHas are the servers that have read the whole message for a recipient, and with
// what they answered it, 0 being not at all.
func (s *scene) whoHas(to string) map[string]int {
	has := map[string]int{}
	for i, server := range s.servers {
		name := "next"
		if server.Addr().(*net.TCPAddr).IP.String() == "192.0.2.1" {
			name = "first"
		}
		for _, m := range s.servers[i].Messages() {
			for _, a := range m.Addresses() {
				if a == to {
					has[name] = m.Answer
				}
			}
		}
	}
	return has
}

func clean(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// ledger is a Gate that admits everything and writes down what it hears, by address.
type ledger struct {
	t       *testing.T
	mu      sync.Mutex
	tickets []*entry
}

type entry struct {
	l       *ledger
	address netip.Addr
	heard   []string
	closed  int
}

func (l *ledger) Open(string, string, bool) (smtp.Ticket, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &entry{l: l}
	l.tickets = append(l.tickets, e)
	return e, nil
}

func (e *entry) note(format string, args ...any) {
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	if e.closed > 0 {
		e.l.t.Errorf("a ticket hears %s after its end", fmt.Sprintf(format, args...))
	}
	e.heard = append(e.heard, fmt.Sprintf(format, args...))
}

func (e *entry) At(a netip.Addr) error { e.address = a; return nil }
func (e *entry) Greeted()              { e.note("greeted") }
func (e *entry) Unreachable(error)     { e.note("unreachable") }
func (e *entry) Message(int) error     { return nil }
func (e *entry) Taken()                { e.note("taken") }
func (e *entry) Said(a wire.Reply, early bool) bool {
	if early {
		e.note("said %d early", a.Code)
		return false
	}
	e.note("said %d", a.Code)
	return false
}

func (e *entry) Return() { e.Close() }

func (e *entry) TakeOver(other smtp.Ticket, _ netip.Addr) { other.Close() }

func (e *entry) Close() {
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	e.closed++
}

// allClosed checks that every ticket was closed once.
func (l *ledger) allClosed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.tickets {
		if e.closed != 1 {
			l.t.Errorf("a ticket for %s was closed %d times", e.address, e.closed)
		}
	}
}

// heardOf is what was heard of an address, one connection after the other.
func (l *ledger) heardOf(address string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, e := range l.tickets {
		if e.address.String() != address {
			continue
		}
		words := strings.Join(e.heard, ", ")
		if words == "" {
			words = "nothing"
		}
		all = append(all, words)
	}
	return strings.Join(all, "; ")
}
