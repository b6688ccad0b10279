package pattern

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/worker"
	"github.com/postern-mta/postern/rules"
)

func TestMain(m *testing.M) {
	worker.Main(Jobs())
	os.Exit(m.Run())
}

// here does jobs in this process, for tests of what is found.
type here struct{ job worker.Job }

// Do does a job, with temporary space in memory.
func (h here) Do(ctx context.Context, r worker.Request) ([]byte, error) {
	scratch := worker.NewScratch(nil, 256<<20)
	defer scratch.Reset() //nolint:errcheck // it is in memory
	b, err := h.job(ctx, r.Args, io.NewSectionReader(r.Body, 0, r.Size), r.Size, scratch)
	if err == nil && r.Decode != nil {
		err = r.Decode(b)
	}
	return b, err
}

// environment has workers that work here.
func environment(t testing.TB) pipeline.Env {
	env := filtertest.Env(t)
	env.Workers = here{Jobs()[Name]}
	return env
}

func match(name, where, expr, more string) string {
	return "[[match]]\nname = \"" + name + "\"\nwhere = \"" + where + "\"\nexpr = '" + expr + "'\n" + more
}

// The suite that every filter passes, and what patterns find.
func TestSuite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "patterns")
	if err := os.WriteFile(file, []byte("# by hand\npills  2.5\ttext   cheap (pills|meds)\nname-it defer names \\.lnk$\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := match("lottery", "header:subject", `\blottery\b`, "action = \"reject\"\n") + match("any", "any-header", "^x-bulk: yes$", "score = 1.5\n") +
		match("pay", "text", `pay now, friend`, "action = \"quarantine\"\n") + match("exact", "text", "SECRET", "case = true\naction = \"discard\"\n")
	from := func(name, message, reason string, action pipeline.Action) filtertest.Case {
		c := filtertest.Case{Name: name, Message: message, From: "a@example.net", WantReason: reason, WantAction: action}
		if action == pipeline.Reject || action == pipeline.Discard {
			c.WantEnvelopes = []string{}
		}
		if action == pipeline.Reject {
			c.WantReply = "554 5.7.1 message refused"
		}
		return c
	}
	with := func(c filtertest.Case, config string) filtertest.Case {
		c.Config = config
		return c
	}
	const held = pipeline.Quarantine
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: config, Env: environment,
		Cases: []filtertest.Case{
			from("nothing", "Subject: y\n\nbody\n", "", pipeline.Continue),
			from("a field", "Subject: The LOTTERY is\n yours\n\nx\n", "lottery in part 1", pipeline.Reject),
			from("an encoded field", "SUBJECT: =?utf-8?B?bG90dA==?= =?utf-8?Q?ery?=\n\nx\n", "lottery in part 1", pipeline.Reject),
			from("the other field of two", "Subject: x\nSubject : lottery\n\nx\n", "lottery in part 1", pipeline.Reject),
			from("any field", "Subject: x\nX-Bulk: Yes\n\nx\n", "found any", pipeline.Continue),
			from("not another field", "X-Subject: lottery\n\nlottery\n", "", pipeline.Continue),
			from("plain, over the end of a line", "Subject: x\n\nplease pay\n  now, friend\n", "pay in part 1", held),
			from("base64", "Content-Transfer-Encoding: base64\n\ncGF5IG5vdywgZnJpZW5k\n", "pay in part 1", held),
			from("quoted-printable, a soft break", "Content-Transfer-Encoding: quoted-printable\n\npa=79 n=\now, friend\n", "pay in part 1", held),
			from("UTF-16", "Content-Type: text/plain; charset=\"utf-16le\"\nContent-Transfer-Encoding: base64\n\ncABhAHkAIABuAG8AdwAsACAAZgByAGkAZQBuAGQA\n", "pay in part 1", held),
			from("HTML", "Content-Type: text/html\n\n<p>p<b>a</b>y<!-- x --> n&#111;w,<script>x</script>\n<br>friend</p>\n", "pay in part 1", held),
			from("what is not seen", "Content-Type: text/plain; charset=utf-8\n\np\u200bay\u00a0n\u00adow, friend\n", "pay in part 1", held),
			from("in a part, in an attached message", "Content-Type: multipart/mixed; boundary=\"a\"\n\n--a\nContent-Type: message/rfc822\n\nSubject: lottery\n\npay now, friend\n--a--\n", "pay in part 1.1.1", held),
			from("behind the last boundary", "Content-Type: multipart/mixed; boundary=\"a\"\n\n--a\n\nx\n--a--\n--a\n\npay now, friend\n--a--\n", "pay in part 1.2", held),
			from("not in a picture", "Content-Type: image/png\n\npay now, friend\n", "", pipeline.Continue),
			from("the case of letters", "Subject: x\n\nsecret\n", "", pipeline.Continue),
			from("that case", "Subject: x\n\na SECRET\n", "exact in part 1", pipeline.Discard),
			from("the first decides", "Subject: lottery\n\nSECRET\n", "lottery in part 1", pipeline.Reject),
			with(from("beyond what is looked at", "Subject: x\n\n"+strings.Repeat("x", 100)+" pay now, friend\n", "", pipeline.Continue), "max = 100\n"+config),
			with(from("the file", "Subject: x\n\nCheap Meds\n", "found pills", pipeline.Continue), "file = \""+file+"\"\n"),
			func() filtertest.Case {
				c := with(from("a name", "Content-Type: application/octet-stream; name=\"a.LNK \"\n\nx\n", "name-it in part 1", pipeline.Defer), "text = \"not now\"\nfile = \""+file+"\"\n")
				c.WantReply, c.WantEnvelopes = "451 4.7.1 not now", []string{}
				return c
			}(),
			func() filtertest.Case {
				c := with(from("a field of its own", "X-Pattern: forged\nX-Bulk: yes\n\nCHEAP PILLS\n", "found any, pills", pipeline.Continue), "header = \"X-Pattern\"\nfile = \""+file+"\"\n"+match("any", "any-header", "x-bulk", ""))
				c.WantMessage = "X-Pattern: any,\n pills\nX-Bulk: yes\n\nCHEAP PILLS\n"
				return c
			}(),
		},
	})
}

