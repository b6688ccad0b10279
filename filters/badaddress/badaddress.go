// Package badaddress is the filter "badaddress": it refuses senders and
// recipients that are on lists, as control/badmailfrom and control/badrcptto of
// qmail and its patches have them.
//
//	[filter.badaddress]
//	sender_files    = ["/var/qmail/control/badmailfrom"]
//	recipient_files = ["/var/qmail/control/badrcptto"]
//	senders    = ["@spam.example", "*-bounce@*.bad.example", "!friend@spam.example"]
//	recipients = ["former@example.org"]
//
// # Lists
//
// An entry is an address or @host, as in badmailfrom of plain qmail: @host is
// the host itself and not what is below it. With the wildcards of SPAMCONTROL
// and indimail (badmailpatterns), an entry that holds * (anything) or ? (one
// character) is compared with the whole address, and one that begins with ! is
// an exception from all others of its list, wherever it stands; one that stands
// in "senders" or "recipients" is an exception from the files as well. The case
// of letters does not count, nor a dot at the end of the domain, nor whether it
// is written in ASCII (xn--) or in Unicode. With dialect =
// "regexes" an entry is a POSIX extended regular expression that is found
// anywhere in the address, and one that begins with ! refuses the addresses in
// which it is not found, as in the qregex patch. One that is found in every address
// is a mistake.
//
// Where none of the four lists is written, they are control/badmailfrom and
// control/badrcptto, those that there are.
//
// A file has an entry a line; lines that begin with # are comments. It must be
// there when the configuration is read. It is read again when it changes, within
// a second; one that is broken or gone then leaves what was read before in force,
// and the log says so.
//
// # Who is judged
//
// Everybody, as by qmail-smtpd, our own users too. For the lists of
// badmailfromnorelay and badrcpttonorelay make a second filter of this kind,
// with when = 'external'. The sender <>, that of bounces, is on no list.
//
// Senders are refused at MAIL, where there is one; recipients at RCPT, each by
// itself; by a shim a refused sender refuses the message, and of refused
// recipients the answer is as "mixed" says.
//
// Our SMTP server heeds control/badmailfrom by itself, before any filter; what is
// said here of that file is about mail that comes by a shim from a caller who
// does not heed it. control/badrcptto is heeded by this filter only.
package badaddress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// Name is the filter's name in the configuration.
const Name = "badaddress"

// Options are the filter's part of the configuration.
type Options struct {
	Senders        []string `toml:"senders" doc:"senders that are refused: addresses, @host, patterns with * and ?, exceptions that begin with !"`
	SenderFiles    []string `toml:"sender_files" doc:"files of such senders, an entry a line, like control/badmailfrom" unset:"control/badmailfrom where there is no list at all"`
	Recipients     []string `toml:"recipients" doc:"recipients that are refused, likewise"`
	RecipientFiles []string `toml:"recipient_files" doc:"files of such recipients, like control/badrcptto" unset:"control/badrcptto where there is no list at all"`
	// Dialect is globs if it is "", Action reject.
	Dialect       string `toml:"dialect" doc:"what entries are: addresses with wildcards, or the regular expressions of qregex" oneof:"globs|regexes"`
	Action        string `toml:"action" doc:"what becomes of who is on a list; defer: it may be tried again" oneof:"reject|defer"`
	SenderText    string `toml:"sender_text" doc:"what the peer hears about a sender" unset:"mail from this sender is not accepted here"`
	RecipientText string `toml:"recipient_text" doc:"what the peer hears about a recipient" unset:"mail to this recipient is not accepted here"`
}

const (
	globs   = "globs"
	regexes = "regexes"

	recipientText = "mail to this recipient is not accepted here"

	// maxFiles bounds the files of one side, maxFile one in bytes, maxList the
	// entries that are written into the configuration.
	maxFiles = 50
	maxFile  = 64 << 20
	maxList  = 10_000
)

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{Dialect: globs, Action: reply.Reject.String()}
	}, New)
}

// Filter is the badaddress filter. It is safe for concurrent use, and its own
// instance.
type Filter struct{ senders, recipients side }

// side is the lists of one side of the envelope, and what its refusal is.
type side struct {
	lists   []list
	except  *rules.AddressList
	verdict pipeline.Verdict
}

// list is one list of addresses.
type list struct {
	name string // "" for the configuration's own
	own  *rules.AddressList
	file *rules.LineFile[*rules.AddressList]
}

