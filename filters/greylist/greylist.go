// Package greylist is the filter "greylist": a stranger who writes to somebody
// for the first time is asked to try again in a few minutes. Mail servers do;
// most programs that send spam do not, and those that do are on more DNS lists
// by then.
//
//	[filter.greylist]
//	delay      = "5m"
//	when       = 'not cidr(ip, "192.0.2.0/24")'  # greylist whom a rule names
//	networks   = ["198.51.100.0/24"]             # never greylist these
//	senders    = ["example.net", ".example.net"]
//	recipients = ["postmaster@example.org"]
//
// # What is remembered
//
// Client, sender and recipient are a triplet. One that is new is put off, with a
// 451, and recorded; when it comes again after "delay" and within "window", it
// passes, and goes on passing until it was not seen for "lifetime". A client of
// which "after" triplets have passed is known as a mail server, and all of its
// mail passes until none was seen for "lifetime"; of several triplets that pass
// within an hour one counts.
//
// The client is its network (of /24, or /64 for IPv6), since large senders try
// again from a neighbour; or, with client = "name", the registrable domain of its
// host name, where the reverse DNS gives a name that the forward DNS confirms and
// the name is not made of the address, as those of dial-up lines are.
//
// Of the sender, parts that change with each attempt or message do not count
// (normalise = true): the tags of BATV and SRS, and the words with digits of a
// VERP address. The case of letters counts nowhere.
//
// # Mail from nobody
//
// Reports and the probes of servers that verify senders come from <>, and are
// greylisted as others are: such a probe is answered 451, which those servers
// take for "later", as they do when a server is down. With bounces = false mail
// from <> passes.
//
// # At the shim
//
// There the recipients of a message are judged together, when it has come: each
// of them is recorded, and if one is to try again the whole message is (which
// passes when it does).
//
// # What is never greylisted
//
// Mail from our own users, whatever "when" says; strangers without an address.
// An operator has a client pass with postern greylist allow, and sees and forgets
// what is remembered with postern greylist list and forget.
//
// # When state cannot be kept
//
// What cannot be recorded would be put off for ever: it is an error, and by
// default the mail passes (on_error = "continue").
package greylist

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// Name is the filter's name in the configuration.
const Name = "greylist"

// Options are the filter's part of the configuration. The zero value of each
// but Bounces and Normalise means the default.
type Options struct {
	Delay    time.Duration `toml:"delay" doc:"how long a new triplet is put off"`
	Window   time.Duration `toml:"window" doc:"how long after its first attempt a triplet may try again; then it is new"`
	Lifetime time.Duration `toml:"lifetime" doc:"how long a triplet or a client that has passed is remembered after it was last seen"`
	// After is 5 if it is nil.
	After      *int     `toml:"after" doc:"after how many triplets that passed all of a client's mail passes; 0: never" unset:"5"`
	Client     string   `toml:"client" doc:"what a client is known by: its network, or the registrable domain of its confirmed host name where it has one" oneof:"network|name"`
	IPv4       int      `toml:"ipv4" doc:"the length of an IPv4 network's prefix, 8 to 32"`
	IPv6       int      `toml:"ipv6" doc:"the length of an IPv6 network's prefix, 16 to 128"`
	Normalise  bool     `toml:"normalise" doc:"leave out of a sender's address what changes with each message (BATV, SRS, VERP)"`
	Bounces    bool     `toml:"bounces" doc:"greylist mail from <>, too"`
	Networks   []string `toml:"networks" doc:"clients that are never greylisted: addresses and networks"`
	Senders    []string `toml:"senders" doc:"senders' domains that are never greylisted; one with a dot in front means all below"`
	Recipients []string `toml:"recipients" doc:"recipients for whom nobody is greylisted: an address, @domain, or a pattern with * and ?"`
	Text       string   `toml:"text" doc:"what the peer hears" unset:"greylisted, please try again in N minutes"`
}

// The defaults.
const (
	defaultDelay    = 5 * time.Minute
	defaultWindow   = 24 * time.Hour
	defaultLifetime = 36 * 24 * time.Hour
	defaultAfter    = 5
	defaultIPv4     = 24
	defaultIPv6     = 64
	byNetwork       = "network"
	byName          = "name"
)

const (
	// maxList bounds a list of exemptions.
	maxList = 10_000
	// maxLife is a year, more or less: what a state keeps.
	maxLife = 366 * 24 * time.Hour
	// goodEvery is how far apart triplets pass that count for their client: the
	// recipients of one message are one.
	goodEvery = time.Hour
	// renewals is into how many parts a lifetime is cut: what is seen is recorded
	// once in each, so that most mail writes nothing.
	renewals = 36
)

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{
			Delay: defaultDelay, Window: defaultWindow, Lifetime: defaultLifetime,
			Client: byNetwork, IPv4: defaultIPv4, IPv6: defaultIPv6, Normalise: true, Bounces: true,
		}
	}, New)
}

