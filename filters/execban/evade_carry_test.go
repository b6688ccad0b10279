package execban

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
)

// The generator of evasions hides a file in a message. It is put together of
// containers (what the file lies in), namings (how its name is written),
// encodings (how its content is), and structures (how the part lies in the
// message). A trick is one of any of them.

// hidden is what is hidden: a file, whose name or content tells what it is.
type hidden struct {
	name    string
	content []byte
}

// part is a part of a message: its header without an encoding, and its body.
type part struct{ head, body string }

func (p part) String() string { return p.head + "\n" + p.body }

// encoding is a way to write a content.
type encoding struct {
	name string
	// make writes a part; head says type and name.
	make func(r *rand.Rand, head string, h hidden) part
	// own is set where it has names of its own: the head's do not count.
	own bool
}

func transfer(head, encoding, body string) part {
	return part{head + "Content-Transfer-Encoding: " + encoding + "\n", body}
}

// mangled is base64 with something done to its letters.
func mangled(do func(r *rand.Rand, s string) string) func(*rand.Rand, string, hidden) part {
	return func(r *rand.Rand, head string, h hidden) part {
		return transfer(head, "base64", do(r, base64.StdEncoding.EncodeToString(h.content))+"\n")
	}
}

// spelled is base64 announced in other words.
func spelled(announcements ...string) func(*rand.Rand, string, hidden) part {
	return func(r *rand.Rand, head string, h hidden) part {
		return part{head + announcements[r.IntN(len(announcements))], lines(h.content)}
	}
}

// every puts something between pieces of a text.
func every(s string, n int, between string) string {
	var b strings.Builder
	for i := 0; i < len(s); i += n {
		b.WriteString(s[i:min(i+n, len(s))] + between)
	}
	return b.String()
}

func quotedAll(s string, format string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, format, s[i])
		if i%20 == 19 {
			b.WriteString("=\n")
		}
	}
	return b.String()
}

// inText is a file in a text.
func inText(make func(h hidden) string, quote string) func(*rand.Rand, string, hidden) part {
	return func(_ *rand.Rand, _ string, h hidden) part {
		text := "Hello,\n\nhere it is.\n\n" + make(h) + "\nBye\n"
		if quote != "" {
			text = "You wrote:\n" + quote + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+quote) + "\n"
		}
		return part{"Content-Type: text/plain; charset=us-ascii\n", text}
	}
}

func uuFile(h hidden) string {
	return "begin 644 " + h.name + "\n" + uu(string(h.content)) + "end\n"
}

func uuBase64(h hidden) string {
	return "begin-base64 644 " + h.name + "\n" + lines(h.content) + "====\n"
}

func yEncFile(h hidden) string {
	return fmt.Sprintf("=ybegin line=128 size=%d name=%s\n%s\n=yend size=%d\n", len(h.content), h.name, every(yEnc(string(h.content)), 128, ""), len(h.content))
}

func binHexFile(h hidden) string {
	return "(This file must be converted with BinHex 4.0)\n\n:" + binHex(h.name, string(h.content)) + ":\n"
}

