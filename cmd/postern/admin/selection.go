package admin

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
	"github.com/postern-mta/postern/rules"
)

// QueueFacts is the schema of what a rule about queued messages may name.
func QueueFacts() *rules.Schema {
	declared := make([]rules.Fact, len(queueFacts))
	for i, f := range queueFacts {
		declared[i] = rules.Fact{Name: f.name, Type: f.kind, Doc: f.doc}
	}
	return rules.NewSchema(declared...)
}

// subject is what a rule about the queue is matched against: a message, and
// what was read of it on demand.
type subject struct {
	*queue.View
	now    time.Time
	origin *pipeline.Origin
	head   *message.Head
}

// queueFacts is the one table of facts.
var queueFacts = [...]struct {
	name  string
	kind  rules.Type
	doc   string
	value func(*subject) any
}{
	{"id", rules.String, "the message's id", func(s *subject) any { return s.ID.String() }},
	{"sender", rules.String, "the envelope sender, \"\" for reports", func(s *subject) any { return s.Envelope.Sender }},
	{"sender_domain", rules.String, "the sender's domain in lower case", func(s *subject) any { return envelope.Domain(s.Envelope.Sender) }},
	{"recipients", rules.Strings, "the recipients, whatever became of them", func(s *subject) any {
		return s.each(func(r *queue.Recipient) string { return r.Address })
	}},
	{"waiting", rules.Strings, "the recipients that are not done with", func(s *subject) any {
		return s.each(func(r *queue.Recipient) string {
			if r.Status.Done() {
				return ""
			}
			return r.Address
		})
	}},
	{"domains", rules.Strings, "the recipients' domains as they are delivered to", func(s *subject) any {
		return s.each(func(r *queue.Recipient) string { return r.Domain })
	}},
	{"channels", rules.Strings, "the channels by which the recipients leave", func(s *subject) any {
		return s.each(func(r *queue.Recipient) string { return r.Channel })
	}},
	{"status", rules.Strings, "what has become of the recipients: fresh, deferred, delivered, failed", func(s *subject) any {
		return s.each(func(r *queue.Recipient) string { return r.Status.String() })
	}},
	{"replies", rules.Strings, "the last answers about the recipients", func(s *subject) any {
		return s.each(func(r *queue.Recipient) string { return replyText(r.State) })
	}},
	{"servers", rules.Strings, "who gave these answers", func(s *subject) any {
		return s.each(func(r *queue.Recipient) string { return r.Where })
	}},
	{"size", rules.Int, "the message's size in bytes", func(s *subject) any { return s.Size }},
	{"age", rules.Duration, "how long it has been in the queue", func(s *subject) any { return s.now.Sub(s.Arrival) }},
	{"attempts", rules.Int, "the most attempts for one of its recipients", func(s *subject) any {
		most := 0
		for i := range s.Recipients {
			most = max(most, int(s.Recipients[i].Attempts))
		}
		return most
	}},
	{"perhaps", rules.Bool, "whether a connection was lost after the final dot, so that it may have been delivered", func(s *subject) any {
		return slices.ContainsFunc(s.Recipients, func(r queue.Recipient) bool { return r.Perhaps })
	}},
	{"held", rules.Bool, "whether it is held", func(s *subject) any { return s.Hold != nil }},
	{"hold_reason", rules.String, "why it is held", func(s *subject) any { return s.hold().Reason }},
	{"hold_filter", rules.String, "the filter that holds it", func(s *subject) any { return s.hold().Filter }},
	{"hold_by", rules.String, "the operator who holds it", func(s *subject) any { return s.hold().By }},
	{"bounce", rules.Int, "how many reports deep it is, 0 for mail", func(s *subject) any { return int(s.Bounce) }},
	{"entrance", rules.String, "the listener by which it came", func(s *subject) any { return s.from().Entrance }},
	{"standing", rules.String, "what its client was: external, relay, auth or local", func(s *subject) any { return s.from().Standing }},
	{"user", rules.String, "who had logged in", func(s *subject) any { return s.from().User }},
	{"uid", rules.Int, "the uid of a local caller, -1 for the network", func(s *subject) any { return s.from().UID }},
	{"peer", rules.IP, "the client's address", func(s *subject) any {
		a, err := netip.ParseAddr(s.from().Peer)
		if err != nil {
			return netip.Addr{}
		}
		return a
	}},
	{"helo", rules.String, "the name the client gave itself", func(s *subject) any { return s.from().Helo }},
	{"header", rules.StringFunc, "the value of the first field of a name", func(s *subject) any { return s.fields().Get }},
	{"headers", rules.StringsFunc, "the values of all fields of a name", func(s *subject) any { return s.fields().Values }},
}

