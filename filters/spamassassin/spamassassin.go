// Package spamassassin is the filter "spamassassin": it has spamd score a
// message, and marks, holds or refuses it by the score.
//
//	[filter.spamassassin]
//	address    = ["unix:/run/spamd.sock", "tcp:192.0.2.5:783"]
//	user       = "recipient"
//	quarantine = 10
//	refuse     = 15
//
// # What is asked
//
// spamd is sent the message as it stands, with the envelope's sender in a field
// Return-Path on top, which SpamAssassin's rules about SPF go by. The message
// itself stays as it is: of what spamd answers only the score and the names of
// the rules that hit are taken (its command SYMBOLS), so that SpamAssassin
// rewrites nothing.
//
// With user = "recipient" the rules and scores of the recipient are asked for,
// if the message has just one whom the filter is asked about; of several it asks
// as nobody in particular. With user = "none" it always does, and any other
// word is the name that spamd is given each time.
//
// # What becomes of the message
//
// Without "header" spam is what spamd calls so (required_score); with it, what
// has that score. The levels "subject", "quarantine" and "refuse" are scores, and
// not there by default. Spam gets X-Spam-Flag, X-Spam-Score and X-Spam-Status;
// fields of these names that were there are taken off. Where a filter "score"
// behind this one marks, write fields = "none" here.
//
// The score is the symbol SPAMASSASSIN; each rule that hit is a symbol without
// points, SA_BAYES_99, which rules may ask for and "score" may weigh.
//
// # Large messages
//
// A message of more than "max" bytes goes on unscored, which the log says, and
// has the symbol SPAMASSASSIN_SKIPPED. With large = "prefix" its first "max"
// bytes are scored.
//
// # Several spamds
//
// Messages go to the one that has the least to do, at most "connections" at a
// time to each. If one fails, the next is asked, within the time of the call.
// One that failed is left alone for a while, 5 s at most, and must answer a PING
// before it gets mail again.
//
// # When it fails
//
// Whatever is not exactly one well-formed answer to the whole message is a
// failure, and so is having no spamd. By default the message goes on then,
// without marks of ours, and with those that it came with; on_error = "defer"
// puts it off.
package spamassassin

import (
	"context"
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers"
	"github.com/postern-mta/postern/pipeline/spam"
)

// Name is the filter's name in the configuration.
const Name = "spamassassin"

// Options are the filter's part of the configuration. Zero values mean the
// defaults of Kind.
type Options struct {
	Address     []string `toml:"address" doc:"the spamds: unix:PATH or tcp:HOST:PORT" unset:"tcp:127.0.0.1:783"`
	Connections int      `toml:"connections" doc:"how many messages each spamd is given at a time; not above its max-children" min:"1"`
	Max         int64    `toml:"max" doc:"the largest message that is scored" unit:"bytes" min:"1"`
	// Large is skip if it is "".
	Large string `toml:"large" doc:"what is done with a larger one: skip lets it go on without a score, prefix has its beginning scored" oneof:"skip|prefix"`
	// User is none if it is "".
	User string `toml:"user" doc:"whose preferences spamd uses: none, recipient (if there is only one), or a name"`
	spam.Levels
	spam.Marks
}

// The defaults. 5 is spamd's max-children, 500 KB what spamc sends at most.
const (
	defaultAddress     = "tcp:127.0.0.1:783"
	defaultConnections = 5
	defaultMax         = 500 << 10
)

// The names of the filter's findings.
const (
	symbolScore   = "SPAMASSASSIN"
	symbolSkipped = "SPAMASSASSIN_SKIPPED"
	symbolPrefix  = "SA_"
)

func defaults() Options {
	return Options{Connections: defaultConnections, Max: defaultMax, Large: "skip", User: "none", Marks: spam.Marks{Fields: "spam"}}
}

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, defaults, New)
}

// Filter is the spamassassin filter. It is its own instance, remembers only which
// spamds failed, and is safe for concurrent use.
type Filter struct {
	o      Options
	spamds *servers.Set
}

// New makes a spamassassin filter. It uses the environment's Log and Now, and
// asks no spamd yet. Its errors say by a method Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	o.fill()
	f := &Filter{}
	var err error
	if f.spamds, err = servers.New(o.Address, servers.Options{Noun: "spamd", Connections: o.Connections, Ping: ping, Log: env.Log, Now: env.Now}); err != nil {
		return nil, err
	}
	for _, check := range [...]func() (string, error){o.check, o.Levels.Check, o.Marks.Check} {
		if key, err := check(); err != nil {
			return nil, pipeline.AtKey(key, err)
		}
	}
	f.o = o
	return f, nil
}

