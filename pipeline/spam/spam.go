// Package spam is what the filters that score mail have in common: the levels
// from which on something becomes of a message, and the header fields that tell
// its score.
//
// It promises that a message which is marked bears no other marks of the same
// names, whoever wrote them; and that whatever a scorer is told by others goes
// into a header bounded, folded, and as printable ASCII.
package spam

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// MaxScore bounds scores, weights and levels, above and below zero.
const MaxScore = 1_000_000

// rounding is what a sum may lack because of how numbers are kept: 0.7 + 0.1 +
// 0.2 is to be 1.
const rounding = 1e-9

// Levels are a filter's part of the configuration that says what becomes of a
// message by its score. It is embedded in the filter's own.
type Levels struct {
	Header     *float64 `toml:"header" doc:"the score from which a message is called spam in its header"`
	Subject    *float64 `toml:"subject" doc:"the score from which its subject is marked too" unset:"never"`
	Quarantine *float64 `toml:"quarantine" doc:"the score from which it is held for the postmaster" unset:"never"`
	Refuse     *float64 `toml:"refuse" doc:"the score from which it is refused" unset:"never"`
	Text       string   `toml:"text" doc:"what the sender of a refused message hears" unset:"this message looks like spam"`
}

const (
	defaultText = "this message looks like spam"
	maxText     = 200
)

// Check looks at levels. With an error comes the key that it is about.
func (l *Levels) Check() (key string, err error) {
	for _, at := range l.all() {
		if at.level != nil && !Sound(*at.level) {
			return at.key, fmt.Errorf("%v: write a number from %d to %d", *at.level, -MaxScore, MaxScore)
		}
	}
	if l.Quarantine != nil && l.Refuse != nil && *l.Quarantine >= *l.Refuse {
		return "quarantine", fmt.Errorf("nothing would be held: refuse = %v is not above it", *l.Refuse)
	}
	if len(l.Text) > maxText || reply.Clean(l.Text, maxText) != l.Text {
		return "text", fmt.Errorf("write one line of printable ASCII, at most %d bytes", maxText)
	}
	return "", nil
}

func (l *Levels) all() [4]struct {
	key   string
	level *float64
} {
	return [...]struct {
		key   string
		level *float64
	}{{"header", l.Header}, {"subject", l.Subject}, {"quarantine", l.Quarantine}, {"refuse", l.Refuse}}
}

// Sound reports whether a number can be a score.
func Sound(score float64) bool { return math.Abs(score) <= MaxScore }

// Reached reports whether a score has come to a level; nil is out of reach.
func Reached(score float64, level *float64) bool { return level != nil && score >= *level-rounding }

// Action is what becomes of a message with that score, and what its sender hears.
func (l *Levels) Action(score float64) (reply.Action, reply.Reply) {
	switch {
	case Reached(score, l.Refuse):
		return reply.Reject, l.Refusal()
	case Reached(score, l.Quarantine):
		return reply.Quarantine, reply.Reply{}
	}
	return reply.Continue, reply.Reply{}
}

// Refusal is what the sender of a refused message hears.
func (l *Levels) Refusal() reply.Reply {
	text := l.Text
	if text == "" {
		text = defaultText
	}
	return reply.Make(554, reply.Refused.Enhanced, text)
}

// Number is a score as logs and fields have it: "5", "-0.25".
func Number(score float64) string {
	s := strconv.FormatFloat(score, 'f', 3, 64)
	s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	if s == "-0" {
		return "0"
	}
	return s
}

// maxName bounds the name of a test in bytes.
const maxName = 64

// Name makes the name of a test, or a part of one, of what a scorer was told:
// letters, digits and _-. only, at most 64 of them.
func Name(s string) string {
	s = s[:min(len(s), maxName)]
	return strings.Map(func(c rune) rune {
		if c < 0x80 && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_-.", c)) {
			return c
		}
		return '_'
	}, s)
}

// Marks are a filter's part of the configuration about the fields that tell a
// score. It is embedded in the filter's own.
type Marks struct {
	// Fields is spam if it is "".
	Fields string `toml:"fields" doc:"which messages get header fields that tell their score: spam, all, or none; those that others wrote are taken off with spam and all" oneof:"spam|all|none"`
	Field  string `toml:"field" doc:"what the names of these fields begin with" unset:"X-Spam"`
	Tag    string `toml:"tag" doc:"what is put before the subject" unset:"[SPAM]"`
}

const (
	defaultField = "X-Spam"
	defaultTag   = "[SPAM]"
	maxTag       = 60
)

