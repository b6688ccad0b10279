package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue/limit"
	"github.com/postern-mta/postern/rules"
)

// Source is a table [source.NAME]: addresses of ours that mail leaves from, with the
// limits of all that does.
type Source struct {
	IPv4   IP     `toml:"ipv4" doc:"the address of this machine from which IPv4 servers are connected to" unset:"none: servers that have IPv4 only are not reached from this source"`
	IPv6   IP     `toml:"ipv6" doc:"likewise IPv6" unset:"none"`
	Helo   string `toml:"helo" doc:"the name in EHLO; the DNS should give it for the address, and the address for it" unset:"hostname"`
	Warmup Warmup `toml:"warmup" doc:"bring a new address into use by a plan: the first day, like 2026-11-20, or a table {since = 2026-11-20, plan = [50, 100, 200]}. Beyond the day's budget the pool's other sources are used; where there are none the mail waits for the next day. Mail that goes by a route does not count" unset:"no plan: the address is not new"`
	Bounds
}

// IP is an address as it is written.
type IP struct{ netip.Addr }

func (IP) wants() string { return "an address in quotes" }

// String is the address as it would be written.
func (a IP) String() string { return strconv.Quote(a.Addr.String()) }

// UnmarshalText is encoding.TextUnmarshaler.
func (a *IP) UnmarshalText(text []byte) error {
	got, err := netip.ParseAddr(strings.Trim(string(text), "[]"))
	if err != nil || got.Zone() != "" {
		return errors.New("write an address, like 192.0.2.1 or 2001:db8::1")
	}
	a.Addr = got.Unmap()
	return nil
}

// Warmup is a source's warm-up as it is written: the first day, or a table.
type Warmup struct {
	Since Day   `toml:"since" doc:"the first day of the plan, by UTC; before it nothing leaves from the address"`
	Plan  []int `toml:"plan" min:"1" doc:"how many messages are begun each day, from the first on, to each provider, or site without one (postern site explain tells which); after the last day there is no bound" unset:"four weeks, from 50 to 400000"`
}

func (Warmup) wants() string { return "a day, like 2026-11-20, or a table with since" }

// String is the plan as it would be written.
func (w Warmup) String() string {
	if len(w.Plan) == 0 {
		return w.Since.String()
	}
	return fmt.Sprintf("{since = %s, plan = [%s]}", w.Since, strings.ReplaceAll(strings.Trim(fmt.Sprint(w.Plan), "[]"), " ", ", "))
}

// UnmarshalText takes the short form.
func (w *Warmup) UnmarshalText(text []byte) error { return w.Since.UnmarshalText(text) }

// Day is a date: midnight UTC.
type Day struct{ time.Time }

func (Day) wants() string { return "a day, like 2026-11-20" }

// String is the day as it would be written.
func (d Day) String() string { return d.Format(time.DateOnly) }

// UnmarshalText is encoding.TextUnmarshaler.
func (d *Day) UnmarshalText(text []byte) (err error) {
	if d.Time, err = time.Parse(time.DateOnly, string(text)); err != nil || d.Year() < 2000 || d.Year() > 2200 {
		return errors.New("write a day, like 2026-11-20")
	}
	return nil
}

// maxPlan is the most days of a plan.
const maxPlan = 400

// WarmupOf is the plan of a source, by name.
func (c *Config) WarmupOf(name string) limit.Warmup { return c.limits.warmups[name] }

// checkSources reads the tables [source.NAME].
func (l *loader) checkSources() {
	l.limits.warmups = map[string]limit.Warmup{}
	taken := map[netip.Addr]string{}
	for _, name := range sorted(l.Source) {
		s, path := l.Source[name], "source."+name
		l.limits.sources[name] = l.limitsAt(path, s.Bounds)
		l.checkOwn(name, path, s, taken)
		l.checkHelo(path, s.Helo)
		l.checkWarmup(name, path, &s.Warmup)
	}
}

// checkOwn looks at a source's addresses.
func (l *loader) checkOwn(name, path string, s *Source, taken map[netip.Addr]string) {
	for _, a := range []struct {
		key    string
		ip     netip.Addr
		wanted bool
	}{{"ipv4", s.IPv4.Addr, s.IPv4.Is4()}, {"ipv6", s.IPv6.Addr, s.IPv6.Is6()}} {
		at, key := l.at(path+"."+a.key), path+"."+a.key
		other := map[string]string{"ipv4": "ipv6", "ipv6": "ipv4"}[a.key]
		switch first := taken[a.ip]; {
		case !a.ip.IsValid():
		case name == DefaultLimits:
			l.add(at, "%s: the source %s is the address that the system chooses; give a source with an address another name, and name it in the sources of [pool.default]", key, DefaultLimits)
		case !a.wanted:
			l.suggest(at, path+"."+other, "%s = %s is no %s address", key, show(a.ip.String()), map[string]string{"ipv4": "IPv4", "ipv6": "IPv6"}[a.key])
		case a.ip.IsUnspecified(), a.ip.IsMulticast():
			l.suggest(at, DefaultLimits, "%s = %s is no address that mail could leave from; the address that the system chooses is the source %s", key, show(a.ip.String()), DefaultLimits)
		case first != "":
			l.warn(at, "%s: %s is the address of [source.%s] as well, whose limits know nothing of this one", key, a.ip, first)
		default:
			taken[a.ip] = name
		}
	}
	if name != DefaultLimits && !s.IPv4.IsValid() && !s.IPv6.IsValid() && !l.bad[path] {
		l.suggest(l.at(path), rules.Suggest(name, []string{DefaultLimits}), "[%s] has no address: write ipv4 or ipv6, or [source.default] for the address that the system chooses", path)
	}
}

// checkHelo looks at a name for EHLO.
func (l *loader) checkHelo(path, helo string) {
	if helo == "" {
		return
	}
	at := l.at(path + ".helo")
	_, literal := wire.Literal(helo)
	switch {
	case literal:
	case !validHost(helo):
		l.add(at, "%s.helo: %s is no host name: write one like mail.example.org", path, show(helo))
	case !strings.Contains(helo, "."):
		l.warn(at, "%s.helo: %s has no domain: other hosts will not believe it", path, show(helo))
	}
}

// checkWarmup completes a plan.
func (l *loader) checkWarmup(name, path string, w *Warmup) {
	key := path + ".warmup"
	switch {
	case !l.written(key) || l.bad[key]:
		return
	case w.Since.IsZero():
		l.add(l.at(key), "%s.since is missing: write the first day, like since = 2026-11-20", key)
		return
	case len(w.Plan) > maxPlan:
		l.add(l.at(key+".plan"), "%s.plan has %d days, and at most %d are possible", key, len(w.Plan), maxPlan)
		return
	case w.Plan != nil && len(w.Plan) == 0:
		l.add(l.at(key+".plan"), "%s.plan has no days: write how many messages are begun on each, or leave plan out", key)
		return
	}
	plan := slices.Clone(w.Plan)
	if plan == nil {
		var err error
		if plan, err = limit.ShippedPlan(); err != nil {
			l.add(l.at(key), "%s: %v", key, err)
		}
	}
	l.limits.warmups[name] = limit.Warmup{Since: w.Since.Time, Plan: plan}
}
