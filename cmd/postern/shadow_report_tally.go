package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
)

// Bounds of what the report remembers: filters, senders in all and of a filter,
// examples and switches of a filter.
const (
	maxShadowFilters  = 100
	maxShadowSenders  = 10_000
	maxFilterSenders  = 500
	maxShadowExamples = 3 // of each verdict
	maxShadowSwitches = 10
)

// shadowWould is what a filter in shadow would have done with a message.
type shadowWould uint8

const (
	wouldNothing shadowWould = iota
	wouldEdit
	wouldAccept
	wouldDiscard
	wouldQuarantine
	wouldDefer
	wouldRefuse
	shadowWoulds
)

var wouldWords = [shadowWoulds]string{"nothing", "edit", "accept", "discard", "quarantine", "defer", "refuse"}

// String is the report's word for it.
func (w shadowWould) String() string { return wouldWords[w] }

// objects reports whether it keeps the message from someone.
func (w shadowWould) objects() bool { return w >= wouldDiscard }

var wouldOf = map[string]shadowWould{
	pipeline.Reject.String(): wouldRefuse, pipeline.Defer.String(): wouldDefer, pipeline.Quarantine.String(): wouldQuarantine,
	pipeline.Discard.String(): wouldDiscard, pipeline.Accept.String(): wouldAccept,
}

// shadowFact is what became of a message in fact.
type shadowFact uint8

const (
	wasAccepted shadowFact = iota
	wasDeferred
	wasRefused
	wasQuarantined
	wasDiscarded
	wasGivenUp
	shadowFacts
)

var factWords = [shadowFacts]string{"accepted", "deferred", "refused", "quarantined", "discarded", "given up"}

// String is the report's word for it.
func (f shadowFact) String() string { return factWords[f] }

// factOf is what an action of the chain comes to.
func factOf(action string) shadowFact {
	return [shadowWoulds]shadowFact{
		wouldRefuse: wasRefused, wouldDefer: wasDeferred, wouldQuarantine: wasQuarantined, wouldDiscard: wasDiscarded,
	}[wouldOf[action]]
}

// differs reports whether the message would have had another fate, had the
// filter counted.
func (w shadowWould) differs(f shadowFact) bool {
	same := [shadowWoulds]shadowFact{wouldAccept: wasAccepted, wouldDiscard: wasDiscarded, wouldQuarantine: wasQuarantined, wouldDefer: wasDeferred, wouldRefuse: wasRefused}
	return w >= wouldAccept && f != wasGivenUp && same[w] != f
}

// shadowCount counts the messages that would have had one fate, by the one
// that they had.
type shadowCount struct {
	Messages   int
	Recipients int
	InFact     [shadowFacts]int
}

// MarshalJSON names the fates.
func (c shadowCount) MarshalJSON() ([]byte, error) {
	facts := map[string]int{}
	for f, n := range c.InFact {
		if n > 0 {
			facts[shadowFact(f).String()] = n
		}
	}
	return json.Marshal(struct {
		Messages   int            `json:"messages"`
		Recipients int            `json:"recipients"`
		InFact     map[string]int `json:"in_fact"`
	}{c.Messages, c.Recipients, facts})
}

// shadowVerdicts are counts by what would have been.
type shadowVerdicts [shadowWoulds]shadowCount

// MarshalJSON names those that there are.
func (v shadowVerdicts) MarshalJSON() ([]byte, error) {
	named := map[string]shadowCount{}
	for w, c := range v {
		if c.Messages > 0 {
			named[shadowWould(w).String()] = c
		}
	}
	return json.Marshal(named)
}

func (v *shadowVerdicts) count(w shadowWould, recipients int, f shadowFact) {
	c := &v[w]
	c.Messages++
	c.Recipients += recipients
	c.InFact[f]++
}

