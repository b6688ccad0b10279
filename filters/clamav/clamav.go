// Package clamav is the filter "clamav": it has clamd look for viruses in every
// message, and refuses those in which it finds one.
//
//	[filter.clamav]
//	address = ["unix:/run/clamav/clamd.ctl", "tcp:192.0.2.5:3310"]
//	max     = "25 MB"              # clamd's StreamMaxLength, or less
//	action  = "quarantine"
//	timeout = "60s"
//
// # What is scanned
//
// The message as it stands. Then, where programs that read mail differ about it
// ("postern mime" shows how), every content that one of them may come to and
// that clamd, which reads a message in one way, may not: parts that are found
// only behind a second boundary, base64 under its other decodings, files that
// are encoded in a text, and so on. Each is scanned as a file of its own, unless
// the same bytes are there already. A worker process without privileges reads
// the message for that; see "parts". With parts = "all" the contents that
// everybody agrees on are scanned by themselves as well, for a clamd that is told
// not to read mail (ScanMail no).
//
// # When mail passes
//
// Only when a clamd has said of the message, and of each content, exactly
// "stream: OK". Whatever else happens (there is no clamd, it hangs, it closes the
// connection, it answers an error, nonsense, twice or before it has all) is a
// failure of the filter: by default the message is put off and nothing is stored.
//
// # Unscannable
//
// A message above "max" bytes is not sent to clamd, and one whose parts cannot
// all be laid open (too many, too deep, above "decoded" bytes) is not called
// clean; what becomes of it is "unscannable". So it is with what clamd itself
// says it could not look into, if it is told to say so (AlertExceedsMax yes in
// clamd.conf). Keep "max" at or below clamd's StreamMaxLength: a message between
// the two is put off each time, and the log says why.
//
// Of a member of an archive that is larger than its MaxFileSize, clamd reads the
// beginning and says that all is well, whatever it is told. Have the filter
// execban beside this one, with "member" no larger than MaxFileSize and "bytes"
// no larger than MaxScanSize: it looks into archives by itself, and what is beyond
// its limits is unscannable to it.
//
// # Several clamds
//
// Messages go to the clamd that has the least to do, at most "connections" at a
// time to each. If one fails, the next is asked, within the time of the call
// (the filter's "timeout"), which they share. One that failed is left alone for
// a while, a quarter of a second at first and 5 s at most, and must answer a PING
// before it gets mail again.
//
// # What the sender hears
//
// The virus's name, cleaned, and "text". It is a symbol for later filters and
// rules too: CLAMAV_FOUND, or CLAMAV_UNSCANNABLE.
//
// # When it runs
//
// Also for mail that an earlier filter has accepted.
//
// # The protocol
//
// Connections, framing and reading answers are this package's own. The library
// dutchcoders/go-clamd opens connections that its user cannot reach, and what it
// does with them cannot be mended from outside: a line of an answer is kept
// however long it grows, so that a broken clamd fills the daemon's memory; what
// follows an answer without a line end is dropped, so that two answers pass for
// one; PING and VERSION can neither be ended nor bounded in time. Its words for the
// results are used here, and a test shows what it makes of the same faults.
package clamav

import (
	"context"
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
)

// Name is the filter's name in the configuration, and that of its job.
const Name = "clamav"

// Options are the filter's part of the configuration. Zero values mean the
// defaults of Kind.
type Options struct {
	Address     []string `toml:"address" doc:"the clamds: unix:PATH or tcp:HOST:PORT" unset:"unix:/run/clamav/clamd.ctl"`
	Connections int      `toml:"connections" doc:"how many scans each clamd is given at a time; not above its MaxThreads" min:"1"`
	Max         int64    `toml:"max" doc:"the largest message that is scanned; not above clamd's StreamMaxLength" unit:"bytes" min:"1"`
	// Action is refuse if it is "", Unscannable too.
	Action      string `toml:"action" doc:"what becomes of a message with a virus; discard takes it from the sender and throws it away" oneof:"refuse|quarantine|discard"`
	Unscannable string `toml:"unscannable" doc:"what becomes of a message that is too large or too odd to be scanned" oneof:"refuse|quarantine|defer|pass"`
	// Parts is differing if it is "".
	Parts    string `toml:"parts" doc:"which contents are scanned besides the message as a whole: those about which programs differ, all, or none" oneof:"differing|all|none"`
	Decoded  int64  `toml:"decoded" doc:"how much those contents may be together" unit:"bytes" min:"1"`
	Contents int    `toml:"contents" doc:"how many they may be" min:"1"`
	Header   string `toml:"header" doc:"name of a header field that says that the message was scanned, such as X-Virus-Scanned; what bears that name already is taken off" unset:"none"`
	Text     string `toml:"text" doc:"what the sender hears besides the virus's name, such as where to ask"`
}

