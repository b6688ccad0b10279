package tap

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// testEnv is an installation with a key and a clock of its own.
func testEnv(installation string) pipeline.Env {
	return pipeline.Env{
		Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Date(2026, 8, 5, 12, 0, 0, 0, time.UTC) },
		Secret: func(purpose string) []byte {
			sum := sha256.Sum256([]byte(installation + " " + purpose))
			return sum[:]
		},
	}
}

func newTap(t testing.TB, o Options) *Filter {
	t.Helper()
	f, err := New(testEnv("here"), o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// run passes a message through a chain of filters, as the daemon does.
func run(t testing.TB, e envelope.Envelope, m message.Message, filters ...pipeline.Filter) *pipeline.Outcome {
	t.Helper()
	var steps []pipeline.Step
	for i, f := range filters {
		traits := pipeline.TraitsOf(f)
		steps = append(steps, pipeline.Step{Name: fmt.Sprint("filter", i), Filter: f, OnError: traits.OnError, Always: traits.Always})
	}
	c, err := pipeline.NewChain("inbound", steps, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tx := &pipeline.Transaction{ID: "id", Session: &pipeline.Session{UID: -1}, Envelope: e}
	o := c.Run(context.Background(), tx, m)
	t.Cleanup(o.Release)
	return o
}

// copied are the recipients of the copies of a message, "a,b c" for one copy to
// a and b and one to c.
func copied(o *pipeline.Outcome) string {
	var all []string
	for _, out := range o.Outgoing {
		if out.Copy {
			all = append(all, strings.Join(out.Envelope.Addresses(), ","))
		}
	}
	return strings.Join(all, " ")
}

// onlyCopy is the one copy among what leaves.
func onlyCopy(t testing.TB, o *pipeline.Outcome) pipeline.Outgoing {
	t.Helper()
	if len(o.Outgoing) != 2 || o.Outgoing[0].Copy || !o.Outgoing[1].Copy {
		t.Fatalf("not one message and one copy, but %d: %v", len(o.Outgoing), o.Trace)
	}
	return o.Outgoing[1]
}

const text = "Received: from a by b\nMessage-ID: <1@example.net>\nDate: Wed, 05 Aug 2026 12:00:00 +0000\n" +
	"From: Joe <joe@example.net>\nSubject: hello\n\nFirst line.\n\nLast line.\n"

var tapCases = []struct {
	name   string
	rules  []string
	all    bool
	sender string
	to     []string
	want   string
}{
	{name: "sender", rules: []string{"F:.*@domain.com:joe@example.com"}, sender: "x@domain.com", to: []string{"a@b"}, want: "joe@example.com"},
	{name: "sender rule and recipient", rules: []string{"F:.*@domain.com:joe@example.com"}, sender: "x@y", to: []string{"a@domain.com"}},
	{name: "recipient", rules: []string{"T:.*@domain.com:joe@example.com"}, sender: "x@y", to: []string{"a@b", "c@domain.com"}, want: "joe@example.com"},
	{name: "recipient rule and sender", rules: []string{"T:.*@domain.com:joe@example.com"}, sender: "x@domain.com", to: []string{"a@b"}},
	{name: "both, sender", rules: []string{"A:user@domain.com:x@y"}, sender: "user@domain.com", to: []string{"a@b"}, want: "x@y"},
	{name: "both, recipient", rules: []string{"A:user@domain.com:x@y"}, sender: "a@b", to: []string{"user@domain.com"}, want: "x@y"},
	{name: "the patch's first version", rules: []string{"user@domain.com:x@y"}, sender: "a@b", to: []string{"user@domain.com"}, want: "x@y"},
	{name: "not anchored, dots are wild", rules: []string{"T:user@domain.com:x@y"}, sender: "a@b", to: []string{"xuser@domainXcom.evil"}, want: "x@y"},
	{name: "anchored", rules: []string{`T:^user@domain\.com$:x@y`}, sender: "a@b", to: []string{"xuser@domain.com", "user@domainXcom", "user@domain.com.evil"}},
	{name: "case", rules: []string{"T:USER@domain.com:x@y"}, sender: "a@b", to: []string{"user@DOMAIN.com"}, want: "x@y"},
	{name: "alternatives and intervals", rules: []string{"T:^(a|b){2}@c+$:x@y"}, sender: "s@t", to: []string{"ab@ccc"}, want: "x@y"},
	{name: "brackets", rules: []string{`T:^[0-9]+[^]a]@:x@y`}, sender: "s@t", to: []string{"123@d"}, want: "x@y"},
	{name: "bytes above 127", rules: []string{"T:^.@d$:x@y"}, sender: "s@t", to: []string{"\xe9@d"}, want: "x@y"},
	{name: "empty sender", rules: []string{"F:^$:x@y"}, sender: "", to: []string{"a@b"}, want: "x@y"},
	{name: "not empty sender", rules: []string{"F:^$:x@y"}, sender: "a@b", to: []string{"a@b"}},
	{name: "empty expression", rules: []string{"F::x@y"}, sender: "a@b", to: []string{"a@b"}, want: "x@y"},
	{name: "double bounce", rules: []string{`F:^#@\[\]$:x@y`}, sender: "#@[]", to: []string{"a@b"}, want: "x@y"},
	{name: "negation matches", rules: []string{"F:!@example.org$:x@y"}, sender: "a@b", to: []string{"c@d"}, want: "x@y"},
	{name: "negation does not match", rules: []string{"F:!@example.org$:x@y"}, sender: "a@example.org", to: []string{"c@d"}},
	{name: "negation and empty sender", rules: []string{"F:!@example.org$:x@y"}, sender: "", to: []string{"c@d"}, want: "x@y"},
	{name: "negation, one recipient of two", rules: []string{"T:!@example.org$:x@y"}, sender: "s@t", to: []string{"a@example.org", "c@d"}, want: "x@y"},
	{name: "first line of two", rules: []string{"F:a@:first@y", "F:a@:second@y"}, sender: "a@b", to: []string{"c@d"}, want: "first@y"},
	{name: "second line", rules: []string{"F:z@:first@y", "F:a@:second@y"}, sender: "a@b", to: []string{"c@d"}, want: "second@y"},
	{name: "sender before recipients", rules: []string{"T:c@d:recipient@y", "F:a@:sender@y"}, sender: "a@b", to: []string{"c@d"}, want: "sender@y"},
	{name: "recipients before lines", rules: []string{"T:second@:line1@y", "T:first@:line2@y"}, sender: "a@b", to: []string{"first@d", "second@d"}, want: "line2@y"},
	{name: "no recipients", rules: []string{"F:a@:x@y", "T:.*:z@y"}, sender: "a@b", want: "x@y"},
	{name: "comments and blanks", rules: []string{"# F:a@:no@y", "", "F:a@:x@y  "}, sender: "a@b", to: []string{"c@d"}, want: "x@y"},
	{name: "copy with colons", rules: []string{"F:a@:x@[IPv6:2001:db8::1]"}, sender: "a@b", to: []string{"c@d"}, want: "x@[IPv6:2001:db8::1]"},
	{name: "a recipient already", rules: []string{"T:x@y:x@y"}, sender: "a@b", to: []string{"x@y"}, want: "x@y"},
	{
		name: "all", all: true, rules: []string{"F:a@:one@y", "T:zzz:no@y", "T:c@:two@y", "A:@d:three@y"},
		sender: "a@b", to: []string{"c@d", "e@d"}, want: "one@y two@y three@y",
	},
	{
		name: "all, merged", all: true, rules: []string{"F:a@:one@Y", "T:c@:one@y.", "T:c@:two@y", "T:c@d:TWO@y"},
		sender: "a@b", to: []string{"c@d"}, want: "one@Y two@y TWO@y",
	},
	{name: "all, both sides once", all: true, rules: []string{"A:a@b:x@y"}, sender: "a@b", to: []string{"a@b", "a@b"}, want: "x@y"},
	{name: "all, nothing", all: true, rules: []string{"A:z@z:x@y"}, sender: "a@b", to: []string{"a@b"}},
}

func TestRules(t *testing.T) {
	for _, c := range tapCases {
		f := newTap(t, Options{Rules: c.rules, All: c.all})
		o := run(t, envelope.To(c.sender, c.to...), message.FromString(text), f)
		if got := copied(o); got != c.want {
			t.Errorf("%s: copied to %q, want %q", c.name, got, c.want)
		}
		main := o.Outgoing[0]
		if main.Copy || !slices.Equal(main.Envelope.Addresses(), c.to) || main.Envelope.Sender != c.sender || string(main.Message.Bytes()) != text {
			t.Errorf("%s: the message itself changed: %+v", c.name, main.Envelope)
		}
	}
}

// The same rules in qmail's way: one more recipient, the sender stays.
func TestCompat(t *testing.T) {
	for _, c := range tapCases {
		f := newTap(t, Options{Rules: c.rules, All: c.all, Compat: true})
		o := run(t, envelope.To(c.sender, c.to...), message.FromString(text), f)
		if len(o.Outgoing) != 1 {
			t.Errorf("%s: %d messages", c.name, len(o.Outgoing))
			continue
		}
		out := o.Outgoing[0]
		got, want := out.Envelope.Addresses(), slices.Concat(c.to, strings.Fields(c.want))
		slices.Sort(got)
		slices.Sort(want)
		if out.Envelope.Sender != c.sender || !slices.Equal(got, want) {
			t.Errorf("%s: from %q to %q, want %q", c.name, out.Envelope.Sender, got, want)
		}
		if string(out.Message.Bytes()) != text {
			t.Errorf("%s: the message changed", c.name)
		}
	}
}

func TestCopyEnvelope(t *testing.T) {
	for _, c := range []struct{ bounces, sender, want string }{
		{"", "joe@example.net", ""},
		{"", "", ""},
		{"", "#@[]", "#@[]"},
		{"archive-owner@example.org", "joe@example.net", "archive-owner@example.org"},
		{"archive-owner@example.org", "list-@example.net-@[]", "archive-owner@example.org"},
		// A broken archive must not make bounces of its bounces for ever.
		{"archive-owner@example.org", "", ""},
		{"archive-owner@example.org", "#@[]", "#@[]"},
	} {
		f := newTap(t, Options{Rules: []string{"F::x@y"}, Bounces: c.bounces})
		e := envelope.To(c.sender, "a@b")
		e.UTF8, e.RequireTLS, e.NoScan, e.Ret, e.EnvID = true, true, true, "FULL", "id"
		e.Recipients[0].DSN = &envelope.DSN{Notify: envelope.NotifySuccess, ORcpt: "rfc822;a@b"}
		got := onlyCopy(t, run(t, e, message.FromString(text), f)).Envelope
		want := envelope.To(c.want, "x@y")
		want.UTF8, want.RequireTLS, want.NoScan = true, true, true
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("bounces %q: %+v, want %+v", c.bounces, got, want)
		}
	}
}

func TestTables(t *testing.T) {
	f := newTap(t, Options{
		Rules: []string{"F:line@:line@y"},
		Tables: []Rule{
			{From: "^urn:[a-z]+:x@y$", Copy: "colon@y"},
			{To: `^sales@`, Copy: []any{"one@y", "two@y", "ONE@y", "one@Y"}},
			{Any: `^any@`, Copy: []string{"any@y"}},
			{To: "^[[:digit:]]+@", Copy: "class@y"},
			{To: "@example.org$", Copy: "foreign@y", Not: true},
		},
	})
	for _, c := range []struct{ sender, to, want string }{
		{"line@b", "sales@example.org", "line@y"},
		{"urn:mail:x@y", "sales@example.org", "colon@y"},
		{"a@b", "sales@example.org", "one@y,two@y,ONE@y"},
		{"any@b", "any@example.org", "any@y"},
		{"a@b", "any@example.org", "any@y"},
		{"a@b", "42@example.org", "class@y"},
		{"a@b", "c@d", "foreign@y"},
		{"a@b", "c@example.org", ""},
	} {
		if got := copied(run(t, envelope.To(c.sender, c.to), message.FromString(text), f)); got != c.want {
			t.Errorf("%q to %q: copied to %q, want %q", c.sender, c.to, got, c.want)
		}
	}
}

func TestConfiguration(t *testing.T) {
	const config = `
rules = ['F:^a@:one@y', 'T:b@:two@y']
all = true
bounces = "owner@y"
[[rule]]
from = "x:y"
copy = "three@y"
[[rule]]
any = "z"
not = true
copy = ["four@y", "five@y"]
`
	decode := func(into any) error {
		return toml.NewDecoder(strings.NewReader(config)).DisallowUnknownFields().Decode(into)
	}
	made, err := Kind().New(testEnv("here"), decode)
	if err != nil {
		t.Fatal(err)
	}
	if got := copied(run(t, envelope.To("a@n", "b@n"), message.FromString(text), made)); got != "one@y four@y,five@y two@y" {
		t.Errorf("copied to %q", got)
	}
	broken := errors.New("line 3: unknown key")
	if _, err := Kind().New(testEnv("here"), func(any) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestConfigurationErrors(t *testing.T) {
	long := strings.Repeat("x", envelope.MaxAddress)
	for _, c := range []struct {
		o         Options
		key, want string
	}{
		{Options{Rules: []string{"F:a:b@c", "F:(:x@y"}}, "rules[1]", `"F:(:x@y": bad pattern`},
		{Options{Rules: []string{"# comment", "F:*:x@y"}}, "rules[1]", "F:*:x@y"},
		{Options{Rules: []string{"F:[:x@y"}}, "rules[0]", "[ without ]"},
		{Options{Rules: []string{"F:^[[:digit:]]@:x@y"}}, "rules[0]", "[ without ]"},
		{Options{Rules: []string{"X:a:x@y"}}, "rules[0]", "unknown type of tap"},
		{Options{Rules: []string{"nothing"}}, "rules[0]", "no colon"},
		{Options{Rules: []string{"F:a:"}}, "rules[0]", "missing"},
		{Options{Rules: []string{"F:a:joe"}}, "rules[0]", "write user@example.org"},
		{Options{Rules: []string{"F:a:@y"}}, "rules[0]", "has no domain"},
		{Options{Rules: []string{"F:a:x@"}}, "rules[0]", "has no domain"},
		{Options{Rules: []string{"F:a:x\x01@y"}}, "rules[0]", "control character"},
		{Options{Rules: []string{"F:a:<x@y>"}}, "rules[0]", "without angle brackets"},
		{Options{Rules: []string{"F:a:" + long + "@y"}}, "rules[0]", "at most 1002"},
		{Options{Rules: make([]string, maxRules+1)}, "", "at most 4096"},
		{Options{Tables: []Rule{{Copy: "x@y"}}}, "rule[0]", "it needs one of from, to and any"},
		{Options{Tables: []Rule{{From: "a", Copy: "x@y"}, {From: "a", To: "b", Copy: "x@y"}}}, "rule[1].to", "write a second rule"},
		{Options{Tables: []Rule{{From: "a"}}}, "rule[0].copy", "is missing"},
		{Options{Tables: []Rule{{From: "a", Copy: []any{}}}}, "rule[0].copy", "is missing"},
		{Options{Tables: []Rule{{From: "a", Copy: 5}}}, "rule[0].copy", "5 is not an address"},
		{Options{Tables: []Rule{{From: "a", Copy: []any{"x@y", true}}}}, "rule[0].copy", "true is not an address"},
		{Options{Tables: []Rule{{From: "a", Copy: []any{"x@y", "joe"}}}}, "rule[0].copy", "has no domain"},
		{Options{Tables: []Rule{{From: "a", Copy: "x y@z"}}}, "rule[0].copy", "blank"},
		{Options{Tables: []Rule{{From: "a", Copy: long + "@y"}}}, "rule[0].copy", "at most 1002"},
		{Options{Tables: []Rule{{From: "a", Copy: slices.Repeat([]string{"x@y"}, maxCopies+1)}}}, "rule[0].copy", "at most 100"},
		{Options{Tables: []Rule{{From: "(", Copy: "x@y"}}}, "rule[0].from", `"(": bad pattern`},
		{Options{Tables: []Rule{{From: "!a", Not: true, Copy: "x@y"}}}, "rule[0].not", "undo each other"},
		{Options{Bounces: "joe"}, "bounces", `address "joe" has no domain`},
		{Options{Bounces: "a@b\n"}, "bounces", "control"},
		{Options{Bounces: "a@b", Compat: true}, "bounces", "remove bounces or compat"},
	} {
		f, err := New(testEnv("here"), c.o)
		var keyed interface{ Key() string }
		if err == nil || f != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q: %v, want %q", fmt.Sprint(c.o), err, c.want)
		} else if errors.As(err, &keyed) != (c.key != "") || c.key != "" && keyed.Key() != c.key {
			t.Errorf("%.60q: %v is about %v, want %s", fmt.Sprint(c.o), err, keyed, c.key)
		} else if strings.ContainsAny(err.Error(), "\n\x01") || len(err.Error()) > 600 {
			t.Errorf("not one clean line: %q", err)
		}
	}
	if _, err := New(pipeline.Env{}, Options{}); err == nil || !strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

func TestTraits(t *testing.T) {
	f := newTap(t, Options{})
	if got := f.Traits(); !got.Always || got.OnError != pipeline.ErrorDefers || got.Strangers {
		t.Errorf("%+v", got)
	}
	if copied(run(t, envelope.To("a@b", "c@d"), message.FromString(text), f)) != "" {
		t.Error("a tap without rules copies")
	}
}

// verdicts is a filter that says one thing.
type verdicts struct{ pipeline.Verdict }

func (v verdicts) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return v, nil }
func (v verdicts) Close() error                                                       { return nil }
func (v verdicts) Message(context.Context, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) {
	return v.Verdict, nil
}

func TestWithOtherFilters(t *testing.T) {
	f := newTap(t, Options{Rules: []string{"T:^a@:a-archive@y", "T:^b@:b-archive@y"}})
	for _, c := range []struct {
		name          string
		before, after pipeline.Verdict
		want          string
	}{
		{name: "nothing", want: "a-archive@y"},
		{name: "accepted before", before: pipeline.Verdict{Action: pipeline.Accept}, want: "a-archive@y"},
		{name: "refused before", before: pipeline.Verdict{Action: pipeline.Reject}},
		{name: "refused after", after: pipeline.Verdict{Action: pipeline.Reject}},
		{name: "put off after", after: pipeline.Verdict{Action: pipeline.Defer}},
		{name: "discarded after", after: pipeline.Verdict{Action: pipeline.Discard}},
		{name: "held after", after: pipeline.Verdict{Action: pipeline.Quarantine}, want: "a-archive@y"},
		{name: "one discarded before", before: pipeline.Verdict{Action: pipeline.Discard, Only: []int{0}}, want: "b-archive@y"},
		{name: "one discarded after", after: pipeline.Verdict{Action: pipeline.Discard, Only: []int{0}}, want: "a-archive@y"},
		{
			name: "split before", want: "a-archive@y b-archive@y",
			before: pipeline.Verdict{Only: []int{0}, Edits: []pipeline.Edit{pipeline.Field(message.FieldEdit{Name: "X", Value: "y"})}},
		},
	} {
		o := run(t, envelope.To("s@t", "a@x", "b@x"), message.FromString(text), verdicts{c.before}, f, verdicts{c.after})
		got := strings.Fields(copied(o))
		slices.Sort(got)
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: copied to %q, want %q: %+v", c.name, got, c.want, o.Trace)
		}
	}
}

func TestWhy(t *testing.T) {
	f := newTap(t, Options{All: true, Rules: []string{"F:joe:one@y", "T:secret@:two@y", "T:other@:two@y", "A:other@:three@y"}})
	o := run(t, envelope.To("joe\xe9@example.net", "secret@x", "other@x"), message.FromString("Postern-Tapped: forged\n"+text), f)
	want := map[string]string{
		"one@y":   "rule 1 (sender); envelope-from <joe?@example.net>",
		"two@y":   "rule 2 (recipient), rule 3 (recipient); envelope-from <joe?@example.net>",
		"three@y": "rule 4 (recipient); envelope-from <joe?@example.net>",
	}
	for _, out := range o.Outgoing[1:] {
		to := out.Envelope.Recipients[0].Address
		if got := out.Message.Head().Values(whyField); len(got) != 1 || got[0] != want[to] {
			t.Errorf("%s: %q, want %q", to, got, want[to])
		}
		for _, secret := range []string{"secret@", "other@", "one@", "two@", "three@"} {
			if strings.Contains(string(out.Message.Bytes()), secret) {
				t.Errorf("the copy to %s names %s", to, secret)
			}
		}
	}
	if len(o.Outgoing) != 4 {
		t.Errorf("%d messages", len(o.Outgoing))
	}
	const reason = "copied to <one@y>, <two@y>, <three@y>: rule 1 (sender), rule 2 (recipient), rule 3 (recipient), rule 4 (recipient) matches <joe?@example.net>"
	if got := o.Trace[0].Reason; got != reason {
		t.Errorf("%q", got)
	}
}

// What a copy says of a message stays within a head's bounds, whatever the
// envelope and the rules are.
func TestWhyIsBounded(t *testing.T) {
	var lines []string
	for i := range 300 {
		lines = append(lines, fmt.Sprintf("F::archive@y%d", i%2))
	}
	f := newTap(t, Options{All: true, Rules: lines})
	o := run(t, envelope.To(strings.Repeat(" x", 500), "a@b"), message.FromString(text), f)
	if got := copied(o); got != "archive@y0 archive@y1" {
		t.Fatalf("copied to %q: %+v", got, o.Trace)
	}
	for line := range strings.Lines(o.Outgoing[1].Message.Head().String()) {
		if len(line) > 998 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	if why := o.Outgoing[1].Message.Head().Get(whyField); !strings.Contains(why, " and 130 more; envelope-from <x x") {
		t.Errorf("%q", why)
	}
}

func TestManyAddressesInAReason(t *testing.T) {
	f := newTap(t, Options{Tables: []Rule{{To: ".", Copy: []string{"a@y", "b@y", "c@y", "d@y", "e@y", "f@y", "g@y"}}}})
	o := run(t, envelope.To("s@t", "r@x"), message.FromString(text), f)
	if got := o.Trace[0].Reason; got != "copied to <a@y>, <b@y>, <c@y>, <d@y>, <e@y> and 2 more: rule 1 (recipient) matches <r@x>" {
		t.Errorf("%q", got)
	}
}

// A time-out while many recipients are matched puts the message off.
func TestOutOfTime(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f := newTap(t, Options{Rules: []string{"T:z:x@y"}})
	tx := &pipeline.Transaction{Session: &pipeline.Session{}, Envelope: envelope.To("a@b", "c@d"), Active: []int{0}}
	if _, err := f.Message(ctx, tx, message.FromString(text)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
