// Package spp is the filter "spp": it runs the programs of qmail-spp, unchanged,
// while a client speaks, and control/smtpplugins as it stands.
//
//	[filter.spp]
//	file = "/var/qmail/control/smtpplugins"
//	user = "spp"
//
// A chain that names spp without a file reads smtpplugins of the control folder.
// In place of a file, the programs may stand in the configuration:
//
//	[filter.spp]
//	connection = ["/usr/local/spp/greetdelay"]
//	rcpt       = ["/usr/local/spp/ifauthskip", ":test -n \"$SMTPHELOHOST\" || echo E550 who are you"]
//
// # The file
//
// A line in brackets begins a section; only the letter behind the bracket
// counts: [connection], [helo], [mail], [rcpt], [data] and [auth], with Sagredo's
// qmail also [pass]. The other lines are programs, in their order: a path as a
// whole, or behind a colon a command for /bin/sh. Lines that begin with # are
// comments; a section that there is not is passed over. A path that is not
// absolute, and the programs' working directory, begin at the folder above that
// of the file, /var/qmail. A changed file is read again; one that is broken
// leaves what was read before in force.
//
// variant says whose qmail the file is from:
//
//	stock     programs run unless NOSPP is in the client's environment
//	sagredo   programs run only if ENABLE_SPP is; there is [pass]
//	aqmail    as stock, and the file may be missing
//
// SPPCONFFILE in the client's environment names another file, which is read for
// each session. The client's environment is what tcprules say of it, or what the
// trusted caller of a shim has. He cannot name a file that somebody else than root
// or the daemon's user could have written, or put into its place; and no variable
// of his that would tell a program what to run (PATH, LD_PRELOAD, BASH_ENV, ...) is
// passed on.
//
// # The programs
//
// A program is started for each command of the client, with nothing on its
// descriptor 0; what it writes on 2 goes to the log, at most 2000 bytes of it,
// and what it writes on 1 are commands, a line each. It has the client's
// environment, TCPREMOTEIP, TCPREMOTEPORT and TCPREMOTEHOST, RELAYCLIENT for who
// may relay, and
//
//	SMTPHELOHOST       what the client calls itself
//	SMTPMAILFROM       the sender
//	SMTPRCPTTO         the recipient
//	SMTPRCPTCOUNT      how many recipients were accepted before
//	SMTPRCPTCOUNTALL   how many were asked about, with this one
//	SMTPRCPTHOSTSOK    1 if we take mail for the recipient from this client, else 0
//	SMTPAUTHUSER       who has logged in; TCPREMOTEINFO is the same
//	POSTERN_EXPLAIN    1 where postern explain asks, and there is no client
//
// Its exit code means nothing, but for 120. Behind A, D, E, N, O and R nothing is
// read. The commands:
//
//	A            no more programs in this session
//	N            no more programs for this command
//	O            likewise, and the filters of the chain that stand behind this one are
//	             not asked about this sender or recipient. They still judge the message
//	E550 text    the command is refused; with a code of 4xx, or without one, put off
//	R550 text    likewise, and the connection is closed
//	D            the connection is closed without a word
//	LM LR LDtext the next MAIL, RCPT or DATA, and those that follow, are refused with the text
//	Ptext        the client hears the text in front of the answer
//	Sname=value  a variable, for the programs that follow in this session
//	Uname        it is unset, for them
//	Hname: value a field, for the header of the message, below our Received
//	Caddress     another sender or recipient, in place of the client's
//
// What a program says counts as a whole or not at all. It is bounded, and cleaned
// of whatever does not belong into an answer or a header. The enhanced code of a
// text may stand behind its code, or at its end, "(#5.7.1)".
//
// # What differs from qmail
//
// A program has the filter's timeout to answer, with the others for the same
// command. It is killed then, and what it has started is killed when it ends.
// One that takes longer, crashes, exits 120, cannot be started or writes too much
// has failed; qmail answers 451 then, and so do we, unless on_error says
// otherwise.
//
// We have no answer of our own between DATA and the message: [data] is asked when
// the message has come, and its refusal is the message's. It still cannot see it.
//
// The entrance decides first who may relay. A recipient that it refuses is no
// program's business, so that in our SMTP server SMTPRCPTHOSTSOK is always 1, and
// SMTPRCPTCOUNTALL does not count it; neither O nor RELAYCLIENT opens the relay,
// and no variable that a program sets changes what Postern does. A recipient
// that C puts in may lie anywhere.
//
// A login begins the session anew, so [connection] and [helo] run once more for
// the user. [auth] runs behind them, before the first MAIL, when the client has
// heard already that the login succeeded: it refuses the mail. SMTPAUTHMETHOD is
// not known. Who may log in, and has not yet, hears at MAIL what [connection] and
// [helo] refuse. A refusal there is for the session, as is what they say with
// H and L; with qmail, H and L are forgotten behind the first message. A client
// that gives its name again is judged by the new one: H and L of [helo] are forgotten.
//
// E and R with a code of 2xx, which refuse nothing: in [connection] and [helo]
// the session goes on as with N, with our own words; in [rcpt] and [pass] the
// recipient is dropped without a word, as qmail does; elsewhere the program has
// failed. What P prints stands in front of our answer as a line of it, with its
// code. Nothing can be said in front of the answer to EHLO or HELO but a refusal.
//
// [pass] runs right behind [rcpt], and not when the other filters of the chain
// have let the recipient pass; where that matters, give a second filter of this
// kind, with pass alone, the last place.
//
// # Shims
//
// Where qmail-smtpd keeps the dialogue, all sections run before the message, from
// the envelope and the trusted environment; what is refused there is the
// message's or, for a recipient, his. Nobody hears what P prints, and no
// connection is closed. Do not run the programs in qmail-smtpd as well.
package spp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// Name is the filter's name in the configuration.
const Name = "spp"

