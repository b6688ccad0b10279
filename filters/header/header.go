// Package header is the filter "header": it adds, removes and replaces header
// fields, by rule.
//
//	[[filter.header.rule]]
//	op    = "remove"                 # nobody outside writes our fields
//	name  = "X-Example-Checked"
//	when  = 'external'
//
//	[[filter.header.rule]]
//	op    = "add"
//	name  = "X-Example-Checked"
//	value = "from ${ip} (${helo}) as ${id}; ${date}"
//
//	[[filter.header.rule]]
//	op    = "replace"
//	name  = "Reply-To"
//	value = "Support <support@example.org>"
//	when  = 'indomain(sender, "example.org") and header("Reply-To") == ""'
//
// # Rules
//
// Every rule whose "when" matches is applied, in the order in which they stand;
// without "when" a rule always matches. All see the message as it came to this
// filter, not what the rules before them made of it: a filter that is to see
// that stands behind this one in the chain.
//
// The operations:
//
//   - add: a new field above all others, where mail systems put theirs
//   - append: a new field below all others
//   - remove: all fields of the name, or with nth the one
//   - replace: the value of the field of the name; of several the first stays,
//     or with nth the one is replaced; if there is none, it is added
//
// nth counts the fields of that name from the top, 1 is the first, -1 the last.
//
// # Values
//
// A value is a line of printable ASCII, and may go on in further lines that
// begin with a blank. Characters outside ASCII are written as encoded words
// (RFC 2047), since a head that has them is refused by servers without
// SMTPUTF8. Within a value stand
//
//   - ${id}: our name of the message, as in the log
//   - ${sender}: the envelope sender, empty for bounces
//   - ${ip}: the client's address, empty for a local one
//   - ${rdns}: the client's host name, as far as it is known
//   - ${helo}: the name that the client gave itself
//   - ${user}: who logged in, empty if nobody did
//   - ${chain}: the chain's name
//   - ${date}: the time, as in a Date field, in UTC
//
// and "$${" is a plain "${". What a client says of itself is cut to 255 bytes,
// and each of its characters that is not printable ASCII, or could be taken for
// punctuation of yours (a blank and any of ()<>;,"\), becomes a question mark.
//
// # What is refused
//
// A configuration is refused that names a field or has a value which cannot
// stand in a head, with every ${...} as long or as short as it can be. So is one
// that removes or replaces what keeps mail from going round in circles
// (Received, Delivered-To, Postern-Tap), unless the rule says force = true.
//
// # When it fails
//
// The filter runs for mail that an earlier filter has accepted too. If a rule
// cannot be answered, the message is put off, because a field that others rely
// upon would be missing; on_error = "continue" lets it pass without any of the
// changes.
package header

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// Name is the filter's name in the configuration.
const Name = "header"

// Options are the filter's part of the configuration. The zero value changes
// nothing.
type Options struct {
	Rules []Rule `toml:"rule" doc:"the changes, in their order"`
}

// Rule is one change.
type Rule struct {
	When string `toml:"when" doc:"rule that must match for the change to be made" unset:"always"`
	Op   string `toml:"op" doc:"what to do: add (above all fields), append (below), remove or replace" oneof:"add|append|remove|replace"`
	Name string `toml:"name" doc:"name of the header field"`
	// Value may hold placeholders; see the package's documentation.
	Value string `toml:"value" doc:"value of the field, with ${id}, ${sender}, ${ip}, ${rdns}, ${helo}, ${user}, ${chain}, ${date}"`
	// Nth is for remove and replace.
	Nth int `toml:"nth" doc:"which field of that name: 1 the first, -1 the last" unset:"all of them"`
	// Force allows what would disarm loop protection.
	Force bool `toml:"force" doc:"remove or replace even Received, Delivered-To and Postern-Tap"`
}

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, nil, New)
}

// Filter is the header filter. It is immutable, its own instance, and safe for
// concurrent use.
type Filter struct {
	rules []rule
	now   func() time.Time
}

// rule is a compiled Rule.
type rule struct {
	when  *rules.Rule
	edit  message.FieldEdit // Value is filled in from value
	value template
}

// maxRules bounds how many rules one filter may have.
const maxRules = 1000

