// Package dsn writes the reports that a sender gets: that a message could not
// be delivered, or not yet.
//
// It promises that a report is well-formed whatever the message, the
// addresses and the remote server's words hold; that it carries the original up
// to a limit and never more in memory than a body may; and that it cannot be
// answered by another report (null sender, Auto-Submitted).
package dsn

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Kind is what a report is about.
type Kind uint8

// The kinds of reports.
const (
	Failure Kind = iota // recipients that were given up
	Delay               // recipients that are still being tried
	Double              // a report that could not be delivered itself, to the postmaster
	Held                // mail that is held because its sender may not be told, to the postmaster
)

// Kinds is how many kinds there are, for tables indexed by Kind.
const Kinds = int(Held) + 1

var kindNames = [Kinds]string{"failure", "delay", "double", "held"}

// String is the kind's word in logs and metrics.
func (k Kind) String() string { return kindNames[k] }

// Format is how a report is written.
type Format uint8

// The formats.
const (
	MIME  Format = iota // RFC 3464, the human part first
	QSBMF               // qmail's own bounce message format
)

var formatNames = [...]string{"mime", "qsbmf"}

// String is the word of the option "bounce.format".
func (f Format) String() string { return formatNames[f] }

// ParseFormat is the inverse of String.
func ParseFormat(s string) (Format, bool) {
	for i, name := range formatNames {
		if s == name {
			return Format(i), true
		}
	}
	return 0, false
}

// Recipient is one address that a report is about.
type Recipient struct {
	Address string
	// ORcpt is the sender's own name for it, as it came (RFC 3461 §4.2).
	ORcpt string
	// Reply is what was answered last, Where by whom.
	Reply reply.Reply
	Where string
	Last  time.Time
	// Perhaps is set if it may have been delivered all the same.
	Perhaps bool
}

// DefaultMaxOriginal is up to which size in bytes the original is included
// whole.
const DefaultMaxOriginal = 1 << 20

// Report is one report to be written. The zero values of the options are their
// defaults.
type Report struct {
	Kind Kind
	// Host is our name, From the address in the report's From field, To the
	// original's sender (or the postmaster, for a Double).
	Host, From, To string
	// Sender is the envelope sender of the original.
	Sender     string
	EnvID      string // MAIL's ENVID, xtext
	Arrival    time.Time
	Now        time.Time
	GiveUp     time.Time // of a Delay: until when we go on trying
	Recipients []Recipient
	Original   message.Message
	// HeadersOnly asks for the original's head alone (RET=HDRS).
	HeadersOnly bool
	// MaxOriginal is the size above which the head alone is included; 0 means
	// DefaultMaxOriginal, -1 always.
	MaxOriginal int64
	Format      Format
	// Note is added to the human part; it may be empty.
	Note string
	// ID makes the Message-ID, with Host.
	ID string
	// Spool takes a large report's body.
	Spool message.Spooler
}

// Envelope is the report's envelope: from nobody, or from qmail's sender of
// double bounces, to To.
func (r *Report) Envelope() envelope.Envelope {
	sender := ""
	if r.Kind == Double || r.Kind == Held {
		sender = envelope.DoubleBounce
	}
	return envelope.To(sender, r.To)
}

// Build writes the report. The caller holds its body.
func (r *Report) Build() (message.Message, error) {
	// Nobody can know the boundary beforehand and write it into an original.
	return r.build("postern-" + rand.Text())
}

func (r *Report) build(boundary string) (message.Message, error) {
	w := message.NewWriter(r.Spool, 0)
	b := &writer{w: w, buf: bufio.NewWriterSize(w, 8<<10), r: r, boundary: boundary, utf8: r.utf8()}
	build := b.mime
	if r.Format == QSBMF {
		build = b.qsbmf
	}
	build()
	if b.err == nil {
		b.err = b.buf.Flush()
	}
	if b.err != nil {
		w.Abort()
		return message.Message{}, fmt.Errorf("writing a report: %w", b.err)
	}
	body, err := w.Body()
	if err != nil {
		return message.Message{}, fmt.Errorf("writing a report: %w", err)
	}
	h, err := message.Head{}.Edit(b.head()...)
	if err != nil {
		body.Release() //nolint:errcheck // the spool sweeps what is left behind
		return message.Message{}, fmt.Errorf("writing a report: %w", err)
	}
	return message.New(message.Head{}, nil).WithHead(h).WithBody(body), nil
}

const dateLayout = "02 Jan 2006 15:04:05 -0000"

var subjects = [...]string{Failure: "failure notice", Delay: "delay notice", Double: "failure notice", Held: "undeliverable mail held"}

// head is the report's head. Auto-Submitted keeps responders quiet (RFC 3834 §5).
func (b *writer) head() []message.FieldEdit {
	r := b.r
	fields := []message.FieldEdit{
		{Name: "Date", Value: r.Now.UTC().Format(dateLayout)},
		{Name: "From", Value: "Mail Delivery System <" + address(r.From) + ">"},
		{Name: "To", Value: "<" + address(r.To) + ">"},
		{Name: "Message-ID", Value: "<" + address(r.ID) + "@" + address(r.Host) + ">"},
		{Name: "Subject", Value: subjects[r.Kind]},
		{Name: "Auto-Submitted", Value: "auto-replied"},
	}
	if r.Format == MIME {
		fields = append(fields,
			message.FieldEdit{Name: "MIME-Version", Value: "1.0"},
			message.FieldEdit{Name: "Content-Type", Value: "multipart/report; report-type=delivery-status;\n boundary=\"" + b.boundary + "\""})
		if b.eightBit() {
			fields = append(fields, message.FieldEdit{Name: "Content-Transfer-Encoding", Value: "8bit"})
		}
	}
	for i := range fields {
		fields[i].Op = message.Append
	}
	return fields
}

// maxShown bounds an address in a report in bytes, so that no line of ours is
// longer than RFC 5322 §2.1.1 allows. No mailbox has a name that long.
const maxShown = 900

// address makes an address fit for a field or a line of a report: no control
// bytes, none that would end it, and not longer than a line.
func address(a string) string {
	a = strings.Map(func(c rune) rune {
		if c < ' ' || c == '<' || c == '>' || 0x7f <= c && c < 0xa0 || c == 0x2028 || c == 0x2029 {
			return '?'
		}
		return c
	}, strings.ToValidUTF8(a, "?"))
	if len(a) > maxShown {
		a = strings.ToValidUTF8(a[:maxShown], "") + "..."
	}
	return a
}

// utf8 reports whether the report itself has to say what is not ASCII.
func (r *Report) utf8() bool {
	if !ascii(r.To) || !ascii(r.From) || !ascii(r.Sender) {
		return true
	}
	for i := range r.Recipients {
		if !ascii(r.Recipients[i].Address) {
			return true
		}
	}
	return false
}
