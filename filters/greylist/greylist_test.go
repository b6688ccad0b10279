package greylist

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/state"
)

// The suite that every filter passes: everything is new to it.
func TestSuite(t *testing.T) {
	local := &pipeline.Session{Entrance: "queue", Standing: pipeline.Local}
	later := filtertest.Case{
		Name: "new", From: "a@example.net", To: []string{"r@example.org", "s@example.org"}, WantAction: pipeline.Defer,
		WantReply: "451 4.7.1 greylisted, please try again in 5 minutes", WantReason: "first seen", WantEnvelopes: []string{},
	}
	nobody, text := later, later
	nobody.Name, nobody.From = "from nobody", ""
	text.Name, text.Config, text.WantReply = "with a text", "text = \"come again\"", "451 4.7.1 come again"
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Stateful: true,
		Cases: []filtertest.Case{
			later, nobody, text,
			{Name: "our own", Session: local, From: "a@example.net"},
			{Name: "a network", Config: "networks = [\"192.0.2.1\"]", From: "a@example.net", WantReason: "exempt: the client is in 192.0.2.1/32"},
			{Name: "a sender", Config: "senders = [\".example.net\"]", From: "a@b.example.NET", WantReason: "exempt: senders of .example.net"},
			{Name: "a recipient", Config: "recipients = [\"@example.org\"]", From: "a@example.net", WantReason: "exempt: recipient @example.org"},
			{Name: "a pattern", Config: "recipients = [\"r*@*.org\"]", From: "a@example.net", WantReason: "exempt: recipient"},
			{Name: "not from nobody", Config: "bounces = false", WantReason: "exempt: from <>"},
			{
				Name: "some", Config: "recipients = [\"r@example.org\"]", From: "a@example.net", To: []string{"r@example.org", "s@example.org"},
				WantActions: []pipeline.Action{pipeline.Continue, pipeline.Defer}, WantEnvelopes: []string{"a@example.net -> r@example.org"},
			},
		},
	})
}

func TestConfiguration(t *testing.T) {
	after := -1
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"delay":        {Options{Delay: -1}, "delay", "at most a day"},
		"long delay":   {Options{Delay: 25 * time.Hour}, "delay", "at most a day"},
		"window":       {Options{Window: time.Minute}, "window", "longer than the delay (5m0s)"},
		"lifetime":     {Options{Lifetime: time.Minute}, "lifetime", "an hour"},
		"after":        {Options{After: &after}, "after", "0 to 1000"},
		"client":       {Options{Client: "host"}, "client", "network or name"},
		"ipv4":         {Options{IPv4: 33}, "ipv4", "8 to 32"},
		"ipv6":         {Options{IPv6: 8}, "ipv6", "16 to 128"},
		"text":         {Options{Text: "a\nb"}, "text", "one line"},
		"networks":     {Options{Networks: []string{"192.0.2.1", "x"}}, "networks[1]", `"x" is no address`},
		"senders":      {Options{Senders: []string{"a@example.org"}}, "senders[0]", "no domain"},
		"recipients":   {Options{Recipients: []string{"example.org"}}, "recipients[0]", "no address"},
		"too many":     {Options{Senders: make([]string, maxList+1)}, "senders", "at most"},
		"many stars":   {Options{Recipients: slices.Repeat([]string{"*a@b"}, 5000)}, "recipients", "4096"},
		"nothing else": {Options{}, "", ""},
	} {
		f, err := New(pipeline.Env{}, c.o)
		if c.want == "" {
			if err != nil || f.delay != 5*time.Minute || f.window != 24*time.Hour || f.lifetime != 36*24*time.Hour || f.after != 5 {
				t.Errorf("the zero value: %+v %v", f, err)
			}
			continue
		}
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, &at) || at.Key() != c.key {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := New(pipeline.Env{}, Options{IPv4: 1, IPv6: 1})
	if err == nil || !strings.Contains(err.Error(), "8 to 32") || !strings.Contains(err.Error(), "16 to 128") {
		t.Errorf("two errors: %v", err)
	}
}

