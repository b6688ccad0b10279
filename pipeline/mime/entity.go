package mime

import (
	"bytes"
	"slices"
	"strings"
)

// The types that Read treats in ways of their own.
const (
	plainText   = "text/plain"
	messageType = "message/rfc822"
)

// entity is a part while its body is taken apart.
type entity struct {
	*reader
	p          *Part
	boundaries []boundary
	encodings  []encoding
	byName     bool // its name is that of a saved message
}

// boundary is a boundary that a multipart may have.
type boundary struct {
	text    string
	reading Reading
}

// encoding is a way in which a body may be encoded.
type encoding struct {
	how     How
	reading Reading
}

// kind says how the body of a type is read.
type kind uint8

const (
	leafKind kind = iota
	textKind
	multipartKind
	messageKind
)

func kindOf(t string) kind {
	switch {
	case strings.HasPrefix(t, "multipart"):
		return multipartKind
	case t == messageType, t == "message/global", t == "message/news":
		return messageKind
	case strings.HasPrefix(t, "text"), strings.HasPrefix(t, "message/"), !strings.Contains(t, "/"):
		return textKind
	}
	return leafKind
}

// describe reads what the header says of the part.
func (e *entity) describe(h header) {
	typed, named := 0, false
	for _, f := range h.fields {
		reading := f.reading | e.p.Reading
		switch f.kind {
		case typeField:
			e.typeField(f.value, reading, &typed)
			named = true
		case encodingField:
			e.encodingField(f.value, reading)
		case dispositionField:
			e.dispositionField(f.value, reading)
			named = true
		case descriptionField:
			e.name(Name{FromDescription, decodeWords(foldless(f.value)), f.value, reading})
		case locationField:
			e.name(Name{FromLocation, strings.Trim(foldless(f.value), `"<>`), f.value, reading})
		}
	}
	e.usualType()
	if len(e.encodings) == 0 || !e.encodings[0].reading.sameAs(e.p.Reading) {
		// Without a field that all readers see, there may be none.
		e.encodings = append([]encoding{{Identity, e.p.Reading}}, e.encodings...)
	}
	if named {
		e.compareNames()
	}
}

// usualType gives the part the type that is usual where it stands, for those who
// see none of its fields of type.
func (e *entity) usualType() {
	if slices.ContainsFunc(e.p.Types, func(t Type) bool { return t.Reading.sameAs(e.p.Reading) }) {
		return
	}
	for i := range e.p.Types {
		if t := &e.p.Types[i]; t.Value == e.p.kind {
			t.Reading = e.p.Reading
			return
		}
	}
	e.p.Types = append(e.p.Types, Type{e.p.kind, e.p.Reading})
}

// sameAs reports whether a reading asks for nothing beyond another.
func (r Reading) sameAs(other Reading) bool { return r&^other == 0 }

func (e *entity) note(more bool) {
	if more {
		e.exceed(FieldsLimit, e.p.Path)
	}
}

// dispositionField takes in a Content-Disposition field. Some readers decode
// encoded words before they cut a field up.
func (e *entity) dispositionField(v string, reading Reading) {
	_, params, more := parseValue(v, e.o.Limits.Fields)
	e.note(more)
	e.names(params, FromDisposition, reading)
	if words := decodeWords(v); words != v {
		_, params, more = parseValue(words, e.o.Limits.Fields)
		e.note(more)
		e.names(params, FromDisposition, reading|because(ParameterLoose))
	}
}

// typeField takes in a Content-Type field; typed counts them.
func (e *entity) typeField(v string, reading Reading, typed *int) {
	word, params, more := parseValue(v, e.o.Limits.Fields)
	e.note(more)
	if *typed++; *typed > 1 {
		if slices.ContainsFunc(e.p.Types, func(t Type) bool { return t.Value == word }) {
			e.find(FieldRepeated, e.p, "Content-Type")
		} else {
			e.find(TypeContradicts, e.p, e.p.Types[0].Value+" and "+word)
		}
		reading |= because(TypeContradicts)
	}
	if strings.Count(word, "/") != 1 {
		// RFC 2045 §5.2 has a type that is none be plain text.
		e.addType(plainText, reading)
		reading |= because(ParameterLoose)
	}
	if word != "" {
		e.addType(word, reading)
	}
	if word == "message/partial" {
		e.find(Fragment, e.p, "")
	}
	for _, b := range valuesOf(params, "boundary") {
		e.boundary(b.value, reading|b.reading)
	}
	e.names(params, FromType, reading)
	if words := decodeWords(v); words != v {
		word, params, more := parseValue(words, e.o.Limits.Fields)
		e.note(more)
		reading |= because(ParameterLoose)
		if strings.Count(word, "/") == 1 {
			e.addType(word, reading)
		}
		for _, b := range valuesOf(params, "boundary") {
			e.boundary(b.value, reading|b.reading)
		}
		e.names(params, FromType, reading)
	}
}

