package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/queue/limit"
	"github.com/postern-mta/postern/rules"
)

// Number is a limit that is a number: 0 if it is not written, limit.None if it is
// lifted.
type Number int

func (Number) wants() string { return `a number from 1 on, or -1 or "none" for no limit` }

// String is the number as it would be written.
func (n Number) String() string {
	if n == limit.None {
		return `"none"`
	}
	return strconv.Itoa(int(n))
}

// maxNumber is the greatest Number.
const maxNumber = 1_000_000

// UnmarshalText is encoding.TextUnmarshaler.
func (n *Number) UnmarshalText(text []byte) error {
	if s := string(text); s == "none" || s == "-1" {
		*n = limit.None
		return nil
	}
	i, err := strconv.Atoi(string(text))
	if err != nil || i < 1 || i > maxNumber {
		return errors.New(`write a number from 1 to 1000000, or "none" (or -1) for no limit; to send nothing for a while there is postern site suspend`)
	}
	*n = Number(i)
	return nil
}

// Rate is so many in a time, as limit.Rate.
type Rate struct{ Rate limit.Rate }

func (Rate) wants() string { return `a rate in quotes, like "100/min" (s, min, h or d), or "none"` }

// String is the rate as it would be written.
func (r Rate) String() string { return strconv.Quote(r.Rate.String()) }

// UnmarshalText is encoding.TextUnmarshaler.
func (r *Rate) UnmarshalText(text []byte) error {
	if string(text) == "-1" {
		text = []byte("none")
	}
	return r.Rate.UnmarshalText(text)
}

// Bounds are the limits that each table of them has.
type Bounds struct {
	Connections             Number `toml:"connections" doc:"the most connections at a time; -1 or none: no limit"`
	ConnectionRate          Rate   `toml:"connection_rate" doc:"the most new connections in a time: 100/min (s, min, h or d), or none"`
	MessageRate             Rate   `toml:"message_rate" doc:"the most messages in a time: 100/s, or none"`
	MessagesPerConnection   Number `toml:"messages_per_connection" doc:"the most messages over one connection"`
	RecipientsPerConnection Number `toml:"recipients_per_connection" doc:"the most recipients over one connection; a single message may have more"`
}

// boundKeys are the keys of Bounds, and what package limit calls them.
var boundKeys = [...]struct{ key, what string }{
	{"connections", "connections"},
	{"connection_rate", "new connections"},
	{"message_rate", "messages"},
	{"messages_per_connection", "messages a connection"},
	{"recipients_per_connection", "recipients a connection"},
}

func (b Bounds) limits() limit.Bounds {
	return limit.Bounds{
		Connections: int(b.Connections), NewConnections: b.ConnectionRate.Rate, Messages: b.MessageRate.Rate,
		MessagesEach: int(b.MessagesPerConnection), RecipientsEach: int(b.RecipientsPerConnection),
	}
}

// boundsOf is the inverse of limits.
func boundsOf(b limit.Bounds) Bounds {
	return Bounds{
		Connections: Number(b.Connections), ConnectionRate: Rate{b.NewConnections}, MessageRate: Rate{b.Messages},
		MessagesPerConnection: Number(b.MessagesEach), RecipientsPerConnection: Number(b.RecipientsEach),
	}
}

// Site is a table [site.NAME]: the limits of every site, or of some that are a
// group.
type Site struct {
	Domains   []string       `toml:"domains" doc:"recipients' domains that share these limits; .example.org means every domain below example.org"`
	MX        []string       `toml:"mx" doc:"hosts whose domains share these limits, if one of their MX or their route is such a host; .example.net means every host below example.net"`
	Addresses []netip.Prefix `toml:"addresses" doc:"networks whose hosts share these limits: 192.0.2.0/24"`
	Bounds
}

// Provider is a table [provider.NAME]: the limits that all sites of a provider
// share.
type Provider struct {
	Match []string `toml:"match" doc:"what the names of its hosts end in: .example.net; a site is the provider's if all its hosts are" unset:"what the shipped table has for a provider of that name"`
	Bounds
}

// Addresses are the tables [address.NAME].
type Addresses struct {
	Default Address `toml:"default" doc:"the limits of every address that is connected to"`
}

// Address is the table [address.default].
type Address struct {
	IPv4Prefix int `toml:"ipv4_prefix" min:"8" doc:"addresses with so many bits in common count as one: IPv4"`
	IPv6Prefix int `toml:"ipv6_prefix" min:"16" doc:"likewise IPv6, of which anybody has a whole network"`
	Bounds
}

// DefaultLimits is the name of the tables for all that no other table is about.
const DefaultLimits = "default"

// Limited are the limits of one thing, with where they come from.
type Limited struct {
	limit.Bounds
	from [len(boundKeys)]string
}

