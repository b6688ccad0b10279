package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/queue/limit"
)

// suspendedWhat is what a suspension keeps, in the API.
const suspendedWhat = "suspended"

// when is a time of the API with how far off it is, "" for none.
func when(at string, now time.Time) string {
	switch {
	case at == "":
		return ""
	case isOver(at, now):
		return at + " (" + ago(at, now) + ")"
	}
	return at + " (" + due(at, now) + ")"
}

// stateWords are how a site does, in a line: what keeps the next connection, or else
// what its servers have answered.
func stateWords(s *api.SiteState, now time.Time) string {
	b, c := s.Binding, &s.SiteControl
	switch {
	case b == nil && controlWords(c, now) == "-":
		return silentWords(s.Silent, now)
	case b == nil:
		return controlWords(c, now)
	case b.What == suspendedWhat:
		by := ""
		if b.Level != limit.Adapted.String() {
			by = " by an operator (" + b.Level + " " + b.Name + ")"
		}
		return "suspended" + by + optional(" until ", when(b.Until, now)) + optional(": ", b.Why)
	case b.Level == limit.Adapted.String():
		if words := controlWords(c, now); words != "-" {
			return words
		}
		return "all open that it is allowed so far"
	}
	return "kept by " + b.Level + " " + b.Name + ": " + b.What + optional(" ", b.Limit) + optional(" until ", when(b.Until, now))
}

// silentWords say of servers that did not answer whether they are passed over.
func silentWords(all []api.SiteSilent, now time.Time) string {
	n, until := 0, ""
	for i := range all {
		if s := &all[i]; s.Until != "" && !isOver(s.Until, now) {
			n, until = n+1, max(until, s.Until)
		}
	}
	switch {
	case n > 0:
		return plural(n, "server") + " passed over until " + when(until, now) + ": no answer"
	case len(all) > 0:
		return plural(len(all), "server") + " did not answer lately"
	}
	return "-"
}

// controlWords are what was found out, in a line.
func controlWords(c *api.SiteControl, now time.Time) string {
	var why string
	if n := len(c.Moves); n > 0 {
		why = c.Moves[n-1].Why
	}
	said := ""
	if c.Said != nil {
		said = c.Said.Text
	}
	switch {
	case c.Suspended != "":
		return "suspended until " + when(c.Suspended, now) + optional(": ", c.Why)
	case c.Failures > 0:
		return "failed " + times(c.Failures) + optional(": ", said)
	case c.Probing:
		return "tries more than its ceiling"
	case c.Rate > 0:
		return "slowed down" + optional(": ", why)
	case c.Ceiling > 0:
		words := "takes no more"
		if c.Probe != "" && !isOver(c.Probe, now) {
			words += ", tries more at " + when(c.Probe, now)
		}
		return words + optional(": ", why)
	case c.Said != nil && c.Said.Class == limit.Greylisted.String():
		return "greylists, last " + ago(c.Said.Time, now)
	}
	return "-"
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times running", n)
}

// isLimited reports whether a site gets less than is configured: for what it answered,
// or for what an operator said; or whether a limit keeps it now.
func isLimited(s *api.SiteState, held []api.SiteHeld) bool {
	if s.Ceiling > 0 || s.Rate > 0 || s.Binding != nil && s.Binding.What != suspendedWhat {
		return true
	}
	for i := range held {
		if !held[i].Suspended && countsFor(s, &held[i]) {
			return true
		}
	}
	return false
}

// countsFor reports whether an operator's word counts for a site, as far as is known
// before a connection.
func countsFor(s *api.SiteState, h *api.SiteHeld) bool {
	p := limit.Path{Site: s.Site, Source: s.Source, Provider: s.Provider, Groups: s.Groups}
	level, ok := levels[h.Level]
	return ok && level != limit.Address && counts(&p, limit.Key{Level: level, Name: h.Name})
}

// advice says what can be done about what keeps a domain's mail.
func advice(e *api.SiteExplanation, now time.Time) (all []string) {
	b, name := e.Binding, e.Domain
	if name == "" {
		name = e.Site + " --as site"
	}
	switch {
	case b == nil:
		if q := e.Queue; q != nil && q.Queued > 0 && q.Due == 0 && q.NextDue != "" {
			all = append(all, "what waits was put off, and is due "+when(q.NextDue, now)+""+optional("; to try it now: postern queue retry --match ", retryRule(e)))
		}
	case b.What == suspendedWhat && b.Level == limit.Adapted.String():
		all = append(all, "its servers' answers did that; to send before the end: postern site resume "+name)
	case b.What == suspendedWhat && b.Level == limit.Site.String():
		all = append(all, "an operator did that; to take it back: postern site resume "+name)
	case b.What == suspendedWhat:
		all = append(all, "an operator did that; to take it back: postern site resume "+b.Name+" --as "+b.Level)
	case b.Level == limit.Adapted.String() && b.What == "messages":
		all = append(all, "that is what its servers take; the rate climbs by itself while they do. To begin anew: postern site forget "+name)
	case b.Level == limit.Adapted.String():
		all = append(all, "that is what its servers take"+optional("; more is tried ", e.Control.Probe)+". To begin anew: postern site forget "+name)
	case flagOf[b.What] != "":
		if b.Level != limit.Site.String() {
			name = b.Name + " --as " + b.Level
		}
		all = append(all, "the limit is from "+cmp.Or(fromOf(e, b), "the configuration")+"; another for a while: postern site limit "+name+" "+flagOf[b.What]+" N --for 2h")
	}
	for i := range e.Silent {
		if s := &e.Silent[i]; s.Until != "" && !isOver(s.Until, now) {
			all = append(all, "servers that did not answer are passed over; to try them now: postern site forget "+name)
			break
		}
	}
	return all
}

// retryRule chooses what waits for a domain, "" where none is known.
func retryRule(e *api.SiteExplanation) string {
	if e.Domain == "" {
		return ""
	}
	return "'\"" + e.Domain + "\" in domains'"
}

// flagOf are the flags of postern site limit, by what they limit.
var flagOf = map[string]string{
	"connections": "--connections", "new connections": "--connection-rate", "messages": "--message-rate",
	"messages a connection": "--messages-per-connection", "recipients a connection": "--recipients-per-connection",
}

// fromOf is where the limit comes from that binds.
func fromOf(e *api.SiteExplanation, b *api.SiteRefusal) string {
	for i := range e.Limits {
		if l := &e.Limits[i]; l.Level == b.Level && l.Name == b.Name && l.What == b.What {
			return l.From
		}
	}
	return ""
}

// shortName is a site's name for a table: of one with many hosts, the first and how
// many there are more.
func shortName(name string) string {
	if len(name) <= maxShortName {
		return name
	}
	first, rest, found := strings.Cut(name, ",")
	if !found {
		return shortened(name, maxShortName)
	}
	return fmt.Sprintf("%s +%d", first, strings.Count(rest, ",")+1)
}

// The widths of a table that is not wide, in characters.
const (
	maxShortName  = 40
	maxShortState = 110
)

// shortened is a text with at most so many characters.
func shortened(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-1]) + "…"
}
