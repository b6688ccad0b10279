package smtp

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Timeouts bound how long a Client waits. Zero fields mean the times of RFC 5321
// §4.5.3.2. Each is for one reply or one write, whole: a peer that sends a byte
// now and then gains nothing.
type Timeouts struct {
	// Greeting, Hello, Mail, Rcpt are for the replies to the connection, to EHLO
	// and HELO, to MAIL and RSET, and to each RCPT; 5 min.
	Greeting, Hello, Mail, Rcpt time.Duration
	// Secure is for the reply to STARTTLS, and for a whole handshake; 1 min.
	Secure time.Duration
	// Login is for each reply in AUTH; 2 min.
	Login time.Duration
	// Data is for the 354; 2 min.
	Data time.Duration
	// Write is for each write of up to 16 KiB; 3 min.
	Write time.Duration
	// Dot is for the reply to the final dot; 10 min. Shorter ones make duplicates.
	Dot time.Duration
	// Quit is for the reply to QUIT, on which nothing depends; 5 s.
	Quit time.Duration
}

func (t Timeouts) filled() Timeouts {
	for _, x := range []struct {
		d   *time.Duration
		def time.Duration
	}{
		{&t.Greeting, 5 * time.Minute},
		{&t.Hello, 5 * time.Minute},
		{&t.Mail, 5 * time.Minute},
		{&t.Rcpt, 5 * time.Minute},
		{&t.Secure, time.Minute},
		{&t.Login, 2 * time.Minute},
		{&t.Data, 2 * time.Minute},
		{&t.Write, 3 * time.Minute},
		{&t.Dot, 10 * time.Minute},
		{&t.Quit, 5 * time.Second},
	} {
		if *x.d <= 0 {
			*x.d = x.def
		}
	}
	return t
}

// ClientOptions of NewClient.
type ClientOptions struct {
	// Hello is the name given in EHLO; default "localhost".
	Hello string
	// Timeouts of every wait.
	Timeouts Timeouts
	// LockStep never pipelines, whatever the server offers.
	LockStep bool
	// Chunking sends a message as one chunk (BDAT, RFC 3030) to servers that offer
	// it. It saves a wait only where they do not pipeline, and a connection lost
	// behind the last byte leaves in doubt whether they have the message, where DATA
	// would have ended before the first.
	Chunking bool
	// LMTP speaks LMTP (RFC 2033): LHLO in place of EHLO, and an answer for each
	// recipient after the final dot.
	LMTP bool
	// Buffers are shared by clients; nil means buffers of its own.
	Buffers *Buffers
}

// Buffers keeps the memory that a Client needs only while it sends a message,
// so that idle connections do without. It is safe for concurrent use; its zero
// value is ready.
type Buffers struct{ pool sync.Pool }

const (
	readBuffer  = minBuffer // a longer line makes it grow
	writeBuffer = 16 << 10
)

type buffers struct {
	w *bufio.Writer
	b []byte // for reading a message that does not write itself
}

func (b *Buffers) get(w io.Writer) *buffers {
	got, ok := b.pool.Get().(*buffers)
	if !ok {
		got = &buffers{w: bufio.NewWriterSize(nil, writeBuffer)}
	}
	got.w.Reset(w)
	return got
}

func (b *Buffers) put(used *buffers) {
	used.w.Reset(nil)
	b.pool.Put(used)
}

// Client speaks to one server over one connection. It is for one goroutine.
//
// The order of calls is Greet, Hello, perhaps StartTLS and Hello again, perhaps
// Login, then Transaction any number of times, then Quit or Close; with implicit
// TLS, Handshake stands before all of them. Once a call has failed, Usable tells
// whether another may follow. A context that ends breaks off what is waited for,
// and the connection is of no use then.
type Client struct {
	raw    net.Conn // for deadlines and an end without a word
	conn   net.Conn // what is read and written: raw, or TLS over it
	secure *tls.ConnectionState
	o      ClientOptions
	r      *Reader
	caps   Capabilities
	line   []byte // commands not yet written
	ready  bool   // EHLO or HELO was answered
	broken bool
	dirty  bool // RSET is due
	ctx    context.Context
}