// Check looks at marks and fills defaults in. With an error comes the key that
// it is about.
func (m *Marks) Check() (key string, err error) {
	for _, s := range [...]struct {
		at    *string
		value string
	}{{&m.Fields, "spam"}, {&m.Field, defaultField}, {&m.Tag, defaultTag}} {
		if *s.at == "" {
			*s.at = s.value
		}
	}
	switch {
	case m.Fields != "spam" && m.Fields != "all" && m.Fields != "none":
		return "fields", fmt.Errorf("%q: write spam, all or none", reply.Clean(m.Fields, 80))
	case len(m.Tag) > maxTag || reply.Clean(m.Tag, maxTag) != m.Tag:
		return "tag", fmt.Errorf("write printable ASCII, at most %d bytes", maxTag)
	case len(m.Field) > 40 || Name(m.Field) != m.Field:
		return "field", errors.New("write the beginning of the name of a header field, such as X-Spam")
	}
	return "", nil
}

// Report is what the fields are to tell.
type Report struct {
	// Spam is whether the message is called so, Tag whether its subject is marked.
	Spam, Tag bool
	// Score is its score, Required the one from which it is spam; NaN if there is
	// no such number.
	Score, Required float64
	// Tests are the names of what was found, with or without points, clean or not.
	Tests []string
	// By is who scored.
	By string
}

// The ends of the fields' names; those that others wrote are taken off.
const (
	flag   = "-Flag"
	score  = "-Score"
	status = "-Status"
)

// others are further ends of names that programs go by.
var others = [...]string{flag, score, status, "-Level", "-Report", "-Bar", "-Checker-Version"}

// Strip takes off what the head has of the fields already.
func (m *Marks) Strip(h message.Head) (edits []message.FieldEdit) {
	if m.Fields == "none" {
		return nil
	}
	for _, end := range others {
		for i := range h.Len() {
			if h.Field(i).Is(m.Field + end) {
				edits = append(edits, message.FieldEdit{Op: message.Remove, Name: m.Field + end})
				break
			}
		}
	}
	return edits
}

// Edits are the changes of a head that tell a report.
func (m *Marks) Edits(h message.Head, r Report) []message.FieldEdit {
	edits := m.Strip(h)
	if m.Fields == "all" || m.Fields == "spam" && r.Spam {
		// Each goes on top of the one before.
		edits = append(edits, message.FieldEdit{Op: message.Add, Name: m.Field + status, Value: r.status()})
		edits = append(edits, message.FieldEdit{Op: message.Add, Name: m.Field + score, Value: Number(r.Score)})
		if r.Spam {
			edits = append(edits, message.FieldEdit{Op: message.Add, Name: m.Field + flag, Value: "YES"})
		}
	}
	if r.Tag {
		if e, ok := Subject(h, m.Tag); ok {
			edits = append(edits, e)
		}
	}
	return edits
}

// The bounds of a status: its tests, and a line in bytes.
const (
	maxTests = 100
	maxLine  = 76
)

// status is the value of the field that tells all: "Yes, score=7.5 required=5
// tests=A,B by=rspamd", folded.
func (r Report) status() string {
	word := "No"
	if r.Spam {
		word = "Yes"
	}
	var b strings.Builder
	b.WriteString(word + ", score=" + Number(r.Score))
	if !math.IsNaN(r.Required) {
		b.WriteString(" required=" + Number(r.Required))
	}
	b.WriteString(" by=" + Name(r.By) + "\n\ttests=")
	line := len("\ttests=")
	for i, t := range r.Tests {
		if i == maxTests {
			b.WriteString(",and_" + strconv.Itoa(len(r.Tests)-i) + "_more")
			break
		}
		if i > 0 {
			b.WriteByte(',')
			line++
		}
		name, points, scored := strings.Cut(t, "=")
		name = Name(name)
		if scored {
			name += "=" + Name(points)
		}
		if line+len(name) > maxLine && line > 1 {
			b.WriteString("\n\t")
			line = 1
		}
		b.WriteString(name)
		line += len(name)
	}
	if len(r.Tests) == 0 {
		b.WriteString("none")
	}
	return b.String()
}

// Subject is the change of a head that puts a tag before the subject; ok is
// false if it stands there already, or the subject is one that no head may have.
func Subject(h message.Head, tag string) (e message.FieldEdit, ok bool) {
	for i := range h.Len() {
		f := h.Field(i)
		if !f.Is("Subject") {
			continue
		}
		if f.Value() == tag || strings.HasPrefix(f.Value(), tag+" ") {
			return e, false
		}
		_, raw, _ := strings.Cut(f.Text(), ":")
		for _, value := range [...]string{strings.TrimRight(strings.TrimLeft(raw, " \t"), " \t\r\n"), f.Value()} {
			e = message.FieldEdit{Op: message.Replace, Name: "Subject", Nth: 1, Value: strings.TrimSpace(tag + " " + value)}
			if e.Check() == nil {
				return e, true
			}
		}
		return e, false
	}
	return message.FieldEdit{Op: message.Add, Name: "Subject", Value: tag}, true
}
