package smtp

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/postern-mta/postern/pipeline/envelope"
)

// maxDomain is the longest domain in bytes (RFC 5321 §4.5.3.1.2).
const maxDomain = 255

// The errors of addresses.
var (
	// ErrAddress: not an address, or none that can stand on a command line.
	ErrAddress = errors.New("not a mail address")
	// ErrUTF8: an address with bytes above 127 where SMTPUTF8 was not agreed on
	// (RFC 6531 §3.2).
	ErrUTF8 = errors.New("address needs SMTPUTF8")
)

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrAddress, fmt.Sprintf(format, a...))
}

// ParsePath reads a path as it stands in MAIL and RCPT: "<local@domain>" (RFC
// 5321 §4.1.2), and returns the address in it and what follows. A quoted local
// part keeps its quotes, a source route is dropped, an address literal stays in
// its brackets. "<>" is the empty address and a local part without a domain is
// taken, as "<postmaster>" must be; whether they may stand here is for the
// caller to say. Dots may stand anywhere in a local part, as they do in the
// addresses of some providers. With utf8 set, UTF-8 may stand in both parts
// (RFC 6531 §3.3). Errors are ErrAddress and ErrUTF8.
func ParsePath(s string, utf8 bool) (address, rest string, err error) {
	if !strings.HasPrefix(s, "<") {
		return "", "", bad("no <")
	}
	s = s[1:]
	routed := strings.HasPrefix(s, "@")
	if routed {
		if s, err = dropRoute(s); err != nil {
			return "", "", err
		}
	}
	n, err := localPart(s, utf8)
	if err != nil {
		return "", "", err
	}
	if routed && n == 0 {
		return "", "", bad("source route to nobody")
	}
	end := n
	if end < len(s) && s[end] == '@' {
		k, err := domainPart(s[end+1:], utf8)
		if err != nil {
			return "", "", err
		}
		if n == 0 {
			return "", "", bad("no local part")
		}
		end += 1 + k
	} else if strings.HasPrefix(s, `"`) {
		// Its @, if it has one, would be taken for the domain's later on.
		return "", "", bad("quoted local part without a domain")
	}
	if end > envelope.MaxAddress {
		return "", "", bad("more than %d bytes", envelope.MaxAddress)
	}
	if end == len(s) || s[end] != '>' {
		return "", "", bad("no > where one should be")
	}
	return s[:end], s[end+1:], nil
}

// dropRoute passes over "@a,@b:" (RFC 5321 §4.1.2, A-d-l).
func dropRoute(s string) (string, error) {
	for {
		if !strings.HasPrefix(s, "@") {
			return "", bad("source route")
		}
		n, err := domainPart(s[1:], false)
		if err != nil {
			return "", err
		}
		s = s[1+n:]
		switch {
		case strings.HasPrefix(s, ","):
			s = s[1:]
		case strings.HasPrefix(s, ":"):
			return s[1:], nil
		default:
			return "", bad("source route")
		}
	}
}

// localPart is the length of the local part at the start of s, 0 if there is
// none.
func localPart(s string, utf8 bool) (int, error) {
	if strings.HasPrefix(s, `"`) {
		return quotedString(s, utf8)
	}
	n := 0
	for n < len(s) {
		size, err := oneByte(s[n:], utf8, isAtom)
		if err != nil {
			return 0, err
		}
		if size == 0 {
			break
		}
		n += size
	}
	return n, nil
}

// quotedString is the length of the Quoted-string at the start of s.
func quotedString(s string, utf8 bool) (int, error) {
	for i := 1; i < len(s); {
		switch c := s[i]; {
		case c == '"':
			return i + 1, nil
		case c == '\\':
			if i+1 == len(s) || s[i+1] < ' ' || s[i+1] > '~' {
				return 0, bad("backslash in a quoted string")
			}
			i += 2
		default:
			size, err := oneByte(s[i:], utf8, isQuotable)
			if err != nil {
				return 0, err
			}
			if size == 0 {
				return 0, bad("control character")
			}
			i += size
		}
	}
	return 0, bad("quoted string without an end")
}

// oneByte is the size of the first character of s if it is allowed, else 0.
func oneByte(s string, utf8OK bool, ascii func(byte) bool) (int, error) {
	if s[0] < utf8.RuneSelf {
		if ascii(s[0]) {
			return 1, nil
		}
		return 0, nil
	}
	if !utf8OK {
		return 0, ErrUTF8
	}
	r, size := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && size == 1 || r < 0xa0 {
		return 0, bad("not UTF-8")
	}
	return size, nil
}