func TestConfiguration(t *testing.T) {
	dir := t.TempDir()
	good := Match{Name: "a", Where: "text", Expr: "x"}
	with := func(change func(*Match)) Options {
		m := good
		change(&m)
		return Options{Matches: []Match{{Name: "first", Where: "names", Expr: "y"}, m}}
	}
	file := func(text string) Options {
		path := filepath.Join(dir, "patterns")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := New(pipeline.Env{}, Options{File: path, Matches: []Match{good}})
		if err == nil {
			t.Errorf("%q is taken", text)
			return Options{}
		}
		var at interface{ Key() string }
		if !errors.As(err, &at) || at.Key() != "file" || !strings.Contains(err.Error(), "patterns: line 1: ") {
			t.Errorf("%q: %v", text, err)
		}
		return Options{Text: "\n", Matches: []Match{good}}
	}
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"none":       {Options{}, "", "there is no pattern"},
		"many":       {Options{Matches: make([]Match, maxPatterns+1)}, "match[1000]", "more than 1000"},
		"name":       {with(func(m *Match) { m.Name = "a b" }), "match[1].name", "letters, digits"},
		"same name":  {with(func(m *Match) { m.Name = "FIRST" }), "match[1].name", "two patterns"},
		"where":      {with(func(m *Match) { m.Where = "body" }), "match[1].where", "header:NAME"},
		"no field":   {with(func(m *Match) { m.Where = "header:" }), "match[1].where", "header:NAME"},
		"no expr":    {with(func(m *Match) { m.Expr = "" }), "match[1].expr", "missing"},
		"bad expr":   {with(func(m *Match) { m.Expr = "a)" }), "match[1].expr", "unexpected )"},
		"everything": {with(func(m *Match) { m.Expr = "x*" }), "match[1].expr", "every text"},
		"action":     {with(func(m *Match) { m.Action = "accept" }), "match[1].action", "write symbol"},
		"score":      {with(func(m *Match) { m.Score = 1e9 }), "match[1].score", "from -10000"},
		"received":   {Options{Matches: []Match{good}, Header: "Received"}, "header", "has another use"},
		"contents":   {Options{Matches: []Match{good}, Header: "content-type"}, "header", "has another use"},
		"header":     {Options{Matches: []Match{good}, Header: "a b"}, "header", ""},
		"max":        {Options{Matches: []Match{good}, Max: 1 << 40}, "max", "write 1 to"},
		"relative":   {Options{File: "patterns"}, "file", "no absolute path"},
		"missing":    {Options{File: filepath.Join(dir, "none")}, "file", "no such file"},
		"few words":  {file("a reject text\n"), "text", "one line"},
		"bad line":   {file("b reject text (\n"), "text", "one line"},
		"taken":      {file("A reject text y\n"), "text", "one line"},
		"bad action": {file("b refuse text y\n"), "text", "one line"},
	} {
		f, err := New(pipeline.Env{}, c.o)
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &at) != (c.key != "") || c.key != "" && at.Key() != c.key {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The file is read again when it changes.
func TestFileChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "patterns")
	clock := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	write := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(2 * time.Second)
	}
	write("a reject text one\n")
	env := environment(t)
	env.Now = func() time.Time { return clock }
	f, err := New(env, Options{File: path})
	if err != nil {
		t.Fatal(err)
	}
	is := func(text string, want pipeline.Action) {
		t.Helper()
		v, err := f.Message(context.Background(), nil, message.FromString("\n"+text+"\n"))
		if err != nil || v.Action != want {
			t.Errorf("%s: %v %v", text, v, err)
		}
	}
	is("one", pipeline.Reject)
	write("a quarantine text two\nb reject text three\n")
	is("one", pipeline.Continue)
	is("two", pipeline.Quarantine)
	is("two three", pipeline.Quarantine)
	write("a reject text (\n")
	is("two", pipeline.Quarantine)
	write("# none\n")
	is("two", pipeline.Continue)
}

