// Package rewrite is the filter "rewrite": it puts other addresses in the place
// of envelope recipients, or of the envelope sender: the alias maps of a gateway.
//
//	[[filter.rewrite.map]]
//	file = "/etc/postern/aliases"
//
//	[[filter.rewrite.map]]
//	entries = ["@old.example @example.org", "/(.*)\\.(.*)@example\\.org/ $2.$1@example.org"]
//
//	[filter.masquerade]
//	kind = "rewrite"
//	of   = "senders"
//	[[filter.masquerade.map]]
//	entries = ["@.internal.example.org @example.org"]
//
// # Entries
//
// An entry is an address, blanks, and the addresses that stand in its place,
// with commas between them. What stands on the left is one of
//
//	joe@example.org     this address, and joe+anything@example.org
//	joe@                joe in every domain of ours
//	@example.org        everybody in a domain
//	@.example.org       everybody in a domain below it
//	/regexp/            addresses that the whole of a regular expression (RE2) matches
//
// and they are looked up in this order, patterns in theirs; letters count in
// either case. On the right stands
//
//	ann@example.net     an address
//	@example.net        the same user in another domain
//	$1.$2@example.net   after a pattern: what its groups have matched ($$ is a dollar)
//
// A colon may follow the left side. In a file, lines that begin with # are
// comments, and lines that begin with a blank go on with the entry before. There
// are no quoted local parts.
//
// An address that is found without its extension keeps it: joe+lists@example.org
// becomes ann+lists@example.net. With extension = "+-" the extension may begin
// with a hyphen, too, as qmail's do; the longest name that is found counts.
//
// A cdb has the left side, in lower case, as its keys, and the right side as
// values; patterns cannot be in it. A line of cdbmake's input is
//
//	+15,15:joe@example.org->ann@example.net
//
// "postern rewrite compile FILE CDB" makes one of a file.
//
// # Application
//
// Maps are asked in order, and the first that has an entry decides. What comes
// out is looked up again in all of them, but never by the same entry twice in a
// row of rewritings, so that ann@example.org can become ann@example.org,
// archive@example.org. More than "depth" rewritings in a row, or more than
// "expansion" addresses out of one, are an error. An address that comes out of
// several recipients gets the message once.
//
// Nobody's mail (the empty sender, #@[], and senders of VERP) keeps its sender. An
// entry for senders has one address on the right.
//
// # Where it stands in a chain
//
// Rewriting is done when the message is there. All that is asked at RCPT, like
// rcptcheck and greylist, and all rules about recipients and senders, speak of
// the addresses as they came, wherever the filter stands in the chain: what
// rcptcheck knows must be the left side of the maps. What comes out need not be
// in a domain of ours. The filter runs for mail that an earlier filter has
// accepted, too. Sender and recipients take a filter each, since one verdict for
// both would split the message.
//
// # Errors
//
// A map that cannot be read when the configuration is loaded, or that has an
// entry with what is no address, is a mistake of the configuration, told with
// file and line. Files are read again when they change; one that has become wrong
// leaves what was read before in force, and the log says so. What fails later,
// because an entry makes no valid address of this one or there are too many, is
// an error, and by default the message is put off.
package rewrite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Name is the filter's name in the configuration.
const Name = "rewrite"

const (
	ofRecipients = "recipients"
	ofSenders    = "senders"

	defaultDepth     = 10
	defaultExpansion = 100
	defaultExtension = "+"

	maxMaps      = 50
	maxEntries   = 10_000 // in the configuration itself
	maxDepth     = 50
	maxExpansion = 10_000
	// maxAdded bounds how many recipients one message may get.
	maxAdded = 100_000
)

// Options are the filter's part of the configuration.
type Options struct {
	// Of is recipients if it is "".
	Of   string `toml:"of" doc:"what is rewritten: envelope recipients or the envelope sender" oneof:"recipients|senders"`
	Maps []Map  `toml:"map" doc:"the maps, in order"`
	// Extension is "+" if it is nil.
	Extension *string `toml:"extension" doc:"the characters that an extension of a local part may begin with, + or -; empty: there are none" unset:"+"`
	// Depth is 10 if it is 0, Expansion 100.
	Depth     int `toml:"depth" min:"1" doc:"how often in a row an address may be rewritten"`
	Expansion int `toml:"expansion" min:"1" doc:"how many addresses may come of one"`
}

// Map is one map. One of its fields is set.
type Map struct {
	Entries []string `toml:"entries" doc:"entries, like \"joe@example.org ann@example.net, bob@example.net\""`
	File    string   `toml:"file" doc:"a file of entries, one a line"`
	CDB     string   `toml:"cdb" doc:"a constant database of entries"`
}

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{Of: ofRecipients, Depth: defaultDepth, Expansion: defaultExpansion}
	}, New)
}

// Filter is the rewrite filter. It is its own instance, and safe for concurrent
// use.
type Filter struct {
	senders          bool
	maps             []source
	extension        string
	depth, expansion int
}

