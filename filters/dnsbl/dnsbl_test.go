package dnsbl

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/foxcpp/go-mockdns"
	"github.com/miekg/dns"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/resolve"
)

const (
	six        = "2001:db8::c0:ffee"
	sixReverse = "e.e.f.f.0.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2"
)

// TestVerdicts: what lists say and what the client hears.
func TestVerdicts(t *testing.T) {
	zen := List{Zone: "zen.test", Answers: []string{"127.0.0.2-11"}, Weight: weight(5)}
	bl := List{Zone: "BL.test.", Weight: weight(3), Text: "see https://bl.test/"}
	good := List{Zone: "wl.test", Answers: []string{"127.0.*.2-3"}, Weight: weight(-4)}
	pass := List{Zone: "wl.test", Answers: []string{"127.0.*.2-3"}, Pass: true}
	helo := List{Zone: "names.test", Kind: "helo", Weight: weight(2)}
	sender := List{Zone: "names.test", Kind: "sender", Weight: weight(2)}
	table := map[string][]string{
		"1.2.0.192.zen.test": {"127.0.0.4", "127.0.0.10"}, "2.2.0.192.zen.test": {"127.0.0.200"},
		"1.2.0.192.bl.test": {"127.0.0.2"}, "3.2.0.192.bl.test": {"127.0.0.2"}, "4.2.0.192.bl.test": {"127.0.0.1"},
		"1.2.0.192.wl.test": {"127.0.5.3"}, "3.2.0.192.wl.test": {"127.0.5.0"},
		sixReverse + ".zen.test":     {"127.0.0.3"},
		"bad.example.net.names.test": {"127.0.1.2"},
		"1.2.0.192.mixed.test":       {"127.0.0.2", "2001:db8::1"},
	}
	for _, c := range []struct {
		name, addr, helo, from string
		o                      Options
		action                 pipeline.Action
		reply, reason          string
		score                  float64
	}{
		{name: "not listed", addr: "192.0.2.9", o: Options{Reject: 1, Lists: []List{zen, bl, good}}, reason: "not listed by 3"},
		{
			name: "listed", addr: "192.0.2.1", o: Options{Reject: 1, Lists: []List{zen}}, action: pipeline.Reject,
			reply: "554 5.7.1 192.0.2.1 is listed by zen.test", reason: "listed by zen.test (127.0.0.4, 127.0.0.10, weight 5)", score: 5,
		},
		{name: "mapped", addr: "::ffff:192.0.2.1", o: Options{Reject: 1, Lists: []List{zen}}, action: pipeline.Reject, reply: "554 5.7.1 192.0.2.1 is listed by zen.test", score: 5},
		{name: "IPv6", addr: six, o: Options{Reject: 1, Lists: []List{zen}}, action: pipeline.Reject, reply: six + " is listed by zen.test", score: 5},
		{name: "IPv6, of which the list knows nothing", addr: six, o: Options{Reject: 1, Lists: []List{{Zone: "zen.test", Family: "ipv4"}}}},
		{name: "IPv4, of which the list knows nothing", addr: "192.0.2.1", o: Options{Reject: 1, Lists: []List{{Zone: "zen.test", Family: "ipv6"}}}},
		{name: "another answer", addr: "192.0.2.2", o: Options{Reject: 1, Lists: []List{zen}}, reason: "not listed by 1"},
		{name: "any answer", addr: "192.0.2.2", o: Options{Reject: 1, Lists: []List{{Zone: "zen.test"}}}, action: pipeline.Reject, score: 1},
		{name: "127.0.0.1", addr: "192.0.2.4", o: Options{Reject: 1, Lists: []List{{Zone: "bl.test"}}}, reason: "not listed by 1"},
		{name: "127.0.0.1 among others", addr: "192.0.2.4", o: Options{Reject: 1, Lists: []List{{Zone: "bl.test", Answers: []string{"127.0.0.*"}}}}, reason: "not listed by 1"},
		{name: "127.0.0.1 by name", addr: "192.0.2.4", o: Options{Reject: 1, Lists: []List{{Zone: "bl.test", Answers: []string{"127.0.0.1"}}}}, action: pipeline.Reject, score: 1},
		{name: "too little", addr: "192.0.2.3", o: Options{Reject: 5, Lists: []List{zen, bl}}, reason: "listed by bl.test (127.0.0.2, weight 3); not listed by 1", score: 3},
		{
			name: "two lists", addr: "192.0.2.1", o: Options{Reject: 8, Lists: []List{zen, bl}}, action: pipeline.Reject,
			reply: "192.0.2.1 is listed by zen.test, bl.test; see https://bl.test/", score: 8,
		},
		{name: "two lists, one for the client", addr: "192.0.2.1", o: Options{Reject: 5, Lists: []List{zen, bl, good}}, reason: "listed by wl.test (127.0.5.3, weight -4)", score: 4},
		{name: "not quite on that list", addr: "192.0.2.3", o: Options{Reject: 3, Lists: []List{bl, good}}, action: pipeline.Reject, score: 3},
		{name: "passed", addr: "192.0.2.1", o: Options{Reject: 1, Lists: []List{zen, bl, pass}}, reason: "listed by wl.test (127.0.5.3, pass)", score: 8},
		{name: "only scores", addr: "192.0.2.1", o: Options{Lists: []List{zen, bl}}, score: 8},
		{name: "deferred", addr: "192.0.2.1", o: Options{Reject: 1, Action: "defer", Lists: []List{zen}}, action: pipeline.Defer, reply: "451 4.7.1 192.0.2.1 is listed by zen.test", score: 5},
		{name: "a name for the list", addr: "192.0.2.1", o: Options{Reject: 1, Lists: []List{{Zone: "zen.test", Name: "Zen"}}}, action: pipeline.Reject, reply: "554 5.7.1 192.0.2.1 is listed by Zen", reason: "listed by Zen (", score: 1},
		{name: "sums of fractions", addr: "192.0.2.1", o: Options{Reject: 1, Lists: []List{
			{Zone: "zen.test", Weight: weight(0.7)}, {Zone: "zen.test", Weight: weight(0.1)}, {Zone: "bl.test", Weight: weight(0.2)},
		}}, action: pipeline.Reject, score: 1},
		{name: "IPv6 answers do not count where IPv4 is there", addr: "192.0.2.1", o: Options{Reject: 1, Lists: []List{{Zone: "mixed.test"}}}, action: pipeline.Reject, score: 1},
		{name: "helo", addr: "192.0.2.9", helo: "BAD.example.net.", o: Options{Reject: 2, Lists: []List{helo}}, action: pipeline.Reject, reply: "bad.example.net is listed by names.test", score: 2},
		{name: "another helo", addr: "192.0.2.9", helo: "good.example.net", o: Options{Reject: 2, Lists: []List{helo}}},
		{name: "sender", addr: "192.0.2.9", from: "joe@Bad.example.net", o: Options{Reject: 2, Lists: []List{sender}}, action: pipeline.Reject, reply: "bad.example.net is listed by names.test", score: 2},
		{
			name: "all together", addr: "192.0.2.1", helo: "bad.example.net", from: "joe@bad.example.net", o: Options{Reject: 7, Lists: []List{bl, helo, sender}}, action: pipeline.Reject,
			reply: "192.0.2.1 is listed by bl.test; bad.example.net is listed by names.test; bad.example.net is listed by names.test; see https://bl.test/", score: 7,
		},
		{name: "all together, too little", addr: "192.0.2.1", helo: "bad.example.net", from: "joe@bad.example.net", o: Options{Reject: 8, Lists: []List{bl, helo, sender}}, score: 7},
		{name: "who passes by his address", addr: "192.0.2.1", helo: "bad.example.net", from: "joe@bad.example.net", o: Options{Reject: 2, Lists: []List{pass, helo, sender}}, score: 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, &fakeDNS{a: table}, c.o)
			s := stranger(c.addr)
			s.Helo = c.helo
			o := r.run(t, s, c.from)
			if f := o.Fates[0]; f.Action != c.action || !strings.Contains(f.Reply.SMTP(), c.reply) {
				t.Errorf("%v %q: %+v", f.Action, f.Reply.SMTP(), o.Trace)
			}
			if e := o.Trace[0]; c.reason != "" && !strings.Contains(e.Reason, c.reason) || e.Err != "" {
				t.Errorf("%+v", e)
			}
			if c.action != pipeline.Continue {
				return
			}
			// Nothing is decided: the scores are there for later filters.
			var seen pipeline.Transaction
			chain, err := pipeline.NewChain("inbound", append(r.chain.Steps(), pipeline.Step{Name: "look", Filter: &looker{&seen}}), pipeline.ChainOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer chain.Close()
			if r.chain = chain; r.run(t, s, c.from).Fates[0].Action != pipeline.Continue || seen.Score() != c.score {
				t.Errorf("score %v, want %v: %+v", seen.Score(), c.score, seen.Symbols)
			}
		})
	}
}

