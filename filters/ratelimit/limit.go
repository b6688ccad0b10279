package ratelimit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// limit is a limit made ready.
type limit struct {
	name string
	by   *basis
	most counts // 0: no limit
	per  time.Duration
	when *rules.Rule
}

// basis is what a limit counts by.
type basis struct {
	word string
	// one gives the subject of a transaction, "" if there is none to count by.
	// It is nil where each recipient has a subject: then each gives it.
	one  func(tx *pipeline.Transaction) string
	each func(address string) string
}

// bases are what a limit can count by.
var bases = [...]basis{
	{word: "sender", one: func(tx *pipeline.Transaction) string { return person(tx.Envelope.Sender) }},
	{word: "sender-domain", one: func(tx *pipeline.Transaction) string { return envelope.Domain(person(tx.Envelope.Sender)) }},
	{word: "user", one: func(tx *pipeline.Transaction) string { return strings.ToLower(tx.Session.User) }},
	{word: "client", one: func(tx *pipeline.Transaction) string {
		if a := clientOf(tx); a.IsValid() {
			return a.String()
		}
		return ""
	}},
	{word: "client-net", one: func(tx *pipeline.Transaction) string { return network(clientOf(tx)) }},
	{word: "recipient", each: plain},
	{word: "recipient-domain", each: envelope.Domain},
	{word: "all", one: func(*pipeline.Transaction) string { return "*" }},
}

// person is the address of somebody; "" for the senders of bounces.
func person(sender string) string {
	if sender == envelope.DoubleBounce {
		return ""
	}
	return plain(sender)
}

// plain is one form of an address: in lower case, and without a dot at the end,
// which names the same host.
func plain(address string) string { return strings.TrimSuffix(strings.ToLower(address), ".") }

func clientOf(tx *pipeline.Transaction) netip.Addr {
	return tx.Session.Peer.Addr().Unmap().WithZone("")
}

// network is an address's /24, or /64.
func network(a netip.Addr) string {
	bits := 24
	switch {
	case !a.IsValid():
		return ""
	case a.Is6():
		bits = 64
	}
	return netip.PrefixFrom(a, bits).Masked().String()
}

// nameBytes are what a limit's name may be made of.
const nameBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./"

const (
	minPer   = time.Second
	maxPer   = 31 * 24 * time.Hour
	maxName  = 64
	maxCount = 1_000_000_000
)

// compile makes a limit ready; the keys of its errors begin with a dot.
func (l Limit) compile(schema *rules.Schema) (c limit, wrong []pipeline.KeyError) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	words := make([]string, len(bases))
	for i := range bases {
		if words[i] = bases[i].word; words[i] == l.By {
			c.by = &bases[i]
		}
	}
	if c.by == nil {
		bad(".by", "%q: write one of %s", reply.Clean(l.By, 80), strings.Join(words, ", "))
	}
	if l.Per < minPer || l.Per > maxPer {
		bad(".per", "%v: write a time from 1s to 31d", l.Per)
	}
	c.per = l.Per
	set := false
	for _, n := range []struct {
		key   string
		what  int
		value int64
		most  int64
	}{
		{".messages", messages, int64(l.Messages), maxCount},
		{".recipients", recipients, int64(l.Recipients), maxCount},
		{".attempts", attempts, int64(l.Attempts), maxCount},
		{".bytes", bytes, l.Bytes, most},
	} {
		if n.value < 0 || n.value > n.most {
			bad(n.key, "%d: write 1 to %d", n.value, n.most)
		}
		c.most[n.what] = uint64(n.value)
		set = set || n.value > 0
	}
	if !set {
		bad("", "it limits nothing: write messages, recipients, bytes or attempts")
	}
	if l.Attempts > 0 && c.by != nil && c.by.one == nil {
		bad(".attempts", "attempts are counted before a recipient is known: count them by %s", words[0])
	}
	if c.name = l.Name; c.name == "" {
		c.name = l.By + "/" + short(l.Per)
	} else if len(c.name) > maxName || strings.Trim(c.name, nameBytes) != "" {
		bad(".name", "%q: write letters, digits, - _ . and /, at most %d", reply.Clean(c.name, 80), maxName)
	}
	if l.When != "" {
		var err error
		if c.when, err = rules.Compile(schema, l.When); err != nil {
			bad(".when", "%w", err)
		}
	}
	return c, wrong
}

// checkNames says which limits have one name.
func checkNames(limits []limit) (wrong []error) {
	seen := map[string]int{}
	for i, l := range limits {
		if first, twice := seen[l.name]; twice {
			wrong = append(wrong, pipeline.AtKey(fmt.Sprintf("limit[%d]", i), fmt.Errorf("it is called %s, as limit %d is, and would count in the same place: give it a name of its own", l.name, first+1)))
			continue
		}
		seen[l.name] = i
	}
	return wrong
}

// short is a time without parts that are nothing: 1h, not 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// applies reports whether the limit is about a transaction. One whose rule can
// only be answered at a later stage is not asked yet.
func (l *limit) applies(stage pipeline.Stage, facts rules.Facts) (is bool, err error) {
	if l.when == nil {
		return true, nil
	}
	if pipeline.Stage(l.when.Since()) > stage {
		return false, nil
	}
	is, err = l.when.Match(facts)
	if err != nil {
		return false, fmt.Errorf("limit %s: when: %w", l.name, err)
	}
	return is, nil
}

// maxSubject is the longest subject that is kept as it is, in bytes.
const maxSubject = 800

const recordKey = 'l'

// key is where the state has what was counted of a subject.
func (l *limit) key(subject string) string {
	if len(subject) > maxSubject {
		sum := sha256.Sum256([]byte(subject))
		subject = subject[:maxSubject] + "#" + hex.EncodeToString(sum[:16])
	}
	return string(recordKey) + l.name + "\x00" + subject
}

var errNoState = errors.New("there is nowhere to count")
