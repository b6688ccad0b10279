package mime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func exceeded(m *Message) string {
	var all []string
	for _, x := range m.Exceeded {
		all = append(all, x.Limit.String())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func size(m *Message) (parts, contents int) {
	for p := range m.Walk() {
		parts++
		contents += len(p.Contents)
	}
	return parts, contents
}

// TestHugeHeaders reads headers that are too long, too many, without an end or
// without a body.
func TestHugeHeaders(t *testing.T) {
	for _, x := range []struct{ name, text, limit string }{
		{"empty", "", ""},
		{"header only", "From: a@b\n", ""},
		{"header and blank line", "From: a@b\n\n", ""},
		{"no separator", "From: a@b\nhello there\n", ""},
		{"a line of 10 MB", "From: " + strings.Repeat("a", 10<<20) + "\n\nbody", "header"},
		{"a million fields", strings.Repeat("X: y\n", 1<<20) + "\nbody", "header"},
		{"a Content-Type of 100 kB", "Content-Type: text/plain; x=" + strings.Repeat("a", 100<<10) + "\n\nbody", "field"},
		{"a thousand Content-Types", strings.Repeat("Content-Type: text/plain\n", 1000) + "\nbody", "fields"},
		{"a thousand parameters", "Content-Type: text/plain" + strings.Repeat("; x=y", 1000) + "\n\nbody", "fields"},
		{"a text without a header", strings.Repeat("nothing but text\n", 1<<20), ""},
		{"a line without an end", strings.Repeat("a", 10<<20), ""},
		{"LFs only", strings.Repeat("\n", 1<<20), ""},
		{"CRs only", strings.Repeat("\r", 1<<20), ""},
		{"NULs only", strings.Repeat("\x00", 1<<20), ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := read(t, x.text)
			if got := exceeded(m); got != x.limit {
				t.Errorf("limits: %q, not %q", got, x.limit)
			}
			if _, contents := size(m); contents == 0 {
				t.Error("no contents")
			}
		})
	}
}

// TestLinear reads and names what makes careless parsers quadratic. Time is not
// asserted here but by the package's own count of work; the deadline only keeps a
// failure from lasting.
func TestLinear(t *testing.T) {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	const n = 60 << 10
	for name, value := range map[string]string{
		"domain literal":     "a@[" + strings.Repeat("a", 262144) + "]",
		"nested comments":    strings.Repeat("(", 100_000),
		"open encoded words": strings.Repeat("=?x?", 1<<20),
		"encoded words":      strings.Repeat("=?x?q?", n/6),
		"charset quotes":     strings.Repeat("'", n),
		"equals":             strings.Repeat("=", n),
		"names":              strings.Repeat("name=", n/5),
		"quotes":             strings.Repeat("\"", n),
		"backslashes":        strings.Repeat("\\", n),
		"stars":              strings.Repeat("name*", n/5),
		"percents":           strings.Repeat("%2", n/2),
		"folds":              strings.Repeat("\n ", n/2),
		"combining marks":    strings.Repeat("e\u0301\u0323", n/5),
		"dots":               strings.Repeat(". ", n/2),
		"colons":             strings.Repeat("a:", n/2),
		"slashes":            strings.Repeat("a/", n/2),
		"plus":               strings.Repeat("+A", n/2),
	} {
		t.Run(name, func(t *testing.T) {
			for _, field := range []string{
				"From: %s\n\n", "Content-Type: %s\n\n", "Content-Type: text/plain; name=\"%s\"\n\n", "Content-Type: text/plain; name=%s\n\n",
				"Content-Disposition: attachment; filename*=%s\n\n", "Content-Transfer-Encoding: %s\n\n", "Content-Description: %s\n\n", "%s",
			} {
				text := fmt.Sprintf(field, value)
				m, err := Read(ctx, strings.NewReader(text), int64(len(text)), Options{})
				if err != nil {
					t.Fatal(err)
				}
				checkTree(t, text, m)
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestBounds goes beyond each limit: the rest is cut off, and said to be.
func TestBounds(t *testing.T) {
	nested := func(depth int) string {
		var b strings.Builder
		for i := range depth {
			fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%04d\n\n--b%04d\n", i, i)
		}
		return b.String() + "\n" + exe
	}
	var boundaries strings.Builder
	for i := range 50 {
		fmt.Fprintf(&boundaries, "; boundary=b%d", i)
	}
	for _, x := range []struct{ name, text, limit string }{
		{"1,000 deep", nested(1000), "depth"},
		{"30 deep", nested(30), ""},
		{"100,000 empty parts", "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n", 100_000), "parts"},
		{"200,000 empty parts", "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n", 200_000), "delimiters parts"},
		{"a boundary of 70 kB", "Content-Type: multipart/mixed; boundary=" + strings.Repeat("b", 70<<10) + "\n\n--b\n\nx\n", "boundary field"},
		{"a boundary of 300 bytes", "Content-Type: multipart/mixed; boundary=" + strings.Repeat("b", 300) + "\n\n--b\n\nx\n", "boundary"},
		{"50 boundaries", "Content-Type: multipart/mixed" + boundaries.String() + "\n\n--b1\n\nx\n", "boundaries"},
		{"200 names", "Content-Type: x/y\n" + strings.Repeat("Content-Disposition: a; filename=a; filename*0=b; filename*=c; name=d\n", 1) + manyNames(200) + "\n", "names"},
		{"200 files in a text", "\n" + strings.Repeat("begin 644 x\n", 200), "embedded"},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := read(t, x.text)
			if got := exceeded(m); got != x.limit {
				t.Errorf("limits: %q, not %q", got, x.limit)
			}
			if parts, _ := size(m); parts > DefaultParts {
				t.Errorf("%d parts", parts)
			}
		})
	}
	m := read(t, "Content-Type: multipart/mixed; boundary=\"\"\n\n--\n\n"+exe+"\n----\n")
	if worst, ok := m.Worst(); !ok || worst != Contradiction {
		t.Errorf("an empty boundary is %s", worst)
	}
}

func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		if i%40 == 0 {
			b.WriteString("\nContent-Disposition: attachment")
		}
		fmt.Fprintf(&b, "; filename=a%d.txt", i)
	}
	return strings.TrimPrefix(b.String(), "\n") + "\n"
}