// shadowFilter is the report's row of a filter.
type shadowFilter struct {
	Filter   string         `json:"filter"`
	Messages int            `json:"messages"`
	Verdicts shadowVerdicts `json:"verdicts"`
	// Edits counts messages that it would have changed, whatever else it said;
	// Failed those of which it could say nothing, Differs those that would have
	// had another fate, had the filter counted.
	Edits    int             `json:"edits"`
	Failed   int             `json:"failed"`
	Differs  int             `json:"differs"`
	Switched []shadowByHand  `json:"switched,omitempty"`
	Senders  []*shadowSender `json:"senders,omitempty"`
	Examples []shadowExample `json:"examples,omitempty"`

	senders  shadowSenders
	examples [shadowWoulds][]shadowExample
}

// shadowByHand is a mode that an operator set.
type shadowByHand struct {
	Time  time.Time `json:"time"`
	Mode  string    `json:"mode"`
	By    string    `json:"by,omitempty"`
	Until string    `json:"until,omitempty"`
}

// shadowExample is one message.
type shadowExample struct {
	Would     string    `json:"would"`
	InFact    string    `json:"in_fact"`
	Time      time.Time `json:"time"`
	ID        string    `json:"id"`
	MessageID string    `json:"message_id,omitempty"`
	From      string    `json:"from"`
	To        string    `json:"to"`
	Stage     string    `json:"stage"`
	Reason    string    `json:"reason,omitempty"`

	differs bool
}

// shadowSender is the report's row of a sender's domain.
type shadowSender struct {
	Domain   string         `json:"domain"`
	Messages int            `json:"messages"`
	Verdicts shadowVerdicts `json:"verdicts"`
	Edits    int            `json:"edits"`
	Differs  int            `json:"differs"`
}

// weight is what senders are ordered by: whom a filter would have kept out
// comes first.
func (s *shadowSender) weight() int {
	n := s.Edits
	for w := wouldAccept; w < shadowWoulds; w++ {
		n += s.Verdicts[w].Messages
	}
	return n
}

// shadowSenders keeps the senders with the most weight. Twice as many as are
// kept are counted, and the lighter half is given up then.
type shadowSenders struct {
	max  int
	rows map[string]*shadowSender
	// lost is the most weight that a row can lack.
	lost int
}

func (t *shadowSenders) of(domain string) *shadowSender {
	s := t.rows[domain]
	if s != nil {
		return s
	}
	if len(t.rows) >= 2*t.max {
		all := t.sorted()
		t.lost += all[t.max].weight()
		for _, s := range all[t.max:] {
			delete(t.rows, s.Domain)
		}
	}
	if t.rows == nil {
		t.rows = map[string]*shadowSender{}
	}
	s = &shadowSender{Domain: domain}
	t.rows[domain] = s
	return s
}

func (t *shadowSenders) sorted() []*shadowSender {
	return slices.SortedFunc(maps.Values(t.rows), func(a, b *shadowSender) int {
		return cmp.Or(cmp.Compare(b.weight(), a.weight()), cmp.Compare(b.Messages, a.Messages), cmp.Compare(a.Domain, b.Domain))
	})
}

// top are the heaviest.
func (t *shadowSenders) top(n int) []*shadowSender {
	all := t.sorted()
	return all[:min(n, len(all))]
}

// shadowTally counts lines; its memory is bounded, whatever the log holds.
type shadowTally struct {
	first, last      time.Time
	messages, judged int
	unread           int // lines about messages that are damaged
	filters          map[string]*shadowFilter
	more             int // verdicts of filters that found no room
	senders          shadowSenders
}

func newShadowTally() *shadowTally {
	return &shadowTally{filters: map[string]*shadowFilter{}, senders: shadowSenders{max: maxShadowSenders}}
}

// filter is a filter's row, nil if there are too many.
func (t *shadowTally) filter(name string) *shadowFilter {
	f := t.filters[name]
	if f == nil && len(t.filters) < maxShadowFilters {
		f = &shadowFilter{Filter: name, senders: shadowSenders{max: maxFilterSenders}}
		t.filters[name] = f
	}
	return f
}

