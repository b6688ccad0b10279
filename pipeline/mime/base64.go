package mime

import "bytes"

// Classes of bytes in base64. Letters of the alphabet and line ends have none.
const (
	padByte   = 1 << iota // '='
	urlByte               // '-' and '_'
	blankByte             // blank and tab
	junkByte
)

// base64Tables are made once for the package and never change: the class of a
// byte, and its value at each of four places, with the top bit for what is not
// in the alphabet.
type base64Tables struct {
	class [256]byte
	place [4][256]uint32
}

const notBase64 = 1 << 31

var base64Standard, base64Either = makeBase64("+/", ""), makeBase64("+/", "-_")

func makeBase64(plain, url string) *base64Tables {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	t := &base64Tables{}
	for i := range 256 {
		t.class[i] = junkByte
		for p := range t.place {
			t.place[p][i] = notBase64
		}
	}
	for _, alphabet := range []string{letters + plain, letters + url} {
		for v := range len(alphabet) {
			c := alphabet[v]
			t.class[c] = 0
			for p := range t.place {
				t.place[p][c] = uint32(v) << (18 - 6*p)
			}
		}
	}
	t.class['\n'], t.class['\r'], t.class['='] = 0, 0, padByte
	t.class[' '], t.class['\t'] = blankByte, blankByte
	if url == "" {
		t.class['-'], t.class['_'] = urlByte, urlByte
	}
	return t
}

// padding is what a base64 reader does at padding that completes a group.
type padding uint8

const (
	padEnds     padding = iota // nothing counts that follows (RFC 2045 §6.8)
	padRestarts                // another encoding begins
	padSkipped                 // it is a byte outside the alphabet like any other
)

// base64Decoder decodes base64. Bytes outside the alphabet are skipped (RFC 2045
// §6.8), unless junkEnds.
type base64Decoder struct {
	tables   *base64Tables
	padding  padding
	junkEnds bool

	acc      uint32
	have     int // letters in acc
	pads     int
	finished bool
}

func (d *base64Decoder) over() bool { return d.finished }

func (d *base64Decoder) decode(dst, src []byte) []byte {
	t := d.tables
	for i := 0; i < len(src) && !d.finished; {
		if d.have == 0 {
			var n int
			dst, n = d.groups(dst, src[i:])
			i += n
			if i >= len(src) {
				break
			}
		}
		c := src[i]
		i++
		v := t.place[3][c]
		switch {
		case v != notBase64:
			d.pads = 0
			d.acc = d.acc<<6 | v
			if d.have++; d.have == 4 {
				dst = append(dst, byte(d.acc>>16), byte(d.acc>>8), byte(d.acc))
				d.acc, d.have = 0, 0
			}
		case c == '=':
			dst = d.pad(dst)
		case d.junkEnds && t.class[c]&^blankByte != 0:
			d.finished = true
		}
	}
	return dst
}

// groups decodes groups of four letters that stand together, over the ends of
// lines; n is how far it came.
func (d *base64Decoder) groups(dst, src []byte) (out []byte, n int) {
	t := d.tables
	i := 0
	for {
		for i+4 <= len(src) {
			v := t.place[0][src[i]] | t.place[1][src[i+1]] | t.place[2][src[i+2]] | t.place[3][src[i+3]]
			if v >= notBase64 {
				break
			}
			dst = append(dst, byte(v>>16), byte(v>>8), byte(v))
			i += 4
		}
		if i < len(src) && (src[i] == '\n' || src[i] == '\r') {
			i++
			continue
		}
		break
	}
	if i > 0 {
		d.pads = 0
	}
	return dst, i
}

func (d *base64Decoder) pad(dst []byte) []byte {
	switch d.padding {
	case padEnds:
		if d.pads++; d.have >= 2 && d.have+d.pads >= 4 {
			d.finished = true
		}
	case padRestarts:
		dst = d.end(dst)
	}
	return dst
}

// end appends the bytes of a group that is not complete.
func (d *base64Decoder) end(dst []byte) []byte {
	switch d.have {
	case 2:
		dst = append(dst, byte(d.acc>>4))
	case 3:
		dst = append(dst, byte(d.acc>>10), byte(d.acc>>2))
	}
	d.acc, d.have = 0, 0
	return dst
}

// base64LineDecoder decodes base64 without the lines that hold junk.
type base64LineDecoder struct {
	lineDecoder
	inner base64Decoder
}

func newBase64LineDecoder() *base64LineDecoder {
	d := &base64LineDecoder{inner: base64Decoder{tables: base64Standard, padding: padRestarts}}
	d.line = func(dst, line []byte) []byte {
		for _, c := range line {
			if base64Standard.class[c]&(junkByte|urlByte) != 0 {
				return dst
			}
		}
		return d.inner.decode(dst, line)
	}
	return d
}

func (d *base64LineDecoder) end(dst []byte) []byte { return d.inner.end(d.lineDecoder.end(dst)) }

// base64Look is what a look at encoded bytes tells of the ways to read them.
type base64Look struct {
	seen    byte  // the classes that occur
	letters int64 // of the alphabet, in either form
	after   bool  // letters follow padding
	ended   bool  // there was padding
	early   bool  // padding where it completes no group
}

// look takes in the next bytes.
func (l *base64Look) look(b []byte) {
	t := base64Standard
	var seen byte
	i := 0
	for ; i+8 <= len(b); i += 8 {
		s := b[i : i+8 : i+8]
		seen |= t.class[s[0]] | t.class[s[1]] | t.class[s[2]] | t.class[s[3]] | t.class[s[4]] | t.class[s[5]] | t.class[s[6]] | t.class[s[7]]
	}
	for ; i < len(b); i++ {
		seen |= t.class[b[i]]
	}
	if seen == 0 && !l.ended {
		l.letters += int64(len(b) - bytes.Count(b, newline))
		if bytes.IndexByte(b, '\r') >= 0 {
			l.letters -= int64(bytes.Count(b, carriage))
		}
		return
	}
	l.slowly(b)
}

var newline, carriage = []byte{'\n'}, []byte{'\r'}

// slowly is look where there is more than letters and line ends.
func (l *base64Look) slowly(b []byte) {
	for _, c := range b {
		class := base64Standard.class[c]
		switch {
		case class == padByte:
			if !l.ended && l.letters%4 < 2 {
				l.early = true
			}
			l.ended = true
		case class == 0 && c != '\n' && c != '\r', class == urlByte:
			l.letters++
			l.after = l.after || l.ended
		}
		l.seen |= class
	}
}

// reading is what of the ways of base64 the encoded form calls for.
func (l *base64Look) reading() Reading {
	var r Reading
	if l.seen&junkByte != 0 {
		r |= because(Base64Junk)
	}
	if l.seen&urlByte != 0 {
		r |= because(Base64URL)
	}
	if l.after || l.early {
		r |= because(Base64Padding)
	}
	if !l.ended && l.letters%4 != 0 {
		r |= because(Base64Cut)
	}
	return r
}
