// Package dnsbl is the filter "dnsbl": it asks DNS lists about a client, and
// refuses one that is listed.
//
//	[filter.dnsbl]
//	reject = 5                                   # from this sum of weights on
//
//	[[filter.dnsbl.list]]
//	zone    = "zen.spamhaus.org"
//	answers = ["127.0.0.2-11"]
//	weight  = 5
//	text    = "see https://check.spamhaus.org/"
//
//	[[filter.dnsbl.list]]
//	zone    = "bl.example.net"
//	weight  = 3
//
//	[[filter.dnsbl.list]]                        # for mail that is known to be good
//	zone    = "list.dnswl.org"
//	answers = ["127.0.*.2-3"]
//	pass    = true
//
//	[[filter.dnsbl.list]]                        # domains instead of addresses
//	zone    = "dbl.spamhaus.org"
//	kind    = "sender"
//	answers = ["127.0.1.2-99"]
//	weight  = 5
//
// # What is asked
//
// A list of the kind "ip" is asked about the client's address when it connects,
// of IPv4 or IPv6 (RFC 5782); one of the kind "helo" about the client's name for
// itself, if it has the form of a host name; one of the kind "sender" about the
// domain of the envelope sender. Private, loopback and other addresses that no
// list can know are never asked about. All lists of a kind are asked at once,
// and together they have the time "wait". Answers, and that there is none, are
// kept by the daemon's resolver.
//
// # Weights
//
// Each list that has an answer adds its weight to the session's sum, once, however
// many answers it has; for several weights of one zone write it several times
// with other answers. A negative weight speaks for the client. Once the sum has
// reached "reject", the client is refused (or put off, action = "defer"); with
// reject = 0 nobody is. Each answer is also a symbol with the weight as its score,
// for the filters that come later and for rules ("DNSBL_ZEN_SPAMHAUS_ORG" in
// symbols).
//
// A list with pass = true ends the judging by this filter: who is on it is not
// refused here, whatever other lists say. The filters that follow judge him.
//
// # What counts as an answer
//
// Only addresses in 127.0.0.0/8, and of those the ones that "answers" names; if
// it names none, all. "answers" are addresses whose numbers may be ranges or
// stars: 127.0.0.2, 127.0.0.2-11, 127.0.*.3. 127.0.0.1 counts only where it is
// written out. An answer outside of 127.0.0.0/8, as the page of a domain dealer
// gives, and the codes 127.255.255.0 to 255, by which lists say that they do not
// answer you (a public resolver, too many questions), are no listing: the list
// counts as one that did not answer, and the log says so once an hour. So does a
// list that lists everything: before an answer counts, the list is asked about
// what no list has (127.0.0.1, or the name "invalid": RFC 5782 §5), and what it
// says of that is kept. A list that was given up by its owner must not refuse
// all mail.
//
// # Where to put it
//
// Our own users have not logged in when they connect, and the addresses of many
// of them are listed for that they send no mail: a chain for submission must not
// have lists of the kind "ip".
//
// # When lists do not answer
//
// A list that does not answer adds nothing. If a list that could have spoken for
// the client did not answer, and the client would be refused, it is put off
// instead. If no list answered, the filter has failed; by default the chain goes
// on then.
//
// # What the peer hears
//
// That its address, its name or the sender's domain is listed, by which lists,
// and the text of the first of them that has one. A list's name is its zone
// unless it has a "name": write one where the zone holds a key of yours, which
// else all the world would learn. What lists say themselves (txt = true) goes to
// the log only.
package dnsbl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Name is the filter's name in the configuration.
const Name = "dnsbl"

// Options are the filter's part of the configuration.
type Options struct {
	Lists []List `toml:"list" doc:"the lists"`
	// Reject is the sum from which a client is refused; 0 refuses nobody.
	Reject float64 `toml:"reject" doc:"the sum of weights from which a client is refused; 0: never, the weights are scores only"`
	// Action is reject if it is "".
	Action string `toml:"action" doc:"what becomes of a client with that sum: reject, or defer to have it try again" oneof:"reject|defer"`
	// Wait bounds the questions of one kind together; 0 means 5 s.
	Wait time.Duration `toml:"wait" doc:"how long the answers of all lists are waited for, at each of connect, helo and sender"`
}

// List is one DNS list.
type List struct {
	Zone string `toml:"zone" doc:"the list's domain, like zen.spamhaus.org"`
	// Name hides a zone with a key in it.
	Name    string   `toml:"name" doc:"what peers and logs are told in place of the zone; needed if the zone holds a key of yours" unset:"the zone"`
	Kind    string   `toml:"kind" doc:"what the list is asked about: the client's address (ip), its name (helo), or the sender's domain (sender)" oneof:"ip|helo|sender" unset:"ip"`
	Answers []string `toml:"answers" doc:"the answers that count, numbers of which may be ranges or stars: 127.0.0.2-11, 127.0.*.3" unset:"all in 127.0.0.0/8 but 127.0.0.1 and the error codes 127.255.255.*"`
	// Weight is 1 if it is nil.
	Weight *float64 `toml:"weight" doc:"what an answer adds to the sum; a negative one speaks for the client" unset:"1"`
	Pass   bool     `toml:"pass" doc:"who is on this list is not refused by this filter"`
	Text   string   `toml:"text" doc:"what a peer that is refused hears besides the list's name, such as where to ask"`
	Symbol string   `toml:"symbol" doc:"the name of the finding for later filters and rules" unset:"made of kind and name: DNSBL_ZEN_SPAMHAUS_ORG"`
	TXT    bool     `toml:"txt" doc:"ask the list for its reasons too, for the log"`
	Family string   `toml:"family" doc:"the addresses that it knows" oneof:"both|ipv4|ipv6" unset:"both"`
}

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{Reject: 1, Action: reply.Reject.String(), Wait: defaultWait}
	}, New)
}

