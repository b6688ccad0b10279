package header

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// placeholder is a fact that a value may name.
type placeholder struct {
	name string
	// most bounds what stands for it, in bytes; the rest is cut.
	most int
	get  func(*pipeline.Transaction) string
}

// placeholders is the one table of them. It leaves out what another recipient
// must not learn, and what has no bound.
var placeholders = [...]placeholder{
	{"id", 100, func(tx *pipeline.Transaction) string { return tx.ID }},
	{"sender", 255, func(tx *pipeline.Transaction) string { return tx.Envelope.Sender }},
	{"ip", 45, func(tx *pipeline.Transaction) string { return peer(tx.Session.Peer.Addr()) }},
	{"rdns", 255, func(tx *pipeline.Transaction) string { return tx.Session.PeerName }},
	{"helo", 255, func(tx *pipeline.Transaction) string { return tx.Session.Helo }},
	{"user", 255, func(tx *pipeline.Transaction) string { return tx.Session.User }},
	{"chain", 100, func(tx *pipeline.Transaction) string { return tx.Chain }},
	{dateName, len(dateFormat), nil},
}

// dateName is the placeholder that is ours from end to end, and is not cleaned.
const dateName = "date"

func peer(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().WithZone("").String()
}

// dateFormat is RFC 5322 §3.3, in UTC.
const dateFormat = "Mon, 02 Jan 2006 15:04:05 +0000"

// template is a value: texts, and placeholders between them.
type template []part

type part struct {
	text string
	fact int // index of placeholders, -1 for a text
}

// parseTemplate reads a value. An unknown placeholder, or one that does not
// end, is an error.
func parseTemplate(s string) (template, error) {
	var t template
	text := ""
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			return t.with(text + s), nil
		}
		if i > 0 && s[i-1] == '$' {
			text += s[:i-1] + "${"
			s = s[i+2:]
			continue
		}
		text += s[:i]
		name, rest, ok := strings.Cut(s[i+2:], "}")
		if !ok {
			return nil, fmt.Errorf("${ without }; write $${ for a plain ${")
		}
		fact := slices.IndexFunc(placeholders[:], func(p placeholder) bool { return p.name == name })
		if fact < 0 {
			return nil, fmt.Errorf("unknown placeholder ${%s}%s", reply.Clean(name, 80), hint(name))
		}
		t = append(t.with(text), part{fact: fact})
		text, s = "", rest
	}
}

func (t template) with(text string) template {
	if text == "" {
		return t
	}
	return append(t, part{text: text, fact: -1})
}

func hint(name string) string {
	names := make([]string, len(placeholders))
	for i, p := range placeholders {
		names[i] = p.name
	}
	if s := rules.Suggest(name, names); s != "" {
		return ", did you mean ${" + s + "}?"
	}
	return "; there are ${" + strings.Join(names, "}, ${") + "}"
}

// fixed reports whether the value is the same for every message.
func (t template) fixed() bool { return len(t) == 0 || len(t) == 1 && t[0].fact < 0 }

// fill makes the value for a message.
func (t template) fill(tx *pipeline.Transaction, now func() time.Time) string {
	if len(t) == 1 && t.fixed() {
		return t[0].text
	}
	var b strings.Builder
	for _, p := range t {
		switch {
		case p.fact < 0:
			b.WriteString(p.text)
		case placeholders[p.fact].name == dateName:
			b.WriteString(now().UTC().Format(dateFormat))
		default:
			b.WriteString(clean(placeholders[p.fact].get(tx), placeholders[p.fact].most))
		}
	}
	return b.String()
}

// clean makes a word of what a client says of itself, which cannot be taken for
// the administrator's own punctuation.
func clean(s string, most int) string {
	s = s[:min(len(s), most)]
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune(`()<>;,"\`, r) {
			return '?'
		}
		return r
	}, s)
}

// extreme is a length of facts with which a value is tried beforehand.
type extreme int

const (
	shortest extreme = iota
	longest
)

func (e extreme) String() string {
	return [...]string{"short", "long"}[e]
}

// at is the value with every placeholder as short or as long as it can be.
func (t template) at(e extreme) string {
	var b strings.Builder
	for _, p := range t {
		switch {
		case p.fact < 0:
			b.WriteString(p.text)
		case placeholders[p.fact].name == dateName:
			b.WriteString(dateFormat)
		case e == longest:
			b.WriteString(strings.Repeat("x", placeholders[p.fact].most))
		}
	}
	return b.String()
}