// From says where a limit comes from, by what package limit calls it: "default",
// "postern.toml:12", or "shipped table, provider google"; "" if there is none.
func (l *Limited) From(what string) string {
	for i, k := range boundKeys {
		if k.what == what {
			return l.from[i]
		}
	}
	return ""
}

// over is l where it says anything, and below where it does not.
func (l Limited) over(below Limited) Limited {
	l.Bounds = l.Bounds.Over(below.Bounds)
	for i := range l.from {
		if l.from[i] == "" {
			l.from[i] = below.from[i]
		}
	}
	return l
}

// limited are bounds that are all from one place.
func limited(b limit.Bounds, from string) Limited {
	l := Limited{Bounds: b}
	for i, set := range []bool{b.Connections != 0, b.NewConnections.Count != 0, b.Messages.Count != 0, b.MessagesEach != 0, b.RecipientsEach != 0} {
		if set {
			l.from[i] = from
		}
	}
	return l
}

// siteLimits is what the tables about limits come to.
type siteLimits struct {
	site, address Limited
	// groups are the other tables [site.NAME], and sources those of [source.NAME].
	groups, sources map[string]Limited
	names           []string          // of the groups
	domains         map[string]string // the group of a domain or .suffix
	providers       []limit.KnownProvider
	provided        map[string]Limited
	warmups         map[string]limit.Warmup // by source
}

// SiteLimits are those of a site that is in groups: what the first of them says
// that says anything, else [site.default].
func (c *Config) SiteLimits(groups []string) Limited { return c.limits.inGroups(groups, c.limits.site) }

// AddressLimits are those of an address that is in groups.
func (c *Config) AddressLimits(groups []string) Limited {
	return c.limits.inGroups(groups, c.limits.address)
}

func (s *siteLimits) inGroups(groups []string, below Limited) (all Limited) {
	for _, g := range groups {
		all = all.over(s.groups[g])
	}
	return all.over(below)
}

// GroupLimits are those that the sites and addresses of a group share.
func (c *Config) GroupLimits(name string) Limited { return c.limits.groups[name] }

// ProviderLimits are those of a provider; most have none.
func (c *Config) ProviderLimits(name string) Limited { return c.limits.provided[name] }

// SourceLimits are those of an address of ours, by name.
func (c *Config) SourceLimits(name string) Limited { return c.limits.sources[name] }

// Providers are those that are known: the shipped ones, as far as the
// configuration does not say otherwise, and its own.
func (c *Config) Providers() []limit.KnownProvider { return c.limits.providers }

// GroupOf is the group that a recipient's domain is in by name, the nearest if
// there are several; "" for none.
func (c *Config) GroupOf(domain string) string {
	domain = strings.ToLower(domain)
	if g := c.limits.domains[domain]; g != "" {
		return g
	}
	for at := range len(domain) {
		if domain[at] == '.' {
			if g := c.limits.domains[domain[at:]]; g != "" {
				return g
			}
		}
	}
	return ""
}

// GroupsOfHosts are the groups that one of the hosts, in small letters, is in, in
// order.
func (c *Config) GroupsOfHosts(hosts []string) (groups []string) {
	for _, name := range c.limits.names {
		if slices.ContainsFunc(c.Site[name].MX, func(m string) bool {
			m = strings.ToLower(m)
			return slices.ContainsFunc(hosts, func(h string) bool { return h == m || m[0] == '.' && strings.HasSuffix(h, m) })
		}) {
			groups = append(groups, name)
		}
	}
	return groups
}

// GroupsOfAddress are the groups that an address is in, in order.
func (c *Config) GroupsOfAddress(a netip.Addr) (groups []string) {
	a = a.Unmap().WithZone("")
	for _, name := range c.limits.names {
		if slices.ContainsFunc(c.Site[name].Addresses, func(p netip.Prefix) bool { return p.Contains(a) }) {
			groups = append(groups, name)
		}
	}
	return groups
}

// AddressName is what an address counts as.
func (c *Config) AddressName(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	bits := c.Address.Default.IPv6Prefix
	if a.Is4() {
		bits = c.Address.Default.IPv4Prefix
	}
	if p, err := a.Prefix(bits); err == nil && bits < a.BitLen() {
		return p.String()
	}
	return a.String()
}

// GroupsOfAddressName are the groups that what AddressName gave is in.
func (c *Config) GroupsOfAddressName(name string) []string {
	if a, err := netip.ParseAddr(name); err == nil {
		return c.GroupsOfAddress(a)
	}
	if p, err := netip.ParsePrefix(name); err == nil {
		return c.GroupsOfAddress(p.Addr())
	}
	return nil
}

