package mime

import (
	"bytes"
	"io"
	"strings"
)

// encodingWords are the encodings by their names: those of RFC 2045 §6.1, and
// those that clients know.
var encodingWords = map[string]How{
	"": Identity, "7bit": Identity, "8bit": Identity, "binary": Identity,
	"base64": Base64, "quoted-printable": QuotedPrintable,
	"x-uuencode": UU, "uuencode": UU, "x-uue": UU, "uue": UU, "x-uu": UU,
	"x-yencode": YEnc, "yenc": YEnc, "x-yenc": YEnc,
	"binhex": BinHexData, "x-binhex": BinHexData, "mac-binhex40": BinHexData, "x-mac-binhex40": BinHexData,
}

// likely are the marks by which careless readers know an encoding.
var likely = []struct {
	word string
	how  How
}{{"64", Base64}, {"quot", QuotedPrintable}, {"printable", QuotedPrintable}, {"uu", UU}, {"yenc", YEnc}, {"hex", BinHexData}}

// encodingField takes in a Content-Transfer-Encoding field.
func (e *entity) encodingField(v string, reading Reading) {
	word := strings.ToLower(v)
	how, known := encodingWords[word]
	if !known {
		p := valueParser{s: word}
		word = strings.Trim(removeBlanks(p.until(";")), `"'`)
		how, known = encodingWords[word]
	}
	e.p.Encodings = append(e.p.Encodings, word)
	if n := len(e.p.Encodings); n > 1 {
		if word == e.p.Encodings[0] {
			e.find(FieldRepeated, e.p, "Content-Transfer-Encoding")
		} else {
			e.find(EncodingContradicts, e.p, e.p.Encodings[0]+" and "+word)
		}
		reading |= because(EncodingContradicts)
	}
	if known {
		e.addEncoding(encoding{how, reading})
		return
	}
	e.find(EncodingUnknown, e.p, word)
	e.addEncoding(encoding{Identity, reading})
	low := asciiLower(v)
	for _, x := range likely {
		if strings.Contains(low, x.word) {
			e.addEncoding(encoding{x.how, reading | because(EncodingUnknown)})
		}
	}
}

func (e *entity) addEncoding(enc encoding) {
	for _, have := range e.encodings {
		if have.how == enc.how {
			return
		}
	}
	e.encodings = append(e.encodings, enc)
}

