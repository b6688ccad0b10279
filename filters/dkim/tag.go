package dkim

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
)

// maxTags bounds the tags of one list: ten times what is in use.
const maxTags = 100

// tags is a tag-list (RFC 6376 §3.2), without the blanks around its values.
type tags map[string]string

// parseTags reads a tag-list whose folds have been undone. Line ends count as
// blanks, so that a key record may have them.
func parseTags(s string) (tags, error) {
	all := tags{}
	for spec := range strings.SplitSeq(s, ";") {
		if strings.Trim(spec, blanks) == "" {
			continue // the end, or what many write: an empty tag
		}
		name, value, ok := strings.Cut(spec, "=")
		name = strings.Trim(name, blanks)
		switch {
		case !ok || !isTagName(name):
			return nil, fmt.Errorf("%q is no tag", reply.Clean(strings.Trim(spec, blanks), 40))
		case !isTagValue(value):
			return nil, fmt.Errorf("the tag %s holds a control character", name)
		case len(all) == maxTags:
			return nil, fmt.Errorf("more than %d tags", maxTags)
		}
		if _, twice := all[name]; twice {
			return nil, fmt.Errorf("the tag %s stands there twice", name)
		}
		all[name] = strings.Trim(value, blanks)
	}
	if len(all) == 0 {
		return nil, errors.New("there are no tags")
	}
	return all, nil
}

// blanks are FWS (RFC 6376 §2.8).
const blanks = " \t\r\n"

func isTagName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && c != '_' || i == 0 && !isLetter(c) {
			return false
		}
	}
	return s != ""
}

// isTagValue lets bytes above 127 pass: domains of other scripts have them (RFC
// 8616 §5).
func isTagValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c == 0x7f || c < ' ' && c != '\t' && c != '\r' && c != '\n' {
			return false
		}
	}
	return true
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isAlphanumeric(c byte) bool { return isLetter(c) || isDigit(c) }

// list is a tag's value as words between colons.
func list(value string) []string {
	all := strings.Split(value, ":")
	for i, s := range all {
		all[i] = strings.Trim(s, blanks)
	}
	return all
}

// unspace is a value without its blanks, for those that may be folded anywhere.
func unspace(s string) string {
	if !strings.ContainsAny(s, blanks) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for len(s) > 0 {
		end := strings.IndexAny(s, blanks)
		if end < 0 {
			end = len(s)
		}
		b.WriteString(s[:end])
		s = strings.TrimLeft(s[end:], blanks)
	}
	return b.String()
}

// unquote undoes dkim-quoted-printable (RFC 6376 §2.11), in which an "=" that
// two upper-case hexadecimal digits do not follow is an error.
func unquote(s string) (string, error) {
	s = unspace(s)
	if strings.IndexByte(s, '=') < 0 {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '=' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("quoted-printable that ends early")
		}
		high, low := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if high < 0 || low < 0 {
			return "", errors.New("bad quoted-printable")
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String(), nil
}

const hexDigits = "0123456789ABCDEF"
