// Package ratelimit is the filter "ratelimit": so many messages, recipients and
// bytes within a time, for each sender, user or client. What is beyond is put
// off, and the peer hears for how long.
//
//	[[filter.ratelimit.limit]]
//	by         = "user"
//	messages   = 200
//	recipients = 1000
//	per        = "1h"
//
//	[[filter.ratelimit.limit]]
//	name  = "newsletters"
//	by    = "client-net"
//	bytes = "50 MB"
//	per   = "10m"
//	when  = 'external and not indomain(rdns, ".example.net")'
//
// # What is counted
//
// A limit counts by one of
//
//	sender, sender-domain         of the envelope; <> is nobody, and not counted
//	user                          who logged in; others are not counted
//	client, client-net            its address; its /24, or /64
//	recipient, recipient-domain   each of the envelope's
//	all                           everybody together
//
// messages, recipients and bytes are counted when a message has come whole and
// this filter lets it pass: what the client broke off, or took back with RSET,
// or what filters before this one refused or put off, does not count, nor does
// what this filter puts off. What filters behind it refuse has been counted: put
// it last. attempts, counted at MAIL, are for clients who begin much and finish
// little. Filters in shadow count as well, in their own books.
//
// A rule in "when" has the limit count and hold for what it matches; one about
// the message itself is asked when it has come.
//
// # How exact it is
//
// No window of length "per", wherever it begins, ever sees more than the limit
// pass. A window is kept in 60 parts, and what was counted is forgotten when its
// part has gone by as a whole: it counts for "per" at least and for a sixtieth of
// it longer at most. All limits of a message are checked and counted in one step,
// however many sessions there are; only while a reload is under way, sessions of
// the old configuration and of the new one may both take the last place. A clock
// that is set back makes nobody wait longer than "per" and a sixtieth.
//
// # What is answered
//
// A client whose limit is used up hears so at MAIL, 451 4.7.1, or at RCPT,
// 452 4.5.3 (a recipient's own limit: 450 4.2.1), with the time left, and at the
// end of the message where only that shows it. By a shim the whole message is
// put off. Where a single recipient's limit is used up, the message is put off for
// all, and nothing is counted, except by LMTP, which answers for each. What could
// never pass, being larger than the limit by itself, is refused, 554 5.7.1: it
// would be tried for days in vain. By SMTP more recipients than the limit are put
// off with 452, and the sender tries the rest again in a message of its own.
//
// # What is kept
//
// The counts outlast a restart (a crash may take the last seconds), are dropped
// when the window has gone by, and are bounded in number as all that filters
// remember is; where there are too many subjects, those that would be forgotten
// soonest are. An operator sees and forgets them with postern ratelimit list and
// forget. A limit keeps its counts through changes of the configuration as long
// as it keeps its name, which is "user/1h" for the first one above if it has none
// of its own.
//
// # Errors
//
// What cannot be counted is an error, and by default the mail passes (on_error =
// "continue").
package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Name is the filter's name in the configuration.
const Name = "ratelimit"

// Options are the filter's part of the configuration.
type Options struct {
	Limits []Limit `toml:"limit" doc:"the limits; all of them hold"`
	Text   string  `toml:"text" doc:"what the peer hears, before the time that is left" unset:"too much mail, and of what"`
}

// Limit is one limit. Of its numbers, those that are 0 do not limit.
type Limit struct {
	Name       string        `toml:"name" doc:"what the counts are kept and listed under" unset:"by and per, as in user/1h"`
	By         string        `toml:"by" doc:"who has a count of his own" oneof:"sender|sender-domain|user|client|client-net|recipient|recipient-domain|all"`
	Messages   int           `toml:"messages" doc:"how many messages"`
	Recipients int           `toml:"recipients" doc:"how many recipients"`
	Bytes      int64         `toml:"bytes" doc:"how many bytes" unit:"bytes"`
	Attempts   int           `toml:"attempts" doc:"how many times MAIL may be said, whatever becomes of it"`
	Per        time.Duration `toml:"per" doc:"within which time"`
	When       string        `toml:"when" doc:"a rule: for what it does not match, the limit neither counts nor holds"`
}

// maxLimits bounds the limits of one filter.
const maxLimits = 50

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, nil, New)
}

// Filter is the ratelimit filter. It is safe for concurrent use.
type Filter struct {
	limits []limit
	text   string
	state  pipeline.State
	now    func() time.Time
	// locks keep what is counted of one subject from being counted twice at a time;
	// seed spreads subjects over them.
	locks [stripes]sync.Mutex
	seed  maphash.Seed
}

// New makes a ratelimit filter. It uses the environment's State and Now. The
// errors say by a method Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	f := &Filter{text: o.Text, state: env.State, now: env.Now, seed: maphash.MakeSeed()}
	if f.now == nil {
		f.now = time.Now
	}
	switch {
	case len(o.Limits) == 0:
		return nil, errors.New("there is no limit: add a table named limit with by, messages and per")
	case len(o.Limits) > maxLimits:
		return nil, pipeline.AtKey(fmt.Sprintf("limit[%d]", maxLimits), fmt.Errorf("more than %d limits", maxLimits))
	case o.Text != reply.Clean(o.Text, maxText):
		return nil, pipeline.AtKey("text", fmt.Errorf("it must be one line of at most %d ASCII characters", maxText))
	}
	schema := pipeline.Facts()
	var wrong []error
	for i, l := range o.Limits {
		c, errs := l.compile(schema)
		for _, e := range errs {
			wrong = append(wrong, e.Below(fmt.Sprintf("limit[%d]", i)))
		}
		f.limits = append(f.limits, c)
	}
	if len(wrong) == 0 {
		wrong = checkNames(f.limits)
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	return f, nil
}

