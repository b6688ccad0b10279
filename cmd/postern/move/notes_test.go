package move

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/postern-mta/postern/rules"
)

// below is the listing of a line and the remarks that stand below it, unfolded.
func below(made []byte, listing string) string {
	at := strings.Index(string(made), "\n"+listing+"\n")
	if at < 0 {
		return ""
	}
	var b strings.Builder
	for _, l := range strings.Split(string(made)[at+len(listing)+2:], "\n") {
		words, ok := strings.CutPrefix(l, "#     ")
		if !ok {
			break
		}
		b.WriteString(words + " ")
	}
	return b.String()
}

// TestRemarks looks at what is said below lines of every kind, and at what they
// become.
func TestRemarks(t *testing.T) {
	for _, c := range []struct{ name, kind, content, listing, says, holds, lacks string }{
		{"a comment stays", "taps", "# Jörg's tap\nT:a:b@c", "# 1: # Jörg's tap", "", "\"T:a:b@c\", # taps:2", ""},
		{"CRLF, no final newline", "taps", "T:a:b@c\r\nF:x:y@z  ", "# 2: F:x:y@z", "", "F:x:y@z\", # taps:2", ""},
		{"an expression that is none", "taps", "T:a(:b@c", "# 1: T:a(:b@c", "NO EQUAL: this tap copied", "inbound = []", "[filter.tap]"},
		{"a tap's copy without a domain", "taps", "T:a:archive\nT:b:c@d", "# 1: T:a:archive", "has no domain", "T:b:c@d", "'T:a"},
		{"a control byte", "taps", "T:a\x07:b@c", "# 1: T:a?:b@c", "control byte 0x07", "inbound = []", "\x07"},
		{"no UTF-8", "taps", "T:\xe4:b@c", "# 1: T:?:b@c", "no UTF-8", "inbound = []", "\xe4"},
		{"extensions", "ssattach", ".EXE\n.com\n.exe\n", "# 3: .exe", "", `extensions = ["exe", "com"]`, ""},
		{"simscan reads the first", "ssattach", ".exe:.com", "# 1: .exe:.com", "never refused .com", `extensions = ["exe"]`, `"com"`},
		{"not an extension", "ssattach", "invoice.doc\n.tar.gz\n", "# 2: .tar.gz", "", `expr = '\.tar\.gz$'`, "execban"},
		{"a comment that is none", "ssattach", "#.vbs\n.exe", "# 1: #.vbs", "knows no comments", `["exe"]`, `"vbs"`},
		{"no colon", "simcontrol", "example.org\n:clam=yes", "# 1: example.org", "sets nothing", "[filter.clamav]", "when ="},
		{"a comment that counted", "simcontrol", "#example.org:clam=no\n:clam=yes", "# 1: #example.org:clam=no", "settings of example.org", "[filter.clamav]", "when ="},
		{"a key twice", "simcontrol", "a.example:clam=yes\na.example:clam=no\n", "# 2: a.example:clam=no", "the first line of a key, which is line 1", `domain(#) == "a.example"`, ""},
		{"Trophie", "simcontrol", ":trophie=yes", "# 1: :trophie=yes", "had Trophie", "inbound = []", ""},
		{"Avira", "simcontrol", ":avira=yes,clam=yes", "# 1: :avira=yes,clam=yes", "had Avira", `inbound = ["clamav"]`, ""},
		{"DSPAM", "simcontrol", ":dspam=yes", "# 1: :dspam=yes", "DSPAM", "inbound = []", ""},
		{"another queue", "simcontrol", ":qmailqueue=/bin/q", "# 1: :qmailqueue=/bin/q", `next = "/bin/q" in [listen.queue]`, "inbound = []", ""},
		{"a blank", "simcontrol", ":clam=yes, spam=yes", "# 1: :clam=yes, spam=yes", "a blank or a comma too many", `inbound = ["clamav"]`, "spamassassin"},
		{"no number", "simcontrol", ":spam=yes,spam_hits=9x", "# 1: :spam=yes,spam_hits=9x", "is no score", `X-Spam-Flag`, "refuse = 9"},
		{"hits for all", "simcontrol", ":spam=yes,spam_hits=09.50", "# 1: :spam=yes,spam_hits=09.50", "", "refuse = 9.5", `kind = "rule"`},
		{"passthru", "simcontrol", ":spam=yes,spam_passthru=yes", "# 1: :spam=yes,spam_passthru=yes", "", `inbound = ["spam"]`, "refuse ="},
		{"passthru for one", "simcontrol", ":spam=yes\njoe@a.example:spam_passthru=yes", "# 2: joe@a.example:spam_passthru=yes", "", `header("X-Spam-Flag") == "YES" and any(recipients, not like(#, "joe@a.example", "joe-*@a.example")`, ""},
		{"hits beat passthru", "simcontrol", ":spam=yes,spam_hits=8,spam_passthru=yes", "# 1: :spam=yes,spam_hits=8,spam_passthru=yes", "", "refuse = 8", `kind = "rule"`},
		{"the user", "simcontrol", ":spam=yes,spamuser=Joe", "# 1: :spam=yes,spamuser=Joe", "one recipient only", `user = "Joe"`, ""},
		{"an expression", "simcontrol", "a.example:regex=Lottery:^to", "# 1: a.example:regex=Lottery:^to", "^ and $ are the ends", `expr = "^to"`, ""},
		{"Perl's expression", "simcontrol", ":regex=(?!x)", "# 1: :regex=(?!x)", "none of RE2", "inbound = []", ""},
		{"all of them", "simcontrol", ":regex=x*", "# 1: :regex=x*", "found in every line", "inbound = []", ""},
		{"an odd key", "simcontrol", "*.example:clam=yes", "# 1: *.example:clam=yes", "cannot have", "inbound = []", ""},
		{"a prefix of an address", "simcontrol", "a-b@c.example:clam=yes\na@c.example:clam=no", "# 2: a@c.example:clam=no", "", `like(#, "a-b@c.example", "a-b-*@c.example")`, "domain("},
		{"no number in simscan", "simcontrol", ":spam=yes,spam_hits=nan", "# 1: :spam=yes,spam_hits=nan", "is no score", `kind = "spamassassin"`, "refuse ="},
		{"a signature", "signatures", "# MZ\nTVqQAAMAA\n", "# 2: TVqQAAMAA", "", `refuse = ["signatures"]`, ""},
		{"asterisks", "signatures", "TVqQ\n***\n", "# 2: ***", "would match every message", "inbound = []", "[filter."},
		{"indimail", "signatures", "TVqQ:an exe\n", "# 1: TVqQ:an exe", "leave TVqQ in the file", "[filter.signatures]", ""},
		{"a checker", "rcptchecks", "/usr/local/bin/check\nbin/other\n", "# 2: bin/other", "", `program = "/var/qmail/bin/other"`, ""},
		{"a checker with arguments", "rcptchecks", "/usr/local/bin/check -x\n", "# 1: /usr/local/bin/check -x", "by its path alone", "inbound = []", ""},
		{"RCPTCHECK", "rcptchecks", "export RCPTCHECK='/bin/true'\n", "# 1: export RCPTCHECK='/bin/true'", "", `program = "/bin/true"`, ""},
		{"sections", "smtpplugins", "/lost\n[RCPT]\n[rcpt]\nplugins/a\n:x\n", "# 1: /lost", "in no section", "  \"/var/qmail/plugins/a\", # smtpplugins:4", "/lost\","},
		{"an unknown section", "smtpplugins", "[quit]\n/a\n[c]\n/b", "# 1: [quit]", "no such section", "connection = [\n  \"/b\"", "\"/a\","},
		{"a shell's command", "smtpplugins", "[helo]\n:test x\n", "# 2: :test x", "starts in /", "helo = [", ""},
		{"a chain", "qfilters", "/bin/a 'b c' -- d\n", "# 1: /bin/a 'b c' -- d", "", "  [\"/bin/a\", \"b c\"], # qfilters:1\n  [\"d\"], # qfilters:1", ""},
		{"a script", "qfilters", "#!/bin/sh\nexport PATH=\"/bin:/usr/bin\"\nulimit -t 5\nexec env qmail-qfilter \\\n  /bin/a -- \\\n  bin/b \"$@\"\n", "# 3: ulimit -t 5", "nothing here runs it", "  [\"/var/qmail/bin/b\"], # qfilters:4\n", ""},
		{"a script's path", "qfilters", "PATH=/bin:/usr/bin\nqmail-qfilter a", "# 1: PATH=/bin:/usr/bin", "", "[filter.qfilter.env]\nPATH = \"/bin:/usr/bin\"", ""},
		{"a script's own value", "qfilters", "X=$(date)\nqmail-qfilter a", "# 1: X=$(date)", "worked out by the shell", "[\"a\"]", "[filter.qfilter.env]"},
		{"the next program", "qfilters", "QQF_QMAILQUEUE=/bin/q\nqmail-qfilter a", "# 1: QQF_QMAILQUEUE=/bin/q", "next in [listen.queue]", "[\"a\"]", ""},
		{"what runs it", "qfilters", "A=1 exec softlimit -m 5 qmail-qfilter /bin/a", "# 1: A=1 exec softlimit -m 5 qmail-qfilter /bin/a", "\"softlimit -m 5\" ran qmail-qfilter", "[filter.qfilter.env]\nA = \"1\"", ""},
		{"QMAILQUEUE", "qfilters", "export QMAILQUEUE='/usr/bin/qmail-qfilter /bin/a -- /bin/b'", "# 1: export QMAILQUEUE='/usr/bin/qmail-qfilter /bin/a -- /bin/b'", "", "  [\"/bin/b\"], # qfilters:1", ".env]"},
		{"another QMAILQUEUE", "qfilters", "QMAILQUEUE=/bin/simscan\nqmail-qfilter /bin/a", "# 1: QMAILQUEUE=/bin/simscan", "named the program that takes mail", "[\"/bin/a\"]", ".env]"},
		{"a pipe", "qfilters", "/bin/a | /bin/b", "# 1: /bin/a | /bin/b", "is for the shell", "[\"/bin/a\"]", "\"/bin/b\"]"},
		{"nothing between", "qfilters", "/bin/a -- -- /bin/b", "# 1: /bin/a -- -- /bin/b", "between two --", "[\"/bin/b\"]", ""},
		{"a domain", "qfilters", "Example.org:/bin/a\n*.net:/bin/b:FOO", "# 2: *.net:/bin/b:FOO", "FOO is a variable", `when = 'domain(sender) == "example.org"'`, ""},
	} {
		t.Run(c.kind+"/"+c.name, func(t *testing.T) {
			made := imported(t, t.TempDir(), c.kind, c.content, Options{}).TOML
			if !strings.Contains(string(made), "\n"+c.listing+"\n") {
				t.Errorf("%q is not listed", c.listing)
			}
			if says := below(made, c.listing); !strings.Contains(says, c.says) || c.says == "" && says != "" {
				t.Errorf("below %q stands %q, and not %q", c.listing, says, c.says)
			}
			if !strings.Contains(string(made), c.holds) {
				t.Errorf("it lacks %q", c.holds)
			}
			if c.lacks != "" && strings.Contains(string(made), c.lacks) {
				t.Errorf("it has %q", c.lacks)
			}
			if t.Failed() {
				t.Logf("%s", made)
			}
		})
	}
}

