package clamav

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

const (
	// chunk is the unit in bytes in which a stream goes to clamd.
	chunk = 64 << 10
	// dialTime bounds how long a connection may take to come about, lastWords how
	// long clamd's reason is waited for when it stopped listening.
	dialTime  = 3 * time.Second
	lastWords = time.Second
)

// readError is an error of reading what is to be scanned, which is no fault of
// any clamd's.
type readError struct{ error }

// Unwrap is the error itself.
func (e readError) Unwrap() error { return e.error }

// conn is a connection to clamd for one command. Every wait on it ends with the
// context that it was opened under.
type conn struct {
	net.Conn
	ctx  context.Context
	stop func() bool
}

func open(ctx context.Context, network, address string) (*conn, error) {
	d := net.Dialer{Timeout: dialTime}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if at, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(at); err != nil {
			c.Close()
			return nil, err
		}
	}
	return &conn{c, ctx, context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })}, nil //nolint:errcheck // it is closed then
}

func (c *conn) close() {
	c.stop()
	c.Close()
}

// frames are buffers for a command, a length, a chunk and the length that ends
// the stream.
var frames = sync.Pool{New: func() any { b := make([]byte, 0, chunk+64); return &b }}

const inStream = "zINSTREAM\x00"

// errEarly means that clamd answered a stream before its end.
var errEarly = errors.New("clamd answers before it has all")

// scan has clamd scan size bytes of body: the name of what it found, or "". An
// error is a readError, a refusal, or a fault of clamd's or the connection's.
func scan(ctx context.Context, network, address string, body io.ReaderAt, size int64) (string, error) {
	c, err := open(ctx, network, address)
	if err != nil {
		return "", err
	}
	defer c.close()
	if err = c.stream(body, size); err == nil {
		return c.result()
	}
	var mine readError
	if errors.As(err, &mine) || errors.Is(err, errEarly) || ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return "", err
	}
	// clamd stops listening when a stream is too long for it, and says so.
	if c.SetReadDeadline(time.Now().Add(lastWords)) == nil {
		var no refusal
		if _, why := c.result(); errors.As(why, &no) {
			return "", no
		}
	}
	return "", err
}

// stream sends the command and the bytes, each chunk in one piece with what
// stands around it.
func (c *conn) stream(body io.ReaderAt, size int64) error {
	frame := frames.Get().(*[]byte)
	defer frames.Put(frame)
	b := append((*frame)[:0], inStream...)
	for at := int64(0); at < size; {
		n := int(min(chunk, size-at))
		b = binary.BigEndian.AppendUint32(b, uint32(n))
		data := b[len(b) : len(b)+n]
		// A reader may tell io.EOF with its last bytes.
		if got, err := body.ReadAt(data, at); got < n {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return readError{fmt.Errorf("reading what is to be scanned: %w", err)}
		}
		b, at = b[:len(b)+n], at+int64(n)
		if at == size {
			break // the end goes with it
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
		b = b[:0]
	}
	if c.early() {
		return errEarly
	}
	_, err := c.Write(append(b, 0, 0, 0, 0))
	return err
}

// early reports whether clamd has sent something already. It sees what is there
// at this moment: an answer that comes while the last bytes are on their way is
// the same as one behind them.
func (c *conn) early() bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, _ = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return true
	})
	return err == nil && n > 0
}

// rest is all that clamd sends until it closes, a byte more than an answer may
// be at most; where there is an error, what came before it.
func (c *conn) rest() ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(c, maxAnswer+1))
	if err != nil && len(b) > 0 {
		err = fmt.Errorf("after %q: %w", reply.Clean(string(b), maxName), err)
	}
	return b, err
}

func (c *conn) result() (string, error) {
	b, err := c.rest()
	if err == nil {
		return parseAnswer(b)
	}
	var no refusal
	if _, why := parseAnswer(b); errors.As(why, &no) {
		return "", no // it says why it resets the connection
	}
	return "", err
}

// ask does a command without an argument: its answer, without the NUL.
func ask(ctx context.Context, network, address, command string) (string, error) {
	c, err := open(ctx, network, address)
	if err != nil {
		return "", err
	}
	defer c.close()
	if _, err := io.WriteString(c, "z"+command+"\x00"); err != nil {
		return "", err
	}
	b, err := c.rest()
	if err != nil {
		return "", err
	}
	if len(b) == 0 || len(b) > maxAnswer || b[len(b)-1] != 0 {
		return "", fmt.Errorf("clamd answers %q to %s", reply.Clean(string(b), maxName), command)
	}
	return string(b[:len(b)-1]), nil
}
