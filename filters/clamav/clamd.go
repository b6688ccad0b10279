package clamav

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
)

const (
	// chunk is the unit in bytes in which a stream goes to clamd.
	chunk = 64 << 10
	// lastWords bounds how long clamd's reason is waited for when it stopped
	// listening.
	lastWords = time.Second
)

// frames are buffers for a command, a length, a chunk and the length that ends
// the stream.
var frames = sync.Pool{New: func() any { b := make([]byte, 0, chunk+64); return &b }}

const inStream = "zINSTREAM\x00"

// errEarly means that clamd answered a stream before its end.
var errEarly = errors.New("clamd answers before it has all")

// conn is a connection to clamd for one command.
type conn struct{ *servers.Conn }

// scan has clamd scan size bytes of body: the name of what it found, or "".
func scan(ctx context.Context, s *servers.Server, body io.ReaderAt, size int64) (string, error) {
	dialed, err := s.Dial(ctx)
	if err != nil {
		return "", err
	}
	c := conn{dialed}
	defer c.Close()
	if err = c.stream(body, size); err == nil {
		return c.result()
	}
	if servers.IsOurs(err) || ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return "", err
	}
	// clamd stops listening when a stream is too long for it, and says so.
	if c.SetReadDeadline(time.Now().Add(lastWords)) == nil {
		if _, why := c.result(); servers.IsRefused(why) {
			return "", why
		}
	}
	return "", err
}

// stream sends the command and the bytes, each chunk in one piece with what
// stands around it.
func (c conn) stream(body io.ReaderAt, size int64) error {
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
			return servers.Ours(fmt.Errorf("reading what is to be scanned: %w", err))
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
	if c.Early() {
		return errEarly
	}
	_, err := c.Write(append(b, 0, 0, 0, 0))
	return err
}

// rest is all that clamd sends until it closes, a byte more than an answer may
// be at most; where there is an error, what came before it.
func (c conn) rest() ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(c, maxAnswer+1))
	if err != nil && len(b) > 0 {
		err = fmt.Errorf("after %q: %w", reply.Clean(string(b), maxName), err)
	}
	return b, err
}

func (c conn) result() (string, error) {
	b, err := c.rest()
	if err == nil {
		return parseAnswer(b)
	}
	if _, why := parseAnswer(b); servers.IsRefused(why) {
		return "", why // it says why it resets the connection
	}
	return "", err
}

// ask does a command without an argument: its answer, without the NUL.
func ask(ctx context.Context, s *servers.Server, command string) (string, error) {
	dialed, err := s.Dial(ctx)
	if err != nil {
		return "", err
	}
	c := conn{dialed}
	defer c.Close()
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

// ping asks whether a clamd works, and which one it is.
func ping(ctx context.Context, s *servers.Server) (version string, err error) {
	answer, err := ask(ctx, s, "PING")
	if err != nil {
		return "", err
	}
	if answer != "PONG" {
		return "", fmt.Errorf("clamd answers %q to PING", reply.Clean(answer, maxName))
	}
	if version, err = ask(ctx, s, "VERSION"); err != nil {
		return "unknown", nil //nolint:nilerr // it works all the same
	}
	return reply.Clean(version, maxName), nil
}
