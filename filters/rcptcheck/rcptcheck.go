// Package rcptcheck is the filter "rcptcheck": it refuses recipients who do not
// exist, one by one, before their message comes.
//
//	[[filter.rcptcheck.check]]
//	file = "/var/qmail/control/validrcptto"
//
//	[[filter.rcptcheck.check]]
//	cdb     = "/var/qmail/users/recipients.cdb"
//	domains = ["example.org", ".example.org"]
//
//	[[filter.rcptcheck.check]]
//	program = "/usr/local/bin/check-recipient"   # as for RCPTCHECK
//	wait    = "5s"
//
// # Who is judged
//
// Recipients in domains that are ours, of mail from strangers; with trusted =
// true also that of our own users. A check with "domains" is asked about these
// only; a recipient about whom no check is asked is let pass.
//
// The checks are asked in order. With need = "any" a recipient is known as soon
// as one check knows it, and unknown if none does; with need = "all" it is
// unknown as soon as one check does not know it. A recipient that is unknown is
// answered 550 5.1.1; a shim's message, 554 with the names, or as "mixed" says.
//
// # Lists
//
// list, file and cdb hold the same: addresses, in lower case in a cdb, and
//
//	@example.org               everybody in a domain
//	you-@example.org           you-anything (and you=, you+): s/qmail, SPAMCONTROL
//	you-default@example.org    you-anything, for each - from the last one on: validrcptto.cdb
//
// A cdb is in the layout of s/qmail and SPAMCONTROL (users/recipients.cdb, whose
// keys begin with a colon, as those of fastforward do), or in that of
// validrcptto.cdb, where a value that begins with - refuses the address at once.
// A file has an entry a line; lines that begin with # are comments. Files are
// read again when they change; one that cannot be read then leaves what was read
// before in force. One that could never be read is an error. A text file in which
// nobody stands is one that cannot be read, since it would refuse everybody: it may
// be on its way. Write a new file and rename it, since half of one is read as it is.
//
// # control/recipients
//
// recipients is the file of that name as s/qmail and SPAMCONTROL have it:
//
//	!example.com                  everybody in a domain
//	@example.org:users/a.cdb      a database, for the recipients in this domain
//	example.org|bin/check -x      a program, for a domain and those below it
//	*:users/all.cdb               for all; *|program likewise
//	users/old.cdb                 the same, as it was written before
//	!*                            everybody who has got here
//
// Lines are asked in order, until one knows the recipient. Paths are relative to
// the folder above the file's. A program gets the address on descriptor 3, with
// three NULs behind it, and if it does not know it, the address up to the first
// hyphen, and @example.org; exit code 0 means yes, 111 that it cannot tell now, any
// other no. Otherwise it is started as those below are. Three things differ:
// example.org is not the end of myexample.org; a line about a domain is not
// asked about others because one before it matched; and a database that
// cannot be opened is an error, and not a no.
//
// # Programs
//
// A program is started for each recipient, with SENDER, RECIPIENT, HELO,
// TCPREMOTEIP, TCPREMOTEHOST and TCPREMOTEPORT in the environment, and what
// else the caller of a shim has told of the client, but for what would
// tell it what to run (LD_PRELOAD, BASH_ENV, ...). Exit code 100 means that there is no such recipient; 111 and 120 that this cannot be told now; 112 that
// the program does not judge this one, as if it had not been asked; 113 that the
// client has exceeded a limit, and is put off; any other, that there is. Its
// standard input is /dev/null, what it writes goes to the log, at most a few
// lines. On descriptor 4 (USE_FD4=1 tells it so) it may write one line, a code of
// 400 to 599 and a text, which the peer hears in place of ours after exit 100
// and 113; a code of 4xx puts the recipient off. It has no other descriptor, and
// a session of its own; when it ends or its time ("wait") is over, it is killed
// with everything that it has started. From its first instruction on it may use
// 2 GiB of memory, 512 descriptors, files of max_file bytes, and of processor time what it
// may take and a second more. It runs as the daemon's user, or, if the daemon was
// started by root, as another ("user"): a new one needs a restart. One that
// crashes, takes too long or cannot be run is an error.
//
// Where postern explain asks, POSTERN_EXPLAIN is 1.
//
// It is not told RCPTFOUND and RCPTHOSTS, which speak of checks that this filter
// does not know of, and only recipients in domains of ours are asked about. The
// connection is kept after 111, 113 and 120; where RCPTCHECK closes it, the
// recipient alone is put off.
//
// What programs say is kept for "valid_for" and "invalid_for", for the same
// program with the same arguments, unless the check has each = true, for a program that judges by more than the recipient.
//
// # Callouts
//
// A check with callout = true asks the server that the recipient's mail would go to,
// by route or MX: MAIL FROM:<> and RCPT TO, and no message. Its yes is kept for a
// day, its no for an hour. A domain's server is asked first for an address that
// cannot be there; if it takes that it takes everybody, and for a day the check is
// not asked about this domain. A no must be about the recipient: one about who asks
// (5.7), 4xx, a refusal of MAIL, and a server that cannot be reached are errors.
// "wait" bounds each, and "programs" how many go on at a time. For domains whose mail
// is delivered here, or goes by QMTP or QMQP, it is an error: name others in
// "domains". postern explain asks nobody.
//
//	[[filter.rcptcheck.check]]
//	callout = true
//	domains = ["inner.example.org"]
//
// # Harvesters
//
// Our SMTP server answers a client slowly that has been refused a few times
// ("tarpit"), and hangs up in the end. Each unknown recipient is also a symbol,
// RCPT_UNKNOWN, which counts those of the session, for the log.
//
// # Errors
//
// A check that fails is an error where the others do not decide, and by default
// the recipient is put off (on_error = "defer").
package rcptcheck

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// Name is the filter's name in the configuration, Symbol its finding.
const (
	Name   = "rcptcheck"
	Symbol = "RCPT_UNKNOWN"
)