// Options are the filter's part of the configuration. Zero values mean the
// defaults.
type Options struct {
	File string `toml:"file" doc:"the list of programs, like control/smtpplugins" path:"file" unset:"control/smtpplugins, if there is one"`
	// Variant is stock if it is "".
	Variant string `toml:"variant" doc:"whose qmail the list is from: stock runs programs unless NOSPP is in the client's environment, sagredo only if ENABLE_SPP is, and knows [pass]; aqmail is stock, with a file that may be missing" oneof:"stock|sagredo|aqmail"`

	Connection []string `toml:"connection" doc:"in place of a file: programs for a connection; each is a path, or behind a colon a command for the shell"`
	Helo       []string `toml:"helo" doc:"likewise for HELO and EHLO"`
	Auth       []string `toml:"auth" doc:"likewise for a login"`
	Mail       []string `toml:"mail" doc:"likewise for MAIL"`
	Rcpt       []string `toml:"rcpt" doc:"likewise for RCPT"`
	Pass       []string `toml:"pass" doc:"likewise for RCPT, behind those of rcpt"`
	Data       []string `toml:"data" doc:"likewise for DATA"`

	User        string        `toml:"user" doc:"the user that the programs run as, a name or a number" runs:"user" unset:"the daemon's"`
	Memory      int64         `toml:"memory" doc:"how much memory each program may have" unit:"bytes" min:"0" unset:"2 GB"`
	CPU         time.Duration `toml:"cpu" doc:"how much processor time each program may use" unset:"the filter's timeout"`
	MaxFile     int64         `toml:"max_file" doc:"how large a file may become that a program writes to, its own logs among them" unit:"bytes" min:"1"`
	Concurrency int           `toml:"concurrency" doc:"how many programs may run at the same time; others wait" min:"1"`
}

const (
	defaultConcurrency = 50
	defaultMaxFile     = 4 << 30
	maxConcurrency     = 1000
)

// variant is a family of qmail's.
type variant struct {
	name     string
	asked    bool // programs run only if the environment asks for it
	pass     bool // there is [pass]
	optional bool // the file may be missing
}

var variants = [...]variant{
	{name: "stock"},
	{name: "sagredo", asked: true, pass: true},
	{name: "aqmail", optional: true},
}

// off reports whether an environment switches the programs off.
func (v variant) off(env map[string]string) bool {
	if v.asked {
		_, on := env[envOn]
		return !on
	}
	_, off := env[envOff]
	return off
}

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{Variant: variants[0].name, Concurrency: defaultConcurrency, MaxFile: defaultMaxFile}
	}, New)
}

// Filter is the spp filter. It is safe for concurrent use.
type Filter struct {
	log     *slog.Logger
	variant variant
	home    string // where relative paths begin
	listed  plugins
	file    *rules.LineFile[plugins] // nil: they are listed
	runner  runner
}

// New makes an spp filter. It uses the environment's Log, Now and Programs. The
// errors say by a method Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	f := &Filter{log: env.Log, home: "/"}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if wrong := f.configure(&o); len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	if o.File != "" {
		f.home = homeOf(o.File)
		if err := f.open(o.File, env.Now); err != nil {
			return nil, pipeline.AtKey("file", err)
		}
	}
	f.runner = newRunner(env.Programs, f.log, o)
	f.warn()
	return f, nil
}