// NewClient makes a client of a connection, which it will close.
func NewClient(conn net.Conn, o ClientOptions) *Client {
	o.Timeouts = o.Timeouts.filled()
	if o.Hello == "" {
		o.Hello = "localhost"
	}
	if o.Buffers == nil {
		o.Buffers = new(Buffers)
	}
	return &Client{raw: conn, conn: conn, o: o, r: NewReader(conn, readBuffer)}
}

// Capabilities are what the server offered in its answer to EHLO.
func (c *Client) Capabilities() Capabilities { return c.caps }

// Usable reports whether the connection can carry another message.
func (c *Client) Usable() bool { return c.ready && !c.broken }

// Close closes the connection without a word.
func (c *Client) Close() error {
	c.broken = true
	return c.raw.Close()
}

// watch makes the end of ctx break off every read and write until the function
// returned is called.
func (c *Client) watch(ctx context.Context) func() {
	c.ctx = ctx
	stop := context.AfterFunc(ctx, func() { c.raw.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection is broken off already
	return func() {
		if !stop() {
			c.broken = true
		}
	}
}

// write writes to the connection, each piece under a deadline of its own: a
// long line must not have to go out faster than a short one.
func (c *Client) write(p []byte) (written int, err error) {
	for {
		if err := c.raw.SetWriteDeadline(time.Now().Add(c.o.Timeouts.Write)); err != nil {
			return written, err
		}
		if err := c.ctx.Err(); err != nil { // it ended before the deadline was set
			return written, err
		}
		n, err := c.conn.Write(p[:min(len(p), writeBuffer)])
		if written += n; err != nil || n == len(p) {
			return written, err
		}
		p = p[n:]
	}
}

// wire is the connection as the client's buffers see it.
type wire struct{ c *Client }

func (w wire) Write(p []byte) (int, error) { return w.c.write(p) }

// fail makes an Error; without an answer the connection is of no use.
func (c *Client) fail(phase Phase, rep Reply, err error) *Error {
	if err != nil || rep.Code == 421 {
		c.broken = true
	}
	if cause := context.Cause(c.ctx); err != nil && cause != nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return &Error{Phase: phase, Reply: rep, Err: err}
}

// flush writes the commands collected in c.line.
func (c *Client) flush(phase Phase) *Error {
	if len(c.line) == 0 {
		return nil
	}
	_, err := c.write(c.line)
	c.line = c.line[:0]
	if err == nil {
		return nil
	}
	return c.late(phase, err)
}

// late looks for an answer that the server gave before it stopped reading, such
// as a 421, and makes an Error of it or of the failed write.
func (c *Client) late(phase Phase, err error) *Error {
	if rep, e := c.read(min(c.o.Timeouts.Quit, time.Second)); e == nil && rep.Code >= 400 {
		c.broken = true
		return &Error{Phase: phase, Reply: rep, Err: err}
	}
	return c.fail(phase, Reply{}, err)
}

func (c *Client) read(timeout time.Duration) (Reply, error) {
	if err := c.raw.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return Reply{}, err
	}
	if err := c.ctx.Err(); err != nil {
		return Reply{}, err
	}
	rep, err := c.r.ReadReply()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return rep, err
}

// reply reads a reply that must come.
func (c *Client) reply(phase Phase, timeout time.Duration) (Reply, *Error) {
	rep, err := c.read(timeout)
	if err != nil {
		return Reply{}, c.fail(phase, Reply{}, err)
	}
	if rep.Code == 421 {
		c.broken = true
	}
	if phase != Hello && len(rep.Text) > maxKept {
		rep.Text = strings.Clone(rep.Text[:maxKept])
	}
	return rep, nil
}

// maxKept is how much of a reply's text is kept in bytes, but for the answer to EHLO,
// whose lines all mean something: a transaction keeps one for each recipient.
const maxKept = 4 << 10

// ask sends one command and reads its reply.
func (c *Client) ask(phase Phase, timeout time.Duration, command string) (Reply, *Error) {
	c.line = append(append(c.line, command...), '\r', '\n')
	if err := c.flush(phase); err != nil {
		return Reply{}, err
	}
	return c.reply(phase, timeout)
}

// Greet waits for the greeting. Anything but 220 is an Error.
func (c *Client) Greet(ctx context.Context) (Reply, error) {
	defer c.watch(ctx)()
	rep, err := c.reply(Greeting, c.o.Timeouts.Greeting)
	if err != nil {
		return Reply{}, err
	}
	if rep.Code != 220 {
		return rep, c.fail(Greeting, rep, nil)
	}
	return rep, nil
}

// Hello says EHLO, and HELO if the server does not know that (RFC 5321 §3.2); in
// LMTP it says LHLO.
func (c *Client) Hello(ctx context.Context) (Reply, error) {
	defer c.watch(ctx)()
	if !validHello(c.o.Hello) {
		return Reply{}, c.fail(Hello, Reply{}, fmt.Errorf("name %q cannot be given in EHLO", c.o.Hello))
	}
	verb := "EHLO "
	if c.o.LMTP {
		verb = "LHLO "
	}
	rep, err := c.ask(Hello, c.o.Timeouts.Hello, verb+c.o.Hello)
	if err != nil {
		return Reply{}, err
	}
	if rep.Code == 250 {
		c.caps, c.ready = ParseCapabilities(rep), true
		return rep, nil
	}
	if rep.Code/100 == 5 && !c.o.LMTP {
		c.caps = Capabilities{}
		again, err := c.ask(Hello, c.o.Timeouts.Hello, "HELO "+c.o.Hello)
		if err != nil {
			err.Reply = rep // which was its last word
			return rep, err
		}
		if rep = again; rep.Code == 250 {
			c.ready = true
			return rep, nil
		}
	}
	return rep, c.fail(Hello, rep, nil)
}

func validHello(name string) bool {
	return name != "" && len(name) <= maxDomain && strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0
}

// Reset says RSET, which makes a connection ready for the next message whatever
// came before. Transaction does it by itself where it is due.
func (c *Client) Reset(ctx context.Context) error {
	defer c.watch(ctx)()
	if err := c.reset(); err != nil {
		return err
	}
	return nil
}

func (c *Client) reset() *Error {
	rep, err := c.ask(After, c.o.Timeouts.Mail, "RSET")
	if err != nil {
		return err
	}
	if rep.Code/100 != 2 {
		c.broken = true
		return c.fail(After, rep, nil)
	}
	c.dirty = false
	return nil
}

// Quit says QUIT, waits a moment for the answer and for the server to close the
// connection, which is when its slot there is free again, and closes it. An
// error says only that the parting was not a fine one.
func (c *Client) Quit(ctx context.Context) error {
	if c.broken {
		return c.raw.Close()
	}
	defer c.raw.Close()
	defer c.watch(ctx)()
	c.broken = true
	end := time.Now().Add(c.o.Timeouts.Quit)
	if _, err := c.ask(After, c.o.Timeouts.Quit, "QUIT"); err != nil {
		return err
	}
	if secure, ok := c.conn.(*tls.Conn); ok {
		secure.CloseWrite() //nolint:errcheck // the server may have gone already
	}
	return c.drain(end)
}

// maxDrain is how long a server that has said goodbye may take to close.
const maxDrain = time.Second

// drain reads until the server closes the connection, and drops what comes.
func (c *Client) drain(end time.Time) error {
	if most := time.Now().Add(maxDrain); end.After(most) {
		end = most
	}
	if err := c.raw.SetReadDeadline(end); err != nil {
		return err
	}
	if err := c.ctx.Err(); err != nil {
		return err
	}
	var some [64]byte
	for range 100 {
		if _, err := c.raw.Read(some[:]); err != nil {
			return nil //nolint:nilerr // it is over, whichever way
		}
	}
	return nil
}
