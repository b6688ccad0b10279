package submission_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/mail"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/submission"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// zeros is a source of randomness that is none.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func options() submission.Options {
	return submission.Options{
		Hostname: "mx.us.example", DefaultHost: "host", DefaultDomain: "us.example", PlusDomain: "plus.example", Random: zeros{},
		Now: func() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 0, time.FixedZone("", -7*3600)) },
	}
}

func mender(t testing.TB, o submission.Options) *submission.Mender {
	t.Helper()
	m, err := submission.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// complete is what fields are added to by which nothing is missing.
const complete = "Date: Wed, 04 Mar 2026 00:00:00 +0000\nMessage-ID: <x@y.example>\n"

func mend(t testing.TB, m *submission.Mender, s *pipeline.Session, sender, text string) string {
	t.Helper()
	e := envelope.To(sender, "ann@other.example")
	out, err := m.Mend(context.Background(), s, &e, message.FromString(text))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return string(out.Bytes())
}

func TestAddressLists(t *testing.T) {
	m := mender(t, options())
	for _, test := range []struct{ in, want string }{
		{"joe", "joe@host.us.example"},
		{"joe@foo", "joe@foo.us.example"},
		{"joe@foo+", "joe@foo.plus.example"},
		{"joe@foo.bar+", "joe@foo.bar.plus.example"},
		{"joe@foo.bar", ""},
		{"joe@foo.", ""},
		{"joe@[192.0.2.1]", ""},
		{"joe@[IPv6:2001:db8::1]", ""},
		{"joe,ann@foo , bob@a.example", "joe@host.us.example,ann@foo.us.example , bob@a.example"},
		{"Joe Doe <joe>", "Joe Doe <joe@host.us.example>"},
		{"Joe Doe <joe@foo>, ann", "Joe Doe <joe@foo.us.example>, ann@host.us.example"},
		{"<joe>", "<joe@host.us.example>"},
		{"< joe >", "< joe@host.us.example >"},
		{"<>", ""},
		{"", ""},
		{" ", ""},
		{",,joe,", ",,joe@host.us.example,"},
		{"joe (his name, really (nested) <x>)", "joe@host.us.example (his name, really (nested) <x>)"},
		{"(c) joe (d) @ (e) foo (f)", "(c) joe (d) @ (e) foo.us.example (f)"},
		{`(a \) b) joe`, `(a \) b) joe@host.us.example`},
		{`"Doe, Joe" <joe>`, `"Doe, Joe" <joe@host.us.example>`},
		{`"joe doe"`, `"joe doe"@host.us.example`},
		{`"joe\"doe"@foo`, `"joe\"doe"@foo.us.example`},
		{`"a@b" <joe@foo>`, `"a@b" <joe@foo.us.example>`},
		{"joe.doe", "joe.doe@host.us.example"},
		{"joe . doe @ foo . bar", ""},
		{"undisclosed-recipients:;", ""},
		{"friends: joe, Ann <ann@foo>, bob@a.example;", "friends: joe@host.us.example, Ann <ann@foo.us.example>, bob@a.example;"},
		{"friends: joe;, ann", "friends: joe@host.us.example;, ann@host.us.example"},
		{"Joe Doe", ""},
		{"Joe Doe, ann", "Joe Doe, ann@host.us.example"},
		{"joe@", ""},
		{"joe@+", ""},
		{"@foo", ""},
		{"joe@foo@bar", ""},
		{"joe@foo bar", ""},
		{"<@a,@b.example:joe@foo>", "<@a,@b.example:joe@foo.us.example>"},
		{"<@a:joe>", "<@a:joe@host.us.example>"},
		{"=?utf-8?q?J=C3=B6rg,_M?= <joe>", "=?utf-8?q?J=C3=B6rg,_M?= <joe@host.us.example>"},
		{"=?utf-8?q?J=C3=B6rg?=", ""},
		{"Jörg <joe>, jörg", "Jörg <joe@host.us.example>, jörg@host.us.example"},
		{"joe,\n\tann\n (x)", "joe@host.us.example,\n\tann@host.us.example\n (x)"},
		{"\n joe", "\n joe@host.us.example"},
		{"owner-list-@host-@[]", ""},
		// What cannot be read is left alone, all of it.
		{"joe, <ann", ""},
		{"joe, ann>", ""},
		{"joe, <a,b>", ""},
		{"joe, <a> <b>", ""},
		{`joe, "ann`, ""},
		{"joe, (ann", ""},
		{"joe, ann)", ""},
		{"joe, ann@[1", ""},
		{"joe, ann]", ""},
		{`joe, a\nn`, ""},
		{"joe; ann", ""},
		{"a: joe, b: ann;;", ""},
		{"a: joe", ""},
		{"joe@foo: ann;", ""},
		{"joe, a: <b;", ""},
	} {
		want := test.want
		if want == "" {
			want = test.in
		}
		for _, name := range []string{"To:", "CC: ", "bcc :\t", "From:", "Reply-To:", "SENDER:"} {
			add := "From: a@b.example\n"
			if name == "From:" {
				add = ""
			}
			const rest = "Subject: joe\n\nTo: joe\n"
			if got := mend(t, m, &pipeline.Session{}, "", complete+add+name+test.in+"\n"+rest); got != complete+add+name+want+"\n"+rest {
				t.Errorf("%s%q:\n%q", name, test.in, got)
			}
		}
	}
}

// TestOnlyWhatIsMissingChanges: odd heads and bodies keep their bytes.
func TestOnlyWhatIsMissingChanges(t *testing.T) {
	m := mender(t, options())
	const added = "Date: Wed, 04 Mar 2026 05:06:07 -0700\nFrom: joe@host.us.example\nMessage-ID: <mmb9txm0.aaaaaaaaaaaaaaaaaaaaaaaaaa@mx.us.example>\n"
	joe := &pipeline.Session{User: "joe"}
	id := regexp.MustCompile(`<[0-9a-z]+\.`)
	for _, test := range []struct{ in, want string }{
		{"Subject: x\n\nbody\n", "Subject: x\n" + added + "\nbody\n"},
		{"", added},
		{"\nbody", added + "\nbody"},
		{"body without a head\n", added + "\nbody without a head\n"},
		{"To: joe\nbody at once\n", "To: joe@host.us.example\n" + added + "\nbody at once\n"},
		{"Subject: cut short", "Subject: cut short\n" + added},
		{"DATE:\nmessage-id:\nfrom:\n\n", "DATE:\nmessage-id:\nfrom:\n\n"},
		{"Resent-To: joe\nX-To: joe\nTo : joe\n\n", "Resent-To: joe\nX-To: joe\nTo : joe@host.us.example\n" + added + "\n"},
		{"To: joe\r\n\r\nbody\r\n", "To: joe@host.us.example\r\n" + added + "\r\nbody\r\n"},
		{"To: joe\nTo: ann@foo\nTo: (\n\n", "To: joe@host.us.example\nTo: ann@foo.us.example\nTo: (\n" + added + "\n"},
		{" folded first\nTo: joe\n\n\n\n", " folded first\nTo: joe@host.us.example\n" + added + "\n\n\n"},
		{"To: \x01joe\xff\x00\n\nb", "To: \x01joe\xff\x00@host.us.example\n" + added + "\nb"},
	} {
		got := mend(t, m, joe, "", test.in)
		if id.ReplaceAllString(got, "<x.") != id.ReplaceAllString(test.want, "<x.") {
			t.Errorf("%q:\n%q, want\n%q", test.in, got, test.want)
		}
		if again := mend(t, m, joe, "", got); again != got {
			t.Errorf("%q: mended again:\n%q, before\n%q", test.in, again, got)
		}
	}
}

func TestFrom(t *testing.T) {
	m := mender(t, options())
	for _, test := range []struct{ user, sender, want string }{
		{"joe", "x@y.example", "From: joe@host.us.example\n"},
		{"joe@us.example", "", "From: joe@us.example\n"},
		{"joe doe", "", "From: \"joe doe\"@host.us.example\n"},
		{`a"b\c@d.example`, "", `From: "a\"b\\c"@d.example` + "\n"},
		{"", "x@y", "From: x@y.us.example\n"},
		{"jörg", "x@y.example", "From: x@y.example\n"},
		{"joe\nBcc: all", "x@y.example", "From: x@y.example\n"},
		{"joe>", "", ""},
		{"", "", ""},
		{"", "#@[]", ""},
	} {
		got := mend(t, m, &pipeline.Session{User: test.user}, test.sender, complete+"\n")
		if got != complete+test.want+"\n" {
			t.Errorf("%q, %q: %q", test.user, test.sender, got)
		}
	}
}

func TestEnvelope(t *testing.T) {
	m := mender(t, options())
	for in, want := range map[string]string{
		"": "", "#@[]": "#@[]", "joe": "joe@host.us.example", "joe@foo": "joe@foo.us.example", "joe@foo+": "joe@foo.plus.example", "joe@a.example": "joe@a.example",
		`"a@b"`: `"a@b"@host.us.example`, `"a@b"@foo`: `"a@b"@foo.us.example`, "joe@[192.0.2.1]": "joe@[192.0.2.1]", "own-@host-@[]": "own-@host-@[]", "joe@": "joe@", "joe@+": "joe@+.us.example",
	} {
		recipients := []envelope.Recipient{{Address: in, DSN: &envelope.DSN{ORcpt: "x"}}, {Address: "ann@b.example"}}
		e := envelope.Envelope{Sender: in, Recipients: recipients, UTF8: true, EnvID: "id"}
		if _, err := m.Mend(context.Background(), &pipeline.Session{}, &e, message.FromString(complete+"\n")); err != nil {
			t.Fatal(err)
		}
		if e.Sender != want || e.Recipients[0].Address != want || e.Recipients[0].DSN != recipients[0].DSN || e.Recipients[1].Address != "ann@b.example" || !e.UTF8 || e.EnvID != "id" {
			t.Errorf("%q: %+v", in, e)
		}
		if recipients[0].Address != in {
			t.Errorf("%q: the recipients that came were changed", in)
		}
	}
	e := envelope.To("", strings.Repeat("a", envelope.MaxAddress))
	if _, err := m.Mend(context.Background(), &pipeline.Session{}, &e, message.FromString("")); reply.Of(err) != reply.AddressTooLong {
		t.Errorf("too long: %v", err)
	}
}

func TestBcc(t *testing.T) {
	o := options()
	o.Bcc = submission.RemoveBcc
	const head = complete + "From: a@b.example\n"
	if got := mend(t, mender(t, o), &pipeline.Session{}, "", head+"Bcc: joe,\n ann\nTo: bob\nBCC:\n\nBcc: x\n"); got != head+"To: bob@host.us.example\n\nBcc: x\n" {
		t.Errorf("removed: %q", got)
	}
	for _, b := range []submission.Bcc{submission.KeepBcc, submission.RemoveBcc} {
		if got, ok := submission.ParseBcc(b.String()); got != b || !ok {
			t.Errorf("%v: %v, %t", b, got, ok)
		}
	}
	if _, ok := submission.ParseBcc("invalid"); ok || submission.Bcc(9).String() != "invalid" {
		t.Error("an unknown word")
	}
}

func TestMessageIDs(t *testing.T) {
	o := options()
	o.Random, o.IDHost = nil, "id.example"
	m := mender(t, o)
	form := regexp.MustCompile(`^Message-ID: <[0-9a-z]{8,9}\.[a-z2-7]{26}@id\.example>\n\n$`)
	seen := map[string]bool{}
	for range 1000 {
		got := mend(t, m, &pipeline.Session{}, "", "Date: x\nFrom: a@b.example\n\n")
		id := strings.TrimPrefix(got, "Date: x\nFrom: a@b.example\n")
		if !form.MatchString(id) || seen[id] {
			t.Fatalf("%q", id)
		}
		seen[id] = true
	}
	o.Random = io.MultiReader()
	e := envelope.To("")
	if _, err := mender(t, o).Mend(context.Background(), &pipeline.Session{}, &e, message.FromString("")); !errors.Is(err, io.EOF) || reply.Of(err).Class != reply.Temporary {
		t.Errorf("no randomness: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.Mend(ctx, &pipeline.Session{}, &e, message.FromString("")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestNames(t *testing.T) {
	for _, o := range []submission.Options{
		{}, {Hostname: "a b"}, {Hostname: "a..b"}, {Hostname: "h", DefaultHost: "x>\n"}, {Hostname: "h", DefaultDomain: ".x"}, {Hostname: "h", PlusDomain: "@"}, {Hostname: "h", IDHost: "ä"},
	} {
		if _, err := submission.New(o); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	m := mender(t, submission.Options{Hostname: "mx.us.example", Random: zeros{}})
	if got := mend(t, m, &pipeline.Session{}, "", complete+"From: joe, ann@b, c@d+\n\n"); got != complete+"From: joe@mx.us.example, ann@b.mx.us.example, c@d.mx.us.example\n\n" {
		t.Errorf("the defaults: %q", got)
	}
}

// TestBodyIsTheSame: it is neither copied nor given up.
func TestBodyIsTheSame(t *testing.T) {
	in := message.FromString("To: joe\n\n" + strings.Repeat("body\n", 1000))
	e := envelope.To("", "joe")
	out, err := mender(t, options()).Mend(context.Background(), &pipeline.Session{}, &e, in)
	if err != nil || out.Body() != in.Body() {
		t.Errorf("%v", err)
	}
}

// TestHostileLists: each is left alone or completed, in one pass; the benchmark prints what a byte costs.
func TestHostileLists(t *testing.T) {
	m := mender(t, options())
	const n = 262_144
	for name, list := range hostileLists(n) {
		head := complete + "From: a@b.example\nTo: " + list + "\n"
		got := mend(t, m, &pipeline.Session{}, "", head+"\nbody")
		if !strings.HasSuffix(got, "\n\nbody") || len(got) > len(head)+(64<<10)+16 {
			t.Errorf("%s: %d bytes of %d", name, len(got), len(head))
		}
		if longestLine(got) > max(998, longestLine(head)) {
			t.Errorf("%s: a line of %d bytes", name, longestLine(got))
		}
	}
}

func longestLine(s string) (n int) {
	for l := range strings.Lines(s) {
		n = max(n, len(strings.TrimRight(l, "\n")))
	}
	return n
}

func hostileLists(n int) map[string]string {
	r := strings.Repeat
	return map[string]string{
		"literal":          "a@[" + r("a", n) + "]",
		"open literal":     "a@[" + r("a", n),
		"comments":         r("(", n/2) + r(")", n/2),
		"open comments":    r("(", n),
		"encoded words":    r("=?x?", n/4),
		"quotes":           r(`"`, n),
		"backslashes":      `"` + r(`\`, n),
		"angles":           r("<", n),
		"pairs of angles":  r("<>", n/2),
		"commas":           r(",", n),
		"bare addresses":   r("a,", n/2),
		"folded addresses": r("a,\n ", n/4),
		"groups":           r("a:;,", n/4),
		"colons":           r(":", n),
		"routes":           "<" + r("@a,", n/3) + "@b:c>",
		"ats":              r("@", n),
		"dots":             r(".", n),
		"words":            r("a ", n/2),
		"8-bit":            r("\xff", n),
	}
}

// TestWellFormedLists: lists put together at random, with what should become of them beside.
func TestWellFormedLists(t *testing.T) {
	m := mender(t, options())
	rnd := rand.New(rand.NewPCG(5, 6))
	pick := func(from ...string) string { return from[rnd.IntN(len(from))] }
	for range 500 {
		var in, want strings.Builder
		both := func(s string) { in.WriteString(s); want.WriteString(s) }
		var parsed []string
		for i := range 1 + rnd.IntN(6) {
			if i > 0 {
				both(pick(",", ", ", " ,\n\t", ",, "))
			}
			local := pick("joe", "joe.doe", `"joe doe"`, `"a,b<c>"`, "o'neil+x", "j=d")
			domain := [][2]string{{"", "@host.us.example"}, {"@foo", "@foo.us.example"}, {"@foo+", "@foo.plus.example"}, {"@a.example", "@a.example"}, {"@[192.0.2.1]", "@[192.0.2.1]"}}[rnd.IntN(5)]
			left, right := pick("", "Joe ", `"Doe, Joe" `, "(c) ", "J. Doe "), ""
			if angle := left != "" && left != "(c) " || rnd.IntN(2) == 0; angle {
				left, right = left+"<", ">"
			}
			right += pick("", " (comment, with @ and <)", "\n (folded)")
			both(left + local)
			in.WriteString(domain[0] + right)
			want.WriteString(domain[1] + right)
			parsed = append(parsed, strings.TrimSuffix(domain[1], "."))
		}
		head := complete + "From: a@b.example\n"
		got := mend(t, m, &pipeline.Session{}, "", head+"To: "+in.String()+"\n\n")
		if got != head+"To: "+want.String()+"\n\n" {
			t.Fatalf("%q:\n%q, want\n%q", in.String(), got, want.String())
		}
		// A reader of another make finds the same number of addresses, with these domains.
		text := strings.ReplaceAll(want.String(), "\n", "")
		if all, err := mail.ParseAddressList(strings.ReplaceAll(text, ",, ", ", ")); err == nil {
			domains := []string{}
			for _, a := range all {
				domains = append(domains, a.Address[strings.LastIndexByte(a.Address, '@'):])
			}
			if !slices.Equal(domains, parsed) {
				t.Fatalf("%q: %q, want %q", text, domains, parsed)
			}
		}
	}
}

// FuzzMend: whatever comes, mending takes nothing away, adds within bounds, is done after once, and leaves the body.
func FuzzMend(f *testing.F) {
	f.Add("To: joe, Ann <ann@foo+>\nSubject: x\n\nbody\n", "joe", "")
	f.Add("From : a: b, c;\n\n", "", "x@y")
	f.Add("Bcc: \"\\\n (\r\n)\nno field\n", "j\"oe", "#@[]")
	for _, list := range hostileLists(64) {
		f.Add("To: "+list+"\n\nbody", "u", "s")
	}
	m := mender(f, options())
	f.Fuzz(func(t *testing.T, text, user, sender string) {
		s := &pipeline.Session{User: user}
		e := envelope.To(sender, sender)
		in := message.FromString(text)
		out, err := m.Mend(context.Background(), s, &e, in)
		if err != nil {
			if reply.Of(err) != reply.AddressTooLong {
				t.Fatal(err)
			}
			return
		}
		got := out.Bytes()
		if !bytes.HasSuffix(got, bodyOf(in)) || !subsequence(text, got) {
			t.Fatalf("%q becomes %q", text, got)
		}
		again, err := m.Mend(context.Background(), s, &e, message.FromString(string(got)))
		if err != nil || !bytes.Equal(again.Bytes(), got) {
			t.Fatalf("%q becomes %q, and that %q, %v", text, got, again.Bytes(), err)
		}
		for _, name := range []string{"Date", "Message-ID"} {
			if len(out.Head().Values(name)) == 0 {
				t.Fatalf("%q: no %s in %q", text, name, got)
			}
		}
	})
}

func bodyOf(m message.Message) []byte {
	b, _ := m.Body().Memory()
	return b
}

// subsequence reports whether text is what remains of got if something is left out; a plus sign may be replaced.
func subsequence(text string, got []byte) bool {
	i := 0
	for _, c := range got {
		for i < len(text) && text[i] != c && text[i] == '+' && c == '.' {
			i++
		}
		if i < len(text) && text[i] == c {
			i++
		}
	}
	return strings.Trim(text[i:], "+") == ""
}

// BenchmarkMend prints what a byte of a hostile list costs, and how much more it costs where the list is 16 times as long:
// about 1 if the time is linear.
func BenchmarkMend(b *testing.B) {
	m := mender(b, options())
	run := func(list string, n int) time.Duration {
		in := message.FromString(complete + "From: a@b.example\nTo: " + list + "\n\n")
		best := time.Duration(1 << 62)
		for range n {
			start := time.Now()
			e := envelope.To("")
			if _, err := m.Mend(context.Background(), &pipeline.Session{}, &e, in); err != nil {
				b.Fatal(err)
			}
			best = min(best, time.Since(start))
		}
		return best
	}
	const short, long = 1 << 14, 1 << 18
	shorts, longs := hostileLists(short), hostileLists(long)
	for name := range longs {
		b.Run(strings.ReplaceAll(name, " ", "-"), func(b *testing.B) {
			for b.Loop() {
				run(longs[name], 1)
			}
			s, l := run(shorts[name], 20), run(longs[name], 5)
			b.ReportMetric(float64(l)/long, "ns/byte")
			b.ReportMetric(float64(l)/float64(s)*short/long, "times-linear")
		})
	}
	b.Run("ordinary", func(b *testing.B) {
		in := message.FromString("From: Joe <joe>\nTo: ann, Bob Doe <bob@foo>\nSubject: x\n\nbody\n")
		b.ReportAllocs()
		for b.Loop() {
			e := envelope.To("joe", "ann", "bob@foo")
			if _, err := m.Mend(context.Background(), &pipeline.Session{User: "joe"}, &e, in); err != nil {
				b.Fatal(err)
			}
		}
	})
}
