// Package smtptest is an SMTP server for tests and measurements: it takes
// whatever comes, tells what it got, and misbehaves as it is told to.
//
// It stores nothing, relays nothing and is not for the Internet.
package smtptest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/smtp"
)

// Keep is what a Server remembers of each message.
type Keep uint8

// What a Server remembers.
const (
	KeepAll      Keep = iota // everything
	KeepEnvelope             // everything but the content
	KeepNothing              // only counts
)

// Options of a Server. The zero value is a well-behaved server that remembers
// everything.
type Options struct {
	// Name is what the server calls itself; default "sink.test".
	Name string
	// Extensions are the lines of the answer to EHLO; nil means those of
	// DefaultExtensions, an empty slice none.
	Extensions []string
	// TLS makes the server offer STARTTLS, or begin with TLS if Implicit is set.
	TLS      *tls.Config
	Implicit bool
	// Secure are the lines of the answer to EHLO that are there only under TLS.
	Secure []string
	// Users have passwords; who says AUTH must be one of them. Logins lists the
	// mechanisms that are offered, to anybody and without TLS.
	Users  map[string]string
	Logins []string
	// Steps are the server's faults; the first that matches acts.
	Steps []Step
	// Script is asked at every point before Steps are: what it gives acts, and nil is
	// for Steps. It is called from many goroutines and may not keep the Moment.
	Script func(*Moment) *Step
	// OnEnd is called when a connection that was not refused at once is over, from
	// many goroutines, before the client can notice.
	OnEnd func(connection uint64)
	// OneByte writes every answer a byte at a time.
	OneByte bool
	// Latency is waited before every answer.
	Latency time.Duration
	// Connections and PerHost limit how many connections are open, in all and from
	// one address; one more hears 421. 0 is no limit.
	Connections, PerHost int
	// Messages is how many messages a connection may carry before it hears 421.
	Messages int
	// Recipients is how many recipients a message may have; one more hears 452.
	Recipients int
	// Greylist puts off a new combination of address, sender and recipient for so
	// long.
	Greylist time.Duration
	// Keep is what is remembered of messages.
	Keep Keep
	// OnMessage is called for each message before it is answered, from many
	// goroutines; it may keep what it is given.
	OnMessage func(*Message)
	// ReadBuffer sets the size of the connections' receive buffers, in bytes; 0
	// leaves it to the system.
	ReadBuffer int
	// Idle is how long a client may be silent; default 10 min.
	Idle time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// DefaultExtensions are offered if Options.Extensions is nil.
var DefaultExtensions = [...]string{"PIPELINING", "8BITMIME", "SIZE 52428800", "DSN", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING"}

// Message is one message that was received whole, whether or not its final dot
// was then answered.
type Message struct {
	// Connection is the number of the connection, from 1.
	Connection uint64
	Peer       netip.AddrPort
	// Hello is the name in EHLO or HELO; Extended tells them apart.
	Hello    string
	Extended bool
	Mail     smtp.Mail
	// Recipients are those that were accepted.
	Recipients []envelope.Recipient
	// Content has lines that end in LF; nil if it is not kept.
	Content []byte
	// Size is the length of the content in bytes, with LF.
	Size int64
	// Bare is set if there was a bare CR, a bare LF or a NUL.
	Bare bool
	// TLS is how the connection was protected, nil for not. User has logged in.
	TLS  *tls.ConnectionState
	User string
	// Answer is the code with which the final dot was answered, 0 for none.
	Answer int
	At     time.Time
}

// Addresses are the recipients' addresses.
func (m *Message) Addresses() []string {
	all := make([]string, len(m.Recipients))
	for i, r := range m.Recipients {
		all[i] = r.Address
	}
	return all
}

// ID is the value of the content's Message-ID field, "" if there is none or the
// content is not kept.
func (m *Message) ID() string {
	for line := range strings.SplitSeq(string(m.Content), "\n") {
		if line == "" {
			break
		}
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "Message-ID") {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Stats are counts since the start.
type Stats struct {
	// Connections were accepted, Open are open now, MostOpen were at the same time
	// and MostPerHost from one address. Refused heard 421 at once.
	Connections, Open, MostOpen, MostPerHost, Refused int64
	// Messages came whole, with so many recipients and bytes.
	Messages, Recipients, Bytes int64
	// Commands were read.
	Commands int64
}

// Server is a sink for mail. All its methods are safe for concurrent use.
type Server struct {
	o        Options
	listener net.Listener
	greeting string
	plain    offered // without TLS
	secure   offered // with it
	done     chan struct{}
	wg       sync.WaitGroup
	scratch  sync.Pool

	messages, recipients, bytes, commands atomic.Int64

	mu       sync.Mutex
	closed   bool
	stats    Stats
	open     map[net.Conn]struct{}
	hosts    map[netip.Addr]int64
	counts   []int // how often each step's point was passed
	received []*Message
	seen     map[[3]string]time.Time
}

// Listen starts a server on a TCP address, such as "127.0.0.1:0".
func Listen(address string, o Options) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return Serve(l, o), nil
}

// Serve starts a server on a listener, which it closes in the end.
func Serve(l net.Listener, o Options) *Server {
	if o.Name == "" {
		o.Name = "sink.test"
	}
	if o.Extensions == nil {
		o.Extensions = DefaultExtensions[:]
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Idle == 0 {
		o.Idle = 10 * time.Minute
	}
	s := &Server{
		o: o, listener: l, done: make(chan struct{}),
		open: map[net.Conn]struct{}{}, hosts: map[netip.Addr]int64{}, seen: map[[3]string]time.Time{},
		counts: make([]int, len(o.Steps)),
	}
	s.greeting = "220 " + o.Name + " ESMTP"
	s.plain = offer(o, false)
	s.secure = offer(o, true)
	s.scratch.New = func() any { return new([8 << 10]byte) }
	s.wg.Add(1)
	go s.accept()
	return s
}

// offered is the answer to EHLO, and what may be used after it.
type offered struct {
	hello      string
	extensions smtp.Extensions
}

func offer(o Options, secure bool) offered {
	all := append([]string(nil), o.Extensions...)
	if secure {
		all = append(all, o.Secure...)
	} else if o.TLS != nil && !o.Implicit {
		all = append(all, "STARTTLS")
	}
	if len(o.Logins) > 0 {
		all = append(all, "AUTH "+strings.Join(o.Logins, " "))
	}
	return offered{
		hello:      strings.Join(append([]string{"250 " + o.Name}, all...), "\n250 "),
		extensions: smtp.ParseCapabilities(smtp.Reply{Code: 250, Text: "x\n" + strings.Join(all, "\n")}).Extensions,
	}
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// AddrPort is Addr of a TCP listener.
func (s *Server) AddrPort() netip.AddrPort {
	if a, ok := s.listener.Addr().(*net.TCPAddr); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// Close closes all connections and waits until the server has ended.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	err := s.listener.Close()
	s.wg.Wait()
	return err
}

// Messages are those received so far and kept, in the order in which they came.
func (s *Server) Messages() []*Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Message(nil), s.received...)
}

// Forget drops the messages kept so far.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received = nil
}

// Stats are the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Open = int64(len(s.open))
	st.Messages, st.Recipients, st.Bytes, st.Commands = s.messages.Load(), s.recipients.Load(), s.bytes.Load(), s.commands.Load()
	return st
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		conn, err := s.listener.Accept()
		switch {
		case err == nil:
			s.admit(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default: // too many open files, say
			if s.sleep(10 * time.Millisecond); s.isDone() {
				return
			}
		}
	}
}

// admit starts a session, or sends the client away if a limit is reached.
func (s *Server) admit(conn net.Conn) {
	peer := peerOf(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return
	}
	full := s.o.Connections > 0 && len(s.open) >= s.o.Connections ||
		s.o.PerHost > 0 && s.hosts[peer.Addr()] >= int64(s.o.PerHost)
	if full {
		s.stats.Refused++
	} else {
		s.stats.Connections++
		s.hosts[peer.Addr()]++
		s.stats.MostPerHost = max(s.stats.MostPerHost, s.hosts[peer.Addr()])
	}
	s.open[conn] = struct{}{}
	if !full {
		s.stats.MostOpen = max(s.stats.MostOpen, int64(len(s.open)))
	}
	id := uint64(s.stats.Connections)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer s.leave(conn, id, peer.Addr(), full)
		if full {
			conn.SetDeadline(time.Now().Add(time.Second)) //nolint:errcheck // it is closed in a moment
			fmt.Fprintf(conn, "421 4.7.0 %s too many connections from your host\r\n", s.o.Name)
			return
		}
		newSession(s, conn, peer, id).serve()
	}()
}