// New makes a badaddress filter, and reads its files. It uses the environment's
// Log and Now. The errors say by a method Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	f := &Filter{}
	var wrong []error
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	dialect := rules.Globs
	switch o.Dialect {
	case "", globs:
	case regexes:
		dialect = rules.Regexes
	default:
		bad("dialect", "%q: write globs or regexes", reply.Clean(o.Dialect, 80))
	}
	action, sender, recipient := pipeline.Reject, reply.SenderDenied, reply.Make(reply.SenderDenied.Code, reply.SenderDenied.Enhanced, recipientText)
	switch o.Action {
	case "", reply.Reject.String():
	case reply.Defer.String():
		action, sender, recipient = pipeline.Defer, reply.Make(450, sender.Enhanced, sender.Text), reply.Make(450, recipient.Enhanced, recipient.Text)
	default:
		bad("action", "%q: write reject or defer", reply.Clean(o.Action, 80))
	}
	if len(o.Senders)+len(o.SenderFiles)+len(o.Recipients)+len(o.RecipientFiles) == 0 {
		wrong = append(wrong, errors.New("there is no list, nor a control/badmailfrom or control/badrcptto: write senders, sender_files, recipients or recipient_files"))
	}
	for _, s := range []struct {
		side           *side
		key, filesKey  string
		entries, files []string
		textKey, text  string
		otherwise      reply.Reply
	}{
		{side: &f.senders, key: "senders", entries: o.Senders, filesKey: "sender_files", files: o.SenderFiles, textKey: "sender_text", text: o.SenderText, otherwise: sender},
		{side: &f.recipients, key: "recipients", entries: o.Recipients, filesKey: "recipient_files", files: o.RecipientFiles, textKey: "recipient_text", text: o.RecipientText, otherwise: recipient},
	} {
		s.side.verdict = pipeline.Verdict{Action: action, Reply: s.otherwise}
		if s.text != reply.Clean(s.text, reply.MaxText) {
			bad(s.textKey, "it must be one line of at most %d ASCII characters", reply.MaxText)
		} else if s.text != "" {
			s.side.verdict.Reply = reply.Make(s.otherwise.Code, s.otherwise.Enhanced, s.text)
		}
		wrong = append(wrong, s.side.read(s.key, s.entries, dialect)...)
		wrong = append(wrong, s.side.open(env, s.filesKey, s.files, dialect)...)
	}
	if len(wrong) == 0 && len(f.senders.lists)+len(f.recipients.lists) == 0 {
		wrong = append(wrong, errors.New("there are exceptions and nothing that they are exceptions from: write senders, sender_files, recipients or recipient_files"))
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	return f, nil
}

// read takes the entries that the configuration holds. In the dialect of globs
// its exceptions hold for the files, too.
func (s *side) read(key string, entries []string, dialect rules.Dialect) (wrong []error) {
	if len(entries) > maxList {
		return []error{pipeline.AtKey(key, fmt.Errorf("%d entries, at most %d: write them into a file", len(entries), maxList))}
	}
	var own, except []rules.Line
	for i, e := range entries {
		at := fmt.Sprintf("%s[%d]", key, i)
		if err := checkEntry(e, dialect); err != nil {
			wrong = append(wrong, pipeline.AtKey(at, err))
			continue
		}
		if text, not := strings.CutPrefix(e, "!"); not && dialect == rules.Globs {
			except = append(except, rules.Line{No: i + 1, Text: text})
		} else {
			own = append(own, rules.Line{No: i + 1, Text: e})
		}
	}
	if len(wrong) > 0 {
		return wrong
	}
	var err, other error
	if s.except, err = rules.NewAddressList(except, rules.Globs); err != nil {
		return []error{pipeline.AtKey(key, err)}
	}
	l := list{}
	if l.own, other = rules.NewAddressList(own, dialect); other != nil {
		return []error{pipeline.AtKey(key, other)}
	}
	if len(own) > 0 {
		s.lists = append(s.lists, l)
	}
	return nil
}

// checkEntry says what is wrong with an entry of the configuration. Files are
// not asked so much: what plain qmail passes over in badmailfrom, we do.
func checkEntry(e string, dialect rules.Dialect) error {
	switch _, err := rules.NewAddressList([]rules.Line{{No: 1, Text: e}}, dialect); {
	case e == "":
		return errors.New("it is empty")
	case err != nil:
		return errors.New(strings.TrimPrefix(err.Error(), "line 1: "))
	case dialect == rules.Globs && !strings.ContainsAny(e, "@*?"):
		return fmt.Errorf("%q is no address: write user@example.org, @example.org, or a pattern with * or ?", reply.Clean(e, 80))
	case !envelope.ValidBytes(e):
		return errors.New("it holds a control character")
	case dialect == rules.Regexes:
		return checkRegex(e)
	}
	return nil
}

// checkRegex refuses an expression that is found in every address, as one is that
// has come to be empty behind a bar: nobody could write any more. One that is
// negated has meant to refuse much.
func checkRegex(e string) error {
	l, err := rules.NewAddressList([]rules.Line{{No: 1, Text: e}}, rules.Regexes)
	if err != nil || strings.HasPrefix(e, "!") {
		return err
	}
	for _, probe := range [...]string{"\x7f", "\x7f@\x7f"} { // no address that there is
		if _, found := l.Match(probe); !found {
			return nil
		}
	}
	return fmt.Errorf("%q is found in every address: write one that is found in those to refuse", reply.Clean(e, 80))
}

