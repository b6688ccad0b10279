package message

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/reply"
)

// part is a leaf, or something that is left alone, as the slow decoder below finds
// it.
type part struct {
	path string
	raw  string // as it stands
	text string // decoded, with CR LF
	left bool   // left alone
}

// decode reads a message in the plain way: whole strings, recursively. It is the
// measure for the converter, which reads in a stream.
func decode(path string, head Head, body string, digest bool, depth, messages int) []part {
	types, codings := head.Values("Content-Type"), head.Values("Content-Transfer-Encoding")
	alone := []part{{path: path, raw: body, text: body, left: true}}
	if len(types) > 1 || len(codings) > 1 || hasOddName(head) {
		return alone
	}
	kind, boundary, was := "text/plain", "", "7bit"
	if digest {
		kind = "message/rfc822"
	}
	if len(types) == 1 {
		var ok bool
		if kind, boundary, ok = mediaType(types[0]); !ok {
			return alone
		}
	}
	if len(codings) == 1 {
		was = strings.ToLower(codings[0])
	}
	identity := was == "7bit" || was == "8bit" || was == "binary"
	switch {
	case strings.HasPrefix(kind, "multipart/") && identity && kind != "multipart/signed" && boundary != "" && len(boundary) <= maxBoundary && depth < maxParts:
		var all []part
		for i, text := range split(body, boundary) {
			h, rest, ok := headOf(text)
			if !ok {
				all = append(all, part{path: fmt.Sprintf("%s.%d", path, i), raw: text, text: text, left: true})
				continue
			}
			all = append(all, decode(fmt.Sprintf("%s.%d", path, i), h, rest, kind == "multipart/digest", depth+1, messages)...)
		}
		return all
	case (kind == "message/rfc822" || kind == "message/global") && identity && messages < maxParts:
		h, rest, ok := headOf(body)
		if !ok {
			return alone
		}
		return decode(path+".m", h, rest, false, depth, messages+1)
	case strings.HasPrefix(kind, "multipart/"), strings.HasPrefix(kind, "message/"):
		return alone
	case identity:
		return []part{{path: path, raw: body, text: strings.ReplaceAll(body, "\n", "\r\n")}}
	case !isASCII([]byte(body)): // against its own word
	case was == "quoted-printable":
		return []part{{path: path, raw: body, text: strings.ReplaceAll(unquote(body), "\n", "\r\n")}}
	case was == "base64":
		return []part{{path: path, raw: body, text: unbase64(body)}}
	}
	return alone
}

// headOf cuts the header off a part.
func headOf(text string) (h Head, rest string, ok bool) {
	i := 0
	if !strings.HasPrefix(text, "\n") {
		if i = strings.Index(text, "\n\n"); i < 0 {
			return h, "", false
		}
		i++
	}
	if i > maxPartHead {
		return h, "", false
	}
	h, more := ParseHead(text[:i+1])
	return h, text[i+1:], more == ""
}

// split gives the parts of a multipart, without the line ends before boundaries.
func split(body, boundary string) (all []string) {
	var now strings.Builder
	open := false
	end := func() {
		if open {
			all = append(all, strings.TrimSuffix(now.String(), "\n"))
		}
		now.Reset()
	}
	for _, line := range strings.SplitAfter(body, "\n") {
		switch strings.TrimRight(line, " \t\n") {
		case "--" + boundary:
			if len(line) <= maxBoundary+100 {
				end()
				open = true
				continue
			}
		case "--" + boundary + "--":
			if len(line) <= maxBoundary+100 {
				end()
				return all
			}
		}
		now.WriteString(line)
	}
	if open { // it is not closed, so its last line end is its own
		all = append(all, now.String())
	}
	return all
}

func unquote(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '=' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '\n' {
			i++
			continue
		}
		var v int
		if i+2 < len(s) && strings.Contains(hexDigits, s[i+1:i+2]) && strings.Contains(hexDigits, s[i+2:i+3]) {
			fmt.Sscanf(s[i+1:i+3], "%02X", &v) //nolint:errcheck // they are digits
			b.WriteByte(byte(v))
			i += 2
			continue
		}
		b.WriteByte('=')
	}
	return b.String()
}

// unbase64 takes no notice of what is not base64 (RFC 2045 §6.8).
func unbase64(s string) string {
	clean := strings.Map(func(r rune) rune {
		if strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", r) {
			return r
		}
		return -1
	}, s)
	out, err := base64.RawStdEncoding.DecodeString(clean)
	if err != nil {
		return string(out) + "?" + err.Error()
	}
	return string(out)
}

