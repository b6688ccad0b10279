package auth

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Bounds of the protocol: a line in bytes, the lines of a handshake, and the
// time for writing a request.
const (
	maxDovecotLine      = 16 << 10
	maxDovecotHandshake = 200
	dovecotWrite        = 10 * time.Second
)

// errLost is the end of a connection before an answer came.
var errLost = errors.New("the connection was lost")

// link is a connection to Dovecot, and the requests that are under way on it.
type link struct {
	conn  net.Conn
	in    *bufio.Reader
	log   *slog.Logger
	done  chan struct{} // closed when nothing more is read
	users int           // guarded by the Dovecot's mutex

	mu      sync.Mutex // guards what follows, and writing
	ended   error
	last    uint32
	heard   uint64 // answers so far
	waiting map[uint32]chan dovecotReply
}

// shake shakes hands on a new connection. The server must speak version 1 and
// offer PLAIN.
func shake(ctx context.Context, conn net.Conn) (*link, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // reading fails then
	defer stop()
	l := &link{conn: conn, in: bufio.NewReaderSize(conn, maxDovecotLine), done: make(chan struct{}), waiting: map[uint32]chan dovecotReply{}}
	// Dovecot wants each connection to have a number of its own; processes of
	// their own have those of their processes.
	hello := fmt.Sprintf("VERSION\t1\t1\nCPID\t%d\n", 1+rand.Int32N(1<<30))
	if _, err := io.WriteString(conn, hello); err != nil {
		return nil, err
	}
	var h handshake
	for range maxDovecotHandshake {
		line, err := l.line()
		if err != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
		if err := h.read(line); err != nil {
			return nil, err
		}
		if h.done {
			if !stop() {
				return nil, ctx.Err()
			}
			return l, nil
		}
	}
	return nil, fmt.Errorf("more than %d lines", maxDovecotHandshake)
}

// line reads a line without its end; it is good until the next one is read.
func (l *link) line() (string, error) {
	b, err := l.in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", fmt.Errorf("a line has more than %d bytes", maxDovecotLine)
	case err != nil:
		return "", err
	}
	return string(b[:len(b)-1]), nil
}

// err is why nothing more can be asked.
func (l *link) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// ask sends a request and waits for its answer until ctx ends. The error is
// errLost if the connection was lost.
func (l *link) ask(ctx context.Context, request string) (dovecotReply, error) {
	answered := make(chan dovecotReply, 1)
	id, heard, err := l.send(request, answered)
	if err != nil {
		return dovecotReply{}, err
	}
	select {
	case r, ok := <-answered:
		if !ok {
			return r, errLost
		}
		return r, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	delete(l.waiting, id)
	silent := l.heard == heard
	l.mu.Unlock()
	if silent && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// Nobody was answered in all that time: the next one tries anew.
		l.end(errors.New("it does not answer"))
	}
	return dovecotReply{}, fmt.Errorf("no answer: %w", ctx.Err())
}

func (l *link) send(request string, answered chan dovecotReply) (id uint32, heard uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended != nil {
		return 0, 0, errLost
	}
	for l.last++; l.last == 0 || l.waiting[l.last] != nil; {
		l.last++
	}
	err = l.conn.SetWriteDeadline(time.Now().Add(dovecotWrite))
	if err == nil {
		_, err = fmt.Fprintf(l.conn, "AUTH\t%d\t%s\n", l.last, request)
	}
	if err != nil {
		l.conn.Close() // a part may have been written; the reader tells the others
		return 0, 0, errLost
	}
	l.waiting[l.last] = answered
	return l.last, l.heard, nil
}

// listen hands out answers until the connection ends.
func (l *link) listen() {
	defer close(l.done)
	for {
		line, err := l.line()
		var r dovecotReply
		if err == nil {
			r, err = parseDovecotReply(line)
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("dovecot closed it")
		}
		if err != nil {
			l.end(err)
			return
		}
		if !r.known() {
			continue
		}
		l.mu.Lock()
		l.heard++
		answered := l.waiting[r.id]
		delete(l.waiting, r.id)
		l.mu.Unlock()
		if answered != nil {
			answered <- r
		}
	}
}

// end closes the connection and tells those who wait. Only the first reason
// counts.
func (l *link) end(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn.Close()
	if l.ended != nil {
		return
	}
	l.ended = why
	if !errors.Is(why, errLost) {
		l.log.Warn("the connection to dovecot has ended, the next login makes another", "error", why, "under_way", len(l.waiting))
	}
	for id, answered := range l.waiting {
		close(answered)
		delete(l.waiting, id)
	}
}
