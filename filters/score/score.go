// Package score is the filter "score": it adds up what the filters before it
// have found, and what rules of its own give, and marks, holds or refuses the
// message by the sum.
//
//	[filter.score]
//	header     = 5                 # from here on it is called spam in its header
//	quarantine = 10
//	refuse     = 15
//
//	[filter.score.weight]          # in place of a symbol's own score
//	DNSBL_BL_EXAMPLE_NET = 1.5
//	SA_BAYES_99          = 2
//
//	[filter.score.factor]          # a symbol's own score, times this
//	RSPAMD = 0.5
//
//	[[filter.score.rule]]
//	when   = '"dkim=fail" in results'
//	score  = 2.5
//	symbol = "DKIM_FAIL"
//
//	[[filter.score.rule]]
//	when   = 'header("List-Id") != "" and "dkim=pass" in results'
//	score  = -1
//	symbol = "SIGNED_LIST"
//
// Put it behind the filters whose findings it is to weigh.
//
// # The sum
//
// Each symbol that a filter has found counts with its own score, times its
// "factor" if it has one, or with its "weight" in place of both. A symbol that
// was found several times, as where earlier filters made two messages of one,
// counts once, with the highest of its scores. Each rule that matches gives its
// score, under a symbol of its own that filters and rules behind this one see
// too; rules see the symbols of earlier filters, and not those of each other.
// What a symbol gives is bounded to a million points, up or down.
//
// Symbols with no points add nothing, but rules may ask for them:
// ("CLAMAV_UNSCANNABLE" in symbols). What SPF, DKIM and kin have come to is in
// "results", one text for each: "dkim=fail", "spf=softfail".
//
// # The levels
//
// A sum that has reached "refuse" refuses the message, one that has reached
// "quarantine" holds it. From "header" on the message is called spam in its
// header, from "subject" on "tag" is put before its subject.
//
// # The fields
//
// X-Spam-Flag (YES, for spam), X-Spam-Score (the sum), and X-Spam-Status, which
// lists what has given which points:
//
//	X-Spam-Status: Yes, score=7.5 required=5 by=score
//	        tests=SPAMASSASSIN=5,DKIM_FAIL=2.5
//
// Spam gets them (fields = "spam"), or every message ("all"), or none. Fields of
// these names and their kin that stand in the message already are taken off, so
// that nobody vouches for himself; with "none" they stay.
//
// # When it fails
//
// The message goes on without marks, and with those that it came with. It fails
// where a rule cannot be answered.
package score

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/spam"
	"github.com/postern-mta/postern/rules"
)

// Name is the filter's name in the configuration.
const Name = "score"

// Options are the filter's part of the configuration.
type Options struct {
	spam.Levels
	spam.Marks
	Weights map[string]float64 `toml:"weight" doc:"points of a symbol, whose name is the key, in place of its own score"`
	Factors map[string]float64 `toml:"factor" doc:"what the own score of a symbol, whose name is the key, is multiplied by"`
	Rules   []Rule             `toml:"rule" doc:"rules that give points"`
}

// Rule is a rule that gives points.
type Rule struct {
	When   string  `toml:"when" doc:"the condition; it may name every fact about mail"`
	Score  float64 `toml:"score" doc:"the points; negative ones speak for the message"`
	Symbol string  `toml:"symbol" doc:"what it is called in logs, in the header and by rules behind it" unset:"RULE_1, by its place"`
}

// The default level, and the bounds of a configuration.
const (
	defaultHeader = 5
	maxRules      = 1000
	maxWeights    = 10_000
)

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.Kind{Name: Name, New: func(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
		header := float64(defaultHeader)
		o := Options{Levels: spam.Levels{Header: &header}, Marks: spam.Marks{Fields: "spam"}}
		if err := decode(&o); err != nil {
			return nil, err
		}
		return New(o)
	}}
}

// Filter is the score filter. It is immutable, its own instance, and safe for
// concurrent use.
type Filter struct {
	o     Options
	rules []rule
}

// rule is a compiled Rule.
type rule struct {
	when   *rules.Rule
	symbol pipeline.Symbol
}

// New makes a score filter. Its errors say by a method Key which key they are
// about, "rule[2].when".
func New(o Options) (*Filter, error) {
	if key, err := o.Levels.Check(); err != nil {
		return nil, pipeline.AtKey(key, err)
	}
	if key, err := o.Marks.Check(); err != nil {
		return nil, pipeline.AtKey(key, err)
	}
	for key, table := range map[string]map[string]float64{"weight": o.Weights, "factor": o.Factors} {
		if len(table) > maxWeights {
			return nil, pipeline.AtKey(key, fmt.Errorf("more than %d symbols", maxWeights))
		}
		for name, points := range table {
			if !spam.Sound(points) {
				return nil, pipeline.AtKey(key+"."+name, fmt.Errorf("%v: write a number from %d to %d", points, -spam.MaxScore, spam.MaxScore))
			}
		}
	}
	f := &Filter{o: o}
	if len(o.Rules) > maxRules {
		return nil, pipeline.AtKey(fmt.Sprintf("rule[%d]", maxRules), fmt.Errorf("more than %d rules", maxRules))
	}
	schema := pipeline.Facts()
	for i, r := range o.Rules {
		compiled, key, err := r.compile(schema, i)
		if err != nil {
			return nil, pipeline.AtKey(fmt.Sprintf("rule[%d].%s", i, key), err)
		}
		f.rules = append(f.rules, compiled)
	}
	return f, nil
}

