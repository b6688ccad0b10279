package smtp

import (
	"bytes"
	"errors"
	"io"
)

// The errors of lines.
var (
	// ErrLineTooLong: the line goes on beyond the bound; Reader.SkipLine passes
	// over the rest.
	ErrLineTooLong = errors.New("line too long")
	// ErrBare: a line or a message holds a CR without LF, an LF without CR, or a
	// NUL (RFC 5321 §2.3.8).
	ErrBare = errors.New("bare CR, bare LF or NUL")
)

// Bounds of lines in bytes, without their ends.
const (
	// MaxCommand is the bound for a command line that servers should use: twice
	// what RFC 5321 §4.5.3.1.4 and the extensions ask for.
	MaxCommand = 2048
	minBuffer  = 512
)

// Reader reads lines, replies and messages from a connection. It is for one
// goroutine.
type Reader struct {
	src  io.Reader
	buf  []byte
	r, w int
	err  error
}

// NewReader reads src through a buffer of size bytes, at least 512. The buffer
// grows only for a line that does not fit, up to the line's bound.
func NewReader(src io.Reader, size int) *Reader {
	return &Reader{src: src, buf: make([]byte, max(size, minBuffer))}
}

// Reset reads from src from now on and forgets what is buffered, which is what
// STARTTLS asks for (RFC 3207 §4.2): what came before the handshake was never
// protected.
func (r *Reader) Reset(src io.Reader) { r.src, r.r, r.w, r.err = src, 0, 0, nil }

// Buffered is how many bytes have come and were not read yet: more than none
// means that the peer pipelines, or talks out of turn.
func (r *Reader) Buffered() int { return r.w - r.r }

// Peek waits until something has come, and returns it without reading it. It is
// valid until the next call.
func (r *Reader) Peek() ([]byte, error) {
	if r.r == r.w {
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	return r.buf[r.r:r.w], nil
}

// Exchange reads through buf from now on and returns the buffer it had, so that
// a server can lend a session a large one for as long as a message comes. What is
// buffered goes along; if buf is too small for it, nothing changes and ok is
// false. The new buffer must have at least 512 bytes.
func (r *Reader) Exchange(buf []byte) (old []byte, ok bool) {
	if len(buf) < minBuffer || len(buf) < r.Buffered() {
		return nil, false
	}
	old = r.buf
	r.w = copy(buf, old[r.r:r.w])
	r.buf, r.r = buf, 0
	return old, true
}

// fill reads once, and makes room first if the buffer is full.
func (r *Reader) fill() error {
	if r.err != nil {
		return r.err
	}
	if r.r == r.w {
		r.r, r.w = 0, 0
	} else if r.w == len(r.buf) {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	for range 100 {
		n, err := r.src.Read(r.buf[r.w:])
		r.w += n
		r.err = err
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	r.err = io.ErrNoProgress
	return r.err
}

// room makes a full buffer larger, up to limit.
func (r *Reader) room(limit int) {
	if r.r == 0 && r.w == len(r.buf) && len(r.buf) < limit {
		r.buf = append(r.buf[:r.w], make([]byte, min(2*len(r.buf), limit)-r.w)...)
	}
}

// Line reads one line of a client and returns it without its CR LF. Nothing
// but CR LF ends it. A line that holds a bare CR, a bare LF or a NUL is returned
// with ErrBare; one of more than bound bytes is ErrLineTooLong, and the rest of
// it stays to be skipped. The line is valid until the next call. An end of file
// within a line is io.ErrUnexpectedEOF.
func (r *Reader) Line(bound int) ([]byte, error) {
	seen := 0
	for {
		b := r.buf[r.r:r.w]
		for {
			i := bytes.IndexByte(b[seen:], '\n')
			if i < 0 {
				seen = len(b)
				break
			}
			seen += i + 1
			if end := seen - 2; end >= 0 && b[end] == '\r' {
				return r.line(b[:end], seen, bound)
			}
		}
		if seen > bound+1 {
			return nil, ErrLineTooLong
		}
		r.room(bound + 2)
		if err := r.fill(); err != nil {
			return nil, r.ended(err)
		}
	}
}

func (r *Reader) line(content []byte, length, bound int) ([]byte, error) {
	if len(content) > bound {
		return nil, ErrLineTooLong
	}
	r.r += length
	if bytes.IndexByte(content, '\n') >= 0 || bytes.IndexByte(content, '\r') >= 0 || bytes.IndexByte(content, 0) >= 0 {
		return content, ErrBare
	}
	return content, nil
}

func (r *Reader) ended(err error) error {
	if errors.Is(err, io.EOF) && r.Buffered() > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

// SkipLine passes over the rest of a line that was too long, up to bound bytes;
// if it does not end by then, ErrLineTooLong. It needs no memory.
func (r *Reader) SkipLine(bound int) error {
	var last byte
	for {
		b := r.buf[r.r:r.w]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			cr := i > 0 && b[i-1] == '\r' || i == 0 && last == '\r'
			last = '\n'
			r.r += i + 1
			if bound -= i + 1; cr {
				return nil
			}
		} else {
			if len(b) > 0 {
				last = b[len(b)-1]
			}
			bound -= len(b)
			r.r = r.w
			if err := r.fill(); err != nil {
				return err
			}
		}
		if bound < 0 {
			return ErrLineTooLong
		}
	}
}

// capped reads one line of a server, which an LF alone may end. It keeps the
// first keep bytes, which must fit the buffer, and takes the line's length from
// budget; a budget that is used up is errReplyTooLong.
func (r *Reader) capped(keep int, budget *int) ([]byte, error) {
	seen := 0
	for {
		b := r.buf[r.r:r.w]
		if i := bytes.IndexByte(b[seen:], '\n'); i >= 0 {
			n := seen + i
			if *budget -= n + 1; *budget < 0 {
				return nil, errReplyTooLong
			}
			r.r += n + 1
			return bytes.TrimRight(b[:min(n, keep)], "\r"), nil
		}
		if seen = len(b); seen >= keep {
			break
		}
		r.room(keep)
		if err := r.fill(); err != nil {
			return nil, r.ended(err)
		}
	}
	head := append([]byte(nil), r.buf[r.r:r.r+keep]...)
	for {
		b := r.buf[r.r:r.w]
		i := bytes.IndexByte(b, '\n')
		n := i + 1
		if i < 0 {
			n = len(b)
		}
		r.r += n
		if *budget -= n; *budget < 0 {
			return nil, errReplyTooLong
		}
		if i >= 0 {
			return head, nil
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}
