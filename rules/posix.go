package rules

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
)

// A POSIX extended regular expression on bytes, as regcomp(REG_EXTENDED|REG_ICASE) takes it in the C locale, becomes an RE2
// program on characters. Each byte from 0x80 on, in the pattern and in the text, is carried as one character of a private
// area: so . and [^a] match one byte, ranges keep their order, and nothing but ASCII letters folds.
const highBytes = 0xE000

// widen carries the bytes of s as characters.
func widen(s string) string {
	for i := range len(s) {
		if s[i] >= 0x80 {
			var b strings.Builder
			b.Grow(len(s) * 3)
			for j := range len(s) {
				if c := s[j]; c >= 0x80 {
					b.WriteRune(highBytes + rune(c))
				} else {
					b.WriteByte(c)
				}
			}
			return b.String()
		}
	}
	return s
}

// narrow undoes widen, for error messages.
func narrow(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r >= highBytes+0x80 && r <= highBytes+0xFF {
			b.WriteByte(byte(r - highBytes))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// compilePOSIX compiles such an expression. ^ and $ match at the ends of the text only, and . and [^a] match a newline,
// as without REG_NEWLINE.
func compilePOSIX(pattern string) (*regexp.Regexp, error) {
	translated, err := translatePOSIX(pattern)
	if err != nil {
		return nil, err
	}
	re, err := syntax.Parse(widen(translated), syntax.POSIX|syntax.FoldCase|syntax.OneLine|syntax.DotNL|syntax.ClassNL)
	if err != nil {
		return nil, regexpError(err)
	}
	if repeatsAnchor(re) {
		return nil, errors.New("bad pattern: a repetition of ^ or $")
	}
	if err := regexpFits(re); err != nil {
		return nil, err
	}
	compiled, err := regexp.Compile(re.String())
	if err != nil {
		return nil, regexpError(err)
	}
	return compiled, nil
}

// repeatsAnchor finds what regcomp refuses and RE2 takes: ^* and its like, which match everywhere.
func repeatsAnchor(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		if op := re.Sub[0].Op; op == syntax.OpBeginText || op == syntax.OpEndText {
			return true
		}
	}
	return slices.ContainsFunc(re.Sub, repeatsAnchor)
}

// escapes are what glibc adds to POSIX and RE2's POSIX mode has not.
var escapes = map[byte]string{'w': "[[:alnum:]_]", 'W': "[^[:alnum:]_]", 's': "[[:space:]]", 'S': "[^[:space:]]"}

// translatePOSIX rewrites what means one thing in POSIX and silently another in RE2, and refuses what RE2 has not.
func translatePOSIX(pattern string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(pattern); {
		switch c := pattern[i]; c {
		case '\\':
			if i+1 == len(pattern) {
				return "", errors.New("bad pattern: a backslash at the end")
			}
			text, err := translateEscape(pattern[i+1])
			if err != nil {
				return "", err
			}
			b.WriteString(text)
			i += 2
		case '[':
			n, err := translateBracket(&b, pattern[i:])
			if err != nil {
				return "", err
			}
			i += n
		case '{':
			n, err := translateInterval(&b, pattern[i:])
			if err != nil {
				return "", err
			}
			i += n
		default:
			b.WriteByte(c)
			i++
		}
	}
	return b.String(), nil
}

// translateInterval writes {,n} out as {0,n}, and refuses the braces that RE2 would take for themselves.
func translateInterval(b *strings.Builder, s string) (int, error) {
	inner, _, ok := strings.Cut(s[1:], "}")
	low, high, comma := strings.Cut(inner, ",")
	if !ok || strings.Trim(low+high, "0123456789") != "" || low == "" && !comma {
		return 0, errors.New(`bad pattern: { is not followed by a number of repetitions and }; write \{ for a brace`)
	}
	if low == "" {
		low = "0"
	}
	b.WriteString("{" + low)
	if comma {
		b.WriteString("," + high)
	}
	b.WriteString("}")
	return len(inner) + 2, nil
}

func translateEscape(c byte) (string, error) {
	if text, ok := escapes[c]; ok {
		return text, nil
	}
	switch {
	case '1' <= c && c <= '9':
		return "", fmt.Errorf(`bad pattern: back-reference \%c; they are not supported`, c)
	case c == '0' || 'a' <= lowerByte(c) && lowerByte(c) <= 'z' || strings.IndexByte("<>`'", c) >= 0:
		return "", fmt.Errorf(`bad pattern: \%c is not supported`, c)
	case c >= 0x80:
		return string([]byte{c}), nil
	}
	return string([]byte{'\\', c}), nil
}

// translateBracket copies a bracket expression and returns its length in s, which starts with it. A backslash in it is
// itself, not an escape.
func translateBracket(b *strings.Builder, s string) (int, error) {
	i := 1
	if i < len(s) && s[i] == '^' {
		i++
	}
	if i < len(s) && s[i] == ']' {
		i++
	}
	b.WriteString(s[:i])
	for i < len(s) {
		switch {
		case s[i] == ']':
			b.WriteByte(']')
			return i + 1, nil
		case s[i] == '\\':
			b.WriteString(`\\`)
			i++
		case strings.HasPrefix(s[i:], "[:"):
			end := strings.Index(s[i+2:], ":]")
			if end < 0 {
				return 0, errors.New("bad pattern: [: without :]")
			}
			b.WriteString(s[i : i+2+end+2])
			i += 2 + end + 2
		case strings.HasPrefix(s[i:], "[.") || strings.HasPrefix(s[i:], "[="):
			return 0, fmt.Errorf("bad pattern: %s] in brackets is not supported", s[i:i+2])
		case s[i] == '[':
			b.WriteString(`\[`)
			i++
		default:
			b.WriteByte(s[i])
			i++
		}
	}
	return 0, errors.New("bad pattern: [ without ]")
}
