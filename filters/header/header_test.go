package header

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

func testEnv() pipeline.Env {
	zone := time.FixedZone("", 2*60*60)
	return pipeline.Env{Now: func() time.Time { return time.Date(2026, 8, 5, 1, 2, 3, 0, zone) }}
}

func newHeader(t testing.TB, all ...Rule) *Filter {
	t.Helper()
	f, err := New(testEnv(), Options{Rules: all})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func transaction() *pipeline.Transaction {
	return &pipeline.Transaction{
		ID: "id-1",
		Session: &pipeline.Session{
			Peer: netip.MustParseAddrPort("192.0.2.1:2525"), PeerName: "mail.example.net", Helo: "helo.example.net", User: "joe", UID: -1,
		},
		Envelope: envelope.To("sender@example.net", "a@example.org", "b@example.org"),
	}
}

// through is the message that a chain with the filter lets pass.
func through(t testing.TB, f *Filter, tx *pipeline.Transaction, in string) (string, *pipeline.Outcome) {
	t.Helper()
	traits := f.Traits()
	c, err := pipeline.NewChain("inbound", []pipeline.Step{{Name: Name, Filter: f, OnError: traits.OnError, Always: traits.Always}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o := c.Run(context.Background(), tx, message.FromString(in))
	t.Cleanup(o.Release)
	if len(o.Outgoing) != 1 {
		return "", o
	}
	return string(o.Outgoing[0].Message.Bytes()), o
}

const text = "Received: one\nSubject: hello\nX-Two: 1\nX-Two: 2\nX-Two: 3\n\nbody\n"

func TestRules(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules []Rule
		want  string
	}{
		{"nothing", nil, text},
		{"add", []Rule{{Op: "add", Name: "X", Value: "y"}}, "X: y\n" + text},
		{"append", []Rule{{Op: "append", Name: "X", Value: "y"}}, strings.Replace(text, "\n\n", "\nX: y\n\n", 1)},
		{"remove", []Rule{{Op: "remove", Name: "x-two"}}, "Received: one\nSubject: hello\n\nbody\n"},
		{"remove the second", []Rule{{Op: "remove", Name: "X-Two", Nth: 2}}, strings.Replace(text, "X-Two: 2\n", "", 1)},
		{"remove the last", []Rule{{Op: "remove", Name: "X-Two", Nth: -1}}, strings.Replace(text, "X-Two: 3\n", "", 1)},
		{"remove what is not there", []Rule{{Op: "remove", Name: "X-None"}}, text},
		{"replace", []Rule{{Op: "replace", Name: "Subject", Value: "bye"}}, strings.Replace(text, "hello", "bye", 1)},
		{"replace all", []Rule{{Op: "replace", Name: "X-Two", Value: "4"}}, "Received: one\nSubject: hello\nX-Two: 4\n\nbody\n"},
		{"replace the last", []Rule{{Op: "replace", Name: "X-Two", Value: "4", Nth: -1}}, strings.Replace(text, "X-Two: 3", "X-Two: 4", 1)},
		{"replace what is not there", []Rule{{Op: "replace", Name: "X-None", Value: "4"}}, "X-None: 4\n" + text},
		{"in order", []Rule{{Op: "add", Name: "A", Value: "1"}, {Op: "add", Name: "A", Value: "2"}, {Op: "remove", Name: "A", Nth: -1}}, "A: 2\n" + text},
		{"a folded value", []Rule{{Op: "add", Name: "A", Value: "1\n 2"}}, "A: 1\n 2\n" + text},
		{"when", []Rule{{Op: "add", Name: "A", Value: "1", When: `sender == "nobody"`}, {Op: "add", Name: "B", Value: "2", When: `header("subject") == "hello" and external`}}, "B: 2\n" + text},
		{
			"rules see what came",
			[]Rule{{Op: "remove", Name: "Subject"}, {Op: "add", Name: "B", Value: "2", When: `header("subject") == "hello"`}},
			"B: 2\n" + strings.Replace(text, "Subject: hello\n", "", 1),
		},
		{"received by force", []Rule{{Op: "remove", Name: "Received", Force: true}}, strings.Replace(text, "Received: one\n", "", 1)},
		{"received added", []Rule{{Op: "add", Name: "Received", Value: "two"}}, "Received: two\n" + text},
	} {
		if got, o := through(t, newHeader(t, c.rules...), transaction(), text); got != c.want {
			t.Errorf("%s: %q, want %q: %+v", c.name, got, c.want, o.Trace)
		}
	}
}

func TestPlaceholders(t *testing.T) {
	empty := &pipeline.Transaction{Session: &pipeline.Session{}}
	hostile := transaction()
	hostile.Session.Helo = "x; spf=pass (\"a\\\r\n\x00é,<b>"
	hostile.Session.PeerName = strings.Repeat("h", 1000)
	hostile.Envelope.Sender = "bounce+a=b@\xff"
	hostile.Session.Peer = netip.MustParseAddrPort("[::ffff:192.0.2.7]:25")
	zoned := transaction()
	zoned.Session.Peer = netip.MustParseAddrPort("[fe80::1%eth0]:25")
	for _, c := range []struct {
		value string
		tx    *pipeline.Transaction
		want  string
	}{
		{"${id} ${sender} ${ip}", transaction(), "id-1 sender@example.net 192.0.2.1"},
		{"[${rdns}] [${helo}] [${user}]", transaction(), "[mail.example.net] [helo.example.net] [joe]"},
		{"${chain}; ${date}", transaction(), "inbound; Tue, 04 Aug 2026 23:02:03 +0000"},
		{"${id}${id}", transaction(), "id-1id-1"},
		{"$${id} $${ $ $$ {id} ${id}$${x}", transaction(), "${id} ${ $ $$ {id} id-1${x}"},
		{"[${id}${sender}${ip}]\n [${rdns}${helo}${user}]", empty, "[]\n []"},
		{"(${helo})", hostile, "(x??spf=pass???a???????b?)"},
		{"${rdns}", hostile, strings.Repeat("h", 255)},
		{"${sender} ${ip}", hostile, "bounce+a=b@? 192.0.2.7"},
		{"${ip}", zoned, "fe80::1"},
	} {
		got, o := through(t, newHeader(t, Rule{Op: "add", Name: "X", Value: c.value}), c.tx, text)
		if want := "X: " + c.want + "\n" + text; got != want {
			t.Errorf("%q: %q, want %q: %+v", c.value, got, want, o.Trace)
		}
	}
}

func TestConfiguration(t *testing.T) {
	const config = `
[[rule]]
op = "add"
name = "X-From"
value = "${ip}"
when = 'external'
[[rule]]
op = "remove"
name = "Received"
nth = -1
force = true
`
	decode := func(into any) error {
		return toml.NewDecoder(strings.NewReader(config)).DisallowUnknownFields().Decode(into)
	}
	f, err := Kind().New(testEnv(), decode)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := through(t, f.(*Filter), transaction(), text); got != "X-From: 192.0.2.1\n"+strings.Replace(text, "Received: one\n", "", 1) {
		t.Errorf("%q", got)
	}
	broken := errors.New("line 3: unknown key")
	if _, err := Kind().New(testEnv(), func(any) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestConfigurationErrors(t *testing.T) {
	ok := Rule{Op: "add", Name: "X", Value: "y"}
	for _, c := range []struct {
		rule      Rule
		key, want string
	}{
		{Rule{}, "op", `"" is no operation`},
		{Rule{Op: "delete", Name: "X"}, "op", `write "add", "append", "remove" or "replace"`},
		{Rule{Op: "remove"}, "name", "is missing"},
		{Rule{Op: "remove", Name: "X", Value: "y"}, "value", "takes no value"},
		{Rule{Op: "add", Name: "X"}, "value", "needs a value"},
		{Rule{Op: "replace", Name: "X", Value: " "}, "value", "needs a value"},
		{Rule{Op: "add", Name: "X", Value: "y", Nth: 1}, "nth", "takes no nth"},
		{Rule{Op: "append", Name: "X", Value: "y", Nth: -1}, "nth", "takes no nth"},
		{Rule{Op: "add", Name: "X Y", Value: "y"}, "name", "no name may hold"},
		{Rule{Op: "add", Name: "X:", Value: "y"}, "name", "no name may hold"},
		{Rule{Op: "remove", Name: "X\n"}, "name", "no name may hold"},
		{Rule{Op: "add", Name: strings.Repeat("x", 201), Value: "y"}, "name", "201 bytes"},
		{Rule{Op: "add", Name: "X", Value: "a\nB: c"}, "value", "does not continue"},
		{Rule{Op: "add", Name: "X", Value: "a\n\n b"}, "value", "does not continue"},
		{Rule{Op: "add", Name: "X", Value: "a\rb"}, "value", "control byte"},
		{Rule{Op: "add", Name: "X", Value: "a\x00b"}, "value", "control byte"},
		{Rule{Op: "add", Name: "X", Value: strings.Repeat("x", 1000)}, "value", "fold it"},
		{Rule{Op: "add", Name: "X", Value: "für"}, "value", "encoded word"},
		{Rule{Op: "add", Name: "X", Value: "${helo} ${rdns} ${user} ${sender}"}, "value", "fold it (with every ${...} as long as it can be)"},
		{Rule{Op: "add", Name: "X", Value: "a\n ${helo}\n b"}, "value", "blank line (with every ${...} as short as it can be)"},
		{Rule{Op: "add", Name: "X", Value: "${hello}"}, "value", "unknown placeholder ${hello}, did you mean ${helo}?"},
		{Rule{Op: "add", Name: "X", Value: "${recipients}"}, "value", "unknown placeholder ${recipients}; there are ${id}, "},
		{Rule{Op: "add", Name: "X", Value: "${}"}, "value", "unknown placeholder"},
		{Rule{Op: "add", Name: "X", Value: "${\x01\n}"}, "value", "unknown placeholder ${?}"},
		{Rule{Op: "add", Name: "X", Value: "a ${helo"}, "value", "${ without }"},
		{Rule{Op: "remove", Name: "received"}, "name", "force = true"},
		{Rule{Op: "remove", Name: "Received", Nth: 1}, "name", "force = true"},
		{Rule{Op: "replace", Name: "Delivered-To", Value: "x"}, "name", "force = true"},
		{Rule{Op: "remove", Name: "Postern-Tap"}, "name", "force = true"},
		{Rule{Op: "add", Name: "X", Value: "y", When: "sendr == \"a\""}, "when", "column 1: "},
		{Rule{Op: "add", Name: "X", Value: "y", When: "size"}, "when", "not a condition"},
	} {
		f, err := New(testEnv(), Options{Rules: []Rule{ok, c.rule}})
		var keyed interface{ Key() string }
		switch {
		case err == nil || f != nil || !strings.Contains(err.Error(), c.want):
			t.Errorf("%+v: %v, want %q", c.rule, err, c.want)
		case !errors.As(err, &keyed) || keyed.Key() != "rule[1]."+c.key:
			t.Errorf("%+v: %v is about %v, want %s", c.rule, err, keyed, c.key)
		case strings.ContainsAny(err.Error(), "\r\n\x00\x01"):
			t.Errorf("not one clean line: %q", err)
		}
	}
	if _, err := New(testEnv(), Options{Rules: make([]Rule, maxRules+1)}); err == nil || err.Error() != "more than 1000 rules" {
		t.Error(err)
	}
}

// A rule without an answer puts the message off, or lets it pass unchanged.
func TestRuleThatFails(t *testing.T) {
	f := newHeader(t, Rule{Op: "add", Name: "X", Value: "y"}, Rule{Op: "add", Name: "Y", Value: "z", When: "1 % (size - size) > 0"})
	got, o := through(t, f, transaction(), text)
	if got != "" || o.Fates[0].Action != pipeline.Defer || !strings.Contains(o.Trace[0].Err, "rule 2: ") {
		t.Errorf("%q %+v", got, o.Trace)
	}
	if traits := f.Traits(); !traits.Always || traits.OnError != pipeline.ErrorDefers || traits.Strangers {
		t.Errorf("%+v", traits)
	}
}

func TestClock(t *testing.T) {
	f, err := New(pipeline.Env{}, Options{Rules: []Rule{{Op: "add", Name: "X", Value: "${date}"}}})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := through(t, f, transaction(), text)
	line, _, _ := strings.Cut(got, "\n")
	if at, err := time.Parse("X: "+time.RFC1123Z, line); err != nil || time.Since(at) > time.Hour || time.Since(at) < -time.Hour {
		t.Errorf("%q: %v", line, err)
	}
}

// What a client says of itself stays within the value that it stands in.
func FuzzPlaceholders(f *testing.F) {
	f.Add("id", "sender@example.org", "rdns", "helo", "user")
	f.Add("", "", "", "", "")
	f.Add("a\nB: c\n\nbody", "\r\n", "\x00", "(;)\"", strings.Repeat("é", 1000))
	filter, err := New(testEnv(), Options{Rules: []Rule{{Op: "add", Name: "X", Value: "${id} ${sender}\n -${rdns} ${helo}\n -${user} (${ip})"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, id, sender, rdns, helo, user string) {
		tx := &pipeline.Transaction{
			ID: id, Session: &pipeline.Session{PeerName: rdns, Helo: helo, User: user}, Envelope: envelope.To(sender),
		}
		v, err := filter.Message(context.Background(), tx, message.FromString(text))
		if err != nil || len(v.Edits) != 1 {
			t.Fatal(v, err)
		}
		e := v.Edits[0].Field
		if err := e.Check(); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(e.Value, "\n"); n != 2 || strings.Count(e.Value, " ") != 5 || strings.Count(e.Value, "(")+strings.Count(e.Value, ")") != 2 || strings.ContainsAny(e.Value, ";,\"\\<>") {
			t.Errorf("a fact breaks out of its place: %q", e.Value)
		}
		h, err := message.FromString(text).Head().Edit(e)
		if err != nil || h.Len() != message.FromString(text).Head().Len()+1 {
			t.Errorf("%d fields: %v", h.Len(), err)
		}
	})
}

// Adding a field to a message of 4 KiB. The floor is the edit of the head alone.
func BenchmarkAdd(b *testing.B) {
	m := message.FromString(text + strings.Repeat("0123456789abcdef0123456789abcde\n", 128))
	for _, value := range []string{"fixed", "from ${ip} (${helo}) as ${id}"} {
		for _, when := range []string{"", "external"} {
			b.Run(fmt.Sprintf("value=%.5s/when=%s", value, when), func(b *testing.B) {
				f := newHeader(b, Rule{Op: "add", Name: "X-Checked", Value: value, When: when})
				tx := transaction()
				tx.Active = []int{0, 1}
				b.ReportAllocs()
				for b.Loop() {
					v, err := f.Message(context.Background(), tx, m)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := m.Head().Edit(v.Edits[0].Field); err != nil {
						b.Fatal(err)
					}
				}
				each := b.Elapsed() / time.Duration(b.N)
				start := time.Now()
				for range b.N {
					if _, err := m.Head().Edit(message.FieldEdit{Name: "X-Checked", Value: "fixed"}); err != nil {
						b.Fatal(err)
					}
				}
				if least := time.Since(start) / time.Duration(b.N); least > 0 {
					b.ReportMetric(float64(each)/float64(least), "x-floor")
				}
			})
		}
	}
}
