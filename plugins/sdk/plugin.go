// Package sdk makes a Go program a plugin of Postern: a filter in a process of
// its own, asked over a Unix socket. The program gives one function for each
// stage at which it wants to be asked, and calls Main:
//
//	type options struct {
//		Tag string `key:"tag" default:"[list]" doc:"what is put before the subject"`
//	}
//
//	func main() {
//		sdk.Main(sdk.Plugin[options]{
//			Name: "tagger", Version: "1.0", Doc: "puts a tag before the subject",
//			Edits:   sdk.EditsHead,
//			Message: tag,
//		})
//	}
//
//	func tag(_ context.Context, o *options, m *sdk.Message) (sdk.Verdict, error) {
//		return sdk.Continue().Replace("Subject", o.Tag+" "+m.Get("Subject")), nil
//	}
//
// The guide is plugins/README.md, what goes over the socket plugins/wire; sdktest
// runs a plugin on saved messages.
//
// # Options
//
// The fields of O that have a tag key are the options of the plugin's filters:
//
//	key:"tag"         its name in the configuration: small letters, digits and _
//	doc:"..."         what it is, for manuals
//	default:"..."     its value if it is not written; a list's values have commas between them, a table is JSON
//	required:"true"   it must be written
//
// Their types are string, bool, integers, floats, time.Duration ("30s"), Size
// ("10MB"), []string, map[string]string, and those that can be read from a text
// (encoding.TextUnmarshaler), like netip.Prefix or *regexp.Regexp. Other fields
// are the plugin's own, for what Configure makes ready.
//
// # What it promises
//
// The functions are called concurrently, each with a context that ends with the
// call's deadline. What a function returns counts whole or not at all: an error, a
// panic, or an answer that Postern would not take (an edit that was not declared,
// a permanent reply to a deferral) is an error of that call, with its reason in
// the log, and what becomes of the mail is the configuration's "on_error". The
// process goes on.
//
// What a program writes to its standard error, or with log/slog, is in Postern's
// log. A program ends when Postern says so, or is gone. It must keep nothing that
// a restart may not lose but in the directory that Filter.StateDir names.
package sdk

import (
	"context"
	"errors"
	"fmt"

	"github.com/postern-mta/postern/plugins/wire"
)

// Needs is how much of a message a plugin is given at the stages message and
// delivery. The less, the faster.
type Needs uint8

// What a plugin may need. NeedsHead is what it gets if it says nothing.
const (
	NeedsHead     Needs = iota // envelope and head
	NeedsNothing               // the session
	NeedsEnvelope              // sender and recipients
	NeedsBody                  // envelope and the whole message
)

var needsOnWire = [...]wire.Needs{
	NeedsHead: wire.Needs_NEEDS_HEAD, NeedsNothing: wire.Needs_NEEDS_NOTHING,
	NeedsEnvelope: wire.Needs_NEEDS_ENVELOPE, NeedsBody: wire.Needs_NEEDS_BODY,
}

var needsWords = [...]string{NeedsHead: "the head", NeedsNothing: "nothing of the message", NeedsEnvelope: "the envelope", NeedsBody: "the whole message"}

// Edits is what a plugin may change, besides answering; a set.
type Edits uint8

// What a plugin may change. An answer that changes anything else is an error.
const (
	EditsHead     Edits = 1 << iota // header fields
	EditsBody                       // the body
	EditsEnvelope                   // sender, recipients, copies
)

var editsWords = []struct {
	edit       Edits
	name, word string
}{{EditsHead, "EditsHead", "the head"}, {EditsBody, "EditsBody", "the body"}, {EditsEnvelope, "EditsEnvelope", "the envelope"}}

// Stage is the time in a message's passage at which a plugin is asked.
type Stage uint8

// The stages, in their order.
const (
	AtConnect Stage = iota + 1
	AtHelo
	AtSender
	AtRecipient
	AtMessage
	AtDelivery
	stages
)

var stageWords = [stages]string{"", "connect", "helo", "sender", "recipient", "message", "delivery"}

// String is the stage's word, "message".
func (s Stage) String() string {
	if s > 0 && s < stages {
		return stageWords[s]
	}
	return fmt.Sprintf("stage %d", uint8(s))
}

// None is the options of a plugin that has none.
type None = struct{}

// Filter is one filter that is made of the plugin: a table of the configuration.
type Filter struct {
	// Name is the filter's name there.
	Name string
	// Host is the name of the host.
	Host string
	// StateDir is a directory of the plugin's own, "" if there is none.
	StateDir string
}

