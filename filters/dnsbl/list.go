package dnsbl

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// kind is what a list is asked about.
type kind uint8

const (
	byAddress kind = iota
	byHelo
	bySender
)

// kindNames are the words of the option "kind", and the beginnings of symbols.
var kindNames = [...]struct{ word, symbol string }{byAddress: {"ip", "DNSBL_"}, byHelo: {"helo", "HELOBL_"}, bySender: {"sender", "RHSBL_"}}

// families are the words of the option "family": whether a list knows addresses
// of IPv4, and of IPv6.
var families = [...]struct {
	word      string
	four, six bool
}{{"both", true, true}, {"ipv4", true, false}, {"ipv6", false, true}}

const (
	// maxWeight bounds weights, so that sums are exact enough.
	maxWeight = 1e6
	// maxText bounds the text for peers, and maxName the name of a list.
	maxText, maxName = 200, 100
	// maxAnswers bounds the patterns of one list.
	maxAnswers = 100
	// maxZone leaves room for an address of IPv6 before the zone.
	maxZone = 253 - 64
)

// list is a List, read.
type list struct {
	kind         kind
	zone, name   string
	answers      []pattern
	weight       float64
	pass, txt    bool
	text, symbol string
	four, six    bool
	warned       atomic.Int64 // when the log was told last
}

// set reads a List. With an error comes the key that it is about.
func (l *list) set(o List) (key string, err error) {
	zone := strings.ToLower(strings.Trim(o.Zone, "."))
	if !pipeline.IsFQDN(zone) || len(zone) > maxZone {
		return "zone", fmt.Errorf("%q is no domain of a list; write one like zen.spamhaus.org", reply.Clean(o.Zone, 80))
	}
	l.zone, l.name, l.pass, l.txt, l.weight = zone, o.Name, o.Pass, o.TXT, 1
	if l.name == "" {
		l.name = zone
	}
	if reply.Clean(l.name, maxName) != l.name {
		return "name", fmt.Errorf("write at most %d characters of ASCII", maxName)
	}
	if l.text = o.Text; reply.Clean(l.text, maxText) != l.text {
		return "text", fmt.Errorf("write one line of at most %d characters of ASCII", maxText)
	}
	if o.Weight != nil {
		l.weight = *o.Weight
	}
	if !(l.weight >= -maxWeight && l.weight <= maxWeight) {
		return "weight", fmt.Errorf("%v: write a number from -%v to %v", l.weight, float64(maxWeight), float64(maxWeight))
	}
	if err := l.setKind(o.Kind); err != nil {
		return "kind", err
	}
	if err := l.setFamily(o.Family); err != nil {
		return "family", err
	}
	if len(o.Answers) > maxAnswers {
		return "answers", fmt.Errorf("more than %d answers", maxAnswers)
	}
	for _, s := range o.Answers {
		p, err := parsePattern(s)
		if err != nil {
			return "answers", fmt.Errorf("%q: %w", reply.Clean(s, 80), err)
		}
		l.answers = append(l.answers, p)
	}
	return "symbol", l.setSymbol(o.Symbol)
}

func (l *list) setKind(word string) error {
	for k, n := range kindNames {
		if word == n.word || word == "" && k == 0 {
			l.kind = kind(k)
			return nil
		}
	}
	return fmt.Errorf("%q: write ip, helo or sender", reply.Clean(word, 80))
}

func (l *list) setFamily(word string) error {
	for i, f := range families {
		if word == f.word || word == "" && i == 0 {
			l.four, l.six = f.four, f.six
			return nil
		}
	}
	return fmt.Errorf("%q: write both, ipv4 or ipv6", reply.Clean(word, 80))
}

func (l *list) setSymbol(given string) error {
	if given == "" {
		given = kindNames[l.kind].symbol + strings.Map(func(r rune) rune {
			switch {
			case r >= 'a' && r <= 'z':
				return r - 'a' + 'A'
			case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
				return r
			}
			return '_'
		}, l.name)
	}
	if reply.Clean(given, maxName+10) != given || strings.ContainsAny(given, " \"'\\,;") {
		return errors.New("write a word of ASCII letters, digits and underscores")
	}
	l.symbol = given
	return nil
}

// pattern is a set of IPv4 addresses: from and to for each of the four numbers.
type pattern [4]struct{ from, to uint8 }

// parsePattern reads "127.0.0.2-11" or "127.0.*.3".
func parsePattern(s string) (p pattern, err error) {
	const want = "write an address in 127.0.0.0/8 whose numbers may be ranges or stars, like 127.0.0.2-11 or 127.0.*.3"
	fields := strings.Split(s, ".")
	if len(fields) != 4 || fields[0] != "127" {
		return p, errors.New(want)
	}
	for i, field := range fields {
		if field == "*" {
			p[i].to = 255
			continue
		}
		from, to, isRange := strings.Cut(field, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 8)
		b, err2 := strconv.ParseUint(to, 10, 8)
		if err1 != nil || err2 != nil || a > b {
			return p, errors.New(want)
		}
		p[i].from, p[i].to = uint8(a), uint8(b)
	}
	if p[1].from == 255 && p[2].from == 255 {
		return p, errors.New("127.255.255.* are error codes of lists and never count")
	}
	return p, nil
}

// has reports whether an address of IPv4 is in the set.
func (p *pattern) has(a netip.Addr) bool {
	for i, n := range a.As4() {
		if n < p[i].from || n > p[i].to {
			return false
		}
	}
	return true
}

// single reports whether the set is one address.
func (p *pattern) single() bool {
	for _, n := range p {
		if n.from != n.to {
			return false
		}
	}
	return true
}

// counts reports whether an answer in 127.0.0.0/8 is a listing.
func (l *list) counts(a netip.Addr) bool {
	nobody := a == netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for i := range l.answers {
		if p := &l.answers[i]; p.has(a) && (!nobody || p.single()) {
			return true
		}
	}
	return len(l.answers) == 0 && !nobody
}

// isBroken reports whether an answer says that the list is of no use: it is
// none, or it is one of the codes for that.
func isBroken(a netip.Addr) bool {
	if !a.Is4() {
		return true
	}
	n := a.As4()
	return n[0] != 127 || n[1] == 255 && n[2] == 255
}

// query is what the lists of a kind are asked.
type query struct {
	kind    kind
	subject string // for people
	name    string // before the zone
	never   string // what no list has, before the zone
	six     bool   // about an address of IPv6
}

// The test entries that no list has (RFC 5782 §5): 127.0.0.1, ::FFFF:7F00:1, and
// the name INVALID.
const (
	neverFour   = "1.0.0.127"
	neverSix    = "1.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0"
	neverDomain = "invalid"
)

func domainQuery(k kind, domain string) query {
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	return query{kind: k, subject: domain, name: domain, never: neverDomain}
}

// reverse is an address as lists are asked about it (RFC 5782 §2.1 and §2.4):
// its numbers, or the digits of its numbers, from the last to the first.
func reverse(a netip.Addr) string {
	if a.Is4() {
		n := a.As4()
		return fmt.Sprintf("%d.%d.%d.%d", n[3], n[2], n[1], n[0])
	}
	const digits = "0123456789abcdef"
	name := make([]byte, 0, 64)
	n := a.As16()
	for i := len(n) - 1; i >= 0; i-- {
		name = append(name, digits[n[i]&15], '.', digits[n[i]>>4], '.')
	}
	return string(name[:len(name)-1])
}
