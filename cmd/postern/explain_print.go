package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// explanation is what `postern explain` found, in the form of --json.
type explanation struct {
	Entrance string           `json:"entrance"`
	Protocol string           `json:"protocol"`
	Chain    string           `json:"chain"`
	Standing string           `json:"standing"`
	Peer     string           `json:"peer,omitempty"`
	Helo     string           `json:"helo,omitempty"`
	User     string           `json:"user,omitempty"`
	From     string           `json:"from"`
	To       []string         `json:"to"`
	Size     int64            `json:"size"`
	Form     string           `json:"form"`
	Filters  []explainedEntry `json:"filters"`
	Outgoing []explainedGoing `json:"outgoing,omitempty"`
	Refused  []explainedFate  `json:"refused,omitempty"`
	Answer   string           `json:"answer"`
	Exit     uint8            `json:"exit"`
	// Text is the custom error text that a caller which reads one is given.
	Text  string   `json:"text,omitempty"`
	Notes []string `json:"notes,omitempty"`
	Took  string   `json:"took"`
}

// explainedEntry is an entry of the trace with a time that people can read.
type explainedEntry struct {
	pipeline.Entry
	Took string `json:"took"`
}

type explainedGoing struct {
	What string   `json:"what"`
	From string   `json:"from"`
	To   []string `json:"to"`
	Size int64    `json:"size"`
	Hold string   `json:"hold,omitempty"`
	Diff []string `json:"diff,omitempty"`
}

type explainedFate struct {
	Recipient string `json:"recipient"`
	Answer    string `json:"answer"`
	Filter    string `json:"filter"`
	Reason    string `json:"reason,omitempty"`
}

// explain puts an outcome into words.
func explain(tx *pipeline.Transaction, chain *pipeline.Chain, m message.Message, o *pipeline.Outcome, took time.Duration) explanation {
	s := tx.Session
	x := explanation{
		Entrance: s.Entrance, Protocol: s.Protocol, Chain: chain.Name(), Standing: s.Standing.String(), Helo: s.Helo, User: s.User, From: tx.Envelope.Sender,
		To: tx.Envelope.Addresses(), Size: m.Size(), Form: m.Form().String(),
		Took: took.Round(time.Microsecond).String(),
	}
	x.answer(o.Reply)
	for _, e := range o.Trace {
		x.Filters = append(x.Filters, explainedEntry{e, e.Took.Round(time.Microsecond).String()})
	}
	if s.Peer.IsValid() {
		x.Peer = s.Peer.Addr().String()
	}
	for _, out := range o.Outgoing {
		g := explainedGoing{What: "message", From: out.Envelope.Sender, To: out.Envelope.Addresses(), Size: out.Message.Size(), Hold: out.Hold, Diff: diff(m, out.Message)}
		if out.Copy {
			g.What = "copy"
		}
		x.Outgoing = append(x.Outgoing, g)
	}
	for n, f := range o.Fates {
		if n < len(tx.Envelope.Recipients) && (f.Action == pipeline.Reject || f.Action == pipeline.Defer) {
			x.Refused = append(x.Refused, explainedFate{tx.Envelope.Recipients[n].Address, f.Reply.SMTP(), f.Filter, f.Reason})
		}
	}
	return x
}

func (x *explanation) answer(r reply.Reply) {
	x.Answer, x.Exit, x.Text = r.SMTP(), r.QueueExit(), r.QueueText(maxQueueText)
}

// handOn is what the entrance says of a message that the chain lets pass.
func (x *explanation) handOn(l *config.Listen, m message.Message, o *pipeline.Outcome) {
	if l.Next == config.NextQueue {
		if hops := m.Head().Hops(); hops >= handoff.MaxHops {
			x.Outgoing = nil
			x.answer(reply.Loop)
			x.Notes = append(x.Notes, fmt.Sprintf("%d hops: our queue takes no message with %d or more, before any filter sees it", hops, handoff.MaxHops))
		}
		return
	}
	if o.Reply.Class != reply.Success || !isProgram(l) {
		return
	}
	if err := handoff.Fits(o.Outgoing); err != nil {
		x.Outgoing = nil
		x.answer(reply.Trouble)
		x.Notes = append(x.Notes, "the chain lets it pass, but it cannot go to the next program: "+clean(err.Error()))
	}
}

// maxQueueText is the longest custom error text that qmail's callers read.
const maxQueueText = 255

// diff is what happened to a message: fields with - and +, and the body's size.
func diff(before, after message.Message) []string {
	var lines []string
	a, b := fieldTexts(before), fieldTexts(after)
	lcs := commonFields(a, b)
	i, k := 0, 0
	for _, same := range append(lcs, [2]int{len(a), len(b)}) {
		for ; i < same[0]; i++ {
			lines = append(lines, mark("-", a[i])...)
		}
		for ; k < same[1]; k++ {
			lines = append(lines, mark("+", b[k])...)
		}
		i, k = i+1, k+1
	}
	if before.Body() != after.Body() {
		lines = append(lines, fmt.Sprintf("-(body of %d bytes)", before.Body().Size()), fmt.Sprintf("+(body of %d bytes)", after.Body().Size()))
	}
	return lines
}

