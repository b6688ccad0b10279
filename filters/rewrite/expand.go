package rewrite

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// maxSeparators bounds at how many characters an extension is tried to begin.
const maxSeparators = 32

// found is an entry with what was found of an address.
type found struct {
	entry
	extension string // that the targets keep, with its separator
	groups    []string
}

// seek looks an address up in all maps. seen are the entries that must not be used
// again.
func (f *Filter) seek(address string, isOurs func(string) bool, seen []string) (found, bool, error) {
	address = strings.TrimSuffix(address, ".") // a dot at the end of the domain names the same host
	for i, m := range f.maps {
		for key := range f.keys(lower(address), isOurs) {
			e, ok, err := m.find(key.text)
			if err != nil {
				return found{}, false, err
			}
			if !ok {
				continue
			}
			e.id = fmt.Sprintf("%d %s", i, key.text)
			if slices.Contains(seen, e.id) {
				continue
			}
			local := envelope.Local(address)
			return found{entry: e, extension: local[len(local)-key.extension:]}, true, nil
		}
		for n, e := range m.patterns() {
			if e.id = fmt.Sprintf("%d /%d", i, n); slices.Contains(seen, e.id) {
				continue
			}
			if groups := e.pattern.FindStringSubmatch(address); groups != nil {
				return found{entry: e, groups: groups}, true, nil
			}
		}
	}
	return found{}, false, nil
}

// key is what an address may be found under, and how much of the end of its local
// part that leaves out.
type key struct {
	text      string
	extension int
}

// keys are the keys of an address, which is in lower case, the nearest first.
func (f *Filter) keys(address string, isOurs func(string) bool) func(yield func(key) bool) {
	return func(yield func(key) bool) {
		local, domain, ok := cut(address)
		if !ok || domain == "" {
			return
		}
		ends := []int{len(local)}
		for end := len(local); len(ends) < maxSeparators; {
			if end = strings.LastIndexAny(local[:end], f.extension); end <= 0 {
				break
			}
			ends = append(ends, end)
		}
		for _, end := range ends {
			if !yield(key{local[:end] + "@" + domain, len(local) - end}) {
				return
			}
		}
		if isOurs(address) {
			for _, end := range ends {
				if !yield(key{local[:end] + "@", len(local) - end}) {
					return
				}
			}
		}
		if !yield(key{"@" + domain, 0}) {
			return
		}
		for rest := domain; ; {
			n := strings.IndexByte(rest, '.')
			if n < 0 {
				return
			}
			if !yield(key{"@" + rest[n:], 0}) {
				return
			}
			rest = rest[n+1:]
		}
	}
}

// apply is what a target makes of an address.
func (e *found) apply(target, address string) (string, error) {
	made := target
	if e.pattern != nil {
		var err error
		if made, err = fill(target, func(n int) (string, error) { return e.groups[n], nil }); err != nil {
			return "", err
		}
	}
	switch n := strings.LastIndexByte(made, '@'); {
	case n == 0 && !strings.HasPrefix(target, "@"): // groups that were empty
	case n == 0:
		made = envelope.Local(address) + made
	case e.extension != "":
		made = made[:n] + e.extension + made[n:]
	}
	if local := envelope.Local(made); !isAddress(made) || strings.Contains(local, "@") && !strings.HasPrefix(target, "@") {
		return "", fmt.Errorf("%s makes %q of %q, which is no address", e.where, reply.Clean(made, 100), reply.Clean(address, 100))
	}
	return made, nil
}

// expansion is the rewriting of one address.
type expansion struct {
	f      *Filter
	isOurs func(string) bool
	seen   []string // the entries that led to the address at hand
	by     string   // the first of them
	out    []string
	known  map[string]bool // of out
	steps  int
}

// expand is what comes of an address, in the order of the entries, and by which
// entry; "" if there is none for it, and it stays as it is.
func (f *Filter) expand(address string, isOurs func(string) bool) (to []string, by string, err error) {
	x := expansion{f: f, isOurs: isOurs, known: map[string]bool{}}
	if err := x.walk(address); err != nil {
		return nil, "", err
	}
	return x.out, x.by, nil
}

func (x *expansion) walk(address string) error {
	e, ok, err := x.f.seek(address, x.isOurs, x.seen)
	if err != nil {
		return err
	}
	if !ok {
		return x.put(address)
	}
	if x.by == "" {
		x.by = e.where
	}
	if len(x.seen) >= x.f.depth {
		return fmt.Errorf("%s: <%s> would be rewritten more than %d times in a row: shorten the maps, or raise depth", e.where, reply.Clean(address, 100), x.f.depth)
	}
	x.seen = append(x.seen, e.id)
	defer func() { x.seen = x.seen[:len(x.seen)-1] }()
	for _, t := range e.targets {
		if x.steps++; x.steps > maxSteps*x.f.expansion {
			return fmt.Errorf("%s: the maps lead in circles from <%s>", e.where, reply.Clean(address, 100))
		}
		next, err := e.apply(t, address)
		if err != nil {
			return err
		}
		if err := x.walk(next); err != nil {
			return err
		}
	}
	return nil
}

// maxSteps bounds the rewritings for each address that may come out: maps whose
// entries name each other would take for ever.
const maxSteps = 20

func (x *expansion) put(address string) error {
	c := canonical(address)
	if x.known[c] {
		return nil
	}
	if len(x.out) >= x.f.expansion {
		return fmt.Errorf("more than %d addresses come of one by %s: shorten the maps, or raise expansion", x.f.expansion, x.by)
	}
	x.known[c] = true
	x.out = append(x.out, address)
	return nil
}