// line counts a line of a log.
func (t *shadowTally) line(b []byte) {
	l, err := parseShadowLine(b)
	if err != nil {
		t.unread += oneIf(!errors.Is(err, errNoShadowLine))
		return
	}
	if !l.Time.IsZero() && (t.first.IsZero() || l.Time.Before(t.first)) {
		t.first = l.Time
	}
	if l.Time.After(t.last) {
		t.last = l.Time
	}
	if l.Msg == shadowSwitch {
		if f := t.filter(l.Filter); f != nil && len(f.Switched) < maxShadowSwitches {
			f.Switched = append(f.Switched, shadowByHand{l.Time, l.Mode, l.By, l.Until})
		}
		return
	}
	if l.Msg == shadowMessage {
		t.messages++
	}
	if len(l.Shadow) > 0 {
		t.judged++
		t.message(&l)
	}
}

// opinion is what one filter said of one message.
type opinion struct {
	would             shadowWould
	recipients, edits int
	failed            bool
	said              *pipeline.ShadowVerdict // that of which would is
}

// message counts what the filters said of a message: each filter's most severe
// verdict, and for its sender the most severe of all.
func (t *shadowTally) message(l *shadowLine) {
	fact, domain := l.fact(), senderDomain(l.From)
	opinions := map[string]*opinion{}
	for i := range l.Shadow {
		v := &l.Shadow[i]
		o := opinions[v.Filter]
		if o == nil {
			o = &opinion{said: v}
			opinions[v.Filter] = o
		}
		o.add(v)
	}
	sender, worst := t.senders.of(domain), &opinion{}
	for name, o := range opinions {
		if o.would > worst.would || o.would == worst.would && o.recipients > worst.recipients {
			worst.would, worst.recipients = o.would, o.recipients
		}
		worst.edits += o.edits
		f := t.filter(name)
		if f == nil {
			t.more++
			continue
		}
		f.add(o, l, fact, domain)
	}
	sender.add(worst, fact)
}

// add takes in what a filter said at one stage, or of some recipients.
func (o *opinion) add(v *pipeline.ShadowVerdict) {
	w := wouldOf[v.Action]
	if v.Failed {
		o.failed, w = true, wouldNothing
	}
	if w == wouldNothing && v.Edits > 0 {
		w = wouldEdit
	}
	if !w.objects() { // what is kept out is not edited
		o.edits += v.Edits
	}
	switch {
	case w > o.would:
		o.would, o.recipients, o.said = w, v.Recipients, v
	case w == o.would:
		o.recipients += v.Recipients
	}
}

// keepExample keeps a few, and rather those that make a difference.
func keepExample(all []shadowExample, e shadowExample) []shadowExample {
	if len(all) < maxShadowExamples {
		return append(all, e)
	}
	if i := slices.IndexFunc(all, func(o shadowExample) bool { return !o.differs }); e.differs && i >= 0 {
		return append(slices.Delete(all, i, i+1), e)
	}
	return all
}

func (f *shadowFilter) add(o *opinion, l *shadowLine, fact shadowFact, domain string) {
	f.Messages++
	f.Verdicts.count(o.would, o.recipients, fact)
	f.Edits += oneIf(o.edits > 0)
	f.Failed += oneIf(o.failed)
	differs := o.would.differs(fact)
	f.Differs += oneIf(differs)
	f.senders.of(domain).add(o, fact)
	if o.would == wouldNothing && !o.failed {
		return
	}
	e := shadowExample{
		Would: o.would.String(), InFact: fact.String(), Time: l.Time, ID: l.ID, MessageID: l.MessageID, From: l.From, To: l.To,
		Stage: o.said.Stage, Reason: o.said.Reason, differs: differs,
	}
	if o.would == wouldNothing {
		e.Would = "fail"
	}
	f.examples[o.would] = keepExample(f.examples[o.would], e)
}

func (s *shadowSender) add(o *opinion, fact shadowFact) {
	s.Messages++
	s.Verdicts.count(o.would, o.recipients, fact)
	s.Edits += oneIf(o.edits > 0)
	s.Differs += oneIf(o.would.differs(fact))
}

func oneIf(b bool) int {
	if b {
		return 1
	}
	return 0
}

// senderDomain is what senders are grouped by.
func senderDomain(from string) string {
	if from == "" {
		return "<>"
	}
	at := strings.LastIndexByte(from, '@')
	if at < 0 {
		return "(no domain)"
	}
	return pipeline.LogText(strings.ToLower(from[at+1:]), 100)
}
