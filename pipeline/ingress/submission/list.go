package submission

import "strings"

// insertion puts something in place of drop bytes.
type insertion struct {
	at, drop int
	put      string
}

// addressList reads an address list (RFC 5322 §3.4, with the obsolete forms of
// §4.4) from text and notes what its addresses lack. It goes over the text once
// and keeps nothing of it but the edits.
type addressList struct {
	text  string
	at    int
	hosts *hosts
	edits []insertion
	grown int // by all edits, in bytes

	spec   addrSpec
	angle  bool // within < >
	closed bool // behind the > of this address
	group  bool // within the : and ; of a group
}

// addrSpec is what was seen of an address, or of the words before one.
type addrSpec struct {
	ats, words, domainWords int
	last                    byte // of the last token: w(ord), '.', '@' or 0
	end                     int  // of the last token
	dotted                  bool // a dot in the domain
	literal                 bool // an address literal for a domain
	odd                     bool // more than an address: words side by side, and what is no address
}

// read reports whether the whole list was understood, and may grow as much as
// it would.
func (l *addressList) read() bool {
	for l.at < len(l.text) {
		start := l.at
		c := l.text[start]
		ok := true
		switch c {
		case ' ', '\t', '\r', '\n':
			l.at++
		case '(':
			ok = l.comment()
		case '"':
			if ok = l.quoted('"'); ok {
				l.spec.word(start, l.at, l.text)
			}
		case '[':
			if ok = l.quoted(']'); ok {
				l.spec.domainLiteral(l.at)
			}
		case '<', '>', ',', ':', ';', '@', '.':
			l.at++
			ok = l.special(c)
		case ')', ']', '\\':
			ok = false
		default:
			l.atom()
			l.spec.word(start, l.at, l.text)
		}
		if !ok || l.grown > maxGrowth {
			return false
		}
	}
	l.endAddress()
	return !l.angle && !l.group && l.grown <= maxGrowth
}

// comment passes over a comment with those in it.
func (l *addressList) comment() bool {
	depth := 0
	for ; l.at < len(l.text); l.at++ {
		switch l.text[l.at] {
		case '\\':
			l.at++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				l.at++
				return true
			}
		}
	}
	return false
}

// quoted passes over a quoted string or an address literal.
func (l *addressList) quoted(end byte) bool {
	for l.at++; l.at < len(l.text); l.at++ {
		switch l.text[l.at] {
		case '\\':
			l.at++
		case end:
			l.at++
			return true
		}
	}
	return false
}

func (l *addressList) atom() {
	n := strings.IndexAny(l.text[l.at:], " \t\r\n()\"[]<>,:;@.\\")
	if n < 0 {
		n = len(l.text) - l.at
	}
	l.at += n
}

// special takes one of the characters that structure a list.
func (l *addressList) special(c byte) bool {
	switch c {
	case '.':
		l.spec.dot(l.at)
	case '@':
		l.spec.atSign(l.at)
	case '<':
		if l.angle || l.closed {
			return false
		}
		l.angle, l.spec = true, addrSpec{}
	case '>':
		if !l.angle {
			return false
		}
		l.endSpec()
		l.angle, l.closed = false, true
	case ',':
		if l.angle {
			return l.endRoute()
		}
		l.endAddress()
	case ':':
		if l.angle {
			return l.endRoute()
		}
		if l.group || l.closed || l.spec.ats > 0 {
			return false
		}
		l.group, l.spec = true, addrSpec{}
	case ';':
		if l.angle || !l.group {
			return false
		}
		l.endAddress()
		l.group = false
	}
	return true
}

// endRoute forgets a part of a source route, "@a," or "@b:".
func (l *addressList) endRoute() bool {
	route := l.spec.ats == 1 && l.spec.words == 0
	l.spec = addrSpec{}
	return route
}

// endAddress ends an address that may have had angle brackets.
func (l *addressList) endAddress() {
	if !l.closed {
		l.endSpec()
	}
	l.closed, l.spec = false, addrSpec{}
}

// endSpec notes what the address lacks.
func (l *addressList) endSpec() {
	s := &l.spec
	switch {
	case s.odd || s.literal || s.words == 0:
	case s.ats == 0:
		l.edit(insertion{at: s.end, put: l.hosts.host})
	case s.domainWords == 0:
	case s.last == 'w' && l.text[s.end-1] == '+':
		l.edit(insertion{at: s.end - 1, drop: 1, put: l.hosts.plus})
	case !s.dotted:
		l.edit(insertion{at: s.end, put: l.hosts.domain})
	}
	l.spec = addrSpec{}
}

func (l *addressList) edit(e insertion) {
	l.edits = append(l.edits, e)
	l.grown += len(e.put) - e.drop
}

// word takes an atom or a quoted string.
func (s *addrSpec) word(start, end int, text string) {
	word := text[start:end]
	// An encoded-word belongs to a phrase, one with a comma in it as well, and +
	// alone is no host that could lie in a domain.
	s.odd = s.odd || s.last == 'w' || strings.HasPrefix(word, "=?")
	if s.ats == 0 {
		s.words++
	} else {
		s.domainWords++
		s.odd = s.odd || word[0] == '"' || word == "+"
	}
	s.last, s.end = 'w', end
}

func (s *addrSpec) dot(end int) {
	if s.ats > 0 {
		s.dotted = true
	}
	s.last, s.end = '.', end
}

func (s *addrSpec) atSign(end int) {
	s.ats++
	s.odd = s.odd || s.ats > 1 || s.words == 0
	s.last, s.end = '@', end
}

func (s *addrSpec) domainLiteral(end int) {
	s.odd = s.odd || s.ats != 1 || s.last != '@'
	s.literal, s.last, s.end = true, 'w', end
}
