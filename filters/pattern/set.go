package pattern

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

const (
	// maxPatterns bounds the patterns of a filter, maxExpr one in bytes, maxFile
	// the file, and maxText what may be looked at of a text.
	maxPatterns = 1000
	maxExpr     = 4096
	maxFile     = 4 << 20
	maxText     = 16 << 20
	maxName     = 40
	maxScore    = 10_000

	nameBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
)

// The places that patterns look at.
const (
	inHeader    = "header"
	inAnyHeader = "any-header"
	inText      = "text"
	inNames     = "names"
)

// pattern is a pattern made ready.
type pattern struct {
	name   string
	action pipeline.Action
	score  float64
	wanted
}

// wanted is what the worker is told of a pattern.
type wanted struct {
	In string
	// Field is the name that In "header" is about.
	Field string `json:",omitempty"`
	Expr  string
}

// symbol is the name of the finding.
func (p *pattern) symbol() string {
	return "PATTERN_" + strings.ToUpper(strings.ReplaceAll(p.name, "-", "_"))
}

// compile makes a pattern ready; keys of errors begin with a dot. names are those
// that are taken.
func (m Match) compile(names map[string]bool) (p pattern, wrong []pipeline.KeyError) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	p.name, p.score = m.Name, m.Score
	switch {
	case m.Name == "" || len(m.Name) > maxName || strings.Trim(m.Name, nameBytes) != "":
		bad(".name", "%q: write letters, digits, - and _, at most %d", reply.Clean(m.Name, 80), maxName)
	case names[strings.ToLower(m.Name)]:
		bad(".name", "there are two patterns %s", m.Name)
	}
	names[strings.ToLower(m.Name)] = true
	var err error
	if p.wanted, err = place(m.Where); err != nil {
		bad(".where", "%w", err)
	}
	if p.Expr = m.Expr; !m.Case {
		p.Expr = "(?i:" + m.Expr + ")"
	}
	switch {
	case m.Expr == "":
		bad(".expr", "it is missing: write a regular expression")
	case len(m.Expr) > maxExpr:
		bad(".expr", "%d bytes, at most %d", len(m.Expr), maxExpr)
	default:
		if _, err := regexp.Compile(m.Expr); err != nil {
			bad(".expr", "%s", reply.Clean(err.Error(), 300))
		} else if re, err := regexp.Compile(p.Expr); err != nil {
			bad(".expr", "%s", reply.Clean(err.Error(), 300))
		} else if re.MatchString("") {
			bad(".expr", "it matches every text, even an empty one")
		}
	}
	if m.Action != "" && m.Action != "symbol" {
		var ok bool
		if p.action, ok = reply.ParseAction(m.Action); !ok || p.action == pipeline.Continue || p.action == pipeline.Accept {
			bad(".action", "%q: write symbol, reject, defer, quarantine or discard", reply.Clean(m.Action, 80))
		}
	}
	if math.IsNaN(m.Score) || math.Abs(m.Score) > maxScore {
		bad(".score", "%v: write a number from %d to %d", m.Score, -maxScore, maxScore)
	}
	return p, wrong
}

// place reads where a pattern looks.
func place(where string) (w wanted, err error) {
	switch in, field, has := strings.Cut(where, ":"); {
	case has && in == inHeader && field != "" && !strings.ContainsAny(field, " \t:") && reply.Clean(field, 200) == field:
		return wanted{In: inHeader, Field: field}, nil
	case !has && (in == inAnyHeader || in == inText || in == inNames):
		return wanted{In: in}, nil
	}
	return w, fmt.Errorf("%q: write header:NAME, any-header, text or names", reply.Clean(where, 80))
}

// parseLines reads a file's patterns, whose names are none of the filter's own.
func parseLines(lines []rules.Line, own []pattern) (all []pattern, err error) {
	names := map[string]bool{}
	for _, p := range own {
		names[strings.ToLower(p.name)] = true
	}
	for _, line := range lines {
		m, err := parseLine(line.Text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line.No, err)
		}
		p, wrong := m.compile(names)
		if len(wrong) > 0 {
			return nil, fmt.Errorf("line %d: %s: %w", line.No, strings.TrimPrefix(wrong[0].Key(), "."), wrong[0].Unwrap())
		}
		if all = append(all, p); len(all)+len(own) > maxPatterns {
			return nil, fmt.Errorf("line %d: more than %d patterns", line.No, maxPatterns)
		}
	}
	return all, nil
}

// parseLine reads one line: name, action or score, where, expression.
func parseLine(s string) (m Match, err error) {
	words := [3]string{}
	for i := range words {
		s = strings.TrimLeft(s, " \t")
		n := strings.IndexAny(s, " \t")
		if n < 0 {
			return m, errors.New("write a name, an action or a score, where to look, and the expression")
		}
		words[i], s = s[:n], s[n:]
	}
	m = Match{Name: words[0], Action: words[1], Where: words[2], Expr: strings.TrimLeft(s, " \t")}
	if n, err := strconv.ParseFloat(m.Action, 64); err == nil {
		m.Action, m.Score = "", n
	}
	return m, nil
}

// set is the patterns in force, and what a worker is told of them.
type set struct {
	patterns []pattern
	request  []byte
}

// request is what the worker is told besides the message.
type request struct {
	Patterns []wanted
	// Max is how much is looked at of a text, in bytes.
	Max int64
}

func newSet(patterns []pattern, most int64) (*set, error) {
	r := request{Max: most}
	for _, p := range patterns {
		r.Patterns = append(r.Patterns, p.wanted)
	}
	b, err := json.Marshal(r)
	return &set{patterns, b}, err
}
