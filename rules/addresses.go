package rules

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// MaxPatterns bounds the patterns of an [AddressList], which are tried one by one. Plain addresses are not bounded.
const MaxPatterns = 4096

// Dialect is what the lines of an [AddressList] mean.
type Dialect uint8

// The dialects of control/badmailfrom.
const (
	// Globs is that of plain qmail, in which a line is an address or @host, with the wildcards of SPAMCONTROL and indimail
	// (badmailpatterns): a line that holds * (anything) or ? (one character) is matched against the whole address, and a
	// line that begins with ! is an exception from all others, wherever it stands.
	Globs Dialect = iota
	// Regexes is that of the qregex patch: each line is a POSIX extended regular expression, found anywhere in the address,
	// and one that begins with ! matches the addresses in which it is not found.
	Regexes
)

// AddressList is a list of addresses as in control/badmailfrom. The case of ASCII letters does not count. It is immutable
// and safe for concurrent use; nil matches nothing.
type AddressList struct {
	exact      map[string]string // lowered: as written; addresses and @hosts
	exceptions map[string]string
	globs      []addressGlob
	regexes    []addressRegex
}

type addressGlob struct {
	pattern, line string
	exception     bool
}

type addressRegex struct {
	re     *regexp.Regexp
	negate bool
	line   string
}

// NewAddressList makes a list of lines, as [ControlLines] gives them. Errors name the line.
func NewAddressList(lines []Line, dialect Dialect) (*AddressList, error) {
	l := &AddressList{exact: map[string]string{}, exceptions: map[string]string{}}
	for _, line := range lines {
		add := l.addGlob
		if dialect == Regexes {
			add = l.addRegex
		}
		if err := add(line.Text); err != nil {
			return nil, fmt.Errorf("line %d: %w", line.No, err)
		}
		if len(l.globs)+len(l.regexes) > MaxPatterns {
			return nil, fmt.Errorf("line %d: more than %d patterns", line.No, MaxPatterns)
		}
	}
	return l, nil
}

func (l *AddressList) addGlob(line string) error {
	text, exception := strings.CutPrefix(line, "!")
	if text == "" {
		return errors.New("an address is missing behind the ! of an exception")
	}
	key := lowerASCII(text)
	switch {
	case strings.ContainsAny(text, "*?"):
		l.globs = append(l.globs, addressGlob{pattern: key, line: line, exception: exception})
	case exception:
		l.exceptions[key] = line
	default:
		if _, ok := l.exact[key]; !ok {
			l.exact[key] = line
		}
	}
	return nil
}

func (l *AddressList) addRegex(line string) error {
	if len(line) > maxTapRegex {
		return fmt.Errorf("the regular expression is %d bytes long, at most %d are allowed", len(line), maxTapRegex)
	}
	text, negate := strings.CutPrefix(line, "!")
	re, err := compilePOSIX(text)
	if err != nil {
		return errors.New(clean(err.Error(), maxMessage))
	}
	l.regexes = append(l.regexes, addressRegex{re: re, negate: negate, line: line})
	return nil
}

// Len is the number of different lines.
func (l *AddressList) Len() int {
	if l == nil {
		return 0
	}
	return len(l.exact) + len(l.exceptions) + len(l.globs) + len(l.regexes)
}

// Match says which line an address is on, as that line is written. The empty address, that of bounces, is on none, as in
// qmail and in qregex. A list of patterns takes time in proportion to their number and to the address.
func (l *AddressList) Match(address string) (line string, ok bool) {
	return l.MatchAny([]string{address})
}

// MatchAny is Match for an address that can be written in several forms: it is on a line that one of them is on, but on none
// if one of them is an exception, and on a negated line only if the expression is found in none of them.
func (l *AddressList) MatchAny(forms []string) (line string, ok bool) {
	if l == nil || slices.Contains(forms, "") {
		return "", false
	}
	for _, address := range forms {
		if _, except := lookUpAddress(l.exceptions, address); except {
			return "", false
		}
		if !ok {
			line, ok = lookUpAddress(l.exact, address)
		}
	}
	for _, g := range l.globs {
		if (g.exception || !ok) && slices.ContainsFunc(forms, func(address string) bool { return globMatch(g.pattern, address) }) {
			if g.exception {
				return "", false
			}
			line, ok = g.line, true
		}
	}
	if len(l.regexes) == 0 || ok {
		return line, ok
	}
	wide := make([]string, len(forms))
	for i, address := range forms {
		wide[i] = widen(address)
	}
	for _, r := range l.regexes {
		if slices.ContainsFunc(wide, r.re.MatchString) != r.negate {
			return r.line, true
		}
	}
	return "", false
}

// lookUpAddress finds an address, or the @host that it ends with (bmfcheck in qmail-smtpd.c).
func lookUpAddress(list map[string]string, address string) (string, bool) {
	if len(list) == 0 {
		return "", false
	}
	key := lowerASCII(address)
	if line, ok := list[key]; ok {
		return line, true
	}
	at := strings.LastIndexByte(key, '@')
	if at < 0 {
		return "", false
	}
	line, ok := list[key[at:]]
	return line, ok
}

// KeySet is a set of strings, as [CDB] and [CDBFile] are.
type KeySet interface {
	Has(key string) (bool, error)
}

// MatchDomain looks a domain up in a set of keys as [DomainList.Match] does in its list: itself, then its suffixes from
// each dot on. This is morercpthosts.cdb (rcpthosts.c); keys are lower-case there.
func MatchDomain(keys KeySet, domain string) (entry string, ok bool, err error) {
	if domain = lowerASCII(domain); domain == "" {
		return "", false, nil
	}
	for at := 0; ; at++ {
		if ok, err = keys.Has(domain[at:]); ok || err != nil {
			return domain[at:], ok, err
		}
		next := strings.IndexByte(domain[min(at+1, len(domain)):], '.')
		if next < 0 {
			return "", false, nil
		}
		at += next
	}
}