// configure says what is wrong with the options.
func (f *Filter) configure(o *Options) (wrong []error) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	f.variant = variants[0]
	known := o.Variant == ""
	for _, v := range variants {
		if v.name == o.Variant {
			f.variant, known = v, true
		}
	}
	if !known {
		bad("variant", "%q: write stock, sagredo or aqmail", reply.Clean(o.Variant, 80))
	}
	listed := false
	for e, list := range [events][]string{o.Connection, o.Helo, o.Auth, o.Mail, o.Rcpt, o.Pass, o.Data} {
		if len(list) > maxPrograms {
			bad(event(e).String(), "%d programs, at most %d", len(list), maxPrograms)
			continue
		}
		for i, line := range list {
			at := fmt.Sprintf("%s[%d]", event(e), i)
			if err := checkProgram(line); err != nil {
				bad(at, "%w", err)
			} else if line[0] != ':' && !filepath.IsAbs(line) {
				bad(at, "%q is no absolute path", reply.Clean(line, 200))
			}
			listed = true
		}
		f.listed.of[e] = list
	}
	switch {
	case listed && o.File != "":
		bad("file", "there are programs in the configuration, too: write one of the two")
	case o.File != "" && !filepath.IsAbs(o.File):
		bad("file", "%q is no absolute path", reply.Clean(o.File, 200))
	case !listed && o.File == "" && !f.variant.optional:
		wrong = append(wrong, errors.New("there are no programs: write file = \"/var/qmail/control/smtpplugins\", or lists like rcpt = [\"/path/of/a/program\"]"))
	}
	if o.Memory < 0 {
		bad("memory", "%d: write a size", o.Memory)
	}
	if o.CPU < 0 || o.CPU > 0 && o.CPU < time.Second {
		bad("cpu", "%v: write at least 1s", o.CPU)
	}
	if o.MaxFile < 0 {
		bad("max_file", "%d: write a size", o.MaxFile)
	}
	if o.Concurrency < 0 || o.Concurrency > maxConcurrency {
		bad("concurrency", "%d: write 1 to %d", o.Concurrency, maxConcurrency)
	}
	return wrong
}

// open reads the list of programs, and has it watched.
func (f *Filter) open(path string, now func() time.Time) error {
	changed := func(err error) {
		if err != nil {
			f.log.Warn("the list of spp's programs has changed and cannot be read: the one before stays in force", "file", path, "error", err)
		} else {
			f.log.Info("the list of spp's programs was read again", "file", path)
		}
	}
	made := func(lines []rules.Line) (plugins, error) { return parsePlugins(lines, f.variant) }
	file, err := rules.OpenLineFile(path, maxFile, rules.FileOptions{Now: now, Changed: changed}, made)
	if errors.Is(err, fs.ErrNotExist) && f.variant.optional {
		return nil
	}
	f.file = file
	return err
}

// warn tells what the administrator would want to know of his list.
func (f *Filter) warn() {
	p := f.plugins()
	if p.ignored > 0 {
		f.log.Warn("the list of spp's programs has lines that are in no section: they do nothing", "lines", p.ignored)
	}
	for e, list := range p.of {
		for _, line := range list {
			path, _ := resolve(line, f.home)
			if info, err := os.Stat(path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
				f.log.Warn("a program of spp is none: what it is to judge is put off until it is", "section", event(e).String(), "program", reply.Clean(path, 200), "error", err)
			}
		}
	}
}

// plugins are the programs in force.
func (f *Filter) plugins() plugins {
	if f.file == nil {
		return f.listed
	}
	return f.file.Get()
}

// Open begins a session, with the programs that are in force for it.
func (f *Filter) Open(_ context.Context, s *pipeline.Session) (pipeline.Instance, error) {
	i := &instance{filter: f, home: f.home}
	if i.off = f.variant.off(s.Env); i.off {
		return i, nil
	}
	path := s.Env[envFile]
	if path == "" {
		i.plugins = f.plugins()
		return i, nil
	}
	if strings.IndexByte(path, 0) >= 0 {
		return nil, errors.New(envFile + " holds a NUL")
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(f.home, path)
	}
	var err error
	if s.PID > 0 { // a shim's caller, whose word about a client makes him nobody's user here
		if path, err = guarded(path); err != nil && !(f.variant.optional && errors.Is(err, fs.ErrNotExist)) {
			return nil, fmt.Errorf("%s: %w", envFile, err)
		}
	}
	i.home = homeOf(path)
	if i.plugins, err = readPlugins(path, f.variant); err != nil {
		return nil, fmt.Errorf("%s: %w", envFile, err)
	}
	return i, nil
}

// Traits of a filter that protects. It judges at all stages but the last, since
// the list of programs may change.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{
		OnError: pipeline.ErrorDefers,
		Stages:  []pipeline.Stage{pipeline.AtConnect, pipeline.AtHelo, pipeline.AtSender, pipeline.AtRecipient, pipeline.AtMessage},
	}
}
