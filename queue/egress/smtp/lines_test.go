package smtp_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// stream is one direction of a line: bytes in flight, and how it ends.
type stream struct {
	mu      sync.Mutex
	changed chan struct{} // closed with each change
	buf     []byte
	size    int   // of the receiver's window in bytes
	end     error // what a reader gets behind the bytes; nil while it goes on
	refused error // what a writer gets; nil while the receiver is there
	read    int64 // bytes that were read so far
}

func newStream(size int) *stream { return &stream{size: size, changed: make(chan struct{})} }

// change does something to the stream and wakes who waits for it.
func (s *stream) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *stream) finish(err error) {
	s.change(func() {
		if s.end == nil {
			s.end = err
		}
	})
}

func (s *stream) refuse(err error) {
	s.change(func() {
		if s.refused == nil {
			s.refused = err
		}
	})
}

// deadline is one that can be moved while somebody waits for it.
type deadline struct {
	mu      sync.Mutex
	at      time.Time
	changed chan struct{}
}

func newDeadline() *deadline { return &deadline{changed: make(chan struct{})} }

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	close(d.changed)
	d.changed = make(chan struct{})
}

// wait waits for a change, and says that the deadline has passed.
func (d *deadline) wait(changed <-chan struct{}) error {
	d.mu.Lock()
	at, moved := d.at, d.changed
	d.mu.Unlock()
	var over <-chan time.Time
	if !at.IsZero() {
		left := time.Until(at)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		t := time.NewTimer(left)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-changed:
	case <-moved:
	case <-over:
	}
	return nil
}

// plug is one end of a line in memory, which behaves as TCP does: it has windows, it
// can be closed in one direction, and reset.
type plug struct {
	in, out       *stream
	local, remote net.Addr
	segment       int // most bytes that a Read gives, 0 for any
	reading       *deadline
	writing       *deadline

	mu     sync.Mutex
	abort  bool
	closed bool
}

// line is a new connection with a window of so many bytes in each direction.
func line(from, to netip.AddrPort, window, segment int) (client, server *plug) {
	there, back := newStream(window), newStream(window)
	client = &plug{in: back, out: there, local: net.TCPAddrFromAddrPort(from), remote: net.TCPAddrFromAddrPort(to), segment: segment, reading: newDeadline(), writing: newDeadline()}
	server = &plug{in: there, out: back, local: client.remote, remote: client.local, segment: segment, reading: newDeadline(), writing: newDeadline()}
	return client, server
}

func (p *plug) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

func (p *plug) Read(b []byte) (int, error) {
	for {
		if p.isClosed() {
			return 0, net.ErrClosed
		}
		p.in.mu.Lock()
		changed, end := p.in.changed, p.in.end
		n := 0
		if len(p.in.buf) > 0 {
			if p.segment > 0 {
				b = b[:min(len(b), p.segment)]
			}
			n = copy(b, p.in.buf)
			p.in.buf = p.in.buf[n:]
			p.in.read += int64(n)
			close(p.in.changed)
			p.in.changed = make(chan struct{})
		}
		p.in.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		if end != nil {
			return 0, end
		}
		if err := p.reading.wait(changed); err != nil {
			return 0, err
		}
	}
}

func (p *plug) Write(b []byte) (written int, err error) {
	for len(b) > 0 {
		if p.isClosed() {
			return written, net.ErrClosed
		}
		p.out.mu.Lock()
		changed, refused := p.out.changed, p.out.refused
		n := min(len(b), p.out.size-len(p.out.buf))
		if refused == nil && n > 0 {
			p.out.buf = append(p.out.buf, b[:n]...)
			close(p.out.changed)
			p.out.changed = make(chan struct{})
		}
		p.out.mu.Unlock()
		if refused != nil {
			return written, refused
		}
		b, written = b[n:], written+n
		if n > 0 {
			continue
		}
		if err := p.writing.wait(changed); err != nil {
			return written, err
		}
	}
	return written, nil
}

// Close closes both directions. What nobody read, or SetLinger, makes it a reset.
func (p *plug) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return net.ErrClosed
	}
	p.closed = true
	end := io.EOF
	if p.abort {
		end = syscall.ECONNRESET
	}
	p.mu.Unlock()
	p.in.mu.Lock()
	if len(p.in.buf) > 0 {
		end = syscall.ECONNRESET
	}
	p.in.mu.Unlock()
	p.out.finish(end)
	p.in.refuse(syscall.EPIPE)
	// Wakes who reads or writes here.
	p.in.finish(net.ErrClosed)
	p.out.change(func() {})
	return nil
}

// CloseWrite ends one direction.
func (p *plug) CloseWrite() error {
	p.out.finish(io.EOF)
	return nil
}

// SetLinger makes Close a reset.
func (p *plug) SetLinger(int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.abort = true
	return nil
}

func (p *plug) LocalAddr() net.Addr                { return p.local }
func (p *plug) RemoteAddr() net.Addr               { return p.remote }
func (p *plug) SetReadDeadline(t time.Time) error  { p.reading.set(t); return nil }
func (p *plug) SetWriteDeadline(t time.Time) error { p.writing.set(t); return nil }
func (p *plug) SetDeadline(t time.Time) error {
	p.reading.set(t)
	p.writing.set(t)
	return nil
}

// socket is the listening side of an address.
type socket struct {
	address net.Addr
	arrived chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func (s *socket) Accept() (net.Conn, error) {
	select {
	case c := <-s.arrived:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *socket) Close() error { s.once.Do(func() { close(s.done) }); return nil }

func (s *socket) Addr() net.Addr { return s.address }

// exchange connects to sockets in memory. What it does not know is a black hole.
type exchange struct {
	segment int
	window  int
	fails   map[string]error

	mu      sync.Mutex
	sockets map[string]*socket
	dialed  []string
	plugs   []*plug // the clients' ends
}

func newExchange() *exchange {
	return &exchange{window: 4 << 10, fails: map[string]error{}, sockets: map[string]*socket{}}
}

// listen makes an address answer.
func (x *exchange) listen(address string) net.Listener {
	at := netip.MustParseAddrPort(address)
	s := &socket{address: net.TCPAddrFromAddrPort(at), arrived: make(chan net.Conn), done: make(chan struct{})}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sockets[address] = s
	return s
}

// DialContext is for smtp.Options.Dialer.
func (x *exchange) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	x.mu.Lock()
	x.dialed = append(x.dialed, address)
	s, err := x.sockets[address], x.fails[address]
	from := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(10_000+len(x.dialed)))
	x.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if s == nil {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
	}
	client, server := line(from, netip.MustParseAddrPort(address), x.window, x.segment)
	select {
	case s.arrived <- server:
	case <-s.done:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	x.mu.Lock()
	x.plugs = append(x.plugs, client)
	x.mu.Unlock()
	return client, nil
}

// open is how many of the clients' ends are open, and read the most that was read
// from one of them.
func (x *exchange) open() (open int, read int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range x.plugs {
		if !p.isClosed() {
			open++
		}
		p.in.mu.Lock()
		read = max(read, p.in.read)
		p.in.mu.Unlock()
	}
	return open, read
}

func (x *exchange) dials() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]string(nil), x.dialed...)
}
