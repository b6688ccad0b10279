package rewrite

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/rules"
)

func write(t testing.TB, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func entries(lines ...string) string {
	return "[[map]]\nentries = ['" + strings.Join(lines, "', '") + "']\n"
}

// The suite that every filter passes, and what becomes of an envelope.
func TestSuite(t *testing.T) {
	list := entries("Sales@Example.org ann@example.net, bob@example.net", "ann@example.net ann@example.net, archive@example.net", "@old.example @example.org", "bob@example.org: bob@example.net")
	to := func(name, config string, to []string, want ...string) filtertest.Case {
		return filtertest.Case{Name: name, Config: config, From: "a@b.example", To: to, WantEnvelopes: []string{"a@b.example -> " + strings.Join(want, " ")}}
	}
	many := to("one to many", list, []string{"sales@example.org"}, "ann@example.net", "archive@example.net", "bob@example.net")
	many.WantEdits = []string{"recipient <ann@example.net>", "add recipient <archive@example.net>", "add recipient <bob@example.net>"}
	many.WantReason = "sales@example.org by entry 1"
	senders := "of = 'senders'\n" + entries("joe@in.example joe.doe@example.org", "@.in.example @example.org", "/(.+)@(.+)\\.test/ $1-$2@example.org", "/(.*)@\\[\\]/ x@example.org")
	from := func(name, from, want string) filtertest.Case {
		return filtertest.Case{Name: name, Config: senders, From: from, WantEnvelopes: []string{want + " -> r@example.org"}}
	}
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: list,
		Cases: []filtertest.Case{
			many,
			to("the same added twice", entries("a@example.org a@example.org, c@example.org", "b@example.org b@example.org, c@example.org"), []string{"a@example.org", "b@example.org"}, "a@example.org", "b@example.org", "c@example.org"),
			to("nobody's", list, []string{"r@example.org", "bare"}, "r@example.org", "bare"),
			to("a domain", list, []string{"Joe+x@OLD.example"}, "Joe+x@example.org"),
			to("a domain, then one of it", list, []string{"bob@old.example"}, "bob@example.net"),
			to("a dot at the end", list+entries("/(.*)@p\\.example/ $1@x.example"), []string{"Sales@Example.org.", "joe@old.example.", "joe@p.example.", "joe@no.example."}, "ann@example.net", "joe@example.org", "joe@x.example", "joe@no.example.", "archive@example.net", "bob@example.net"),
			to("an extension", list, []string{"sales+x@example.org"}, "ann+x@example.net", "archive+x@example.net", "bob+x@example.net"),
			to("no hyphen", list, []string{"sales-x@example.org"}, "sales-x@example.org"),
			to("the same twice", list, []string{"bob@example.net", "r@example.org", "sales@example.org", "bob@example.org"}, "bob@example.net", "r@example.org", "ann@example.net", "archive@example.net"),
			to("below a domain", entries("@.old.example @example.org", "@x.old.example x@example.org"), []string{"a@x.old.example", "a@y.old.example", "a@old.example"}, "x@example.org", "a@example.org", "a@old.example"),
			to("hyphens", "extension = '+-'\n"+entries("a@example.org b@x.example", "a-b@example.org c@x.example"), []string{"a-x+y@example.org", "a-b-c@example.org", "-a@example.org"}, "b-x+y@x.example", "c-c@x.example", "-a@example.org"),
			to("no extensions", "extension = ''\n"+entries("a@example.org b@x.example"), []string{"a+x@example.org"}, "a+x@example.org"),
			to("in every domain of ours", entries("postmaster@ root@x.example"), []string{"Postmaster@example.org", "postmaster@elsewhere.example"}, "root@x.example", "postmaster@elsewhere.example"),
			to("a pattern", entries("/(.*)\\.(.*)@example\\.ORG/ $2.$1@x.example"), []string{"a.b@example.org", "b.c@example.orgy"}, "b.a@x.example", "b.c@example.orgy"),
			to("the first map decides", entries("a@example.org x@x.example")+entries("a@example.org y@y.example"), []string{"a@example.org"}, "x@x.example"),
			to("a circle", entries("a@x.example b@x.example", "b@x.example a@x.example"), []string{"a@x.example", "b@x.example"}, "a@x.example", "b@x.example"),
			{
				Name: "too many", Config: "expansion = 2\n" + list, To: []string{"sales@example.org"}, WantAction: pipeline.Defer, WantEnvelopes: []string{},
				WantErr: "more than 2 addresses come of one by entry 1",
			},
			{
				Name: "too deep", Config: "depth = 1\n" + list, To: []string{"sales@example.org"}, WantAction: pipeline.Defer, WantEnvelopes: []string{},
				WantErr: "more than 1 times in a row",
			},
			{
				Name: "no address comes out", Config: entries("/a(.*)@example.org/ $1@x.example"), To: []string{"a@example.org"}, WantAction: pipeline.Defer, WantEnvelopes: []string{},
				WantErr: "which is no address",
			},
			from("a sender", "joe@in.example", "joe.doe@example.org"),
			from("a sender's extension", "joe+x@in.example", "joe.doe+x@example.org"),
			from("a sender's domain", "sue@a.in.example", "sue@example.org"),
			from("a sender by a pattern", "sue@a.test", "sue-a@example.org"),
			from("nobody", "", ""),
			from("a double bounce", "#@[]", "#@[]"),
			from("VERP", "list-@in.example-@[]", "list-@in.example-@[]"),
		},
	})
}