// Options are the filter's part of the configuration.
type Options struct {
	Checks []Check `toml:"check" doc:"where recipients are looked up, in order"`
	// Need is any if it is "".
	Need    string `toml:"need" doc:"whether one check must know a recipient, or all" oneof:"any|all"`
	Trusted bool   `toml:"trusted" doc:"judge mail of our own users, too: relayed, authenticated and local"`
	Action  string `toml:"action" doc:"what becomes of an unknown recipient; defer: it may be tried again" oneof:"reject|defer"`
	Text    string `toml:"text" doc:"what the peer hears about an unknown recipient" unset:"no mailbox here by that name"`
	// ValidFor and InvalidFor are how long a program's answer is kept; 0: not.
	ValidFor   time.Duration `toml:"valid_for" doc:"how long a program's yes is kept; 0: it is not"`
	InvalidFor time.Duration `toml:"invalid_for" doc:"how long a program's no is kept; 0: it is not"`
	// CacheSize is 10000 if it is 0.
	CacheSize int `toml:"cache_size" doc:"how many answers of programs are kept"`
	// Programs is 20 if it is 0.
	Programs int `toml:"programs" doc:"how many programs may run at the same time; others wait"`
	// MaxFile is 4 GiB if it is 0.
	MaxFile int64 `toml:"max_file" doc:"how large a file may become that a program writes to, its own logs among them" unit:"bytes" min:"1"`
}

