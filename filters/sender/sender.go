// Package sender is the filter "sender": a stranger's envelope sender must be in
// a domain that exists and takes mail, and our own users may write under their
// own addresses only.
//
//	[filter.sender]
//	exists = true
//	own    = ["envelope", "from"]
//	file   = "/etc/postern/senders"
//
//	[[filter.sender.user]]
//	name      = "joe"
//	addresses = ["joe@example.org", "joe-*@example.org", "@joes-shop.example"]
//
// # The domain exists
//
// Of strangers' mail the sender's domain must have the form of a full host name
// (qualified = true), else 550 5.5.4 is answered, or it is an address literal,
// which is let pass; and it must have an MX, or an address for want of one
// (exists = true), else 550 5.1.8 is answered. A domain that says it takes no
// mail (a null MX, RFC 7505) is refused with 550 5.7.27. One that exists but has
// neither is refused as one that does not. Where the DNS cannot tell, the mail is
// put off, 451 4.4.3, or passes (trouble = "pass"). Where an MX is, its hosts are
// not looked up. Mail from <> has no domain, and passes.
//
// # Our own users
//
// With own = ["envelope"] a user who logged in may only use senders that are
// his, else he hears 553 5.7.1; with "from" each address of the From field must
// be his, too (or, with Sender in the message, that one must), else 550 5.7.1. <>
// is everybody's, as read receipts come from it. Relayed and local mail has no
// user, and is not judged.
//
// A user's addresses are those of his tables "user", of the file and of the cdb
// together: an address, a pattern with * and ?, @example.org for all of a domain,
// an exception that begins with !. The file has a user a line, "joe: joe@example.org
// sue@example.org", a user may have several lines, and lines that begin with #
// are comments. In the cdb the user's name, in lower case, is the key, and its
// value holds addresses, with blanks or commas between them. Both are read again
// when they change; one that is broken then leaves what was read before in
// force. A user who is nowhere has the address that he logs in with, if it is one,
// and otherwise none: he is refused, and the log says why. The case of letters
// counts nowhere.
//
// # Errors
//
// What cannot be looked up, in the DNS or a cdb, is no reason to refuse; a cdb
// that fails is an error, and by default the mail is put off (on_error = "defer").
package sender

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Name is the filter's name in the configuration.
const Name = "sender"

// Options are the filter's part of the configuration.
type Options struct {
	Exists    bool     `toml:"exists" doc:"a stranger's domain must have an MX or an address, and take mail"`
	Qualified bool     `toml:"qualified" doc:"a stranger's domain must have the form of a full host name"`
	Trouble   string   `toml:"trouble" doc:"what becomes of mail where the DNS cannot tell" oneof:"defer|pass"`
	Own       []string `toml:"own" doc:"where a user who logged in must use an address of his own" oneof:"envelope|from"`
	Users     []User   `toml:"user" doc:"users and their addresses"`
	File      string   `toml:"file" doc:"a file of users and their addresses, a user a line: joe: joe@example.org joe-*@example.org"`
	CDB       string   `toml:"cdb" doc:"a constant database from users to addresses"`
	Text      string   `toml:"text" doc:"what a user hears about an address that is not his" unset:"this is not an address of yours"`
}

// User is one user of the configuration.
type User struct {
	Name      string   `toml:"name" doc:"the name that he logs in with"`
	Addresses []string `toml:"addresses" doc:"his addresses: user@example.org, patterns with * and ?, @example.org, exceptions that begin with !"`
}

const (
	ownEnvelope = "envelope"
	ownFrom     = "from"
	pass        = "pass"

	notYours = "this is not an address of yours"
)

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{Exists: true, Qualified: true, Trouble: reply.Defer.String()}
	}, New)
}

// Filter is the sender filter. It is safe for concurrent use, and its own
// instance.
type Filter struct {
	exists, qualified, trouble bool
	envelope, from             bool
	users                      book
	text                       string
	resolver                   pipeline.Resolver
}

