package mime

import (
	"slices"
	"strings"
	"testing"
)

// TestNormalNames has names that hide what they are, with the extension that must
// be seen and the disguise that must be named.
func TestNormalNames(t *testing.T) {
	for _, x := range []struct {
		raw, ext string
		disguise Disguise
	}{
		{"a.exe", "exe", 0},
		{"a.EXE", "exe", 0},
		{"invoice.pdf.exe", "exe", 0},
		{"invoice.pdf\u202eexe.", "pdfexe", BidiControl},
		{"invoice\u202efdp.exe", "exe", BidiControl},
		{"a\u2066.exe\u2069", "exe", BidiControl},
		{"a.e\u200bxe", "exe", ZeroWidth},
		{"a.exe\ufeff", "exe", ZeroWidth},
		{"a.e\u00adxe", "exe", ZeroWidth},
		{"a.exe ", "exe", 0},
		{"a.exe.", "exe", TrailingDots},
		{"a.exe. . .", "exe", TrailingDots},
		{"a.exe\u00a0", "exe", 0},
		{"a.exe\u3000.", "exe", TrailingDots},
		{"a.e\x00xe", "exe", HiddenBytes},
		{"a.exe\x00.txt", "exe", HiddenBytes},
		{"a.\x01exe", "exe", HiddenBytes},
		{"a.exe\r\n", "exe", 0},
		{"a.\uff45\uff58\uff45", "exe", Compatibility},
		{"a\uff0eexe", "exe", Compatibility},
		{"a\u2024exe", "exe", Compatibility},
		{"a.\u1d49\u02e3\u1d49", "exe", Compatibility},
		{"a.txt:b.exe", "exe", Stream},
		{"a.exe::$DATA", "exe", Stream},
		{"a.exe:b.txt", "exe", Stream},
		{`C:\temp\a.exe`, "exe", 0},
		{"../../etc/a.exe", "exe", 0},
		{"a.exe/", "exe", 0},
		{`a.exe\ `, "exe", 0},
		{"a.exe%00.txt", "exe", HiddenBytes},
		{"a%2eexe", "exe", Percent},
		{"a%252eexe", "exe", Percent},
		{"a.exe%20", "exe", Percent},
		{"=?utf-8?B?YS5leGU=?=", "exe", 0},
		{"\"=?utf-8?B?YS5leGU=?=\"", "exe", 0},
		{"=?UTF-8?Q?a=2E?= =?UTF-8?Q?exe?=", "exe", 0},
		{"a.=?us-ascii?q?exe?=", "exe", 0},
		{"=?iso-8859-1*en?q?a.exe?=", "exe", 0},
		{"=?utf-8?B?YS5leGU", "exe", 0},
		{"=?x-unknown?q?a.exe?=", "exe", 0},
		{"=?utf-8?q?=3D=3Futf-8=3Fq=3Fa.exe=3F=3D?=", "exe", Encoded},
		{"=?utf-16le?B?YQAuAGUAeABlAA==?=", "exe", 0},
		{"=?shift_jis?B?g2WDWINnLmV4ZQ==?=", "exe", 0},
		{"utf-8''a%2Eexe", "exe", Percent},
		{"a+AC4-exe", "exe", Encoded},
		{"a.e|xe", "exe", BadBytes},
		{"a.exe\"", "exe", 0},
		{"a.pdf                              .exe", "exe", Padded},
		{strings.Repeat("a", 251) + ".exe.txt", "exe", Long},
		{strings.Repeat("a", 20_000) + ".exe", "exe", Long},
		{"\xe4.exe", "exe", 0},
		{"caf\u00e9.exe", "exe", 0},
		{".exe", "exe", 0},
		{"a.\uff25\uff38\uff25", "exe", Compatibility},
	} {
		list := NormalNames(x.raw)
		i := slices.IndexFunc(list, func(n NormalName) bool { return n.Extension() == x.ext && n.Disguise&x.disguise == x.disguise })
		if i < 0 {
			t.Errorf("%.60q: %v, not .%s with %s", x.raw, list, x.ext, x.disguise)
		}
		checkNormal(t, Name{Text: x.raw, Raw: x.raw})
	}
}

// TestOrdinaryNames: the first form of an ordinary name is the name, and no form
// has another extension or a disguise.
func TestOrdinaryNames(t *testing.T) {
	for raw, want := range map[string]string{
		"report.pdf":               "report.pdf",
		"Report (1).PDF":           "report (1).pdf",
		"r\u00e9sum\u00e9.docx":    "r\u00e9sum\u00e9.docx",
		"re\u0301sume\u0301.doc":   "r\u00e9sum\u00e9.doc",
		"\u65e5\u672c\u8a9e.txt":   "\u65e5\u672c\u8a9e.txt",
		"archive.tar.gz":           "archive.tar.gz",
		"README":                   "readme",
		"a+b.txt":                  "a+b.txt",
		"100% sure.txt":            "100% sure.txt",
		"=?utf-8?q?f=C3=BCr.odt?=": "f\u00fcr.odt",
	} {
		n := Name{Text: decodeWords(raw), Raw: raw}
		list := n.Normal()
		if len(list) == 0 || list[0].Text != want || list[0].Disguise != 0 {
			t.Errorf("%q: %v, not %q first", raw, list, want)
		}
		for _, x := range list {
			if x.Extension() != (NormalName{Text: want}).Extension() && x.Extension() != "" && strings.IndexByte(raw, '?') < 0 {
				t.Errorf("%q: also %q", raw, x.Text)
			}
		}
	}
	if got := (NormalName{Text: "a.tar.gz"}).Extensions(); !slices.Equal(got, []string{"gz", "tar"}) {
		t.Errorf("%q", got)
	}
	if got := (NormalName{Text: "plain"}).Extension(); got != "" {
		t.Errorf("%q", got)
	}
}

// TestWords holds the words of the tables: each is there, once, and reads back.
func TestWords(t *testing.T) {
	seen := map[string]bool{}
	check := func(word string) {
		if word == "" || word == "unknown" || seen[word] {
			t.Errorf("%q is no word", word)
		}
		seen[word] = true
	}
	for _, r := range AllReasons() {
		check(r.String())
		if r.About() == "" {
			t.Errorf("%s says nothing", r)
		}
		if got := because(r).Reasons(); len(got) != 1 || got[0] != r || !because(r).Has(r) {
			t.Errorf("%s: %v", r, got)
		}
	}
	for l := range limits {
		if l.String() == "" || l.About() == "" {
			t.Errorf("limit %d says nothing", l)
		}
	}
	for h := range hows {
		check(h.String())
		if (Content{How: h, src: &source{}}).decoder() == nil && h != Identity {
			t.Errorf("%s decodes nothing", h)
		}
	}
	for _, s := range []Severity{Notice, Odd, Contradiction} {
		if got, ok := ParseSeverity(s.String()); !ok || got != s {
			t.Errorf("%s reads back as %s", s, got)
		}
	}
	if _, ok := ParseSeverity("grave"); ok {
		t.Error("grave is no severity")
	}
	if got := (BidiControl | Long).String(); got != "bidi-control+long" {
		t.Error(got)
	}
}