// encodings are the ways to write a content; the first is the plain one.
func encodings() []encoding {
	two := func(first, second string) func(*rand.Rand, string, hidden) part {
		return func(_ *rand.Rand, head string, h hidden) part {
			return part{head + "Content-Transfer-Encoding: " + first + "\nContent-Transfer-Encoding: " + second + "\n", lines(h.content)}
		}
	}
	return []encoding{
		{name: "base64", make: func(_ *rand.Rand, head string, h hidden) part { return transfer(head, "base64", lines(h.content)) }},
		{name: "encoding twice, base64 first", make: two("base64", "7bit")},
		{name: "encoding twice, base64 last", make: two("7bit", "base64")},
		{name: "encoding twice, quoted-printable last", make: two("base64", "quoted-printable")},
		{name: "encoding spelled oddly", make: spelled("Content-Transfer-Encoding: BASE64\n", "content-transfer-encoding:base64\n", "Content-Transfer-Encoding:\n base64\n",
			"Content-Transfer-Encoding: (really) base64 (yes)\n", "Content-Transfer-Encoding: \"base64\"\n", "Content-Transfer-Encoding: base64;\n", "Content-Transfer-Encoding : base64\n", "CONTENT-TRANSFER-ENCODING:\tbase64 \n")},
		{name: "encoding missing", make: spelled("")},
		{name: "encoding unknown", make: spelled("Content-Transfer-Encoding: x-base64\n", "Content-Transfer-Encoding: base65\n", "Content-Transfer-Encoding: none\n")},
		{name: "base64 in one line", make: mangled(func(_ *rand.Rand, s string) string { return s })},
		{name: "base64 in odd lines", make: mangled(func(r *rand.Rand, s string) string { return every(s, 1+r.IntN(7), "\n") })},
		{name: "base64 with junk", make: mangled(func(r *rand.Rand, s string) string {
			return every(s, 9+r.IntN(9), []string{"!", "\x80", " * ", "#-", "\t.\n"}[r.IntN(5)])
		})},
		{name: "base64 padded every four", make: func(_ *rand.Rand, head string, h hidden) part {
			var b strings.Builder
			for i, c := range h.content {
				b.WriteString(base64.StdEncoding.EncodeToString([]byte{c}))
				if i%18 == 17 {
					b.WriteByte('\n')
				}
			}
			return transfer(head, "base64", b.String()+"\n")
		}},
		{name: "base64 padded early", make: func(r *rand.Rand, head string, h hidden) part {
			at := 1 + r.IntN(min(40, len(h.content)-1))
			return transfer(head, "base64", base64.StdEncoding.EncodeToString(h.content[:at])+"\n"+lines(h.content[at:]))
		}},
		{name: "base64 for URLs", make: mangled(func(_ *rand.Rand, s string) string {
			return every(strings.NewReplacer("+", "-", "/", "_").Replace(s), 76, "\n")
		})},
		{name: "base64 cut off", make: mangled(func(_ *rand.Rand, s string) string { return every(strings.TrimRight(s, "=")+"A", 76, "\n") })},
		{name: "base64 behind blank lines", make: mangled(func(_ *rand.Rand, s string) string { return "\n\n   \n" + every(s, 76, "\n") })},
		{name: "quoted-printable", make: func(_ *rand.Rand, head string, h hidden) part {
			return transfer(head, "quoted-printable", quotedAll(string(h.content), "=%02X")+"\n")
		}},
		{name: "quoted-printable, lower case", make: func(_ *rand.Rand, head string, h hidden) part {
			return transfer(head, "quoted-printable", quotedAll(string(h.content), "=%02x")+"\n")
		}},
		{name: "quoted-printable, soft breaks", make: func(r *rand.Rand, head string, h hidden) part {
			return transfer(head, "Quoted-Printable", strings.ReplaceAll(quotedAll(string(h.content), "=%02X"), "=\n", "= \t\n")+"\n")
		}},
		{name: "x-uuencode", make: func(_ *rand.Rand, head string, h hidden) part { return transfer(head, "x-uuencode", uuFile(h)) }},
		{name: "uuencode in a text", make: inText(uuFile, ""), own: true},
		{name: "uuencode in a reply", make: inText(uuFile, "> "), own: true},
		{name: "uuencode in base64", make: inText(uuBase64, ""), own: true},
		{name: "yEnc in a text", make: inText(yEncFile, ""), own: true},
		{name: "BinHex in a text", make: inText(binHexFile, ""), own: true},
	}
}

// structure is a way for a part to lie in a message.
type structure struct {
	name string
	make func(r *rand.Rand, p part) string
}

const greeting = "Content-Type: text/plain\n\nSee the attachment.\n"

// head is the beginning of a message.
const head = "From: a@example.net\nTo: r@example.org\nSubject: your invoice\nMIME-Version: 1.0\n"

// mixed is a multipart of a boundary, in fields of its own.
func mixed(field, boundary string, parts ...string) string {
	var b strings.Builder
	b.WriteString(field + "\n")
	for _, p := range parts {
		b.WriteString("--" + boundary + "\n" + p)
	}
	b.WriteString("--" + boundary + "--\n")
	return b.String()
}