// rig is a filter with a clock, and a state as the daemon has it.
type rig struct {
	t     testing.TB
	f     *Filter
	store *state.Store
	space *state.Space
	clock time.Time
	fs    vfs.FS
}

func newRig(t testing.TB, o Options) *rig {
	r := &rig{t: t, clock: time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC), fs: vfs.NewMem()}
	r.open()
	o.Bounces = true
	f, err := New(pipeline.Env{State: r.space, Now: func() time.Time { return r.clock }, Resolver: dns{}}, o)
	if err != nil {
		t.Fatal(err)
	}
	r.f = f
	return r
}

// open opens the state, again if it is open.
func (r *rig) open() {
	r.t.Helper()
	if r.store != nil {
		if err := r.store.Close(); err != nil {
			r.t.Fatal(err)
		}
	}
	s, err := state.Open(state.Options{Dir: "/state", FS: r.fs, Now: func() time.Time { return r.clock }, Every: time.Hour, Step: state.MaxTTL})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { s.Close() })
	r.store, r.space = s, s.Space("greylist")
	if r.f != nil {
		r.f.book.state = r.space
	}
}

// dns confirms some names.
type dns struct{ filtertest.NoDNS }

func (dns) LookupHost(_ context.Context, name string) ([]string, error) {
	if name == "out7.mail.example.net" {
		return []string{"203.0.113.9", "192.0.2.1", "198.51.100.9"}, nil
	}
	return nil, errors.New("the DNS is slow today")
}