// looker sees what filters before it found.
type looker struct{ seen *pipeline.Transaction }

func (l *looker) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return l, nil }
func (*looker) Close() error                                                         { return nil }
func (l *looker) Sender(_ context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	*l.seen = *tx
	return pipeline.Verdict{}, nil
}

// TestUselessLists: a list that has expired, lists everything, or says that it
// does not answer us, refuses nobody, and the log says so, but not often.
func TestUselessLists(t *testing.T) {
	for name, c := range map[string]struct {
		zone map[string][]string
		why  string
	}{
		"a domain dealer's page": {map[string][]string{"1.2.0.192.l.test": {"203.0.113.80"}}, "203.0.113.80, which is no listing"},
		"also with an answer":    {map[string][]string{"1.2.0.192.l.test": {"127.0.0.2", "203.0.113.80"}}, "203.0.113.80, which is no listing"},
		"public resolver":        {map[string][]string{"1.2.0.192.l.test": {"127.255.255.254"}}, "127.255.255.254, which is no listing"},
		"too many questions":     {map[string][]string{"1.2.0.192.l.test": {"127.255.255.255"}}, "127.255.255.255, which is no listing"},
		"lists everything":       {map[string][]string{"1.2.0.192.l.test": {"127.0.0.2"}, "1.0.0.127.l.test": {"127.0.0.2"}}, "it lists everything"},
	} {
		t.Run(name, func(t *testing.T) {
			c.zone["1.2.0.192.other.test"] = []string{"127.0.0.2"}
			r := newRig(t, &fakeDNS{a: c.zone}, Options{Reject: 2, Lists: []List{{Zone: "l.test", Weight: weight(5)}, {Zone: "other.test"}}})
			for range 5 {
				o := r.run(t, stranger("192.0.2.1"), "")
				if e := trace(o, pipeline.AtConnect); o.Fates[0].Action != pipeline.Continue || !strings.Contains(e.Reason, c.why) || !strings.Contains(e.Reason, "listed by other.test") {
					t.Errorf("%+v", o.Trace)
				}
			}
			if n := strings.Count(r.log.String(), "of no use"); n != 1 || !strings.Contains(r.log.String(), "list=l.test") || !strings.Contains(r.log.String(), c.why) {
				t.Errorf("log: %s", r.log)
			}
			r.now = r.now.Add(time.Hour)
			r.run(t, stranger("192.0.2.1"), "")
			if n := strings.Count(r.log.String(), "of no use"); n != 2 {
				t.Errorf("an hour later: %s", r.log)
			}
		})
	}
}

