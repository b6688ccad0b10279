package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/state"
	"github.com/postern-mta/postern/rules"
)

// The suite that every filter passes. Of a limit that is not used up nothing
// shows; what is larger than one never passes.
func TestSuite(t *testing.T) {
	const wide = "[[limit]]\nby = \"client\"\nmessages = 100000\nrecipients = 1000000000\nbytes = 1000000000000\nattempts = 100000\nper = 3600000000000\n"
	lmtp := filtertest.Stranger()
	lmtp.AnswersEach = true
	const each = "[[limit]]\nby = \"recipient\"\nbytes = 10\nper = 3600000000000\nwhen = '\"full@example.org\" in recipients'\n"
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: wide, Stateful: true,
		Cases: []filtertest.Case{
			{Name: "room", From: "a@example.net"},
			{
				Name: "too large", Config: "[[limit]]\nby = \"sender\"\nbytes = 10\nper = 3600000000000\n", From: "a@example.net", WantAction: pipeline.Reject,
				WantReply: "554 5.7.1 too much mail at once", WantReason: "limit sender/1h of a@example.net: 10 bytes in 1h; this is ", WantEnvelopes: []string{},
			},
			{
				Name: "too many", Config: "text = \"slowly\"\n[[limit]]\nname = \"few\"\nby = \"all\"\nrecipients = 1\nper = 90000000000\n", From: "a@example.net", To: []string{"r@example.org", "s@example.org"},
				WantAction: pipeline.Reject, WantReply: "554 5.7.1 slowly at once", WantReason: "limit few of *: 1 recipients in 1m30s; this is 2", WantEnvelopes: []string{},
			},
			{Name: "from nobody", Config: "[[limit]]\nby = \"sender\"\nbytes = 10\nper = 3600000000000\n"},
			{Name: "nobody logged in", Config: "[[limit]]\nby = \"user\"\nbytes = 10\nper = 3600000000000\n", From: "a@example.net"},
			{Name: "no address", Config: "[[limit]]\nby = \"client-net\"\nbytes = 10\nper = 3600000000000\n", Session: &pipeline.Session{Standing: pipeline.Local}, From: "a@example.net"},
			{Name: "by rule", Config: "[[limit]]\nby = \"sender\"\nbytes = 10\nper = 3600000000000\nwhen = 'not external'\n", From: "a@example.net"},
			{Name: "by a rule about the message", Config: "[[limit]]\nby = \"sender\"\nbytes = 10\nper = 3600000000000\nwhen = 'header(\"X\") == \"y\"'\n", From: "a@example.net"},
			{
				Name: "one recipient's", Config: each, Session: lmtp, From: "a@example.net", To: []string{"r@example.org", "Full@example.org"}, Message: "Subject: x\n\nsome text\n",
			},
			{
				Name: "one recipient's own", Config: strings.ReplaceAll(each, "full@", "Full@"), Session: lmtp, From: "a@example.net", To: []string{"r@example.org", "Full@example.org"}, Message: "Subject: x\n\nsome text\n",
				WantActions: []pipeline.Action{pipeline.Continue, pipeline.Reject}, WantReason: "limit recipient/1h of full@example.org", WantEnvelopes: []string{"a@example.net -> r@example.org"},
			},
		},
	})
}