// Check is one place to look recipients up. One of its first six fields is set.
type Check struct {
	List    []string `toml:"list" doc:"recipients: addresses, @domain, you-@domain, you-default@domain"`
	File    string   `toml:"file" doc:"a file of recipients, an entry a line, like control/validrcptto"`
	CDB     string   `toml:"cdb" doc:"a constant database of recipients, like users/recipients.cdb or control/validrcptto.cdb"`
	Program string   `toml:"program" doc:"a program as for RCPTCHECK"`
	// Recipients may name programs, too.
	Recipients string   `toml:"recipients" doc:"a file like control/recipients of s/qmail, which names databases and programs by domain"`
	Callout    bool     `toml:"callout" doc:"ask the server that the recipient's mail goes to, by route or MX"`
	Args       []string `toml:"args" doc:"the program's arguments"`
	Domains    []string `toml:"domains" doc:"the domains about whose recipients this check is asked; one with a dot in front means all below" unset:"all of ours"`
	Each       bool     `toml:"each" doc:"ask the program for each recipient of each message: do not keep its answers"`
	// User is one that the daemon was started with.
	User string `toml:"user" runs:"user" doc:"the user that the program runs as, a name or a number; a new one needs a restart of the daemon" unset:"the daemon's own"`
	// Wait is 10 s if it is 0.
	Wait time.Duration `toml:"wait" doc:"how long the program may run" unset:"10s"`
}

const (
	defaultValidFor   = 10 * time.Minute
	defaultInvalidFor = time.Minute
	defaultCacheSize  = 10_000
	defaultPrograms   = 20
	defaultMaxFile    = 4 << 30
	defaultWait       = 10 * time.Second

	maxChecks = 50
	maxList   = 100_000
	maxCache  = 10_000_000
)

// unknownText is what a peer hears of an unknown recipient.
const unknownText = "no mailbox here by that name"

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{
			Need: needAny, Action: reply.Reject.String(), ValidFor: defaultValidFor, InvalidFor: defaultInvalidFor,
			CacheSize: defaultCacheSize, Programs: defaultPrograms, MaxFile: defaultMaxFile,
		}
	}, New)
}

const (
	needAny = "any"
	needAll = "all"
)

// Filter is the rcptcheck filter. It is safe for concurrent use.
type Filter struct {
	checks       []check
	all, trusted bool
	answer       pipeline.Verdict
	log          *slog.Logger
}

// check is one check with whom it is asked about.
type check struct {
	source
	domains *rules.DomainList // nil: all of ours
}

// answer is what a source says of a recipient.
type answer uint8

const (
	unknown answer = iota
	valid
	refused   // no other source may know it
	noOpinion // as if it had not been asked
)

// finding is an answer, with what the peer hears about one that is refused; the
// zero reply leaves that to the filter.
type finding struct {
	answer answer
	reply  reply.Reply
}

// source knows recipients. It is safe for concurrent use.
type source interface {
	// ask looks a recipient up; the address is in lower case.
	ask(ctx context.Context, address string, tx *pipeline.Transaction) (finding, error)
	// name is what logs and traces call it.
	name() string
	close() error
}

// New makes an rcptcheck filter. It uses the environment's Log, Now and Programs. The
// errors say by a method Key which key they are about. Files and programs that
// are missing are told to the log, and are errors when they are needed.
func New(env pipeline.Env, o Options) (*Filter, error) {
	f := &Filter{all: o.Need == needAll, trusted: o.Trusted, log: env.Log}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	now := env.Now
	if now == nil {
		now = time.Now
	}
	if o.Action == "" {
		o.Action = reply.Reject.String()
	}
	if err := errors.Join(o.check()...); err != nil {
		return nil, err
	}
	text := o.Text
	if text == "" {
		text = unknownText
	}
	code := 550
	if f.answer.Action = pipeline.Reject; o.Action == reply.Defer.String() {
		f.answer.Action, code = pipeline.Defer, 450
	}
	f.answer.Reply = reply.Make(code, reply.Enhanced{Subject: 1, Detail: 1}, text)
	r := &runner{log: f.log, places: make(chan struct{}, orElse(o.Programs, defaultPrograms)), programs: env.Programs, maxFile: orElse(o.MaxFile, defaultMaxFile)}
	kept := &cache{now: now, size: orElse(o.CacheSize, defaultCacheSize), yes: o.ValidFor, no: o.InvalidFor}
	for _, c := range o.Checks {
		made := check{}
		if c.Callout {
			made.source = newCallout(env, c.Wait, o.Programs)
		} else {
			made.source = c.source(f.log, now, r, kept)
		}
		if len(c.Domains) > 0 {
			made.domains = rules.NewDomainList(c.Domains)
		}
		f.checks = append(f.checks, made)
	}
	return f, nil
}