// New makes a sender filter. It uses the environment's Resolver, Log and Now. A
// Resolver that has a method LookupMX, as resolve.Resolver does, is asked by it;
// another only for addresses. The errors say by a method Key which key they are
// about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	f := &Filter{exists: o.Exists, qualified: o.Qualified, text: o.Text, resolver: env.Resolver}
	var wrong []error
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	switch o.Trouble {
	case "", reply.Defer.String():
		f.trouble = true
	case pass:
	default:
		bad("trouble", "%q: write defer or pass", reply.Clean(o.Trouble, 80))
	}
	for i, where := range o.Own {
		switch where {
		case ownEnvelope:
			f.envelope = true
		case ownFrom:
			f.from = true
		default:
			bad(fmt.Sprintf("own[%d]", i), "%q: write envelope or from", reply.Clean(where, 80))
		}
	}
	if f.text == "" {
		f.text = notYours
	} else if f.text != reply.Clean(f.text, reply.MaxText) {
		bad("text", "it must be one line of at most %d ASCII characters", reply.MaxText)
	}
	switch named := len(o.Users) > 0 || o.File != "" || o.CDB != ""; {
	case len(wrong) > 0:
	case named && !f.envelope && !f.from:
		bad("own", "there are users with addresses, and nothing for which they count: write own = [\"envelope\"], \"from\" or both")
	case !f.exists && !f.qualified && !f.envelope && !f.from:
		wrong = append(wrong, errors.New("it does nothing: write exists, qualified or own"))
	}
	wrong = append(wrong, f.users.read(env, o)...)
	if err := errors.Join(wrong...); err != nil {
		f.users.close() //nolint:errcheck // it was only read
		return nil, err
	}
	return f, nil
}

// Traits of a filter that protects.
func (f *Filter) Traits() pipeline.Traits {
	t := pipeline.Traits{OnError: pipeline.ErrorDefers}
	if f.exists || f.qualified || f.envelope {
		t.Stages = append(t.Stages, pipeline.AtSender)
	}
	if f.from {
		t.Stages = append(t.Stages, pipeline.AtMessage)
	}
	return t
}

// Open returns the filter as an instance.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return instance{f}, nil
}

// Close closes the cdb.
func (f *Filter) Close() error { return f.users.close() }

// instance is the filter in a session, whose end does not close it.
type instance struct{ *Filter }

// Close does nothing.
func (instance) Close() error { return nil }

// Sender judges the envelope sender.
func (f instance) Sender(ctx context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	sender := tx.Envelope.Sender
	switch {
	case sender == "" || sender == envelope.DoubleBounce:
		return pipeline.Verdict{}, nil
	case tx.Session.Standing == pipeline.Stranger:
		return f.domain(ctx, sender)
	case f.envelope && tx.Session.User != "":
		v, err := f.owned(tx.Session.User, sender)
		if v.Action == pipeline.Reject {
			v.Reply = reply.Make(553, v.Reply.Enhanced, f.text)
		}
		return v, err
	}
	return pipeline.Verdict{}, nil
}

// owned reports by a verdict whether an address is the user's.
func (f *Filter) owned(user, address string) (pipeline.Verdict, error) {
	is, err := f.users.owns(user, address)
	if err != nil || is {
		return pipeline.Verdict{}, err
	}
	reason := fmt.Sprintf("%s is no address of the user %s", reply.Clean(address, 200), reply.Clean(user, 100))
	if known, err := f.users.knows(user); err == nil && !known && !strings.Contains(user, "@") {
		reason += ", who has none: write them into the filter's users"
	}
	return pipeline.Verdict{Action: pipeline.Reject, Reply: reply.Make(550, reply.Enhanced{Subject: 7, Detail: 1}, f.text), Reason: reason}, nil
}

// Message judges the addresses of From, or the one of Sender.
func (f instance) Message(_ context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	user := tx.Session.User
	if user == "" || tx.Session.Standing == pipeline.Stranger {
		return pipeline.Verdict{}, nil
	}
	head := m.Head()
	field := "From"
	if len(head.Values("Sender")) > 0 {
		field = "Sender"
	}
	values := head.Values(field)
	if len(values) > 1 {
		return f.refuse(fmt.Sprintf("the message has %d fields %s", len(values), field)), nil
	}
	if len(values) == 0 {
		return f.refuse("the message has no field From"), nil
	}
	addresses, err := addressesOf(values[0])
	if err != nil {
		return f.refuse(fmt.Sprintf("%s cannot be read: %s", field, reply.Clean(err.Error(), 100))), nil
	}
	for _, a := range addresses {
		if v, err := f.owned(user, a); err != nil || v.Action != pipeline.Continue {
			v.Reason = field + ": " + v.Reason
			return v, err
		}
	}
	return pipeline.Verdict{}, nil
}

// refuse is the answer to a message whose author cannot be told.
func (f *Filter) refuse(reason string) pipeline.Verdict {
	return pipeline.Verdict{Action: pipeline.Reject, Reply: reply.Make(550, reply.Enhanced{Subject: 7, Detail: 1}, f.text), Reason: reason}
}