// isAtom takes the characters of Dot-string (RFC 5321 §4.1.2, RFC 5322 §3.2.3).
func isAtom(c byte) bool {
	return isAlnum(c) || strings.IndexByte("!#$%&'*+-/=?^_`{|}~.", c) >= 0
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func isQuotable(c byte) bool { return c >= ' ' && c <= '~' }

// domainPart is the length of the domain or address literal at the start of s.
func domainPart(s string, utf8 bool) (int, error) {
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s[:min(len(s), maxDomain)], ']')
		if end < 2 {
			return 0, bad("address literal")
		}
		for _, c := range []byte(s[1:end]) {
			if !isAlnum(c) && strings.IndexByte(".:-_", c) < 0 {
				return 0, bad("address literal")
			}
		}
		return end + 1, nil
	}
	n, label := 0, 0
	for n < len(s) {
		size, err := oneByte(s[n:], utf8, func(c byte) bool { return isAlnum(c) || c == '-' || c == '_' || c == '.' })
		if err != nil {
			return 0, err
		}
		if size == 0 {
			break
		}
		if s[n] == '.' {
			if label == 0 {
				return 0, bad("domain with an empty label")
			}
			label = 0
		} else {
			label += size
		}
		n += size
	}
	if n == 0 || n > maxDomain {
		return 0, bad("domain of %d bytes", n)
	}
	return n, nil
}

// Literal is the address of an address literal, "[192.0.2.1]" or
// "[IPv6:2001:db8::1]" (RFC 5321 §4.1.3).
func Literal(domain string) (netip.Addr, bool) {
	inner, ok := strings.CutPrefix(domain, "[")
	if !ok || !strings.HasSuffix(inner, "]") {
		return netip.Addr{}, false
	}
	inner = inner[:len(inner)-1]
	if len(inner) > 5 && strings.EqualFold(inner[:5], "IPv6:") {
		a, err := netip.ParseAddr(inner[5:])
		return a, err == nil && a.Is6() && a.Zone() == ""
	}
	a, err := netip.ParseAddr(inner)
	return a, err == nil && a.Is4()
}

// FormatPath writes an address as a path. A local part that needs quotes gets
// them, as qmail's addresses do not carry them (quote.c). What could end the
// path or the line is ErrAddress: control characters everywhere, and < or >
// outside of quotes that the address brought itself. Without utf8, an address
// with bytes above 127 is ErrUTF8.
func FormatPath(address string, utf8 bool) (string, error) {
	if address == "" {
		return "<>", nil
	}
	if len(address) > envelope.MaxAddress {
		return "", bad("more than %d bytes", envelope.MaxAddress)
	}
	if !envelope.ValidBytes(address) {
		return "", bad("control character")
	}
	at := strings.LastIndexByte(address, '@')
	local, tail := address, ""
	if at >= 0 {
		local, tail = address[:at], address[at:]
		n, err := domainPart(tail[1:], utf8)
		if err != nil {
			return "", err
		}
		if n != len(tail)-1 {
			return "", bad("domain %q", tail[1:])
		}
	}
	n, err := localPart(local, utf8)
	switch {
	case errors.Is(err, ErrUTF8):
		return "", err
	case err == nil && n == len(local) && n > 0 && (at >= 0 || local[0] != '"'):
		return "<" + address + ">", nil
	}
	if at < 0 {
		return "", bad("no domain, and a local part that needs quotes")
	}
	quoted, err := QuoteLocal(local, utf8)
	if err != nil {
		return "", err
	}
	return "<" + quoted + tail + ">", nil
}

// QuoteLocal writes a local part as a quoted string whatever it holds, but for
// control characters, < and >, which are ErrAddress.
func QuoteLocal(local string, utf8 bool) (string, error) {
	if local == "" {
		return "", bad("no local part")
	}
	b := make([]byte, 0, len(local)+8)
	b = append(b, '"')
	for i := 0; i < len(local); {
		size, err := oneByte(local[i:], utf8, isQuotable)
		if err != nil {
			return "", err
		}
		if size == 0 || local[i] == '<' || local[i] == '>' {
			return "", bad("character %q", local[i])
		}
		if local[i] == '"' || local[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, local[i:i+size]...)
		i += size
	}
	return string(append(b, '"')), nil
}

// UnquoteLocal is a local part without its quotes and backslashes, as qmail has
// it in an envelope; one without quotes stays.
func UnquoteLocal(local string) string {
	if len(local) < 2 || local[0] != '"' || local[len(local)-1] != '"' {
		return local
	}
	inner := local[1 : len(local)-1]
	if !strings.ContainsRune(inner, '\\') {
		return inner
	}
	b := make([]byte, 0, len(inner))
	for i := 0; i < len(inner); i++ {
		if inner[i] == '\\' && i+1 < len(inner) {
			i++
		}
		b = append(b, inner[i])
	}
	return string(b)
}
