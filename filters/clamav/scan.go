package clamav

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
	"github.com/postern-mta/postern/pipeline/worker"
)

// Message has clamd scan the message and what programs may make of it.
func (f *Filter) Message(ctx context.Context, _ *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	if m.Size() > f.max {
		return f.unknown(fmt.Sprintf("larger than %d bytes", f.max)), nil
	}
	name, err := f.scan(ctx, m.Reader(), m.Size())
	switch {
	case err != nil:
		return pipeline.Verdict{}, err
	case name != "":
		return f.found(name, "the message"), nil
	case !f.parts:
		return f.clean("the message"), nil
	}
	c, err := f.gather(ctx, m)
	if errors.Is(err, worker.ErrKilledTwo) {
		// Whatever becomes of other unscannable mail: this must neither pass nor
		// come again.
		return pipeline.Verdict{Action: pipeline.Quarantine, Reason: fmt.Sprintf("unscannable: %v", err), Symbols: []pipeline.Symbol{{Name: symbolUnscannable, Detail: "it kills its readers"}}}, nil
	}
	if err != nil {
		return pipeline.Verdict{}, fmt.Errorf("reading the message's parts: %w", err)
	}
	defer c.body.Release() //nolint:errcheck // nothing depends on it
	at := int64(0)
	for _, p := range c.pieces {
		name, err := f.scan(ctx, io.NewSectionReader(c.body, at, p.size), p.size)
		switch {
		case err != nil:
			return pipeline.Verdict{}, fmt.Errorf("part %s [%s]: %w", p.part, p.reading, err)
		case name != "":
			return f.found(name, fmt.Sprintf("part %s [%s]", p.part, p.reading)), nil
		}
		at += p.size
	}
	if c.excess != "" {
		return f.unknown("it has " + c.excess), nil
	}
	what := "the message"
	if n := len(c.pieces); n > 0 {
		what += fmt.Sprintf(" and %d contents of its parts", n)
	}
	return f.clean(what), nil
}

// scan has one of the clamds scan: the name of what it found, "" for nothing.
func (f *Filter) scan(ctx context.Context, body io.ReaderAt, size int64) (name string, err error) {
	err = f.clamds.Do(ctx, func(ctx context.Context, s *servers.Server) (err error) {
		name, err = scan(ctx, s, body, size)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("not scanned: %w", err)
	}
	return name, nil
}

// contents are a message's contents, laid end to end in a body that their holder
// must release.
type contents struct {
	pieces []piece
	excess string
	body   *message.Body
}

// gather has workers lay the message open, a window at a time.
func (f *Filter) gather(ctx context.Context, m message.Message) (contents, error) {
	if f.workers == nil {
		return contents{}, errors.New("there are no worker processes here to look at the message")
	}
	var c contents
	w := message.NewWriter(f.spool, 0)
	defer w.Abort()
	r := f.request
	for {
		args, err := json.Marshal(r)
		if err != nil {
			return contents{}, err
		}
		var a *answer
		_, err = f.workers.Do(ctx, worker.Request{
			Job: Name, Args: args, Body: m.Reader(), Size: m.Size(),
			Decode: func(b []byte) (err error) {
				if a, err = r.decode(b); err == nil {
					a.bytes = slices.Clone(a.bytes)
				}
				return err
			},
		})
		switch {
		case err != nil:
			return contents{}, err
		case a == nil:
			return contents{}, errors.New("no answer")
		case r.Skip == 0:
			c.pieces, c.excess = a.pieces, a.excess
		case !slices.Equal(c.pieces, a.pieces) || c.excess != a.excess:
			return contents{}, errors.New("two workers find different contents")
		}
		if _, err := w.Write(a.bytes); err != nil {
			return contents{}, err
		}
		if r.Skip += int64(len(a.bytes)); r.Skip >= a.total() {
			c.body, err = w.Body()
			return c, err
		}
	}
}

// The names of the filter's findings.
const (
	symbolFound       = "CLAMAV_FOUND"
	symbolUnscannable = "CLAMAV_UNSCANNABLE"
)

// limits is how clamd calls it when a file is beyond its own limits
// (AlertExceedsMax in clamd.conf(5)): that is no virus.
const limits = "Heuristics.Limits.Exceeded"

// found is what becomes of a message in which clamd found something; name is
// clean.
func (f *Filter) found(name, where string) pipeline.Verdict {
	if strings.HasPrefix(name, limits) {
		return f.unknown("beyond the limits of clamd (" + name + ")")
	}
	v := pipeline.Verdict{Action: f.action, Reason: name + " in " + where, Symbols: []pipeline.Symbol{{Name: symbolFound, Detail: name}}}
	if v.Action == pipeline.Reject {
		v.Reply = reply.Make(554, reply.Refused.Enhanced, f.telling("a virus was found in this message: "+name))
	}
	return v
}

// unknown is what becomes of a message that cannot be scanned; why is clean.
func (f *Filter) unknown(why string) pipeline.Verdict {
	v := pipeline.Verdict{Action: f.unscannable, Reason: "unscannable: " + why, Symbols: []pipeline.Symbol{{Name: symbolUnscannable, Detail: why}}}
	text := f.telling("this message cannot be scanned for viruses: " + why)
	switch v.Action {
	case pipeline.Reject:
		v.Reply = reply.Make(554, reply.Refused.Enhanced, text)
	case pipeline.Defer:
		v.Reply = reply.Make(451, reply.Deferred.Enhanced, text)
	case pipeline.Continue:
		v.Reason += " (passes)"
		v.Edits = f.mark("not scanned, " + why)
	}
	return v
}

func (f *Filter) telling(text string) string {
	if f.text != "" {
		text += "; " + f.text
	}
	return text
}

// clean is a message in which nothing was found.
func (f *Filter) clean(what string) pipeline.Verdict {
	return pipeline.Verdict{Reason: "nothing found in " + what, Edits: f.mark("clean, says clamd")}
}

// mark puts the header field on top, in place of those that others wrote.
func (f *Filter) mark(value string) []pipeline.Edit {
	if f.header == "" {
		return nil
	}
	return []pipeline.Edit{
		pipeline.Field(message.FieldEdit{Op: message.Remove, Name: f.header}),
		pipeline.Field(message.FieldEdit{Op: message.Add, Name: f.header, Value: value}),
	}
}