// TestUselessNames: a list of names that lists everything has "invalid" too;
// one of addresses is asked about one of the client's kind.
func TestUselessNames(t *testing.T) {
	dns := &fakeDNS{a: map[string][]string{
		"a.example.l.test": {"127.0.0.2"}, "invalid.l.test": {"127.0.0.2"},
		sixReverse + ".l.test": {"127.0.0.2"}, "1.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.l.test": {"127.0.0.2"},
	}}
	s := stranger(six)
	s.Helo = "a.example"
	for _, k := range []string{"ip", "helo", "sender"} {
		r := newRig(t, dns, Options{Reject: 1, Lists: []List{{Zone: "l.test", Kind: k}}})
		if o := r.run(t, s, "joe@a.example"); o.Fates[0].Action != pipeline.Continue || !strings.Contains(r.log.String(), "it lists everything") {
			t.Errorf("%s: %+v", k, o.Trace)
		}
	}
	if want := reverse(netip.MustParseAddr("::ffff:127.0.0.1")); want != neverSix {
		t.Errorf("::FFFF:7F00:1 is %s", want)
	}
}

// TestNobodyAnswers: a list that does not answer adds nothing; one that could
// have spoken for the client has it try again; where none answers the filter
// has failed, which lets the mail pass. A key in a zone is not told.
func TestNobodyAnswers(t *testing.T) {
	bl := List{Zone: "bl.test", Weight: weight(3)}
	dead := List{Zone: "secret-key.dead.test", Name: "dead", Weight: weight(3)}
	table := map[string][]string{"1.2.0.192.bl.test": {"127.0.0.2"}, "1.2.0.192.half.test": {"127.0.0.2"}}
	fails := map[string]bool{"1.2.0.192.secret-key.dead.test": true, "1.0.0.127.half.test": true}
	for _, c := range []struct {
		name   string
		lists  []List
		reject float64
		action pipeline.Action
		reason string
		err    string
	}{
		{"another list", []List{bl, dead}, 3, pipeline.Reject, "dead: server 192.0.2.53:53: it answered SERVFAIL", ""},
		{"too little without it", []List{bl, dead}, 4, pipeline.Continue, "listed by bl.test", ""},
		{"an allow list", []List{bl, {Zone: dead.Zone, Name: "dead", Pass: true}}, 3, pipeline.Defer, "listed by bl.test", ""},
		{"an allow list by weight", []List{bl, {Zone: dead.Zone, Name: "dead", Weight: weight(-1)}}, 3, pipeline.Defer, "listed by bl.test", ""},
		{"an allow list that would not do", []List{bl, {Zone: dead.Zone, Name: "dead", Weight: weight(-1)}}, 2, pipeline.Reject, "listed by bl.test", ""},
		{"all", []List{dead, dead}, 1, pipeline.Continue, "", "no list answered: dead: server 192.0.2.53:53: it answered SERVFAIL; dead: "},
		{"does it list everything?", []List{{Zone: "half.test"}, bl}, 4, pipeline.Continue, "half.test: whether it lists everything: server", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, &fakeDNS{a: table, fails: fails}, Options{Reject: c.reject, Lists: c.lists})
			o := r.run(t, stranger("192.0.2.1"), "")
			e := trace(o, pipeline.AtConnect)
			if o.Fates[0].Action != c.action || !strings.Contains(e.Reason, c.reason) || !strings.Contains(e.Err, c.err) || c.err == "" && e.Err != "" {
				t.Errorf("%v %+v", o.Fates[0], e)
			}
			if said := e.Reason + e.Err + e.Reply + r.log.String() + o.Reply.SMTP(); strings.Contains(said, "secret") {
				t.Errorf("the key is told: %s", said)
			}
		})
	}
	r := newRig(t, nil, Options{Reject: 1, Lists: []List{bl}})
	if o := r.run(t, stranger("192.0.2.1"), ""); o.Fates[0].Action != pipeline.Continue || !strings.Contains(trace(o, pipeline.AtConnect).Err, "no resolver") {
		t.Errorf("without a resolver: %+v", o.Trace)
	}
}