func orElse[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Traits of a filter that protects, from strangers unless it is told otherwise.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Strangers: !f.trusted, Stages: []pipeline.Stage{pipeline.AtRecipient}}
}

// Open returns an instance that counts a session's unknown recipients.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return &instance{filter: f}, nil
}

// Close closes the files.
func (f *Filter) Close() error {
	var errs []error
	for _, c := range f.checks {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

// instance is the filter at work on one session.
type instance struct {
	filter  *Filter
	unknown int
}

// Close does nothing.
func (*instance) Close() error { return nil }

// Recipient looks one recipient up.
func (i *instance) Recipient(ctx context.Context, tx *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	f := i.filter
	if !tx.Session.IsOurs(r.Address) {
		return pipeline.Verdict{Reason: "not in a domain of ours"}, nil
	}
	// A dot at the end of the domain names the same host, and no list has it.
	d, err := f.lookUp(ctx, strings.TrimSuffix(lower(r.Address), "."), tx)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	if d.known {
		return pipeline.Verdict{Reason: d.reason}, nil
	}
	v := f.answer
	v.Reason = d.reason
	if d.reply.Code != 0 {
		v.Action, v.Reply = pipeline.Reject, d.reply
		if d.reply.Code < 500 { // put off, and that does not say that there is nobody
			v.Action = pipeline.Defer
			return v, nil
		}
	}
	i.unknown++
	v.Symbols = []pipeline.Symbol{{Name: Symbol, Detail: fmt.Sprintf("%d unknown recipients in this session", i.unknown)}}
	return v, nil
}

// decision is what all checks together say of a recipient.
type decision struct {
	known  bool
	reply  reply.Reply // what the peer hears about one that is not; zero: what the filter says
	reason string
}

// lookUp asks the checks, and says who has decided.
func (f *Filter) lookUp(ctx context.Context, address string, tx *pipeline.Transaction) (decision, error) {
	domain := envelope.Domain(address)
	asked, last := 0, ""
	var failed error
	for _, c := range f.checks {
		if c.domains != nil {
			if _, ok := c.domains.Match(domain); !ok {
				continue
			}
		}
		if err := ctx.Err(); err != nil { // one that is not asked any more might decide
			return decision{}, errors.Join(failed, fmt.Errorf("%s: there is no time left: %w", c.name(), err))
		}
		a, err := c.ask(ctx, address, tx)
		if err == nil && a.answer == noOpinion {
			continue
		}
		asked, last = asked+1, c.name()
		switch {
		case err != nil:
			failed = errors.Join(failed, fmt.Errorf("%s: %w", c.name(), err))
		case a.answer == refused:
			return decision{reply: a.reply, reason: "refused by " + c.name()}, nil
		case a.answer == valid && !f.all:
			return decision{known: true, reason: "known to " + c.name()}, nil
		case a.answer == unknown && f.all:
			return decision{reason: "unknown to " + c.name()}, nil
		}
	}
	switch {
	case failed != nil:
		return decision{}, failed
	case asked == 0:
		return decision{known: true, reason: "no check is asked about " + reply.Clean(domain, 100)}, nil
	case f.all:
		return decision{known: true, reason: "known to all checks"}, nil
	case asked == 1:
		return decision{reason: "unknown to " + last}, nil
	}
	return decision{reason: fmt.Sprintf("unknown to all %d checks", asked)}, nil
}