// Plugin is what a program does. Only Name and one stage must be there. O is a
// struct with its options (see above), or None.
type Plugin[O any] struct {
	// Name, Version and Doc are for people; the first two at most 64 bytes long.
	Name, Version, Doc string

	// Needs is what is given to Message and Delivery, Edits what they may change.
	Needs Needs
	Edits Edits
	// Advises is set if mail may go on when the plugin fails; else it is put off.
	// The configuration's on_error has the last word.
	Advises bool
	// StrangersOnly is set if it is never to be asked about our own users' mail.
	StrangersOnly bool

	// Configure looks at the options of a filter when they have been read, and
	// makes ready what the calls need (in fields of O without a tag). What is wrong
	// with an option is told by Wrong; errors.Join tells more than one. It is also
	// called where a configuration is only looked at, so it must not change
	// anything outside of O. It may be nil.
	Configure func(context.Context, *O, Filter) error
	// Forget hears that a filter is used no more. It may be nil.
	Forget func(*O)

	// Connect and Helo judge a client, by its address and its name.
	Connect, Helo func(context.Context, *O, *Session) (Verdict, error)
	// Sender judges the envelope's sender.
	Sender func(context.Context, *O, *Transaction) (Verdict, error)
	// Recipient judges one recipient, not yet in the transaction.
	Recipient func(ctx context.Context, o *O, tx *Transaction, recipient string) (Verdict, error)
	// Message judges a message that came in.
	Message func(context.Context, *O, *Message) (Verdict, error)
	// Delivery works on a message as it leaves, for recipients of one domain.
	Delivery func(context.Context, *O, *Message) (Verdict, error)
}

// call is what one function of a plugin is given.
type call struct {
	session   *Session
	tx        *Transaction
	recipient string
	message   *Message
}

// program is a Plugin without its type of options.
type program struct {
	name, version, doc     string
	needs                  Needs
	edits                  Edits
	advises, strangersOnly bool
	options                schema
	newOptions             func() any
	configure              func(context.Context, any, Filter) error
	forget                 func(any)
	stages                 [stages]func(context.Context, any, *call) (Verdict, error)
}

const maxName = 64

// program checks what the author wrote.
func (p Plugin[O]) program() (*program, error) {
	g := &program{
		name: p.Name, version: p.Version, doc: p.Doc, needs: p.Needs, edits: p.Edits, advises: p.Advises, strangersOnly: p.StrangersOnly,
		newOptions: func() any { return new(O) },
	}
	if p.Configure != nil {
		g.configure = func(ctx context.Context, o any, f Filter) error { return p.Configure(ctx, o.(*O), f) }
	}
	if p.Forget != nil {
		g.forget = func(o any) { p.Forget(o.(*O)) }
	}
	for at, f := range map[Stage]func(context.Context, *O, *Session) (Verdict, error){AtConnect: p.Connect, AtHelo: p.Helo} {
		if f != nil {
			g.stages[at] = func(ctx context.Context, o any, c *call) (Verdict, error) { return f(ctx, o.(*O), c.session) }
		}
	}
	if p.Sender != nil {
		g.stages[AtSender] = func(ctx context.Context, o any, c *call) (Verdict, error) { return p.Sender(ctx, o.(*O), c.tx) }
	}
	if p.Recipient != nil {
		g.stages[AtRecipient] = func(ctx context.Context, o any, c *call) (Verdict, error) {
			return p.Recipient(ctx, o.(*O), c.tx, c.recipient)
		}
	}
	for at, f := range map[Stage]func(context.Context, *O, *Message) (Verdict, error){AtMessage: p.Message, AtDelivery: p.Delivery} {
		if f != nil {
			g.stages[at] = func(ctx context.Context, o any, c *call) (Verdict, error) { return f(ctx, o.(*O), c.message) }
		}
	}
	var err error
	if g.options, err = schemaOf(g.newOptions()); err != nil {
		return nil, err
	}
	return g, g.check()
}

func (g *program) check() error {
	switch {
	case g.name == "" || len(g.name) > maxName:
		return fmt.Errorf("sdk.Plugin: Name must have 1 to %d bytes", maxName)
	case len(g.version) > maxName:
		return fmt.Errorf("sdk.Plugin: Version has more than %d bytes", maxName)
	case int(g.needs) >= len(needsOnWire):
		return fmt.Errorf("sdk.Plugin: Needs is %d, which is nothing that can be needed", g.needs)
	case len(g.asked()) == 0:
		return errors.New("sdk.Plugin: it has no stage: set Message, or another of the functions")
	}
	return nil
}

// asked are the stages at which the plugin is asked.
func (g *program) asked() (at []Stage) {
	for s, f := range g.stages {
		if f != nil {
			at = append(at, Stage(s))
		}
	}
	return at
}

// declaration is what Postern is told of the plugin.
func (g *program) declaration() *wire.Declaration {
	d := &wire.Declaration{
		Name: g.name, Version: g.version, Doc: g.doc, Needs: needsOnWire[g.needs], Advises: g.advises, StrangersOnly: g.strangersOnly,
		EditsHead: g.edits&EditsHead != 0, EditsBody: g.edits&EditsBody != 0, EditsEnvelope: g.edits&EditsEnvelope != 0,
	}
	for _, s := range g.asked() {
		d.Stages = append(d.Stages, wire.Stage(s))
	}
	for _, o := range g.options {
		d.Options = append(d.Options, &wire.Option{Name: o.name, Type: o.wire, Doc: o.doc, DefaultJson: string(o.unset), Required: o.required})
	}
	return d
}
