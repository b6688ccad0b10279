package config

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/rules"
)

// Pool is a table [pool.NAME]: sources that some mail leaves from.
type Pool struct {
	Sources []string       `toml:"sources" doc:"the sources that share the mail: names of tables [source.NAME], or default for the address that the system chooses"`
	Weights map[string]int `toml:"weights" min:"1" doc:"a source's share of the messages, like {a = 3}, where the others have 1"`
	Senders []string       `toml:"senders" doc:"the envelope senders whose mail it is: example.org, .example.org for every domain below it, user@example.org, or an empty text for mail from nobody (bounces)"`
	Rule    string         `toml:"rule" doc:"a rule for the mail, like header(\"X-Campaign\") != \"\"; it is asked when the message is accepted, and its answer stays with the message" unset:"none"`

	rule *rules.Rule
}

// Share is a source of a pool.
type Share struct {
	Source string
	Weight int
}

// DefaultPool is the name of the pool of all mail that is in no other.
const DefaultPool = "default"

// pools are what the tables [pool.NAME] come to.
type pools struct {
	shares map[string][]Share
	// ruled are the names of those with a rule, in the order of the file.
	ruled   []string
	senders map[string]string // the pool of an address, domain, .suffix, or ""
}

// HasPool reports whether there is a pool of a name.
func (c *Config) HasPool(name string) bool { return c.pools.shares[name] != nil }

// Shares are the sources of a pool, at least one. Those of one that is not there any
// more are the default's; without [pool.default] that is the system's address.
func (c *Config) Shares(pool string) []Share {
	if all := c.pools.shares[pool]; all != nil {
		return all
	}
	return c.pools.shares[DefaultPool]
}

// PoolsOf are the names of the pools that a source is in.
func (c *Config) PoolsOf(source string) (names []string) {
	for _, name := range sorted(c.pools.shares) {
		if slices.ContainsFunc(c.pools.shares[name], func(s Share) bool { return s.Source == source }) {
			names = append(names, name)
		}
	}
	return names
}

// SourcesUsed are the sources that are in a pool, those of the default pool first, and
// in the order in which pools name them.
func (c *Config) SourcesUsed() (names []string) {
	for _, pool := range append([]string{DefaultPool}, sorted(c.pools.shares)...) {
		for _, s := range c.pools.shares[pool] {
			if !slices.Contains(names, s.Source) {
				names = append(names, s.Source)
			}
		}
	}
	return names
}

// HasPools reports whether there is any pool but the default one.
func (c *Config) HasPools() bool { return len(c.pools.shares) > 1 }

// HasPoolRules reports whether a pool has a rule.
func (c *Config) HasPoolRules() bool { return len(c.pools.ruled) > 0 }

// PoolByRule is the first pool in the file whose rule matches a message, "" for none.
// With an error that is not known, because a rule has no answer; the pool is then that
// of the rules that have one.
func (c *Config) PoolByRule(facts rules.Facts) (pool string, err error) {
	for _, name := range c.pools.ruled {
		ok, e := c.Pool[name].rule.Match(facts)
		if ok && e == nil {
			return name, err
		}
		if err == nil {
			err = e
		}
	}
	return "", err
}

// choosesPool is pipeline.ChainOptions.Pool; nil where no pool has a rule.
func (c *Config) choosesPool() func(*pipeline.Transaction, message.Message) string {
	if !c.HasPoolRules() {
		return nil
	}
	return func(tx *pipeline.Transaction, m message.Message) string {
		pool, err := c.PoolByRule(pipeline.FactsAt(tx, m))
		if err != nil && c.o.Env.Log != nil {
			c.o.Env.Log.Warn("a rule of a pool has no answer for a message, which is as if it did not match", "id", tx.ID, "pool", pool, "error", err)
		}
		return pool
	}
}

// PoolOf is the pool of a message: the one that a rule chose when it was accepted, if
// it is still there; else that of its sender's address, domain, or nearest suffix;
// else DefaultPool.
func (c *Config) PoolOf(sender, chosen string) string {
	if chosen != "" && c.HasPool(chosen) {
		return chosen
	}
	if len(c.pools.senders) == 0 {
		return DefaultPool
	}
	if sender == envelope.DoubleBounce {
		sender = ""
	}
	address := strings.ToLower(sender)
	if name, ok := c.pools.senders[address]; ok && (address == "" || strings.Contains(address, "@")) {
		return name
	}
	domain := envelope.Domain(address)
	if name, ok := c.pools.senders[domain]; ok && domain != "" {
		return name
	}
	for at := range len(domain) {
		if domain[at] == '.' {
			if name, ok := c.pools.senders[domain[at:]]; ok {
				return name
			}
		}
	}
	return DefaultPool
}

