package mime

import (
	"encoding/base64"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
)

// decodeCharset is text in a charset as UTF-8. An unknown charset is taken for
// UTF-8 if the bytes are, else for Windows-1252, as clients do.
func decodeCharset(charset, s string) string {
	// RFC 2231 §5 has a language after the charset of an encoded word.
	charset, _, _ = strings.Cut(strings.ToLower(strings.Trim(charset, " \t\"'")), "*")
	switch charset {
	case "", "utf-8", "utf8", "us-ascii", "ascii", "unknown-8bit":
		return decodeBytes(s)
	case "utf-7", "utf7", "unicode-1-1-utf-7", "x-unicode-2-0-utf-7":
		return decodeUTF7(s)
	}
	enc, err := htmlindex.Get(charset)
	if err != nil {
		return decodeBytes(s)
	}
	out, err := enc.NewDecoder().String(s)
	if err != nil || s != "" && strings.Trim(out, "\ufffd") == "" {
		return decodeBytes(s)
	}
	return out
}

// decodeBytes is text of which no charset is known.
func decodeBytes(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	out, err := charmap.Windows1252.NewDecoder().String(s)
	if err != nil {
		return strings.ToValidUTF8(s, "\ufffd")
	}
	return out
}

// decodeUTF7 decodes UTF-7 (RFC 2152): base64 of UTF-16 between '+' and '-'.
func decodeUTF7(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		i := strings.IndexByte(s, '+')
		if i < 0 {
			break
		}
		b.WriteString(s[:i])
		s = s[i+1:]
		n := 0
		for n < len(s) && base64Standard.place[0][s[n]] != notBase64 {
			n++
		}
		if n == 0 && strings.HasPrefix(s, "-") {
			b.WriteByte('+')
		} else {
			b.WriteString(decodeUTF16(s[:n]))
		}
		s = strings.TrimPrefix(s[n:], "-")
	}
	b.WriteString(s)
	return strings.ToValidUTF8(b.String(), "\ufffd")
}

func decodeUTF16(letters string) string {
	raw, err := base64.RawStdEncoding.DecodeString(letters)
	if err != nil && len(letters) > 0 {
		raw, _ = base64.RawStdEncoding.DecodeString(letters[:len(letters)-1]) //nolint:errcheck // what can be read of it is read
	}
	units := make([]uint16, len(raw)/2)
	for i := range units {
		units[i] = uint16(raw[2*i])<<8 | uint16(raw[2*i+1])
	}
	return string(utf16.Decode(units))
}

// decodeWords decodes RFC 2047 encoded words wherever they stand, in quotes and
// in the middle of a word too, as clients do. Blanks between two of them go.
// Words that follow each other in one charset are decoded together: programs cut
// characters in two.
func decodeWords(s string) string {
	if !strings.Contains(s, "=?") {
		return s
	}
	var b, held strings.Builder
	heldCharset, between := "", ""
	flush := func() {
		if held.Len() > 0 {
			b.WriteString(decodeCharset(heldCharset, held.String()))
			held.Reset()
		}
	}
	after := false // an encoded word came last
	for len(s) > 0 {
		i := strings.Index(s, "=?")
		if i < 0 {
			break
		}
		charset, text, n := encodedWord(s[i:])
		if n == 0 {
			// Not a word: go on behind the mark.
			flush()
			b.WriteString(between)
			b.WriteString(s[:i+2])
			s, between, after = s[i+2:], "", false
			continue
		}
		if !after || strings.Trim(s[:i], " \t\n") != "" {
			flush()
			b.WriteString(s[:i])
		}
		if held.Len() > 0 && !strings.EqualFold(charset, heldCharset) {
			flush()
		}
		heldCharset = charset
		held.WriteString(text)
		s, after = s[i+n:], true
	}
	flush()
	b.WriteString(s)
	return b.String()
}

// encodedWord decodes the encoded word at the start of s to bytes in its charset;
// n is its length, 0 if there is none. A word may be without its end.
func encodedWord(s string) (charset, text string, n int) {
	head := s[2:min(len(s), 2+maxCharset)]
	q := strings.IndexByte(head, '?')
	if q < 0 || len(s) < 2+q+3 || s[2+q+2] != '?' {
		return "", "", 0
	}
	charset = head[:q]
	kind := s[2+q+1] | 0x20
	if kind != 'b' && kind != 'q' {
		return "", "", 0
	}
	body := s[2+q+3:]
	n = len(s)
	if end := strings.Index(body, "?="); end >= 0 {
		body = body[:end]
		n = 2 + q + 3 + end + 2
	}
	if kind == 'b' {
		d := &base64Decoder{tables: base64Either, padding: padRestarts}
		return charset, string(d.end(d.decode(nil, []byte(body)))), n
	}
	d := &quotedDecoder{mode: quotedMode{keepBlanks: true}}
	in := strings.ReplaceAll(strings.ReplaceAll(body, "\n", ""), "_", " ")
	return charset, string(d.end(d.decode(nil, []byte(in)))), n
}