// leave counts a connection off and closes it: the peer, who may open another one
// as soon as this is closed, must not be counted twice.
func (s *Server) leave(conn net.Conn, id uint64, host netip.Addr, refused bool) {
	defer conn.Close()
	if !refused && s.o.OnEnd != nil {
		s.o.OnEnd(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, conn)
	if refused {
		return
	}
	if s.hosts[host]--; s.hosts[host] == 0 {
		delete(s.hosts, host)
	}
}

// step is the step that acts at a point, nil if none does.
func (s *Server) step(at At, what string) *Step {
	if len(s.o.Steps) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.o.Steps {
		st := &s.o.Steps[i]
		if !st.matches(at, what) {
			continue
		}
		if s.counts[i]++; s.counts[i] > st.Skip && (st.Times == 0 || s.counts[i] <= st.Skip+st.Times) {
			return st
		}
	}
	return nil
}

// greylisted reports whether a combination is to be put off.
func (s *Server) greylisted(host, sender, recipient string) bool {
	if s.o.Greylist == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key, now := [3]string{host, sender, recipient}, s.o.Now()
	first, ok := s.seen[key]
	if !ok {
		s.seen[key] = now
		return true
	}
	return now.Sub(first) < s.o.Greylist
}

func (s *Server) keep(m *Message) {
	s.messages.Add(1)
	s.recipients.Add(int64(len(m.Recipients)))
	s.bytes.Add(m.Size)
	if s.o.OnMessage != nil {
		s.o.OnMessage(m)
	}
	if s.o.Keep != KeepNothing {
		s.mu.Lock()
		s.received = append(s.received, m)
		s.mu.Unlock()
	}
}

// sleep waits, or not if the server is closed.
func (s *Server) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.done:
	}
}

func (s *Server) isDone() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func peerOf(conn net.Conn) netip.AddrPort {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		p := a.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

// TB is what New needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// New starts a server with the given faults on the loopback interface and
// closes it when the test ends.
func New(t TB, steps ...Step) *Server {
	t.Helper()
	return Start(t, Options{Steps: steps})
}

// Start is New with options.
func Start(t TB, o Options) *Server {
	t.Helper()
	s, err := Listen("127.0.0.1:0", o)
	if err != nil {
		t.Fatalf("smtptest: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// discard reads to the end.
func discard(r io.Reader) { io.Copy(io.Discard, r) } //nolint:errcheck // the end is what is waited for
