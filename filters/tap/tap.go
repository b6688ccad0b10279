// Package tap is the filter "tap": it sends a copy of mail to an archive, as
// the taps of a patched qmail-queue do (control/taps).
//
//	[filter.tap]
//	rules = [
//	  'F:.*@example\.org:archive@example.org',    # what our people send
//	  'T:^sales@example\.org$:crm@example.org',   # what sales gets
//	]
//
//	[[filter.tap.rule]]                           # the same as a table
//	from = '^urn:.*@example\.org$'                # here a colon may stand in it
//	copy = ["archive@example.org", "audit@example.net"]
//
// A line of "rules" ends its expression at the second colon: none can stand in
// it, so neither can [[:digit:]].
//
// # Which mail
//
// A rule is a POSIX extended regular expression that is looked for in an
// envelope address, in the sender's (F, from), in each recipient's (T, to), or
// in both (A, any). It need not match the whole address, its dots are any
// character, and the case of ASCII letters does not count: "user@example.org"
// is found in "xuser@exampleXorg.invalid" too; write "^user@example\.org$" for
// the one address. An empty sender, that of bounces, is matched by "^$". A "!"
// before the expression, or not = true, turns it round. Addresses are compared
// as they came in the envelope, before any filter replaced one.
//
// Rules are tried in their order, those of "rules" before the tables. The
// sender is tried first, against every rule that looks at senders; then each
// recipient in turn, against every rule that looks at recipients. The first
// match wins and the rest is not looked at; with all = true every rule that
// matches is heeded, and an address that several of them name gets one copy.
// Recipients whom an earlier filter has refused are not looked at. If earlier
// filters split the message into different versions, each version is tapped.
//
// An address that is a recipient of the message anyway gets its copy all the
// same, as in qmail: the message itself may still be refused for that
// recipient, and an archive with a message twice is better than one without.
//
// # What the archive gets
//
// The copy is a message of its own, as the message stood when this filter saw
// it: put tap last to archive what is delivered, first to archive what came.
// It is sent if the message is, for at least one recipient. Its envelope sender
// is empty, so that a full or broken archive sends nothing to the outside
// sender, who must not learn of it; no other machine answers it either, and a
// copy that cannot be delivered is reported to the postmaster, as every bounce
// that has nowhere to go. With bounces = ADDR the reports go to ADDR. A copy of
// a bounce keeps the bounce's own sender whatever "bounces" says, since else a
// broken archive would make new bounces of its own bounces without end.
//
// The copy's field "Postern-Tapped" says which rules brought it, and the
// envelope sender that it had. It says nothing of the recipients, among whom
// there may be blind ones.
//
// With compat = true the copy is what it is in qmail: one more recipient of the
// message itself, with the same sender, who gets the archive's bounces. It is
// then not marked.
//
// # The mark
//
// A copy carries a field "Postern-Tap" by which every tap of this installation
// knows it, wherever it comes from, and does not copy it again: an archive
// that forwards its mail makes no loop. The mark is an HMAC-SHA-256 under a
// key of this installation over the time, the copy's recipients and the
// message, so that nobody else can make one to keep mail out of the archive,
// and one that is taken from a copy does not fit another message. It holds for
// 30 days. A mark that claims to be ours and does not fit, or is none, is
// removed, and the message is tapped as if it had not been there. The marks of
// other installations are left alone: they stop loops there.
//
// The mark covers the body and the fields Message-ID, Date, From, Subject,
// Content-Type and Content-Transfer-Encoding. It withstands what mail systems
// do: fields added or folded anew, line ends converted, empty lines at the end
// added or removed. It does not withstand what changes the text: a footer, a
// changed encoding, a quoted "From " line, a Message-ID or Date put in where
// there was none. Such a message is tapped again, with a new mark; if that goes
// round in circles, the limit of hops ends it.
//
// # When it fails
//
// The filter runs for mail that an earlier filter has accepted too. If it
// fails, the message is put off: nobody can make good for a copy that an
// archive lacks, but the sender tries again. A rule with an error in it is an
// error of the configuration, unlike in qmail, where it silently matches
// nothing; so is a copy to an address without a domain.
package tap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Name is the filter's name in the configuration.
const Name = "tap"

