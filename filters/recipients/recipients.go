// Package recipients is the filter "recipients": how many recipients a message
// may have, and whether one may be left out of To and Cc.
//
//	[filter.recipients]
//	most     = 50        # of a stranger's message
//	most_own = 500       # of our own users'
//	bcc      = "quarantine"
//	except   = '"@lists.example.org" in recipients or indomain(sender, "example.com")'
//	lists    = true
//
// # How many
//
// By SMTP the recipient that is one too many is put off with 452 4.5.3, as
// RFC 5321 §4.5.3.1.10 has it: the sender's server sends the message to the
// first ones, and tries the rest again in another. With over = "reject" it is
// refused, 550 5.5.3. By a shim, which has all recipients at once and is asked
// once, the whole message is refused, 554 5.5.3: put off it would be tried for
// days in vain. With over = "defer" there, too, write when = 'protocol !=
// "qmail-queue"' and a second filter for the shim. Each RCPT that is taken
// counts, the same address twice too. 0 is no limit.
//
// # Blind copies
//
// A recipient who stands neither in To nor in Cc (nor in Resent-To, Resent-Cc or
// Apparently-To) got a blind copy. bcc says what becomes of the message for him:
//
//	symbol       it passes, with the symbol BCC for the filters behind
//	quarantine   it is held
//	reject       it is refused, 550 5.7.1
//
// Only recipients in domains of ours are judged, and with own = true those of
// our own users' messages wherever they are. What these fields hold is looked
// through for the address as a word, without regard to case; whether it stands
// in an angle bracket or in a comment does not matter, since the reader sees it.
//
// This breaks honest mail. Mailing lists name the list and not its members;
// forwarded mail names the address that was forwarded; so do aliases, catch-all
// domains, extension addresses and every rewriting on our side before this
// filter; reports of some systems, newsletters and calendar invitations name
// nobody. Hence nothing is judged by default, and exempt are postmaster and
// abuse, mail from <>, with lists = true (the default) mail with List-Id or
// List-Post, which anybody can write, and what the rule "except" matches, asked
// for each recipient by itself. Try it in shadow first.
package recipients

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// Name is the filter's name in the configuration, Symbol its finding.
const (
	Name   = "recipients"
	Symbol = "BCC"
)

// Options are the filter's part of the configuration.
type Options struct {
	Most    int    `toml:"most" doc:"how many recipients a stranger's message may have; 0: any number"`
	MostOwn int    `toml:"most_own" doc:"how many a message of our own users may have, relayed, authenticated or local; 0: any number"`
	Over    string `toml:"over" doc:"what becomes of a recipient by SMTP that is one too many; defer: it is for another message" oneof:"defer|reject"`
	// Bcc is off if it is "".
	Bcc    string `toml:"bcc" doc:"what becomes of a message for a recipient who is neither in To nor in Cc" oneof:"off|symbol|quarantine|reject"`
	Own    bool   `toml:"own" doc:"bcc: judge our own users' messages, too, and all their recipients"`
	Lists  bool   `toml:"lists" doc:"bcc: let mail with List-Id or List-Post pass"`
	Except string `toml:"except" doc:"bcc: a rule, asked for each recipient by itself; whom it matches is not judged"`
	Text   string `toml:"text" doc:"bcc: what the peer hears of a reject" unset:"the recipient must be named in To or Cc"`
}

const (
	off     = "off"
	symbol  = "symbol"
	bccText = "the recipient must be named in To or Cc"

	maxMost = 1_000_000
)

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.Kind{Name: Name, New: func(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
		o := Options{Over: reply.Defer.String(), Bcc: off, Lists: true}
		if err := decode(&o); err != nil {
			return nil, err
		}
		return New(o)
	}}
}

// Filter is the recipients filter. It is safe for concurrent use.
type Filter struct {
	most, mostOwn int
	over          pipeline.Verdict
	bcc           bool
	verdict       pipeline.Verdict // of a blind copy
	own, lists    bool
	except        *rules.Rule
}

