package mime

import "bytes"

// quotedMode is how a reader of quoted-printable departs from RFC 2045 §6.7.
type quotedMode struct {
	upperOnly  bool // escapes in lower case are none
	keepBlanks bool // blanks at the end of a line stay, and hinder a soft break
	dropBad    bool // what is no escape is dropped; else it stays
}

// quotedDecoder decodes quoted-printable. An escape or blanks at the end of a
// piece wait for the next one.
type quotedDecoder struct {
	mode quotedMode
	held []byte
}

// maxHeldBlanks bounds the blanks that wait for the end of their line.
const maxHeldBlanks = 16 << 10

func (d *quotedDecoder) over() bool { return false }

func (d *quotedDecoder) decode(dst, src []byte) []byte {
	if len(d.held) > 0 {
		// What was held is decided by the bytes up to the next line end or
		// letter: take those alone, so that held stays small.
		i := 0
		for i < len(src) && i < maxHeldBlanks && (src[i] == ' ' || src[i] == '\t' || src[i] == '\r') {
			i++
		}
		i = min(i+3, len(src))
		d.held = append(d.held, src[:i]...)
		joined := d.held
		d.held = nil
		dst = d.run(dst, joined, false)
		src = src[i:]
	}
	if len(src) == 0 {
		return dst
	}
	if len(d.held) > 0 {
		return d.decode(dst, src)
	}
	return d.run(dst, src, false)
}

func (d *quotedDecoder) end(dst []byte) []byte {
	held := d.held
	d.held = nil
	return d.run(dst, held, true)
}

// run decodes b; what cannot be decided before more comes is held, unless last.
func (d *quotedDecoder) run(dst, b []byte, last bool) []byte {
	for i := 0; i < len(b); {
		j := indexQuoted(b[i:])
		dst = append(dst, b[i:i+j]...)
		if i += j; i == len(b) {
			break
		}
		var n int
		if b[i] == '=' {
			dst, n = d.escape(dst, b[i:], last)
		} else {
			dst, n = d.blanks(dst, b[i:], last)
		}
		if n == 0 {
			d.held = append([]byte(nil), b[i:]...)
			break
		}
		i += n
	}
	return dst
}

// indexQuoted is where the next escape is, or blanks that end a line or may end
// one when more comes; len(b) if there is neither.
func indexQuoted(b []byte) int {
	end := bytes.IndexByte(b, '=')
	open := end < 0
	if open {
		end = len(b)
	}
	for i := 0; i < end; {
		k := bytes.IndexByte(b[i:end], '\n')
		if k < 0 {
			if p := beforeBlanks(b[i:]); open && i+p < end {
				return i + p
			}
			break
		}
		if p := beforeBlanks(b[i : i+k]); p < k {
			return i + p
		}
		i += k + 1
	}
	return end
}

// beforeBlanks is where the blanks at the end of a line begin, CRs behind them
// aside; len(line) if there are none.
func beforeBlanks(line []byte) int {
	p := len(trimCR(line))
	end := p
	for p > 0 && (line[p-1] == ' ' || line[p-1] == '\t') {
		p--
	}
	if p == end {
		return len(line)
	}
	return p
}

// escape decodes what begins with '='; n is its length, 0 if more is wanted.
func (d *quotedDecoder) escape(dst, b []byte, last bool) (out []byte, n int) {
	if len(b) >= 3 {
		hi, lo := unhex(b[1], !d.mode.upperOnly), unhex(b[2], !d.mode.upperOnly)
		if hi >= 0 && lo >= 0 {
			return append(dst, byte(hi<<4|lo)), 3
		}
	}
	if n := softBreak(b, d.mode.keepBlanks); n > 0 {
		return dst, n
	}
	if !last && undecided(b) {
		return dst, 0
	}
	if last && len(b) == 1 {
		return dst, 1 // "=" at the very end is a soft break without its line end
	}
	if !d.mode.dropBad {
		dst = append(dst, '=')
	}
	return dst, 1
}

// softBreak is the length of the soft line break at the start of b, 0 if there
// is none.
func softBreak(b []byte, noBlanks bool) int {
	i := 1
	if !noBlanks {
		for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
			i++
		}
	}
	for i < len(b) && b[i] == '\r' {
		i++
	}
	if i < len(b) && b[i] == '\n' {
		return i + 1
	}
	return 0
}

// undecided reports whether b, which begins with '=' or a blank, may become an
// escape or the end of a line when more comes.
func undecided(b []byte) bool {
	if len(b) == 2 && unhex(b[1], true) >= 0 {
		return true
	}
	if len(b) > maxHeldBlanks {
		return false
	}
	for _, c := range b[1:] {
		if c != ' ' && c != '\t' && c != '\r' {
			return false
		}
	}
	return true
}

// blanks decodes blanks that may end a line; n is how many, 0 if more is wanted.
func (d *quotedDecoder) blanks(dst, b []byte, last bool) (out []byte, n int) {
	n = 1
	for n < len(b) && (b[n] == ' ' || b[n] == '\t') {
		n++
	}
	end := n
	for end < len(b) && b[end] == '\r' {
		end++
	}
	switch {
	case end == len(b) && !last && end <= maxHeldBlanks:
		return dst, 0
	case end < len(b) && b[end] == '\n' && !d.mode.keepBlanks, end == len(b) && last && !d.mode.keepBlanks:
		return dst, n
	}
	return append(dst, b[:n]...), n
}

// unhex is the value of a hexadecimal digit, -1 if it is none.
func unhex(c byte, lower bool) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	case lower && 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// quotedLook is what a look at encoded bytes tells of the ways to read them.
type quotedLook struct {
	found Reading
	tail  []byte // of the last piece: what an escape or line end may continue
}

// look takes in the next bytes.
func (l *quotedLook) look(b []byte) {
	if len(l.tail) > 0 {
		edge := append(l.tail, b[:min(len(b), 3)]...)
		l.scan(edge)
	}
	l.scan(b)
	l.tail = append(l.tail[:0:0], b[max(0, len(b)-3):]...)
}

func (l *quotedLook) scan(b []byte) {
	for i := 0; ; i++ {
		j := bytes.IndexByte(b[i:], '=')
		if j < 0 {
			break
		}
		i += j
		if i+2 >= len(b) {
			break
		}
		hi, lo := b[i+1], b[i+2]
		switch {
		case unhex(hi, true) >= 0 && unhex(lo, true) >= 0:
			if hi >= 'a' || lo >= 'a' {
				l.found |= because(QuotedLower)
			}
		case hi == '\n' || hi == '\r' && lo == '\n':
		case softBreak(b[i:], false) > 0:
			l.found |= because(QuotedBlanks)
		default:
			l.found |= because(QuotedBad)
		}
	}
	for rest := b; !l.found.Has(QuotedBlanks); {
		k := bytes.IndexByte(rest, '\n')
		if k < 0 {
			break
		}
		if beforeBlanks(rest[:k]) < k {
			l.found |= because(QuotedBlanks)
		}
		rest = rest[k+1:]
	}
}
