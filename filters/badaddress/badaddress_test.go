package badaddress

import (
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

// The suite that every filter passes, and what entries mean.
func TestSuite(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "badmailfrom")
	if err := os.WriteFile(file, []byte("# as qmail has it\n@File.example\none@two.example  \n!good@file.example\n@m\u00fcll.example\n!good@xn--mll-hoa.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const config = "senders = [\"bad@example.net\", \"@Spam.example\", \"*-return@*.list.example\", \"!me@spam.example\", \"!ok@file.example\", \"@b\u00fccher.example\"]\nrecipients = [\"gone@example.org\"]\n"
	with := config + "sender_files = [\"" + file + "\"]\n"
	refused := func(name, from, reason string) filtertest.Case {
		return filtertest.Case{
			Name: name, Config: with, From: from, WantAction: pipeline.Reject, WantReason: reason,
			WantReply: "553 5.7.1 mail from this sender is not accepted here", WantEnvelopes: []string{},
		}
	}
	passes := func(name, from, reason string) filtertest.Case {
		return filtertest.Case{Name: name, Config: with, From: from, WantReason: reason}
	}
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: config,
		Cases: []filtertest.Case{
			refused("an address", "Bad@Example.NET", `the list has "bad@example.net"`),
			refused("a host", "x@spam.example", `the list has "@Spam.example"`),
			refused("a dot at the end", "x@spam.example.", `the list has "@Spam.example"`),
			refused("a host in ASCII", "x@XN--bcher-KVA.example.", "the list has "),
			refused("a host in Unicode", "x@b\u00fccher.example", "the list has "),
			refused("a pattern", "a-return@b.list.example", `the list has "*-return@*.list.example"`),
			refused("a host of the file", "x@FILE.example", `badmailfrom has "@File.example"`),
			refused("blanks at the end of a line", "one@two.example", `badmailfrom has "one@two.example"`),
			passes("not what is below a host", "x@sub.spam.example", ""),
			passes("an exception", "me@spam.example", "excepted by !me@spam.example"),
			passes("an exception from the file", "OK@file.example", "excepted by !ok@file.example"),
			passes("an exception of the file", "good@file.example", ""),
			passes("an exception in ASCII", "good@m\u00fcll.example", ""),
			passes("an exception in ASCII, from there", "good@xn--mll-hoa.example.", ""),
			passes("from nobody", "", ""),
			passes("a comment", "# as qmail has it", ""),
			{
				Name: "one of two recipients", From: "a@example.net", To: []string{"gone@example.org", "r@example.org"},
				WantActions: []pipeline.Action{pipeline.Reject, pipeline.Continue}, WantReason: `the list has "gone@example.org"`,
				WantReply: "250", WantEnvelopes: []string{"a@example.net -> r@example.org"},
			},
			{
				Name: "our own user", Session: &pipeline.Session{Entrance: "queue", Standing: pipeline.Local}, From: "bad@example.net",
				WantAction: pipeline.Reject, WantReply: "553 5.7.1", WantEnvelopes: []string{}, WantReason: "the list has",
			},
			{
				Name: "later, with words", Config: config + "action = \"defer\"\nsender_text = \"not now\"\n", From: "bad@example.net",
				WantAction: pipeline.Defer, WantReply: "450 4.7.1 not now", WantEnvelopes: []string{}, WantReason: "the list has",
			},
			{
				Name: "regular expressions", Config: "dialect = \"regexes\"\nsenders = ['^bad.*@', '!@.*\\.example$']\n", From: "x@elsewhere.org",
				WantAction: pipeline.Reject, WantReply: "553 5.7.1", WantEnvelopes: []string{}, WantReason: "the list has",
			},
			{Name: "regular expressions that miss", Config: "dialect = \"regexes\"\nsenders = ['^bad.*@', '!@.*\\.example$']\n", From: "x@else.example"},
		},
	})
}

func TestConfiguration(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("a@b\n!\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	every := filepath.Join(dir, "every")
	if err := os.WriteFile(every, []byte("@spam\n.*\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"nothing":         {Options{}, "", "there is no list"},
		"only exceptions": {Options{Senders: []string{"!a@b"}}, "", "nothing that they are exceptions from"},
		"dialect":         {Options{Senders: []string{"a@b"}, Dialect: "pcre"}, "dialect", "globs or regexes"},
		"action":          {Options{Senders: []string{"a@b"}, Action: "discard"}, "action", "reject or defer"},
		"a word":          {Options{Senders: []string{"a@b", "spam"}}, "senders[1]", `"spam" is no address`},
		"empty":           {Options{Recipients: []string{""}}, "recipients[0]", "empty"},
		"only a mark":     {Options{Recipients: []string{"!"}}, "recipients[0]", "missing behind the !"},
		"bad regex":       {Options{Senders: []string{"a(b"}, Dialect: regexes}, "senders[0]", "missing"},
		"every address":   {Options{Recipients: []string{"!x", "^$", "spam|"}, Dialect: regexes}, "recipients[2]", "found in every address"},
		"every one again": {Options{SenderFiles: []string{every}, Dialect: regexes}, "sender_files[0]", "line 2: \".*\" is found in every address"},
		"control":         {Options{Senders: []string{"a@b\x01"}}, "senders[0]", "control character"},
		"text":            {Options{Senders: []string{"a@b"}, SenderText: "a\nb"}, "sender_text", "one line"},
		"relative":        {Options{SenderFiles: []string{"badmailfrom"}}, "sender_files[0]", "no absolute path"},
		"missing":         {Options{RecipientFiles: []string{filepath.Join(dir, "none")}}, "recipient_files[0]", "no such file"},
		"broken":          {Options{RecipientFiles: []string{broken}}, "recipient_files[0]", "broken: line 2: "},
		"a folder":        {Options{RecipientFiles: []string{dir}}, "recipient_files[0]", "no regular file"},
		"many files":      {Options{SenderFiles: make([]string, maxFiles+1)}, "sender_files", "at most 50"},
		"many entries":    {Options{Senders: make([]string, maxList+1)}, "senders", "write them into a file"},
		"many patterns":   {Options{Senders: slices.Repeat([]string{"*a@b"}, 5000)}, "senders", "4096"},
	} {
		f, err := New(pipeline.Env{}, c.o)
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &at) != (c.key != "") || c.key != "" && at.Key() != c.key {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that changes is read again; one that is broken or gone leaves what was
// read before, and the log says so.
func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "badrcptto")
	clock := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	var log strings.Builder
	write := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(2 * time.Second)
	}
	write("a@b\n")
	f, err := New(pipeline.Env{Now: func() time.Time { return clock }, Log: slog.New(slog.NewTextHandler(&log, nil))}, Options{RecipientFiles: []string{path}})
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Traits().Stages; !slices.Equal(got, []pipeline.Stage{pipeline.AtRecipient}) {
		t.Errorf("stages %v", got)
	}
	is := func(address string, want pipeline.Action) {
		t.Helper()
		if v := f.recipients.judge(address); v.Action != want {
			t.Errorf("%s: %v", address, v)
		}
	}
	is("a@b", pipeline.Reject)
	write("c@d\n")
	is("a@b", pipeline.Continue)
	is("c@d", pipeline.Reject)
	write("!\n")
	is("c@d", pipeline.Reject)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(2 * time.Second)
	is("c@d", pipeline.Reject)
	for _, want := range []string{"a list of addresses was read", "line 1: an address is missing", "no such file"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
}

// Whatever a file holds and whoever writes, an exception is never refused, the
// empty address never is, and what is refused is on a line that there is.
func FuzzList(f *testing.F) {
	f.Add("@spam.example\n*@bad.example\n!a@bad.example\n", "a@bad.example", false)
	f.Add("^a.*b$\n!c\n", "acb", true)
	f.Add("# none\n\x00\n", "x@y", false)
	f.Fuzz(func(t *testing.T, text, address string, regex bool) {
		lines, err := rules.ControlLines(strings.NewReader(text), 1<<16)
		if err != nil {
			return
		}
		dialect := rules.Globs
		if regex {
			dialect = rules.Regexes
		}
		own, err := rules.NewAddressList(lines, dialect)
		if err != nil {
			return
		}
		except, err := rules.NewAddressList([]rules.Line{{No: 1, Text: "friend@*"}}, rules.Globs)
		if err != nil {
			t.Fatal(err)
		}
		s := &side{lists: []list{{own: own}}, except: except, verdict: pipeline.Verdict{Action: pipeline.Reject}}
		if v := s.judge("friend@" + address); v.Action != pipeline.Continue {
			t.Errorf("an exception is refused: %v", v)
		}
		if v := s.judge(""); v.Action != pipeline.Continue {
			t.Errorf("nobody is refused: %v", v)
		}
		if v := s.judge(address); (v.Action == pipeline.Reject) != strings.HasPrefix(v.Reason, "the list has ") && !strings.HasPrefix(v.Reason, "excepted") {
			t.Errorf("%q: %v", address, v)
		}
	})
}
