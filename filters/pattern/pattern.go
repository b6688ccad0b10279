// Package pattern is the filter "pattern": regular expressions on header fields,
// on the names of attachments, and on text as people read it.
//
//	[filter.pattern]
//	file = "/etc/postern/patterns"
//
//	[[filter.pattern.match]]
//	name   = "lottery"
//	where  = "header:Subject"
//	expr   = '\blottery\b.*\bwinner\b'
//	action = "reject"
//
//	[[filter.pattern.match]]
//	name   = "pills"
//	where  = "text"
//	expr   = 'cheap (pills|meds)'
//	score  = 2.5
//
// # Where
//
//	header:NAME   the fields of that name, encoded words decoded (RFC 2047)
//	any-header    every field of the head, as "Name: value"
//	text          the texts of the message: plain, HTML, and what stands around parts
//	names         the names that attachments have, or that a client may read for one
//
// Expressions are in the syntax of RE2 (golang.org/s/re2syntax), in which no
// message makes a search take long. The case of letters does not count, unless
// case = true. ^ and $ are the ends of the field, name or text.
//
// A field is looked at as it stands and as decoded. A text is looked at in every
// plausible reading of the message (see postern mime), under each decoding, and
// in the charset that it names, or what clients take for it; runs of white space
// are one blank, so that an expression reaches over the ends of lines, and
// characters that cannot be seen (soft hyphens, zero-width spaces) are left out.
// Of HTML the tags, scripts and comments are taken out and entities decoded, and
// it is looked at as it stands as well. Texts of attached messages are texts, too.
// Of each text the first 256 KB are looked at ("max"), of a message sixteen times
// as much; what lies behind is not.
//
// # What is done
//
// The first pattern that is found and whose action is not "symbol" decides, in
// the order in which they stand, those of the file last:
//
//	reject       554 5.7.1; the peer hears "text", not which pattern it was
//	defer        451 4.7.1
//	quarantine   the message is held
//	discard      it is accepted and dropped
//	symbol       nothing, but for the symbol
//
// Each pattern that is found gives a symbol, PATTERN_ and its name, with its
// score, for a filter behind that adds scores up. With header = "X-Pattern" the
// message gets a field with the names of what was found, in place of one that
// came with it.
//
// # The file
//
// It has a pattern a line: name, action, where, expression, with blanks between
// them, as in
//
//	lottery reject  header:Subject  \blottery\b.*\bwinner\b
//	pills   2.5     text            cheap (pills|meds)
//
// where a number is a score with the action symbol; lines that begin with # are
// comments. It is read again when it changes; one that is broken or gone then
// leaves what was read before in force.
//
// # Errors
//
// Messages are read in worker processes. What a worker does not manage, in its
// time or at all, is an error, and by default the message is put off (on_error =
// "defer"); a message that has killed two of them is held.
package pattern

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/worker"
	"github.com/postern-mta/postern/rules"
)

// Name is the filter's name in the configuration, and of its job in a worker.
const Name = "pattern"

// Options are the filter's part of the configuration.
type Options struct {
	Matches []Match `toml:"match" doc:"the patterns, in order"`
	File    string  `toml:"file" doc:"a file of further patterns, a line each: name, action or score, where, expression"`
	Max     int64   `toml:"max" doc:"how much of each text is looked at" unit:"bytes" min:"1"`
	Header  string  `toml:"header" doc:"the name of a field that tells what was found" unset:"none"`
	Text    string  `toml:"text" doc:"what the peer hears of a reject or defer" unset:"the words of the action"`
}

// Match is one pattern.
type Match struct {
	Name  string `toml:"name" doc:"what logs and symbols call it: letters, digits, - and _"`
	Where string `toml:"where" doc:"what is looked at: header:NAME, any-header, text or names"`
	Expr  string `toml:"expr" doc:"the regular expression, in the syntax of RE2"`
	Case  bool   `toml:"case" doc:"the case of letters counts"`
	// Action is symbol if it is "".
	Action string  `toml:"action" doc:"what becomes of the message" oneof:"symbol|reject|defer|quarantine|discard" unset:"symbol"`
	Score  float64 `toml:"score" doc:"the score of its symbol"`
}

// defaultMax is how many bytes of a text are looked at.
const defaultMax = 256 << 10

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{Max: defaultMax}
	}, New)
}

// Filter is the pattern filter. It is safe for concurrent use, and its own
// instance.
type Filter struct {
	own     *set
	file    *rules.LineFile[*set]
	header  string
	text    string
	workers pipeline.Workers
}

