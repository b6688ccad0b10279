package pipeline

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of what a log line says of a transaction.
const (
	maxLogged           = 200 // bytes of a text
	maxLoggedRecipients = 10
	maxLoggedFilters    = 40
)

// LogList is a list as a log line has it: "[a b]" in a text, where slog would
// ask fmt to find out what it is, and a list in JSON.
type LogList []string

// MarshalText is encoding.TextMarshaler.
func (l LogList) MarshalText() ([]byte, error) {
	return []byte("[" + strings.Join(l, " ") + "]"), nil
}

// MarshalJSON is json.Marshaler.
func (l LogList) MarshalJSON() ([]byte, error) { return json.Marshal([]string(l)) }

// LogList says of each filter that ran what it found, and its time.
func (t Trace) LogList() LogList {
	list := make(LogList, 0, len(t))
	for i := range t {
		e := &t[i]
		if e.Skipped != "" {
			continue
		}
		if len(list) == maxLoggedFilters {
			return append(list, "...")
		}
		said := e.Filter + "=" + e.Action
		if e.Shadow {
			said += " (shadow)"
		}
		if e.Err != "" {
			said += " (failed: " + e.Err + ")"
		} else if e.Reason != "" {
			said += " (" + e.Reason + ")"
		}
		list = append(list, LogText(said, maxLogged)+" "+LogSpan(e.Took))
	}
	return list
}

// LogRecipients are the first recipients, and how many there are beside.
func (t *Transaction) LogRecipients() string {
	all := t.Envelope.Recipients
	if len(all) == 1 {
		return LogText(all[0].Address, maxLogged)
	}
	var b strings.Builder
	for i, to := range all[:min(len(all), maxLoggedRecipients)] {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(LogText(to.Address, maxLogged))
	}
	if more := len(all) - maxLoggedRecipients; more > 0 {
		b.WriteString(" and " + strconv.Itoa(more) + " more")
	}
	return b.String()
}

// LogSpan is a time as a log line has it, always in milliseconds, so that the
// numbers of two lines compare: "0.310ms", "12.3ms", "4502ms".
func LogSpan(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	digits := 0
	switch {
	case ms < 1:
		digits = 3
	case ms < 100:
		digits = 1
	}
	return strconv.FormatFloat(ms, 'f', digits, 64) + "ms"
}

// LogText makes one printable line of at most limit bytes of a text, in UTF-8:
// whatever is not printable, line ends and marks of direction included, is '?'.
func LogText(s string, limit int) string {
	plain := len(s) <= limit
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] <= '~'
	}
	if plain {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		c, k := utf8.DecodeRuneInString(s)
		if c == utf8.RuneError && k == 1 || !unicode.IsPrint(c) {
			c = '?'
		}
		if b.Len()+utf8.RuneLen(c) > limit {
			break
		}
		b.WriteRune(c)
		s = s[k:]
	}
	return b.String()
}