// What is wrong with a configuration is told with the key.
func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) Map { return Map{File: write(t, filepath.Join(t.TempDir(), "map"), text)} }
	one := func(m Map) Options { return Options{Maps: []Map{m}} }
	line := func(s string) Options { return one(Map{Entries: []string{"a@b c@d", s}}) }
	dash := "_"
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"none":            {Options{}, "", "there is no map"},
		"of":              {Options{Of: "both", Maps: line("x@y z@y").Maps}, "of", "recipients or senders"},
		"extension":       {Options{Extension: &dash, Maps: line("x@y z@y").Maps}, "extension", "write +, - or both"},
		"depth":           {Options{Depth: 51, Maps: line("x@y z@y").Maps}, "depth", "1 to 50"},
		"expansion":       {Options{Expansion: -1, Maps: line("x@y z@y").Maps}, "expansion", "1 to 10000"},
		"many maps":       {Options{Maps: make([]Map, maxMaps+1)}, "map[50]", "more than 50"},
		"nothing":         {one(Map{}), "map[0]", "it has 0 of"},
		"two things":      {one(Map{File: "/a", CDB: "/b"}), "map[0]", "it has 2 of"},
		"relative":        {one(Map{File: "a"}), "map[0].file", "no absolute path"},
		"relative cdb":    {one(Map{CDB: "a"}), "map[0].cdb", "no absolute path"},
		"missing":         {one(Map{File: dir + "/none"}), "map[0].file", "no such file"},
		"missing cdb":     {one(Map{CDB: dir + "/none"}), "map[0].cdb", "no such file"},
		"a folder":        {one(Map{File: dir}), "map[0].file", "is no file"},
		"no right side":   {line("x@y"), "map[0].entries[1]", "no address on the right"},
		"bad left":        {line("x z@y"), "map[0].entries[1]", `"x" is no address`},
		"only an at sign": {line("@ z@y"), "map[0].entries[1]", `"@" is no address`},
		"quoted":          {line(`"x"@y z@y`), "map[0].entries[1]", "quoted"},
		"bad domain":      {line("x@y..z z@y"), "map[0].entries[1]", "no address"},
		"below, with one": {line("x@.z z@y"), "map[0].entries[1]", "no address"},
		"bad right":       {line("x@y z"), "map[0].entries[1]", `"z" is no address: write`},
		"bad second":      {line("x@y z@y, <a@b>"), "map[0].entries[1]", `"<a@b>" is no address`},
		"twice":           {line("A@b z@y"), "map[0].entries[1]", `"a@b" has an entry before: entry 1`},
		"pattern":         {line("/(/ z@y"), "map[0].entries[1]", "the pattern is none"},
		"a group's end":   {line("/a)|(b/ z@y"), "map[0].entries[1]", "the pattern is none"},
		"pattern's end":   {line("/a z@y"), "map[0].entries[1]", "does not end"},
		"empty pattern":   {line("// z@y"), "map[0].entries[1]", "1 to 1000 bytes"},
		"no such group":   {line("/(a)/ $2@y"), "map[0].entries[1]", "asks for group 2, and the pattern has 1"},
		"a dollar":        {line("/(a)/ $x@y"), "map[0].entries[1]", "$$ for a dollar"},
		"many patterns":   {one(Map{Entries: slices.Repeat([]string{"/a/ x@y"}, maxPatterns+1)}), "map[0].entries[1000]", "more than 1000 patterns"},
		"many entries":    {one(Map{Entries: make([]string, maxEntries+1)}), "map[0].entries", "into a file"},
		"senders":         {Options{Of: ofSenders, Maps: []Map{{Entries: []string{"a@b c@d, e@f"}}}}, "map[0].entries[0]", "a message has one sender"},
		"in a file":       {one(file("# x\na@b\n  c@d,\n\n e@f\ng@h i\n")), "map[0].file", "map:6: \"i\" is no address"},
		"first line":      {one(file("\n a@b c@d\n")), "map[0].file", "map:2: the first line cannot go on"},
		"twice in a file": {one(file("a@b c@d\na@b e@f\n")), "map[0].file", "map:1"},
	} {
		f, err := New(pipeline.Env{}, c.o)
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if errors.As(err, &at) != (c.key != "") || c.key != "" && at.Key() != c.key {
			t.Errorf("%s: about %v, want %s", name, at, c.key)
		}
	}
}