// New makes a pattern filter. It uses the environment's Workers, Log and Now. The
// errors say by a method Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	f := &Filter{header: o.Header, text: o.Text, workers: env.Workers}
	var wrong []error
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	if o.Max == 0 {
		o.Max = defaultMax
	}
	if o.Max < 0 || o.Max > maxText {
		bad("max", "%d: write 1 to %d bytes", o.Max, maxText)
	}
	if o.Text != reply.Clean(o.Text, reply.MaxText) {
		bad("text", "it must be one line of at most %d ASCII characters", reply.MaxText)
	}
	if o.Header != "" {
		if err := (message.FieldEdit{Op: message.Add, Name: o.Header, Value: "x"}).Check(); err != nil {
			bad("header", "%w", err)
		} else if isForeign(o.Header) {
			bad("header", "%q has another use, and what stands in it would be lost: write a name of your own, like X-Pattern", o.Header)
		}
	}
	if len(o.Matches) > maxPatterns {
		bad(fmt.Sprintf("match[%d]", maxPatterns), "more than %d patterns", maxPatterns)
		return nil, errors.Join(wrong...)
	}
	var own []pattern
	names := map[string]bool{}
	for i, m := range o.Matches {
		p, errs := m.compile(names)
		for _, e := range errs {
			wrong = append(wrong, e.Below(fmt.Sprintf("match[%d]", i)))
		}
		own = append(own, p)
	}
	if len(own) == 0 && o.File == "" {
		wrong = append(wrong, errors.New("there is no pattern: add a table named match with name, where and expr, or a file"))
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	var err error
	if f.own, err = newSet(own, o.Max); err != nil {
		return nil, err
	}
	if o.File != "" {
		if f.file, err = openFile(env, o.File, own, o.Max); err != nil {
			return nil, pipeline.AtKey("file", err)
		}
	}
	return f, nil
}

// isForeign reports whether a field is one that people, programs or the ways of
// mail need (RFC 5322 §3.6, RFC 2045 §3): the filter takes the fields of the name
// off that came with a message.
func isForeign(name string) bool {
	name = strings.ToLower(name)
	for _, begin := range [...]string{"content-", "resent-", "list-", "arc-", "postern-"} {
		if strings.HasPrefix(name, begin) {
			return true
		}
	}
	return slices.Contains([]string{
		"from", "sender", "reply-to", "to", "cc", "bcc", "subject", "date", "message-id", "in-reply-to", "references", "comments", "keywords",
		"received", "return-path", "delivered-to", "mime-version", "dkim-signature", "authentication-results",
	}, name)
}

// openFile reads the file of patterns, which come behind the filter's own.
func openFile(env pipeline.Env, path string, own []pattern, most int64) (*rules.LineFile[*set], error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q is no absolute path", reply.Clean(path, 200))
	}
	o := rules.FileOptions{Now: env.Now, Changed: func(err error) {
		if err != nil {
			env.Log.Error("a file of patterns cannot be read", "file", path, "error", err)
			return
		}
		env.Log.Info("a file of patterns was read", "file", path)
	}}
	return rules.OpenLineFile(path, maxFile, o, func(lines []rules.Line) (*set, error) {
		more, err := parseLines(lines, own)
		if err != nil {
			return nil, err
		}
		return newSet(append(append([]pattern(nil), own...), more...), most)
	})
}

// Traits of a filter that protects.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing.
func (f *Filter) Close() error { return nil }

// Message has a worker look for the patterns, and judges what that found.
func (f *Filter) Message(ctx context.Context, _ *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	s := f.own
	if f.file != nil {
		s = f.file.Get()
	}
	if len(s.patterns) == 0 {
		return pipeline.Verdict{}, nil
	}
	if f.workers == nil {
		return pipeline.Verdict{}, errors.New("there are no worker processes here to look at the message")
	}
	var found []finding
	answered := false
	_, err := f.workers.Do(ctx, worker.Request{
		Job: Name, Args: s.request, Body: m.Reader(), Size: m.Size(),
		Decode: func(b []byte) (err error) {
			found, err = decode(b, len(s.patterns))
			answered = err == nil
			return err
		},
	})
	switch {
	case errors.Is(err, worker.ErrKilledTwo):
		return pipeline.Verdict{Action: pipeline.Quarantine, Reason: fmt.Sprintf("it cannot be looked at: %v", err)}, nil
	case err != nil:
		return pipeline.Verdict{}, fmt.Errorf("looking at the message: %w", err)
	case !answered:
		return pipeline.Verdict{}, errors.New("looking at the message: no answer")
	}
	return f.judge(s, found), nil
}

// maxNamed bounds how many patterns a reason and a header field name.
const maxNamed = 20

// judge makes a verdict of what was found, which is in the patterns' order.
func (f *Filter) judge(s *set, found []finding) pipeline.Verdict {
	var v pipeline.Verdict
	var names []string
	for _, x := range found {
		p := &s.patterns[x.Pattern]
		v.Symbols = append(v.Symbols, pipeline.Symbol{Name: p.symbol(), Score: p.score, Detail: x.where()})
		if len(names) < maxNamed {
			names = append(names, p.name)
		}
		if v.Action == pipeline.Continue && p.action != pipeline.Continue {
			v.Action, v.Reason = p.action, p.name+" in "+x.where()
		}
	}
	if len(names) > 0 && v.Action == pipeline.Continue {
		v.Reason = "found " + strings.Join(names, ", ")
	}
	switch {
	case f.text == "":
	case v.Action == pipeline.Reject:
		v.Reply = reply.Make(reply.Refused.Code, reply.Refused.Enhanced, f.text)
	case v.Action == pipeline.Defer:
		v.Reply = reply.Make(reply.Deferred.Code, reply.Deferred.Enhanced, f.text)
	}
	if f.header != "" && (v.Action == pipeline.Continue || v.Action == pipeline.Quarantine) {
		v.Edits = append(v.Edits, pipeline.Field(message.FieldEdit{Op: message.Remove, Name: f.header}))
		if len(names) > 0 {
			v.Edits = append(v.Edits, pipeline.Field(message.FieldEdit{Op: message.Add, Name: f.header, Value: strings.Join(names, ",\n ")}))
		}
	}
	return v
}