// leaf adds the contents of a body that begins at s, under each encoding, and
// what is encoded in it if it is a text.
func (e *entity) leaf(src *source, s start, encodings []encoding, text bool) error {
	from, end := e.p.Offset+int64(s.at), e.p.Offset+e.p.Size
	for _, enc := range encodings {
		enc.reading |= s.reading
		contents, err := e.contents(src, from, end, enc)
		if err != nil {
			return err
		}
		for _, c := range contents {
			if !e.p.addContent(c) {
				continue
			}
			if !e.spend(c.EncodedSize(), e.p) {
				return nil
			}
			if !text {
				continue
			}
			if err := e.inText(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// contents are the ways to decode the body from start to end under an encoding,
// the standard's first.
func (e *entity) contents(src *source, start, end int64, enc encoding) ([]Content, error) {
	c := Content{How: enc.how, Reading: enc.reading, src: src, start: start, end: end}
	switch enc.how {
	case Identity:
		return e.identity(c)
	case Base64:
		return e.base64(c)
	case QuotedPrintable:
		return e.quoted(c)
	}
	return e.encodedWhole(c)
}

// guessedFrom is how much of a body is looked at to guess its encoding, and
// guessedLine how long a line must be to look like base64.
const (
	guessedFrom = 400
	guessedLine = 16
)

// identity is the body as it stands, and decoded if it looks like base64 or, with
// an encoding nobody knows, like quoted-printable.
func (e *entity) identity(c Content) ([]Content, error) {
	list := []Content{c}
	b, err := c.src.view(c.start, min(guessedFrom, c.end-c.start))
	if err != nil {
		return nil, err
	}
	quoted := e.unknownEncoding() && bytes.IndexByte(b, '=') >= 0
	line, rest, _ := bytes.Cut(bytes.TrimLeft(b, " \t\r\n"), newline)
	line = bytes.TrimRight(line, " \t\r")
	if looksBase64(line, rest) {
		e.findIn(c, because(EncodingGuessed))
		c.Reading |= because(EncodingGuessed)
		more, err := e.base64(withHow(c, Base64))
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	if quoted {
		list = append(list, withHow(c, QuotedPrintable))
	}
	return list, nil
}

func (e *entity) unknownEncoding() bool {
	for _, w := range e.p.Encodings {
		if _, known := encodingWords[w]; !known {
			return true
		}
	}
	return false
}

func withHow(c Content, how How) Content {
	c.How = how
	return c
}

// looksBase64 reports whether a text that begins with line may be base64.
func looksBase64(line, rest []byte) bool {
	if len(line) < guessedLine || len(line)%4 != 0 && len(rest) > 0 {
		return false
	}
	letters := bytes.TrimRight(line, "=")
	if len(line)-len(letters) > 2 {
		return false
	}
	for _, c := range letters {
		if base64Either.class[c] != 0 {
			return false
		}
	}
	return true
}

// base64 are the ways to decode base64 that the encoded bytes call for.
func (e *entity) base64(c Content) ([]Content, error) {
	var l base64Look
	if err := e.look(c, l.look); err != nil {
		return nil, err
	}
	list := []Content{c}
	found := l.reading()
	if found == 0 {
		return list, nil
	}
	e.findIn(c, found)
	add := func(how How, why ...Reason) {
		x := withHow(c, how)
		x.Reading |= because(why...)
		list = append(list, x)
	}
	if found.Has(Base64Padding) {
		add(Base64Restarts, Base64Padding)
		add(Base64SkipsPads, Base64Padding)
	}
	if found.Has(Base64URL) {
		add(Base64ForURLs, Base64URL)
	}
	if found.Has(Base64Junk) || found.Has(Base64URL) {
		add(Base64StopsAtJunk, Base64Junk)
		add(Base64DropsLines, Base64Junk)
		add(Identity, Base64Junk)
	}
	return list, nil
}

// quoted are the ways to decode quoted-printable.
func (e *entity) quoted(c Content) ([]Content, error) {
	var l quotedLook
	if err := e.look(c, l.look); err != nil {
		return nil, err
	}
	list := []Content{c}
	if l.found == 0 {
		return list, nil
	}
	e.findIn(c, l.found)
	for _, x := range []struct {
		why Reason
		how How
	}{{QuotedLower, QuotedUpperOnly}, {QuotedBlanks, QuotedKeepsBlanks}, {QuotedBad, QuotedDropsBad}, {QuotedBad, Identity}} {
		if l.found.Has(x.why) {
			y := withHow(c, x.how)
			y.Reading |= because(x.why)
			list = append(list, y)
		}
	}
	return list, nil
}

// findIn notes what is odd about a content, if the part's own reading comes to
// it: what a body looks like that begins elsewhere says nothing.
func (e *entity) findIn(c Content, found Reading) {
	if c.Reading.sameAs(e.p.Reading) || len(e.p.Encodings) > 1 {
		e.findAll(found, e.p)
	}
}

// look has a decoder's bytes looked at.
func (e *entity) look(c Content, f func([]byte)) error {
	if !e.spend(c.EncodedSize(), e.p) {
		return nil
	}
	return c.src.eachPiece(e.ctx, c.start, c.end, f)
}

// encodedWhole is a body that is uuencoded, yEnc or BinHex as a whole: its marks
// say where; without one it is decoded from its beginning.
func (e *entity) encodedWhole(c Content) ([]Content, error) {
	list := []Content{c}
	if c.How == UU {
		list = append(list, withHow(c, UUWholeLines))
		for _, m := range c.src.marked(c.start, c.end) {
			if e.marksFull(list) {
				break
			}
			more, err := e.marked(c, m)
			if err != nil {
				return nil, err
			}
			e.name(Name{FromEncoded, decodeWords(decodeBytes(m.name)), m.name, c.Reading})
			list = append(list, more...)
		}
	}
	return append(list, withHow(c, Identity)), nil
}

func (e *entity) marksFull(list []Content) bool {
	if len(list) < e.o.Limits.Embedded {
		return false
	}
	e.exceed(EmbeddedLimit, e.p.Path)
	return true
}

// inText adds what a text has inside: encoded files, and what looks like parts.
func (e *entity) inText(c Content) error {
	src, start, end := c.src, c.start, c.end
	if c.How != Identity {
		if ok, err := e.hasMarks(c); !ok || err != nil {
			return err
		}
		d, err := e.spool(e.p, c)
		if d == nil || err != nil {
			return err
		}
		src, start, end = d, 0, d.size
	}
	for i, m := range src.marked(start, end) {
		if i == e.o.Limits.Embedded {
			e.exceed(EmbeddedLimit, e.p.Path)
			break
		}
		if err := e.embed(src, m, end, c.Reading|because(InText)); err != nil {
			return err
		}
	}
	why := PartsInText
	if e.p.Role != Entity {
		why = PartsOutside
	}
	found, err := e.guess(src, start, end, c.Reading|because(why), false)
	// A paragraph that looks like a header may begin a message: bounces have the
	// original so.
	heads := src.headed(start, end)
	for i, head := range heads {
		stop := end
		if i+1 < len(heads) {
			stop = heads[i+1]
		}
		found = e.add(e.p, src, head, stop, Entity, c.Reading|because(why), plainText) != nil || found
	}
	if found {
		e.find(why, e.p, "")
	}
	return err
}

// hasMarks reports whether what a content decodes to has marks or delimiters.
func (e *entity) hasMarks(c Content) (bool, error) {
	if !e.spend(c.EncodedSize(), e.p) {
		return false, nil
	}
	s := source{}
	n := min(int64(windowSize), max(delimiterText+1, c.EncodedSize()))
	if int64(len(e.buf)) < n {
		e.buf = make([]byte, n)
	}
	_, _, err := s.scanReader(e.ctx, c.Open(), e.buf, 1000, 1)
	if len(s.marks) > 0 || len(s.heads) > 0 {
		return true, err
	}
	for _, d := range s.lines {
		if d.field {
			return true, err
		}
	}
	return false, err
}

// embed adds a file that is encoded in a text as a part.
func (e *entity) embed(src *source, m mark, end int64, reading Reading) error {
	p := e.add(e.p, src, m.start, end, Embedded, reading, "application/octet-stream")
	if p == nil {
		return nil
	}
	e.find(InText, e.p, "")
	p.Types = []Type{{p.kind, p.Reading}}
	c := Content{Reading: p.Reading, src: src, start: m.start, end: end, quoted: m.quoted}
	contents, err := e.marked(c, m)
	if err != nil {
		return err
	}
	for _, c := range contents {
		if !e.spend(c.EncodedSize(), p) {
			return nil
		}
		p.addContent(c)
	}
	name := m.name
	if m.kind == binHexMark {
		if name, err = binHexName(c); err != nil {
			return err
		}
	}
	in := entity{reader: e.reader, p: p}
	name = strings.Trim(name, " \t\"")
	in.name(Name{FromEncoded, decodeWords(decodeBytes(name)), name, p.Reading})
	return nil
}

// marked are the contents of a file that begins with a mark.
func (e *entity) marked(c Content, m mark) ([]Content, error) {
	c.start, c.quoted = m.start, m.quoted
	switch m.kind {
	case uuBase64Mark:
		return []Content{withHow(c, UUBase64)}, nil
	case yEncMark:
		return []Content{withHow(c, YEnc)}, nil
	case binHexMark:
		return []Content{withHow(c, BinHexData), withHow(c, BinHexResource)}, nil
	}
	list := []Content{withHow(c, UU), withHow(c, UUWholeLines)}
	b, err := c.src.view(c.start, min(guessedFrom, c.end-c.start))
	if err != nil {
		return nil, err
	}
	if _, data, ok := bytes.Cut(b, newline); ok {
		// A full line of 45 bytes begins with M in uuencode, and with h in
		// xxencode; other lines do not tell.
		if data = unquote(data, m.quoted); len(data) > 0 && data[0] != 'M' && strings.IndexByte(xxLetters, data[0]) >= 0 {
			list = append(list, withHow(c, XX))
		}
	}
	return list, nil
}

// binHexName is the name in a BinHex file's head.
func binHexName(c Content) (string, error) {
	const enough = 4 << 10
	src := c.src.section(c.start, min(c.end, c.start+enough))
	dec := newUnquoteDecoder(c.quoted, 1, "", &binHexDecoder{fork: wholeFile})
	b, err := io.ReadAll(io.LimitReader(newDecodeReader(src, dec, enough), 64))
	if len(b) == 0 || int(b[0])+1 > len(b) {
		return "", err
	}
	return string(b[1 : 1+int(b[0])]), err
}
