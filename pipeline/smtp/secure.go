package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"time"
)

// ErrInjected: something stood behind the answer to STARTTLS, before the
// handshake, where a server says nothing (RFC 3207 §4.2): a man in the middle
// wants it to be taken for what came under TLS.
var ErrInjected = errors.New("plain text behind the answer to STARTTLS")

// TLS is how the connection is protected; nil without TLS. The caller must not
// change it.
func (c *Client) TLS() *tls.ConnectionState { return c.secure }

// Handshake makes TLS of the connection before anything was said on it, as port
// 465 has it (RFC 8314 §3). The caller gives a configuration that says who may be
// on the other side. An error is an *Error of phase Secure, and the connection is
// of no use.
func (c *Client) Handshake(ctx context.Context, config *tls.Config) error {
	defer c.watch(ctx)()
	return c.handshake(ctx, config, time.Now().Add(c.o.Timeouts.Secure))
}

// StartTLS says STARTTLS and makes TLS of the connection (RFC 3207). What the
// server offered before is forgotten, so Hello must be called again. A refusal is
// an *Error with its Reply, after which the connection is as it was; any other
// error is final.
func (c *Client) StartTLS(ctx context.Context, config *tls.Config) error {
	defer c.watch(ctx)()
	if !c.Usable() || c.secure != nil {
		return &Error{Phase: Secure, Err: errors.New("the connection cannot begin TLS")}
	}
	if c.r.Buffered() > 0 {
		return c.fail(Secure, Reply{}, errors.New("the server talks out of turn"))
	}
	end := time.Now().Add(c.o.Timeouts.Secure)
	rep, err := c.ask(Secure, c.o.Timeouts.Secure, "STARTTLS")
	if err != nil {
		return err
	}
	if rep.Code != 220 {
		return c.fail(Secure, rep, nil)
	}
	if c.r.Buffered() > 0 {
		return c.fail(Secure, Reply{}, ErrInjected)
	}
	return c.handshake(ctx, config, end)
}

// apart runs f on a goroutine of its own, so that one which may have to wait for long
// afterwards is not left with as large a stack as f needs. It panics if f does.
func apart(f func() error) error {
	type end struct {
		err      error
		panicked any
	}
	done := make(chan end, 1)
	go func() {
		var e end
		defer func() {
			e.panicked = recover()
			done <- e
		}()
		e.err = f()
	}()
	e := <-done
	if e.panicked != nil {
		panic(e.panicked)
	}
	return e.err
}

func (c *Client) handshake(ctx context.Context, config *tls.Config, end time.Time) error {
	if err := c.raw.SetDeadline(end); err != nil {
		return c.fail(Secure, Reply{}, err)
	}
	if err := ctx.Err(); err != nil { // it ended before the deadline was set
		return c.fail(Secure, Reply{}, err)
	}
	conn := tls.Client(c.raw, config)
	// The end of ctx acts by the deadline, as everywhere.
	if err := apart(func() error { return conn.HandshakeContext(context.WithoutCancel(ctx)) }); err != nil {
		return c.fail(Secure, Reply{}, err)
	}
	state := conn.ConnectionState()
	c.conn, c.secure = conn, &state
	c.r.Reset(conn)
	c.caps, c.ready = Capabilities{}, false
	return nil
}
