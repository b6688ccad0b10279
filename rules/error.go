package rules

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/expr-lang/expr/file"
)

// Errors of evaluation, for errors.Is.
var (
	ErrMissing = errors.New("has no value here")
	ErrType    = errors.New("has the wrong type")
)

// Error is what is wrong with the source of a rule. Its text is one line without control bytes.
type Error struct {
	Line    int // from 1
	Column  int // in characters, from 1; 0 if the rule as a whole is meant
	Message string
}

// Error returns the position and the message: `column 9: unknown fact "form", did you mean "from"?`.
func (e *Error) Error() string {
	switch {
	case e.Column == 0:
		return e.Message
	case e.Line > 1:
		return fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, e.Message)
	}
	return fmt.Sprintf("column %d: %s", e.Column, e.Message)
}

// maxMessage bounds the text of an error, in bytes, and maxShown that of a value or a part of a rule within one.
const (
	maxMessage = 400
	maxShown   = 160
)

// errorAt makes an error at a character offset of the source.
func errorAt(src string, from int, format string, args ...any) *Error {
	line, column := position(src, from)
	return &Error{Line: line, Column: column, Message: clean(fmt.Sprintf(format, args...), maxMessage)}
}

// position turns an offset in characters into a line and a column, both from 1.
func position(src string, from int) (line, column int) {
	line, column = 1, 1
	n := 0
	for _, r := range src {
		if n >= from {
			break
		}
		n++
		column++
		if r == '\n' {
			line++
			column = 1
		}
	}
	return line, column
}

// fromEngine turns an error of the expression engine into ours. The engine's text has several lines and Go's words.
func fromEngine(src string, err error) *Error {
	var at *file.Error
	if errors.As(err, &at) {
		return errorAt(src, at.From, "%s", reword(at.Message))
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return &Error{Line: 1, Message: clean(reword(text), maxMessage)}
}

// reword replaces what the engine says about its inner names.
func reword(message string) string {
	switch {
	case strings.Contains(message, `Operator("=")`):
		return `unexpected "=", did you mean "=="?`
	case strings.Contains(message, "unexpected token EOF"), strings.Contains(message, "unexpected end of expression"):
		return "the rule ends too early"
	case strings.Contains(message, "exceeds maximum allowed nodes"):
		return fmt.Sprintf("the rule is too complex: more than %d parts", maxNodes)
	}
	return strings.TrimSpace(strings.ReplaceAll(message, factPrefix, ""))
}

// clean makes a text fit for a log line: no control bytes, no invalid UTF-8, and at most limit bytes.
func clean(s string, limit int) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\n' || r == '\t':
			r = ' '
		case !strconv.IsPrint(r), r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			r = '?'
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// quote shows a string in quotes, cleaned and cut.
func quote(s string) string {
	if len(s) <= maxShown {
		return strconv.Quote(s)
	}
	cut := maxShown
	for cut > maxShown-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + fmt.Sprintf("… (%d bytes)", len(s))
}