// fill puts defaults where there is nothing.
func (o *Options) fill() {
	d := defaults()
	if len(o.Address) == 0 {
		o.Address = []string{defaultAddress}
	}
	if o.Connections == 0 {
		o.Connections = d.Connections
	}
	if o.Max == 0 {
		o.Max = d.Max
	}
	if o.Large == "" {
		o.Large = d.Large
	}
	if o.User == "" {
		o.User = d.User
	}
}

func (o *Options) check() (key string, err error) {
	return spam.Asking{Connections: o.Connections, Most: servers.MaxConnections, Max: o.Max, Large: o.Large, User: o.User}.Check()
}

// Traits of a filter that advises.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorContinues, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing.
func (f *Filter) Close() error { return nil }

// Message has a spamd score the message.
func (f *Filter) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	size := m.Size()
	part := ""
	if size > f.o.Max {
		if f.o.Large == "skip" {
			why := fmt.Sprintf("larger than %d bytes", f.o.Max)
			v := pipeline.Verdict{Reason: "not scored: " + why, Symbols: []pipeline.Symbol{{Name: symbolSkipped, Detail: why}}}
			v.Edits = edits(f.o.Strip(m.Head()))
			return v, nil
		}
		part = fmt.Sprintf(", of its first %d bytes", f.o.Max)
	}
	q := request{user: f.user(tx), body: withReturnPath(m, tx.Envelope.Sender)}
	q.size = q.body.Size() - size + min(size, f.o.Max)
	var a answer
	err := f.spamds.Do(ctx, func(ctx context.Context, s *servers.Server) (err error) {
		a, err = q.ask(ctx, s)
		return err
	})
	if err != nil {
		return pipeline.Verdict{}, fmt.Errorf("not scored: %w", err)
	}
	return f.verdict(m, a, part), nil
}

// user is whose preferences are asked for, "" for nobody's.
func (f *Filter) user(tx *pipeline.Transaction) string {
	switch f.o.User {
	case "none":
		return ""
	case "recipient":
		if len(tx.Active) == 1 {
			if to := tx.Envelope.Recipients[tx.Active[0]].Address; spam.IsWord(to) {
				return to
			}
		}
		return ""
	}
	return f.o.User
}

// withReturnPath is the message with its sender on top, as a program that
// delivers writes it (RFC 5321 §4.4); without, if the sender cannot stand there.
func withReturnPath(m message.Message, sender string) message.Message {
	h, err := m.Head().Edit(message.FieldEdit{Op: message.Add, Name: "Return-Path", Value: "<" + sender + ">"})
	if err != nil {
		return m
	}
	return m.WithHead(h)
}

// verdict is what becomes of a message with that answer.
func (f *Filter) verdict(m message.Message, a answer, part string) pipeline.Verdict {
	level := a.required
	spammy := a.spam
	if f.o.Header != nil {
		level, spammy = *f.o.Header, spam.Reached(a.score, f.o.Header)
	}
	word := "below"
	if spammy {
		word = "spam from"
	}
	v := pipeline.Verdict{Reason: "score " + spam.Number(a.score) + ", " + word + " " + spam.Number(level) + part}
	if len(a.rules) > 0 {
		v.Reason += ": " + strings.Join(a.rules, " ")
	}
	v.Action, v.Reply = f.o.Action(a.score)
	v.Symbols = append(v.Symbols, pipeline.Symbol{Name: symbolScore, Score: a.score, Detail: "of " + spam.Number(a.required)})
	for _, r := range a.rules {
		v.Symbols = append(v.Symbols, pipeline.Symbol{Name: symbolPrefix + r})
	}
	v.Edits = edits(f.o.Edits(m.Head(), spam.Report{
		Spam: spammy, Tag: spam.Reached(a.score, f.o.Subject), Score: a.score, Required: level, Tests: a.rules, By: Name,
	}))
	return v
}

func edits(all []message.FieldEdit) (list []pipeline.Edit) {
	for _, e := range all {
		list = append(list, pipeline.Field(e))
	}
	return list
}
