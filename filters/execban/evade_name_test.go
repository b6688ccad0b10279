package execban

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// naming is a way to write a name into a part's header.
type naming struct {
	name string
	make func(r *rand.Rand, name string) string
}

// disposition writes a name's parameter as it is given.
func disposition(parameter string) string {
	return "Content-Type: application/octet-stream\nContent-Disposition: attachment; " + parameter + "\n"
}

// renamed is a name that is changed before it is written as usual.
func renamed(forms ...func(string) string) func(*rand.Rand, string) string {
	return func(r *rand.Rand, name string) string {
		return disposition(`filename="` + forms[r.IntN(len(forms))](name) + `"`)
	}
}

// written is a name whose parameter is written in one of several ways.
func written(forms ...func(name string) string) func(*rand.Rand, string) string {
	return func(r *rand.Rand, name string) string { return disposition(forms[r.IntN(len(forms))](name)) }
}

func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

// extensionOf is a name's extension, with its dot.
func extensionOf(name string) string { return name[strings.LastIndexByte(name, '.'):] }

func wideLetters(s string) string {
	return strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f {
			return r + 0xfee0
		}
		return r
	}, s)
}

func halves(s string) (string, string) { return s[:len(s)-2], s[len(s)-2:] }

// namings are the ways to write a name; the first is the plain one.
func namings() []naming {
	harmless := "Content-Type: application/pdf; name=\"harmless.pdf\"\n"
	return []naming{
		{"both fields", func(_ *rand.Rand, n string) string {
			return "Content-Type: application/octet-stream; name=\"" + n + "\"\nContent-Disposition: attachment; filename=\"" + n + "\"\n"
		}},
		{"type only", func(_ *rand.Rand, n string) string { return "Content-Type: image/png; name=" + n + "\n" }},
		{"disposition only", func(_ *rand.Rand, n string) string { return "Content-Disposition: inline; filename=" + n + "\n" }},
		{"fields that differ", func(r *rand.Rand, n string) string {
			if r.IntN(2) == 0 {
				return harmless + "Content-Disposition: attachment; filename=\"" + n + "\"\n"
			}
			return "Content-Type: application/pdf; name=\"" + n + "\"\nContent-Disposition: attachment; filename=harmless.pdf\n"
		}},
		{"fields twice", func(r *rand.Rand, n string) string {
			two := []string{"harmless.pdf", n}
			i := r.IntN(2)
			return "Content-Disposition: attachment; filename=" + two[i] + "\nContent-Disposition: attachment; filename=" + two[1-i] + "\n"
		}},
		{"parameters twice", func(r *rand.Rand, n string) string {
			two := []string{"harmless.pdf", n}
			i := r.IntN(2)
			return disposition("filename=\"" + two[i] + "\"; filename=\"" + two[1-i] + "\"")
		}},
		{"RFC 2231", written(
			func(n string) string { return "filename*=utf-8''" + percent(n) },
			func(n string) string { return "filename*=UTF-8'en'" + n },
			func(n string) string { return "filename*=" + percent(n) },
			func(n string) string { return "filename*=''" + n },
			func(n string) string { return "filename*=\"utf-8''" + percent(n) + "\"" },
		)},
		{"RFC 2231 in pieces", written(
			func(n string) string { a, b := halves(n); return "filename*0=\"" + a + "\"; filename*1=\"" + b + "\"" },
			func(n string) string { a, b := halves(n); return "filename*1=\"" + b + "\"; filename*0=\"" + a + "\"" },
			func(n string) string {
				a, b := halves(n)
				return "filename*0*=us-ascii''" + percent(a) + "; filename*1*=" + percent(b)
			},
			func(n string) string { a, b := halves(n); return "filename*1=" + a + "; filename*2=" + b },
			func(n string) string { a, b := halves(n); return "filename*00=" + a + "; filename*01=" + b },
			func(n string) string {
				a, b := halves(n)
				return "filename*0=" + a + ";\n filename*1=" + b + ";\n filename*3=.txt"
			},
		)},
		{"RFC 2231 beside a plain one", written(
			func(n string) string { return "filename=harmless.pdf; filename*=utf-8''" + percent(n) },
			func(n string) string { return "filename*=utf-8''harmless.pdf; filename=" + n },
			func(n string) string {
				a, b := halves(n)
				return "filename=harmless.pdf; filename*0=" + a + "; filename*1=" + b
			},
		)},
		{"encoded words", written(
			func(n string) string { return "filename=\"=?utf-8?B?" + strings.TrimSpace(lines([]byte(n))) + "?=\"" },
			func(n string) string {
				return "filename=\"=?iso-8859-1?Q?" + strings.ReplaceAll(percent(n), "%", "=") + "?=\""
			},
			func(n string) string { return "filename==?utf-8?q?" + n + "?=" },
			func(n string) string {
				a, b := halves(n)
				return "filename=\"=?utf-8?q?" + a + "?=\n =?utf-8?q?" + b + "?=\""
			},
			func(n string) string { return "filename*=utf-8''" + percent("=?utf-8?q?"+n+"?=") },
			func(n string) string {
				return "filename=\"=?utf-16be?B?" + strings.TrimSpace(lines([]byte("\x00"+strings.Join(strings.Split(n, ""), "\x00")))) + "?=\""
			},
		)},
		{"odd quoting", written(
			func(n string) string { return "filename=" + n },
			func(n string) string { return "filename = \"" + n + "\"" },
			func(n string) string { return "filename='" + n + "'" },
			func(n string) string { return "filename=\"" + n },
			func(n string) string { return "filename=\"" + strings.Join(strings.Split(n, ""), "\\") + "\"" },
			func(n string) string { return "filename=" + n + " ; x=y" },
			func(n string) string { return "FILENAME=\"" + n + "\"" },
			func(n string) string { return "(filename=a.pdf) filename (b.pdf) = (c.pdf) \"" + n + "\"" },
			func(n string) string { return "x=\"; filename=a.pdf\"; filename=\"" + n + "\"" },
		)},
		{"folded", written(
			func(n string) string { return "\n\tfilename=\"" + n + "\"" },
			func(n string) string { a, b := halves(n); return "filename=\"" + a + "\n " + b + "\"; filename*=" + n },
		)},
		{"right to left", renamed(func(n string) string {
			e := []rune(extensionOf(n)[1:])
			return "report\u202e" + "fdp." + string(e)
		}, func(n string) string { return "\u202e" + n }, func(n string) string { return n[:2] + "\u200f" + n[2:] + "\u202c" })},
		{"dots and blanks at the end", renamed(func(n string) string { return n + "." }, func(n string) string { return n + " " }, func(n string) string { return n + ". . ." }, func(n string) string { return n + "\u00a0" })},
		{"NUL and controls", renamed(func(n string) string { return n + "\x00.pdf" }, func(n string) string { return strings.Replace(n, ".", ".\x00", 1) }, func(n string) string { return n[:len(n)-1] + "\x01" + n[len(n)-1:] }, func(n string) string { return n + "\x7f" })},
		{"no width", renamed(func(n string) string { return n[:len(n)-1] + "\u200b" + n[len(n)-1:] }, func(n string) string { return n + "\ufeff" }, func(n string) string { return n[:len(n)-2] + "\u00ad" + n[len(n)-2:] })},
		{"full width", renamed(wideLetters, func(n string) string { return n[:len(n)-len(extensionOf(n))] + "." + wideLetters(extensionOf(n)[1:]) })},
		{"upper case", renamed(strings.ToUpper, func(n string) string { return strings.ToUpper(n[:len(n)-1]) + n[len(n)-1:] })},
		{"alternate stream", renamed(func(n string) string { return n + ":x.pdf" }, func(n string) string { return n + "::$DATA" })},
		{"a path", renamed(func(n string) string { return `C:\\temp\\` + n }, func(n string) string { return "../../" + n }, func(n string) string { return "harmless.pdf/" + n })},
		{"two extensions", renamed(func(n string) string { return "invoice.pdf" + extensionOf(n) }, func(n string) string { return "photo.jpg" + strings.Repeat(" ", 60) + extensionOf(n) })},
		{"percent escapes", renamed(func(n string) string { return strings.ReplaceAll(n, ".", "%2e") }, percent)},
		{"long", renamed(func(n string) string { return strings.Repeat("x", 300) + n }, func(n string) string { return strings.Repeat("a.pdf ", 60) + n })},
		{"8-bit bytes", renamed(func(n string) string { return "r\xe9sum\xe9" + extensionOf(n) }, func(n string) string { return "\xff\xfe\x80" + extensionOf(n) })},
		{"a field's name with blanks", func(_ *rand.Rand, n string) string {
			return "Content-Disposition : attachment; filename=\"" + n + "\"\n"
		}},
	}
}