// Options are the filter's part of the configuration. The zero value copies
// nothing.
type Options struct {
	// Rules are lines as in control/taps: the letter F, T or A, a regular
	// expression without colons, and the address of the copy, with colons
	// between them. Blank lines and those that begin with # are passed over.
	Rules []string `toml:"rules" doc:"lines as in control/taps: F:regex:copy (sender), T: (recipients) or A: (both)"`
	// Tables are rules that may hold colons and name several addresses.
	Tables []Rule `toml:"rule" doc:"rules as tables, tried after those of rules"`
	// All has every rule that matches send its copy.
	All bool `toml:"all" doc:"heed every rule that matches, not the first one only"`
	// Compat makes the copy a recipient of the message itself.
	Compat bool `toml:"compat" doc:"qmail's way: the copy is one more recipient of the message itself, with the same sender"`
	// Bounces is the envelope sender of copies, "" for the null sender.
	Bounces string `toml:"bounces" doc:"address that is told of copies that cannot be delivered" unset:"the postmaster is told"`
}

// Rule is one rule as a table. Exactly one of From, To and Any is set.
type Rule struct {
	From string `toml:"from" doc:"regular expression that is looked for in the envelope sender"`
	To   string `toml:"to" doc:"regular expression that is looked for in each envelope recipient"`
	Any  string `toml:"any" doc:"regular expression that is looked for in sender and recipients"`
	// Copy is a string, or a list of strings.
	Copy any `toml:"copy" doc:"address that gets the copy, or a list of addresses"`
	// Not turns the rule round.
	Not bool `toml:"not" doc:"match the addresses in which the expression is not found"`
}

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, nil, New)
}

// Filter is the tap. It is immutable, its own instance, and safe for
// concurrent use.
type Filter struct {
	rules []rule
	// toRecipients are the rules that look at recipients.
	toRecipients []int

	marker  marker
	all     bool
	compat  bool
	bounces string
}

// New makes a tap. It uses the environment's Now and Secret. Its errors
// say by a method Key which key they are about, "rules[2]".
func New(env pipeline.Env, o Options) (*Filter, error) {
	rules, err := o.compile()
	if err != nil {
		return nil, err
	}
	if o.Bounces != "" {
		if o.Compat {
			return nil, pipeline.AtKey("bounces", errors.New("with compat a copy has the sender of its message; remove bounces or compat"))
		}
		if err := checkAddress(o.Bounces); err != nil {
			return nil, pipeline.AtKey("bounces", err)
		}
	}
	if env.Secret == nil {
		return nil, errors.New("this installation has no secret to mark copies with")
	}
	if env.Now == nil {
		env.Now = time.Now
	}
	f := &Filter{rules: rules, marker: newMarker(env.Secret(Name), env.Now), all: o.All, compat: o.Compat, bounces: o.Bounces}
	for i := range rules {
		if rules[i].tap.To {
			f.toRecipients = append(f.toRecipients, i)
		}
	}
	return f, nil
}

// Traits of a filter that protects: see the package's documentation.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Always: true, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing.
func (f *Filter) Close() error { return nil }

// Message asks for the copies. It never decides about the message.
func (f *Filter) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	s := marked{message: m}
	found, err := f.marker.inspect(ctx, &s)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	v := pipeline.Verdict{Edits: found.edits(), Reason: found.reason()}
	if found.genuine {
		return v, nil
	}
	hits, err := f.match(ctx, tx)
	if err != nil || len(hits) == 0 {
		return v, err
	}
	groups := gather(f.rules, hits)
	if f.compat {
		v.Edits = append(v.Edits, recipients(groups)...)
	} else {
		copies, err := f.copies(ctx, groups, tx.Envelope, &s, found)
		if err != nil {
			return pipeline.Verdict{}, err
		}
		v.Edits = append(v.Edits, copies...)
	}
	v.Reason = join(v.Reason, f.describe(tx, groups, hits))
	return v, nil
}

