// Package qfilter is the filter "qfilter": it runs the programs of
// qmail-qfilter, unchanged, on every message.
//
//	[filter.qfilter]
//	command = ["/usr/local/bin/deny-filetypes", "--", "/usr/local/bin/add-footer", "-x"]
//	user    = "qfilter"
//	timeout = "30s"
//
// # The programs
//
// command is what stands behind qmail-qfilter on its command line: programs with
// their arguments, "--" between two of them. programs is the same as a list of
// lists. A program is a path, or a name that is looked for in PATH. They run one
// after the other, each on what those before it have made of the message:
//
//	0   the message, from its first byte; it can seek, and cannot write
//	1   the new message; one that stays empty leaves the message as it is
//	2   its lines go to the log, at most 2000 bytes of them
//	3   the envelope as qmail-queue reads it: F, sender, NUL; T, recipient, NUL; ...; NUL
//	4   the new envelope; one that stays empty leaves the envelope as it is
//	5   the program to be run in place of qmail-queue, see below
//	6   a text for the peer, for exit codes 82 and 88: D or Z, and the words
//
// 1, 4 and 5 are temporary files without a name. A program has no other
// descriptor. It has the environment of the caller of a shim, if he is trusted,
// but for what would tell it what to run (LD_PRELOAD, BASH_ENV, PERL5OPT, ...),
// or what our SMTP server knows of the client: TCPREMOTEIP, TCPREMOTEPORT,
// TCPREMOTEHOST, SMTPHELOHOST, SMTPAUTHUSER, and RELAYCLIENT for who may relay;
// PATH as here, /usr/local/bin:/usr/bin:/bin; what the table env says; and
//
//	QMAILUSER, QMAILHOST   the sender's parts, split at the last @
//	QMAILRCPTS             the recipients, each with a line end
//	NUMRCPTS               how many there are
//	QMAILPPID              the process that has called the shim, or our own
//	ENVSIZE, MSGSIZE       the bytes of envelope and message
//	ERROR_FD               6, for programs that ask where their text goes
//	POSTERN_EXPLAIN        1 where postern explain asks, and there is no message
//
// All of these are set anew for each program; QMAILNAME is not set. QMAILRCPTS
// is left out if it is longer than an operating system lets one variable be
// (128 KiB on Linux), since no program could be started with it; log and trace
// tell so, and the program finds the recipients on descriptor 3.
//
// # Exit codes
//
//	0          the next program
//	11 to 40   the message is refused, and by 115; 31 is the usual one
//	71         it is put off
//	82, 88     with a text on descriptor 6: refused (D) or put off (Z)
//	99         it is taken and dropped, without a word
//	others     the program failed: what on_error says
//
// exits changes that: the codes are its keys, and a value is continue (as 0),
// accept, reject, defer, discard, quarantine or error, or what the peer hears:
//
//	exits = { 31 = "554 5.7.1 no programs by mail", 40 = "quarantine" }
//
// A program that dies of a signal, cannot be run, or is not done when the
// filter's time is over has failed. What it wrote does not count then. When a
// program has ended, and when it is killed, so is whatever it has started.
//
// # What it writes
//
// The new message is taken to the byte, and the body is not copied if it is the
// old one. With lines = "repair", which is the default, CR LF and CR become LF,
// a NUL is left out, and the last line gets its LF; with lines = "refuse" a
// message that needs it is a failure. A message that came with such bytes, from
// an entrance that keeps them, stays as the program has written it.
//
// The new envelope is compared with the old one. A recipient that is no longer
// there is dropped, without a report to anybody; one that is new gets the
// message as the others do; where all are new, they take the place of the old. One that only has another
// address in its place keeps what the client wants to be told about it (NOTIFY, ORCPT),
// if message and sender stay as they are.
// An envelope that ends early or breaks the format is a failure.
//
// may_change says what they may write at all: may_change = [] is for programs that
// only look, one of which would otherwise put a stray line of its own in the place
// of every message.
//
// Programs see the envelope as it came, with the recipients that the message
// still goes to, and not what other filters have made of it: programs that build
// on one another belong into one command.
//
// # Descriptor 5
//
// qmail-qfilter runs the program whose path is written there, and a NUL, instead
// of qmail-queue. Postern delivers by itself; so the table queues says what such
// a path means, with the same words as exits:
//
//	queues = { "/var/qmail/bin/qmail-queue" = "continue", "/usr/local/bin/quarantine" = "quarantine" }
//
// A path that is not there is a failure, and so is one that is cut off: the
// message must not go where the program did not want it to.
//
// # Limits
//
// A program may use memory bytes of memory and cpu of processor time. What it writes
// to descriptor 1, 4 or 5 may be max_output bytes longer than the message, and no
// file that it writes to, be it a log of its own, may become larger than max_file;
// who writes more is killed, and has failed. So has who writes to a disk that is full
// then. At most concurrency messages are with programs at a time, others wait. user
// is the user that the programs run as.
package qfilter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// Name is the filter's name in the configuration.
const Name = "qfilter"