// New makes a header filter. It uses the environment's Now. Its errors say by a
// method Key which key they are about, "rule[2].when".
func New(env pipeline.Env, o Options) (*Filter, error) {
	f := &Filter{now: env.Now}
	if f.now == nil {
		f.now = time.Now
	}
	schema := pipeline.Facts()
	if len(o.Rules) > maxRules {
		return nil, pipeline.AtKey(fmt.Sprintf("rule[%d]", maxRules), fmt.Errorf("more than %d rules", maxRules))
	}
	for i, r := range o.Rules {
		compiled, key, err := r.compile(schema)
		if err != nil {
			return nil, pipeline.AtKey(fmt.Sprintf("rule[%d].%s", i, key), err)
		}
		f.rules = append(f.rules, compiled)
	}
	return f, nil
}

// guarded are the fields without which mail can go round in circles for ever.
var guarded = [...]string{"Received", "Delivered-To", "Postern-Tap"}

// compile reads a rule. With an error comes the key that it is about.
func (r Rule) compile(schema *rules.Schema) (c rule, key string, err error) {
	op, ok := message.ParseEditOp(r.Op)
	if !ok {
		return rule{}, "op", fmt.Errorf(`%q is no operation; write "add", "append", "remove" or "replace"`, reply.Clean(r.Op, 80))
	}
	c = rule{when: rules.Always(), edit: message.FieldEdit{Op: op, Name: r.Name, Nth: r.Nth}}
	if err := r.checkName(op); err != nil {
		return rule{}, "name", err
	}
	if r.Nth != 0 && (op == message.Add || op == message.Append) {
		return rule{}, "nth", fmt.Errorf("op = %q takes no nth", r.Op)
	}
	if c.value, err = r.parseValue(op, c.edit); err != nil {
		return rule{}, "value", err
	}
	if r.When == "" {
		return c, "", nil
	}
	if c.when, err = rules.Compile(schema, r.When); err != nil {
		return rule{}, "when", err
	}
	if since := pipeline.Stage(c.when.Since()); since > pipeline.AtMessage {
		return rule{}, "when", fmt.Errorf("it asks for what is known only at the %v stage", since)
	}
	return c, "", nil
}

func (r Rule) checkName(op message.EditOp) error {
	if r.Name == "" {
		return errors.New("it is missing: write the header field's name")
	}
	if err := (message.FieldEdit{Op: message.Remove, Name: r.Name}).Check(); err != nil {
		return err
	}
	if r.Force || op == message.Add || op == message.Append {
		return nil
	}
	for _, name := range guarded {
		if strings.EqualFold(r.Name, name) {
			return fmt.Errorf("without %s fields mail could go round in circles for ever; write force = true to %s them", name, r.Op)
		}
	}
	return nil
}

// parseValue reads a value, and tries whether it can stand in a head with its
// placeholders as short and as long as they can be.
func (r Rule) parseValue(op message.EditOp, e message.FieldEdit) (template, error) {
	if op == message.Remove {
		if r.Value != "" {
			return nil, errors.New(`op = "remove" takes no value; write "replace" to change one`)
		}
		return nil, nil
	}
	if strings.TrimSpace(r.Value) == "" {
		return nil, fmt.Errorf("op = %q needs a value", r.Op)
	}
	for i := 0; i < len(r.Value); i++ {
		if r.Value[i] >= 0x80 {
			return nil, errors.New("it has a character outside ASCII; write it as an encoded word, =?utf-8?q?...?= (RFC 2047)")
		}
	}
	t, err := parseTemplate(r.Value)
	if err != nil {
		return nil, err
	}
	for _, length := range [...]extreme{shortest, longest} {
		e.Value = t.at(length)
		if err := e.Check(); err != nil {
			if t.fixed() {
				return nil, err
			}
			return nil, fmt.Errorf("%w (with every ${...} as %s as it can be)", err, length)
		}
	}
	return t, nil
}

// Traits of a filter on whose fields others rely.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Always: true, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing.
func (f *Filter) Close() error { return nil }

// Message asks for the changes. It never decides about the message.
func (f *Filter) Message(_ context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	var v pipeline.Verdict
	facts := pipeline.FactsAt(tx, m)
	for i := range f.rules {
		r := &f.rules[i]
		match, err := r.when.Match(facts)
		if err != nil {
			return pipeline.Verdict{}, fmt.Errorf("rule %d: %w", i+1, err)
		}
		if !match {
			continue
		}
		e := r.edit
		e.Value = r.value.fill(tx, f.now)
		v.Edits = append(v.Edits, pipeline.Field(e))
	}
	return v, nil
}