// The defaults. 25 MiB is StreamMaxLength in Debian's clamd.conf, 10 clamd's
// MaxThreads.
const (
	defaultAddress     = "unix:/run/clamav/clamd.ctl"
	defaultConnections = 10
	defaultMax         = 25 << 20
	defaultDecoded     = 16 << 20
	defaultContents    = 200
)

func defaults() Options {
	return Options{
		Connections: defaultConnections, Max: defaultMax, Action: "refuse", Unscannable: "refuse",
		Parts: "differing", Decoded: defaultDecoded, Contents: defaultContents,
	}
}

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, defaults, New)
}

// Filter is the clamav filter. It is its own instance, remembers only which
// clamds failed, and is safe for concurrent use.
type Filter struct {
	clamds  *servers.Set
	workers pipeline.Workers
	spool   message.Spooler
	request request
	parts   bool

	max                 int64
	action, unscannable pipeline.Action
	header, text        string
}

// actions are the words for what becomes of a message.
var actions = map[string]pipeline.Action{
	"refuse": pipeline.Reject, "quarantine": pipeline.Quarantine, "discard": pipeline.Discard, "defer": pipeline.Defer, "pass": pipeline.Continue,
}

// maxText bounds "text" in bytes.
const maxText = 200

// New makes a clamav filter. It uses the environment's Workers, Spool, Now and
// Log, and asks no clamd yet; without workers, every message is an error unless
// Parts is none. Its errors say by a method Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	o.fill()
	f := &Filter{
		workers: env.Workers, spool: env.Spool, parts: o.Parts != "none", max: o.Max, header: o.Header, text: o.Text,
		request: request{All: o.Parts == "all", Bytes: o.Decoded, Contents: o.Contents},
	}
	var err error
	if f.clamds, err = servers.New(o.Address, servers.Options{Noun: "clamd", Connections: o.Connections, Ping: ping, Log: env.Log, Now: env.Now}); err != nil {
		return nil, err
	}
	for _, w := range [...]struct {
		key, word, may string
		to             *pipeline.Action
	}{{"action", o.Action, "refuse quarantine discard", &f.action}, {"unscannable", o.Unscannable, "refuse quarantine defer pass", &f.unscannable}} {
		if !oneOf(w.word, w.may) {
			return nil, pipeline.AtKey(w.key, fmt.Errorf("%q: write %s", reply.Clean(w.word, 80), strings.ReplaceAll(w.may, " ", ", ")))
		}
		*w.to = actions[w.word]
	}
	return f, o.check()
}

func oneOf(word, list string) bool {
	for w := range strings.FieldsSeq(list) {
		if w == word {
			return true
		}
	}
	return false
}

// fill puts defaults where there is nothing.
func (o *Options) fill() {
	d := defaults()
	for _, s := range [...]struct{ at, to *string }{{&o.Action, &d.Action}, {&o.Unscannable, &d.Unscannable}, {&o.Parts, &d.Parts}} {
		if *s.at == "" {
			*s.at = *s.to
		}
	}
	for _, n := range [...]struct{ at, to *int }{{&o.Connections, &d.Connections}, {&o.Contents, &d.Contents}} {
		if *n.at == 0 {
			*n.at = *n.to
		}
	}
	for _, n := range [...]struct{ at, to *int64 }{{&o.Max, &d.Max}, {&o.Decoded, &d.Decoded}} {
		if *n.at == 0 {
			*n.at = *n.to
		}
	}
	if len(o.Address) == 0 {
		o.Address = []string{defaultAddress}
	}
}

func (o *Options) check() error {
	for _, n := range [...]struct {
		key        string
		value, max int64
	}{
		{"connections", int64(o.Connections), servers.MaxConnections}, {"max", o.Max, 1<<32 - 1}, {"decoded", o.Decoded, maxDecoded}, {"contents", int64(o.Contents), maxContents},
	} {
		if n.value < 1 || n.value > n.max {
			return pipeline.AtKey(n.key, fmt.Errorf("%d: write a number from 1 to %d", n.value, n.max))
		}
	}
	if !oneOf(o.Parts, "differing all none") {
		return pipeline.AtKey("parts", fmt.Errorf("%q: write differing, all or none", reply.Clean(o.Parts, 80)))
	}
	if len(o.Text) > maxText || reply.Clean(o.Text, maxText) != o.Text {
		return pipeline.AtKey("text", fmt.Errorf("write one line of printable ASCII, at most %d bytes", maxText))
	}
	if o.Header != "" {
		if err := (message.FieldEdit{Name: o.Header, Value: "x"}).Check(); err != nil {
			return pipeline.AtKey("header", err)
		}
	}
	return nil
}

// Traits of a filter that protects.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Always: true, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing.
func (f *Filter) Close() error { return nil }