// Options are the filter's part of the configuration. Zero values mean the
// defaults of Kind.
type Options struct {
	Command  []string   `toml:"command" doc:"the programs with their arguments, as on qmail-qfilter's command line: -- stands between two programs"`
	Programs [][]string `toml:"programs" doc:"the same as a list of lists, a program and its arguments each; one of the two is written"`
	// MayChange is both if it is nil.
	MayChange []string `toml:"may_change" doc:"what the programs may change, message and envelope; one that writes what it may not has failed" unset:"both"`
	// Exits and Queues hold words that decide, see the package.
	Exits       map[string]string `toml:"exits" doc:"what exit codes mean: continue, accept, reject, defer, discard, quarantine, error, or a reply like 554 5.7.1 no programs by mail" unset:"11 to 40 and 115 reject, 71 defer, 82 and 88 what descriptor 6 says, 99 discard, others error"`
	Queues      map[string]string `toml:"queues" doc:"what it means that a program names another qmail-queue on descriptor 5: its path, and a word as for exits" unset:"error"`
	Env         map[string]string `toml:"env" doc:"further variables of the programs' environment"`
	Dir         string            `toml:"dir" doc:"the folder that the programs start in" path:"file" unset:"/"`
	User        string            `toml:"user" runs:"user" doc:"the user that the programs run as, a name or a number; a new one needs a restart of the daemon" unset:"the daemon's own"`
	Memory      int64             `toml:"memory" doc:"how much memory each program may have" unit:"bytes" min:"0" unset:"2 GB"`
	CPU         time.Duration     `toml:"cpu" doc:"how much processor time each program may use" unset:"the filter's timeout"`
	MaxOutput   int64             `toml:"max_output" doc:"how much longer than the message may be what each program writes to each of its descriptors" unit:"bytes" min:"1"`
	MaxFile     int64             `toml:"max_file" doc:"how large a file may become that a program writes to, its own logs among them" unit:"bytes" min:"1"`
	Concurrency int               `toml:"concurrency" doc:"how many messages are with programs at a time; others wait" min:"1"`
	// Lines is repair if it is "".
	Lines string `toml:"lines" doc:"what is done with CR and NUL that a program writes: they are repaired, or the program has failed" oneof:"repair|refuse"`
}

const (
	defaultMaxOutput   = 16 << 20
	defaultMaxFile     = 4 << 30
	defaultConcurrency = 20
)

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{MaxOutput: defaultMaxOutput, MaxFile: defaultMaxFile, Concurrency: defaultConcurrency, Lines: message.Repair.String()}
	}, New)
}

// Filter is the qfilter filter. It is safe for concurrent use.
type Filter struct {
	env      pipeline.Env
	log      *slog.Logger
	o        Options
	commands []command
	exits    map[int]decision
	queues   map[string]decision
	lines    message.Lines
	may      map[string]bool // be changed
	places   chan struct{}
	free     func(*os.File) (int64, error)
}

// New makes a qfilter filter. It uses the environment's Log, Spool and Programs.
// The errors say by a method Key which key they are about. A program that is
// missing is told to the log, and is an error when it is needed.
func New(env pipeline.Env, o Options) (*Filter, error) {
	f := &Filter{env: env, log: env.Log, o: o, free: freeSpace}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.o.MaxOutput == 0 {
		f.o.MaxOutput = defaultMaxOutput
	}
	if f.o.MaxFile == 0 {
		f.o.MaxFile = defaultMaxFile
	}
	if f.o.Concurrency == 0 {
		f.o.Concurrency = defaultConcurrency
	}
	if f.o.Dir == "" {
		f.o.Dir = "/"
	}
	if err := errors.Join(f.configure()...); err != nil {
		return nil, err
	}
	f.places = make(chan struct{}, f.o.Concurrency)
	for i := range f.commands {
		if _, err := f.commands[i].find(f.path()); err != nil {
			f.log.Warn("qfilter has a program that cannot be run, and puts mail off until it can", "program", f.commands[i].name(), "error", err)
		}
	}
	return f, nil
}

// Traits of a filter that protects.
func (*Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter, which keeps nothing of a session.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return instance{f}, nil
}

// instance is the filter at work on one session.
type instance struct{ *Filter }

// Close does nothing.
func (instance) Close() error { return nil }

// Message runs the programs on a message.
func (i instance) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	f := i.Filter
	if f.env.Programs == nil {
		return pipeline.Verdict{}, errors.New("there is nothing here that starts programs")
	}
	select {
	case f.places <- struct{}{}:
		defer func() { <-f.places }()
	case <-ctx.Done():
		return pipeline.Verdict{}, fmt.Errorf("%d messages are with programs already: %w", cap(f.places), ctx.Err())
	}
	r, err := f.begin(tx, m)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	defer r.close()
	d, err := r.all(ctx)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	return r.verdict(d)
}

// verdict is what has become of the message and its envelope.
func (r *run) verdict(d decision) (pipeline.Verdict, error) {
	v := pipeline.Verdict{Action: d.action, Reply: d.reply, Reason: r.reason(d)}
	switch d.action {
	case pipeline.Reject, pipeline.Defer, pipeline.Discard:
		return v, nil
	}
	if err := r.envelopeEdits(&v); err != nil {
		return pipeline.Verdict{}, err
	}
	if v.Action == pipeline.Discard || r.changed == nil {
		return v, nil
	}
	head, body, err := r.filter.split(r.changed.File, r.changed.size, r.message)
	if err != nil {
		return pipeline.Verdict{}, fmt.Errorf("the message that %s wrote cannot be used: %w", r.changed.by, err)
	}
	if head != nil {
		v.Edits = append(v.Edits, pipeline.Edit{Kind: pipeline.EditHead, Head: head})
	}
	v.Body = body
	return v, nil
}
