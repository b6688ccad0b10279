package move

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/rules"
)

// option is what a file says of one option: its value for everybody, and for
// those domains and addresses that have one of their own. The nearest counts, as
// in simscan: that of the recipient's address, of the address up to a hyphen, of
// the recipient's domain, then of the sender's likewise, then that for everybody.
type option struct {
	value string
	of    map[string]string
}

// values are all values that somebody may have, in order.
func (o option) values() []string {
	all := []string{o.value}
	for _, v := range o.of {
		all = append(all, v)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// query asks who has these values of these options.
type query struct {
	options map[string]option
	want    map[string]string
	// noSender leaves the sender's settings out, where they would make a rule too
	// long.
	noSender bool
}

// Expressions of rules that are always or never true, while they are built.
const never = "false"

func and(a, b string) string {
	switch {
	case a == never || b == never:
		return never
	case a == always:
		return b
	case b == always:
		return a
	}
	return group(a, " or ") + " and " + group(b, " or ")
}

func or(a, b string) string {
	switch {
	case a == always || b == always:
		return always
	case a == never:
		return b
	case b == never:
		return a
	}
	return group(a, " and ") + " or " + group(b, " and ")
}

func not(a string) string {
	switch a {
	case always:
		return never
	case never:
		return always
	}
	if !strings.Contains(a, " and ") && !strings.Contains(a, " or ") {
		switch {
		case strings.HasPrefix(a, "like("):
			return "not " + a
		case strings.HasPrefix(a, "domain(") && strings.Contains(a, " == "):
			return strings.Replace(a, " == ", " != ", 1)
		case strings.HasPrefix(a, "domain("):
			return strings.Replace(a, " in [", " not in [", 1)
		}
	}
	return "not (" + a + ")"
}

// group puts parentheses around what holds an operator.
func group(a, operator string) string {
	if strings.Contains(a, operator) {
		return "(" + a + ")"
	}
	return a
}

// unit is a key as keys are ordered: by domain, and within it by local part.
type unit struct{ domain, local string }

func unitOf(key string) unit {
	local, domain, address := strings.Cut(key, "@")
	if !address {
		return unit{domain: key}
	}
	return unit{domain, local}
}

func (u unit) less(v unit) bool {
	return u.domain < v.domain || u.domain == v.domain && u.local < v.local
}

func (u unit) key() string {
	if u.local == "" {
		return u.domain
	}
	return u.local + "@" + u.domain
}

// span is a range of recipients, from the first unit on up to the second; empty
// ones are no ends.
type span struct{ from, to unit }

// rule is that somebody is in it.
func (s span) rule(who string) string {
	bound := func(u unit, same, beyond string) string {
		domain := fmt.Sprintf("domain(%s)", who)
		if u.local == "" {
			return fmt.Sprintf("%s %s %q", domain, same, u.domain)
		}
		return fmt.Sprintf("(%s %s %q or %s == %q and lower(local(%s)) %s %q)", domain, beyond, u.domain, domain, u.domain, who, same, u.local)
	}
	rule := always
	if s.from != (unit{}) {
		rule = and(rule, bound(s.from, ">=", ">"))
	}
	if s.to != (unit{}) {
		rule = and(rule, bound(s.to, "<", "<"))
	}
	return rule
}

// touches reports whether the settings of a key may be those of somebody in it.
func (s span) touches(u unit) bool {
	if s.to != (unit{}) && !u.less(s.to) {
		return false
	}
	if s.from == (unit{}) || !u.less(s.from) {
		return true
	}
	return u.domain == s.from.domain && (u.local == "" || strings.HasPrefix(s.from.local, u.local+"-"))
}

// rules are rules that match, between them, all messages of which one recipient
// has what is asked for. Each begins with the prefix.
func (q query) rules(prefix string, f *file) ([]string, error) {
	var units []unit
	for _, o := range q.options {
		for key := range o.of {
			units = append(units, unitOf(key))
		}
	}
	slices.SortFunc(units, func(a, b unit) int {
		if a.less(b) {
			return -1
		}
		if b.less(a) {
			return 1
		}
		return 0
	})
	units = slices.Compact(units)
	if len(units) > maxUnits || !fits(q.everybody(), maxSenderRule) {
		q.noSender = true
		f.remark("there are more settings than a rule can ask a sender for, so those of senders do not count here.")
	}
	return q.split(prefix, units, span{})
}

// Bounds of rules that are made: a rule has at most 4096 bytes and 500 parts.
const (
	maxRule       = 4000
	maxSenderRule = 1000
	maxUnits      = 200 // keys in a rule, so that no rule is made that is much too long
)

// fits reports whether a rule is one.
func fits(rule string, most int) bool {
	if len(rule) > most {
		return false
	}
	_, err := rules.Compile(pipeline.Facts(), rule)
	return err == nil
}

// split makes one rule for the recipients in a span, or two for its halves, and so
// on.
func (q query) split(prefix string, units []unit, s span) ([]string, error) {
	if len(units) <= maxUnits {
		condition := q.recipient(s)
		switch {
		case condition == never:
			return nil, nil
		case condition != always:
			condition = "any(recipients, " + condition + ")"
		case prefix != "":
			condition = ""
		}
		if rule := strings.TrimSuffix(prefix+condition, " and "); fits(rule, maxRule) {
			return []string{rule}, nil
		}
	}
	if len(units) < 2 {
		return nil, fmt.Errorf("the settings of %s make a rule that is too long", show(s.from.key()))
	}
	middle := units[len(units)/2]
	low, err := q.split(prefix, units[:len(units)/2], span{s.from, middle})
	if err != nil {
		return nil, err
	}
	high, err := q.split(prefix, units[len(units)/2:], span{middle, s.to})
	return append(low, high...), err
}

// recipient is the condition that the recipient # in a span has what is asked
// for.
func (q query) recipient(s span) string {
	condition := always
	for _, name := range sorted(q.options) {
		o, want := q.options[name], q.want[name]
		own := o.has("#", s, func(v string) bool { return v == want })
		set := o.has("#", s, func(string) bool { return true })
		condition = and(condition, or(own, and(not(set), q.sender(o, want))))
	}
	if condition == never {
		return never
	}
	return and(s.rule("#"), condition)
}

// sender is the condition that who has no setting of his own has this one by the
// sender, or because everybody has.
func (q query) sender(o option, want string) string {
	unset := never
	if o.value == want {
		unset = always
	}
	if q.noSender {
		return unset
	}
	own := o.has("sender", span{}, func(v string) bool { return v == want })
	if unset == never {
		return own
	}
	other := o.has("sender", span{}, func(v string) bool { return v != want })
	return not(other)
}

// everybody is the longest condition about the sender that there may be.
func (q query) everybody() string {
	condition := always
	for _, name := range sorted(q.options) {
		condition = and(condition, q.sender(q.options[name], q.want[name]))
	}
	return condition
}

// has is the condition that somebody has a setting of his own, by his address or
// domain, whose value is one of those that are meant.
func (o option) has(who string, s span, meant func(string) bool) string {
	var units []unit
	for key := range o.of {
		if u := unitOf(key); s.touches(u) {
			units = append(units, u)
		}
	}
	sortNested(units)
	var whole []string // domains, all of whose addresses are meant
	rest := never
	for len(units) > 0 {
		domain := units[0].domain
		n := slices.IndexFunc(units, func(u unit) bool { return u.domain != domain })
		if n < 0 {
			n = len(units)
		}
		of, all := units[:n], false
		units = units[n:]
		if of[0].local == "" {
			all, of = meant(o.of[domain]), of[1:]
		}
		switch differ := o.differ(who, of, all, meant); {
		case !all:
			rest = or(rest, differ)
		case differ == never:
			whole = append(whole, domain)
		default:
			rest = or(rest, and(inDomains(who, []string{domain}), not(differ)))
		}
	}
	if len(whole) == 0 {
		return rest
	}
	return or(inDomains(who, whole), rest)
}

// sortNested sorts units so that a domain stands in front of its addresses, and an
// address in front of those that extend it.
func sortNested(units []unit) {
	keys := make(map[unit]string, len(units))
	for _, u := range units {
		keys[u] = u.domain + "\x00" + strings.ReplaceAll(u.local, "-", "\x00")
	}
	slices.SortFunc(units, func(a, b unit) int { return strings.Compare(keys[a], keys[b]) })
}

// differ is the condition that an address, of a domain of which these addresses,
// sorted, have settings of their own, differs from the domain: whether it is meant is
// not as cur says.
func (o option) differ(who string, addresses []unit, cur bool, meant func(string) bool) string {
	var leaves []string
	rest := never
	for len(addresses) > 0 {
		a := addresses[0]
		n := 1
		for n < len(addresses) && strings.HasPrefix(addresses[n].local, a.local+"-") {
			n++
		}
		inner := addresses[1:n]
		addresses = addresses[n:]
		is := meant(o.of[a.key()])
		below := o.differ(who, inner, is, meant)
		switch {
		case is == cur:
			rest = or(rest, below)
		case below == never:
			leaves = append(leaves, a.key())
		default:
			rest = or(rest, and(like(who, a.key()), not(below)))
		}
	}
	if len(leaves) == 0 {
		return rest
	}
	return or(like(who, leaves...), rest)
}

func inDomains(who string, domains []string) string {
	if len(domains) == 1 {
		return fmt.Sprintf("domain(%s) == %q", who, domains[0])
	}
	quoted := make([]string, len(domains))
	for i, d := range domains {
		quoted[i] = fmt.Sprintf("%q", d)
	}
	return fmt.Sprintf("domain(%s) in [%s]", who, strings.Join(quoted, ", "))
}

// like is the condition that somebody has one of these addresses, or one of them
// with an extension.
func like(who string, addresses ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "like(%s", who)
	for _, a := range addresses {
		local, domain, _ := strings.Cut(a, "@")
		fmt.Fprintf(&b, ", %q, %q", a, local+"-*@"+domain)
	}
	return b.String() + ")"
}

// matches is the condition that somebody's settings are, among others, those of a
// key.
func matches(who, key string) string {
	if strings.Contains(key, "@") {
		return like(who, key)
	}
	return inDomains(who, []string{key})
}