// TestDecodedIsBounded decodes containers up to the limit and no further.
func TestDecodedIsBounded(t *testing.T) {
	inner := "Content-Type: text/plain\n\n" + strings.Repeat("x", 1<<20)
	m := readWith(t, mixed("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n"+b64(inner)), Options{Limits: Limits{Decoded: 1000}})
	if got := exceeded(m); got != "decoded" {
		t.Errorf("limits: %q", got)
	}
}

// TestNestedMessages reads messages in messages, encoded and of shapes that seem
// to hold themselves.
func TestNestedMessages(t *testing.T) {
	t.Run("100 deep", func(t *testing.T) {
		m := read(t, strings.Repeat("Content-Type: message/rfc822\n\n", 100)+exe)
		if got := exceeded(m); got != "depth" {
			t.Errorf("limits: %q", got)
		}
	})
	t.Run("20 deep in base64", func(t *testing.T) {
		text := attached("")
		for range 20 {
			text = "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + b64(text)
		}
		m := read(t, text)
		checkTree(t, text, m)
		if _, _, ok := holder(t, m, begins(exe[:150])); !ok {
			t.Error("the program is not found")
		}
	})
	t.Run("100 deep in quoted-printable", func(t *testing.T) {
		m := read(t, strings.Repeat("Content-Type: message/rfc822\nContent-Transfer-Encoding: quoted-printable\n\n", 100)+exe)
		if exceeded(m) == "" {
			t.Error("no limit is reached")
		}
	})
	t.Run("a multipart whose part has its boundary", func(t *testing.T) {
		head := "Content-Type: multipart/mixed; boundary=b\n\n--b\n"
		m := read(t, strings.Repeat(head, 500)+"\n"+exe)
		if _, _, ok := holder(t, m, begins(exe[:150])); !ok && exceeded(m) == "" {
			t.Error("the program is not found")
		}
	})
	t.Run("a message that is a message that is a multipart", func(t *testing.T) {
		text := strings.Repeat("Content-Type: message/rfc822\nContent-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: base64\n\n--b\n", 200) + "\n" + exe
		m := read(t, text)
		checkTree(t, text, m)
		if _, _, ok := holder(t, m, begins(exe[:150])); !ok && exceeded(m) == "" {
			t.Error("the program is not found")
		}
	})
}