func TestConfiguration(t *testing.T) {
	good := Limit{By: "user", Messages: 1, Per: time.Hour}
	with := func(change func(*Limit)) Options {
		l := good
		change(&l)
		return Options{Limits: []Limit{{Name: "first", By: "all", Bytes: 1, Per: time.Minute}, l}}
	}
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"none":         {Options{}, "", "there is no limit"},
		"many":         {Options{Limits: make([]Limit, maxLimits+1)}, "limit[50]", "more than 50"},
		"by":           {with(func(l *Limit) { l.By = "ip" }), "limit[1].by", "write one of sender, sender-domain"},
		"per":          {with(func(l *Limit) { l.Per = 0 }), "limit[1].per", "1s to 31d"},
		"long":         {with(func(l *Limit) { l.Per = 32 * 24 * time.Hour }), "limit[1].per", "1s to 31d"},
		"nothing":      {with(func(l *Limit) { l.Messages = 0 }), "limit[1]", "limits nothing"},
		"negative":     {with(func(l *Limit) { l.Recipients = -1 }), "limit[1].recipients", "write 1 to"},
		"huge":         {with(func(l *Limit) { l.Bytes = 1 << 60 }), "limit[1].bytes", "write 1 to"},
		"attempts":     {with(func(l *Limit) { l.By, l.Attempts = "recipient", 3 }), "limit[1].attempts", "before a recipient is known"},
		"name":         {with(func(l *Limit) { l.Name = "a b" }), "limit[1].name", "letters, digits"},
		"same name":    {Options{Limits: []Limit{good, good}}, "limit[1]", "called user/1h, as limit 1 is"},
		"rule":         {with(func(l *Limit) { l.When = "sendr == 1" }), "limit[1].when", "did you mean"},
		"text":         {Options{Limits: []Limit{good}, Text: "a\nb"}, "text", "one line"},
		"nothing else": {Options{Limits: []Limit{good}}, "", ""},
	} {
		f, err := New(pipeline.Env{}, c.o)
		if c.want == "" {
			if err != nil || f.limits[0].name != "user/1h" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &at) != (c.key != "") || c.key != "" && at.Key() != c.key {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// rig is a chain with the filter, a clock, and a state as the daemon has it.
type rig struct {
	t     testing.TB
	f     *Filter
	chain *pipeline.Chain
	store *state.Store
	clock time.Time
	fs    vfs.FS
	when  *rules.Rule // of the filter; nil: none
}

func newRig(t testing.TB, limits ...Limit) *rig {
	r := &rig{t: t, clock: start, fs: vfs.NewMem()}
	r.open(limits...)
	return r
}

// open makes filter and chain; again, after a restart.
func (r *rig) open(limits ...Limit) {
	r.t.Helper()
	if r.store != nil {
		if err := r.store.Close(); err != nil {
			r.t.Fatal(err)
		}
	}
	now := func() time.Time { return r.clock }
	s, err := state.Open(state.Options{Dir: "/state", FS: r.fs, Now: now, Every: time.Hour, Step: state.MaxTTL})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { s.Close() })
	r.store = s
	if r.f, err = New(pipeline.Env{State: s.Space(Name), Now: now}, Options{Limits: limits}); err != nil {
		r.t.Fatal(err)
	}
	if r.chain, err = pipeline.NewChain("inbound", []pipeline.Step{{Name: Name, Filter: r.f, OnError: pipeline.ErrorDefers, When: r.when}}, pipeline.ChainOptions{}); err != nil {
		r.t.Fatal(err)
	}
	chain := r.chain
	r.t.Cleanup(func() { chain.Close() })
}

func session(ip string) *pipeline.Session {
	s := filtertest.Stranger()
	s.Peer = netip.AddrPortFrom(netip.MustParseAddr(ip), 0)
	return s
}

// shim is what a shim's caller hears of a whole message.
func (r *rig) shim(s *pipeline.Session, from string, size int, to ...string) string {
	m := message.FromString("Subject: x\n\n" + strings.Repeat("x", max(size-13, 0)) + "\n")
	defer m.Body().Release()
	o := r.chain.Run(context.Background(), &pipeline.Transaction{ID: "1", Session: s, Envelope: envelope.To(from, to...)}, m)
	defer o.Release()
	return o.Reply.SMTP()
}

func (r *rig) want(answer, got string) {
	r.t.Helper()
	if !strings.HasPrefix(got, answer) {
		r.t.Fatalf("heard %q, want %q", got, answer)
	}
}

// Messages, recipients and bytes by the shim: what is put off does not count,
// and what waited as long as it was told passes; a restart forgets nothing.
func TestByShim(t *testing.T) {
	limits := []Limit{
		{By: "sender", Messages: 3, Recipients: 5, Bytes: 1000, Per: time.Hour},
		{By: "client-net", Messages: 4, Per: 10 * time.Minute},
	}
	r := newRig(t, limits...)
	s := session("192.0.2.7")
	r.want("250 ", r.shim(s, "a@example.net", 100, "r@example.org", "s@example.org"))
	r.want("250 ", r.shim(s, "A@Example.NET.", 100, "r@example.org", "s@example.org"))
	r.want("451 4.7.1 too many recipients, please try again in 61 minutes", r.shim(s, "a@example.net", 100, "r@example.org", "s@example.org"))
	r.want("451 4.7.1 too much mail, ", r.shim(s, "a@example.net", 900, "r@example.org"))
	r.want("554 5.7.1 too much mail at once", r.shim(s, "a@example.net", 1001, "r@example.org"))
	r.want("250 ", r.shim(s, "a@example.net", 100, "r@example.org"))
	r.want("451 4.7.1 too many", r.shim(s, "a@example.net", 100, "r@example.org"))
	r.want("250 ", r.shim(session("192.0.2.200"), "b@example.net", 500, "r@example.org"))
	r.want("451 4.7.1 too many messages, please try again in 11 minutes", r.shim(session("192.0.2.99"), "c@example.net", 100, "r@example.org"))
	r.want("250 ", r.shim(session("192.0.3.1"), "c@example.net", 100, "r@example.org"))
	r.want("250 ", r.shim(session("192.0.3.1"), "", 5000, "r@example.org"))
	r.open(limits...)
	r.clock = r.clock.Add(10*time.Minute + 10*time.Second)
	r.want("250 ", r.shim(session("192.0.2.99"), "c@example.net", 100, "r@example.org"))
	r.want("451 ", r.shim(s, "a@example.net", 100, "r@example.org"))
	r.clock = r.clock.Add(51 * time.Minute)
	r.want("250 ", r.shim(s, "a@example.net", 100, "r@example.org"))
}

// smtp is one transaction of a session; until it ends, recipients are only
// promised.
type smtp struct {
	r  *rig
	j  *pipeline.Judge
	tx *pipeline.Transaction
}

func (r *rig) dial(s *pipeline.Session) *smtp {
	j := r.chain.Begin()
	r.t.Cleanup(j.Close)
	return &smtp{r: r, j: j, tx: &pipeline.Transaction{ID: "2", Session: s}}
}

func (c *smtp) mail(from string) string {
	c.j.Reset()
	c.tx.Envelope = envelope.Envelope{Sender: from}
	return answerOf(c.j.Sender(context.Background(), c.tx))
}

func answerOf(f pipeline.Fate) string {
	if f.Action == pipeline.Continue {
		return "250 "
	}
	return f.Reply.SMTP()
}

func (c *smtp) rcpt(to string) string {
	f := c.j.Recipient(context.Background(), c.tx, envelope.Recipient{Address: to})
	if f.Action == pipeline.Continue {
		c.tx.Envelope.Recipients = append(c.tx.Envelope.Recipients, envelope.Recipient{Address: to})
	}
	return answerOf(f)
}

func (c *smtp) data(size int) string {
	m := message.FromString("Subject: x\n\n" + strings.Repeat("x", max(size-13, 0)) + "\n")
	defer m.Body().Release()
	o := c.j.Message(context.Background(), c.tx, m)
	defer o.Release()
	return o.Reply.SMTP()
}

// By SMTP a limit shows at MAIL and at RCPT, and only a message that has come
// counts; attempts do in any case.
func TestBySMTP(t *testing.T) {
	r := newRig(t, Limit{By: "user", Messages: 2, Recipients: 3, Per: time.Hour}, Limit{By: "client", Attempts: 6, Per: time.Minute})
	s := session("192.0.2.7")
	s.Standing, s.User = pipeline.Authenticated, "Joe"
	c := r.dial(s)
	for range 3 { // broken off each time
		r.want("250 ", c.mail("a@example.net"))
		r.want("250 ", c.rcpt("r@example.org"))
		r.want("250 ", c.rcpt("s@example.org"))
		r.want("250 ", c.rcpt("t@example.org"))
		r.want("452 4.5.3 too many recipients, please try again in", c.rcpt("u@example.org"))
	}
	r.want("250 ", c.data(100))
	r.want("451 4.7.1 too many recipients", c.mail("a@example.net"))
	r.want("452 4.5.3 ", r.rcptOf(s, "x@example.org"))
	r.clock = r.clock.Add(62 * time.Second)
	r.want("451 4.7.1 too many recipients", c.mail("a@example.net"))
	r.clock = r.clock.Add(time.Hour + time.Minute)
	for n := range 2 {
		r.want("250 ", c.mail("a@example.net"))
		r.want("250 ", c.rcpt("r@example.org"))
		r.want("250 ", c.data(100+n))
	}
	r.want("451 4.7.1 too many messages, please try again in 61 minutes", c.mail("a@example.net"))
	other := session("192.0.2.8")
	other.Standing, other.User = pipeline.Authenticated, "sue"
	o := r.dial(other)
	for range 6 {
		r.want("250 ", o.mail("a@example.net"))
	}
	r.want("451 4.7.1 too many attempts, please try again in ", o.mail("a@example.net"))
	r.clock = r.clock.Add(62 * time.Second)
	r.want("250 ", o.mail("a@example.net"))
}

// A filter with a rule about recipients does not hear of the sender; the limits are
// the same.
func TestRuleAboutRecipients(t *testing.T) {
	limit := Limit{By: "client", Recipients: 2, Per: time.Hour}
	r := newRig(t, limit)
	var err error
	if r.when, err = rules.Compile(pipeline.Facts(), `not ("x@example.org" in recipients)`); err != nil {
		t.Fatal(err)
	}
	r.open(limit)
	c := r.dial(session("192.0.2.7"))
	for range 2 {
		r.want("250 ", c.mail("a@example.net"))
		r.want("250 ", c.rcpt("r@example.org"))
		r.want("250 ", c.rcpt("s@example.org"))
		r.want("452 4.5.3 too many recipients", c.rcpt("t@example.org"))
		r.want("250 ", c.data(100))
		r.clock = r.clock.Add(2 * time.Hour)
	}
	r.want("554 5.7.1 too many recipients at once", r.shim(session("192.0.2.7"), "a@example.net", 100, "r@example.org", "s@example.org", "t@example.org"))
	r.want("250 ", r.shim(session("192.0.2.7"), "a@example.net", 100, "r@example.org", "s@example.org"))
}

// rcptOf is what another session's recipient hears.
func (r *rig) rcptOf(s *pipeline.Session, to string) string {
	c := r.dial(s)
	c.tx.Envelope.Sender = "a@example.net"
	return c.rcpt(to)
}

// The limits of recipients: RCPT says so to each; by a shim all wait, and what
// waits does not count for the others.
func TestByRecipient(t *testing.T) {
	r := newRig(t, Limit{By: "recipient", Messages: 2, Per: time.Hour}, Limit{By: "recipient-domain", Recipients: 5, Per: time.Hour})
	s := session("192.0.2.7")
	r.want("250 ", r.shim(s, "a@b", 100, "r@example.org"))
	r.want("250 ", r.shim(s, "a@b", 100, "R@example.org.", "s@example.org"))
	r.want("450 4.2.1 too many messages, please try again in 61 minutes", r.shim(s, "a@b", 100, "r@example.org", "s@example.org", "t@example.com"))
	c := r.dial(s)
	r.want("250 ", c.mail("a@b"))
	r.want("450 4.2.1 ", c.rcpt("r@example.org"))
	r.want("250 ", c.rcpt("s@example.org"))
	r.want("250 ", c.data(100))
	r.want("250 ", r.shim(s, "a@b", 100, "t@example.org"))
	r.want("450 4.2.1 too many recipients", r.shim(s, "a@b", 100, "u@example.org"))
	r.want("250 ", r.shim(s, "a@b", 100, "t@example.com"))
	lmtp := session("192.0.2.7")
	lmtp.AnswersEach = true
	m := message.FromString("Subject: x\n\nx\n")
	o := r.chain.Run(context.Background(), &pipeline.Transaction{ID: "1", Session: lmtp, Envelope: envelope.To("a@b", "r@example.org", "v@example.com")}, m)
	defer o.Release()
	if o.Fates[0].Action != pipeline.Defer || o.Fates[1].Action != pipeline.Continue || len(o.Outgoing) != 1 {
		t.Errorf("%+v", o.Fates)
	}
	all := r.list(Selection{Subject: "v@"})
	if len(all) != 1 || all[0].Messages != 1 || all[0].Limit != "recipient/1h" {
		t.Errorf("%+v", all)
	}
}

// However many come at once, exactly as many pass as the limit has.
func TestConcurrent(t *testing.T) {
	r := newRig(t, Limit{By: "sender", Messages: 20, Per: time.Hour}, Limit{By: "all", Recipients: 30, Per: time.Hour}, Limit{By: "recipient", Messages: 1, Per: time.Hour})
	var passed, later atomic.Int64
	var wg sync.WaitGroup
	for n := range 80 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			switch got := r.shim(session("192.0.2.7"), fmt.Sprintf("s%d@example.net", n%2), 100, fmt.Sprintf("r%d@example.org", n/2)); got[:3] {
			case "250":
				passed.Add(1)
			case "450", "451":
				later.Add(1)
			}
		}()
	}
	wg.Wait()
	if passed.Load() != 30 || later.Load() != 50 {
		t.Errorf("%d passed, %d later", passed.Load(), later.Load())
	}
	n := uint64(0)
	for _, e := range r.list(Selection{Limit: "sender/1h"}) {
		n += e.Messages
	}
	if n != 30 {
		t.Errorf("%d counted", n)
	}
}

