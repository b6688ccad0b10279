package submission

import (
	"strings"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

const (
	// maxGrowth bounds what completing adds to a head, in bytes.
	maxGrowth = 64 << 10
	// maxLine is RFC 5322 §2.1.1's, without the line end.
	maxLine = 998
)

// addressFields are the fields whose addresses are completed.
var addressFields = [...]string{"From", "Sender", "Reply-To", "To", "Cc", "Bcc"}

// hosts is what completes an address, ready to be put in.
type hosts struct {
	host   string // "@default.host"
	domain string // ".default.domain"
	plus   string // ".plus.domain"
}

// missing is what a domain lacks, in qmail-inject's order (rwgeneric).
func (h *hosts) missing(domain string) string {
	if domain == "" || strings.HasPrefix(domain, "[") || strings.Contains(domain, ".") {
		return ""
	}
	return h.domain
}

// complete is an envelope address with what it lacks. The empty one is nobody's
// and stays.
func (h *hosts) complete(address string) string {
	if address == "" || address == envelope.DoubleBounce {
		return address
	}
	at := strings.LastIndexByte(address, '@')
	if at < 0 || address[len(address)-1] == '"' {
		return address + h.host
	}
	domain := address[at+1:]
	if bare, ok := strings.CutSuffix(domain, "+"); ok && bare != "" {
		return address[:at+1] + bare + h.plus
	}
	return address + h.missing(domain)
}

// completeHead completes the addresses in the head's address fields.
func (h *hosts) completeHead(m message.Message) message.Message {
	head := m.Head()
	var b strings.Builder
	grown, was := 0, 0
	for i := range head.Len() {
		f := head.Field(i)
		text := f.Text()
		was += len(text)
		if hasAddresses(f) {
			if done := h.completeField(text, len(f.Name())); grown+len(done)-len(text) <= maxGrowth {
				grown += len(done) - len(text)
				text = done
			}
		}
		b.WriteString(text)
	}
	if grown == 0 {
		return m
	}
	// What follows the fields is the blank line, as it came.
	b.WriteString(m.HeadText()[was:])
	done, _ := message.ParseHead(b.String())
	return m.WithHead(done)
}

func hasAddresses(f message.Field) bool {
	for _, name := range addressFields {
		if f.Is(name) {
			return true
		}
	}
	return false
}

// completeField is the text of a field with its addresses completed; the text
// itself where nothing is missing, where it cannot be read, or where a line
// would become too long.
func (h *hosts) completeField(text string, name int) string {
	start := name + strings.IndexByte(text[name:], ':') + 1
	l := addressList{text: text, at: start, hosts: h}
	if !l.read() || len(l.edits) == 0 {
		return text
	}
	var b strings.Builder
	from := 0
	for _, e := range l.edits {
		b.WriteString(text[from:e.at])
		b.WriteString(e.put)
		from = e.at + e.drop
	}
	b.WriteString(text[from:])
	done := b.String()
	if longestLine(done) > max(maxLine, longestLine(text)) {
		return text
	}
	return done
}

func longestLine(text string) int {
	longest := 0
	for line := range strings.Lines(text) {
		longest = max(longest, len(strings.TrimRight(line, "\r\n")))
	}
	return longest
}
