package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error is one thing that is wrong with the configuration, or worth a warning.
// Its texts hold no control bytes.
type Error struct {
	// File is the configuration file, or the file of the control directory.
	File string
	// Line and Column (in bytes) count from 1; 0 if the file as a whole is meant.
	Line, Column int
	// Text is what is wrong and what to do.
	Text string
	// Suggestion is a name that may have been meant, "" for none.
	Suggestion string
}

// Error is one line: `postern.toml:12: unknown key "tiemout" in [filter.clamav]
// (did you mean "timeout"?)`.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(clean(e.File))
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": " + e.Text)
	if e.Suggestion != "" {
		b.WriteString(` (did you mean "` + e.Suggestion + `"?)`)
	}
	return b.String()
}

// Errors is everything that was found wrong with a configuration, in the order
// of the file, the control directory last. It is never empty.
type Errors struct {
	List []*Error
	// More is how many there were beyond those in List.
	More int
	// Warnings are what else looks wrong.
	Warnings []*Error
}

// Error is one line for each, without a newline at the end.
func (e *Errors) Error() string {
	lines := make([]string, 0, len(e.List)+1)
	for _, one := range e.List {
		lines = append(lines, one.Error())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the single errors to package errors.
func (e *Errors) Unwrap() []error {
	all := make([]error, len(e.List))
	for i, one := range e.List {
		all[i] = one
	}
	return all
}

const (
	maxErrors = 100 // that are kept of one configuration
	maxText   = 600 // bytes of an error's text
	maxShown  = 80  // bytes of a name or value within one
)

// problems collects errors and warnings.
type problems struct {
	file     string // what a position without a file is about
	errors   []*Error
	more     int
	warnings []*Error
}

// place is where something stands in a file.
type place struct {
	file      string // "" for the configuration file
	line, col int
}

func (p *problems) make(at place, suggestion, format string, args ...any) *Error {
	e := &Error{File: at.file, Line: at.line, Column: at.col, Text: clean(fmt.Sprintf(format, args...)), Suggestion: clean(suggestion)}
	if e.File == "" {
		e.File = p.file
	}
	return e
}

// add records an error.
func (p *problems) add(at place, format string, args ...any) { p.suggest(at, "", format, args...) }

// suggest records an error with what may have been meant.
func (p *problems) suggest(at place, suggestion, format string, args ...any) {
	p.put(p.make(at, suggestion, format, args...))
}

func (p *problems) put(e *Error) {
	if len(p.errors) >= maxErrors {
		p.more++
		return
	}
	if !slices.ContainsFunc(p.errors, func(o *Error) bool { return *o == *e }) {
		p.errors = append(p.errors, e)
	}
}

// take records errors that were found elsewhere.
func (p *problems) take(list []*Error, more int) {
	for _, e := range list {
		p.put(e)
	}
	p.more += more
}

// warn records what does not stand in the way.
func (p *problems) warn(at place, format string, args ...any) {
	if len(p.warnings) < maxErrors {
		p.warnings = append(p.warnings, p.make(at, "", format, args...))
	}
}

// err is everything that is wrong, nil for nothing.
func (p *problems) err() error {
	if len(p.errors) == 0 {
		return nil
	}
	p.sort(p.errors)
	p.sort(p.warnings)
	return &Errors{List: p.errors, More: p.more, Warnings: p.warnings}
}

func (p *problems) sort(list []*Error) {
	slices.SortStableFunc(list, func(a, b *Error) int {
		return cmp.Or(
			cmp.Compare(boolInt(a.File != p.file), boolInt(b.File != p.file)), strings.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// clean makes a text one line without control bytes, of valid UTF-8 and bounded
// length.
func clean(s string) string {
	var b strings.Builder
	for i, r := range s {
		if b.Len()+utf8.RuneLen(r) > maxText {
			b.WriteString("…")
			break
		}
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			b.WriteByte(' ')
		case !strconv.IsPrint(r), r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// show quotes a name or value of the file, cleaned and cut.
func show(s string) string {
	if len(s) <= maxShown {
		return strconv.Quote(s)
	}
	cut := maxShown
	for cut > maxShown-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + fmt.Sprintf("… (%d bytes)", len(s))
}

// shown is show without its quotes, for what is printed in brackets.
func shown(s string) string {
	s = show(s)
	if strings.HasSuffix(s, `"`) {
		return s[1 : len(s)-1]
	}
	return s
}