// TestContradictingEncodings gives both views where two encodings are stated.
func TestContradictingEncodings(t *testing.T) {
	for _, fields := range []string{
		"Content-Transfer-Encoding: base64\nContent-Transfer-Encoding: 7bit\n",
		"Content-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64\n",
	} {
		m := read(t, fields+"\n"+b64(eicar))
		if _, c, ok := holder(t, m, contains(eicar)); !ok || c.How != Base64 {
			t.Errorf("%q: EICAR is not found in base64", fields)
		}
		if _, c, ok := holder(t, m, contains(b64(eicar))); !ok || c.How != Identity {
			t.Errorf("%q: the text as it stands is not found", fields)
		}
		if worst, _ := m.Worst(); worst != Contradiction {
			t.Errorf("%q: %s", fields, worst)
		}
		if p := m.Root; !p.Contents[0].Reading.Strict() || len(p.Encodings) != 2 {
			t.Errorf("%q: %v, encodings %q", fields, p.Contents[0].Reading, p.Encodings)
		}
	}
}

// TestBase64Union finds EICAR in base64 that no two decoders read alike.
func TestBase64Union(t *testing.T) {
	enc := strings.ReplaceAll(b64(eicar), "\n", "")
	every := func(n int, with string) string {
		var b strings.Builder
		for i := range len(enc) {
			if i > 0 && i%n == 0 {
				b.WriteString(with)
			}
			b.WriteByte(enc[i])
		}
		return b.String()
	}
	for name, text := range map[string]string{
		"a pad every 4":         every(4, "="),
		"a pad every 3":         every(3, "="),
		"a pad and a line":      every(4, "=\n"),
		"junk":                  every(1, "!"),
		"junk, pads and lines":  every(7, "=\x80\n"),
		"lines of one":          every(1, "\r\n"),
		"mixed lines":           every(5, "\n"),
		"an encoding before it": "AA==" + enc,
		"pads before it":        "====" + enc,
		"after a dash":          enc + "\n-- \na footer of a list\n",
		"8-bit bytes":           every(4, "\xff"),
		"no end":                strings.TrimRight(enc, "="),
	} {
		m := read(t, "Content-Transfer-Encoding: base64\n\n"+text+"\n")
		if _, _, ok := holder(t, m, contains(eicar[:60])); !ok {
			t.Errorf("%s: EICAR is not found\n%s", name, dump(t, m))
		}
	}
}

// TestParameterNames has the ways of a name in parameters, among them a piece
// with an encoding of its own that passed an extension ban elsewhere.
func TestParameterNames(t *testing.T) {
	for _, x := range tricks {
		if !x.byName {
			continue
		}
		if exts := extensions(read(t, x.text)); !slices.Contains(exts, "exe") {
			t.Errorf("%s: extensions %v", x.name, exts)
		}
	}
	m := read(t, named("Content-Disposition: attachment;\n filename*0*=utf-8''a.;\n filename*1=\"exe\"\n"))
	if exts := extensions(m); !slices.Contains(exts, "exe") {
		t.Errorf("a plain piece behind an encoded one: %v", exts)
	}
}