// checkLimitsAbroad reads the tables about what may be sent where.
func (l *loader) checkLimitsAbroad() {
	l.limits = siteLimits{groups: map[string]Limited{}, sources: map[string]Limited{}, domains: map[string]string{}, provided: map[string]Limited{}}
	l.checkSiteDefault()
	l.supplementary()
	for _, name := range sorted(l.Site) {
		if name != DefaultLimits {
			l.checkGroup(name, l.Site[name])
		}
	}
	l.checkProviders()
	for key, most := range map[string]int{"ipv4_prefix": 32, "ipv6_prefix": 128} {
		bits := l.Address.Default.IPv4Prefix
		if most == 128 {
			bits = l.Address.Default.IPv6Prefix
		}
		if key = "address.default." + key; bits > most && !l.bad[key] {
			l.add(l.at(key), "%s = %d: it is at most %d", key, bits, most)
		}
	}
	l.limits.address = l.limitsAt("address.default", l.Address.Default.Bounds).over(limited(limit.DefaultAddress(), "default"))
	l.Address.Default.Bounds = boundsOf(l.limits.address.Bounds)
	l.checkSources()
}

// limitsAt are the bounds of a table, with their places.
func (l *loader) limitsAt(path string, b Bounds) Limited {
	all := Limited{Bounds: b.limits()}
	for i, k := range boundKeys {
		if key := path + "." + k.key; l.written(key) || l.from[key] != "" {
			all.from[i] = l.source(key)
		}
	}
	return all
}

// checkSiteDefault reads [site.default], whose connections queue.domain was
// before.
func (l *loader) checkSiteDefault() {
	const path, key = "site." + DefaultLimits, "site." + DefaultLimits + ".connections"
	if l.Site == nil {
		l.Site = map[string]*Site{}
	}
	s := l.Site[DefaultLimits]
	if s == nil {
		s = &Site{}
		l.Site[DefaultLimits] = s
	}
	for _, k := range []struct {
		name    string
		written bool
	}{{"domains", s.Domains != nil}, {"mx", s.MX != nil}, {"addresses", s.Addresses != nil}} {
		if k.written {
			l.add(l.at(path+"."+k.name), "%s.%s: this table is for all sites; give it another name, or leave %s out", path, k.name, k.name)
		}
	}
	if l.written("queue.domain") && !l.bad["queue.domain"] {
		switch {
		case !l.written(key):
			s.Connections = Number(l.Queue.Domain)
			l.from[key] = l.source("queue.domain")
		case s.Connections != Number(l.Queue.Domain) && !l.bad[key]:
			l.add(l.at("queue.domain"), "queue.domain = %d is the older name of %s, which says something else: remove it", l.Queue.Domain, key)
		}
	}
	l.limits.site = l.limitsAt(path, s.Bounds).over(limited(limit.DefaultSite(), "default"))
	s.Bounds = boundsOf(l.limits.site.Bounds)
	if !l.written("queue.domain") {
		l.Queue.Domain = max(0, l.limits.site.Connections)
		l.from["queue.domain"] = key
	}
}

// checkGroup reads a table [site.NAME] of some sites.
func (l *loader) checkGroup(name string, s *Site) {
	path := "site." + name
	if len(s.Domains)+len(s.MX)+len(s.Addresses) == 0 && !l.bad[path] && !l.bad[path+".domains"] && !l.bad[path+".mx"] && !l.bad[path+".addresses"] {
		l.suggest(l.at(path), rules.Suggest(name, []string{DefaultLimits}), "[%s] says not for what it is: name domains, mx or addresses, or write [site.default] for all", path)
	}
	if s.Bounds == (Bounds{}) && !l.bad[path] {
		l.warn(l.at(path), "[%s] has no limits", path)
	}
	for i, d := range s.Domains {
		key := strings.ToLower(d)
		switch other := l.limits.domains[key]; {
		case !validHost(strings.TrimPrefix(d, ".")):
			l.add(l.atItem(path+".domains", i), "%s.domains: %s is no domain; write example.org, or .example.org for all below it", path, show(d))
		case other != "" && other != name:
			l.add(l.atItem(path+".domains", i), "%s.domains: %s stands in [site.%s] as well", path, show(d), other)
		default:
			l.limits.domains[key] = name
		}
	}
	l.checkHosts(path+".mx", s.MX)
	for i, p := range s.Addresses {
		if p.IsValid() && p != p.Masked() {
			l.suggest(l.atItem(path+".addresses", i), p.Masked().String(), "%s.addresses: %s has bits beyond its length", path, show(p.String()))
		}
	}
	l.limits.names = append(l.limits.names, name)
	l.limits.groups[name] = l.limitsAt(path, s.Bounds)
}

func (l *loader) checkHosts(path string, hosts []string) {
	for i, h := range hosts {
		if l.bad[path+"["+strconv.Itoa(i)+"]"] || validHost(strings.TrimPrefix(h, ".")) {
			continue
		}
		suggestion := strings.TrimPrefix(h, "*")
		if !validHost(strings.TrimPrefix(suggestion, ".")) {
			suggestion = ""
		}
		l.suggest(l.atItem(path, i), suggestion, "%s: %s is no host name; write mx.example.net, or .example.net for all below it", path, show(h))
	}
}

