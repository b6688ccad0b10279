package dsn

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// writer writes a report's body and remembers the first error.
type writer struct {
	w        *message.Writer
	buf      *bufio.Writer
	r        *Report
	boundary string
	utf8     bool // see Report.utf8
	err      error
}

func (b *writer) print(format string, args ...any) {
	if b.err == nil {
		_, b.err = fmt.Fprintf(b.buf, format, args...)
	}
}

func (b *writer) copy(r io.Reader) {
	if b.err == nil {
		_, b.err = io.Copy(b.buf, r)
	}
}

// whole reports whether the original goes with the report in full. A delay is
// reported with the head alone (RFC 3461 §4.3).
func (b *writer) whole() bool {
	limit := b.r.MaxOriginal
	if limit == 0 {
		limit = DefaultMaxOriginal
	}
	return b.r.Kind != Delay && !b.r.HeadersOnly && limit > 0 && b.r.Original.Size() <= limit
}

func (b *writer) eightBit() bool { return b.utf8 || b.originalEightBit() }

func (b *writer) originalEightBit() bool {
	if b.whole() {
		return b.r.Original.Form() != message.SevenBit
	}
	return !ascii(b.r.Original.HeadText())
}

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// greeting is the human part's first paragraph. Programs that read qmail's
// bounces know one by its beginning.
func (b *writer) greeting() {
	b.print("Hi. This is the Postern program at %s.\n", address(b.r.Host))
	switch b.r.Kind {
	case Failure:
		b.print("I'm afraid I wasn't able to deliver your message to the following addresses.\n" +
			"This is a permanent error; I've given up. Sorry it didn't work out.\n\n")
	case Delay:
		b.print("Your message could not be delivered yet to the following addresses.\n"+
			"I will go on trying until %s. You need not send it again.\n\n", b.r.GiveUp.UTC().Format(dateLayout))
	case Double:
		b.print("I tried to deliver a bounce message to this address, but the bounce bounced!\n\n")
	case Held:
		b.print("A message from outside could not be delivered to the following addresses. Its sender is\n" +
			"not verified, so nobody was told. It is held in the queue: postern queue list shows it.\n\n")
	}
	if b.r.Note != "" {
		b.print("%s\n", b.r.Note)
	}
}

// paragraphs are one for each recipient, "<address>:" and what was said.
func (b *writer) paragraphs() {
	for _, r := range b.r.Recipients {
		b.print("<%s>:\n", address(r.Address))
		if r.Where != "" {
			b.print("%s said: ", reply.Clean(r.Where, 300))
		}
		b.print("%s\n", r.Reply.SMTP())
		if r.Perhaps {
			b.print("The connection was lost at the very end; the message may have arrived all the same.\n")
		}
		b.print("\n")
	}
}

// qsbmf writes qmail's bounce message format: the recipients' paragraphs begin
// with <, the break with -, and the original follows.
func (b *writer) qsbmf() {
	b.greeting()
	b.paragraphs()
	what := "the message"
	if b.r.Kind == Double {
		what = "the original bounce"
	}
	if b.whole() {
		b.print("--- Below this line is a copy of %s.\n\nReturn-Path: <%s>\n", what, address(b.r.Sender))
		b.copy(b.r.Original.Reader())
		return
	}
	b.print("--- Below this line are the headers of %s.\n\nReturn-Path: <%s>\n", what, address(b.r.Sender))
	b.copy(strings.NewReader(b.r.Original.HeadText()))
}

// mime writes a multipart/report (RFC 6522 §3): words for people, the status
// for programs, the original. What is UTF-8 goes by the names of RFC 6533 §5.
func (b *writer) mime() {
	status, whole, headers := "message/delivery-status", "message/rfc822", "text/rfc822-headers"
	if b.utf8 {
		status = "message/global-delivery-status"
	}
	if b.r.Original.Form() == message.UTF8 {
		whole, headers = "message/global", "message/global-headers"
	}
	b.print("--%s\nContent-Type: text/plain; charset=utf-8\n", b.boundary)
	b.encoding(b.utf8)
	b.print("\n")
	b.greeting()
	b.paragraphs()
	b.print("--%s\nContent-Type: %s\n", b.boundary, status)
	b.encoding(b.utf8)
	b.print("\n")
	b.status()
	original, kind := io.Reader(strings.NewReader(b.r.Original.HeadText())), headers
	if b.whole() {
		original, kind = b.r.Original.Reader(), whole
	}
	b.print("\n--%s\nContent-Type: %s\n", b.boundary, kind)
	b.encoding(b.originalEightBit())
	b.print("\n")
	b.copy(original)
	b.print("\n--%s--\n", b.boundary)
}

func (b *writer) encoding(eightBit bool) {
	if eightBit {
		b.print("Content-Transfer-Encoding: 8bit\n")
	}
}

var actions = [...]string{Failure: "failed", Delay: "delayed", Double: "failed", Held: "failed"}

// status writes the fields of RFC 3464 §2.2 and §2.3.
func (b *writer) status() {
	r := b.r
	b.print("Reporting-MTA: dns; %s\n", address(r.Host))
	if id := xtext(r.EnvID); id != "" {
		b.print("Original-Envelope-Id: %s\n", id)
	}
	b.print("Arrival-Date: %s\n", r.Arrival.UTC().Format(dateLayout))
	for _, to := range r.Recipients {
		b.print("\n")
		if kind, rest, ok := strings.Cut(to.ORcpt, ";"); ok && kind != "" && rest != "" {
			b.print("Original-Recipient: %s; %s\n", reply.Clean(kind, 40), xtext(rest))
		}
		kind := "rfc822"
		if !ascii(to.Address) {
			kind = "utf-8"
		}
		b.print("Final-Recipient: %s; %s\nAction: %s\nStatus: %s\n", kind, address(to.Address), actions[r.Kind], to.Reply.EnhancedCode())
		if to.Where != "" {
			b.print("Remote-MTA: dns; %s\n", reply.Clean(to.Where, 300))
		}
		b.print("Diagnostic-Code: smtp; %s\n", to.Reply.SMTP())
		b.date("Last-Attempt-Date", to.Last)
		if r.Kind == Delay {
			b.date("Will-Retry-Until", r.GiveUp)
		}
	}
}

func (b *writer) date(name string, t time.Time) {
	if !t.IsZero() {
		b.print("%s: %s\n", name, t.UTC().Format(dateLayout))
	}
}

// xtext decodes RFC 3461 §4, and makes the result fit for a line.
func xtext(s string) string {
	var out strings.Builder
	for i := 0; i < len(s) && out.Len() < 500; i++ {
		if s[i] == '+' && i+2 < len(s) {
			hi, lo := strings.IndexByte(hex, s[i+1]), strings.IndexByte(hex, s[i+2])
			if hi >= 0 && lo >= 0 {
				out.WriteByte(byte(hi<<4 | lo))
				i += 2
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return reply.Clean(out.String(), 500)
}

const hex = "0123456789ABCDEF"
