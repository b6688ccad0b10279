package rules_test

import (
	"bufio"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/postern-mta/postern/rules"
)

func TestTap(t *testing.T) {
	for _, tc := range []struct {
		line, addr string
		from, to   bool
	}{
		{`F:.*@domain.com:joe@example.com`, "a@domain.com", true, false},
		{`T:.*@domain.com:joe@example.com`, "a@domain.com", false, true},
		{`A:user@domain.com:x@y`, "user@domain.com", true, true},
		{`FROM:user@domain.com:x@y`, "user@domain.com", true, false},
		{`A:user@domain.com:x@y`, "xuser@domainXcom.evil", true, true},
		{`A:^user@domain\.com$:x@y`, "xuser@domain.com", false, false},
		{`A:USER@:x@y`, "user@domain.com", true, true},
		{`F:!@example\.org$:x@y`, "a@example.org", false, false},
		{`F:!@example\.org$:x@y`, "a@example.net", true, false},
		{`F:^$:x@y`, "", true, false},
		{`F:^$:x@y`, "a@b", false, false},
		{`F:!^$:x@y`, "", false, false},
		{`A::x@y`, "", true, true},
		{`.*@domain.com:joe@example.com`, "a@domain.com", true, true},
		{`!@domain.com:joe@example.com`, "a@other.com", true, true},
		{`sales:archive`, "Sales@x", true, true},
		{`A:^.@x$:x@y`, "\xff@x", true, true},
		{`A:^.@x$:x@y`, "é@x", false, false},
		{`A:^é@x$:x@y`, "é@x", true, true},
		{`A:^\é@x$:x@y`, "é@x", true, true},
		{"A:^[\x80-\xff]+@x$:x@y", "é\xff@x", true, true},
		{`A:^k@x$:x@y`, "\u212A@x", false, false},
		{`A:^foo:x@y`, "x\nfoo", false, false},
		{`A:a.b:x@y`, "a\nb", true, true},
		{`A:[^@]b:x@y`, "\nb", true, true},
	} {
		tap, err := rules.ParseTap(tc.line)
		if err != nil {
			t.Errorf("%q: %v", tc.line, err)
			continue
		}
		if tap.MatchFrom(tc.addr) != tc.from || tap.MatchTo(tc.addr) != tc.to {
			t.Errorf("%q of %q: from %t, to %t", tc.line, tc.addr, tap.MatchFrom(tc.addr), tap.MatchTo(tc.addr))
		}
	}
	tap, err := rules.ParseTap(`T:!^x:copy@example.org:2`)
	if err != nil || !tap.To || tap.From || !tap.Negate || tap.Regex != "^x" || tap.Copy != "copy@example.org:2" || tap.Line != 0 {
		t.Errorf("%+v, %v", tap, err)
	}
	var zero rules.Tap
	if zero.MatchFrom("") || zero.MatchTo("") {
		t.Error("the zero Tap matches")
	}
}

func TestNewTap(t *testing.T) {
	tap, err := rules.NewTap(rules.TapAny, `^\[IPv6:2001:db8::1\]$`, "a@b")
	if err != nil || !tap.MatchTo("[IPv6:2001:db8::1]") || !tap.MatchFrom("[ipv6:2001:DB8::1]") {
		t.Errorf("%+v, %v", tap, err)
	}
	if _, err := rules.NewTap('x', "a", "a@b"); err == nil {
		t.Error("kind x is accepted")
	}
}

func TestTapErrors(t *testing.T) {
	for _, tc := range []struct{ line, want string }{
		{"nothing", "no colon in the line"},
		{"", "no colon"},
		{"F:x@y", "a tap of type F has two more fields"},
		{"A:x@y", "two more fields"},
		{"x:y:z", `unknown type of tap "x"`},
		{":y:z", `unknown type of tap ""`},
		{"f:y:z@z", `unknown type`},
		{"A:y:", "the address for the copy is missing"},
		{"y:", "address for the copy is missing"},
		{"A:y:a b@c", "blank or control character"},
		{"A:y:a\x1b@c", "blank or control character"},
		{"A:y: a@c", "blank"},
		{"A:y:" + strings.Repeat("a", 1003), "at most 1002"},
		{"A:" + strings.Repeat("a", 2100) + ":a@b", "at most 2048"},
		{"A:" + strings.Repeat("a", 5000) + ":a@b", "the line is 5006 bytes long"},
		{`A:(a)\1:a@b`, `back-reference \1`},
		{`A:\<a:a@b`, `\< is not supported`},
		{`A:\bx:a@b`, `\b is not supported`},
		{`A:a\:a@b`, "a backslash at the end"},
		{`A:[[.a.]]:a@b`, "[.] in brackets is not supported"},
		{`A:[a:a@b`, "[ without ]"},
		{`A:(a:a@b`, "missing closing )"},
		{`A:a):a@b`, "unexpected )"},
		{`A:*a:a@b`, "missing argument to repetition"},
		{`A:a{:a@b`, "write \\{ for a brace"},
		{`A:a{x}:a@b`, "brace"},
		{`A:a{2,1}:a@b`, "invalid repeat count"},
		{`A:a{2000}:a@b`, "invalid repeat count"},
		{`A:^*:a@b`, "repetition of ^"},
		{`A:(a{1000}|b{1000}){9}:a@b`, ""},
		{"A:" + strings.Repeat("a{900}", 12) + ":a@b", "too large"},
		{"A:(\xff\x1b:a@b", "missing closing )"},
	} {
		_, err := rules.ParseTap(tc.line)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.60q: %v; want %q", tc.line, err, tc.want)
		}
		checkLine(t, err)
	}
	if _, err := rules.NewTap(rules.TapAny, "[[:alpha]", "a@b"); err == nil || !strings.Contains(err.Error(), "[: without :]") {
		t.Errorf("open class: %v", err)
	}
}

