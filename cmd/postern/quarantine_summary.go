package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
)

// digest is a summary of the quarantine for a person: counts, and a line or two
// for each new message, as many as fit.
type digest struct {
	host, from, to string
	now, since     time.Time
	keep           time.Duration
	all, fresh     int
	filters        map[string]int // of the new ones
	lines          []string
}

// Bounds of a summary: messages it lists, filters it counts, and bytes of what
// strangers wrote.
const (
	maxListed   = 200
	maxCounted  = 50
	maxSummary  = 120
	maxShortKey = 60
)

// add counts a message, and lists it if it is new.
func (d *digest) add(v *queue.View) {
	d.all++
	if !v.Hold.Since.After(d.since) {
		return
	}
	d.fresh++
	if d.filters == nil {
		d.filters = map[string]int{}
	}
	d.filters[v.Hold.Filter]++
	if d.fresh > maxListed {
		return
	}
	to := ""
	if len(v.Recipients) > 0 {
		to = v.Recipients[0].Address
	}
	more := ""
	if n := len(v.Recipients); n > 1 {
		more = fmt.Sprintf(" and %d more", n-1)
	}
	head, _ := message.ParseHead(v.Head)
	d.lines = append(d.lines, fmt.Sprintf("%s  %s  %s: %s\n  from <%s> to <%s>%s, %s\n  %s\n",
		v.ID, v.Hold.Since.In(d.now.Location()).Format("2006-01-02 15:04"), reply.Clean(v.Hold.Filter, maxShortKey), reply.Clean(v.Hold.Reason, maxSummary),
		reply.Clean(v.Envelope.Sender, maxSummary), reply.Clean(to, maxSummary), more, amount(v.Size),
		cmp.Or(reply.Clean("Subject: "+head.Get("Subject"), maxSummary), "no subject")))
}

// envelope is the summary's in our queue: from nobody, and of a kind of which
// nobody hears when it fails.
func (d *digest) envelope() envelope.Envelope { return envelope.To(envelope.DoubleBounce, d.to) }

// message is the summary's text.
func (d *digest) message() message.Message {
	var b strings.Builder
	fmt.Fprintf(&b, "From: Postern <%s>\nTo: <%s>\nSubject: quarantine on %s: %d new, %d in all\n", reply.Clean(d.from, envelope.MaxAddress), reply.Clean(d.to, envelope.MaxAddress), d.host, d.fresh, d.all)
	fmt.Fprintf(&b, "Date: %s\nMessage-ID: <quarantine.%d@%s>\nAuto-Submitted: auto-generated\nMIME-Version: 1.0\nContent-Type: text/plain; charset=us-ascii\n\n",
		d.now.Format("Mon, 02 Jan 2006 15:04:05 -0700"), d.now.UnixMilli(), d.host)
	fmt.Fprintf(&b, "Filters on %s hold %s in quarantine, %d of them since the last summary:\n\n", d.host, plural(d.all, "message"), d.fresh)
	names := slices.SortedFunc(maps.Keys(d.filters), func(a, b string) int {
		return cmp.Or(cmp.Compare(d.filters[b], d.filters[a]), cmp.Compare(a, b))
	})
	for _, name := range names[:min(len(names), maxCounted)] {
		fmt.Fprintf(&b, "%8d  %s\n", d.filters[name], reply.Clean(name, maxShortKey))
	}
	b.WriteString("\n  postern quarantine show ID      the envelope, the reason and the header\n  postern quarantine release ID   lets it go on behind the filter that holds it\n  postern quarantine delete ID    removes it\n\n")
	if d.keep > 0 {
		fmt.Fprintf(&b, "What is left alone is deleted after %s; its sender is not told.\n\n", span(d.keep))
	}
	for _, line := range d.lines {
		b.WriteString(line)
	}
	if more := d.fresh - len(d.lines); more > 0 {
		fmt.Fprintf(&b, "and %d more: postern quarantine list\n", more)
	}
	return message.FromString(b.String())
}
