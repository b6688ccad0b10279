package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// chunk is how much of a message is sent at a time, in bytes.
	chunk = 64 << 10
	// lastWords bounds how long the reason of a server is waited for that stopped
	// listening.
	lastWords = time.Second
)

// ErrEarly means that a server answered before it had all.
var ErrEarly = errors.New("it answers before it has all")

// chunks are buffers for what is sent.
var chunks = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

// Send sends head and then size bytes of body. What body cannot give is Ours.
func (c *Conn) Send(head string, body io.ReaderAt, size int64) error {
	buffer := chunks.Get().(*[]byte)
	defer chunks.Put(buffer)
	b := append((*buffer)[:0], head...)
	for at := int64(0); ; {
		n := int(min(int64(cap(b)-len(b)), size-at))
		data := b[len(b) : len(b)+n]
		// A reader may tell io.EOF with its last bytes.
		if got, err := body.ReadAt(data, at); got < n {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return Ours(fmt.Errorf("reading the message: %w", err))
		}
		b, at = b[:len(b)+n], at+int64(n)
		if at == size && c.Early() {
			return ErrEarly
		}
		if _, err := c.Write(b); err != nil || at == size {
			return err
		}
		b = b[:0]
	}
}

// Rest is all that the server sends until it closes the connection. More than
// limit bytes are an error.
func (c *Conn) Rest(limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(c, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("it answers more than %d bytes", limit)
	}
	return b, err
}

// Reason is why a server would not take what Send could not send: what refusal
// makes of its last words, if that is Refused, else err itself.
func (c *Conn) Reason(ctx context.Context, err error, limit int, refusal func([]byte) error) error {
	if IsOurs(err) || ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if c.SetReadDeadline(time.Now().Add(lastWords)) == nil {
		b, _ := io.ReadAll(io.LimitReader(c, int64(limit)))
		if why := refusal(b); IsRefused(why) {
			return why
		}
	}
	return err
}
