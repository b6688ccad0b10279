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
		s.Name = "sha256=" + hex.EncodeToString(sum[:])
	}
	return s
}