// maxText leaves room for the time.
const maxText = reply.MaxText - 60

// Traits of a filter that advises: counts that cannot be kept stop no mail.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorContinues, Stages: []pipeline.Stage{pipeline.AtSender, pipeline.AtRecipient, pipeline.AtMessage}}
}

// Open returns an instance that knows how a session's recipients come.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return &instance{filter: f}, nil
}

// instance is the filter at work on one session.
type instance struct {
	filter *Filter
	// asked is set once the sender was judged, or a recipient; whole if all recipients
	// were known then, as by a shim: the message stage judges them together.
	asked, whole bool
}

// Close does nothing.
func (*instance) Close() error { return nil }

// Reset forgets the transaction.
func (i *instance) Reset() { i.asked, i.whole = false, false }

// Sender counts the attempt, and says what is used up already.
func (i *instance) Sender(ctx context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	i.asked, i.whole = true, len(tx.Envelope.Recipients) > 0
	f := i.filter
	facts := pipeline.FactsAt(tx, message.Message{})
	var look, count []charge
	for n := range f.limits {
		l := &f.limits[n]
		if l.by.one == nil {
			continue
		}
		subject := l.by.one(tx)
		if subject == "" {
			continue
		}
		is, err := l.applies(pipeline.AtSender, facts)
		if err != nil {
			return pipeline.Verdict{}, err
		}
		if !is {
			continue
		}
		if l.most[attempts] > 0 {
			count = append(count, charge{limit: l, subject: subject, need: counts{attempts: 1}})
		}
		look = append(look, charge{limit: l, subject: subject, need: counts{messages: 1, recipients: 1, bytes: 1}})
	}
	if over, err := f.take(ctx, count, true); err != nil || over != nil {
		return f.verdict(over, false), err
	}
	over, err := f.take(ctx, look, false)
	return f.verdict(over, false), err
}

// Recipient says whether there is room for one more.
func (i *instance) Recipient(ctx context.Context, tx *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	if !i.asked { // a rule about recipients has kept the filter from hearing of the sender
		i.asked, i.whole = true, slices.ContainsFunc(tx.Envelope.Recipients, func(known envelope.Recipient) bool { return known.Address == r.Address })
	}
	if i.whole {
		return pipeline.Verdict{}, nil
	}
	f := i.filter
	n := len(tx.Envelope.Recipients) + 1
	own := *tx
	own.Envelope.Recipients, own.Active = []envelope.Recipient{r}, []int{0}
	facts := pipeline.FactsAt(&own, message.Message{})
	var look []charge
	for k := range f.limits {
		l := &f.limits[k]
		c := charge{limit: l}
		if l.by.each != nil {
			c.subject, c.need = l.by.each(r.Address), counts{messages: 1, recipients: 1, bytes: 1}
		} else {
			c.subject, c.need = l.by.one(tx), counts{recipients: uint64(n)}
		}
		if c.subject == "" {
			continue
		}
		is, err := l.applies(pipeline.AtRecipient, facts)
		if err != nil {
			return pipeline.Verdict{}, err
		}
		if is {
			look = append(look, c)
		}
	}
	over, err := f.take(ctx, look, false)
	return f.verdict(over, true), err
}

// Message counts the message, if it may pass.
func (i *instance) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	f := i.filter
	single, err := f.perRecipient(tx, m, tx.Active)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	passing, verdicts, err := f.refuse(ctx, tx, single)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	later := slices.ContainsFunc(verdicts, func(v pipeline.Verdict) bool { return v.Action == pipeline.Defer })
	if later && !tx.Session.AnswersEach || len(verdicts) > 0 && len(passing) == 0 {
		return join(verdicts), nil // it is not stored for anybody
	}
	own := *tx
	own.Active = passing
	all, err := f.together(&own, m)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	if len(verdicts) > 0 {
		if single, err = f.perRecipient(&own, m, passing); err != nil {
			return pipeline.Verdict{}, err
		}
	}
	over, err := f.take(ctx, append(all, single...), true)
	switch {
	case err != nil:
		return pipeline.Verdict{}, err
	case over != nil && len(verdicts) == 0:
		return f.verdict(over, false), nil
	case over != nil:
		v := f.verdict(over, false)
		v.Only = passing
		verdicts = append(verdicts, v)
	}
	return join(verdicts), nil
}

// join makes one verdict of several.
func join(verdicts []pipeline.Verdict) pipeline.Verdict {
	if len(verdicts) == 0 {
		return pipeline.Verdict{}
	}
	v := verdicts[0]
	v.Others = verdicts[1:]
	return v
}