func (r *rig) list(s Selection) (all []Entry) {
	r.t.Helper()
	if err := List(context.Background(), r.store.Space(Name), s, r.clock, func(e Entry) bool { all = append(all, e); return true }); err != nil {
		r.t.Fatal(err)
	}
	return all
}

// What an operator sees, and forgets.
func TestBook(t *testing.T) {
	r := newRig(t, Limit{By: "sender", Messages: 5, Per: time.Hour}, Limit{Name: "net", By: "client-net", Bytes: 1000, Per: 2 * time.Hour})
	r.want("250 ", r.shim(session("192.0.2.7"), "joe@example.net", 100, "r@example.org", "s@example.org"))
	r.want("250 ", r.shim(session("2001:db8::7"), strings.Repeat("x", 900)+"@example.net", 100, "r@example.org"))
	if err := r.store.Space(Name).Put(context.Background(), "lbroken", []byte("x"), time.Hour); err != nil {
		t.Fatal(err)
	}
	all := r.list(Selection{})
	if len(all) != 4 {
		t.Fatalf("%+v", all)
	}
	if e := all[0]; e.Limit != "net" || e.Subject != "192.0.2.0/24" || e.Bytes != 100 || e.Recipients != 2 || e.Per != 2*time.Hour || e.Left <= 2*time.Hour || !e.Last.Equal(start) {
		t.Errorf("%+v", e)
	}
	if e := all[3]; len(e.Subject) != maxSubject+33 || e.Messages != 1 {
		t.Errorf("%+v", e)
	}
	for s, want := range map[Selection]int{{Limit: "net"}: 2, {Subject: "192.0.2.99"}: 1, {Subject: "2001:db8::1"}: 1, {Subject: "JOE@"}: 1, {Limit: "net", Subject: "joe"}: 0} {
		if got := r.list(s); len(got) != want {
			t.Errorf("%+v: %+v", s, got)
		}
	}
	if n, err := Forget(context.Background(), r.store.Space(Name), Selection{Subject: "joe"}, r.clock); n != 1 || err != nil || len(r.list(Selection{})) != 3 {
		t.Errorf("%d %v", n, err)
	}
	r.clock = r.clock.Add(62 * time.Minute)
	if all := r.list(Selection{}); len(all) != 2 {
		t.Errorf("%+v", all)
	}
}

