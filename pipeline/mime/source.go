package mime

import (
	"bytes"
	"context"
	"io"
	"sort"
)

// windowSize is how many bytes of a source are looked at at once. A smaller
// source is held in memory whole.
const windowSize = 64 << 10

// delimiterText is how much of a line is kept that may be a delimiter.
const delimiterText = 300

// source is bytes that can be read at offsets: the message itself, a decoded
// container inside, or a view of one.
type source struct {
	id   int
	at   io.ReaderAt
	size int64
	// reading is how a reader comes to see these bytes at all.
	reading Reading
	small   []byte // the whole, if it is small
	window  []byte // scratch

	lines  []delimiter // lines that begin like a delimiter, by offset
	text   []byte      // what they say
	marks  []mark      // lines where a file in a text begins, by offset
	heads  []int64     // where paragraphs begin that hold a Content field, by offset
	bareCR bool
	// decoded says that it is not the message itself.
	decoded bool
}

// delimiter is a line that begins with "--".
type delimiter struct {
	start, next int64 // of the line, and of the next one
	text        int   // offset in source.text
	length      int   // of its text there
	field       bool  // a Content field follows
}

// markKind is what begins with a mark.
type markKind uint8

const (
	uuMark markKind = iota
	uuBase64Mark
	yEncMark
	binHexMark
)

// mark is a line in a text with which an encoded file begins, behind quoted bytes
// of quotation marks.
type mark struct {
	start  int64
	kind   markKind
	quoted int
	name   string
}

func indexLF(b []byte) int { return bytes.IndexByte(b, '\n') }

// view is the n bytes at off, which are valid until the next call.
func (s *source) view(off, n int64) ([]byte, error) {
	if s.small != nil {
		return s.small[off : off+n], nil
	}
	if int64(cap(s.window)) < n {
		s.window = make([]byte, n)
	}
	b := s.window[:n]
	return b, readFull(s.at, b, off)
}

func readFull(at io.ReaderAt, b []byte, off int64) error {
	n, err := at.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// section reads the bytes from start to end.
func (s *source) section(start, end int64) io.Reader {
	if s.small != nil {
		return bytes.NewReader(s.small[start:end])
	}
	return io.NewSectionReader(s.at, start, end-start)
}

// eachPiece calls f with the bytes from start to end, piece by piece.
func (s *source) eachPiece(ctx context.Context, start, end int64, f func([]byte)) error {
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := s.view(start, min(windowSize, end-start))
		if err != nil {
			return err
		}
		f(b)
		start += int64(len(b))
	}
	return nil
}

// text of a delimiter's line.
func (s *source) lineText(d delimiter) []byte { return s.text[d.text : d.text+d.length] }

// first is the index of the first delimiter line at or behind an offset.
func (s *source) first(off int64) int {
	return sort.Search(len(s.lines), func(i int) bool { return s.lines[i].start >= off })
}

// marked are the marks from start to end.
func (s *source) marked(start, end int64) []mark {
	at := func(off int64) int {
		return sort.Search(len(s.marks), func(i int) bool { return s.marks[i].start >= off })
	}
	return s.marks[at(start):max(at(start), at(end))]
}

// lineScanner gives the lines of a reader one by one.
type lineScanner struct {
	r   io.Reader
	buf []byte
}

// each calls f with each line, its offset and its length with the line end. Of a
// line longer than the buffer only the beginning is given. bareCR tells whether a
// CR stands anywhere that no LF follows.
func (l *lineScanner) each(ctx context.Context, f func(off, length int64, line []byte)) (bareCR bool, err error) {
	var off, skipped int64 // of buf; of a long line whose beginning was given
	var long []byte
	held, lastCR, lastPiece := 0, false, false
	for !lastPiece {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := io.ReadFull(l.r, l.buf[held:])
		if lastPiece = err == io.EOF || err == io.ErrUnexpectedEOF; err != nil && !lastPiece {
			return false, err
		}
		if !bareCR {
			bareCR, lastCR = hasBareCR(l.buf[held:held+n], lastCR)
		}
		b := l.buf[:held+n]
		i := 0
		for {
			j := indexLF(b[i:])
			if j < 0 {
				break
			}
			if long != nil {
				f(off-skipped, skipped+int64(j)+1, long)
				long, skipped = nil, 0
			} else {
				f(off+int64(i), int64(j)+1, b[i:i+j])
			}
			i += j + 1
		}
		rest := b[i:]
		switch {
		case lastPiece && long != nil:
			f(off-skipped, skipped+int64(len(rest)), long)
		case lastPiece && len(rest) > 0:
			f(off+int64(i), int64(len(rest)), rest)
		case long != nil:
			skipped += int64(len(rest))
			i += len(rest)
		case len(rest) == len(l.buf):
			long = append([]byte(nil), rest[:delimiterText]...)
			skipped = int64(len(rest))
			i += len(rest)
		}
		off += int64(i)
		held = copy(l.buf, b[i:])
	}
	return bareCR || lastCR, nil
}

// hasBareCR reports whether b holds a CR that no LF follows; a CR at its end is
// open, and one before it that was is decided now.
func hasBareCR(b []byte, open bool) (bare, stillOpen bool) {
	if len(b) == 0 {
		return false, open
	}
	if open && b[0] != '\n' {
		return true, false
	}
	for i := 0; ; {
		j := bytes.IndexByte(b[i:], '\r')
		if j < 0 {
			return false, false
		}
		i += j + 1
		if i == len(b) {
			return false, true
		}
		if b[i] != '\n' {
			return true, false
		}
	}
}