// TestDatabase reads the database as the text that it was made of.
func TestDatabase(t *testing.T) {
	dir := t.TempDir()
	var b bytes.Buffer
	if err := rules.WriteCDB(&b, []rules.CDBRecord{{Key: "joe@a.example", Value: "clam=no"}, {Key: "a.example", Value: "spam=yes,spam_hits=4"}, {Key: "", Value: "clam=yes"}, {Key: "a.example", Value: "spam=no"}}); err != nil {
		t.Fatal(err)
	}
	text := "joe@a.example:clam=no\na.example:spam=yes,spam_hits=4\n:clam=yes\na.example:spam=no\n"
	got := importedFrom(t, []Source{{"simcontrol", write(t, dir, "x.cdb", b.String())}}, Options{})
	want := importedFrom(t, []Source{{"simcontrol", write(t, dir, "x", text)}}, Options{})
	if g, w := table(t, got.TOML), table(t, want.TOML); !reflect.DeepEqual(g, w) {
		t.Errorf("the database makes\n%s\nand its text\n%s", got.TOML, want.TOML)
	}
	write(t, dir, "simcontrol.cdb", b.String())
	for _, c := range []struct {
		text string
		same bool
	}{{text, true}, {strings.ToUpper(text[:14]) + text[14:] + " \n", true}, {text + "b.example:clam=no", false}, {"#" + text, true}, {text[22:], false}} {
		r := importedFrom(t, []Source{{"simcontrol", write(t, dir, "simcontrol", c.text)}}, Options{})
		if same := !strings.Contains(string(r.TOML), "simscan goes by the database"); same != c.same {
			t.Errorf("%q is the database: %v", c.text, same)
		}
	}
	broken := write(t, dir, "y.cdb", b.String()[:2000])
	if _, err := Import([]Source{{"simcontrol", broken}}, Options{}); err == nil || !strings.Contains(err.Error(), "y.cdb cannot be read: not a sound cdb") {
		t.Errorf("a broken database: %v", err)
	}
}

