package rules_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/postern-mta/postern/rules"
)

func addressList(t testing.TB, dialect rules.Dialect, text string) *rules.AddressList {
	t.Helper()
	l, err := rules.NewAddressList(lines(text), dialect)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAddressListGlobs(t *testing.T) {
	l := addressList(t, rules.Globs, `# badmailfrom
Spam@Example.ORG
@bad.example
answerme@save*
*%*
?@short.example
*@earthlink.example
!fred@earthlink.example
!@good.bad.example
!ok-*@bad.example
bare
`)
	if l.Len() != 10 {
		t.Errorf("%d lines", l.Len())
	}
	for address, want := range map[string]string{
		"spam@example.org":        "Spam@Example.ORG",
		"SPAM@EXAMPLE.ORG":        "Spam@Example.ORG",
		"spam@example.org.":       "",
		"xspam@example.org":       "",
		"anybody@bad.example":     "@bad.example",
		"a@b@BAD.example":         "@bad.example",
		"x@sub.bad.example":       "",
		"bad.example":             "",
		"ok-1@bad.example":        "",
		"answerme@savetrees.com":  "answerme@save*",
		"a%b@ok.example":          "*%*",
		"a@short.example":         "?@short.example",
		"ab@short.example":        "",
		"joe@earthlink.example":   "*@earthlink.example",
		"Fred@earthlink.example":  "",
		"x@good.bad.example":      "",
		"bare":                    "bare",
		"":                        "",
		"@":                       "",
		"\xff@\xfe":               "",
		"\xff%@\xfe":              "*%*",
		"anybody@bad.example\x00": "",
	} {
		if line, ok := l.Match(address); line != want || ok != (want != "") {
			t.Errorf("%q: %q, %t; want %q", address, line, ok, want)
		}
	}
	if line, ok := (*rules.AddressList)(nil).Match("a@b"); ok || line != "" || (*rules.AddressList)(nil).Len() != 0 {
		t.Error("nil matches")
	}
}

// TestAddressListRegexes: the examples of qregex.
func TestAddressListRegexes(t *testing.T) {
	l := addressList(t, rules.Regexes, "bad\\.domain\\.com\n!@\n[%:]\n")
	for address, want := range map[string]string{
		"joe@Bad.Domain.COM.example": `bad\.domain\.com`,
		"joe@badXdomain.com":         "",
		"joe":                        "!@",
		"a%b@c":                      "[%:]",
		"":                           "",
	} {
		if line, ok := l.Match(address); line != want || ok != (want != "") {
			t.Errorf("%q: %q, %t; want %q", address, line, ok, want)
		}
	}
}

// An address with a host of two names is on a list by either, unless an exception knows one of them.
func TestAddressListForms(t *testing.T) {
	globs := addressList(t, rules.Globs, "@b.example\n*@c.example\n!ok@a.example\n!fine-*@a.example\n")
	regexes := addressList(t, rules.Regexes, "^bad@c\n!@(a|x)\\.example$\n")
	for _, test := range []struct {
		list  *rules.AddressList
		forms []string
		want  string
	}{
		{globs, []string{"x@a.example", "x@b.example"}, "@b.example"},
		{globs, []string{"x@a.example", "x@c.example"}, "*@c.example"},
		{globs, []string{"ok@b.example", "ok@a.example"}, ""},
		{globs, []string{"ok@a.example", "ok@c.example"}, ""},
		{globs, []string{"fine-1@b.example", "fine-1@a.example"}, ""},
		{globs, nil, ""},
		{globs, []string{""}, ""},
		{regexes, []string{"x@b.example", "x@a.example"}, ""},
		{regexes, []string{"x@b.example", "x@d.example"}, `!@(a|x)\.example$`},
		{regexes, []string{"bad@a.example", "bad@c.example"}, "^bad@c"},
	} {
		if line, ok := test.list.MatchAny(test.forms); line != test.want || ok != (test.want != "") {
			t.Errorf("%q: %q, %t; want %q", test.forms, line, ok, test.want)
		}
	}
}

func TestAddressListErrors(t *testing.T) {
	for _, test := range []struct {
		dialect    rules.Dialect
		text, want string
	}{
		{rules.Globs, "a\n!", "line 2: an address is missing"},
		{rules.Regexes, "a\n\n(", "line 3: "},
		{rules.Regexes, strings.Repeat("a", 3000), "line 1: the regular expression is 3000 bytes long"},
		{rules.Globs, strings.Repeat("*\n", rules.MaxPatterns+1), "line 4097: more than"},
	} {
		_, err := rules.NewAddressList(lines(test.text), test.dialect)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.20q: %v, want %q", test.text, err, test.want)
		}
		checkLine(t, err)
	}
}

// TestMatchDomainLikeDomainList: a compiled list and one in memory give the same answers.
func TestMatchDomainLikeDomainList(t *testing.T) {
	entries := []string{"example.org", ".example.org", "a.b.c", ".net", "localhost"}
	list := rules.NewDomainList(entries)
	var records []rules.CDBRecord
	for _, e := range entries {
		records = append(records, rules.CDBRecord{Key: e})
	}
	keys := openCDB(t, writeCDB(t, records...))
	for _, domain := range []string{
		"example.org", "EXAMPLE.org", "x.Example.org", "y.x.example.org", "xexample.org", "a.b.c", "b.c", "net", "x.net", ".net", "..net",
		"localhost", "", ".", "..", "example.org.", strings.Repeat("a.", 500) + "net",
	} {
		want, wantOK := list.Match(domain)
		got, ok, err := rules.MatchDomain(keys, domain)
		if err != nil || got != want || ok != wantOK {
			t.Errorf("%q: %q, %t, %v; want %q, %t", domain, got, ok, err, want, wantOK)
		}
	}
}

// FuzzAddressList: no line and no address makes it panic, and an exception is never matched.
func FuzzAddressList(f *testing.F) {
	f.Add("@bad.example\n!ok@bad.example\n*%*", "ok@bad.example", false)
	f.Add("!@\n^a", "a@b", true)
	f.Fuzz(func(t *testing.T, text, address string, regexes bool) {
		all, err := rules.ControlLines(strings.NewReader(text), 1<<12)
		if err != nil {
			return
		}
		dialect := rules.Globs
		if regexes {
			dialect = rules.Regexes
		}
		l, err := rules.NewAddressList(all, dialect)
		if err != nil {
			checkLine(t, err)
			return
		}
		line, ok := l.Match(address)
		if ok && (address == "" || !regexes && strings.HasPrefix(line, "!")) {
			t.Errorf("%q is on %q", address, line)
		}
		except, err := rules.NewAddressList(append(all, rules.Line{No: 1, Text: "!" + address}), rules.Globs)
		if err != nil {
			return
		}
		if line, ok := except.Match(address); ok {
			t.Errorf("%q is on %q although excepted", address, line)
		}
	})
}

func BenchmarkAddressList(b *testing.B) {
	var text strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&text, "spam%d@example.org\n@bad%d.example\n", i, i)
	}
	l := addressList(b, rules.Globs, text.String())
	for b.Loop() {
		if _, ok := l.Match("somebody@customer.example"); ok {
			b.Fatal("matched")
		}
	}
}
