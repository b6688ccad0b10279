package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/postern-mta/postern/pipeline/reply"
)

// DotWriter writes a message as DATA carries it (RFC 5321 §4.5.2): every line
// ends in CR LF, a line that begins with a dot gets another one, and the dot
// that ends the message is written by Close alone. A Client uses it for chunks,
// too, which know no dots.
//
// It takes lines that end in LF or CR LF. A bare CR becomes a line end and a NUL
// is left out, as message.Repair has it, so that neither reaches the wire
// whatever the message holds; a last line without an end gets one.
type DotWriter struct {
	w        *bufio.Writer
	within   bool // a line was begun
	cr       bool // the last byte was a CR
	plain    bool // a chunk: no dots
	room     int64
	repaired int64
	read     int64
}

// chunk makes it write a last chunk of exactly size bytes with its command before
// it: a byte more would be a command, so it fails with ErrChunking before that,
// and so does Close if there were fewer.
func (d *DotWriter) chunk(size int64) {
	d.plain, d.room = true, size
	d.w.Write(AppendBDAT(d.w.AvailableBuffer(), size, true)) //nolint:errcheck // an error stays with the writer
}

// text and end write a part of a line and its end.
func (d *DotWriter) text(p []byte) error {
	if d.room -= int64(len(p)); d.plain && d.room < 0 {
		return ErrChunking
	}
	_, err := d.w.Write(p)
	return err
}

func (d *DotWriter) end() error {
	if d.room -= 2; d.plain && d.room < 0 {
		return ErrChunking
	}
	_, err := d.w.WriteString("\r\n")
	return err
}

// NewDotWriter writes to w, which it does not flush.
func NewDotWriter(w *bufio.Writer) *DotWriter { return &DotWriter{w: w} }

// Written is how many bytes the message had, as they were given.
func (d *DotWriter) Written() int64 { return d.read }

// Repaired is how many bare CRs and NULs there were.
func (d *DotWriter) Repaired() int64 { return d.repaired }

// Write writes a part of the message. Errors are those of the writer below, and
// final.
func (d *DotWriter) Write(p []byte) (int, error) {
	whole := len(p)
	clean := bytes.IndexByte(p, '\r') < 0 && bytes.IndexByte(p, 0) < 0
	for len(p) > 0 {
		n, err := d.piece(p, clean)
		if err != nil {
			return whole - len(p), err
		}
		p = p[n:]
		d.read += int64(n)
	}
	return whole, nil
}

// piece writes up to and with the next line end or odd byte.
func (d *DotWriter) piece(p []byte, clean bool) (int, error) {
	if d.cr {
		d.cr, d.within = false, false
		if err := d.end(); err != nil {
			return 0, err
		}
		if p[0] == '\n' {
			return 1, nil
		}
		d.repaired++
		return 0, nil
	}
	var i int
	if clean {
		i = bytes.IndexByte(p, '\n')
	} else {
		i = bytes.IndexAny(p, "\n\r\x00")
	}
	text := p
	if i >= 0 {
		text = p[:i]
	}
	if len(text) > 0 {
		if !d.within && text[0] == '.' && !d.plain {
			if err := d.w.WriteByte('.'); err != nil {
				return 0, err
			}
		}
		d.within = true
		if err := d.text(text); err != nil {
			return 0, err
		}
	}
	if i < 0 {
		return len(p), nil
	}
	switch p[i] {
	case '\r':
		d.cr = true
	case 0:
		d.repaired++
	default:
		d.within = false
		if err := d.end(); err != nil {
			return 0, err
		}
	}
	return i + 1, nil
}

// Close ends the last line and writes the final dot, but for a chunk. Nothing else does: a
// message that failed half-way is not closed.
func (d *DotWriter) Close() error {
	if d.cr || d.within {
		if err := d.end(); err != nil {
			return err
		}
		if d.cr {
			d.repaired++
		}
		d.cr, d.within = false, false
	}
	if d.plain {
		if d.room != 0 {
			return ErrChunking
		}
		return nil
	}
	_, err := d.w.WriteString(".\r\n")
	return err
}

// decoder turns what comes over the wire into lines that end in LF, and knows
// what is bare. It is fed pieces of any size.
type decoder struct {
	dots  bool // a lone dot ends the message, and others are unstuffed
	state uint8
	bare  bool
}

// The decoder's states: where the next byte stands.
const (
	atStart  uint8 = iota // at the start of a line
	inLine                // within a line
	afterCR               // behind a CR
	afterDot              // behind the dot that begins a line
	afterEnd              // behind a lone dot and CR
)

// decode decodes from src to dst until one of them is used up or the final dot
// was seen.
func (d *decoder) decode(dst, src []byte) (nd, ns int, done bool) {
	for ns < len(src) && nd < len(dst) {
		c := src[ns]
		switch {
		case d.state == afterCR && c == '\n':
			dst[nd], d.state = '\n', atStart
			nd++
			ns++
		case d.state == afterEnd && c == '\n':
			return nd, ns + 1, true
		case d.state == afterCR || d.state == afterEnd: // a bare CR
			dst[nd], d.state, d.bare = '\n', inLine, true
			nd++
		case d.state == afterDot && c == '\r':
			d.state = afterEnd
			ns++
		case d.state == afterDot: // the dot was stuffing
			d.state = inLine
		case d.state == atStart && d.dots && c == '.':
			d.state = afterDot
			ns++
		case c == '\r':
			d.state = afterCR
			ns++
		case c == '\n' || c == 0:
			if d.state, d.bare = inLine, true; c == '\n' {
				dst[nd] = c
				nd++
			}
			ns++
		default:
			n := copy(dst[nd:], plain(src[ns:]))
			d.state = inLine
			nd += n
			ns += n
		}
	}
	return nd, ns, false
}