// TestWait: slow lists cost the time once, and what the others say counts.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := map[string]bool{}
		lists := []List{{Zone: "bl.test"}}
		for _, zone := range []string{"a.test", "b.test", "c.test"} {
			lists, hangs["1.2.0.192."+zone] = append(lists, List{Zone: zone}), true
		}
		r := newRig(t, &fakeDNS{a: map[string][]string{"1.2.0.192.bl.test": {"127.0.0.2"}}, hangs: hangs}, Options{Reject: 1, Wait: 3 * time.Second, Lists: lists})
		start := time.Now()
		o := r.run(t, stranger("192.0.2.1"), "")
		if e := trace(o, pipeline.AtConnect); o.Fates[0].Action != pipeline.Reject || !strings.Contains(e.Reason, "b.test: no answer in time") {
			t.Errorf("%+v", o.Trace)
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// TestWhoIsAsked: addresses that no list can know are asked of none, names that
// are none likewise, and our own people never.
func TestWhoIsAsked(t *testing.T) {
	all := []List{{Zone: "l.test"}, {Zone: "l.test", Kind: "helo"}, {Zone: "l.test", Kind: "sender"}}
	for _, c := range []struct {
		addr, helo, from string
		standing         pipeline.Standing
		want             string
	}{
		{"10.1.2.3", "", "", 0, ""},
		{"192.168.1.1", "", "", 0, ""},
		{"172.31.0.1", "", "", 0, ""},
		{"127.0.0.1", "", "", 0, ""},
		{"100.64.0.1", "", "", 0, ""},
		{"169.254.1.1", "", "", 0, ""},
		{"0.0.0.0", "", "", 0, ""},
		{"224.0.0.1", "", "", 0, ""},
		{"255.255.255.255", "", "", 0, ""},
		{"::1", "", "", 0, ""},
		{"fd00::1", "", "", 0, ""},
		{"fe80::1%eth0", "", "", 0, ""},
		{"::ffff:10.1.2.3", "", "", 0, ""},
		{"::", "", "", 0, ""},
		{"ff02::1", "", "", 0, ""},
		{"198.51.100.7", "", "", 0, "7.100.51.198.l.test"},
		{"100.128.0.1", "", "", 0, "1.0.128.100.l.test"},
		{"10.1.2.3", "friend", "", 0, ""},
		{"10.1.2.3", "[192.0.2.1]", "", 0, ""},
		{"10.1.2.3", "192.0.2.1", "", 0, ""},
		{"10.1.2.3", "a b.c", "", 0, ""},
		{"10.1.2.3", "Mail.example.net.", "", 0, "mail.example.net.l.test"},
		{"10.1.2.3", strings.Repeat("a.", 124) + "bcd", "", 0, ""},
		{"10.1.2.3", "", "joe", 0, ""},
		{"10.1.2.3", "", "joe@[192.0.2.1]", 0, ""},
		{"10.1.2.3", "", "joe@x", 0, ""},
		{"10.1.2.3", "", "\"a@b\"@Example.NET", 0, "example.net.l.test"},
		{"198.51.100.7", "mail.example.net", "joe@example.net", pipeline.Relayed, ""},
		{"198.51.100.7", "mail.example.net", "joe@example.net", pipeline.Authenticated, ""},
	} {
		dns := &fakeDNS{}
		r := newRig(t, dns, Options{Reject: 1, Lists: all})
		s := stranger(c.addr)
		s.Helo, s.Standing = c.helo, c.standing
		if o := r.run(t, s, c.from); o.Fates[0].Action != pipeline.Continue {
			t.Errorf("%+v: %+v", c, o.Trace)
		}
		if got := strings.Join(dns.questions(), " "); got != c.want {
			t.Errorf("%+v: asked %q", c, got)
		}
	}
	dns := &fakeDNS{}
	s := stranger("192.0.2.1")
	s.Peer = netip.AddrPort{}
	newRig(t, dns, Options{Reject: 1, Lists: all[:1]}).run(t, s, "")
	if got := dns.questions(); len(got) > 0 {
		t.Errorf("a client without an address: asked %q", got)
	}
}

// TestListsText: what a list says is for the log, and cannot break a line of it.
func TestListsText(t *testing.T) {
	dns := &fakeDNS{
		a:   map[string][]string{"1.2.0.192.l.test": {"127.0.0.2"}},
		txt: map[string][]string{"1.2.0.192.l.test": {"spam\r\n250 ok\x00\xff" + strings.Repeat("x", 60_000)}},
	}
	r := newRig(t, dns, Options{Reject: 1, Lists: []List{{Zone: "l.test", TXT: true}}})
	o := r.run(t, stranger("192.0.2.1"), "")
	e := trace(o, pipeline.AtConnect)
	if !strings.Contains(e.Reason, "weight 1): spam 250 ok??xxx") || len(e.Reason) > 300 || o.Fates[0].Reply.SMTP() != "554 5.7.1 192.0.2.1 is listed by l.test" {
		t.Errorf("%q %q", e.Reason, o.Fates[0].Reply.SMTP())
	}
}

// TestStages: the filter judges where it has lists, and no question is asked
// elsewhere.
func TestStages(t *testing.T) {
	for _, c := range []struct {
		kinds []string
		want  []pipeline.Stage
	}{
		{[]string{""}, []pipeline.Stage{pipeline.AtConnect}},
		{[]string{"sender", "ip", "sender"}, []pipeline.Stage{pipeline.AtConnect, pipeline.AtSender}},
		{[]string{"helo"}, []pipeline.Stage{pipeline.AtHelo}},
	} {
		var lists []List
		for _, k := range c.kinds {
			lists = append(lists, List{Zone: "l.test", Kind: k})
		}
		f, err := New(pipeline.Env{}, Options{Lists: lists})
		if err != nil {
			t.Fatal(err)
		}
		if traits := f.Traits(); !slices.Equal(traits.Stages, c.want) || !traits.Strangers || traits.OnError != pipeline.ErrorContinues || traits.Always {
			t.Errorf("%v: %+v", c.kinds, traits)
		}
	}
}

// TestWithResolver asks servers that others wrote, through the resolver of the
// daemon: one question for each name, for IPv4 alone.
func TestWithResolver(t *testing.T) {
	s, err := mockdns.NewServerWithLogger(map[string]mockdns.Zone{
		"1.2.0.192.zen.test.":       {A: []string{"127.0.0.2", "127.0.0.4"}, TXT: []string{"Listed, see https://zen.test/"}},
		sixReverse + ".zen.test.":   {A: []string{"127.0.0.3"}},
		"2.2.0.192.zen.test.":       {A: []string{"127.0.0.2"}},
		"2.2.0.192.wl.test.":        {A: []string{"127.0.9.3"}},
		"3.2.0.192.zen.test.":       {A: []string{"127.0.0.2"}},
		"3.2.0.192.wl.test.":        {Err: errors.New("no")},
		"bad.example.net.dbl.test.": {A: []string{"127.0.1.2"}},
	}, mute{}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	resolver, err := resolve.New(resolve.Options{Servers: []string{s.LocalAddr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, resolver, Options{Reject: 5, Lists: []List{
		{Zone: "zen.test", Answers: []string{"127.0.0.2-11"}, Weight: weight(5), TXT: true},
		{Zone: "wl.test", Pass: true},
		{Zone: "dbl.test", Kind: "sender", Weight: weight(5), Answers: []string{"127.0.1.2-99"}},
	}})
	for _, c := range []struct {
		addr, from string
		action     pipeline.Action
		reason     string
	}{
		{"192.0.2.1", "", pipeline.Reject, "listed by zen.test (127.0.0.2, 127.0.0.4, weight 5): Listed, see https://zen.test/; not listed by 1"},
		{six, "", pipeline.Reject, "listed by zen.test (127.0.0.3, weight 5); not listed by 1"},
		{"192.0.2.2", "joe@bad.example.net", pipeline.Continue, "listed by zen.test (127.0.0.2, weight 5); listed by wl.test (127.0.9.3, pass)"},
		{"192.0.2.3", "", pipeline.Defer, "listed by zen.test (127.0.0.2, weight 5); wl.test: server"},
		{"192.0.2.4", "joe@bad.example.net", pipeline.Reject, "not listed by 2"},
		{"192.0.2.4", "joe@example.net", pipeline.Continue, "not listed by 2"},
	} {
		o := r.run(t, stranger(c.addr), c.from)
		if e := trace(o, pipeline.AtConnect); o.Fates[0].Action != c.action || !strings.HasPrefix(e.Reason, c.reason) {
			t.Errorf("%s: %v %+v", c.addr, o.Fates[0], o.Trace)
		}
	}
}

// TestQuestions: a client costs one question a list, a listing one more, and
// neither is asked again.
func TestQuestions(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	server := &dns.Server{Net: "udp", Addr: "127.0.0.1:0", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		name := q.Question[0].Name
		mu.Lock()
		asked = append(asked, dns.TypeToString[q.Question[0].Qtype]+" "+name)
		mu.Unlock()
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		if record, err := dns.NewRR(name + " 60 IN A 127.0.0.2"); err == nil && name == "1.2.0.192.l.test." {
			m.Answer = []dns.RR{record}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		w.WriteMsg(m) //nolint:errcheck // the asker times out then
	})}
	started, ended := make(chan struct{}), make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() {
		defer close(ended)
		server.ListenAndServe() //nolint:errcheck // it ends by Shutdown
	}()
	<-started
	defer func() { server.Shutdown(); <-ended }() //nolint:errcheck // nothing more to do
	resolver, err := resolve.New(resolve.Options{Servers: []string{server.PacketConn.LocalAddr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, resolver, Options{Reject: 1, Lists: []List{{Zone: "l.test"}}})
	for range 3 {
		r.run(t, stranger("192.0.2.1"), "")
		r.run(t, stranger("192.0.2.2"), "")
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"A 1.2.0.192.l.test.", "A 1.0.0.127.l.test.", "A 2.2.0.192.l.test."}; !slices.Equal(asked, want) {
		t.Errorf("%q", asked)
	}
}

type mute struct{}

func (mute) Printf(string, ...any) {}