func recipients(groups []group) []pipeline.Edit {
	var edits []pipeline.Edit
	for _, g := range groups {
		for _, a := range g.addresses {
			edits = append(edits, pipeline.Edit{Kind: pipeline.EditAddRecipient, Address: a})
		}
	}
	return edits
}

// copies are one copy for each group. A copy is made of the message as it came,
// so that it loses the marks that the message loses.
func (f *Filter) copies(ctx context.Context, groups []group, e envelope.Envelope, s *marked, found findings) ([]pipeline.Edit, error) {
	sum, err := s.digest(ctx)
	if err != nil {
		return nil, err
	}
	var edits []pipeline.Edit
	for _, g := range groups {
		out := envelope.To(f.sender(e.Sender), g.addresses...)
		// What the content needs and what its author asked for hold for the
		// copy; who is to be told of its delivery does not.
		out.NoScan, out.UTF8, out.RequireTLS = e.NoScan, e.UTF8, e.RequireTLS
		fields := append(found.fields(),
			message.FieldEdit{Op: message.Remove, Name: whyField},
			message.FieldEdit{Op: message.Add, Name: whyField, Value: g.why(e.Sender)},
			message.FieldEdit{Op: message.Add, Name: markField, Value: f.marker.make(g.addresses, sum).String()},
		)
		edits = append(edits, pipeline.Edit{Kind: pipeline.EditCopy, Copy: &pipeline.Copy{Envelope: out, Fields: fields}})
	}
	return edits, nil
}

// sender is that of the copies of a message from another sender. A report about
// a copy must end somewhere: the copy of a bounce is from nobody, so that its
// failure is a double bounce, and that of a double bounce is one itself, whose
// failure is the end (qmail-send.c:injectbounce).
func (f *Filter) sender(of string) string {
	switch of {
	case "", envelope.DoubleBounce:
		return of
	}
	return f.bounces
}

// whyField says on a copy why it was made.
const whyField = "Postern-Tapped"

// Bounds of whyField: the sender in bytes, so that its line stays within what a
// line may have, and the rules that are named.
const (
	maxWhySender = 320
	maxWhyRules  = 20
)

func (g group) why(sender string) string {
	return listHits(g.hits) + ";\n envelope-from <" + reply.Clean(sender, maxWhySender) + ">"
}

func listHits(hits []hit) string {
	var b strings.Builder
	for i, h := range hits {
		if i == maxWhyRules {
			fmt.Fprintf(&b, " and %d more", len(hits)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "rule %d (%s)", h.rule+1, h.side())
	}
	return b.String()
}

// maxNamed is how many addresses a reason names.
const maxNamed = 5

// describe is the reason for the log: who gets a copy, by which rules, and the
// address that the first of them found.
func (f *Filter) describe(tx *pipeline.Transaction, groups []group, hits []hit) string {
	var b strings.Builder
	b.WriteString("copied to ")
	n := 0
	for _, g := range groups {
		for _, a := range g.addresses {
			if n++; n > maxNamed {
				continue
			}
			if n > 1 {
				b.WriteString(", ")
			}
			b.WriteString("<" + a + ">")
		}
	}
	if n > maxNamed {
		fmt.Fprintf(&b, " and %d more", n-maxNamed)
	}
	first := tx.Envelope.Sender
	if hits[0].recipient >= 0 {
		first = tx.Envelope.Recipients[hits[0].recipient].Address
	}
	fmt.Fprintf(&b, ": %s matches <%s>", listHits(hits), first)
	return b.String()
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