// New makes a rewrite filter, and reads its maps. It uses the environment's Log
// and Now. The errors say by a method Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	log, now := env.Log, env.Now
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if now == nil {
		now = time.Now
	}
	f := &Filter{senders: o.Of == ofSenders, extension: defaultExtension, depth: orElse(o.Depth, defaultDepth), expansion: orElse(o.Expansion, defaultExpansion)}
	if o.Extension != nil {
		f.extension = *o.Extension
	}
	wrong := f.check(&o)
	for i := range o.Maps {
		s, key, err := o.Maps[i].open(f.senders, log, now)
		if err != nil {
			wrong = append(wrong, pipeline.AtKey(fmt.Sprintf("map[%d]%s", i, key), err))
			continue
		}
		f.maps = append(f.maps, s)
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func orElse(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

// check says what is wrong with the options beside the maps.
func (f *Filter) check(o *Options) (wrong []error) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	if o.Of != "" && o.Of != ofRecipients && o.Of != ofSenders {
		bad("of", "%q: write recipients or senders", reply.Clean(o.Of, 80))
	}
	if strings.Trim(f.extension, "+-") != "" {
		bad("extension", "%q: write +, - or both", reply.Clean(f.extension, 80))
	}
	if f.depth < 1 || f.depth > maxDepth {
		bad("depth", "%d: write 1 to %d", o.Depth, maxDepth)
	}
	if f.expansion < 1 || f.expansion > maxExpansion {
		bad("expansion", "%d: write 1 to %d", o.Expansion, maxExpansion)
	}
	switch {
	case len(o.Maps) == 0:
		wrong = append(wrong, errors.New("there is no map: add a table named map with entries, file or cdb"))
	case len(o.Maps) > maxMaps:
		bad(fmt.Sprintf("map[%d]", maxMaps), "more than %d maps", maxMaps)
		o.Maps = nil
	}
	return wrong
}

// open reads the map. With an error comes the key that it is about.
func (m *Map) open(senders bool, log *slog.Logger, now func() time.Time) (s source, key string, err error) {
	set := 0
	for _, is := range []bool{m.Entries != nil, m.File != "", m.CDB != ""} {
		if is {
			set++
		}
	}
	if set != 1 {
		return nil, "", fmt.Errorf("it has %d of entries, file and cdb: write one", set)
	}
	path := m.File + m.CDB
	if path != "" && !filepath.IsAbs(path) {
		key = ".file"
		if m.CDB != "" {
			key = ".cdb"
		}
		return nil, key, fmt.Errorf("%q is no absolute path", reply.Clean(path, 200))
	}
	switch {
	case m.File != "":
		s, err = openFile(path, senders, log, now)
		return s, ".file", err
	case m.CDB != "":
		s, err = openDatabase(path, senders, log, now)
		return s, ".cdb", err
	case len(m.Entries) > maxEntries:
		return nil, ".entries", fmt.Errorf("%d entries, at most %d: write them into a file", len(m.Entries), maxEntries)
	}
	t := newTable(senders)
	for i, line := range m.Entries {
		if err := t.add(line, fmt.Sprintf("entry %d", i+1)); err != nil {
			return nil, fmt.Sprintf(".entries[%d]", i), err
		}
	}
	return t, "", nil
}

// Traits of a filter without which mail would go to the wrong place.
func (*Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Always: true, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return instance{f}, nil
}

// Close closes the files.
func (f *Filter) Close() error {
	var errs []error
	for _, m := range f.maps {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}

// instance is the filter at work on one session.
type instance struct{ f *Filter }

// Close does nothing: the filter has the files.
func (instance) Close() error { return nil }

// Message rewrites the envelope.
func (i instance) Message(_ context.Context, tx *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
	if i.f.senders {
		return i.f.sender(tx)
	}
	return i.f.recipients(tx)
}

// sender rewrites the sender, unless it is nobody's.
func (f *Filter) sender(tx *pipeline.Transaction) (pipeline.Verdict, error) {
	from := tx.Envelope.Sender
	if from == "" || strings.HasSuffix(from, "@[]") {
		return pipeline.Verdict{}, nil
	}
	to, by, err := f.expand(from, tx.Session.IsOurs)
	if err != nil || by == "" || to[0] == from {
		return pipeline.Verdict{}, err
	}
	return pipeline.Verdict{
		Reason: reply.Clean(from+" by "+by, maxReason),
		Edits:  []pipeline.Edit{{Kind: pipeline.EditSender, Address: to[0]}},
	}, nil
}

// maxReason bounds what the trace says, in bytes.
const maxReason = 400

// recipients rewrites the recipients that it is asked about.
func (f *Filter) recipients(tx *pipeline.Transaction) (pipeline.Verdict, error) {
	var parts []pipeline.Verdict
	added := 0
	for _, n := range tx.Active {
		address := tx.Envelope.Recipients[n].Address
		to, by, err := f.expand(address, tx.Session.IsOurs)
		if err != nil {
			return pipeline.Verdict{}, err
		}
		if by == "" || len(to) == 1 && to[0] == address {
			continue
		}
		// A recipient that stays is replaced by itself: among those who are replaced,
		// the chain keeps each once.
		edits := []pipeline.Edit{{Kind: pipeline.EditRecipient, Address: to[0]}}
		for _, a := range to[1:] {
			edits = append(edits, pipeline.Edit{Kind: pipeline.EditAddRecipient, Address: a})
		}
		if added += len(to); added > maxAdded {
			return pipeline.Verdict{}, fmt.Errorf("the maps make more than %d recipients of these", maxAdded)
		}
		parts = append(parts, pipeline.Verdict{Reason: reply.Clean(address+" by "+by, maxReason), Edits: edits, Only: []int{n}})
	}
	if len(parts) == 0 {
		return pipeline.Verdict{}, nil
	}
	v := parts[0]
	v.Others = parts[1:]
	return v, nil
}