// New makes a recipients filter. The errors say by a method Key which key they
// are about.
func New(o Options) (*Filter, error) {
	f := &Filter{most: o.Most, mostOwn: o.MostOwn, own: o.Own, lists: o.Lists}
	var wrong []error
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	if o.Most < 0 || o.Most > maxMost {
		bad("most", "%d: write 0 to %d", o.Most, maxMost)
	}
	if o.MostOwn < 0 || o.MostOwn > maxMost {
		bad("most_own", "%d: write 0 to %d", o.MostOwn, maxMost)
	}
	many := reply.Enhanced{Subject: 5, Detail: 3}
	switch o.Over {
	case "", reply.Defer.String():
		f.over = pipeline.Verdict{Action: pipeline.Defer, Reply: reply.Make(452, many, "too many recipients, please send the rest in another message")}
	case reply.Reject.String():
		f.over = pipeline.Verdict{Action: pipeline.Reject, Reply: reply.Make(550, many, reply.TooManyRecipients.Text)}
	default:
		bad("over", "%q: write defer or reject", reply.Clean(o.Over, 80))
	}
	text := o.Text
	switch {
	case text != reply.Clean(text, reply.MaxText):
		bad("text", "it must be one line of at most %d ASCII characters", reply.MaxText)
	case text == "":
		text = bccText
	}
	f.verdict.Symbols = []pipeline.Symbol{{Name: Symbol}}
	f.bcc = true
	switch o.Bcc {
	case "", off:
		f.bcc = false
	case symbol:
	case reply.Quarantine.String():
		f.verdict.Action = pipeline.Quarantine
	case reply.Reject.String():
		f.verdict.Action, f.verdict.Reply = pipeline.Reject, reply.Make(550, reply.Enhanced{Subject: 7, Detail: 1}, text)
	default:
		bad("bcc", "%q: write off, symbol, quarantine or reject", reply.Clean(o.Bcc, 80))
	}
	if o.Except != "" {
		var err error
		if f.except, err = rules.Compile(pipeline.Facts(), o.Except); err != nil {
			bad("except", "%w", err)
		}
	}
	if len(wrong) == 0 && f.most == 0 && f.mostOwn == 0 && !f.bcc {
		wrong = append(wrong, errors.New("it does nothing: write most, most_own or bcc"))
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	return f, nil
}

// Traits of a filter that protects.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Stages: []pipeline.Stage{pipeline.AtSender, pipeline.AtRecipient, pipeline.AtMessage}}
}

// Open returns an instance that knows how a session's recipients come.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return &instance{filter: f}, nil
}

// instance is the filter at work on one session.
type instance struct {
	filter *Filter
	// coming is set while recipients come one by one, as by SMTP; else the message
	// stage counts them. It says something once asked is set.
	asked, coming bool
}

// Close does nothing.
func (*instance) Close() error { return nil }

// Reset forgets the transaction.
func (i *instance) Reset() { i.asked, i.coming = false, false }

// Sender only looks how recipients will come: a shim knows them all already.
func (i *instance) Sender(_ context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	i.asked, i.coming = true, len(tx.Envelope.Recipients) == 0
	return pipeline.Verdict{}, nil
}

// limit is how many recipients a session's messages may have, 0 any number.
func (f *Filter) limit(s *pipeline.Session) int {
	if s.Standing == pipeline.Stranger {
		return f.most
	}
	return f.mostOwn
}

// Recipient says whether one more may come.
func (i *instance) Recipient(_ context.Context, tx *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	if !i.asked { // a rule about recipients has kept the filter from hearing of the sender
		i.asked, i.coming = true, !slices.ContainsFunc(tx.Envelope.Recipients, func(known envelope.Recipient) bool { return known.Address == r.Address })
	}
	most, n := i.filter.limit(tx.Session), len(tx.Envelope.Recipients)
	if !i.coming || most == 0 || n < most {
		return pipeline.Verdict{}, nil
	}
	v := i.filter.over
	v.Reason = fmt.Sprintf("it has %d recipients, at most %d", n, most)
	return v, nil
}