func (e *entity) addType(t string, reading Reading) {
	for _, have := range e.p.Types {
		if have.Value == t {
			return
		}
	}
	e.p.Types = append(e.p.Types, Type{t, reading})
}

// boundary takes in a boundary. Blanks at its end never belong to it (RFC 2046
// §5.1.1).
func (e *entity) boundary(text string, reading Reading) {
	text = strings.TrimRight(text, " \t\n")
	if len(text) > e.o.Limits.Boundary {
		e.exceed(BoundaryLimit, e.p.Path)
		return
	}
	for _, v := range []string{text, strings.TrimLeft(text, " \t")} {
		if slices.ContainsFunc(e.boundaries, func(b boundary) bool { return b.text == v }) {
			continue
		}
		if len(e.boundaries) == e.o.Limits.Boundaries {
			e.exceed(BoundariesLimit, e.p.Path)
			return
		}
		why := reading
		if len(e.boundaries) > 0 {
			why |= because(BoundaryContradicts)
		}
		e.boundaries = append(e.boundaries, boundary{v, why})
	}
}

// names takes in the names that parameters give.
func (e *entity) names(params []parameter, from Source, reading Reading) {
	first, second := "filename", "name"
	if from == FromType {
		first, second = second, first
	}
	for i, param := range []string{first, second} {
		for _, v := range valuesOf(params, param) {
			why := reading | v.reading
			if i > 0 {
				why |= because(ParameterLoose)
			}
			text := v.value
			if !v.star {
				text = decodeWords(decodeBytes(text))
			}
			e.name(Name{from, text, v.raw, why})
		}
	}
}

func (e *entity) name(n Name) {
	if n.Text == "" && n.Raw == "" {
		return
	}
	for _, have := range e.p.Names {
		if have.Source == n.Source && have.Text == n.Text && (have.Raw == n.Raw || n.Raw == n.Text) {
			return
		}
	}
	if len(e.p.Names) >= e.o.Limits.Names {
		e.exceed(NamesLimit, e.p.Path)
		return
	}
	if len(n.Text) > maxNameBytes || len(n.Raw) > maxNameBytes {
		e.exceed(FieldLimit, e.p.Path)
	}
	e.p.Names = append(e.p.Names, n)
}

// savedMessages are the extensions of files that mail programs open as messages.
var savedMessages = map[string]bool{"eml": true, "mht": true, "mhtml": true, "nws": true}

// compareNames sees whether the names agree about the part's extension.
func (e *entity) compareNames() {
	slices.SortStableFunc(e.p.Names, func(a, b Name) int {
		switch as, bs := a.Reading.sameAs(e.p.Reading), b.Reading.sameAs(e.p.Reading); {
		case as == bs:
			return 0
		case as:
			return -1
		}
		return 1
	})
	var first []string
	seen := false
	for i, n := range e.p.Names {
		if n.Source.Weak() {
			continue
		}
		if i > 0 && seen && n.Text == e.p.Names[0].Text && n.Raw == e.p.Names[0].Raw {
			continue
		}
		exts := n.extensionSet()
		e.byName = e.byName || slices.ContainsFunc(exts, func(x string) bool { return savedMessages[x] })
		switch {
		case len(exts) == 0:
		case !seen:
			first, seen = exts, true
		case !slices.Equal(first, exts):
			e.find(NameContradicts, e.p, strings.Join(append(first, exts...), ", "))
		}
	}
}

// bodies reads the body that begins at s in each type that the part may have.
func (e *entity) bodies(s start) error {
	src, from := e.p.src, e.p.Offset+int64(s.at)
	asFile, container := false, false
	for _, t := range e.p.Types {
		here := s
		here.reading |= t.Reading
		switch kindOf(t.Value) {
		case multipartKind:
			found, err := e.multipart(src, from, here.reading)
			if err != nil {
				return err
			}
			container = container || found
			asFile = asFile || !found
		case messageKind:
			if err := e.message(src, from, here.reading); err != nil {
				return err
			}
			container = true
			asFile = asFile || e.encodings[0].how != Identity
		default:
			asFile = true
		}
	}
	text := slices.ContainsFunc(e.p.Types, func(t Type) bool { return kindOf(t.Value) == textKind || kindOf(t.Value) == multipartKind })
	// What nobody finds parts in is a file, whatever it says it is.
	if asFile || len(e.p.Parts) == 0 && len(e.p.Contents) == 0 {
		if err := e.leaf(src, s, e.encodings, text); err != nil {
			return err
		}
	}
	if container {
		return nil
	}
	if e.byName {
		e.find(MessageByName, e.p, "")
		if err := e.message(src, from, s.reading|because(MessageByName)); err != nil {
			return err
		}
	}
	return e.boundaryOnFile(src, from, s.reading)
}