// TestEncodedInText finds what is uuencoded or yEnc in a text, quoted too.
func TestEncodedInText(t *testing.T) {
	reply := func(s string) string {
		return "> > " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n> > ") + "\n"
	}
	for name, text := range map[string]string{
		"uuencode":           "begin 644 x.com\n" + uu(eicar) + "end\n",
		"uuencode in reply":  reply("begin 644 x.com\n" + uu(eicar) + "end\n"),
		"xxencode":           "begin 644 x.com\n" + xx(eicar) + "end\n",
		"base64":             "begin-base64 644 x.com\n" + b64(eicar) + "====\n",
		"base64 in reply":    reply("begin-base64 644 x.com\n" + b64(eicar) + "====\n"),
		"yEnc":               "=ybegin line=128 size=68 name=x.com\n" + yEnc(eicar) + "\n=yend size=68\n",
		"yEnc of two parts":  "=ybegin part=1 line=128 size=68 name=x.com\n=ypart begin=1 end=68\n" + yEnc(eicar) + "\n=yend size=68\n",
		"yEnc in reply":      reply("=ybegin line=128 size=68 name=x.com\n" + yEnc(eicar) + "\n=yend size=68\n"),
		"BinHex in reply":    reply("(This file must be converted with BinHex 4.0)\n:" + binHex("x.com", eicar) + ":\n"),
		"two, the second":    "begin 644 a.txt\n" + uu("x") + "end\nbegin 644 x.com\n" + uu(eicar) + "end\n",
		"one not ended":      "begin 644 a.txt\n" + uu("x") + "begin 644 x.com\n" + uu(eicar) + "end\n",
		"far behind a text":  strings.Repeat("a line of text\n", 10_000) + "begin 644 x.com\n" + uu(eicar) + "end\n",
		"lines with CR LF":   strings.ReplaceAll("begin 644 x.com\n"+uu(eicar)+"end\n", "\n", "\r\n"),
		"no line end at all": "begin 644 x.com\n" + strings.TrimSuffix(strings.TrimSuffix(uu(eicar), "\n"), "\n`"),
	} {
		for _, head := range []string{"", "Content-Type: text/plain\n", "Content-Type: text/html\n"} {
			m := read(t, head+"\n"+text)
			found := false
			for p := range m.Walk() {
				if p.Role == Embedded && len(p.Names) > 0 && p.Names[0].Text == "x.com" {
					found = found || slices.ContainsFunc(p.Contents, func(c Content) bool { return strings.Contains(decoded(t, c), eicar) })
				}
			}
			if !found {
				t.Errorf("%s: EICAR is not found under its name\n%s", name, dump(t, m))
			}
		}
	}
	for _, harmless := range []string{"begin with the end in mind\n", "I begin 644 lines\n", "begin 9 x\n", "beginning\n", "=begin\n"} {
		if parts, _ := size(read(t, "\n"+harmless)); parts != 1 {
			t.Errorf("%q is taken for a file", harmless)
		}
	}
}

// TestTruncated reads multiparts that do not end, and parts behind their end.
func TestTruncated(t *testing.T) {
	text := attached("Content-Type: application/x; name=a.exe\n")
	at := strings.Index(text, "TVqQ") + 80
	for n := at; n <= len(text); n++ {
		m := read(t, text[:n])
		if _, _, ok := holder(t, m, begins("MZ")); !ok {
			t.Fatalf("cut at %d: the program is not found", n)
		}
	}
	for name, text := range map[string]string{
		"a boundary in the epilogue only": "Content-Type: multipart/mixed; boundary=b\n\n--b--\n--b\nContent-Transfer-Encoding: base64\n\n" + program,
		"closed before it is opened":      "Content-Type: multipart/mixed; boundary=b\n\n--b--\n\nContent-Type: x/y\n\n--c\nContent-Type: x/y\nContent-Transfer-Encoding: base64\n\n" + program,
		"an inner one never closed":       mixed("Content-Type: multipart/mixed; boundary=c\n\n--c\nContent-Transfer-Encoding: base64\n\n" + program),
	} {
		m := read(t, text)
		if _, _, ok := holder(t, m, begins(exe[:150])); !ok {
			t.Errorf("%s: the program is not found\n%s", name, dump(t, m))
		}
	}
}

// TestErrors: a reader that fails fails Read and contents; a context ends it.
func TestErrors(t *testing.T) {
	text := benchText(300 << 10)
	want := errors.New("disk on fire")
	_, err := Read(context.Background(), failingAt{strings.NewReader(text), 200 << 10, want}, int64(len(text)), Options{})
	if !errors.Is(err, want) {
		t.Errorf("%v", err)
	}
	if _, err := Read(context.Background(), strings.NewReader(text), int64(len(text))+1, Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a message shorter than it is said to be: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if _, err := Read(ctx, strings.NewReader(text), int64(len(text)), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	m := read(t, attached(""))
	for p := range m.Walk() {
		for _, c := range p.Contents {
			if err := iotest.TestReader(c.Open(), []byte(decoded(t, c))); err != nil && c.How != Identity {
				t.Errorf("%s of %s: %v", c.How, p.Path, err)
			}
		}
		if _, err := p.Raw().Spool(nil, 0, 3); p.Size > 100 && !errors.Is(err, ErrTooLarge) {
			t.Errorf("Spool beyond its bound: %v", err)
		}
	}
	b, err := m.Root.Parts[1].Contents[0].Spool(nil, 0, 1<<20)
	if err != nil || b.Size() != int64(len(exe)) {
		t.Fatalf("%d bytes, %v", b.Size(), err)
	}
	if err := b.Release(); err != nil {
		t.Error(err)
	}
}

type failingAt struct {
	io.ReaderAt
	from int64
	err  error
}

func (f failingAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}
