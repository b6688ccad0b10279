package rules

import "strings"

// DomainList is a list of domains as in control/rcpthosts and control/locals: an entry is a domain, or a suffix that
// starts with a dot and means every domain below. It is immutable and safe for concurrent use; nil matches nothing.
type DomainList struct {
	entries map[string]string // lowered: as written
}

// NewDomainList makes a list of entries, such as the lines of a control file. As in constmap (constmap.c), the case of
// ASCII letters does not count, and nothing else is changed: an entry with blanks or a final dot matches only its like.
// Of entries that are equal the first one is kept; empty ones are left out.
func NewDomainList(entries []string) *DomainList {
	l := &DomainList{entries: make(map[string]string, len(entries))}
	for _, e := range entries {
		key := lowerASCII(e)
		if _, ok := l.entries[key]; !ok && e != "" {
			l.entries[key] = e
		}
	}
	return l
}

// Len returns the number of different entries.
func (l *DomainList) Len() int {
	if l == nil {
		return 0
	}
	return len(l.entries)
}

// Match looks a domain up: itself first, then its suffixes from each dot on, the longest first, as rcpthosts does
// (rcpthosts.c). ".example.org" matches a.example.org and a.b.example.org, but not example.org. It returns the entry as it
// was written. The domain is what follows the @: qmail lets addresses without one pass, which is for the caller to decide.
func (l *DomainList) Match(domain string) (entry string, ok bool) {
	if l == nil || len(l.entries) == 0 {
		return "", false
	}
	domain = lowerASCII(domain)
	for at := 0; ; at++ {
		if entry, ok = l.entries[domain[at:]]; ok {
			return entry, true
		}
		next := strings.IndexByte(domain[min(at+1, len(domain)):], '.')
		if next < 0 {
			return "", false
		}
		at += next
	}
}
