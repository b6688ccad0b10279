// Package qmtp hands messages over by QMTP (Quick Mail Transfer Protocol), with an
// answer for each recipient, and by QMQP (Quick Mail Queueing Protocol), which has one
// answer for all, over a connection that somebody else has made.
//
// It promises that a message which was not read to its end never arrives as one,
// that an answer counts only if it has come whole, that a connection lost before
// everything was sent leaves nothing at the server, and one lost after it is told
// as a message that may have arrived. Answers are bounded, and every wait has a
// deadline.
package qmtp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Client speaks to servers. Its zero value speaks QMTP; it is a value, and safe for
// concurrent use.
type Client struct {
	// QMQP speaks QMQP in place of QMTP.
	QMQP bool
	// Write is how long each write of up to 16 KiB may take (default 3 min), Answer
	// how long each answer (default 10 min; a shorter one makes duplicates).
	Write, Answer time.Duration
}

const (
	defaultWrite  = 3 * time.Minute
	defaultAnswer = 10 * time.Minute
	buffer        = 16 << 10
)

// unreadable is the answer where the message cannot be read here.
var unreadable = reply.Make(451, reply.Enhanced{Subject: 3}, "Unable to read message.")

// Carry sends a message to the envelope's recipients and returns the answers to the
// first of them, in order; to all if err is nil. perhaps is how many of those after
// them may have the message all the same. It neither closes the connection nor
// releases the body; nothing else can be sent over the connection afterwards.
//
// In QMTP each recipient gets the message by itself, one after the other: there are
// servers that answer a message once, however many recipients it has (mailfront).
func (c Client) Carry(ctx context.Context, conn net.Conn, e envelope.Envelope, m message.Message) (answers []reply.Reply, perhaps int, err error) {
	if len(e.Recipients) == 0 {
		return nil, 0, errors.New("no recipients")
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection is broken off already
	defer stop()
	x := exchange{
		c: c, ctx: ctx, conn: conn, r: bufio.NewReader(conn),
		w: bufio.NewWriterSize(&wire{ctx: ctx, conn: conn, timeout: orElse(c.Write, defaultWrite)}, buffer),
	}
	if c.QMQP {
		a, sent, err := x.one(e, m)
		if err != nil && sent {
			return nil, len(e.Recipients), told(ctx, err)
		}
		if err != nil {
			return nil, 0, told(ctx, err)
		}
		return slices.Repeat([]reply.Reply{a}, len(e.Recipients)), 0, nil
	}
	for i := range e.Recipients {
		one := e
		one.Recipients = e.Recipients[i : i+1]
		a, sent, err := x.one(one, m)
		if err != nil {
			if sent {
				perhaps = 1
			}
			return answers, perhaps, told(ctx, err)
		}
		answers = append(answers, a)
	}
	return answers, 0, nil
}

// exchange is one connection.
type exchange struct {
	c    Client
	ctx  context.Context
	conn net.Conn
	w    *bufio.Writer
	r    *bufio.Reader
}

// one sends a message and reads the answer. sent is set if all of it has been sent.
func (x *exchange) one(e envelope.Envelope, m message.Message) (a reply.Reply, sent bool, err error) {
	if x.r.Buffered() > 0 {
		return a, false, errors.New("the server talks out of turn")
	}
	if err = x.c.send(x.w, e, m); err == nil {
		err = x.w.Flush()
	}
	if err != nil {
		return a, false, err
	}
	if err = x.conn.SetReadDeadline(time.Now().Add(orElse(x.c.Answer, defaultAnswer))); err == nil {
		if err = x.ctx.Err(); err == nil { // it may have ended before the deadline was set
			a, err = ReadAnswer(x.r)
		}
	}
	return a, true, err
}

// send writes everything that goes to the server.
func (c Client) send(w *bufio.Writer, e envelope.Envelope, m message.Message) error {
	size, lead := m.Size(), ""
	if !c.QMQP {
		lead = "\n" // lines end in LF
		size++
	}
	to := int64(0)
	for _, r := range e.Recipients {
		to += Len(int64(len(r.Address)))
	}
	if c.QMQP {
		fmt.Fprintf(w, "%d:", Len(size)+Len(int64(len(e.Sender)))+to) //nolint:errcheck // a bufio.Writer keeps its error
	}
	fmt.Fprintf(w, "%d:%s", size, lead) //nolint:errcheck // as above
	n, err := m.WriteTo(w)
	if _, failed := w.Write(nil); failed != nil {
		return failed // the connection, and not the message
	}
	if err == nil && n+int64(len(lead)) != size {
		err = fmt.Errorf("it has %d bytes, not %d", n, size-int64(len(lead)))
	}
	if err != nil {
		return reply.With(unreadable, fmt.Errorf("the message could not be read: %w", err))
	}
	w.WriteByte(',') //nolint:errcheck // as above
	put(w, e.Sender)
	if !c.QMQP {
		fmt.Fprintf(w, "%d:", to) //nolint:errcheck // as above
	}
	for _, r := range e.Recipients {
		put(w, r.Address)
	}
	return w.WriteByte(',')
}

// put writes a netstring.
func put(w *bufio.Writer, s string) {
	w.WriteString(strconv.Itoa(len(s))) //nolint:errcheck // a bufio.Writer keeps its error
	w.WriteByte(':')                    //nolint:errcheck // as above
	w.WriteString(s)                    //nolint:errcheck // as above
	w.WriteByte(',')                    //nolint:errcheck // as above
}

// Len is how long a netstring of n bytes is on the wire.
func Len(n int64) int64 { return int64(len(strconv.FormatInt(n, 10))) + 2 + n }

// wire puts a deadline on every write.
type wire struct {
	ctx     context.Context
	conn    net.Conn
	timeout time.Duration
}

func (w *wire) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
			return written, err
		}
		if err := w.ctx.Err(); err != nil { // it ended before the deadline was set
			return written, err
		}
		n, err := w.conn.Write(p[:min(len(p), buffer)])
		if written += n; err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

// told adds why a wait was broken off.
func told(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func orElse(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}
