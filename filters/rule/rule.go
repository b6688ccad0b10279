// Package rule is the filter that answers by rule: for what a site wants
// refused, put off, dropped, held or let through without writing a program.
//
//	[filter.policy]
//	kind = "rule"
//
//	[[filter.policy.rule]]
//	when   = 'header("Subject") matches "(?i)^lottery" and external'
//	action = "reject"
//	reply  = "554 5.7.1 no lotteries here"
//
//	[[filter.policy.rule]]
//	when   = '"sales@example.org" in recipients and size > 20 * MB'
//	each   = true
//	action = "reject"
//	reply  = "552 5.3.4 sales takes 20 MB at most"
//
// The rules are tried in order, and the first that matches decides. A rule with
// each is asked about every recipient by itself, any other about the message
// as a whole. What no rule matches goes on.
package rule

import (
	"context"
	"errors"
	"fmt"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// Options is the filter's configuration.
type Options struct {
	Rules []Rule `toml:"rule" doc:"the rules, in the order in which they are tried"`
}

// Rule is one rule.
type Rule struct {
	When   string `toml:"when" doc:"the condition; it may name every fact about mail"`
	Action string `toml:"action" doc:"accept, reject, defer, discard or quarantine"`
	Reply  string `toml:"reply" doc:"what the peer hears of a reject or defer: code, enhanced code and text, like 554 5.7.1 not here"`
	Reason string `toml:"reason" doc:"what the log says; the number of the rule if it is left out"`
	Each   bool   `toml:"each" doc:"ask about every recipient by itself, so that some may be refused and others not"`
}

// maxRules bounds how many rules one filter may have.
const maxRules = 1000

type compiled struct {
	when    *rules.Rule
	each    bool
	verdict pipeline.Verdict
}

// filter has no state and is its own instance.
type filter struct{ rules []compiled }

// Kind is the filter's kind, "rule".
func Kind() pipeline.Kind { return pipeline.Kind{Name: "rule", New: newFilter} }

func newFilter(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
	var o Options
	if err := decode(&o); err != nil {
		return nil, err
	}
	if len(o.Rules) == 0 {
		return nil, errors.New("rule: there is no rule: add a table named rule with when and action")
	}
	if len(o.Rules) > maxRules {
		return nil, fmt.Errorf("rule: %d rules, at most %d", len(o.Rules), maxRules)
	}
	f := &filter{}
	schema := pipeline.Facts()
	var wrong []error
	for i, r := range o.Rules {
		c, err := r.compile(schema, i+1)
		if err != nil {
			wrong = append(wrong, pipeline.AtKey(fmt.Sprintf("rule[%d]", i), err))
		}
		f.rules = append(f.rules, c)
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	return f, nil
}

func (r Rule) compile(schema *rules.Schema, number int) (compiled, error) {
	if r.When == "" {
		return compiled{}, errors.New(`when is missing: write the condition, or "true" to match every message`)
	}
	when, err := rules.Compile(schema, r.When)
	if err != nil {
		return compiled{}, fmt.Errorf("when: %w", err)
	}
	action, ok := reply.ParseAction(r.Action)
	if !ok || action == pipeline.Continue {
		return compiled{}, fmt.Errorf("action %q: use accept, reject, defer, discard or quarantine", r.Action)
	}
	c := compiled{when: when, each: r.Each, verdict: pipeline.Verdict{Action: action, Reason: r.Reason}}
	if r.Reason == "" {
		c.verdict.Reason = fmt.Sprintf("rule %d", number)
	}
	if r.Reply == "" {
		return c, nil
	}
	if c.verdict.Reply, ok = reply.Parse(r.Reply); !ok {
		return compiled{}, fmt.Errorf("reply %q: write code, enhanced code and text, like %q", r.Reply, "554 5.7.1 not here")
	}
	if want := reply.For(action, reply.Reply{}).Class; c.verdict.Reply.Class != want {
		return compiled{}, fmt.Errorf("reply %q is %v, but action %s is %v", r.Reply, c.verdict.Reply.Class, r.Action, want)
	}
	return c, nil
}

// Traits: the site's own policy must not be walked around by making it fail.
func (f *filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing.
func (f *filter) Close() error { return nil }

// Message tries the rules.
func (f *filter) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	left := tx.Active
	var parts []pipeline.Verdict
	for i := range f.rules {
		c := &f.rules[i]
		matched, rest, err := c.match(ctx, tx, m, left)
		if err != nil {
			return pipeline.Verdict{}, fmt.Errorf("rule %d: %w", i+1, err)
		}
		if matched == nil {
			continue
		}
		v := c.verdict
		v.Only = matched
		parts = append(parts, v)
		if left = rest; len(left) == 0 {
			break
		}
	}
	return join(parts, len(left) == 0), nil
}

// match divides recipients into those whom the rule is about and the rest;
// matched is nil if it does not match.
func (c *compiled) match(ctx context.Context, tx *pipeline.Transaction, m message.Message, left []int) (matched, rest []int, err error) {
	own := *tx
	if !c.each || len(left) == 0 {
		own.Active = left
		ok, err := c.when.Match(pipeline.FactsAt(&own, m))
		if err != nil || !ok {
			return nil, left, err
		}
		return append([]int{}, left...), nil, nil
	}
	for _, n := range left {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		own.Active = []int{n}
		ok, err := c.when.Match(pipeline.FactsAt(&own, m))
		switch {
		case err != nil:
			return nil, nil, err
		case ok:
			matched = append(matched, n)
		default:
			rest = append(rest, n)
		}
	}
	return matched, rest, nil
}

// join makes one verdict of the parts. A single one for all recipients names
// none, so that it also holds for a message without any.
func join(parts []pipeline.Verdict, all bool) pipeline.Verdict {
	switch {
	case len(parts) == 0:
		return pipeline.Verdict{}
	case len(parts) == 1 && all:
		parts[0].Only = nil
		return parts[0]
	}
	v := parts[0]
	v.Others = parts[1:]
	return v
}
