package dkim

import (
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// ResultsField is the header field of results (RFC 8601 §2.1).
const ResultsField = "Authentication-Results"

// Bounds of the field, which keep it within what a head takes.
const (
	maxResults = 50
	maxProps   = 20
	maxField   = 32 << 10 // bytes after which no further result begins
	maxWord    = 250      // bytes of a value
)

// FormatResults is the value of an Authentication-Results field, folded: the
// results of all methods that were tried, in their order. Values are made
// printable ASCII; a result without a method or whose words are none is left
// out.
func FormatResults(id string, results []pipeline.AuthResult) string {
	var b strings.Builder
	b.WriteString(word(id))
	n := 0
	for _, r := range results {
		if !isKeyword(r.Method) || !isKeyword(r.Result) || n == maxResults || b.Len() > maxField {
			continue
		}
		n++
		b.WriteString(";\n\t" + r.Method + "=" + r.Result)
		if r.Reason != "" {
			b.WriteString("\n\treason=" + quoted(reply.Clean(r.Reason, maxWord)))
		}
		for i, p := range r.Props {
			kind, property, ok := strings.Cut(p.Name, ".")
			if i == maxProps || !ok || !isKeyword(kind) || !isKeyword(property) || p.Value == "" {
				continue
			}
			b.WriteString("\n\t" + p.Name + "=" + propValue(p.Value))
		}
	}
	if n == 0 {
		b.WriteString("; none")
	}
	return compact(b.String())
}

// lineLength is where a field's lines should end (RFC 5322 §2.1.1).
const lineLength = 78

// compact joins the lines of a result as far as they fit. A new result begins
// on a line of its own.
func compact(s string) string {
	lines := strings.Split(s, "\n\t")
	var b strings.Builder
	b.WriteString(lines[0])
	length, ended := 0, true
	for _, line := range lines[1:] {
		if ended || length+1+len(line) > lineLength {
			b.WriteString("\n\t")
			length = len("\t")
		} else {
			b.WriteByte(' ')
			length++
		}
		b.WriteString(line)
		length += len(line)
		ended = strings.HasSuffix(line, ";")
	}
	return b.String()
}

// isKeyword reports whether a word is one of RFC 5321 §4.1.2, of which the
// field's methods, results and properties are made.
func isKeyword(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && (c != '-' && c != '_' || i == 0) {
			return false
		}
	}
	return s != "" && len(s) <= 50
}

// word is a value as the field takes it: a token, else a quoted string.
func word(s string) string {
	s = reply.Clean(s, maxWord)
	if isToken(s) {
		return s
	}
	return quoted(s)
}

// propValue is a word, or an address, which needs no quotes.
func propValue(s string) string {
	s = reply.Clean(s, maxWord)
	local, domain, ok := strings.Cut(s, "@")
	if ok && (local == "" || isToken(local)) && isToken(domain) {
		return s
	}
	return word(s)
}

// isToken is token of RFC 2045 §5.1.
func isToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || strings.IndexByte(`()<>@,;:\"/[]?=`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