// compile reads a rule. With an error comes the key that it is about.
func (r Rule) compile(schema *rules.Schema, i int) (c rule, key string, err error) {
	if r.When == "" {
		return c, "when", errors.New(`it is missing: write the condition, or "true" for every message`)
	}
	if c.when, err = rules.Compile(schema, r.When); err != nil {
		return c, "when", err
	}
	if since := pipeline.Stage(c.when.Since()); since > pipeline.AtMessage {
		return c, "when", fmt.Errorf("it asks for what is known only at the %v stage", since)
	}
	if !spam.Sound(r.Score) {
		return c, "score", fmt.Errorf("%v: write a number from %d to %d", r.Score, -spam.MaxScore, spam.MaxScore)
	}
	if r.Symbol == "" {
		r.Symbol = fmt.Sprintf("RULE_%d", i+1)
	}
	if spam.Name(r.Symbol) != r.Symbol {
		return c, "symbol", errors.New("write letters, digits and _-. only, at most 64 of them")
	}
	c.symbol = pipeline.Symbol{Name: r.Symbol, Score: r.Score}
	return c, "", nil
}

// Traits of a filter that advises.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorContinues, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing.
func (f *Filter) Close() error { return nil }

// Message adds up, and answers by the sum.
func (f *Filter) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	var v pipeline.Verdict
	facts := pipeline.FactsAt(tx, m)
	for i := range f.rules {
		if err := ctx.Err(); err != nil {
			return pipeline.Verdict{}, err
		}
		r := &f.rules[i]
		match, err := r.when.Match(facts)
		if err != nil {
			return pipeline.Verdict{}, fmt.Errorf("rule %d: %w", i+1, err)
		}
		if match {
			v.Symbols = append(v.Symbols, r.symbol)
		}
	}
	sum := f.add(slices.Concat(tx.Symbols, v.Symbols))
	v.Action, v.Reply = f.o.Action(sum.total)
	spammy := spam.Reached(sum.total, f.o.Header)
	v.Reason = sum.reason(f.o.Header, spammy)
	report := spam.Report{
		Spam: spammy, Tag: spam.Reached(sum.total, f.o.Subject),
		Score: sum.total, Required: *f.o.Header, Tests: sum.tests, By: Name,
	}
	for _, e := range f.o.Edits(m.Head(), report) {
		v.Edits = append(v.Edits, pipeline.Field(e))
	}
	return v, nil
}

// sum is a sum, and what it is made of: "NAME=points", the most points first.
type sum struct {
	total float64
	tests []string
}

// entry is what a symbol gives.
type entry struct {
	name   string
	points float64
}

func (f *Filter) add(symbols []pipeline.Symbol) (s sum) {
	at := make(map[string]int, len(symbols))
	var all []entry
	for _, symbol := range symbols {
		e := entry{symbol.Name, f.points(symbol)}
		i, seen := at[e.name]
		if !seen {
			at[e.name] = len(all)
			all = append(all, e)
		} else {
			all[i].points = max(all[i].points, e.points)
		}
	}
	for _, e := range all {
		s.total += e.points
	}
	slices.SortStableFunc(all, func(a, b entry) int {
		switch {
		case a.points > b.points:
			return -1
		case a.points < b.points:
			return 1
		}
		return 0
	})
	for _, e := range all {
		if e.points != 0 {
			s.tests = append(s.tests, spam.Name(e.name)+"="+spam.Number(e.points))
		}
	}
	return s
}

// points is what a symbol gives.
func (f *Filter) points(s pipeline.Symbol) float64 {
	points, weighed := f.o.Weights[s.Name]
	if !weighed {
		points = s.Score
		if factor, ok := f.o.Factors[s.Name]; ok {
			points *= factor
		}
	}
	return min(max(points, -spam.MaxScore), spam.MaxScore)
}

// reason says which symbols made which sum.
func (s *sum) reason(level *float64, spammy bool) string {
	word := "below"
	if spammy {
		word = "spam from"
	}
	reason := "score " + spam.Number(s.total) + ", " + word + " " + spam.Number(*level)
	if len(s.tests) > 0 {
		reason += ": " + strings.Join(s.tests, " ")
	}
	return reason
}
