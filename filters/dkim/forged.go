package dkim

import (
	"mime"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// Bounds of looking for forged results.
const (
	maxForged  = 100     // that are taken out one by one
	maxPreface = 4 << 10 // bytes in which the name of who wrote a field must stand
)

// forged are edits that remove the fields of results which claim to be ours,
// from the bottom so that their numbers hold, and how many they are. Of more
// than maxForged nobody's are left: who sends that many means no good, and to
// take them out one by one takes too long.
func forged(h message.Head, ids []string) (edits []pipeline.Edit, n int) {
	var which []int
	seen := 0
	for i := range h.Len() {
		f := h.Field(i)
		if !f.Is(ResultsField) {
			continue
		}
		seen++
		if claims(f.Value(), ids) {
			which = append(which, seen)
		}
	}
	if len(which) > maxForged {
		return []pipeline.Edit{pipeline.Field(message.FieldEdit{Op: message.Remove, Name: ResultsField})}, seen
	}
	for i := len(which) - 1; i >= 0; i-- {
		edits = append(edits, pipeline.Field(message.FieldEdit{Op: message.Remove, Name: ResultsField, Nth: which[i]}))
	}
	return edits, len(which)
}

// claims reports whether a field's value says that one of ids wrote it, in any
// spelling that somebody could read so (RFC 8601 §2.2, §5): with comments and
// folds, quoted, with a version, in another case, with its dot at the end, in
// Unicode, as an encoded word. A value that cannot be read claims it if it
// holds one of the names at all.
func claims(value string, ids []string) bool {
	value = value[:min(len(value), maxPreface)]
	id, ok := servID(value)
	for _, own := range ids {
		if ok && id == own {
			return true
		}
		if !ok && strings.Contains(fold(value), own) {
			return true
		}
	}
	return false
}

// servID is the name of who wrote a value; ok is false if that is not clear.
func servID(value string) (id string, ok bool) {
	s, ok := withoutComments(value)
	if !ok {
		return "", false
	}
	s, _, _ = strings.Cut(s, separator)
	if decoded, err := new(mime.WordDecoder).DecodeHeader(s); err == nil {
		s = decoded
	}
	// What follows the name is the version.
	words := strings.Fields(fold(s))
	if len(words) == 0 {
		return "", false
	}
	name, _, _ := strings.Cut(words[0], "/")
	return strings.TrimRight(name, "."), len(words) <= 2
}

// separator stands for a semicolon outside of quotes.
const separator = "\x00"

// withoutComments is a value without comments and quotes (RFC 5322 §3.2), and
// with separators for its semicolons. ok is false if one does not end before
// the first of these, or there is a bracket too many.
func withoutComments(s string) (text string, ok bool) {
	var b strings.Builder
	depth, quote := 0, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && (quote || depth > 0):
			if i++; i < len(s) && depth == 0 {
				b.WriteByte(s[i])
			}
		case c == '"' && depth == 0:
			quote = !quote
		case quote:
			b.WriteByte(c)
		case c == '(':
			if depth == 0 {
				b.WriteByte(' ')
			}
			depth++
		case c == ')':
			if depth--; depth < 0 {
				return "", false
			}
		case depth > 0:
		case c == ';':
			return b.String() + separator, true
		case c == separator[0]:
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), depth == 0 && !quote
}

// fold makes one spelling of all: lower-case, compatibility forms undone,
// domains as the DNS has them, nothing invisible.
func fold(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\u00ad' || r >= '\u200b' && r <= '\u200f' || r == '\u2060' || r == '\ufeff':
			return -1
		case r < ' ' || r == 0x7f || r == '\u00a0' || r == '\u3000':
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.ToLower(norm.NFKC.String(s))
	words := strings.Fields(s)
	for i, w := range words {
		if a, err := idna.Lookup.ToASCII(w); err == nil {
			words[i] = a
		}
	}
	return strings.Join(words, " ")
}
