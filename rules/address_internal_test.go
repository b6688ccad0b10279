package rules

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestInDomain(t *testing.T) {
	for _, tc := range []struct {
		s, domain string
		want      bool
	}{
		{"example.org", "example.org", true},
		{"a@EXAMPLE.org", "example.ORG", true},
		{"a@b@mx.example.org", "example.org", true},
		{"a@example.org.", "example.org", true},
		{"a@example.org", "example.org.", true},
		{"a@badexample.org", "example.org", false},
		{"a@example.org.evil", "example.org", false},
		{"example.org@evil", "example.org", false},
		{"", "example.org", false},
		{"a@", "", false},
		{"a@\u212Aey.org", "key.org", false},
		{"a@\xff", "\xfe", false},
		{"a@\xff", "\xff", true},
	} {
		if got := inDomain(tc.s, tc.domain); got != tc.want {
			t.Errorf("inDomain(%q, %q) = %t", tc.s, tc.domain, got)
		}
	}
}

func TestParts(t *testing.T) {
	for _, tc := range []struct{ addr, domain, local string }{
		{"a@b", "b", "a"}, {`"x@y"@Example.ORG.`, "example.org", `"x@y"`}, {"nobody", "", "nobody"}, {"", "", ""}, {"a@", "", "a"}, {"A@É\xff", "É\xff", "A"},
	} {
		if d, l := domainOf(tc.addr), localOf(tc.addr); d != tc.domain || l != tc.local {
			t.Errorf("%q: %q %q", tc.addr, d, l)
		}
	}
}

func TestCase(t *testing.T) {
	if s := changeCase("ÄB\xff", strings.ToLower, lowerASCII); s != "Äb\xff" {
		t.Errorf("malformed: %q", s)
	}
	if s := changeCase("äb\xff", strings.ToUpper, upperASCII); s != "äB\xff" {
		t.Errorf("malformed: %q", s)
	}
	if s := changeCase("ÄB", strings.ToLower, lowerASCII); s != "äb" {
		t.Errorf("well-formed: %q", s)
	}
}

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"*.example.org", "mx.Example.Org", true},
		{"*.example.org", "example.org", false},
		{"a*b*c", "axxbxxbc", true},
		{"a*b*c", "axxbxxb", false},
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"?", "é", true},
		{"??", "é", false},
		{"?", "\xff", true},
		{"?", "", false},
		{"a?", "a", false},
		{"**a**", "bab", true},
		{"*é", "xé", true},
		{"*\xff", "x\xfe", false},
		{strings.Repeat("*a", 50) + "b", strings.Repeat("a", 20000), false},
	} {
		if got := globMatch(tc.pattern, tc.s); got != tc.want {
			t.Errorf("globMatch(%q, %.20q) = %t", tc.pattern, tc.s, got)
		}
	}
}

func TestNetworks(t *testing.T) {
	v, err := newNetworks([]string{"10.0.0.0/8", "2001:db8::/32", "192.0.2.1", "::ffff:172.16.0.0/108"})
	if err != nil {
		t.Fatal(err)
	}
	n := v.(*networks)
	for ip, want := range map[string]bool{
		"10.1.2.3": true, "::ffff:10.1.2.3": true, "11.0.0.1": false, "2001:db8::1": true, "2001:DB8::1%eth0": true, "2001:db9::1": false,
		"192.0.2.1": true, "192.0.2.2": false, "172.16.5.5": true, "172.32.0.1": false, "": false, "10.0.0.0/8": false, "010.1.2.3": false, "10.1.2.3\x00": false,
	} {
		if got := n.contains(ip); got != want {
			t.Errorf("%q: %t", ip, got)
		}
	}
}

func TestClean(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"a\nb\tc", "a b c"}, {"a\x1b[0m\x00\x7f\u0085\u202e", "a?[0m????"}, {"\xff\xfeé\uFFFD", "??é\uFFFD"}, {"abcdefghijk", "abcdefghij…"}, {"aaaaaaaaaé", "aaaaaaaaa…"},
	} {
		if got := clean(tc.in, 10); got != tc.want {
			t.Errorf("clean(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
	for _, s := range []string{strings.Repeat("é", 500), strings.Repeat("\xff", 500), "\x1b" + strings.Repeat("a", 158) + "é"} {
		if got := quote(s); !utf8.ValidString(got) || len(got) > 4*maxShown+40 || strings.Contains(got, "\x1b") {
			t.Errorf("quote(%.10q) = %q", s, got)
		}
	}
}

// TestWiden proves that the carrier of 8-bit bytes is what RE2 leaves alone.
func TestWiden(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	if got := narrow(widen(string(all))); got != string(all) {
		t.Errorf("narrow(widen(x)) = %q", got)
	}
	if n := utf8.RuneCountInString(widen(string(all))); n != 256 {
		t.Errorf("%d characters", n)
	}
}
