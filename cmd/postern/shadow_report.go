package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// shadowReport is what the filters in shadow would have done, in the form of
// --json.
type shadowReport struct {
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// Messages are those that the log tells of, Judged those that filters in
	// shadow judged, and the attempts at delivery that they judged.
	Messages int             `json:"messages"`
	Judged   int             `json:"judged"`
	Filters  []*shadowFilter `json:"filters"`
	Senders  []*shadowSender `json:"senders"`
	// Lost is by how much the counts of a sender may be too low, Unread the
	// lines that could not be read, More the verdicts of filters beyond those
	// that there is room for.
	Lost   int      `json:"lost,omitempty"`
	Unread int      `json:"unread,omitempty"`
	More   int      `json:"more,omitempty"`
	Notes  []string `json:"notes,omitempty"`
}

// runShadowReport reads logs, and prints what filters in shadow would have
// done. What can be read of them is told, also where one ends in an error.
func runShadowReport(files []string, top int, asJSON bool, stdin io.Reader, out io.Writer) error {
	t := newShadowTally()
	var trouble error
	for _, name := range files {
		if err := t.file(name, stdin); err != nil {
			trouble = errors.Join(trouble, fmt.Errorf("log %s: %w", name, err))
		}
	}
	r := t.report(top)
	if trouble != nil && t.messages == 0 && len(r.Filters) == 0 {
		return trouble
	}
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return errors.Join(trouble, e.Encode(r))
	}
	return errors.Join(trouble, r.print(out))
}

func (t *shadowTally) file(name string, stdin io.Reader) error {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	unread, err := readShadowLog(in, t.line)
	t.unread += unread
	return err
}

// report is the sum of it, with so many senders in all, and half as many of
// each filter.
func (t *shadowTally) report(top int) shadowReport {
	r := shadowReport{
		First: t.first, Last: t.last, Messages: t.messages, Judged: t.judged, Filters: []*shadowFilter{}, Senders: t.senders.top(top),
		Lost: t.senders.lost, Unread: t.unread, More: t.more,
	}
	for _, name := range sortedKeys(t.filters) {
		f := t.filters[name]
		f.Senders = slices.DeleteFunc(f.senders.top((top+1)/2), func(s *shadowSender) bool { return s.weight() == 0 })
		for w := shadowWoulds; w > 0; w-- {
			f.Examples = append(f.Examples, f.examples[w-1]...)
		}
		r.Filters = append(r.Filters, f)
	}
	switch {
	case r.Messages == 0 && r.Judged == 0:
		r.Notes = append(r.Notes, `no line is about a message: this is not a log of postern serve, or its log.level is above "info"`)
	case r.Judged == 0:
		r.Notes = append(r.Notes, `no filter was in shadow: give one mode = "shadow", or use postern filter set NAME shadow`)
	}
	if r.Lost > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("there are very many senders: their counts may be too low, by %d at most", r.Lost))
	}
	if r.More > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("there are more than %d filters: %d verdicts of others are left out", maxShadowFilters, r.More))
	}
	if r.Unread > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("lines that are damaged or too long, and left out: %d", r.Unread))
	}
	return r
}

const shadowTime = "2006-01-02 15:04:05"

// print writes the report for people. All that comes from the log has been made
// printable when it was read.
func (r shadowReport) print(w io.Writer) error {
	var b strings.Builder
	if !r.First.IsZero() {
		fmt.Fprintf(&b, "log       %s to %s UTC\n", r.First.UTC().Format(shadowTime), r.Last.UTC().Format(shadowTime))
	}
	fmt.Fprintf(&b, "messages  %d\n", r.Messages)
	fmt.Fprintf(&b, "judged    %d by filters in shadow, each attempt at delivery counted too\n", r.Judged)
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "note      %s\n", note)
	}
	if len(r.Filters) > 0 {
		r.printTable(&b)
		for _, f := range r.Filters {
			f.print(&b)
		}
	}
	if r.Judged > 0 {
		r.printSenders(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// shadowColumns are the verdicts that have a column each, in their order.
var shadowColumns = []shadowWould{wouldRefuse, wouldDefer, wouldQuarantine, wouldDiscard, wouldAccept}

func shadowHead(first string) string {
	for _, w := range shadowColumns {
		first += "\t" + strings.ToUpper(w.String())
	}
	return first
}

func (v *shadowVerdicts) columns() string {
	var b strings.Builder
	for _, w := range shadowColumns {
		fmt.Fprintf(&b, "\t%d", v[w].Messages)
	}
	return b.String()
}

func (r shadowReport) printTable(b *strings.Builder) {
	b.WriteString("\n")
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s\tEDIT\tFAILED\tDIFFERS\n", shadowHead("FILTER\tMESSAGES"))
	for _, f := range r.Filters {
		fmt.Fprintf(t, "%s\t%d%s\t%d\t%d\t%d\n", f.Filter, f.Messages, f.Verdicts.columns(), f.Edits, f.Failed, f.Differs)
	}
	t.Flush() //nolint:errcheck // a strings.Builder takes everything
}

func (r shadowReport) printSenders(b *strings.Builder) {
	b.WriteString("\n")
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s\tEDIT\tDIFFERS\n", shadowHead("SENDER\tMESSAGES"))
	for _, s := range r.Senders {
		fmt.Fprintf(t, "%s\t%d%s\t%d\t%d\n", s.Domain, s.Messages, s.Verdicts.columns(), s.Edits, s.Differs)
	}
	t.Flush() //nolint:errcheck // likewise
}

// print tells of one filter what there is to tell.
func (f *shadowFilter) print(b *strings.Builder) {
	fmt.Fprintf(b, "\n%s\n", f.Filter)
	for _, s := range f.Switched {
		fmt.Fprintf(b, "  by hand      %s UTC  mode %s%s%s\n", s.Time.UTC().Format(shadowTime), s.Mode, optional(" until ", s.Until), optional(" by ", s.By))
	}
	for w := shadowWoulds - 1; w > wouldNothing; w-- {
		c := &f.Verdicts[w]
		if c.Messages == 0 {
			continue
		}
		var facts []string
		for fact, n := range c.InFact {
			if n > 0 {
				facts = append(facts, fmt.Sprintf("%d %s", n, shadowFact(fact)))
			}
		}
		fmt.Fprintf(b, "  would %-11s%d (recipients: %d); in fact %s\n", w, c.Messages, c.Recipients, strings.Join(facts, ", "))
	}
	if len(f.Senders) > 0 {
		named := make([]string, len(f.Senders))
		for i, s := range f.Senders {
			named[i] = fmt.Sprintf("%s %d", s.Domain, s.weight())
		}
		fmt.Fprintf(b, "  senders      %s\n", strings.Join(named, ", "))
	}
	for _, e := range f.Examples {
		fmt.Fprintf(b, "  %-11s  %s UTC  %s%s  from <%s> to %s  at %s%s  (in fact %s)\n", e.Would, e.Time.UTC().Format(shadowTime), e.ID, optional(" ", e.MessageID),
			e.From, e.To, e.Stage, optional(": ", e.Reason), e.InFact)
	}
}
