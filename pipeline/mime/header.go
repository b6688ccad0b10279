package mime

import (
	"bytes"
	"strings"
)

// fieldKind is which field of a header, of those that say what a part is.
type fieldKind uint8

const (
	noField fieldKind = iota
	typeField
	encodingField
	dispositionField
	descriptionField
	locationField
)

var fieldKinds = map[string]fieldKind{
	"content-type":              typeField,
	"content-transfer-encoding": encodingField,
	"content-disposition":       dispositionField,
	"content-description":       descriptionField,
	"content-location":          locationField,
}

// field is a Content field; its value has its folds in it.
type field struct {
	kind    fieldKind
	value   string
	reading Reading
}

// start is where a body may begin, counted from the start of its header.
type start struct {
	at      int
	reading Reading
}

// header is what a header may be read as.
type header struct {
	fields  []field
	starts  []start // the strict one first
	found   Reading // what is odd about it
	tooBig  bool    // a field was cut off
	tooMany bool    // fields were left out
}

// headerParser reads the lines of a header once, from the top.
type headerParser struct {
	b         []byte
	maxField  int
	maxFields int
	h         header

	kind       fieldKind // of the field that a next line may continue
	from       int       // where its value begins
	reading    Reading   // of that field
	any        bool      // there was a field, of any kind
	plainStart bool      // the first line is no field: the part has no header
}

// parseHeader reads the header at the start of b. whole says that b is all of the
// part; if it is not and no end is in sight, complete is false.
func parseHeader(b []byte, whole bool, maxField, maxFields int) (h header, complete bool) {
	p := headerParser{b: b, maxField: maxField, maxFields: maxFields}
	for i := 0; i < len(b); {
		end := bytes.IndexByte(b[i:], '\n')
		next := i + end + 1
		if end < 0 {
			if !whole {
				if !p.any && len(b)-i > maxPlainLine && bytes.IndexByte(b[i:], ':') < 0 {
					p.odd(i, b[i:]) // so long a line without a colon is no field
				}
				return p.h, false
			}
			end, next = len(b)-i, len(b)
		}
		line := trimCR(b[i : i+end])
		if len(line) == 0 {
			p.close(i)
			p.end(next)
			return p.h, true
		}
		p.line(i, next, line)
		i = next
	}
	if !whole {
		return p.h, false
	}
	p.close(len(b))
	p.noEnd()
	return p.h, true
}

// maxPlainLine is how long a line without a colon may be before it is taken for
// text although its end has not been seen.
const maxPlainLine = 4 << 10

// end has the header end at a blank line, behind which the body begins.
func (p *headerParser) end(next int) {
	if p.plainStart {
		p.h.starts = append(p.h.starts, start{next, because(HeaderEndsAtGarbage)})
		return
	}
	p.h.starts = append([]start{{next, 0}}, p.h.starts...)
}

// noEnd has no header end: all of it is header, or all is body.
func (p *headerParser) noEnd() {
	if p.plainStart {
		return
	}
	if p.any {
		p.h.found |= because(HeaderMissing)
		p.h.starts = append(p.h.starts, start{0, because(HeaderMissing)})
	}
	p.h.starts = append([]start{{len(p.b), 0}}, p.h.starts...)
}

// maxStarts bounds the places where one body may begin.
const maxStarts = 6

func (p *headerParser) mayStart(at int, why Reason) {
	p.h.found |= because(why)
	if len(p.h.starts) < maxStarts {
		p.h.starts = append(p.h.starts, start{at, because(why)})
	}
}

// line takes the line from i, whose next one is at next.
func (p *headerParser) line(i, next int, line []byte) {
	if line[0] == ' ' || line[0] == '\t' {
		switch {
		case len(bytes.Trim(line, " \t\r")) == 0:
			p.mayStart(next, HeaderEndsAtBlanks)
		case !p.any:
			p.odd(i, line)
		}
		return // it continues the field before
	}
	colon := bytes.IndexByte(line, ':')
	if colon > 0 && plainName(line[:colon]) {
		p.open(i, i+colon+1, line[:colon], 0)
		return
	}
	p.odd(i, line)
}

// plainName reports whether a field name keeps to RFC 5322 §3.6.8, and is not a
// parameter that stands where it should have continued a line.
func plainName(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c >= 127 || c == '=' || c == '"' || c == ';' {
			return false
		}
	}
	return true
}

// odd takes a line that is no field as it should be: a name with blanks or
// control bytes, an mbox separator, or something else.
func (p *headerParser) odd(i int, line []byte) {
	if !p.any && (bytes.HasPrefix(line, []byte("From ")) || bytes.HasPrefix(line, []byte(">From "))) {
		p.kind = noField
		return
	}
	if colon := bytes.IndexByte(line, ':'); colon > 0 && colon < maxOddName {
		name := cleanName(line[:colon])
		_, known := fieldKinds[name]
		if known || plainName(bytes.TrimRight(line[:colon], " \t")) {
			if !p.any {
				p.plain(i)
			} else {
				p.mayStart(i, FieldName)
			}
			p.h.found |= because(FieldName)
			p.open(i, i+colon+1, []byte(name), because(FieldName))
			return
		}
	}
	if !p.any {
		p.plain(i)
		return
	}
	// The line may end the header, be skipped, or belong to the field before it.
	p.mayStart(i, HeaderEndsAtGarbage)
	kind, from, reading := p.kind, p.from, p.reading
	p.close(i)
	p.kind, p.from, p.reading = kind, from, reading|because(HeaderEndsAtGarbage)
}

// plain has the body begin at i, where a header should.
func (p *headerParser) plain(i int) {
	if p.plainStart {
		return
	}
	p.plainStart = true
	p.h.found |= because(HeaderMissing)
	p.h.starts = append([]start{{i, 0}}, p.h.starts...)
}

const maxOddName = 200

// cleanName is a field name as one reads it who overlooks blanks and bytes that
// cannot be seen.
func cleanName(b []byte) string {
	clean := make([]byte, 0, len(b))
	for _, c := range b {
		if c > ' ' && c < 127 {
			clean = append(clean, lower(c))
		}
	}
	return string(clean)
}

// open begins a field at i, whose value begins at from.
func (p *headerParser) open(i, from int, name []byte, reading Reading) {
	p.close(i)
	p.any = true
	if p.plainStart {
		reading |= because(HeaderEndsAtGarbage)
	}
	if len(name) < len("content-type") || name[0]|0x20 != 'c' {
		return
	}
	var low [32]byte
	if len(name) > len(low) {
		return
	}
	for k, c := range name {
		low[k] = lower(c)
	}
	p.kind, p.from, p.reading = fieldKinds[string(low[:len(name)])], from, reading
}

// close ends the field that is open, whose value ends before i.
func (p *headerParser) close(i int) {
	kind := p.kind
	p.kind = noField
	if kind == noField {
		return
	}
	if len(p.h.fields) >= p.maxFields {
		p.h.tooMany = true
		return
	}
	v := bytes.Trim(p.b[p.from:i], " \t\r\n")
	if len(v) > p.maxField {
		v = v[:p.maxField]
		p.h.tooBig = true
	}
	p.h.fields = append(p.h.fields, field{kind, unfold(v), p.reading})
}

// unfold is a value with its CRs gone; a fold is an LF and the blanks after it.
func unfold(v []byte) string {
	if bytes.IndexByte(v, '\r') < 0 {
		return string(v)
	}
	return strings.ReplaceAll(string(v), "\r", "")
}