// checkPools reads the tables [pool.NAME], or what the control directory has in their
// place.
func (l *loader) checkPools() {
	l.pools = pools{shares: map[string][]Share{}, senders: map[string]string{}}
	if !l.written("pool") {
		l.bindings()
	}
	for _, name := range l.inFile("pool", l.Pool) {
		p, path := l.Pool[name], "pool."+name
		l.checkPoolSources(name, path, p)
		l.checkPoolSenders(name, path, p)
		l.checkPoolRule(name, path, p)
	}
	if l.pools.shares[DefaultPool] == nil {
		l.pools.shares[DefaultPool] = []Share{{DefaultLimits, 1}}
	}
	for _, name := range sorted(l.Source) {
		used := name == DefaultLimits
		for _, shares := range l.pools.shares {
			used = used || slices.ContainsFunc(shares, func(s Share) bool { return s.Source == name })
		}
		if !used && !l.bad["pool"] {
			l.warn(l.at("source."+name), "[source.%s] is in no pool, so no mail leaves from it: name it in the sources of [pool.default], or of another pool", name)
		}
	}
}

// inFile are the names of tables in the order of the file.
func (l *loader) inFile(path string, tables map[string]*Pool) []string {
	names := sorted(tables)
	slices.SortStableFunc(names, func(a, b string) int {
		x, y := l.at(path+"."+a), l.at(path+"."+b)
		return cmp.Or(cmp.Compare(x.line, y.line), cmp.Compare(x.col, y.col))
	})
	return names
}

func (l *loader) checkPoolSources(name, path string, p *Pool) {
	known := append(sorted(l.Source), DefaultLimits)
	if len(p.Sources) == 0 && !l.bad[path+".sources"] {
		l.add(l.at(path+".sources"), "%s.sources is missing: name the sources that the mail leaves from, like [\"a\", \"b\"]", path)
	}
	shares := make([]Share, 0, len(p.Sources))
	for i, s := range p.Sources {
		at := l.atItem(path+".sources", i)
		switch {
		case !slices.Contains(known, s):
			l.suggest(at, rules.Suggest(s, known), "%s.sources: there is no table [source.%s]", path, shown(s))
		case slices.ContainsFunc(shares, func(other Share) bool { return other.Source == s }):
			l.add(at, "%s.sources: %s is named twice; for a larger share write weights = {%s = 2}", path, show(s), shown(s))
		default:
			shares = append(shares, Share{s, max(1, p.Weights[s])})
		}
	}
	for _, s := range sorted(p.Weights) {
		if !slices.Contains(p.Sources, s) {
			l.suggest(l.at(path+".weights."+s), rules.Suggest(s, p.Sources), "%s.weights: %s is not among the pool's sources", path, show(s))
		} else if w := p.Weights[s]; w > maxWeight {
			l.add(l.at(path+".weights."+s), "%s.weights.%s = %d: it is at most %d", path, s, w, maxWeight)
		}
	}
	if len(shares) > 0 {
		l.pools.shares[name] = shares
	}
}

// maxWeight is the greatest weight.
const maxWeight = 1000

func (l *loader) checkPoolSenders(name, path string, p *Pool) {
	switch {
	case name == DefaultPool && p.Senders != nil:
		l.add(l.at(path+".senders"), "%s.senders: this pool is for all mail that is in no other; give it another name, or leave senders out", path)
		return
	case name != DefaultPool && p.Senders == nil && p.Rule == "" && !l.bad[path] && !l.bad[path+".senders"] && !l.bad[path+".rule"]:
		l.suggest(l.at(path), rules.Suggest(name, []string{DefaultPool}), "[%s] says not for which mail it is: write senders or a rule, or call it [pool.default]", path)
	}
	for i, s := range p.Senders {
		at, key := l.atItem(path+".senders", i), strings.ToLower(s)
		suggestion, ok := senderName(key)
		switch other, there := l.pools.senders[key]; {
		case !ok:
			l.suggest(at, suggestion, "%s.senders: %s is no sender; write example.org, .example.org for all below it, user@example.org, or \"\" for bounces", path, show(s))
		case there && other != name:
			l.add(at, "%s.senders: %s stands in [pool.%s] as well", path, show(s), other)
		default:
			l.pools.senders[key] = name
		}
	}
}