// TestSeveral makes one configuration of several files, in the order in which a
// message meets what they stand for.
func TestSeveral(t *testing.T) {
	dir := t.TempDir()
	control := filepath.Join(dir, "control")
	if err := os.Mkdir(control, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"taps": "T:a:b@c", "ssattach": ".exe", "simcontrol": ":clam=yes,attach=.js", "rcptchecks": "bin/check", "signatures": "TVqQ", "smtpplugins": "[rcpt]\nbin/p", "qfilters": "/bin/q",
	} {
		write(t, control, name, content)
	}
	var sources []Source
	for _, f := range formats {
		sources = append(sources, Source{Kind: f.Name})
	}
	made := importedFrom(t, append(sources, Source{"taps", filepath.Join(control, "taps")}), Options{Control: control, Clamd: []string{"tcp:192.0.2.1:3310"}})
	names, _ := chainOf(t, made.TOML)
	if got, want := strings.Join(names, " "), "spp rcptcheck signatures attachments clamav ssattach qfilter tap tap-2"; got != want {
		t.Errorf("the chain is %s, want %s", got, want)
	}
	for _, want := range []string{fmt.Sprintf("program = %q", dir+"/bin/check"), fmt.Sprintf("%q, # smtpplugins:2", dir+"/bin/p"), `address = ["tcp:192.0.2.1:3310"]`, "does not read this file"} {
		if !strings.Contains(string(made.TOML), want) {
			t.Errorf("it lacks %q:\n%s", want, made.TOML)
		}
	}
	for _, c := range []struct {
		sources []Source
		want    string
	}{
		{nil, "nothing to import"},
		{[]Source{{Kind: "tap"}}, "tap cannot be imported: write simcontrol, ssattach"},
		{[]Source{{Kind: "taps", Path: dir + "/none"}}, "/none cannot be read: no such file"},
		{make([]Source, 101), "at most 100"},
	} {
		if _, err := Import(c.sources, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %s", c.sources, err, c.want)
		}
	}
	if _, err := Import([]Source{{Kind: "simcontrol"}}, Options{Control: dir}); err == nil || !strings.Contains(err.Error(), "there is no simcontrol and no simcontrol.cdb in "+dir) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestWordsAreTheShells holds the words of a command line against those that a
// shell makes of it.
func TestWordsAreTheShells(t *testing.T) {
	parts := []string{"a", "b/c", " ", "  ", "\t", "'", "\"", "\\", "--", "-x", "=", ",", "#", "é", "'d e'", "\"f g\"", "\\\"", "{", "}", "!", "%", "\"$@\""}
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom(parts), 0, 12).Draw(t, "parts"), "")
		words, rest, wrong := split(text)
		if wrong != "" || rest != "" {
			return
		}
		out, err := exec.Command("/bin/sh", "-c", `p() { for w; do printf '%s\n' "[$w]"; done; }; p `+text).Output()
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		var want strings.Builder
		for _, w := range words {
			want.WriteString("[" + w + "]\n")
		}
		if want.String() != string(out) {
			t.Fatalf("%q: the words %q, and a shell's\n%s", text, words, out)
		}
	})
}
