package message

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"unicode/utf8"
)

// tally is what the first reading finds out about a leaf.
type tally struct {
	size    int64 // with CR LF
	high    int64 // bytes above 127
	escapes int64 // bytes that quoted-printable writes as three
	invalid bool  // it is not UTF-8
	rest    []byte
}

// measure looks at content the first time.
func (c *converter) measure(p []byte) {
	c.cr = c.cr || bytes.IndexByte(p, '\r') >= 0
	switch c.place {
	case inText, inOpaque:
		c.see(p)
	case inLeaf:
		c.tally.add(p)
	}
}

func (t *tally) add(p []byte) {
	t.size += int64(len(p))
	if isASCII(p) && len(t.rest) == 0 {
		for _, b := range p {
			if !literal[b] {
				t.escapes++
			}
		}
		return
	}
	for _, b := range p {
		if b >= 0x80 {
			t.high++
		}
		if !literal[b] {
			t.escapes++
		}
	}
	t.text(p)
}

// text looks whether it is UTF-8; a rune may lie across two pieces of a line.
func (t *tally) text(p []byte) {
	if t.invalid {
		return
	}
	for len(t.rest) > 0 && len(p) > 0 && !utf8.FullRune(t.rest) {
		t.rest, p = append(t.rest, p[0]), p[1:]
	}
	if len(t.rest) > 0 && utf8.FullRune(t.rest) {
		t.invalid = !utf8.Valid(t.rest)
		t.rest = t.rest[:0]
	}
	whole := len(p)
	for n := 1; n < utf8.UTFMax && n <= len(p); n++ {
		if b := p[len(p)-n]; utf8.RuneStart(b) {
			if !utf8.FullRune(p[len(p)-n:]) {
				whole = len(p) - n
			}
			break
		}
	}
	t.invalid = t.invalid || !utf8.Valid(p[:whole])
	t.rest = append(t.rest, p[whole:]...)
}

// decide says how the leaf that ends here is to be encoded: in the way that makes it
// shorter, quoted-printable if in doubt, since people can read that.
func (c *converter) decide() {
	t := &c.tally
	isUTF8 := !t.invalid && len(t.rest) == 0
	switch {
	case t.high == 0:
	case len(c.plan) == maxConverted:
		c.leftover = true
	case 2*t.escapes > t.size*37/100+3:
		c.plan[c.leaf] = planned{base64Lines, isUTF8}
	default:
		c.plan[c.leaf] = planned{quoted, isUTF8}
	}
	c.tally = tally{rest: t.rest[:0]}
}

const hexDigits = "0123456789ABCDEF"

// literal are the bytes that stand for themselves in quoted-printable (RFC 2045
// §6.7), blanks included, though not at the end of a line.
var literal = func() (is [256]bool) {
	for b := ' '; b <= '~'; b++ {
		is[b] = b != '='
	}
	is['\t'] = true
	return is
}()

// quotedWriter writes quoted-printable, with lines of at most 76 bytes.
type quotedWriter struct {
	w    *bufio.Writer
	col  int
	soft bool // the line goes on with one that began before
	hold byte // a blank that may be the line's last; 0 for none
}

func (q *quotedWriter) begin() { q.col, q.soft, q.hold = 0, false, 0 }

// write writes a part of a line.
func (q *quotedWriter) write(p []byte) {
	for len(p) > 0 {
		if q.hold != 0 {
			q.plain(q.hold)
			q.hold = 0
		}
		n := 0
		for n < len(p) && literal[p[n]] && q.col+n < 75 {
			n++
		}
		if n > 0 && (p[n-1] == ' ' || p[n-1] == '\t') {
			n--
		}
		// A line that we begin must not look like a boundary.
		if n > 0 && !(q.col == 0 && q.soft && p[0] == '-') {
			q.w.Write(p[:n]) //nolint:errcheck // the error stays with the writer
			q.col += n
			p = p[n:]
			continue
		}
		switch b := p[0]; {
		case b == ' ' || b == '\t':
			q.hold = b
		case literal[b]:
			q.plain(b)
		default:
			q.escape(b)
		}
		p = p[1:]
	}
}

// plain writes a byte that stands for itself.
func (q *quotedWriter) plain(b byte) {
	q.room(1)
	if q.col == 0 && q.soft && b == '-' {
		q.escape(b)
		return
	}
	q.w.WriteByte(b) //nolint:errcheck // the error stays with the writer
	q.col++
}

func (q *quotedWriter) escape(b byte) {
	q.room(3)
	q.w.Write(append(q.w.AvailableBuffer(), '=', hexDigits[b>>4], hexDigits[b&15])) //nolint:errcheck // the error stays with the writer
	q.col += 3
}

// room breaks the line if it has none for n bytes.
func (q *quotedWriter) room(n int) {
	if q.col+n > 75 {
		q.w.WriteString("=\n") //nolint:errcheck // the error stays with the writer
		q.col, q.soft = 0, true
	}
}

func (q *quotedWriter) newline() {
	q.finish()
	q.w.WriteByte('\n') //nolint:errcheck // the error stays with the writer
	q.begin()
}

// finish ends a line, or the leaf.
func (q *quotedWriter) finish() {
	if q.hold != 0 {
		q.escape(q.hold)
		q.hold = 0
	}
}

// base64Writer writes base64 in lines of 76 bytes, without an end after the last.
type base64Writer struct {
	w     *bufio.Writer
	have  [57]byte
	n     int
	lines int
}

func (b *base64Writer) begin() { b.n, b.lines = 0, 0 }

// write writes a part of the leaf.
func (b *base64Writer) write(p []byte) {
	for len(p) > 0 {
		k := copy(b.have[b.n:], p)
		if b.n += k; b.n == len(b.have) {
			b.line()
		}
		p = p[k:]
	}
}

func (b *base64Writer) line() {
	if b.lines++; b.lines > 1 {
		b.w.WriteByte('\n') //nolint:errcheck // the error stays with the writer
	}
	b.w.Write(base64.StdEncoding.AppendEncode(b.w.AvailableBuffer(), b.have[:b.n])) //nolint:errcheck // likewise
	b.n = 0
}

// finish ends the leaf; last is set at the message's end, where no boundary brings
// a line end along.
func (b *base64Writer) finish(last bool) {
	if b.n > 0 {
		b.line()
	}
	if last && b.lines > 0 {
		b.w.WriteByte('\n') //nolint:errcheck // the error stays with the writer
	}
}
