package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/queue/limit"
)

// printSiteStates prints sites, and what operators have said. A wide table has names
// and reasons in full.
func printSiteStates(w io.Writer, all []api.SiteState, held []api.SiteHeld, wide bool, now time.Time) error {
	if len(all) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		// Where all leaves from the address that the system chooses, that is not told.
		source := func(name string) string { return clean(cmp.Or(name, config.DefaultLimits)) + "\t" }
		head := "SOURCE\t"
		if !slices.ContainsFunc(all, func(s api.SiteState) bool { return s.Source != "" && s.Source != config.DefaultLimits }) {
			source, head = func(string) string { return "" }, ""
		}
		fmt.Fprintln(t, "SITE\t"+head+"PROVIDER\tOPEN\tALLOWED\tCEILING\tRATE\tQUEUED\tSTATE")
		for i := range all {
			s := &all[i]
			name, state := clean(s.Site), clean(stateWords(s, now))
			if !wide {
				name, state = shortName(name), shortened(state, maxShortState)
			}
			fmt.Fprintf(t, "%s\t%s%s\t%d\t%d\t%s\t%s\t%d\t%s\n", name, source(s.Source), dash(clean(s.Provider)), s.Connections, s.Allowed, dash(positiveText(s.Ceiling)), dash(rateText(s.Rate)), s.Queued, state)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return printSiteHeld(w, held, now)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func positiveText(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func rateText(r float64) string {
	if r == 0 {
		return ""
	}
	return limit.RateText(r)
}

func printSiteHeld(w io.Writer, held []api.SiteHeld, now time.Time) error {
	for i := range held {
		h := &held[i]
		what := "suspended"
		if !h.Suspended {
			what = "limited to " + boundsWords(&h.SiteBounds)
		}
		until := " until postern site resume"
		if h.Until != "" {
			until = " until " + when(h.Until, now)
		}
		since := ""
		if h.Since != "" {
			since = ", said " + ago(h.Since, now)
		}
		if _, err := fmt.Fprintf(w, "%s %s is %s%s%s%s\n", h.Level, clean(h.Name), what, until, optional(": ", h.Why), since); err != nil {
			return err
		}
	}
	return nil
}

// boundsWords are bounds on one line.
func boundsWords(b *api.SiteBounds) string {
	var all []string
	for _, f := range []struct{ text, what string }{
		{b.Connections, "connections"},
		{b.ConnectionRate, "new connections"},
		{b.MessageRate, "messages"},
		{b.MessagesPerConnection, "messages a connection"},
		{b.RecipientsPerConnection, "recipients a connection"},
	} {
		if f.text != "" {
			all = append(all, f.text+" "+f.what)
		}
	}
	return strings.Join(all, ", ")
}

func printProviders(w io.Writer, all []api.Provider) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PROVIDER\tHOSTS\tLIMITS\tKNOWN FROM")
	for i := range all {
		p := &all[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Name, clean(strings.Join(p.Match, " ")), dash(boundsWords(&p.SiteBounds)), clean(p.Source))
	}
	return t.Flush()
}

// printSite prints what a site is, and how it does.
func printSite(w io.Writer, e *api.SiteExplanation, now time.Time) error {
	return printSiteWith(w, e, clean(stateWords(&api.SiteState{SiteControl: e.Control, Binding: e.Binding}, now)), now)
}

// printSiteWith prints what a site is, with its state in words, if there are any.
func printSiteWith(w io.Writer, e *api.SiteExplanation, state string, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, value string) { fmt.Fprintf(t, "%s\t%s\n", name, value) }
	if e.Domain != "" {
		line("domain", clean(e.Domain))
	}
	line("site", clean(e.Site))
	line("provider", dash(clean(e.Provider)))
	line("groups", dash(clean(strings.Join(e.Groups, ", "))))
	if e.Source != "" {
		line("source", clean(e.Source))
	}
	hosts := clean(strings.Join(e.Hosts, ", "))
	if hosts = dash(hosts); e.Routed {
		hosts += " (by a route)"
	}
	line("hosts", hosts)
	line("addresses", dash(strings.Join(e.Addresses, ", ")))
	if q := e.Queue; q != nil {
		waiting := fmt.Sprintf("%d waiting, %d in flight, %d held", q.Queued, q.InFlight, q.Held)
		if q.Queued > 0 && q.Due == 0 {
			waiting += optional("; the next is due ", when(q.NextDue, now))
		}
		line("queue", waiting)
	}
	if e.Calls > 0 {
		line("calls", fmt.Sprintf("%d wait in line", e.Calls))
	}
	c := &e.Control
	line("connections", fmt.Sprintf("%d open, %d taken by the server, %d allowed for what it answers", c.Connections, c.Accepted, c.Allowed))
	if c.Ceiling > 0 {
		line("ceiling", strconv.Itoa(c.Ceiling))
	}
	if c.Rate > 0 {
		line("rate", rateText(c.Rate)+" for what it answers")
	}
	if state != "" {
		line("state", state)
	}
	if c.Said != nil && (e.Binding == nil || e.Binding.Why != c.Said.Text) {
		line("last answer", ago(c.Said.Time, now)+", "+saidWords[c.Said.Class]+": "+clean(c.Said.Text))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := printSilent(w, e.Silent, now); err != nil {
		return err
	}
	return printSiteHeld(w, e.Held, now)
}

// saidWords are what an answer says about limits, by its class.
var saidWords = map[string]string{
	"count": "too many connections", "rate": "too fast", "blocked": "we are blocked", "greylisted": "greylisted, which moves nothing",
	"down": "a server in trouble",
}

// printBinding prints what keeps the next connection, and what can be done.
func printBinding(w io.Writer, e *api.SiteExplanation, now time.Time) error {
	text := "nothing keeps the next connection\n"
	if b := e.Binding; b != nil {
		what := "connection"
		if b.What == "messages" {
			what = "message"
		}
		since := ""
		if b.Since != "" {
			since = ", since " + when(b.Since, now)
		}
		text = fmt.Sprintf("the next %s is kept by %s %s: %s%s%s%s%s\n", what, b.Level, clean(b.Name), b.What, optional(" ", b.Limit), optional(" until ", when(b.Until, now)), optional(": ", b.Why), since)
	}
	for _, line := range advice(e, now) {
		text += "  " + clean(line) + "\n"
	}
	_, err := io.WriteString(w, text)
	return err
}

// printSilent prints servers that did not answer.
func printSilent(w io.Writer, all []api.SiteSilent, now time.Time) error {
	for i := range all {
		s := &all[i]
		line := "server " + s.Address + optional(" ", bracketed(clean(s.Host))) + " did not answer " + times(s.Failures) + ", last " + ago(s.Last, now)
		switch {
		case s.Until == "":
			line += "; it is still tried"
		case isOver(s.Until, now):
			line += "; it is tried with the next message"
		default:
			line += "; it is passed over until " + when(s.Until, now)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

func bracketed(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}

// isOver reports whether a time of the API is over.
func isOver(at string, now time.Time) bool {
	t, err := time.Parse(time.RFC3339, at)
	return err == nil && !t.After(now)
}

// printSiteExplanation prints what a site is, what keeps its mail, and every limit.
func printSiteExplanation(w io.Writer, e *api.SiteExplanation, now time.Time) error {
	if err := printSiteWith(w, e, "", now); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if err := printBinding(w, e, now); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, " \tLEVEL\tNAME\tWHAT\tLIMIT\tUSED\tFROM")
	for i := range e.Limits {
		l := &e.Limits[i]
		mark := " "
		switch {
		case l.Binds:
			mark = "*"
		case l.Tightest:
			mark = ">"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", mark, l.Level, clean(l.Name), l.What, l.Limit, dash(l.Used), clean(l.From))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(e.Sources) > 0 {
		fmt.Fprintln(w)
	}
	if err := printSiteSources(w, e.Sources); err != nil {
		return err
	}
	if len(e.Control.Moves) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nwhat its answers have moved:")
	for _, m := range e.Control.Moves {
		moved := optional(" ", m.From) + " -> " + m.To
		if m.From == "" {
			moved = " for " + m.To
		}
		fmt.Fprintf(w, "  %s  %s%s  %s\n", m.Time, m.What, moved, clean(m.Why))
	}
	return nil
}