// Filter is the greylist filter. It is safe for concurrent use.
type Filter struct {
	book                    book
	delay, window, lifetime time.Duration
	after                   int
	byName                  bool
	bits4, bits6            int
	normalise, bounces      bool
	networks                []netip.Prefix
	senders                 *rules.DomainList
	recipients              *rules.AddressList
	text                    string
	resolver                pipeline.Resolver
	log                     *slog.Logger
	now                     func() time.Time
}

// New makes a greylist filter. It uses the environment's State, Now, Log, and
// for names that its caller has not confirmed the Resolver. Without a State
// every triplet is new, and recording it fails. The errors say by a method Key
// which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	f := &Filter{
		book: book{env.State}, delay: orElse(o.Delay, defaultDelay), window: orElse(o.Window, defaultWindow), lifetime: orElse(o.Lifetime, defaultLifetime),
		after: defaultAfter, bits4: orElse(o.IPv4, defaultIPv4), bits6: orElse(o.IPv6, defaultIPv6), byName: o.Client == byName,
		normalise: o.Normalise, bounces: o.Bounces, text: o.Text, resolver: env.Resolver, log: env.Log, now: env.Now,
	}
	if o.After != nil {
		f.after = *o.After
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.now == nil {
		f.now = time.Now
	}
	if err := errors.Join(f.check(o)...); err != nil {
		return nil, err
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

// check looks at the options, and reads the lists.
func (f *Filter) check(o Options) (wrong []error) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	if f.delay < 0 || f.delay > 24*time.Hour {
		bad("delay", "%v: it is at most a day", o.Delay)
	}
	if f.window <= f.delay || f.window > maxLife {
		bad("window", "%v: it must be longer than the delay (%v), and at most a year", f.window, f.delay)
	}
	if f.lifetime < time.Hour || f.lifetime > maxLife {
		bad("lifetime", "%v: write an hour to a year", o.Lifetime)
	}
	if f.after < 0 || f.after > 1000 {
		bad("after", "%d: write 0 to 1000", f.after)
	}
	if o.Client != "" && o.Client != byNetwork && o.Client != byName {
		bad("client", "%q: write network or name", reply.Clean(o.Client, 80))
	}
	if f.bits4 < 8 || f.bits4 > 32 {
		bad("ipv4", "%d: write 8 to 32", o.IPv4)
	}
	if f.bits6 < 16 || f.bits6 > 128 {
		bad("ipv6", "%d: write 16 to 128", o.IPv6)
	}
	if o.Text != reply.Clean(o.Text, reply.MaxText) {
		bad("text", "it must be one line of at most %d ASCII characters", reply.MaxText)
	}
	for key, n := range map[string]int{"networks": len(o.Networks), "senders": len(o.Senders), "recipients": len(o.Recipients)} {
		if n > maxList {
			bad(key, "%d of them, at most %d", n, maxList)
			return wrong
		}
	}
	for i, s := range o.Networks {
		p, err := parseNetwork(s)
		if err != nil {
			bad(fmt.Sprintf("networks[%d]", i), "%q is no address or network", reply.Clean(s, 80))
		}
		f.networks = append(f.networks, p)
	}
	for i, s := range o.Senders {
		if s == "" || strings.ContainsAny(s, "@* \t") {
			bad(fmt.Sprintf("senders[%d]", i), "%q is no domain: write example.org, or .example.org for all below", reply.Clean(s, 80))
		}
	}
	f.senders = rules.NewDomainList(o.Senders)
	lines := make([]rules.Line, len(o.Recipients))
	for i, s := range o.Recipients {
		if lines[i] = (rules.Line{No: i + 1, Text: s}); !strings.Contains(s, "@") {
			bad(fmt.Sprintf("recipients[%d]", i), "%q is no address: write user@example.org, or @example.org", reply.Clean(s, 80))
		}
	}
	var err error
	if f.recipients, err = rules.NewAddressList(lines, rules.Globs); err != nil {
		bad("recipients", "%w", err)
	}
	return wrong
}

// parseNetwork reads an address or a network.
func parseNetwork(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	a = a.Unmap().WithZone("")
	return a.Prefix(a.BitLen())
}

// Traits of a filter that advises, about strangers.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorContinues, Strangers: true, Stages: []pipeline.Stage{pipeline.AtRecipient}}
}

// Open returns an instance that knows a session's client.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return &instance{filter: f}, nil
}

// instance is the filter at work on one session.
type instance struct {
	filter *Filter
	client client
	known  bool
}

// Close does nothing.
func (*instance) Close() error { return nil }

// Recipient judges one triplet.
func (i *instance) Recipient(ctx context.Context, tx *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	f, sender := i.filter, tx.Envelope.Sender
	addr := tx.Session.Peer.Addr().Unmap().WithZone("")
	if why := f.exempt(addr, sender, r.Address); why != "" {
		return pipeline.Verdict{Reason: why}, nil
	}
	if !i.known {
		i.client, i.known = f.clientOf(ctx, tx.Session, addr), true
	}
	return f.judge(ctx, i.client, f.sender(sender), strings.ToLower(r.Address))
}

