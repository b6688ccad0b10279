package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/message"
)

// shown is a text on a terminal: whatever is not printable, line ends and marks
// of direction included, is a question mark. Letters of all scripts stay.
func shown(s string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) || c == utf8.RuneError {
			return '?'
		}
		return c
	}, s)
}

// printLine prints v as one line of JSON, printIndented over several lines.
// Control bytes are escaped, also those that JSON lets pass.
func printLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(escapeControls(b), '\n'))
	return err
}

func printIndented(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(escapeControls(b), '\n'))
	return err
}

// escapeControls writes as \u what a terminal might obey: DEL, the controls
// from U+0080 to U+009F, and invisible marks. These occur in strings only.
func escapeControls(b []byte) []byte {
	odd := func(c rune) bool {
		return c == 0x7f || c >= 0x80 && c < 0x10000 && unicode.In(c, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
	}
	if bytes.IndexFunc(b, odd) < 0 {
		return b
	}
	var out []byte
	for _, c := range string(b) {
		if odd(c) {
			out = fmt.Appendf(out, `\u%04x`, c)
			continue
		}
		out = utf8.AppendRune(out, c)
	}
	return out
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// span is a length of time in its two greatest units: 3d4h, 12m5s, 40s.
func span(d time.Duration) string {
	d = max(d, 0)
	for _, u := range [...]struct {
		great, small         time.Duration
		greatName, smallName string
	}{{24 * time.Hour, time.Hour, "d", "h"}, {time.Hour, time.Minute, "h", "m"}, {time.Minute, time.Second, "m", "s"}} {
		if d < u.great {
			continue
		}
		if small := d % u.great / u.small; small > 0 {
			return fmt.Sprintf("%d%s%d%s", d/u.great, u.greatName, small, u.smallName)
		}
		return fmt.Sprintf("%d%s", d/u.great, u.greatName)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// amount is a size for people.
func amount(n int64) string {
	for _, u := range [...]struct {
		size int64
		name string
	}{{1 << 30, "G"}, {1 << 20, "M"}, {1 << 10, "K"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f%s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprint(n)
}

// nowOf is the daemon's time when it told of a message.
func nowOf(m *api.QueueMessage) time.Time {
	t, err := time.Parse(time.RFC3339, m.Arrival)
	if err != nil {
		return time.Time{}
	}
	return t.Add(time.Duration(m.Age) * time.Second)
}

// due says when something is due: "now" or "in 5m".
func due(at string, now time.Time) string {
	t, err := time.Parse(time.RFC3339, at)
	switch {
	case at == "" || err != nil:
		return "-"
	case !t.After(now):
		return "now"
	}
	return "in " + span(t.Sub(now))
}

// ago says how long something is past.
func ago(at string, now time.Time) string {
	t, err := time.Parse(time.RFC3339, at)
	if at == "" || err != nil {
		return "-"
	}
	return span(now.Sub(t)) + " ago"
}

// queueTable prints messages as they come, a table for each screenful.
type queueTable struct {
	t *tabwriter.Writer
	n int
}

// tableRows is after how many rows the columns may change their width: what
// comes from a large queue is not kept back.
const tableRows = 1000

func newQueueTable(w io.Writer) *queueTable {
	return &queueTable{t: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

func (q *queueTable) add(m *api.QueueMessage) error {
	if q.n == 0 {
		fmt.Fprintln(q.t, "ID\tAGE\tSIZE\tSTATE\tNEXT\tFROM\tTO")
	}
	if q.n++; q.n%tableRows == 0 {
		if err := q.t.Flush(); err != nil {
			return err
		}
	}
	to := "-"
	if len(m.Recipients) > 0 {
		to = "<" + shown(m.Recipients[0].Address) + ">"
	}
	if m.Total > 1 {
		to += fmt.Sprintf(" and %d more", m.Total-1)
	}
	_, err := fmt.Fprintf(q.t, "%s\t%s\t%s\t%s\t%s\t<%s>\t%s\n",
		m.ID, span(time.Duration(m.Age)*time.Second), amount(m.Size), stateOf(m), due(m.Next, nowOf(m)), shown(m.Sender), to)
	return err
}

func (q *queueTable) flush() error { return q.t.Flush() }

// stateOf is a message's state in a word or two.
func stateOf(m *api.QueueMessage) string {
	switch {
	case m.Hold == nil:
	case m.Hold.Filter != "":
		return "quarantined"
	default:
		return "held"
	}
	var all []string
	for _, status := range [...]string{"fresh", "deferred", "delivered", "failed"} {
		switch n := m.Counts[status]; {
		case n == 0:
		case n == m.Total:
			all = append(all, status)
		default:
			all = append(all, fmt.Sprintf("%d %s", n, status))
		}
	}
	if m.Bouncing {
		all = append(all, "bouncing")
	}
	return strings.Join(all, ", ")
}

// bounces says what a message is by its depth of reports.
var bounces = [...]string{"mail", "a report about mail", "a report about a report (double bounce)"}

// printMessage prints a message with its history.
func printMessage(w io.Writer, m *api.QueueMessage, head bool) error {
	var b strings.Builder
	now := nowOf(m)
	line := func(name, text string) { fmt.Fprintf(&b, "%-9s %s\n", name, text) }
	line("message", m.ID+" (number "+m.Number+")")
	line("arrived", m.Arrival+", "+ago(m.Arrival, now))
	line("from", "<"+shown(m.Sender)+">")
	line("size", fmt.Sprintf("%d bytes, %s", m.Size, shown(m.Form)))
	if m.Bounce > 0 {
		line("is", bounces[min(m.Bounce, len(bounces)-1)])
	}
	if m.Bouncing {
		line("bouncing", "recipients were given up of whom the sender was not told yet")
	}
	if h := m.Hold; h != nil {
		who := "because it cannot be delivered and its sender must not be told"
		switch {
		case h.Filter != "":
			who = "by the filter " + shown(h.Filter)
		case h.By != "":
			who = "by " + shown(h.By)
		}
		line(stateOf(m), strings.TrimSuffix(fmt.Sprintf("since %s %s: %s", h.Since, who, shown(h.Reason)), ": "))
	}
	if m.Origin != nil {
		printOrigin(&b, m.Origin)
	}
	printHead(&b, m.Head, head)
	b.WriteString("\n")
	if m.Origin != nil && len(m.Origin.Trace) > 0 {
		if err := printTrace(&b, m.Origin.Trace); err != nil {
			return err
		}
		b.WriteString("\n")
	}
	if err := printRecipients(&b, m, now); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printOrigin(b *strings.Builder, o *api.Origin) {
	if o.Error != "" {
		fmt.Fprintf(b, "%-9s unknown: %s\n", "came", shown(o.Error))
		return
	}
	came := "by entrance " + shown(o.Entrance) + optionalShown(", ", o.Protocol) + optionalShown(", ", o.Standing)
	came += optionalShown(", from ", o.Peer) + optionalShown(" ", o.PeerName) + optionalShown(", helo ", o.Helo) + optionalShown(", user ", o.User)
	if o.UID >= 0 {
		came += fmt.Sprintf(", uid %d", o.UID)
	}
	fmt.Fprintf(b, "%-9s %s\n", "came", came)
	fmt.Fprintf(b, "%-9s %s%s, generation %d\n", "as", shown(cmp.Or(o.Transaction, "-")), optionalShown(", chain ", o.Chain), o.Generation)
	for _, r := range o.Results {
		text := shown(r.Method + "=" + r.Result)
		if r.Reason != "" {
			text += " (" + shown(r.Reason) + ")"
		}
		for _, p := range r.Props {
			text += " " + shown(p)
		}
		fmt.Fprintf(b, "%-9s %s\n", "auth", text)
	}
}

func optionalShown(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + shown(s)
}

// shortHead are the fields that are shown if not all are.
var shortHead = [...]string{"Date", "From", "To", "Subject", "Message-ID"}

func printHead(b *strings.Builder, text string, whole bool) {
	if whole {
		b.WriteString("\n")
		for line := range strings.Lines(strings.TrimSuffix(text, "\n")) {
			fmt.Fprintf(b, "    %s\n", shown(strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", " ")))
		}
		return
	}
	h, _ := message.ParseHead(text)
	for _, name := range shortHead {
		if v := h.Get(name); v != "" {
			fmt.Fprintf(b, "%-9s %s: %s\n", "field", name, cut(shown(v), maxField))
		}
	}
}

// maxField bounds a field's value where not the whole header is shown.
const maxField = 200

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "..."
}

// printTrace prints what the filters did with a message.
func printTrace(b *strings.Builder, all []api.TraceEntry) error {
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STAGE\tFILTER\tVERDICT\tTIME\tWHY")
	for _, e := range all {
		verdict, why := shown(e.Action), shown(e.Reason)
		switch {
		case e.Skipped != "":
			verdict, why = "-", skippedWords(shown(e.Skipped))
		case e.Shadow:
			verdict = "(" + verdict + ")"
			why = strings.TrimSuffix("in shadow, not enforced: "+why, ": ")
		}
		if e.Error != "" {
			why = "error: " + shown(e.Error)
		}
		if e.Reply != "" {
			why = strings.TrimPrefix(why+" -> "+shown(e.Reply), " -> ")
		}
		took := time.Duration(e.Took) * time.Microsecond
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", shown(e.Stage), shown(e.Filter), verdict, took, why)
		for _, edit := range e.Edits {
			fmt.Fprintf(t, "\t\t\t\t  %s\n", shown(edit))
		}
	}
	return t.Flush()
}

func printRecipients(b *strings.Builder, m *api.QueueMessage, now time.Time) error {
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TO\tSTATUS\tTRIES\tLAST\tNEXT\tCHANNEL\tSITE\tANSWER")
	for i := range m.Recipients {
		r := &m.Recipients[i]
		status, next := r.Status, due(r.Next, now)
		if r.Reported {
			status += ", reported"
		} else if r.Warned {
			status += ", warned"
		}
		if r.InFlight {
			next = "going on"
		}
		answer := shown(r.Reply)
		if r.Where != "" {
			answer = shown(r.Where) + ": " + answer
		}
		if r.Perhaps {
			answer += " (it may have been delivered)"
		}
		fmt.Fprintf(t, "<%s>\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", shown(r.Address), status, r.Attempts, ago(r.Last, now), next, shown(r.Channel), viaText(cmp.Or(r.Site, r.Domain), r.Lane), answer)
	}
	return t.Flush()
}

func printCounts(w io.Writer, n *api.QueueCounts) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "MESSAGES\tRECIPIENTS\t  %s\n", strings.ToUpper(n.By))
	number := func(n, other int) string {
		if n == 0 && other > 0 {
			return "-" // not known
		}
		return fmt.Sprint(n)
	}
	for _, c := range n.Names {
		fmt.Fprintf(t, "%s\t%d\t  %s\n", number(c.Messages, c.Recipients), c.Recipients, shown(c.Name))
	}
	if n.Messages > 0 {
		fmt.Fprintf(t, "%d\t%d\t  all\n", n.Messages, n.Recipients)
	}
	if err := t.Flush(); err != nil || n.More == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "and %d more: --max 0\n", n.More)
	return err
}

// viaText is a site, with the lane by which mail leaves for it unless that is the
// ordinary one.
func viaText(site, lane string) string {
	return shown(site) + optionalShown(" via ", lane)
}

func printSites(w io.Writer, all []api.Site) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SITE\tQUEUED\tDUE\tGOING\tHELD\tDOMAINS\tLIMIT\tSTATE")
	for i := range all {
		s := &all[i]
		limit := fmt.Sprintf("%d/%d", s.Connections, s.Allowed)
		if s.Allowed != s.Limit {
			limit += fmt.Sprintf(" of %d", s.Limit)
		}
		state := "living"
		switch {
		case s.Suspended != "":
			state = "suspended until " + shown(s.Suspended)
		case s.Failures > 0:
			state = "failing"
		case !s.Living:
			state = "unproven"
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", viaText(cmp.Or(s.Name, "(none)"), s.Lane), s.Queued, s.Due, s.InFlight, s.Held, s.Domains, limit, state)
	}
	return t.Flush()
}

func printChanged(w io.Writer, ch *queueChange, n *api.QueueChanged) error {
	would := ""
	if n.DryRun {
		would = "would be "
	}
	if _, err := fmt.Fprintf(w, "%s%s: %s, %s\n", would, ch.did, plural(n.Messages, "message"), plural(n.Recipients, "recipient")); err != nil {
		return err
	}
	for i, id := range n.IDs {
		if i == maxShown && n.Messages > maxShown {
			fmt.Fprintf(w, "  and %d more\n", n.Messages-maxShown)
			break
		}
		fmt.Fprintf(w, "  %s\n", id)
	}
	if n.InFlight > 0 {
		fmt.Fprintf(w, "deliveries that are going on and cannot be called back: %d\n", n.InFlight)
	}
	return nil
}