// defaultWait is what most lists need a hundredth of.
const defaultWait = 5 * time.Second

// maxLists bounds the lists of one filter: each is a question to somebody
// else's server for every client.
const maxLists = 50

// Filter is the dnsbl filter. It is immutable but for what it has logged, and
// safe for concurrent use.
type Filter struct {
	lists  []list
	reject float64
	action pipeline.Action
	wait   time.Duration
	source source
	log    *slog.Logger
	now    func() time.Time
}

// New makes a dnsbl filter. It uses the environment's Resolver, Now and Log. A
// Resolver that has a method LookupA, as resolve.Resolver does, is asked by it,
// which spares the lists a question for IPv6 addresses. The errors say by a
// method Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	f := &Filter{reject: o.Reject, wait: o.Wait, source: sourceOf(env.Resolver), log: env.Log, now: env.Now}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.now == nil {
		f.now = time.Now
	}
	switch {
	case len(o.Lists) == 0:
		return nil, errors.New("there is no list: add a table named list with a zone")
	case len(o.Lists) > maxLists:
		return nil, pipeline.AtKey(fmt.Sprintf("list[%d]", maxLists), fmt.Errorf("more than %d lists", maxLists))
	case !(o.Reject >= 0 && o.Reject <= maxWeight):
		return nil, pipeline.AtKey("reject", fmt.Errorf("%v: write a number from 0 to %v", o.Reject, float64(maxWeight)))
	case o.Wait < 0:
		return nil, pipeline.AtKey("wait", errors.New("it must not be negative"))
	case o.Wait == 0:
		f.wait = defaultWait
	}
	if o.Action == "" {
		o.Action = reply.Reject.String()
	}
	var ok bool
	if f.action, ok = reply.ParseAction(o.Action); !ok || f.action != pipeline.Reject && f.action != pipeline.Defer {
		return nil, pipeline.AtKey("action", fmt.Errorf("%q: write reject or defer", reply.Clean(o.Action, 80)))
	}
	var wrong []error
	f.lists = make([]list, len(o.Lists))
	for i, l := range o.Lists {
		if key, err := f.lists[i].set(l); err != nil {
			wrong = append(wrong, pipeline.AtKey(fmt.Sprintf("list[%d].%s", i, key), err))
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	return f, nil
}

// Traits of a filter that advises, about strangers.
func (f *Filter) Traits() pipeline.Traits {
	t := pipeline.Traits{OnError: pipeline.ErrorContinues, Strangers: true}
	for k, stage := range stageOf {
		for i := range f.lists {
			if int(f.lists[i].kind) == k {
				t.Stages = append(t.Stages, stage)
				break
			}
		}
	}
	return t
}

// stageOf is the stage at which lists of a kind are asked.
var stageOf = [...]pipeline.Stage{byAddress: pipeline.AtConnect, byHelo: pipeline.AtHelo, bySender: pipeline.AtSender}

// Open returns an instance that adds a session's weights up.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return &instance{filter: f}, nil
}

// instance is the filter at work on one session.
type instance struct {
	filter *Filter
	// connect and helo are what was found out there.
	connect, helo tally
}

// Close does nothing.
func (*instance) Close() error { return nil }

// Connect asks about the client's address.
func (i *instance) Connect(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	i.connect, i.helo = tally{}, tally{}
	addr := s.Peer.Addr().Unmap().WithZone("")
	if !isPublic(addr) {
		return pipeline.Verdict{}, nil
	}
	q := query{kind: byAddress, subject: addr.String(), name: reverse(addr), never: neverFour, six: addr.Is6()}
	if q.six {
		q.never = neverSix
	}
	return i.judge(ctx, q, &i.connect)
}

// Helo asks about the client's name.
func (i *instance) Helo(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	i.helo = tally{}
	if !pipeline.IsFQDN(s.Helo) {
		return pipeline.Verdict{}, nil
	}
	return i.judge(ctx, domainQuery(byHelo, s.Helo), &i.helo, &i.connect)
}

// Sender asks about the sender's domain.
func (i *instance) Sender(ctx context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	domain := envelope.Domain(tx.Envelope.Sender)
	if !pipeline.IsFQDN(domain) {
		return pipeline.Verdict{}, nil
	}
	var own tally
	return i.judge(ctx, domainQuery(bySender, domain), &own, &i.connect, &i.helo)
}

// judge asks the lists of a kind, notes what they say in own, and answers by
// that and by what was found before.
func (i *instance) judge(ctx context.Context, q query, own *tally, before ...*tally) (pipeline.Verdict, error) {
	f := i.filter
	findings, err := f.ask(ctx, q)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	if len(findings) == 0 {
		return pipeline.Verdict{}, nil
	}
	own.add(findings, q.subject)
	v := pipeline.Verdict{Reason: reasons(findings), Symbols: symbols(findings)}
	var all tally
	for _, t := range append(before, own) {
		all.join(t)
	}
	v.Action, v.Reply = f.answer(&all)
	return v, nil
}

// isPublic reports whether a list can know an address.
func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !sharedSpace.Contains(a)
}

// sharedSpace is the addresses behind a provider's NAT (RFC 6598).
var sharedSpace = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)

// hushed bounds how often the log hears of one list.
const hushed = time.Hour

// warn tells the log that a list is no good, once an hour.
func (f *Filter) warn(l *list, what string) {
	now := f.now().UnixNano()
	last := l.warned.Load()
	if last != 0 && now-last < int64(hushed) || !l.warned.CompareAndSwap(last, now) {
		return
	}
	f.log.Warn("a DNS list is of no use", "list", l.name, "why", what)
}
