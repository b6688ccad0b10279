package relay

import (
	"strings"

	"golang.org/x/net/idna"

	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// maxName is the longest domain that is looked at, in bytes: what an address on
// the wire can hold (RFC 5321 §4.5.3.1.2).
const maxName = 255

// plainASCII reports whether a domain has only one form.
func plainASCII(domain string) bool {
	for i := range len(domain) {
		if domain[i] >= 0x80 {
			return false
		}
	}
	return !strings.Contains(lower(domain), "xn--")
}

// domainForms are the forms in which our lists may have a domain: lower-case,
// with A-labels and with U-labels (RFC 5890 §2.3.2.1). Two domains are equal if
// their A-labels are. What is no domain has no form.
func domainForms(domain string) []string {
	domain = strings.TrimSuffix(domain, ".")
	if domain == "" || len(domain) > maxName {
		return nil
	}
	if plainASCII(domain) {
		return []string{lower(domain)}
	}
	ascii, err := idna.Lookup.ToASCII(domain)
	if err != nil {
		return nil
	}
	forms := []string{ascii}
	if unicode, err := idna.Lookup.ToUnicode(ascii); err == nil && unicode != ascii {
		forms = append(forms, unicode)
	}
	return forms
}

func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// trick says how a local part could make a later server pass the message on,
// quoted or not; "" if it could not. A % at the end and a ! at the start name
// no host.
func trick(local string) string {
	bare := strings.Map(narrow, wire.UnquoteLocal(local))
	switch {
	case strings.ContainsRune(bare, '@'):
		return "an address within an address"
	case strings.IndexByte(strings.TrimSuffix(bare, "%"), '%') >= 0:
		return "a percent hack"
	case strings.LastIndexByte(bare, '!') > 0:
		return "a bang path"
	case strings.Contains(bare, "::"):
		return "a DECnet path"
	}
	return ""
}

// narrow takes the wide and small forms of what a trick is made of for the
// plain ones, as a server that normalizes (NFKC) would.
func narrow(r rune) rune {
	switch r {
	case '＠', '﹫':
		return '@'
	case '％', '﹪':
		return '%'
	case '！', '﹗':
		return '!'
	case '：', '﹕':
		return ':'
	}
	return r
}