// boundaryOnFile splits a part that is no multipart but has a boundary.
func (e *entity) boundaryOnFile(src *source, from int64, reading Reading) error {
	for _, b := range e.boundaries {
		if kindOf(e.p.Types[0].Value) == multipartKind || b.text == "" {
			continue
		}
		found, _, err := e.split(src, from, e.end(src), b.text, reading|b.reading|because(BoundaryGuessed))
		if err != nil {
			return err
		}
		if found {
			e.find(BoundaryGuessed, e.p, "")
		}
	}
	return nil
}

// end is where the part ends in src: its own source, or what it was decoded to.
func (e *entity) end(src *source) int64 {
	if src == e.p.src {
		return e.p.Offset + e.p.Size
	}
	return src.size
}

// message reads an attached message: as it stands, and decoded if the part says
// that it is encoded.
func (e *entity) message(src *source, from int64, reading Reading) error {
	for i, enc := range e.encodings {
		if enc.how == Identity {
			e.add(e.p, src, from, e.end(src), Entity, reading|enc.reading, plainText)
			continue
		}
		why := reading | enc.reading
		if !e.may8bit() {
			why |= because(EncodedContainer)
			e.find(EncodedContainer, e.p, "")
		}
		if err := e.decoded(src, from, enc, why, func(d *source, r Reading) error {
			e.add(e.p, d, 0, d.size, Entity, r, plainText)
			return e.seeBareCR(e.p, d)
		}); err != nil {
			return err
		}
		if i == 0 {
			if ok, err := e.fieldsAt(src, from); err != nil {
				return err
			} else if ok {
				e.add(e.p, src, from, e.end(src), Entity, reading|because(EncodedContainer), plainText)
			}
		}
	}
	return nil
}

// may8bit reports whether the part may be encoded although it is a message: one
// of RFC 6532 §3.5, or a file that only opens as one.
func (e *entity) may8bit() bool {
	t := e.p.Types[0].Value
	return t == "message/global" || kindOf(t) != messageKind
}

// fieldsAt reports whether a field of a header stands at an offset.
func (e *entity) fieldsAt(src *source, from int64) (bool, error) {
	b, err := src.view(from, min(firstHeader, e.end(src)-from))
	if err != nil {
		return false, err
	}
	b = bytes.TrimLeft(b, "\r\n")
	colon := bytes.IndexByte(b, ':')
	return colon > 0 && colon < maxOddName && plainName(b[:colon]), nil
}

// decoded calls f with what the body gives under each way of an encoding.
func (e *entity) decoded(src *source, from int64, enc encoding, reading Reading, f func(*source, Reading) error) error {
	enc.reading |= reading
	contents, err := e.contents(src, from, e.end(src), enc)
	if err != nil {
		return err
	}
	for _, c := range contents {
		if c.How == Identity {
			continue
		}
		d, err := e.spool(e.p, c)
		if err != nil {
			return err
		}
		if d == nil {
			return nil
		}
		d.reading = c.Reading
		if err := f(d, c.Reading); err != nil {
			return err
		}
	}
	return nil
}

// afterBlank adds the reading in which blank lines at the start are skipped.
func (e *entity) afterBlank(h header) error {
	at := h.starts[0].at
	if len(h.fields) > 0 || at == 0 || at > 2 || e.p.Size <= int64(at) {
		return nil
	}
	b, err := e.p.src.view(e.p.Offset, min(firstHeader, e.p.Size))
	if err != nil {
		return err
	}
	rest := bytes.TrimLeft(b, "\r\n \t")
	if foldPrefix(rest, "content-") || e.p.depth == 1 && foldPrefix(rest, "mime-version") {
		e.find(HeaderAfterBlank, e.p, "")
		e.add(e.p, e.p.src, e.p.Offset+int64(len(b)-len(rest)), e.p.Offset+e.p.Size, Entity, because(HeaderAfterBlank), e.p.kind)
	}
	return nil
}