// ask is what a client hears.
func (r *rig) ask(ip, name, sender, recipient string) pipeline.Verdict {
	r.t.Helper()
	s := filtertest.Stranger()
	s.Peer, s.PeerName = netip.AddrPortFrom(netip.MustParseAddr(ip), 0), name
	i, err := r.f.Open(context.Background(), s)
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := i.(pipeline.Recipienter).Recipient(context.Background(), &pipeline.Transaction{Session: s, Envelope: envelope.To(sender)}, envelope.Recipient{Address: recipient})
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// want asks, and looks at the answer.
func (r *rig) want(a pipeline.Action, reason, ip, name, sender, recipient string) {
	r.t.Helper()
	if v := r.ask(ip, name, sender, recipient); v.Action != a || !strings.Contains(v.Reason, reason) {
		r.t.Fatalf("%s %s <%s> <%s>: %v, %s; want %v, %s", ip, name, sender, recipient, v.Action, v.Reason, a, reason)
	}
}

func (r *rig) wait(d time.Duration) { r.clock = r.clock.Add(d) }

const (
	pass  = pipeline.Continue
	later = pipeline.Defer
)

// A triplet's life.
func TestTriplet(t *testing.T) {
	r := newRig(t, Options{})
	r.want(later, "first seen", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.wait(4 * time.Minute)
	r.want(later, "seen 4m0s ago, too early", "192.0.2.1", "", "a@example.net", "r@example.org")
	if v := r.ask("192.0.2.1", "", "a@example.net", "r@example.org"); !strings.Contains(v.Reply.SMTP(), "451 4.7.1 greylisted, please try again in a minute") {
		t.Errorf("heard %s", v.Reply.SMTP())
	}
	r.want(later, "first seen", "192.0.3.1", "", "a@example.net", "r@example.org")
	r.want(later, "first seen", "192.0.2.1", "", "b@example.net", "r@example.org")
	r.want(later, "first seen", "192.0.2.1", "", "a@example.net", "s@example.org")
	r.wait(time.Minute)
	r.want(pass, "came back after 5m0s", "192.0.2.77", "", "A@Example.NET", "R@example.org")
	r.want(pass, "seen before", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.open()
	r.wait(35 * 24 * time.Hour)
	r.want(pass, "seen before", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.wait(35 * 24 * time.Hour)
	r.want(pass, "seen before", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.wait(37 * 24 * time.Hour)
	r.want(later, "first seen", "192.0.2.1", "", "a@example.net", "r@example.org")
	// Who does not come back in time is new.
	r.wait(24*time.Hour + time.Second)
	r.want(later, "first seen", "192.0.2.1", "", "a@example.net", "r@example.org")
}

// A client that comes back is known after a while.
func TestClient(t *testing.T) {
	r := newRig(t, Options{})
	try := func(recipient string) {
		r.want(later, "first seen", "192.0.2.1", "", "a@example.net", recipient)
		r.wait(6 * time.Minute)
		r.want(pass, "came back", "192.0.2.1", "", "a@example.net", recipient)
	}
	for _, c := range "abcdefghi" { // within an hour they count once
		try(string(c) + "@example.org")
	}
	for _, c := range "jklm" {
		r.wait(time.Hour)
		try(string(c) + "@example.org")
	}
	r.want(pass, "client 192.0.2.0/24 is known: 5 came back", "192.0.2.200", "", "x@example.com", "new@example.org")
	r.wait(30 * 24 * time.Hour)
	r.want(pass, "is known", "192.0.2.200", "", "x@example.com", "new@example.org")
	r.wait(30 * 24 * time.Hour)
	r.want(pass, "is known", "192.0.2.200", "", "x@example.com", "new@example.org")
	r.wait(37 * 24 * time.Hour)
	r.want(later, "first seen", "192.0.2.200", "", "x@example.com", "new@example.org")
	never := 0
	r = newRig(t, Options{After: &never})
	for _, c := range "abcdef" {
		r.wait(time.Hour)
		try(string(c) + "@example.org")
	}
	r.want(later, "first seen", "192.0.2.1", "", "a@example.net", "new@example.org")
}

// Names stand for clients where they are theirs.
func TestNames(t *testing.T) {
	r := newRig(t, Options{Client: "name"})
	const name = "out7.mail.example.net"
	r.want(later, "first seen", "192.0.2.1", name, "a@example.net", "r@example.org")
	r.wait(6 * time.Minute)
	r.want(pass, "came back", "198.51.100.9", "out8.mail.example.net", "a@example.net", "r@example.org")
	r.want(later, "first seen", "198.51.100.9", "", "a@example.net", "r@example.org")
	// At a shim nobody has confirmed the name: the filter does.
	s := filtertest.Stranger()
	s.Protocol, s.PeerName = "qmail-queue", name
	for ip, want := range map[string]client{
		"192.0.2.1": {"192.0.2.0/24", "example.net"}, "192.0.2.2": {"192.0.2.0/24", ""},
		"203.0.113.9": {"203.0.113.0/24", "example.net"}, "2001:db8:1:2:3::4": {"2001:db8:1:2::/64", ""},
	} {
		if c := r.f.clientOf(context.Background(), s, netip.MustParseAddr(ip)); c != want {
			t.Errorf("%s is %+v, want %+v", ip, c, want)
		}
	}
	s.PeerName = "mail.example.com" // of which the DNS says nothing
	if c := r.f.clientOf(context.Background(), s, netip.MustParseAddr("192.0.2.1")); c.domain != "" {
		t.Errorf("an unconfirmed name: %+v", c)
	}
	r.f.resolver = nil
	s.PeerName = name
	if c := r.f.clientOf(context.Background(), s, netip.MustParseAddr("192.0.2.1")); c.domain != "" {
		t.Errorf("without a resolver: %+v", c)
	}
}

func TestMadeOf(t *testing.T) {
	for _, c := range []struct {
		name, ip string
		want     bool
	}{
		{"192-0-2-77.dyn.example.net", "192.0.2.77", true},
		{"host77.2.example.net", "192.0.2.77", true},
		{"c000024d.example.net", "192.0.2.77", true},
		{"mx77.example.net", "192.0.2.77", false},
		{"mail.example.net", "192.0.2.77", false},
		{"o1927.outbound.example.net", "192.0.2.77", false},
		{"2001-db8-0-1.v6.example.net", "2001:db8::1:abcd", true},
		{"mail.example.net", "2001:db8::1", false},
		{"", "192.0.2.77", false},
	} {
		if got := madeOf(c.name, netip.MustParseAddr(c.ip)); got != c.want {
			t.Errorf("%s of %s: %v", c.name, c.ip, got)
		}
	}
}

func TestSender(t *testing.T) {
	f, err := New(pipeline.Env{}, Options{Normalise: true})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := New(pipeline.Env{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"":                                "",
		"Joe@Example.NET":                 "joe@example.net",
		"prvs=1234abcdef=joe@example.net": "joe@example.net",
		"prvs=short=joe@example.net":      "prvs=short=joe@example.net",
		"joe=prvs=1234abcdef@example.net": "joe@example.net",
		"SRS0=HHHH=TT=orig.example=joe@fwd.example":              "#=orig.example=joe@fwd.example",
		"SRS0+Ab3=5A=orig.example=joe@fwd.example":               "#=orig.example=joe@fwd.example",
		"srs1=xy1=two.example==HH=TT=orig.example=joe@f.example": "#=two.example=orig.example=joe@f.example",
		"list-return-1234-joe=example.org@lists.example":         "list-return-#-joe=example.org@lists.example",
		"0100018f2b3c4d5e-1a2b3c4d-5e6f-000000@bounces.example":  "#-#-#-#@bounces.example",
		"bounce+a1b2.c3=x@example.net":                           "bounce+#.#=x@example.net",
		"nodomain1":                                              "#",
		"#@[]":                                                   "#@[]",
	} {
		if got := f.sender(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
		if got := plain.sender(in); got != strings.ToLower(in) {
			t.Errorf("%q as it is: %q", in, got)
		}
	}
}

// A clock that jumps: nobody waits for a year.
func TestClockJumps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	r := newRig(t, Options{})
	r.open()
	r.want(later, "first seen", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.wait(-year)
	r.want(later, "seen in the future", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.wait(5 * time.Minute)
	r.want(pass, "came back", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.wait(-year)
	r.want(pass, "seen before", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.wait(2 * year)
	r.store.Flush(context.Background())
	v := r.ask("192.0.2.1", "", "a@example.net", "s@example.org")
	r.wait(-year)
	r.wait(6 * time.Minute)
	if v2 := r.ask("192.0.2.1", "", "a@example.net", "s@example.org"); v.Action != later || v2.Action != later {
		t.Errorf("%v then %v", v, v2)
	}
	r.wait(6 * time.Minute)
	r.want(pass, "came back", "192.0.2.1", "", "a@example.net", "s@example.org")
}

// A record that is damaged is written again.
func TestDamagedRecords(t *testing.T) {
	r := newRig(t, Options{})
	ctx := context.Background()
	r.want(later, "first seen", "192.0.2.1", "", "a@example.net", "r@example.org")
	var key string
	if err := r.space.Scan(ctx, "t", "", func(e state.Entry) bool { key = e.Key; return true }); err != nil || key == "" {
		t.Fatal(err)
	}
	for _, k := range []string{key, "c192.0.2.0/24"} {
		if err := r.space.Put(ctx, k, []byte("\x09damage"), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	r.want(later, "first seen", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.wait(5 * time.Minute)
	r.want(pass, "came back", "192.0.2.1", "", "a@example.net", "r@example.org")
	if n := len(list(t, r.space, Selection{})); n != 2 {
		t.Errorf("%d entries", n)
	}
}

// failing is a state that fails at some things.
type failing struct {
	pipeline.State
	get, put error
}

func (f *failing) Get(ctx context.Context, key string) ([]byte, bool, error) {
	if f.get != nil {
		return nil, false, f.get
	}
	return f.State.Get(ctx, key)
}

func (f *failing) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if f.put != nil {
		return f.put
	}
	return f.State.Put(ctx, key, value, ttl)
}

// What cannot be recorded is an error, by default no reason to put mail off; what
// has come back passes in any case.
func TestStateFails(t *testing.T) {
	broken := &failing{State: new(filtertest.State)}
	now := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	f, err := New(pipeline.Env{State: broken, Now: func() time.Time { return now }}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	run := func(onError pipeline.OnError) *pipeline.Outcome {
		t.Helper()
		c, err := pipeline.NewChain("inbound", []pipeline.Step{{Name: "greylist", Filter: f, OnError: onError}}, pipeline.ChainOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := message.Read(strings.NewReader("Subject: x\n\nx\n"), message.Options{})
		if err != nil {
			t.Fatal(err)
		}
		o := c.Run(context.Background(), &pipeline.Transaction{ID: "t", Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org", "s@example.org")}, m)
		t.Cleanup(o.Release)
		return o
	}
	broken.put = errors.New("the disk is full")
	if o := run(pipeline.ErrorContinues); len(o.Outgoing) != 1 || !strings.Contains(o.Trace[0].Err, "the disk is full") {
		t.Errorf("%v %+v", o.Reply, o.Trace)
	}
	if o := run(pipeline.ErrorDefers); len(o.Outgoing) != 0 {
		t.Errorf("%v %+v", o.Reply, o.Trace)
	}
	broken.put, broken.get = nil, errors.New("a block is damaged")
	if o := run(pipeline.ErrorContinues); len(o.Outgoing) != 1 || !strings.Contains(o.Trace[0].Err, "a block is damaged") {
		t.Errorf("%v %+v", o.Reply, o.Trace)
	}
	broken.get = nil
	if o := run(pipeline.ErrorContinues); len(o.Outgoing) != 0 || o.Reply.Code != 451 {
		t.Errorf("%v %+v", o.Reply, o.Trace)
	}
	now = now.Add(6 * time.Minute)
	broken.put = errors.New("the disk is full")
	if o := run(pipeline.ErrorDefers); len(o.Outgoing) != 1 {
		t.Errorf("%v %+v", o.Reply, o.Trace)
	}
	f.book.state = nil
	if o := run(pipeline.ErrorDefers); len(o.Outgoing) != 0 || !strings.Contains(o.Trace[0].Err, "nowhere to record") {
		t.Errorf("%v %+v", o.Reply, o.Trace)
	}
}

func list(t testing.TB, b Book, s Selection) (all []Entry) {
	t.Helper()
	if err := List(context.Background(), b, s, func(e Entry) bool { all = append(all, e); return true }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestBook(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, Options{Client: "name"})
	r.want(later, "", "192.0.2.1", "", "a@example.net", "r@example.org")
	r.want(later, "", "192.0.2.1", "", "a@example.net", "s@example.org")
	r.want(later, "", "2001:db8::1", "mail.example.com", "b@example.com", "r@example.org")
	r.wait(6 * time.Minute)
	r.want(pass, "", "2001:db8::1", "mail.example.com", "b@example.com", "r@example.org")
	for _, c := range []struct {
		s    Selection
		want string
	}{
		{Selection{}, "client example.com; passed example.com; waiting 192.0.2.0/24; waiting 192.0.2.0/24"},
		{Selection{Client: "192.0.2.99", Sender: "A@", Recipient: "S@EX"}, "waiting 192.0.2.0/24"},
		{Selection{Client: "192.0.0.0/16"}, "waiting 192.0.2.0/24; waiting 192.0.2.0/24"},
		{Selection{Client: "192.0.2.0/25"}, ""},
		{Selection{Client: "Example.com", Kind: Passed}, "passed example.com"},
		{Selection{Kind: Allowed}, ""},
	} {
		var got []string
		for _, e := range list(t, r.space, c.s) {
			got = append(got, e.Kind+" "+e.Client)
		}
		slices.Sort(got)
		if s := strings.Join(got, "; "); s != c.want {
			t.Errorf("%+v: %s, want %s", c.s, s, c.want)
		}
	}
	if err := List(ctx, r.space, Selection{Kind: "x"}, nil); err == nil {
		t.Error("there is a kind x")
	}
	for in, want := range map[string]string{
		"198.51.100.7": "198.51.100.0/24", "198.51.100.7/25": "198.51.100.0/25", "2001:db8::7": "2001:db8::/64", "example.net": "example.net",
		"mail.example.net": "", "co.uk": "", "x": "", "": "",
	} {
		name, err := Allow(ctx, r.space, in, r.clock, 48*time.Hour)
		if name != want || (err == nil) != (want != "") {
			t.Errorf("allow %s: %s %v", in, name, err)
		}
	}
	if _, err := Allow(ctx, r.space, "example.net", r.clock, 0); err == nil {
		t.Error("allowed for no time")
	}
	r.want(pass, "client 198.51.100.0/24 was allowed by hand", "198.51.100.9", "", "new@example.net", "r@example.org")
	r.want(pass, "client example.net was allowed by hand", "203.0.113.1", "mail.example.net", "new@example.net", "r@example.org")
	r.want(pass, "client 198.51.100.0/24 was", "198.51.100.9", "mail.example.com", "new@example.net", "r@example.org")
	r.wait(49 * time.Hour)
	r.want(later, "first seen", "198.51.100.9", "", "new@example.net", "r@example.org")
	if n, err := Forget(ctx, r.space, Selection{Client: "198.51.100.9"}); n != 1 || err != nil {
		t.Errorf("forgot %d: %v", n, err)
	}
	if n, err := Forget(ctx, r.space, Selection{}); n != 2 || err != nil { // what waited has expired
		t.Errorf("forgot %d: %v", n, err)
	}
	if all := list(t, r.space, Selection{}); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
}

func FuzzRecords(f *testing.F) {
	at := time.Unix(1793600000, 0)
	f.Add(triplet{client: "192.0.2.0/24", sender: "a@example.net", recipient: "r@example.org", first: at, last: at}.encode())
	f.Add(triplet{passed: true, first: at, last: at.Add(-time.Hour)}.encode())
	f.Add(known{good: 3, first: at, last: at}.encode())
	f.Add(known{hand: true}.encode())
	f.Add([]byte{version})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeTriplet(b); err == nil {
			if again, err := decodeTriplet(r.encode()); err != nil || again != r {
				t.Errorf("%+v is %+v %v", r, again, err)
			}
		}
		if r, err := decodeKnown(b); err == nil {
			if again, err := decodeKnown(r.encode()); err != nil || again != r {
				t.Errorf("%+v is %+v %v", r, again, err)
			}
		}
		entryOf(state.Entry{Key: string(b), Value: b})
	})
}

// No sender makes the filter panic, and what counts of one counts of what counts.
func FuzzSender(f *testing.F) {
	for _, s := range []string{"prvs=1234abcdef=joe@example.net", "SRS0=H=T=d=l@f", "SRS1=H=h==H=T=d=l@f", "a=prvs=", "1@2@3", "=@"} {
		f.Add(s)
	}
	g, err := New(pipeline.Env{}, Options{Normalise: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n := g.sender(s); len(n) > 3*len(s)+1 { // a foreign letter may grow when it is lowered
			t.Errorf("%q grows to %q", s, n)
		}
		madeOf(s, netip.MustParseAddr("192.0.2.1"))
		madeOf(s, netip.MustParseAddr("2001:db8::1"))
		registrable(s)
	})
}
