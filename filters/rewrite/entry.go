package rewrite

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

const (
	// maxLine bounds an entry, in bytes, maxTargets its right side.
	maxLine    = 64 << 10
	maxTargets = 1000
	// maxPatterns bounds the patterns of one map: each is tried for each address.
	maxPatterns = 1000
	maxPattern  = 1000 // bytes
	// maxDomain is the longest domain in bytes (RFC 5321 §4.5.3.1.2).
	maxDomain = 255
)

// entry is one line of a map.
type entry struct {
	targets []string
	pattern *regexp.Regexp // nil: the entry is found by its key
	where   string         // for logs and traces
	id      string         // no two entries of a filter have the same
}

// lower lowers ASCII letters.
func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// canonical is what two addresses have in common that are the same: the local
// part is left to its host.
func canonical(address string) string {
	local := envelope.Local(address)
	return local + lower(address[len(local):])
}

// isDomain reports whether a text can be the domain of an address.
func isDomain(d string) bool {
	if len(d) == 0 || len(d) > maxDomain {
		return false
	}
	if d[0] == '[' { // RFC 5321 §4.1.3
		return len(d) > 2 && d[len(d)-1] == ']' && strings.Trim(lower(d[1:len(d)-1]), "0123456789abcdefghijklmnopqrstuvwxyz.:-") == ""
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(c rune) bool {
			return c < 0x80 && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
		}) {
			return false
		}
	}
	return true
}

// isAddress reports whether a text is an address that can be a recipient.
func isAddress(a string) bool {
	local := envelope.Local(a)
	return len(a) <= envelope.MaxAddress && envelope.ValidBytes(a) && local != "" && len(local) < len(a) && isDomain(a[len(local)+1:])
}

// isPlain reports whether a local part needs no quotes in a map.
func isPlain(local string) bool {
	return local != "" && !strings.ContainsAny(local, " \t\"<>(),;\\@") && envelope.ValidBytes(local)
}

// parse reads an entry's line. The key is in lower case; "" if it is a pattern.
func parse(line string, senders bool) (key string, e entry, err error) {
	if len(line) > maxLine {
		return "", entry{}, fmt.Errorf("the entry has more than %d bytes", maxLine)
	}
	var right string
	if strings.HasPrefix(line, "/") {
		end := closing(line)
		if end < 0 {
			return "", entry{}, errors.New("the pattern does not end with /")
		}
		if e.pattern, err = compile(line[1:end]); err != nil {
			return "", entry{}, err
		}
		right = strings.TrimPrefix(line[end+1:], ":")
		if right != "" && !strings.ContainsAny(right[:1], " \t") {
			return "", entry{}, errors.New("write a blank after the pattern")
		}
	} else {
		n := strings.IndexAny(line, " \t")
		if n < 0 {
			n = len(line)
		}
		right = line[n:]
		if key, err = parseKey(strings.TrimSuffix(line[:n], ":")); err != nil {
			return "", entry{}, err
		}
	}
	e.targets, err = parseTargets(right, e.pattern, senders)
	return key, e, err
}

// closing finds the slash that ends a pattern: one before a blank, a colon or the
// end, so that slashes need not be marked.
func closing(line string) int {
	for i := 1; i < len(line); i++ {
		if line[i] == '/' && (i+1 == len(line) || strings.IndexByte(" \t:", line[i+1]) >= 0) {
			return i
		}
	}
	return -1
}

// compile makes a pattern, which must match an address as a whole.
func compile(src string) (*regexp.Regexp, error) {
	if src == "" || len(src) > maxPattern {
		return nil, fmt.Errorf("a pattern has 1 to %d bytes", maxPattern)
	}
	if _, err := regexp.Compile(src); err != nil { // a group that it does not open must not close ours
		return nil, fmt.Errorf("the pattern is none: %w", err)
	}
	re, err := regexp.Compile(`\A(?i:` + src + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("the pattern is none: %w", err)
	}
	return re, nil
}

func parseKey(key string) (string, error) {
	local, domain, found := cut(key)
	switch {
	case !found:
		return "", fmt.Errorf("%q is no address: write user@example.org, user@, @example.org or /pattern/", reply.Clean(key, 80))
	case local != "" && !isPlain(local):
		return "", fmt.Errorf("%q is no address: quoted and odd local parts cannot be in a map", reply.Clean(key, 80))
	case local == "" && domain == "", domain != "" && !isDomain(domain) && (local != "" || !isDomain(strings.TrimPrefix(domain, "."))), len(key) > envelope.MaxAddress:
		return "", fmt.Errorf("%q is no address: write user@example.org, user@, @example.org or @.example.org", reply.Clean(key, 80))
	}
	return lower(key), nil
}

// cut divides an address at its last @.
func cut(address string) (local, domain string, found bool) {
	n := strings.LastIndexByte(address, '@')
	if n < 0 {
		return address, "", false
	}
	return address[:n], address[n+1:], true
}

// parseTargets reads the right side of an entry.
func parseTargets(text string, pattern *regexp.Regexp, senders bool) (targets []string, err error) {
	for t := range strings.FieldsFuncSeq(text, func(c rune) bool { return c == ' ' || c == '\t' || c == ',' }) {
		if err := checkTarget(t, pattern); err != nil {
			return nil, err
		}
		if !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
		if len(targets) > maxTargets {
			return nil, fmt.Errorf("more than %d addresses on the right side", maxTargets)
		}
	}
	switch {
	case len(targets) == 0:
		return nil, errors.New("there is no address on the right side")
	case senders && len(targets) > 1:
		return nil, errors.New("there is more than one address on the right side: a message has one sender")
	}
	return targets, nil
}

func checkTarget(t string, pattern *regexp.Regexp) error {
	probe := t
	if pattern != nil {
		var err error
		if probe, err = fill(t, func(n int) (string, error) {
			if n > pattern.NumSubexp() {
				return "", fmt.Errorf("%q asks for group %d, and the pattern has %d", reply.Clean(t, 80), n, pattern.NumSubexp())
			}
			return "x", nil
		}); err != nil {
			return err
		}
	}
	local, domain, found := cut(probe)
	if !found || !isDomain(domain) || local != "" && !isPlain(local) || len(t) > envelope.MaxAddress {
		return fmt.Errorf("%q is no address: write user@example.org, or @example.org", reply.Clean(t, 80))
	}
	return nil
}

// fill puts the values of groups in the place of $1 to $99; $$ is a dollar.
func fill(t string, group func(n int) (string, error)) (string, error) {
	if !strings.Contains(t, "$") {
		return t, nil
	}
	var b strings.Builder
	for i := 0; i < len(t); i++ {
		if t[i] != '$' {
			b.WriteByte(t[i])
			continue
		}
		end := i + 1
		for end < len(t) && end < i+3 && '0' <= t[end] && t[end] <= '9' {
			end++
		}
		switch n, err := strconv.Atoi(t[i+1 : end]); {
		case err == nil:
			text, err := group(n)
			if err != nil {
				return "", err
			}
			b.WriteString(text)
			i = end - 1
		case i+1 < len(t) && t[i+1] == '$':
			b.WriteByte('$')
			i++
		default:
			return "", fmt.Errorf("%q: write $1 to $99 for a group, $$ for a dollar", reply.Clean(t, 80))
		}
	}
	return b.String(), nil
}
