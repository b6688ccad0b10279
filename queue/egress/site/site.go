// Package site names the far end of deliveries: the hosts that take a domain's
// mail, to which limits and memory belong.
//
// It promises that domains with the same hosts have the same name, whatever
// their order, preference, case or health, and that two different sets of hosts
// never share one.
package site

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

// Site is the far end of deliveries. It is a value and compared with ==.
type Site struct {
	// Name tells sites apart.
	Name string
	// Label is what people read; different sites may share it.
	Label string
}

// In is the site of those domains of s that are in a group with a name of letters,
// digits, - and _; one of no group is s itself.
func (s Site) In(group string) Site {
	if group == "" {
		return s
	}
	return Site{Name: group + "=" + s.Name, Label: group + ": " + s.Label}
}

// Group is the group of a site's name, "" if it is in none.
func Group(name string) string {
	group, rest, found := strings.Cut(name, "=")
	if !found || group == digest && len(rest) == 2*sha256.Size && strings.Trim(rest, "0123456789abcdef") == "" {
		return ""
	}
	return group
}

// Hosts are the hosts of a site's name, of which a digest tells none.
func Hosts(name string) []string {
	if g := Group(name); g != "" {
		name = strings.TrimPrefix(name, g+"=")
	}
	if strings.Contains(name, "=") {
		return nil
	}
	return strings.Split(name, ",")
}

// digest begins the names that are digests.
const digest = "sha256"

// maxName is the longest name in bytes that lists the hosts; a longer one is a
// digest of them, so that names stay short keys.
const maxName = 200

// Of is the site of a set of host names.
func Of(hosts ...string) Site {
	set := make([]string, 0, len(hosts))
	for _, h := range hosts {
		set = append(set, strings.ToLower(strings.TrimSuffix(h, ".")))
	}
	slices.Sort(set)
	set = slices.Compact(set)
	if len(set) == 0 {
		return Site{}
	}
	s := Site{Name: strings.Join(set, ","), Label: set[0]}
	if len(set) > 1 {
		s.Label += " +" + strconv.Itoa(len(set)-1)
	}
	if len(s.Name) > maxName {
		// A comma occurs in no host name and an equals sign in no list of them.
		sum := sha256.Sum256([]byte(s.Name))
		s.Name = digest + "=" + hex.EncodeToString(sum[:])
	}
	return s
}
