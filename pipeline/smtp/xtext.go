package smtp

import (
	"errors"
	"strings"
)

const upperHex = "0123456789ABCDEF"

// EncodeXtext encodes s as xtext (RFC 3461 §4): printable ASCII but + and = as
// it is, everything else as + and two hexadecimal digits.
func EncodeXtext(s string) string {
	for i := 0; i < len(s); i++ {
		if !isXchar(s[i]) {
			return encodeXtext(s)
		}
	}
	return s
}

func encodeXtext(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; isXchar(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('+')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		}
	}
	return b.String()
}

func isXchar(c byte) bool { return c > ' ' && c < 0x7f && c != '+' && c != '=' }

var errXtext = errors.New("not xtext")

// DecodeXtext is the inverse of EncodeXtext. What comes out may hold any byte.
func DecodeXtext(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if isXchar(s[i]) {
			b.WriteByte(s[i])
			continue
		}
		if s[i] != '+' || i+2 >= len(s) {
			return "", errXtext
		}
		high, low := strings.IndexByte(upperHex, s[i+1]), strings.IndexByte(upperHex, s[i+2])
		if high < 0 || low < 0 {
			return "", errXtext
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String(), nil
}