// fact gives the value that a rule asks for.
func (s *subject) fact(name string) any {
	for i := range queueFacts {
		if f := &queueFacts[i]; f.name == name {
			return f.value(s)
		}
	}
	return nil
}

// each are the recipients' values that are not "", in order.
func (s *subject) each(value func(*queue.Recipient) string) []string {
	all := make([]string, 0, len(s.Recipients))
	for i := range s.Recipients {
		if v := value(&s.Recipients[i]); v != "" {
			all = append(all, v)
		}
	}
	return all
}

func (s *subject) hold() store.Hold {
	if s.Hold == nil {
		return store.Hold{}
	}
	return *s.Hold
}

// from is the message's origin; of one that cannot be read nothing is known.
func (s *subject) from() *pipeline.Origin {
	if s.origin == nil {
		o, err := pipeline.DecodeOrigin(s.Origin)
		if err != nil {
			o = pipeline.Origin{UID: -1}
		}
		s.origin = &o
	}
	return s.origin
}

func (s *subject) fields() message.Head {
	if s.head == nil {
		h, _ := message.ParseHead(s.Head)
		s.head = &h
	}
	return *s.head
}

// matcher matches messages one after the other; it is not for concurrent use.
type matcher struct {
	rule *rules.Rule
	now  time.Time
	// only chooses before the rule is asked; nil: everything.
	only func(*queue.View) bool
	// undecided counts the messages for which the rule had no answer; why is the
	// first reason.
	undecided int
	why       string
}

// newMatcher compiles a rule; "" matches everything.
func newMatcher(rule string, now time.Time) (*matcher, error) {
	m := &matcher{now: now}
	if rule == "" {
		return m, nil
	}
	var err error
	if m.rule, err = rules.Compile(QueueFacts(), rule); err != nil {
		return nil, fmt.Errorf("rule: %w", err)
	}
	return m, nil
}

// match says whether the message is chosen. One for which the rule has no
// answer is not.
func (m *matcher) match(v *queue.View) bool {
	if m.only != nil && !m.only(v) {
		return false
	}
	if m.rule == nil {
		return true
	}
	s := subject{View: v, now: m.now}
	yes, err := m.rule.Match(s.fact)
	if err != nil {
		if m.undecided == 0 {
			m.why = fmt.Sprintf("%v: %v", v.ID, err)
		}
		m.undecided++
	}
	return yes && err == nil
}

// errNoSelection is the answer to an operation that names no message, so that a
// mistake is never "the whole queue".
var errNoSelection = errors.New("no message is selected: name ids, a rule (match), or all")

// selection is what was asked for, as the queue takes it.
func selection(s *api.QueueSelect, now time.Time) (queue.Selection, *matcher, error) {
	sel := queue.Selection{DryRun: s.DryRun}
	switch {
	case s.All && (len(s.IDs) > 0 || s.Match != ""):
		return sel, nil, errors.New("all goes neither with ids nor with a rule")
	case !s.All && len(s.IDs) == 0 && s.Match == "":
		return sel, nil, errNoSelection
	}
	m, err := newMatcher(s.Match, now)
	if err != nil {
		return sel, nil, err
	}
	for _, text := range s.IDs {
		id, err := ParseQueueID(text)
		if err != nil {
			return sel, nil, err
		}
		sel.IDs = append(sel.IDs, id)
	}
	if s.All || s.Match != "" {
		sel.Match = m.match
	}
	return sel, m, nil
}

// ParseQueueID reads a message's id, or its decimal number as qread prints it,
// with or without the #.
func ParseQueueID(s string) (store.ID, error) {
	if id, err := store.ParseID(s); err == nil {
		return id, nil
	}
	if n, err := strconv.ParseUint(strings.TrimPrefix(s, "#"), 10, 64); err == nil {
		return store.ID(n), nil
	}
	return 0, fmt.Errorf("%q is no message's id: these have 13 letters and digits, see postern queue list", reply.Clean(s, 40))
}