// checkProviders puts the tables [provider.NAME] over the shipped ones.
func (l *loader) checkProviders() {
	shipped, err := limit.ShippedProviders()
	if err != nil {
		l.add(l.root.place, "the table of providers that comes with this program is wrong: %v", err)
		return
	}
	var known []string
	for _, p := range shipped {
		known = append(known, p.Name)
		l.limits.provided[p.Name] = limited(p.Bounds, "shipped table, provider "+p.Name)
	}
	for _, name := range sorted(l.Provider) {
		p, path := l.Provider[name], "provider."+name
		l.checkHosts(path+".match", p.Match)
		i := slices.Index(known, name)
		if i < 0 && len(p.Match) == 0 && !l.bad[path+".match"] {
			l.suggest(l.at(path), rules.Suggest(name, known), "%s.match is missing: say what the names of its hosts end in, like [\".example.net\"]; postern site providers lists those that are known without it", path)
		}
		own := limit.KnownProvider{Name: name, Source: l.source(path)}
		if i >= 0 {
			own = shipped[i]
			shipped = slices.Delete(shipped, i, i+1)
			known = slices.Delete(known, i, i+1)
		}
		if p.Match != nil {
			own.Match = nil
			for _, m := range p.Match {
				own.Match = append(own.Match, "."+strings.ToLower(strings.TrimPrefix(m, ".")))
			}
		}
		// What the administrator says comes first where suffixes overlap.
		all := l.limitsAt(path, p.Bounds).over(l.limits.provided[name])
		own.Bounds, l.limits.provided[name] = all.Bounds, all
		l.limits.providers = append(l.limits.providers, own)
	}
	l.limits.providers = append(l.limits.providers, shipped...)
}

// maxSupplementary is how many channels of a qmail with many are looked for.
const maxSupplementary = 100

// supplementary reads control/supplsX and concurrencysupplX, the channels of a
// qmail with more than two (qmail-channels): exact domains, and the deliveries to
// all of them at a time. A table [site.supplX] stands in their place.
func (l *loader) supplementary() {
	dir := l.Files.Dir
	if dir == "" {
		return
	}
	seen := map[string]bool{}
	for x := range maxSupplementary {
		n := strconv.Itoa(x)
		group, file, most := "suppl"+n, "suppls"+n, "concurrencysuppl"+n
		if l.Site[group] != nil {
			continue
		}
		for _, name := range []string{file, most} {
			switch lines, err := readControlFile(filepath.Join(dir, name)); {
			case err == nil:
				l.Files.files[name] = lines
			case !errors.Is(err, fs.ErrNotExist):
				l.warn(l.Files.at(name, lineOf(err)), "is left out: %v", err)
			}
		}
		lines, there := l.Files.Lines(file)
		if !there {
			continue
		}
		s := &Site{Bounds: Bounds{Connections: defaultSupplementary}}
		from := l.Files.at(file, 0)
		for _, line := range lines {
			d := strings.ToLower(line.Text)
			switch {
			case !validHost(d):
				l.warn(l.Files.at(file, line.No), "is left out: %s is no domain", show(line.Text))
			case !seen[d]: // the first file that has it counts (qmail-todo.c)
				seen[d] = true
				s.Domains = append(s.Domains, d)
			}
		}
		if line, ok := l.Files.First(most); ok {
			from = l.Files.at(most, line.No)
			if err := s.Connections.UnmarshalText([]byte(line.Text)); err != nil || s.Connections == limit.None {
				s.Connections = defaultSupplementary
				l.warn(from, "%s is %s, which is no limit, so it is %d; to hold that mail there is postern site suspend", most, show(line.Text), defaultSupplementary)
			}
		}
		if len(s.Domains) == 0 {
			continue
		}
		l.Site[group] = s
		path := "site." + group
		l.from[path+".domains"], l.from[path+".connections"] = l.where(l.Files.at(file, 0)), l.where(from)
		l.checkOverlap(group, s)
	}
}

// defaultSupplementary is the concurrency of a supplementary channel without a
// file (qmail-send.c).
const defaultSupplementary = 20

// checkOverlap leaves out of a supplementary channel what the configuration has in
// a table.
func (l *loader) checkOverlap(group string, s *Site) {
	s.Domains = slices.DeleteFunc(s.Domains, func(d string) bool {
		for name, other := range l.Site {
			if name != group && slices.ContainsFunc(other.Domains, func(o string) bool { return strings.EqualFold(o, d) }) {
				return true
			}
		}
		return false
	})
	if len(s.Domains) == 0 {
		delete(l.Site, group)
	}
}
