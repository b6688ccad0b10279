// Package execban is the filter "execban": it refuses mail that brings
// programs, scripts and documents with macros, whatever they are called and
// however deep they are packed.
//
//	[filter.execban]
//	pass        = ["office-macros"]          # our people need them
//	quarantine  = ["disk-images"]
//	unscannable = "quarantine"
//	text        = "see https://example.org/attachments"
//
//	[[filter.execban.class]]                 # a class of one's own
//	name       = "cad-scripts"
//	extensions = ["lsp", "fas"]
//
//	[[filter.execban.except]]                # who may send scripts
//	when    = 'auth and indomain(sender, "example.org")'
//	classes = ["scripts"]
//
// # What is looked at
//
// Every part of a message, in every reading that a mail program may plausibly
// have of it ("postern mime" shows them): all the names that it may have, and
// its content under every decoding. What an archive, a disk image, a compound
// file or a winmail.dat holds is looked at in the same way, and what that holds,
// and messages inside. A thing is known by what it is and by what it is called;
// either is enough, in any reading.
//
// # Classes
//
//   - windows-executables, unix-executables, mac-executables: programs and
//     libraries
//   - android, java, flash: programs for those
//   - installers: packages that install programs
//   - scripts: of every kind that start when they are opened
//   - shortcuts: links that start something elsewhere
//   - help-files: help files of Windows, which run scripts
//   - disk-images: images of disks, which hide where their files come from
//   - office-macros: Office documents with macros
//   - office-templates: those that fetch a template or an object from elsewhere
//   - office-embedded: those with objects of other programs inside
//   - rtf-objects: RTF with objects inside
//   - onenote-embedded: sections of OneNote with files inside
//   - pdf-active: PDF that starts programs or runs scripts
//   - signatures: what control/signatures has, see below
//   - archives-encrypted: what needs a password
//   - archives-nested: archives that lie in more archives than "depth" allows
//   - unscannable: what else cannot be looked at, see below
//
// Each class has an action: refuse, quarantine, defer or pass. The lists of these
// names put classes where you want them; a class that stands in none keeps its
// own, which is pass for office-embedded and pdf-active, that of "unscannable"
// for the last three, and refuse for all others. "all" in one list means every
// class that stands in no list, but for the last three. If a message has
// several, the worst action counts, in the order refuse, quarantine, defer.
//
// A class of one's own is a name and extensions. Where a class that is there
// already has one of them, it loses it: that is how single extensions are let
// through. Given the name of a class that is there, it gains them. What is told
// by its content stays in its class.
//
// # Unscannable
//
// What cannot be looked at is never passed over in silence: archives that are
// encrypted, damaged, of a kind that nothing here reads, or that say different
// things to different programs; messages beyond a limit; and messages whose
// structure programs read differently in a way that honest programs do not
// write. How much that may be is "strictness": with "contradiction", the
// default, readers must come to different parts, names or contents, with "odd"
// it is enough that some show it otherwise, with "notice" that anything is not
// as the standards have it, and with "never" it is no reason at all. What is
// found in any reading is banned in any case. Encrypted mail itself (S/MIME,
// PGP/MIME) is not unscannable.
//
// # Signatures
//
// control/signatures is honoured as it stands: a part whose first line begins
// with one of its lines is of the class "signatures", before any decoding, as
// the viruscan patch of qmail-smtpd has it; an asterisk in a line stands for any
// one byte, as in qmail-ldap. The file is read with the configuration.
//
// # Workers
//
// Nothing of a message is parsed in the daemon. A process without privileges,
// network or files does it, within limits of memory and time; what it answers is
// short and checked. If it dies, hangs or answers what it should not, or cannot
// do its work in time because the host is busy, the filter has failed, and by
// default the message is put off. A message of which two such processes died is
// quarantined, because it would else be tried for ever.
//
// # What the sender hears
//
// Which attachment it is, by its name, and what was found, and "text". The log
// and "postern explain" say which part it is and in which reading, and each
// class is a symbol for later filters and rules: EXECBAN_WINDOWS_EXECUTABLES.
//
// # When it runs
//
// Also for mail that an earlier filter has accepted: an allow-list must not let
// a program through that nobody meant.
package execban

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/postern-mta/postern/filters/execban/archive"
	"github.com/postern-mta/postern/filters/execban/content"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/worker"
)

// Name is the filter's name in the configuration, and that of its job.
const Name = "execban"

// The classes that are no kinds of files.
const (
	ArchivesEncrypted = content.ArchivesEncrypted
	ArchivesNested    = content.ArchivesNested
	SignatureClass    = "signatures"
	Unscannable       = "unscannable"
)