// open reads the files.
func (s *side) open(env pipeline.Env, key string, paths []string, dialect rules.Dialect) (wrong []error) {
	if len(paths) > maxFiles {
		return []error{pipeline.AtKey(key, fmt.Errorf("%d files, at most %d", len(paths), maxFiles))}
	}
	for i, path := range paths {
		at := fmt.Sprintf("%s[%d]", key, i)
		if !filepath.IsAbs(path) {
			wrong = append(wrong, pipeline.AtKey(at, fmt.Errorf("%q is no absolute path", reply.Clean(path, 200))))
			continue
		}
		file, err := openList(env.Log, env.Now, path, dialect)
		if err != nil {
			wrong = append(wrong, pipeline.AtKey(at, fmt.Errorf("%w; make the file, or correct it, or take it off the list", err)))
			continue
		}
		s.lists = append(s.lists, list{name: reply.Clean(path, 200), file: file})
	}
	return wrong
}

// openList reads a file, and has the log hear of what becomes of it.
func openList(log *slog.Logger, now func() time.Time, path string, dialect rules.Dialect) (*rules.LineFile[*rules.AddressList], error) {
	o := rules.FileOptions{Now: now, Changed: func(err error) {
		if err != nil {
			log.Error("a list of addresses cannot be read", "file", path, "error", err)
			return
		}
		log.Info("a list of addresses was read", "file", path)
	}}
	return rules.OpenLineFile(path, maxFile, o, func(lines []rules.Line) (*rules.AddressList, error) {
		l, err := rules.NewAddressList(lines, dialect)
		for i := 0; err == nil && dialect == rules.Regexes && i < len(lines); i++ {
			if err = checkRegex(lines[i].Text); err != nil {
				err = fmt.Errorf("line %d: %w", lines[i].No, err)
			}
		}
		return l, err
	})
}

// Traits of a filter that protects, from everybody.
func (f *Filter) Traits() pipeline.Traits {
	t := pipeline.Traits{OnError: pipeline.ErrorDefers}
	for _, s := range []struct {
		stage pipeline.Stage
		has   bool
	}{{pipeline.AtSender, len(f.senders.lists) > 0}, {pipeline.AtRecipient, len(f.recipients.lists) > 0}} {
		if s.has {
			t.Stages = append(t.Stages, s.stage)
		}
	}
	return t
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing: no file stays open.
func (f *Filter) Close() error { return nil }

// Sender looks the envelope sender up.
func (f *Filter) Sender(_ context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	return f.senders.judge(tx.Envelope.Sender), nil
}

// Recipient looks one recipient up.
func (f *Filter) Recipient(_ context.Context, _ *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	return f.recipients.judge(r.Address), nil
}

// judge looks an address up in all lists of its side.
func (s *side) judge(address string) pipeline.Verdict {
	forms := formsOf(address)
	for _, form := range forms {
		if line, ok := s.except.Match(form); ok {
			return pipeline.Verdict{Reason: "excepted by !" + reply.Clean(line, 200)}
		}
	}
	for _, l := range s.lists {
		entries, where := l.own, "the list"
		if l.file != nil {
			entries, where = l.file.Get(), l.name
		}
		if line, ok := entries.MatchAny(forms); ok {
			v := s.verdict
			v.Reason = fmt.Sprintf("%s has %q", where, reply.Clean(line, 200))
			return v
		}
	}
	return pipeline.Verdict{}
}

// formsOf are an address as it stands, and with its domain as others write the
// same host: without a dot at the end, in ASCII and in Unicode (RFC 5890).
func formsOf(address string) []string {
	forms := []string{address}
	at := strings.LastIndexByte(address, '@') + 1
	if at == 0 || len(address)-at > maxHost {
		return forms
	}
	add := func(domain string) {
		if form := address[:at] + domain; domain != "" && !slices.Contains(forms, form) {
			forms = append(forms, form)
		}
	}
	domain := strings.TrimSuffix(address[at:], ".")
	add(domain)
	if isPlain(domain) {
		return forms
	}
	if ascii, err := idna.Lookup.ToASCII(domain); err == nil {
		add(ascii)
		if unicode, err := idna.Lookup.ToUnicode(ascii); err == nil {
			add(unicode)
		}
	}
	return forms
}

// maxHost is the longest domain that can be one, in bytes of UTF-8.
const maxHost = 1000

// isPlain reports whether a domain has one form only.
func isPlain(domain string) bool {
	for i := range len(domain) {
		if domain[i] >= 0x80 {
			return false
		}
	}
	return !strings.Contains(strings.ToLower(domain), "xn--")
}