func plainMixed(p string) string {
	return mixed("Content-Type: multipart/mixed; boundary=\"b1\"\n", "b1", greeting, p)
}

// fixed are structures that are a pattern with the part in it.
func fixed(patterns ...string) func(*rand.Rand, part) string {
	return func(r *rand.Rand, p part) string {
		return head + strings.ReplaceAll(patterns[r.IntN(len(patterns))], "{PART}", p.String())
	}
}

// carriers are further ways for a message to lie in a message.
func attachedMessage(typ, encoding string, encode func(string) string) func(*rand.Rand, part) string {
	return func(r *rand.Rand, p part) string {
		inner := head + plainMixed(p.String())
		for range r.IntN(3) {
			inner = head + plainMixed("Content-Type: message/rfc822\n\n"+inner)
		}
		return head + plainMixed(typ+encoding+"\n"+encode(inner)+"\n")
	}
}

func asIs(s string) string { return s }

// structures are the ways for a part to lie in a message; the first is plain.
func structures() []structure {
	return []structure{
		{"mixed", func(_ *rand.Rand, p part) string { return head + plainMixed(p.String()) }},
		{"the message itself", func(_ *rand.Rand, p part) string { return head + p.String() }},
		{"multipart in multipart", func(r *rand.Rand, p part) string {
			s := p.String()
			for i := range 1 + r.IntN(12) {
				b := fmt.Sprintf("n%d", i)
				s = mixed(fmt.Sprintf("Content-Type: multipart/%s; boundary=%s\n", []string{"mixed", "alternative", "related", "x-odd", "digest", "signed"}[r.IntN(6)], b), b, greeting, s)
			}
			return head + s
		}},
		{"two boundaries, first", fixed("Content-Type: multipart/mixed; boundary=a\nContent-Type: multipart/mixed; boundary=b\n\n--a\n{PART}--a--\n--b\n\nfine\n--b--\n")},
		{"two boundaries, last", fixed("Content-Type: multipart/mixed; boundary=a\nContent-Type: multipart/mixed; boundary=b\n\n--a\n\nfine\n--a--\n--b\n{PART}--b--\n", "Content-Type: multipart/mixed; boundary=a; boundary=b\n\n--a\n\nfine\n--a--\n--b\n{PART}--b--\n")},
		{"two types", fixed("Content-Type: text/plain\nContent-Type: multipart/mixed; boundary=a\n\n--a\n{PART}--a--\n", "Content-Type: multipart/mixed; boundary=a\nContent-Type: text/plain\n\n--a\n{PART}--a--\n")},
		{"no boundary parameter", fixed("Content-Type: multipart/mixed\n\n--a\n{PART}--a--\n", "Content-Type: multipart/mixed; boundary=\n\n--a\n{PART}--a--\n")},
		{"empty boundary", fixed("Content-Type: multipart/mixed; boundary=\"\"\n\n--\n{PART}----\n")},
		{"boundary in pieces", fixed("Content-Type: multipart/mixed; boundary*0=a; boundary*1=b\n\n--ab\n{PART}--ab--\n", "Content-Type: multipart/mixed; boundary*=us-ascii''a%62\n\n--ab\n{PART}--ab--\n")},
		{"boundary with comments", fixed("Content-Type: multipart/mixed (x); (y) boundary (z) = \"a b\"\n\n--a b\n{PART}--a b--\n", "Content-Type: multipart/mixed;\n\tboundary=\"a\\b\"\n\n--ab\n{PART}--ab--\n", "Content-Type: multipart/mixed; charset=\"x; boundary=b\"; boundary=a\n\n--a\n{PART}--a--\n")},
		{"boundary that begins another", fixed("Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/mixed; boundary=ab\n\n--ab\n{PART}--ab--\n--a--\n", "Content-Type: multipart/mixed; boundary=a\n\n--abc\n{PART}--abc--\n--a\n\nfine\n--a--\n")},
		{"boundary with blanks behind", fixed("Content-Type: multipart/mixed; boundary=\"a \"\n\n--a \n{PART}--a --\n", "Content-Type: multipart/mixed; boundary=a\n\n--a \t \n{PART}--a--  \n")},
		{"boundary that never comes", fixed("Content-Type: multipart/mixed; boundary=zzz\n\n--a\n{PART}--a--\n")},
		{"unterminated", fixed("Content-Type: multipart/mixed; boundary=a\n\n--a\n\nfine\n--a\n{PART}", "Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/mixed; boundary=b\n\n--b\n{PART}")},
		{"in the preamble", fixed("Content-Type: multipart/mixed; boundary=a\n\n--x\n{PART}--x--\n--a\n\nfine\n--a--\n")},
		{"in the epilogue", fixed("Content-Type: multipart/mixed; boundary=a\n\n--a\n\nfine\n--a--\n\n--x\n{PART}--x--\n")},
		{"behind the end", fixed("Content-Type: multipart/mixed; boundary=a\n\n--a\n\nfine\n--a--\n--a\n{PART}--a--\n")},
		{"in a text", fixed("Content-Type: text/plain\n\nSee below\n\n--x\n{PART}--x--\n")},
		{"no type", fixed("\n--x\n{PART}--x--\n")},
		{"a message", attachedMessage("Content-Type: message/rfc822\n", "", asIs)},
		{"a message in base64", attachedMessage("Content-Type: message/rfc822\n", "Content-Transfer-Encoding: base64\n", func(s string) string { return lines([]byte(s)) })},
		{"a message in quoted-printable", attachedMessage("Content-Type: message/global\n", "Content-Transfer-Encoding: quoted-printable\n", func(s string) string { return quotedAll(s, "=%02X") })},
		{"a message by name", attachedMessage("Content-Type: application/octet-stream; name=\"fwd.eml\"\n", "Content-Transfer-Encoding: base64\n", func(s string) string { return lines([]byte(s)) })},
		{"a multipart in base64", func(_ *rand.Rand, p part) string {
			inner := strings.TrimPrefix(plainMixed(p.String()), "Content-Type: multipart/mixed; boundary=\"b1\"\n\n")
			return head + mixed("Content-Type: multipart/mixed; boundary=o\n", "o", "Content-Type: multipart/mixed; boundary=\"b1\"\nContent-Transfer-Encoding: base64\n\n"+lines([]byte(inner)))
		}},
		{"a digest", fixed("Content-Type: multipart/digest; boundary=a\n\n--a\n\n" + head + "Content-Type: multipart/mixed; boundary=c\n\n--c\n{PART}--c--\n--a--\n")},
		{"a report of delivery", fixed("Content-Type: multipart/report; report-type=delivery-status; boundary=a\n\n--a\n\nSorry.\n--a\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\n--a\nContent-Type: message/rfc822\n\n" + head + "Content-Type: multipart/mixed; boundary=c\n\n--c\n{PART}--c--\n--a--\n")},
		{"in a bounce's text", fixed("\nHi. This is the qmail-send program at example.net.\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <a@b>\n" + head + "Content-Type: multipart/mixed; boundary=c\n\n--c\n{PART}--c--\n")},
		{"a blank line before the header", fixed("Content-Type: multipart/mixed; boundary=a\n\n--a\n \n{PART}--a--\n", "Content-Type: multipart/mixed; boundary=a\n\n--a\n\n{PART}--a--\n")},
		{"garbage in the header", fixed("Content-Type: multipart/mixed; boundary=a\n\n--a\nthis is no field\n{PART}--a--\n", "Content-Type: multipart/mixed; boundary=a\n\n--a\nX-Y\n: z\n{PART}--a--\n")},
		{"lines that end in CR", func(_ *rand.Rand, p part) string { return strings.ReplaceAll(head+plainMixed(p.String()), "\n", "\r") }},
		{"lines that end in CR LF", func(_ *rand.Rand, p part) string {
			return strings.ReplaceAll(head+plainMixed(p.String()), "\n", "\r\n")
		}},
		{"boundaries between CRs", func(_ *rand.Rand, p part) string {
			return head + "Content-Type: multipart/mixed; boundary=a\n\n--a\n\nfine\r--a\r" + p.String() + "\r--a--\n"
		}},
	}
}