// Options are the filter's part of the configuration. Zero numbers mean the
// defaults of Kind.
type Options struct {
	Refuse     []string `toml:"refuse" doc:"classes that are refused; \"all\": those that are in no list" unset:"all but office-embedded and pdf-active"`
	Quarantine []string `toml:"quarantine" doc:"classes that are put into quarantine"`
	Defer      []string `toml:"defer" doc:"classes that are put off"`
	Pass       []string `toml:"pass" doc:"classes that pass, and are only told in the log" unset:"office-embedded, pdf-active"`
	// Unscannable is refuse if it is "".
	Unscannable string `toml:"unscannable" doc:"what becomes of a message that cannot be looked at; archives-encrypted and archives-nested have the same unless they stand in a list" oneof:"refuse|quarantine|defer|pass"`
	// Strictness is contradiction if it is "".
	Strictness string      `toml:"strictness" doc:"from when on a structure that programs read differently makes a message unscannable" oneof:"never|contradiction|odd|notice"`
	Classes    []Class     `toml:"class" doc:"classes of one's own, and extensions for others"`
	Except     []Exception `toml:"except" doc:"what passes although its class does not"`
	Text       string      `toml:"text" doc:"what the sender hears besides, such as where to ask"`
	// Signatures is a path, "" for none.
	Signatures string        `toml:"signatures" doc:"file of signatures as in control/signatures; \"\": none" path:"file" unset:"control/signatures, if there is one"`
	Depth      int           `toml:"depth" doc:"how many archives may lie in one another" min:"1"`
	Members    int           `toml:"members" doc:"how many members all archives of a message may have" min:"1"`
	Parts      int           `toml:"parts" doc:"how many parts a message may have" min:"1"`
	Bytes      int64         `toml:"bytes" doc:"how much a message may hold in all, unpacked" unit:"bytes" min:"1"`
	Member     int64         `toml:"member" doc:"how much one attachment or member may hold, unpacked" unit:"bytes" min:"1"`
	Time       time.Duration `toml:"time" doc:"how long looking at a message may take before it is unscannable, or put off if the host is busy"`
}

// Class is a class of one's own, or more extensions for one that is there.
type Class struct {
	Name       string   `toml:"name" doc:"name of the class"`
	Extensions []string `toml:"extensions" doc:"the extensions by which it is known; they leave the class that has them"`
}

// Exception lets classes pass.
type Exception struct {
	When    string   `toml:"when" doc:"rule that must match" unset:"always"`
	Classes []string `toml:"classes" doc:"the classes that pass then; \"all\": every class"`
}

// The defaults of the limits. The time leaves a minute for the rest of a chain.
const (
	defaultDepth   = 8
	defaultMembers = 10_000
	defaultParts   = 10_000
	defaultBytes   = 512 << 20
	defaultMember  = 128 << 20
	defaultTime    = 15 * time.Second
	// margin is how much longer a worker may take than its own clock allows.
	margin = 5 * time.Second
)

func defaults() Options {
	return Options{
		Unscannable: "refuse", Strictness: "contradiction",
		Depth: defaultDepth, Members: defaultMembers, Parts: defaultParts, Bytes: defaultBytes, Member: defaultMember, Time: defaultTime,
	}
}

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, defaults, New)
}

// Filter is the execban filter. It is immutable, its own instance, and safe for
// concurrent use.
type Filter struct {
	policy  *policy
	request []byte
	// deadline is how long a worker may take.
	deadline time.Duration
	workers  pipeline.Workers
}

// New makes an execban filter. It uses the environment's Workers; without
// them, every message is an error. Its errors say by a method Key
// which key they are about, "class[2].name".
func New(env pipeline.Env, o Options) (*Filter, error) {
	o.fill()
	p, r, err := o.compile()
	if err != nil {
		return nil, err
	}
	f := &Filter{policy: p, deadline: o.Time + margin, workers: env.Workers}
	if f.request, err = r.encode(); err != nil {
		return nil, err
	}
	return f, nil
}

// fill puts defaults where there is nothing.
func (o *Options) fill() {
	d := defaults()
	for _, s := range [...]struct{ at, to *string }{{&o.Unscannable, &d.Unscannable}, {&o.Strictness, &d.Strictness}} {
		if *s.at == "" {
			*s.at = *s.to
		}
	}
	for _, n := range [...]struct{ at, to *int }{{&o.Depth, &d.Depth}, {&o.Members, &d.Members}, {&o.Parts, &d.Parts}} {
		if *n.at == 0 {
			*n.at = *n.to
		}
	}
	for _, n := range [...]struct{ at, to *int64 }{{&o.Bytes, &d.Bytes}, {&o.Member, &d.Member}} {
		if *n.at == 0 {
			*n.at = *n.to
		}
	}
	if o.Time == 0 {
		o.Time = d.Time
	}
}

// limits are the archives' part of the options.
func (o *Options) limits() archive.Limits {
	return archive.Limits{Depth: o.Depth, Members: o.Members, Bytes: o.Bytes, Member: o.Member}
}

// Traits of a filter that protects.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Always: true, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing.
func (f *Filter) Close() error { return nil }

// Message has a worker look at the message, and judges what that found.
func (f *Filter) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	if f.workers == nil {
		return pipeline.Verdict{}, errors.New("there are no worker processes here to look at the message")
	}
	var a *answer
	_, err := f.workers.Do(ctx, worker.Request{
		Job: Name, Args: f.request, Body: m.Reader(), Size: m.Size(), Deadline: f.deadline,
		Decode: func(b []byte) (err error) {
			a, err = decode(b, f.policy.known)
			return err
		},
	})
	switch {
	case errors.Is(err, worker.ErrKilledTwo):
		// Whatever becomes of other unscannable mail: this must neither pass nor
		// come again.
		return pipeline.Verdict{Action: pipeline.Quarantine, Reason: fmt.Sprintf("unscannable: %v", err), Symbols: symbols([]finding{{class: Unscannable}})}, nil
	case err != nil:
		return pipeline.Verdict{}, fmt.Errorf("looking at the message: %w", err)
	case a == nil:
		return pipeline.Verdict{}, errors.New("looking at the message: no answer")
	}
	return f.policy.judge(a, tx, m)
}