// exempt says why this is not greylisted, "" if it is.
func (f *Filter) exempt(addr netip.Addr, sender, recipient string) string {
	if !addr.IsValid() {
		return "the client has no address"
	}
	for _, p := range f.networks {
		if p.Contains(addr) {
			return "exempt: the client is in " + p.String()
		}
	}
	if sender == "" && !f.bounces {
		return "exempt: from <>"
	}
	if entry, ok := f.senders.Match(envelope.Domain(sender)); ok {
		return "exempt: senders of " + reply.Clean(entry, 100)
	}
	if line, ok := f.recipients.Match(recipient); ok {
		return "exempt: recipient " + reply.Clean(line, 100)
	}
	return ""
}

// judge looks a triplet up, and records what has become of it.
func (f *Filter) judge(ctx context.Context, c client, sender, recipient string) (pipeline.Verdict, error) {
	now := f.now()
	for _, name := range c.names() {
		known, ok, err := f.book.client(ctx, name)
		if err != nil {
			return pipeline.Verdict{}, err
		}
		if ok && (known.hand || f.after > 0 && known.good >= f.after) {
			f.seenClient(ctx, name, known, now)
			return pipeline.Verdict{Reason: "client " + name + " " + known.why()}, nil
		}
	}
	t := triplet{client: c.name(), sender: sender, recipient: recipient}
	known, ok, err := f.book.triplet(ctx, t)
	switch {
	case err != nil:
		return pipeline.Verdict{}, err
	case !ok:
		return f.begin(ctx, t, now, "first seen")
	case known.passed:
		f.seen(ctx, known, now)
		return pipeline.Verdict{Reason: "seen before"}, nil
	case known.first.After(now.Add(time.Minute)): // the clock was ahead then
		return f.begin(ctx, t, now, "seen in the future")
	}
	if waited := now.Sub(known.first); waited < f.delay {
		return f.later(f.delay-max(waited, 0), fmt.Sprintf("seen %v ago, too early", max(waited, 0).Round(time.Second))), nil
	}
	return f.pass(ctx, known, now), nil
}

// begin records a new triplet, and puts it off.
func (f *Filter) begin(ctx context.Context, t triplet, now time.Time, why string) (pipeline.Verdict, error) {
	t.first, t.last = now, now
	if err := f.book.putTriplet(ctx, t, f.window); err != nil {
		return pipeline.Verdict{}, fmt.Errorf("recording a triplet: %w", err)
	}
	return f.later(f.delay, why), nil
}

// later is the verdict on a triplet that has to wait.
func (f *Filter) later(left time.Duration, why string) pipeline.Verdict {
	text := f.text
	if text == "" {
		text = "greylisted, please try again in " + minutes(left)
	}
	return pipeline.Verdict{Action: pipeline.Defer, Reply: reply.Make(451, reply.Enhanced{Subject: 7, Detail: 1}, text), Reason: why}
}

func minutes(d time.Duration) string {
	if n := int((d + time.Minute - 1) / time.Minute); n > 1 {
		return fmt.Sprintf("%d minutes", n)
	}
	return "a minute"
}

// pass lets a triplet that has waited pass from now on. What cannot be recorded
// now waits on, and passes again.
func (f *Filter) pass(ctx context.Context, t triplet, now time.Time) pipeline.Verdict {
	waited := now.Sub(t.first).Round(time.Second)
	t.passed, t.last = true, now
	err := f.book.putTriplet(ctx, t, f.lifetime)
	if err == nil && f.after > 0 {
		err = f.count(ctx, t.client, now)
	}
	f.warn(err)
	return pipeline.Verdict{Reason: fmt.Sprintf("came back after %v", waited)}
}

// count counts a triplet that passed for its client.
func (f *Filter) count(ctx context.Context, name string, now time.Time) error {
	c, ok, err := f.book.client(ctx, name)
	if err != nil {
		return err
	}
	since := now.Sub(c.last)
	if ok && since >= 0 && since < goodEvery {
		return nil
	}
	if !ok {
		c.first = now
	}
	c.good, c.last = min(c.good+1, maxGood), now
	return f.book.putClient(ctx, name, c, f.lifetime)
}

// seen keeps a triplet that passes from being forgotten.
func (f *Filter) seen(ctx context.Context, t triplet, now time.Time) {
	if f.fresh(t.last, now) {
		return
	}
	t.last = now
	f.warn(f.book.putTriplet(ctx, t, f.lifetime))
}

// seenClient does so for a client; one that was allowed by hand keeps its time.
func (f *Filter) seenClient(ctx context.Context, name string, c known, now time.Time) {
	if c.hand || f.fresh(c.last, now) {
		return
	}
	c.last = now
	f.warn(f.book.putClient(ctx, name, c, f.lifetime))
}

// fresh reports whether what was last recorded then need not be again.
func (f *Filter) fresh(last, now time.Time) bool {
	since := now.Sub(last)
	return since >= 0 && since < f.lifetime/renewals
}

func (f *Filter) warn(err error) {
	if err != nil {
		f.log.Warn("greylist: who has passed cannot be recorded", "error", err)
	}
}