// Message counts where nobody has, and looks for blind copies.
func (i *instance) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	f := i.filter
	if most, n := f.limit(tx.Session), len(tx.Envelope.Recipients); most > 0 && n > most {
		return pipeline.Verdict{Action: pipeline.Reject, Reply: reply.TooManyRecipients, Reason: fmt.Sprintf("%d recipients, at most %d", n, most)}, nil
	}
	if !f.bcc {
		return pipeline.Verdict{}, nil
	}
	return f.blind(ctx, tx, m)
}

// blind judges those who got a blind copy.
func (f *Filter) blind(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	own := tx.Session.Standing != pipeline.Stranger
	switch head := m.Head(); {
	case own && !f.own:
		return pipeline.Verdict{}, nil
	case tx.Envelope.Sender == "" || tx.Envelope.Sender == envelope.DoubleBounce:
		return pipeline.Verdict{Reason: "from <>"}, nil
	case f.lists && (head.Get("List-Id") != "" || head.Get("List-Post") != ""):
		return pipeline.Verdict{Reason: "of a mailing list"}, nil
	}
	named := namedIn(m.Head())
	var blind []int
	for _, n := range tx.Active {
		address := tx.Envelope.Recipients[n].Address
		if !own && !tx.Session.IsOurs(address) || named[strings.TrimSuffix(strings.ToLower(address), ".")] || isRole(address) {
			continue
		}
		excepted, err := f.excepted(ctx, tx, m, n)
		if err != nil {
			return pipeline.Verdict{}, err
		}
		if !excepted {
			blind = append(blind, n)
		}
	}
	if len(blind) == 0 {
		return pipeline.Verdict{}, nil
	}
	v := f.verdict
	v.Reason = fmt.Sprintf("%d of %d recipients are not named in To or Cc, as %s", len(blind), len(tx.Active), reply.Clean(tx.Envelope.Recipients[blind[0]].Address, 200))
	if v.Only = blind; len(blind) == len(tx.Active) {
		v.Only = nil
	}
	return v, nil
}

// excepted asks the rule about one recipient.
func (f *Filter) excepted(ctx context.Context, tx *pipeline.Transaction, m message.Message, n int) (bool, error) {
	if f.except == nil {
		return false, nil
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	own := *tx
	own.Active = []int{n}
	is, err := f.except.Match(pipeline.FactsAt(&own, m))
	if err != nil {
		return false, fmt.Errorf("except: %w", err)
	}
	return is, nil
}

// isRole reports whether an address must be reachable whatever a message looks
// like (RFC 5321 §4.5.1, RFC 2142 §2).
func isRole(address string) bool {
	switch strings.ToLower(envelope.Local(address)) {
	case "postmaster", "abuse":
		return true
	}
	return false
}

// fields are those that name recipients.
var fields = [...]string{"To", "Cc", "Resent-To", "Resent-Cc", "Apparently-To"}

// namedIn are the addresses that the fields hold, in lower case: every word with
// an @ in it, wherever it stands. A head is bounded, and so are they.
func namedIn(h message.Head) map[string]bool {
	named := map[string]bool{}
	for i := range h.Len() {
		f := h.Field(i)
		for _, name := range fields {
			if !f.Is(name) {
				continue
			}
			for word := range strings.FieldsFuncSeq(strings.ToLower(f.Value()), isBreak) {
				_, rest, _ := strings.Cut(word, ":") // behind a group's name, or mailto
				for _, w := range [...]string{word, strings.Trim(word, `"'`), rest} {
					if w = strings.TrimSuffix(w, "."); strings.Contains(w, "@") {
						named[w] = true
					}
				}
			}
		}
	}
	return named
}

// isBreak reports whether a character ends a word. ':' ends a group's name, but may
// stand in a quoted local part, which is compared with its quotes.
func isBreak(c rune) bool {
	return strings.ContainsRune(" \t\r\n,;<>()[]", c)
}