// broken are workers that are of no use.
type broken struct {
	answer string
	err    error
}

func (b broken) Do(_ context.Context, r worker.Request) ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	return nil, r.Decode([]byte(b.answer))
}

// What a worker does not manage is an error, and nothing that it says is
// believed that cannot be.
func TestWorkersFail(t *testing.T) {
	for name, w := range map[string]pipeline.Workers{
		"none": nil, "died": broken{err: worker.ErrDied}, "garbage": broken{answer: "[]["}, "no such pattern": broken{answer: `[{"Pattern":1}]`}, "twice": broken{answer: `[{"Pattern":0},{"Pattern":0}]`},
		"a key": broken{answer: `[{"Pattern":0,"Action":1}]`}, "two lines": broken{answer: `[{"Pattern":0,"Part":"a\nb"}]`}, "negative": broken{answer: `[{"Pattern":-1}]`},
	} {
		f, err := New(pipeline.Env{Workers: w}, Options{Matches: []Match{{Name: "a", Where: "text", Expr: "x"}}})
		if err != nil {
			t.Fatal(err)
		}
		if v, err := f.Message(context.Background(), nil, message.FromString("\nx\n")); err == nil || v.Action != pipeline.Continue {
			t.Errorf("%s: %v %v", name, v, err)
		}
	}
	f, err := New(pipeline.Env{Workers: broken{err: worker.ErrKilledTwo}}, Options{Matches: []Match{{Name: "a", Where: "text", Expr: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := f.Message(context.Background(), nil, message.FromString("\nx\n")); err != nil || v.Action != pipeline.Quarantine {
		t.Errorf("a message that kills: %v %v", v, err)
	}
}

// In a worker process as here.
func TestInAWorker(t *testing.T) {
	p := worker.New(worker.Options{Size: 1, Wait: time.Minute})
	defer p.Close()
	f, err := New(pipeline.Env{Workers: p}, Options{Matches: []Match{{Name: "a", Where: "text", Expr: `pay\s+now`, Action: "reject"}}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		v, err := f.Message(context.Background(), nil, message.FromString("Content-Transfer-Encoding: base64\n\ncGF5IG5vdywgZnJpZW5k\n"))
		if err != nil || v.Action != pipeline.Reject || v.Reason != "a in part 1" {
			t.Errorf("%+v %v", v, err)
		}
	}
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"a<b>b</b>c":                       "abc",
		"a<br>b<P class=x>c</p>d":          "a b c d",
		"1 < 2 &lt; 3 <3":                  "1 < 2 < 3 <3",
		"a<!-- <b> -->b<!doctype html>c":   "abc",
		"a<!-- no end":                     "a",
		"a<style>b</styl></style >c":       "ac",
		"a<SCRIPT>if (1<2) </b></script>c": "ac",
		"a<b no end":                       "a",
		"&nbsp;&eacute;&#x41;&bogus;":      "\u00a0éA&bogus;",
	} {
		if got := plain(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
	if got := visible(" a\u200d\t\n b\ufe0f\x00c "); got != "a b c" {
		t.Errorf("%q", got)
	}
}

// Whatever a file holds, its patterns are ones that a worker can search for.
func FuzzFile(f *testing.F) {
	f.Add("lottery reject header:Subject \\blottery\\b\npills 2.5 text cheap (pills|meds)\n")
	f.Add("a  NaN text x\n")
	f.Add("a\treject\tnames\t(?i:x)\\\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := rules.ControlLines(strings.NewReader(text), 1<<16)
		if err != nil {
			return
		}
		all, err := parseLines(lines, nil)
		if err != nil {
			return
		}
		s, err := newSet(all, 100)
		if err != nil {
			t.Fatal(err)
		}
		o, err := parseRequest(s.request)
		if err != nil || len(o.exprs) != len(all) {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

// Whatever is read of a text is no longer than it, but for entities, and what
// HTML does not hide is there.
func FuzzText(f *testing.F) {
	f.Add("<p>a<!-- b --><script>c</script>&amp;</p>")
	f.Add("<<</<!<?<!-")
	f.Fuzz(func(t *testing.T, s string) {
		p := plain(s)
		if len(p) > 2*len(s)+8 {
			t.Errorf("%q is %q", s, p)
		}
		if !strings.ContainsAny(s, "<&") && p != s {
			t.Errorf("%q is %q", s, p)
		}
		v := visible(p)
		if strings.Contains(v, "  ") || v != visible(v) {
			t.Errorf("%q is %q", p, v)
		}
	})
}

// A worker's answer is read as what a stranger sent.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`[{"Pattern":0,"Part":"1","Reading":"strict"},{"Pattern":2,"Part":"1.1","Reading":""}]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := decode(b, 3)
		if err == nil && len(all) > 3 {
			t.Errorf("%q: %d findings", b, len(all))
		}
	})
}

// Whatever a message is, it is looked at to its end, and what the worker says of
// it the filter believes.
func FuzzScan(f *testing.F) {
	for _, m := range filtertest.HostileMessages() {
		if len(m.Text) < 64<<10 {
			f.Add(m.Text)
		}
	}
	f.Add("Content-Type: text/html; charset=utf-7\nContent-Transfer-Encoding: base64\n\ncGF5IG5vdywgZnJpZW5k\n")
	w := here{Jobs()[Name]}
	filter, err := New(pipeline.Env{Workers: w}, Options{Max: 4096, Matches: []Match{
		{Name: "a", Where: "text", Expr: `\w\s\w`}, {Name: "b", Where: "any-header", Expr: `: .`}, {Name: "c", Where: "names", Expr: `\.`}, {Name: "d", Where: "header:Content-Type", Expr: `text`},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 64<<10 {
			return
		}
		v, err := filter.Message(context.Background(), nil, message.FromString(text))
		if err != nil || v.Action != pipeline.Continue {
			t.Errorf("%v %v", v, err)
		}
	})
}