func TestParseTaps(t *testing.T) {
	const file = "# taps\n\nF:a@b:x@y  \t\nA:c@d:x@z\r\n"
	lines, err := rules.ControlLines(strings.NewReader(file), 1000)
	if err != nil {
		t.Fatal(err)
	}
	taps, err := rules.ParseTaps(lines)
	if err != nil || len(taps) != 2 || taps[0].Line != 3 || taps[1].Line != 4 || taps[0].Copy != "x@y" || taps[1].Copy != "x@z" {
		t.Errorf("%+v, %v", taps, err)
	}
	if _, err := rules.ParseTaps(append(lines, rules.Line{No: 9, Text: `A:(a)\1:x@y`})); err == nil || !strings.HasPrefix(err.Error(), "line 9: ") {
		t.Errorf("bad line: %v", err)
	}
	if _, err := rules.ParseTaps(make([]rules.Line, rules.MaxTaps+1)); err == nil || !strings.Contains(err.Error(), "more than 4096 taps") {
		t.Errorf("too many: %v", err)
	}
}

// TestPOSIX compares with what regcomp(REG_EXTENDED|REG_ICASE) and regexec of glibc 2.36 answer, as recorded in a table:
// E for an expression that regcomp refuses, 1 for a match, 0 for none.
func TestPOSIX(t *testing.T) {
	f, err := os.Open("testdata/posix.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows := 0
	for s := bufio.NewScanner(f); s.Scan(); rows++ {
		fields := strings.Split(s.Text(), "\t")
		regex, err1 := strconv.Unquote(fields[1])
		text, err2 := strconv.Unquote(fields[2])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatalf("row %d: %v", rows+1, err)
		}
		got := "0"
		// A leading ! would negate: the group keeps it a character.
		if regex != "" && regex[0] == '!' {
			regex = "(!)" + regex[1:]
		}
		if tap, err := rules.NewTap(rules.TapAny, regex, "a@b"); err != nil {
			got = "E"
		} else if tap.MatchTo(text) {
			got = "1"
		}
		if got != fields[0] {
			t.Errorf("row %d: %s, regcomp says %s: %q on %q", rows+1, got, fields[0], regex, text)
		}
	}
	if rows < 300 {
		t.Errorf("only %d rows", rows)
	}
}

func TestControlLines(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []rules.Line
	}{
		{"", nil},
		{"\n\n#x\n", nil},
		{"a", []rules.Line{{1, "a"}}},
		{"a \t \n\n  b\n#c\n #d\nlast\r\n", []rules.Line{{1, "a"}, {3, "  b"}, {5, " #d"}, {6, "last"}}},
		{"a b\tc\n \t\n", []rules.Line{{1, "a b\tc"}}},
		{"\xff\xfe\n", []rules.Line{{1, "\xff\xfe"}}},
	} {
		got, err := rules.ControlLines(strings.NewReader(tc.in), 100)
		if err != nil || len(got) != len(tc.want) {
			t.Errorf("%q: %v, %v", tc.in, got, err)
			continue
		}
		for i := range got {
			if got[i] != tc.want[i] {
				t.Errorf("%q: %v, want %v", tc.in, got[i], tc.want[i])
			}
		}
	}
	if _, err := rules.ControlLines(strings.NewReader("a\nb\x00c\n"), 100); err == nil || err.Error() != "line 2: NUL byte in the line" {
		t.Errorf("NUL: %v", err)
	}
	if _, err := rules.ControlLines(strings.NewReader("12345678901"), 10); err == nil || !strings.Contains(err.Error(), "longer than 10 bytes") {
		t.Errorf("too long: %v", err)
	}
	if l, err := rules.ControlLines(strings.NewReader("1234567890"), 10); err != nil || len(l) != 1 {
		t.Errorf("just fits: %v, %v", l, err)
	}
	if _, err := rules.ControlLines(iotest.ErrReader(errors.New("disk")), 10); err == nil || err.Error() != "disk" {
		t.Errorf("read error: %v", err)
	}
}

func TestDomainList(t *testing.T) {
	l := rules.NewDomainList([]string{"Example.ORG", ".Example.net", "mx.sub.example.net", "example.org", "", ".dup", ".DUP", "\xff.x"})
	if l.Len() != 5 {
		t.Errorf("Len() = %d", l.Len())
	}
	for _, tc := range []struct{ domain, want string }{
		{"example.org", "Example.ORG"},
		{"EXAMPLE.org", "Example.ORG"},
		{"a.example.org", ""},
		{"badexample.org", ""},
		{"example.net", ""},
		{"a.example.net", ".Example.net"},
		{"a.b.Example.Net", ".Example.net"},
		{".example.net", ".Example.net"},
		{"mx.sub.example.net", "mx.sub.example.net"},
		{"x.mx.sub.example.net", ".Example.net"},
		{"badexample.net", ""},
		{"example.org.", ""},
		{"", ""},
		{".", ""},
		{"...", ""},
		{"a.dup", ".dup"},
		{"\xff.x", "\xff.x"},
		{"\xfe.x", ""},
		{"a..example.net", ".Example.net"},
	} {
		entry, ok := l.Match(tc.domain)
		if entry != tc.want || ok != (tc.want != "") {
			t.Errorf("Match(%q) = %q, %t; want %q", tc.domain, entry, ok, tc.want)
		}
	}
	var none *rules.DomainList
	if _, ok := none.Match("a"); ok || none.Len() != 0 {
		t.Error("a nil list matches")
	}
	if _, ok := rules.NewDomainList(nil).Match(""); ok {
		t.Error("an empty list matches")
	}
}