// failing is a state that is of no use.
type failing struct{ get, put error }

func (f failing) Get(context.Context, string) ([]byte, bool, error) { return nil, false, f.get }

func (f failing) Put(context.Context, string, []byte, time.Duration) error { return f.put }

func (failing) Delete(context.Context, string) error { return nil }

// What cannot be counted is an error, which stops no mail by default.
func TestStateFails(t *testing.T) {
	broken := errors.New("broken")
	for name, s := range map[string]pipeline.State{"get": failing{get: broken}, "put": failing{put: broken}, "none": nil} {
		f, err := New(pipeline.Env{State: s}, Options{Limits: []Limit{{By: "all", Messages: 1, Per: time.Hour}}})
		if err != nil {
			t.Fatal(err)
		}
		i, err := f.Open(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		tx := &pipeline.Transaction{Session: session("192.0.2.7"), Envelope: envelope.To("a@b", "c@d"), Active: []int{0}}
		if v, err := i.(pipeline.Messager).Message(context.Background(), tx, message.FromString("\nx\n")); err == nil || v.Action != pipeline.Continue {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	r := newRig(t, Limit{By: "all", Messages: 1, Per: time.Hour})
	c := charge{limit: &r.f.limits[0], subject: "*", need: counts{messages: 1}}
	if _, err := r.f.take(gone, []charge{c}, true); err == nil || len(r.list(Selection{})) != 0 {
		t.Errorf("what was given up is counted: %v", err)
	}
	if f := (&Filter{}); f.Traits().OnError != pipeline.ErrorContinues {
		t.Error("counts that cannot be kept stop mail")
	}
}

func TestInWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "a second", time.Second: "a second", 1500 * time.Millisecond: "2 seconds", time.Minute: "60 seconds", 61 * time.Second: "2 minutes",
		2 * time.Hour: "120 minutes", 121 * time.Minute: "3 hours", 48 * time.Hour: "48 hours", 49 * time.Hour: "3 days",
	} {
		if got := inWords(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