func ours(address string) bool { return strings.HasSuffix(strings.ToLower(address), "@example.org") }

// expanded is what comes of an address, with blanks between.
func expanded(t testing.TB, f *Filter, address string) string {
	t.Helper()
	to, _, err := f.expand(address, ours)
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.Join(to, " ")
}

// A file is read again when it changes; one that is wrong then leaves what was
// before in force, and so does one that is gone.
func TestFileChanges(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var log bytes.Buffer
	path := write(t, filepath.Join(t.TempDir(), "map"), "# aliases\na@example.org x@example.net,\n\ty@example.net\n@old.example:\t@example.org")
	f, err := New(pipeline.Env{Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&log, nil))}, Options{Maps: []Map{{File: path}}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := func(address, want string) {
		t.Helper()
		if got := expanded(t, f, address); got != want {
			t.Errorf("%s is %q, want %q", address, got, want)
		}
	}
	want("a@old.example", "x@example.net y@example.net")
	write(t, path, "a@example.org changed@example.net\n")
	want("a@example.org", "x@example.net y@example.net")
	now = now.Add(lookEvery)
	want("a@example.org", "changed@example.net")
	for range 2 {
		write(t, path, "a@example.org wrong, wrong\n")
		now = now.Add(lookEvery)
		want("a@example.org", "changed@example.net")
	}
	if n := strings.Count(log.String(), "map:1: "); n != 1 {
		t.Errorf("the log has it %d times: %s", n, &log)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	now = now.Add(lookEvery)
	want("a@example.org", "changed@example.net")
	write(t, path, "a@example.org back@example.net\n")
	now = now.Add(-time.Hour) // a clock that was set back
	want("a@example.org", "back@example.net")
}

// A constant database has the same entries, and an error is one of the address.
func TestDatabase(t *testing.T) {
	var b bytes.Buffer
	if err := rules.WriteCDB(&b, []rules.CDBRecord{
		{Key: "joe@example.org", Value: "ann@example.net, bob@example.net"},
		{Key: "@old.example", Value: "@example.org"},
		{Key: "root@", Value: "joe@example.org"},
		{Key: "bad@example.org", Value: "nobody"},
		{Key: "long@example.org", Value: strings.Repeat("a@b ", maxLine/4+1)},
	}); err != nil {
		t.Fatal(err)
	}
	path := write(t, filepath.Join(t.TempDir(), "map.cdb"), b.String())
	f, err := New(pipeline.Env{}, Options{Maps: []Map{{CDB: path}, {Entries: []string{"bob@example.net carl@example.net"}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for address, want := range map[string]string{
		"Joe@Example.org":   "ann@example.net carl@example.net",
		"ROOT@old.example":  "ann@example.net carl@example.net",
		"joe+x@old.example": "ann+x@example.net carl+x@example.net",
		"sue@example.org":   "sue@example.org",
		"bad@example.org":   "error: " + path + `: bad@example.org: "nobody" is no address: write user@example.org, or @example.org`,
		"long@example.org":  "error: " + path + ": long@example.org: the right side is too long",
	} {
		if got := expanded(t, f, address); got != want {
			t.Errorf("%s is %q, want %q", address, got, want)
		}
	}
	write(t, filepath.Join(t.TempDir(), "short.cdb"), "x")
	if _, err := New(pipeline.Env{}, Options{Maps: []Map{{CDB: write(t, filepath.Join(t.TempDir(), "short.cdb"), "x")}}}); err == nil {
		t.Error("a broken database was opened")
	}
}

// Maps whose entries all name each other end.
func TestCircles(t *testing.T) {
	var lines []string
	names := strings.Split("abcdefghijklmnopqrst", "")
	for _, n := range names {
		line := n + "@x.example "
		for _, m := range names {
			line += m + "@x.example,"
		}
		lines = append(lines, line)
	}
	f, err := New(pipeline.Env{}, Options{Depth: maxDepth, Maps: []Map{{Entries: lines}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := expanded(t, f, "a@x.example"); !strings.Contains(got, "lead in circles") {
		t.Errorf("%q", got)
	}
}

// A filter that cannot be made is none, not one that is nil.
func TestKindOfNothing(t *testing.T) {
	if f, err := Kind().New(pipeline.Env{}, func(any) error { return nil }); f != nil || err == nil {
		t.Errorf("%v %v", f, err)
	}
}

// What a file is made into rewrites as the file does.
func TestRecords(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "map"), "# ours\nSales@Example.org: ann@x.example,\n\tbob@x.example\njoe@ joe@x.example\n@old.example @example.org\n@.old.example @example.org\nbob@example.org bob$@x.example\n")
	records, err := Records(file, false)
	if err != nil || len(records) != 5 || records[4] != (rules.CDBRecord{Key: "sales@example.org", Value: "ann@x.example, bob@x.example"}) {
		t.Fatalf("%q %v", records, err)
	}
	var b bytes.Buffer
	if err := rules.WriteCDB(&b, records); err != nil {
		t.Fatal(err)
	}
	isOurs := func(a string) bool { return strings.HasSuffix(a, "@example.org") }
	var both []*Filter
	for _, m := range []Map{{File: file}, {CDB: write(t, filepath.Join(dir, "map.cdb"), b.String())}} {
		f, err := New(pipeline.Env{}, Options{Maps: []Map{m}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		both = append(both, f)
	}
	for _, a := range []string{"SALES+1@example.org", "joe@example.org", "joe@x.example", "sales@old.example", "x@y.old.example", "bob@example.org", "nobody@example.org"} {
		one, _, err := both[0].expand(a, isOurs)
		other, _, err2 := both[1].expand(a, isOurs)
		if err != nil || err2 != nil || !slices.Equal(one, other) {
			t.Errorf("%s: %q %v, %q %v", a, one, err, other, err2)
		}
	}
	for text, want := range map[string]string{
		"a@b c@d\n/x/ y@z\n\n/y/ z@z\n":               "map:2: a pattern cannot be in a cdb",
		"a@b " + strings.Repeat("c@d,c@e,", 20) + "x": `map:1: "x" is no address`,
	} {
		if records, err := Records(write(t, file, text), false); err == nil || !strings.Contains(err.Error(), want) || len(records) > 0 {
			t.Errorf("%v", err)
		}
	}
	if _, err := Records(write(t, file, "a@b c@d, e@f\n"), true); err == nil || !strings.Contains(err.Error(), "one sender") {
		t.Errorf("%v", err)
	}
}
