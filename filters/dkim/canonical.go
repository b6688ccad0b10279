package dkim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"

	"github.com/postern-mta/postern/pipeline/message"
)

// canonicalBody makes the canonical form of a body (RFC 6376 §3.4.3, §3.4.4) of
// what is written to it. It keeps line ends until it knows that more follows:
// a feed bounds how many these are. As go-msgauth does, it lets a CR that is no
// line's end stand under "simple", and takes it for one under "relaxed".
type canonicalBody struct {
	to      io.Writer
	relaxed bool
	// left is how much of it goes to to, as l= says; below zero it is all.
	left int64
	size int64 // of it, in bytes

	ends  []byte // line ends that may be the last
	out   []byte
	blank bool // a blank is due
	cr    bool
	err   error
}

// Write takes a piece of the body. It does not fail before close.
func (c *canonicalBody) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		switch b := p[0]; {
		case b == '\n':
			if !c.cr {
				c.ends = append(c.ends, '\r')
			}
			c.ends, c.cr, c.blank = append(c.ends, b), false, false
			p = p[1:]
		case b == '\r':
			c.ends, c.cr, c.blank = append(c.ends, b), true, false
			p = p[1:]
		case c.relaxed && (b == ' ' || b == '\t'):
			c.blank, c.cr = true, false
			p = p[1:]
		default:
			c.cr = false
			c.out = append(c.out, c.ends...)
			c.ends = c.ends[:0]
			if c.blank {
				c.out, c.blank = append(c.out, ' '), false
			}
			n := c.plain(p)
			c.out = append(c.out, p[:n]...)
			p = p[n:]
		}
	}
	c.pass()
	return all, nil
}

// plain is how many bytes stand for themselves; the first one does.
func (c *canonicalBody) plain(p []byte) int {
	for i, b := range p {
		if b == '\n' || b == '\r' || c.relaxed && (b == ' ' || b == '\t') {
			return i
		}
	}
	return len(p)
}

// pass hands on what is ready.
func (c *canonicalBody) pass() {
	c.size += int64(len(c.out))
	out := c.out
	if c.left >= 0 {
		out = out[:min(int64(len(out)), c.left)]
		c.left -= int64(len(out))
	}
	if _, err := c.to.Write(out); c.err == nil {
		c.err = err
	}
	c.out = c.out[:0]
}

// close ends the body.
func (c *canonicalBody) close() error {
	if !c.relaxed {
		for bytes.HasSuffix(c.ends, []byte("\r\n")) {
			c.ends = c.ends[:len(c.ends)-2]
		}
		c.out = append(c.out, c.ends...)
	}
	if !c.relaxed || c.size > 0 {
		c.out = append(c.out, "\r\n"...)
	}
	c.pass()
	return c.err
}

// bodyHash is the SHA-256 of a body, or of so many bytes of its canonical form
// as most says if that is not below zero; size is that of all of it.
func bodyHash(ctx context.Context, body *message.Body, form string, most int64) (sum []byte, size int64, err error) {
	h := sha256.New()
	c := &canonicalBody{to: h, relaxed: form == relaxed, left: most}
	if err := newFeed(ctx, "", body, form).writeBody(c); err != nil {
		return nil, 0, err
	}
	if err := c.close(); err != nil {
		return nil, 0, err
	}
	return h.Sum(nil), c.size, nil
}