func fieldTexts(m message.Message) []string {
	all := make([]string, m.Head().Len())
	for i := range all {
		all[i] = m.Head().Field(i).Text()
	}
	return all
}

// maxDiff bounds the fields that commonFields compares with each other.
const maxDiff = 2000

// commonFields are the pairs of fields that stayed, a longest common
// subsequence.
func commonFields(a, b []string) (pairs [][2]int) {
	if len(a) > maxDiff || len(b) > maxDiff {
		return nil
	}
	table := make([][]uint16, len(a)+1)
	for i := range table {
		table[i] = make([]uint16, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for k := len(b) - 1; k >= 0; k-- {
			if a[i] == b[k] {
				table[i][k] = table[i+1][k+1] + 1
			} else {
				table[i][k] = max(table[i+1][k], table[i][k+1])
			}
		}
	}
	for i, k := 0, 0; i < len(a) && k < len(b); {
		switch {
		case a[i] == b[k]:
			pairs = append(pairs, [2]int{i, k})
			i, k = i+1, k+1
		case table[i+1][k] >= table[i][k+1]:
			i++
		default:
			k++
		}
	}
	return pairs
}

// mark puts a sign before each line of a field, which is made printable.
func mark(sign, field string) []string {
	var lines []string
	for _, line := range strings.Split(strings.TrimSuffix(field, "\n"), "\n") {
		indent := ""
		if line != strings.TrimLeft(line, " \t") {
			indent = "  "
		}
		lines = append(lines, sign+indent+reply.Clean(line, 1000))
	}
	return lines
}

// printJSON writes the explanation as one JSON value.
func (x explanation) printJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(x)
}

// print writes the explanation for people.
func (x explanation) print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "message   %d bytes, %s, from <%s> to %s\n", x.Size, x.Form, clean(x.From), addresses(x.To))
	fmt.Fprintf(&b, "session   %s%s%s%s\n", x.Standing, optional(", from ", x.Peer), optional(", HELO ", x.Helo), optional(", user ", x.User))
	fmt.Fprintf(&b, "entrance  %s, %s\n", x.Entrance, x.Protocol)
	fmt.Fprintf(&b, "chain     %s\n\n", x.Chain)
	x.printFilters(&b)
	for _, f := range x.Refused {
		fmt.Fprintf(&b, "refused   <%s>: %s (%s%s)\n", clean(f.Recipient), f.Answer, f.Filter, optional(": ", f.Reason))
	}
	for _, g := range x.Outgoing {
		fmt.Fprintf(&b, "%-9s %d bytes, from <%s> to %s%s\n", g.What, g.Size, clean(g.From), addresses(g.To), optional(", held: ", g.Hold))
		for _, line := range g.Diff {
			fmt.Fprintf(&b, "          %s\n", line)
		}
	}
	for _, note := range x.Notes {
		fmt.Fprintf(&b, "note      %s\n", note)
	}
	fmt.Fprintf(&b, "answer    %s\n", x.Answer)
	if x.Protocol == "qmail-queue" {
		fmt.Fprintf(&b, "exit      %d%s\n", x.Exit, optional(", or with a custom error text ", x.Text))
	}
	fmt.Fprintf(&b, "took      %s\n", x.Took)
	_, err := io.WriteString(w, b.String())
	return err
}

func (x explanation) printFilters(b *strings.Builder) {
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STAGE\tFILTER\tVERDICT\tTIME\tWHY")
	for _, e := range x.Filters {
		verdict, why := e.Action, e.Reason
		if e.Skipped != "" {
			verdict, why = "-", skippedWords(e.Skipped)
		}
		if e.Shadow && e.Skipped == "" {
			verdict = "(" + verdict + ")"
			why = strings.TrimSuffix("in shadow, not enforced: "+why, ": ")
		}
		if e.Err != "" {
			why = "error: " + e.Err
		}
		if e.Reply != "" {
			why = strings.TrimPrefix(why+" -> "+e.Reply, " -> ")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", e.Stage, e.Filter, verdict, e.Took, why)
		for _, edit := range e.Edits {
			fmt.Fprintf(t, "\t\t\t\t  %s\n", edit)
		}
	}
	t.Flush() //nolint:errcheck // a strings.Builder takes everything
	b.WriteString("\n")
}

func skippedWords(s string) string {
	switch s {
	case "when":
		return "its rule (when) does not match"
	case "off":
		return "switched off"
	case "decided":
		return "an earlier filter has decided"
	}
	return s
}

func clean(s string) string { return reply.Clean(s, 1100) }

func optional(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + clean(s)
}

// maxShown is how many recipients are listed for people.
const maxShown = 10

func addresses(all []string) string {
	shown := make([]string, 0, maxShown)
	for i, a := range all {
		if i == maxShown {
			return fmt.Sprintf("%s and %d more", strings.Join(shown, ", "), len(all)-maxShown)
		}
		shown = append(shown, "<"+clean(a)+">")
	}
	if len(shown) == 0 {
		return "nobody"
	}
	return strings.Join(shown, ", ")
}
