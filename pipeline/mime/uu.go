package mime

import "bytes"

// uuDecoder decodes the lines of a uuencoded or xxencoded file up to "end"; the
// line "begin" may come first. Lines that are no data are skipped.
type uuDecoder struct {
	lineDecoder
	skip  int // how many bytes before each line belong to a quotation
	xx    bool
	whole bool // the length that a line states is not heeded
}

func newUUDecoder(skip int, xx, whole bool) *uuDecoder {
	d := &uuDecoder{skip: skip, xx: xx, whole: whole}
	d.line = d.uuLine
	return d
}

const xxLetters = "+-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func (d *uuDecoder) value(c byte) (v int, ok bool) {
	if d.xx {
		v = bytes.IndexByte([]byte(xxLetters), c)
		return v, v >= 0
	}
	return int(c-' ') & 63, c >= ' ' && c <= '`'
}

func (d *uuDecoder) uuLine(dst, line []byte) []byte {
	line = unquote(line, d.skip)
	if bytes.Equal(bytes.TrimRight(line, " \t"), wordEnd) {
		d.finished = true
		return dst
	}
	if len(line) == 0 || bytes.HasPrefix(line, wordBegin) {
		return dst
	}
	n, ok := d.value(line[0])
	if !ok {
		return dst
	}
	line = line[1:]
	if d.whole {
		n = len(line) / 4 * 3
	}
	// A line that is shorter than it says has lost blanks at its end, or is no
	// data at all.
	if want := (n + 2) / 3 * 4; n == 0 || len(line) < want/2 {
		return dst
	}
	for i := 0; n > 0; i += 4 {
		var g [4]int
		for k := range g {
			if i+k < len(line) {
				g[k], _ = d.value(line[i+k])
				g[k] = max(g[k], 0)
			}
		}
		three := [3]byte{byte(g[0]<<2 | g[1]>>4), byte(g[1]<<4 | g[2]>>2), byte(g[2]<<6 | g[3])}
		dst = append(dst, three[:min(n, 3)]...)
		n -= 3
	}
	return dst
}

var wordBegin, wordEnd = []byte("begin "), []byte("end")

// unquote is the line without the marks of a quotation: skip bytes if the line
// begins with so many marks and blanks, else those that there are.
func unquote(line []byte, skip int) []byte {
	i := 0
	for i < skip && i < len(line) && quoteMark(line[i]) {
		i++
	}
	return line[i:]
}

func quoteMark(c byte) bool { return c == '>' || c == '|' || c == ':' || c == ' ' || c == '\t' }

// unquoteDecoder takes the marks of a quotation off before another decoder.
type unquoteDecoder struct {
	lineDecoder
	inner decoder
}

func newUnquoteDecoder(skip int, first int, stop string, inner decoder) *unquoteDecoder {
	d := &unquoteDecoder{inner: inner}
	d.line = func(dst, line []byte) []byte {
		if first > 0 {
			first--
			return dst
		}
		line = unquote(line, skip)
		if stop != "" && string(bytes.TrimRight(line, " \t")) == stop {
			d.finished = true
			return dst
		}
		dst = inner.decode(dst, line)
		dst = inner.decode(dst, newline)
		d.finished = inner.over()
		return dst
	}
	return d
}

func (d *unquoteDecoder) end(dst []byte) []byte {
	return d.inner.end(d.lineDecoder.end(dst))
}

// yEncDecoder decodes the lines between =ybegin and =yend.
type yEncDecoder struct{ lineDecoder }

func newYEncDecoder(skip int) *yEncDecoder {
	d := &yEncDecoder{}
	d.line = func(dst, line []byte) []byte {
		line = unquote(line, skip)
		if bytes.HasPrefix(line, []byte("=y")) {
			d.finished = bytes.HasPrefix(line, []byte("=yend"))
			return dst
		}
		if bytes.HasPrefix(line, []byte("..")) {
			line = line[1:]
		}
		for i := 0; i < len(line); i++ {
			c := line[i]
			if c == '=' && i+1 < len(line) {
				i++
				c = line[i] - 64
			}
			dst = append(dst, c-42)
		}
		return dst
	}
	return d
}