// plain is what stands before the next CR, LF or NUL.
func plain(b []byte) []byte {
	for _, c := range [...]byte{'\r', '\n', 0} {
		if i := bytes.IndexByte(b, c); i >= 0 {
			b = b[:i]
		}
	}
	return b
}

// finish is the end of a message that no dot ends.
func (d *decoder) finish(dst []byte) int {
	if d.state != afterCR || len(dst) == 0 {
		return 0
	}
	dst[0], d.state, d.bare = '\n', inLine, true
	return 1
}

func (d *decoder) end(repair bool) error {
	if d.bare && !repair {
		return reply.With(reply.BadLines, ErrBare)
	}
	return io.EOF
}

// DotReader reads one message as DATA carries it and gives it with lines that
// end in LF. Only CR LF . CR LF ends it. It always reads on to that end, so that
// no part of a message is ever taken for a command; if there was a bare CR, a
// bare LF or a NUL, the end is then an error with reply.BadLines in place of
// io.EOF, or, if told to repair, they have become line ends and nothing.
type DotReader struct {
	r      *Reader
	d      decoder
	repair bool
	err    error
}

// NewDotReader reads a message from r, which must stand just behind the line of
// DATA.
func NewDotReader(r *Reader, repair bool) *DotReader {
	return &DotReader{r: r, d: decoder{dots: true}, repair: repair}
}

// Bare reports whether a bare CR, a bare LF or a NUL was seen so far.
func (d *DotReader) Bare() bool { return d.d.bare }

// Ended reports whether the final dot was read.
func (d *DotReader) Ended() bool {
	return d.err != nil && (errors.Is(d.err, io.EOF) || errors.Is(d.err, ErrBare))
}

// Read reads on. A connection that ends before the final dot is
// io.ErrUnexpectedEOF.
func (d *DotReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for d.err == nil {
		if d.r.Buffered() == 0 {
			if err := d.r.fill(); err != nil {
				if d.err = err; errors.Is(err, io.EOF) {
					d.err = io.ErrUnexpectedEOF
				}
				break
			}
		}
		nd, ns, done := d.d.decode(p, d.r.buf[d.r.r:d.r.w])
		if d.r.r += ns; done {
			d.err = d.d.end(d.repair)
		}
		if nd > 0 {
			return nd, nil
		}
	}
	return 0, d.err
}

// ChunkReader reads one message as BDAT carries it, over all its chunks, and
// gives it with lines that end in LF. Bare CRs, bare LFs and NULs are what they
// are to a DotReader.
type ChunkReader struct {
	r      *Reader
	d      decoder
	left   int64
	last   bool
	next   func() (size int64, last bool, err error)
	repair bool
	err    error
}

// NewChunkReader reads a message whose first chunk, of size bytes, r stands at.
// When a chunk that is not the last was read, next is called: it answers that
// BDAT, reads the command behind it and returns what it says, or an error if it
// is no BDAT; the error comes back from Read.
func NewChunkReader(r *Reader, size int64, last, repair bool, next func() (size int64, last bool, err error)) *ChunkReader {
	return &ChunkReader{r: r, left: size, last: last, repair: repair, next: next}
}

// Bare reports whether a bare CR, a bare LF or a NUL was seen so far.
func (c *ChunkReader) Bare() bool { return c.d.bare }

// Skip passes over what is left of the chunk that is being read: after an error
// it must not be taken for commands.
func (c *ChunkReader) Skip() error {
	for c.left > 0 {
		if c.r.Buffered() == 0 {
			if err := c.r.fill(); err != nil {
				return err
			}
		}
		n := min(c.left, int64(c.r.Buffered()))
		c.r.r += int(n)
		c.left -= n
	}
	return nil
}

// Read reads on. A connection that ends within a chunk is io.ErrUnexpectedEOF.
func (c *ChunkReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for c.err == nil {
		switch {
		case c.left == 0 && c.last:
			if n := c.d.finish(p); n > 0 {
				return n, nil
			}
			c.err = c.d.end(c.repair)
		case c.left == 0:
			c.left, c.last, c.err = c.next()
		case c.r.Buffered() == 0:
			if err := c.r.fill(); err != nil {
				if c.err = err; errors.Is(err, io.EOF) {
					c.err = io.ErrUnexpectedEOF
				}
			}
		default:
			src := c.r.buf[c.r.r:c.r.w]
			nd, ns, _ := c.d.decode(p, src[:min(int64(len(src)), c.left)])
			c.r.r += ns
			if c.left -= int64(ns); nd > 0 {
				return nd, nil
			}
		}
	}
	return 0, c.err
}
