package tap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/rules"
)

// rule is a tap with all its addresses.
type rule struct {
	tap    rules.Tap
	copies []string
}

// Limits of the configuration.
const (
	maxRules  = rules.MaxTaps
	maxCopies = 100 // addresses of one rule
)

// compile reads all rules, in the order in which they are tried.
func (o Options) compile() ([]rule, error) {
	if n := len(o.Rules) + len(o.Tables); n > maxRules {
		return nil, fmt.Errorf("%d rules, at most %d are allowed", n, maxRules)
	}
	var all []rule
	for i, line := range o.Rules {
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		t, err := rules.ParseTap(line)
		if err == nil {
			err = checkAddress(t.Copy)
		}
		if err != nil {
			return nil, pipeline.AtKey(fmt.Sprintf("rules[%d]", i), fmt.Errorf("%s: %w", show(line), err))
		}
		all = append(all, rule{t, []string{t.Copy}})
	}
	for i, table := range o.Tables {
		r, key, err := table.compile()
		if err != nil {
			return nil, pipeline.AtKey(fmt.Sprintf("rule[%d]%s", i, key), err)
		}
		all = append(all, r)
	}
	return all, nil
}

// show quotes the beginning of a line of the configuration.
func show(line string) string {
	const most = 80
	if len(line) > most {
		return fmt.Sprintf("%q…", line[:most])
	}
	return fmt.Sprintf("%q", line)
}

// compile reads a table. With an error comes the key that it is about, ".copy".
func (r Rule) compile() (c rule, key string, err error) {
	kind, regex := rules.TapKind(0), ""
	for _, side := range [...]struct {
		key   string
		kind  rules.TapKind
		regex string
	}{{".from", rules.TapFrom, r.From}, {".to", rules.TapTo, r.To}, {".any", rules.TapAny, r.Any}} {
		if side.regex == "" {
			continue
		}
		if key != "" {
			return rule{}, side.key, errors.New("a rule has one of from, to and any; write a second rule")
		}
		key, kind, regex = side.key, side.kind, side.regex
	}
	if key == "" {
		return rule{}, "", errors.New(`it needs one of from, to and any; write any = ".*" to match every address`)
	}
	if c.copies, err = addresses(r.Copy); err != nil {
		return rule{}, ".copy", err
	}
	if r.Not {
		if regex[0] == '!' {
			return rule{}, ".not", fmt.Errorf("not = true and the ! of %s undo each other; remove one of them", show(regex))
		}
		regex = "!" + regex
	}
	if c.tap, err = rules.NewTap(kind, regex, c.copies[0]); err != nil {
		return rule{}, key, fmt.Errorf("%s: %w", show(regex), err)
	}
	return c, "", nil
}

// addresses reads what "copy" holds: one address or several.
func addresses(from any) ([]string, error) {
	var all []string
	switch v := from.(type) {
	case nil:
	case string:
		all = []string{v}
	case []string:
		all = slices.Clone(v)
	case []any:
		for _, one := range v {
			s, ok := one.(string)
			if !ok {
				return nil, fmt.Errorf("%v is not an address; write a string", one)
			}
			all = append(all, s)
		}
	default:
		return nil, fmt.Errorf("%v is not an address; write a string or a list of strings", v)
	}
	if len(all) == 0 {
		return nil, errors.New(`the address is missing; write copy = "archive@example.org"`)
	}
	if len(all) > maxCopies {
		return nil, fmt.Errorf("%d addresses, at most %d are allowed", len(all), maxCopies)
	}
	for _, a := range all {
		if err := checkAddress(a); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// checkAddress refuses what we could not send a copy to.
func checkAddress(a string) error {
	switch {
	case a == "":
		return errors.New("the address is missing")
	case len(a) > envelope.MaxAddress:
		return fmt.Errorf("the address has %d bytes, at most %d are allowed", len(a), envelope.MaxAddress)
	case !envelope.ValidBytes(a) || strings.Contains(a, " "):
		return fmt.Errorf("address %s holds a blank or a control character", show(a))
	case strings.ContainsAny(a, "<>"):
		return fmt.Errorf("address %s: write it without angle brackets", show(a))
	case envelope.Local(a) == "" || envelope.Domain(a) == "":
		return fmt.Errorf("address %s has no domain; write user@example.org", show(a))
	}
	return nil
}

// hit is one rule that matched.
type hit struct {
	rule      int
	recipient int // index in the envelope, or -1 for the sender
}

func (h hit) side() string {
	if h.recipient < 0 {
		return "sender"
	}
	return "recipient"
}

// between is how many recipients are matched before the time is looked at.
const between = 256

// match finds the rules that match: in qmail's order, and only the first, or
// with all = true each at its first match.
func (f *Filter) match(ctx context.Context, tx *pipeline.Transaction) ([]hit, error) {
	var hits []hit
	for i := range f.rules {
		if f.rules[i].tap.MatchFrom(tx.Envelope.Sender) {
			hits = append(hits, hit{i, -1})
			if !f.all {
				return hits, nil
			}
		}
	}
	left := f.toRecipients
	if f.all {
		left = without(left, hits)
	}
	for k, n := range tx.Active {
		if len(left) == 0 {
			break
		}
		if k%between == 0 && ctx.Err() != nil {
			return nil, fmt.Errorf("matching %d recipients: %w", len(tx.Active), ctx.Err())
		}
		address := tx.Envelope.Recipients[n].Address
		for j := 0; j < len(left); j++ {
			i := left[j]
			if !f.rules[i].tap.MatchTo(address) {
				continue
			}
			hits = append(hits, hit{i, n})
			if !f.all {
				return hits, nil
			}
			left = slices.Delete(left, j, j+1)
			j--
		}
	}
	return hits, nil
}

// without is a copy of all, less the rules that have matched.
func without(all []int, hits []hit) []int {
	matched := func(i int) bool { return slices.ContainsFunc(hits, func(h hit) bool { return h.rule == i }) }
	return slices.DeleteFunc(slices.Clone(all), matched)
}

// group is the addresses to which the same rules send a copy. They share one
// copy; others must not, since it names its rules, and by a rule one may guess
// a recipient whom the other archive is not to know.
type group struct {
	hits      []hit
	addresses []string
}

// gather sorts the addresses of all hits into groups, each address once.
func gather(all []rule, hits []hit) []group {
	var order []string
	of := map[string]*group{}
	for _, h := range hits {
		for _, a := range all[h.rule].copies {
			key := same(a)
			g := of[key]
			if g == nil {
				g = &group{addresses: []string{a}}
				of[key] = g
				order = append(order, key)
			}
			if n := len(g.hits); n == 0 || g.hits[n-1] != h {
				g.hits = append(g.hits, h)
			}
		}
	}
	var groups []group
	for _, key := range order {
		g := of[key]
		i := slices.IndexFunc(groups, func(o group) bool { return slices.Equal(o.hits, g.hits) })
		if i < 0 {
			groups = append(groups, *g)
			continue
		}
		groups[i].addresses = append(groups[i].addresses, g.addresses...)
	}
	return groups
}

// same is equal for addresses that are the same mailbox: the case of a local
// part may count, that of a domain does not (RFC 5321 §2.4).
func same(a string) string { return envelope.Local(a) + "@" + envelope.Domain(a) }
