package dkim

import (
	"net/mail"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"github.com/postern-mta/postern/pipeline/message"
)

// Bounds of names in the DNS (RFC 1035 §2.3.4).
const (
	maxName  = 253
	maxLabel = 63
)

// asciiName is a name in the form in which the DNS has it: lower-case, A-labels
// (RFC 8616 §4), no dot at the end. ok is false for what is no name of a host
// or of a key; underscores are let pass.
func asciiName(s string) (name string, ok bool) {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 4*maxName || !utf8.ValidString(s) {
		return "", false
	}
	for i := range len(s) {
		if s[i] >= 0x80 {
			a, err := idna.Lookup.ToASCII(s)
			if err != nil {
				return "", false
			}
			s = a
			break
		}
	}
	if len(s) > maxName {
		return "", false
	}
	s = strings.ToLower(s)
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return "", false
		}
	}
	return s, true
}

func isLabel(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !isAlphanumeric(c) && c != '_' && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return s != "" && len(s) <= maxLabel
}

// isBelow reports whether a name is domain or lies below it.
func isBelow(name, domain string) bool {
	rest, ok := strings.CutSuffix(name, domain)
	return ok && (rest == "" || strings.HasSuffix(rest, "."))
}

// aligned reports whether two domains belong to one owner: they share the part
// that is registered (RFC 7489 §3.1.1, relaxed).
func aligned(a, b string) bool {
	return a == b || organization(a) == organization(b)
}

// organization is the registered part of a domain; the domain itself if it is
// one under which others register.
func organization(domain string) string {
	if o, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil {
		return o
	}
	return domain
}

// Bounds of what is looked at to tell a message's author.
const (
	maxFrom    = 8 << 10 // bytes of a From field
	maxFroms   = 10      // From fields
	maxAuthors = 100
)

// authors are the domains of a message's authors, each once, and how many From
// fields there are. A field that is no address list gives every domain that
// could be meant: it must not hide one.
func authors(h message.Head) (domains []string, fields int) {
	add := func(d string) {
		d, ok := asciiName(d)
		if !ok || len(domains) == maxAuthors {
			return
		}
		for _, known := range domains {
			if known == d {
				return
			}
		}
		domains = append(domains, d)
	}
	for i := range h.Len() {
		f := h.Field(i)
		if !f.Is("From") {
			continue
		}
		if fields++; fields > maxFroms {
			continue
		}
		value := f.Value()
		value = value[:min(len(value), maxFrom)]
		list, err := mail.ParseAddressList(value)
		if err != nil {
			for _, d := range guessDomains(value) {
				add(d)
			}
			continue
		}
		for _, a := range list {
			add(a.Address[strings.LastIndexByte(a.Address, '@')+1:])
		}
	}
	return domains, fields
}

// guessDomains are the words behind every @.
func guessDomains(s string) []string {
	var all []string
	for {
		i := strings.IndexByte(s, '@')
		if i < 0 {
			return all
		}
		s = s[i+1:]
		end := strings.IndexAny(s, " \t<>()[]\"',;:@\\")
		if end < 0 {
			end = len(s)
		}
		all = append(all, s[:end])
		s = s[end:]
	}
}