// scan indexes the source. It reports whether there were more delimiters or
// marks than it may keep.
func (s *source) scan(ctx context.Context, buf []byte, maxLines, maxMarks int) (tooMany, tooManyMarks bool, err error) {
	c := countReader{r: s.section(0, s.size)}
	tooMany, tooManyMarks, err = s.scanReader(ctx, &c, buf, maxLines, maxMarks)
	if err == nil && c.n < s.size {
		err = io.ErrUnexpectedEOF
	}
	return tooMany, tooManyMarks, err
}

// headed are the paragraphs from start to end that hold a Content field.
func (s *source) headed(start, end int64) []int64 {
	at := func(off int64) int {
		return sort.Search(len(s.heads), func(i int) bool { return s.heads[i] >= off })
	}
	return s.heads[at(start):max(at(start), at(end))]
}

// countReader counts what is read.
type countReader struct {
	r io.Reader
	n int64
}

// Read reads as io.Reader does.
func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// scanReader is scan of what r reads.
func (s *source) scanReader(ctx context.Context, r io.Reader, buf []byte, maxLines, maxMarks int) (tooMany, tooManyMarks bool, err error) {
	l := lineScanner{r: r, buf: buf}
	follows := false                  // the line before was kept as a delimiter
	head, paragraph := true, int64(0) // the paragraph may be a header, and is not noted yet; where it begins
	s.bareCR, err = l.each(ctx, func(off, length int64, line []byte) {
		if len(line) > 8 && (line[0]|0x20) == 'c' && foldPrefix(line, "content-") {
			if follows {
				s.lines[len(s.lines)-1].field = true
			} else if head && bytes.IndexByte(line, ':') > 0 && len(s.heads) < maxLines {
				s.heads = append(s.heads, paragraph)
			}
			head = false
		}
		follows = false
		if len(line) < 2 {
			if len(trimCR(line)) == 0 {
				head, paragraph = true, off+length
			}
			return
		}
		switch c := line[0]; {
		case c == '-':
			if line[1] != '-' {
				return
			}
			if len(s.lines) == maxLines {
				tooMany = true
				return
			}
			text := trimCR(line[:min(len(line), delimiterText)])
			s.lines = append(s.lines, delimiter{off, off + length, len(s.text), len(text), false})
			s.text = append(s.text, text...)
			follows, head = true, false
		case c == 'b', c == '=', c == '(', quoteMark(c):
			if m, ok := findMark(line); ok {
				if len(s.marks) == maxMarks {
					tooManyMarks = true
					return
				}
				m.start = off
				s.marks = append(s.marks, m)
			}
		}
	})
	return tooMany, tooManyMarks, err
}

// foldPrefix reports whether b begins with prefix, which is in lower case.
func foldPrefix(b []byte, prefix string) bool {
	if len(b) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		if lower(b[i]) != prefix[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// maxQuoted bounds the marks of a quotation before a line.
const maxQuoted = 64

// findMark looks for the beginning of an encoded file in a line.
func findMark(line []byte) (m mark, ok bool) {
	i := 0
	for i < len(line) && i < maxQuoted && quoteMark(line[i]) {
		i++
	}
	m.quoted = i
	line = trimCR(line[i:])
	switch {
	case bytes.HasPrefix(line, []byte("begin")):
		return m.begin(line[len("begin"):])
	case bytes.HasPrefix(line, []byte("=ybegin ")):
		m.kind = yEncMark
		if k := bytes.Index(line, []byte(" name=")); k >= 0 {
			m.name = string(line[k+len(" name="):])
		}
		return m, true
	case bytes.HasPrefix(line, []byte("(This file")) && bytes.Contains(line, []byte("BinHex")):
		m.kind = binHexMark
		return m, true
	}
	return m, false
}

// begin reads what follows the word in "begin 644 name" or "begin-base64 644 name".
func (m mark) begin(rest []byte) (mark, bool) {
	m.kind = uuMark
	if after, ok := bytes.CutPrefix(rest, []byte("-base64")); ok {
		m.kind, rest = uuBase64Mark, after
	}
	mode := bytes.TrimLeft(rest, " \t")
	if len(mode) == len(rest) {
		return m, false
	}
	n := 0
	for n < len(mode) && '0' <= mode[n] && mode[n] <= '7' {
		n++
	}
	if n < 3 || n > 6 || n == len(mode) || mode[n] != ' ' && mode[n] != '\t' {
		return m, false
	}
	m.name = string(bytes.TrimLeft(mode[n:], " \t"))
	return m, true
}

// crView reads a source with each bare CR as an LF.
type crView struct{ s *source }

// ReadAt reads as io.ReaderAt does.
func (v crView) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.s.at.ReadAt(p, off)
	for i := 0; i < n; {
		j := bytes.IndexByte(p[i:n], '\r')
		if j < 0 {
			break
		}
		i += j + 1
		var next [1]byte
		if i < n {
			next[0] = p[i]
		} else if _, e := v.s.at.ReadAt(next[:], off+int64(i)); e != nil && e != io.EOF {
			return i - 1, e
		}
		if next[0] != '\n' {
			p[i-1] = '\n'
		}
	}
	return n, err
}