// checkConvert checks what ToSevenBit promises.
func checkConvert(t *testing.T, in Message) Message {
	t.Helper()
	out, err := in.ToSevenBit(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body().Release()
	if text := in.HeadText(); strings.Contains(string(in.Body().memory), "\r") || !in.Body().EightBit() || !strings.HasSuffix(text, "\n\n") && text != "\n" {
		if string(out.Bytes()) != string(in.Bytes()) {
			t.Fatal("changed")
		}
		return out
	}
	was := decode("", in.Head(), string(in.Body().memory), false, 0, 0)
	is := decode("", out.Head(), string(out.Body().memory), false, 0, 0)
	if len(was) != len(is) {
		t.Fatalf("%d parts became %d\n%q\n%q", len(was), len(is), in.Bytes(), out.Bytes())
	}
	for i := range was {
		a, b := was[i], is[i]
		if a.path != b.path || a.left != b.left || a.text != b.text {
			t.Fatalf("part %d was %+v and is %+v\n%q\n%q", i, a, b, in.Bytes(), out.Bytes())
		}
		if !b.left && !isASCII([]byte(b.raw)) || isASCII([]byte(a.raw)) && a.raw != b.raw {
			t.Fatalf("part %d: %q became %q", i, a.raw, b.raw)
		}
		for line := range strings.SplitSeq(b.raw, "\n") {
			if a.raw != b.raw && len(line) > 76 {
				t.Fatalf("a line of %d bytes: %q", len(line), line)
			}
		}
	}
	again, err := out.ToSevenBit(nil)
	if err != nil || string(again.Bytes()) != string(out.Bytes()) {
		t.Fatalf("the second time it changed: %q, then %q", out.Bytes(), again.Bytes())
	}
	again.Body().Release()
	return out
}

var conversions = []struct{ name, in, want string }{
	{"no MIME, UTF-8", "Subject: x\n\nJ\u00f6rg = me \n", "Subject: x\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nJ=C3=B6rg =3D me=20\n"},
	{"no MIME, Latin-1", "Subject: x\n\nJ\xf6rg\n", "Subject: x\nMIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\nContent-Transfer-Encoding: quoted-printable\n\nJ=F6rg\n"},
	{"8bit text", "MIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n<p>\u00e4 and more of it</p>\n", "MIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n<p>=C3=A4 and more of it</p>\n"},
	{"dense text", "MIME-Version: 1.0\nContent-Type: text/plain; charset=koi8-r\n\n\xc1\xc2\xc3\xc4\xc5\xc6\n\xc7\xc8\n", "MIME-Version: 1.0\nContent-Type: text/plain; charset=koi8-r\nContent-Transfer-Encoding: base64\n\nwcLDxMXGDQrHyA0K\n"},
	{
		"multipart", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: 8bit\n\npreamble\n--b\n\nplain \xe4 text here\n--b\nContent-Type: text/x\nContent-Transfer-Encoding: 8BIT\n\n7 bits\n--b--\nepilogue\n",
		"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: 7bit\n\npreamble\n--b\nContent-Transfer-Encoding: quoted-printable\n\nplain =E4 text here\n--b\nContent-Type: text/x\nContent-Transfer-Encoding: 8BIT\n\n7 bits\n--b--\nepilogue\n",
	},
	{
		"base64 before a boundary", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\n\xe4\xe4\xe4\xe4\xe4\xe4\n--b--\n",
		"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Transfer-Encoding: base64\n\n5OTk5OTk\n--b--\n",
	},
	{
		"signed", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=o\nContent-Transfer-Encoding: 8bit\n\n--o\nContent-Type: multipart/signed; boundary=i\n\n--i\n\n\xe4 is signed\n--i--\n--o\n\n\xe4 is not signed\n--o--\n",
		"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=o\nContent-Transfer-Encoding: 8bit\n\n--o\nContent-Type: multipart/signed; boundary=i\n\n--i\n\n\xe4 is signed\n--i--\n--o\nContent-Transfer-Encoding: quoted-printable\n\n=E4 is not signed\n--o--\n",
	},
	{"signed alone", "MIME-Version: 1.0\nContent-Type: multipart/signed; boundary=i\n\n--i\n\n\xe4\n--i--\n", ""},
	{
		"message within", "MIME-Version: 1.0\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nSubject: in\n\nthe inner \u00e4\n",
		"MIME-Version: 1.0\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 7bit\n\nSubject: in\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nthe inner =C3=A4\n",
	},
	{
		"digest", "MIME-Version: 1.0\nContent-Type: multipart/digest; boundary=b\n\n--b\n\nSubject: in\nMIME-Version: 1.0\nContent-Type: text/plain\n\nthe inner \xe4\n--b--\n",
		"MIME-Version: 1.0\nContent-Type: multipart/digest; boundary=b\n\n--b\n\nSubject: in\nMIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\nthe inner =E4\n--b--\n",
	},
	{"says quoted-printable", "MIME-Version: 1.0\nContent-Transfer-Encoding: Quoted-Printable\n\na=\nb \xe4\n", ""},
	{"says base64", "MIME-Version: 1.0\nContent-Transfer-Encoding: base64\n\nYW\xe4Jj\n", ""},
	{
		"a boundary that never comes", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\nsome show \xe4 of it\n", "",
	},
	{
		"before and behind the parts", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: 8bit\n\npre\xe4mble\n--b\n\nplain \xe4 text here\n--b--\n\xe4pilogue\n",
		"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: 8bit\n\npre\xe4mble\n--b\nContent-Transfer-Encoding: quoted-printable\n\nplain =E4 text here\n--b--\n\xe4pilogue\n",
	},
	{"two encodings", "Content-Transfer-Encoding: base64\nContent-Transfer-Encoding: 8bit\n\n\xe4\n", ""},
	{"odd name", "Subj\xe4ct: x\n\n\xe4\n", ""},
	{"no blank line", "Subject: x\n: y\n\xe4\n", ""},
	{"unknown encoding", "Content-Transfer-Encoding: x-uuencode\n\n\xe4\n", ""},
	{"broken multipart", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\n\n\xe4\n", ""},
	{"partial", "MIME-Version: 1.0\nContent-Type: message/partial; id=x; number=1\n\n\xe4\n", ""},
	{"bare CR", "Subject: x\n\n\xe4\rb\n", ""},
	{"7 bits", "Subject: x\n\na\n", ""},
	{"only the head", "Subject: \u00e4\n\na\n", ""},
}

func TestToSevenBit(t *testing.T) {
	for _, c := range conversions {
		t.Run(c.name, func(t *testing.T) {
			if c.want == "" {
				c.want = c.in
			}
			if got := string(checkConvert(t, FromString(c.in)).Bytes()); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// TestLongLines: of any length, broken anywhere, with blanks and hyphens where they
// hurt.
func TestLongLines(t *testing.T) {
	for _, unit := range []string{"a", "-", " ", "\t-", "=", "\u00e4 ", "a b-", "--b"} {
		for n := 70; n < 80; n++ {
			text := strings.Repeat(unit, n) + "\u00e4" + strings.Repeat(unit, 240*n) + "\n" + unit + " \n\n"
			checkConvert(t, FromString("Subject: x\n\n"+text))
			checkConvert(t, FromString("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\n"+text+"\n--b--\n"))
		}
	}
}

// TestConvertSpools: a large body goes to the spool, with nothing left behind, and
// errors of both ends are told.
func TestConvertSpools(t *testing.T) {
	spool, err := OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("a line with an \u00e4 in it\n", 10_000)
	m := FromString("Subject: x\n\n" + text)
	out, err := m.ToSevenBit(spool)
	if err != nil || out.Form() != SevenBit || out.Body().SpoolName() == "" {
		t.Fatal(err, out.Form())
	}
	if got := unquote(string(out.Bytes()[len(out.HeadText()):])); got != text {
		t.Error("another text")
	}
	out.Body().Release()
	if left, err := os.ReadDir(spool.Path()); err != nil || len(left) != 0 {
		t.Error(left, err)
	}
	if _, err := m.ToSevenBit(fullSpool{}); reply.Of(err) != reply.NoSpace {
		t.Error(err)
	}
	broken := StoredBody{At: strings.NewReader("short"), Size: 100, EightBit: true}.Open()
	defer broken.Release()
	if _, err := m.WithBody(broken).ToSevenBit(spool); reply.Of(err) != reply.ReadError {
		t.Error(err)
	}
}

type fullSpool struct{ Spooler }

func (fullSpool) Create() (string, File, error) { return "", nil, errors.New("no space") }