// senderName reports whether a text is one of senders, and what may have been meant
// if it is not.
func senderName(s string) (suggestion string, ok bool) {
	if s == "" {
		return "", true
	}
	local, domain, address := strings.Cut(s, "@")
	if address {
		if local != "" && validHost(domain) {
			return "", true
		}
		s = domain
	}
	if !address && validHost(strings.TrimPrefix(s, ".")) {
		return "", true
	}
	if s = strings.TrimPrefix(s, "*"); validHost(strings.TrimPrefix(s, ".")) {
		return s, false
	}
	return "", false
}

func (l *loader) checkPoolRule(name, path string, p *Pool) {
	if p.Rule == "" || l.bad[path+".rule"] {
		return
	}
	at := l.at(path + ".rule")
	if name == DefaultPool {
		l.add(at, "%s.rule: this pool is for all mail that is in no other; give it another name, or leave the rule out", path)
		return
	}
	rule, err := rules.Compile(pipeline.Facts(), p.Rule)
	switch {
	case err != nil:
		l.add(at, "%s.rule: %v", path, err)
		return
	case rule.Since() > int(pipeline.AtMessage):
		l.add(at, "%s.rule: it asks for %s, which is not known when a message is accepted", path, strings.Join(rule.Uses(), ", "))
		return
	}
	p.rule = rule
	l.pools.ruled = append(l.pools.ruled, name)
}

// bindings makes sources and pools of control/domainbindings (sender's domain,
// .suffix or address, and an address of ours; an empty sender is all others) and
// control/outgoingip (an address for all that has none there). 0.0.0.0 is the address
// that the system chooses.
func (l *loader) bindings() {
	made := map[string]bool{}
	lines, _ := l.Files.Lines("domainbindings")
	for _, line := range lines {
		at := l.Files.at("domainbindings", line.No)
		sender, address, found := strings.Cut(line.Text, ":")
		if !found {
			l.warn(at, "has no colon, so it binds nothing")
			continue
		}
		if _, ok := senderName(strings.ToLower(sender)); !ok {
			l.warn(at, "is left out: %s is neither a domain nor an address", show(sender))
			continue
		}
		source, ok := l.boundSource(at, address)
		if !ok {
			continue
		}
		pool := source
		if sender == "" {
			pool = DefaultPool
		}
		if key := strings.ToLower(sender); !made[key] { // the first line that has it counts
			made[key] = true
			l.bound(at, pool, source, sender)
		}
	}
	line, ok := l.Files.First("outgoingip")
	if !ok || made[""] {
		return
	}
	at := l.Files.at("outgoingip", line.No)
	if source, ok := l.boundSource(at, line.Text); ok {
		l.bound(at, DefaultPool, source, "")
	}
}

// bound puts a sender into a pool of one source.
func (l *loader) bound(at place, pool, source, sender string) {
	if l.Pool == nil {
		l.Pool = map[string]*Pool{}
	}
	path := "pool." + pool
	if pool == DefaultLimits && sender != "" {
		// A pool for what stays with the system's address, beside that for the rest.
		pool = "system"
		path = "pool." + pool
	}
	p := l.Pool[pool]
	if p == nil {
		p = &Pool{Sources: []string{source}}
		l.Pool[pool] = p
		l.from[path+".sources"] = l.where(at)
	}
	if sender != "" {
		p.Senders = append(p.Senders, sender)
		l.from[path+".senders"] = cmp.Or(l.from[path+".senders"], l.where(at))
	}
}

// boundSource is the source with an address, made if no table has it.
func (l *loader) boundSource(at place, text string) (name string, ok bool) {
	a, err := netip.ParseAddr(strings.Trim(strings.TrimSpace(text), "[]"))
	if err != nil || a.Zone() != "" || a.IsMulticast() {
		l.add(at, "%s is no address of this machine: mail would leave from another one than is meant. Correct it, or write [pool.NAME] tables in %s, which stand in the place of this file", show(text), l.file)
		return "", false
	}
	if a = a.Unmap(); a.IsUnspecified() {
		return DefaultLimits, true
	}
	for _, name := range sorted(l.Source) {
		if s := l.Source[name]; s.IPv4.Addr == a || s.IPv6.Addr == a {
			return name, true
		}
	}
	name = "ip-" + strings.Map(func(r rune) rune {
		if r == '.' || r == ':' {
			return '-'
		}
		return r
	}, a.String())
	s := &Source{}
	key := "source." + name + ".ipv6"
	if a.Is4() {
		s.IPv4, key = IP{a}, "source."+name+".ipv4"
	} else {
		s.IPv6 = IP{a}
	}
	if l.Source == nil {
		l.Source = map[string]*Source{}
	}
	l.Source[name], l.from[key] = s, l.where(at)
	l.limits.sources[name] = Limited{}
	return name, true
}
