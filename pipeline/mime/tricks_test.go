package mime

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// mixed is a message in two parts, the second of which is what is given.
func mixed(part string) string {
	return "From: a@example.org\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"B\"\n\n" +
		"--B\nContent-Type: text/plain\n\nhello\n\n--B\n" + part + "\n--B--\n"
}

// attached is a message with a program attached under a header.
func attached(fields string) string {
	return mixed(fields + "Content-Transfer-Encoding: base64\n\n" + b64(exe))
}

// trick is a way to hide a program. Either its content must be found or, where
// only the name tells, its extension; and the reasons must be among the findings.
type trick struct {
	name, text string
	byName     bool
	reasons    string
}

var program = b64(exe)

// tricks are by what they abuse.
var tricks = []trick{
	{name: "plain", text: attached("")},
	{name: "root", text: "Content-Transfer-Encoding: base64\n\n" + program},
	{name: "crlf", text: strings.ReplaceAll(attached(""), "\n", "\r\n")},

	// The header.
	{name: "type twice, multipart first", text: "Content-Type: text/plain\n" + attached(""), reasons: "type-contradicts"},
	{name: "type twice, multipart last", text: strings.Replace(attached(""), "\n\n--B", "\nContent-Type: text/plain\n\n--B", 1), reasons: "type-contradicts"},
	{name: "type twice with other boundaries", text: strings.Replace(attached(""), "\n\n--B", "\nContent-Type: multipart/mixed; boundary=C\n\n--B", 1)},
	{name: "type twice, first boundary unused", text: "Content-Type: multipart/mixed; boundary=C\n" + attached(""), reasons: "boundary-contradicts"},
	{name: "blanks end the header", text: mixed("Content-Transfer-Encoding: base64\n \t\n" + program), reasons: "header-ends-at-blanks"},
	{name: "garbage ends the header", text: mixed("Content-Transfer-Encoding: base64\nMZ is no field\n\n" + program), reasons: "header-ends-at-garbage"},
	{name: "body without a blank line", text: mixed("Content-Transfer-Encoding: base64\n" + program), reasons: "header-ends-at-garbage"},
	{name: "garbage before the header", text: mixed("nothing\nContent-Transfer-Encoding: base64\n\n" + program), reasons: "header-missing"},
	{name: "blank line before the header", text: mixed("\nContent-Transfer-Encoding: base64\n\n" + program), reasons: "header-after-blank"},
	{name: "blank in a field name", text: mixed("Content-Transfer-Encoding : base64\n\n" + program), reasons: "field-name"},
	{name: "NUL in a field name", text: mixed("Content-Transfer\x00-Encoding: base64\n\n" + program), reasons: "field-name"},
	{name: "folded first line", text: mixed(" Content-Transfer-Encoding: base64\n\n" + program), reasons: "field-name"},
	{name: "upper case", text: mixed("CONTENT-TRANSFER-ENCODING: BASE64\n\n" + program)},
	{name: "bare CR", text: strings.ReplaceAll(attached(""), "\n", "\r"), reasons: "bare-cr"},
	{name: "bare CR in the header", text: mixed("Content-Type: text/plain;\rContent-Transfer-Encoding: base64\n\n" + program), reasons: "bare-cr"},
	{name: "bare CR before a delimiter", text: strings.Replace(attached(""), "hello\n\n--B", "hello\r--B", 1), reasons: "bare-cr"},

	// Boundaries.
	{name: "boundary folded", text: strings.Replace(attached(""), "boundary=\"B\"", "\n\tboundary=\"B\"", 1)},
	{name: "boundary in a comment", text: strings.Replace(attached(""), "boundary=\"B\"", "(; boundary=B)", 1)},
	{name: "comment before the boundary", text: strings.Replace(attached(""), "boundary=\"B\"", "boundary(x)=(y)B", 1)},
	{name: "boundary twice, last counts", text: strings.Replace(attached(""), "boundary=", "boundary=A; boundary=", 1), reasons: "boundary-contradicts"},
	{name: "boundary twice, first counts", text: strings.Replace(attached(""), "boundary=\"B\"", "boundary=\"B\"; boundary=A", 1)},
	{name: "boundary in pieces", text: strings.Replace(strings.ReplaceAll(attached(""), "--B", "--left-right"), "boundary=\"B\"", "boundary*0=left; boundary*1=-right", 1)},
	{name: "boundary percent-encoded", text: strings.Replace(attached(""), "boundary=\"B\"", "boundary*=us-ascii''%42", 1)},
	{name: "boundary without its quote", text: strings.Replace(attached(""), "boundary=\"B\"", "boundary=\"B", 1)},
	{name: "boundary with a quoted letter", text: strings.Replace(attached(""), "boundary=\"B\"", `boundary="\B"`, 1)},
	{name: "boundary that keeps its backslash", text: strings.Replace(strings.ReplaceAll(attached(""), "--B", `--\B`), "boundary=\"B\"", `boundary="\B"`, 1)},
	{name: "boundary with a fold in it", text: strings.Replace(strings.ReplaceAll(attached(""), "--B", "--BC"), "boundary=\"B\"", "boundary=\"B\n C\"", 1)},
	{name: "boundary behind a missing semicolon", text: strings.Replace(attached(""), "mixed; boundary", "mixed boundary", 1)},
	{name: "boundary empty", text: strings.Replace(attached(""), "boundary=\"B\"", "boundary=\"\"", 1), reasons: "boundary-bad"},
	{name: "boundary missing", text: strings.Replace(attached(""), "; boundary=\"B\"", "", 1), reasons: "boundary-bad"},
	{name: "boundary that does not occur", text: strings.Replace(attached(""), "boundary=\"B\"", "boundary=\"A\"", 1), reasons: "boundary-bad"},
	{name: "delimiters longer than the boundary", text: strings.ReplaceAll(attached(""), "--B\n", "--Bx\n"), reasons: "boundary-prefix"},
	{name: "blanks behind delimiters", text: strings.ReplaceAll(attached(""), "--B\n", "--B \t\n")},
	{name: "an inner boundary that begins like the outer", text: mixed("Content-Type: multipart/mixed; boundary=BB\n\n--BB\nContent-Transfer-Encoding: base64\n\n" + program + "--BB--\n")},
	{name: "not closed", text: strings.TrimSuffix(attached(""), "--B--\n"), reasons: "unterminated"},
	{name: "behind the close", text: strings.Replace(attached(""), "hello\n\n--B", "hello\n\n--B--\n\n--B", 1), reasons: "after-close"},
	{name: "in the epilogue, under another boundary", text: strings.Replace(attached(""), "hello\n\n--B\n", "hello\n\n--B--\n\n--C\nContent-Type: x/y\n", 1), reasons: "parts-outside"},
	{name: "in the preamble", text: strings.Replace(mixed(""), "\n\n--B", "\n\n--C\nContent-Type: x/y\nContent-Transfer-Encoding: base64\n\n"+program+"--C--\n--B", 1), reasons: "parts-outside"},
	{name: "multipart without a slash", text: strings.Replace(attached(""), "multipart/mixed", "multipart", 1)},
	{name: "a text with a boundary", text: strings.Replace(attached(""), "multipart/mixed", "text/plain", 1), reasons: "boundary-guessed"},
	{name: "a text with parts in it", text: strings.Replace(attached(""), "multipart/mixed; boundary=\"B\"", "text/plain", 1) + "--B\nContent-Type: x/y\nContent-Transfer-Encoding: base64\n\n" + program, reasons: "parts-in-text"},
	{name: "an outer delimiter inside", text: mixed("Content-Type: multipart/mixed; boundary=C\n\n--C\nContent-Type: text/plain\n\nx\n--B\n\n--C\nContent-Transfer-Encoding: base64\n\n" + program + "--C--\n"), reasons: "boundary-beyond"},
	{name: "a multipart in base64", text: mixed("Content-Type: multipart/mixed; boundary=C\nContent-Transfer-Encoding: base64\n\n" + b64("--C\nContent-Transfer-Encoding: base64\n\n"+program+"\n--C--\n")), reasons: "encoded-container"},

	// Messages inside.
	{name: "a message", text: mixed("Content-Type: message/rfc822\n\n" + attached(""))},
	{name: "a message in base64", text: mixed("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + b64(attached(""))), reasons: "encoded-container"},
	{name: "a message with a lie about base64", text: mixed("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + strings.NewReplacer("--B", "--C", "\"B\"", "C").Replace(attached("")))},
	{name: "message/global in base64", text: mixed("Content-Type: message/global\nContent-Transfer-Encoding: base64\n\n" + b64(attached("")))},
	{name: "a digest", text: "Content-Type: multipart/digest; boundary=D\n\n--D\n\n" + attached("") + "--D--\n"},
	{name: "a saved message", text: mixed("Content-Type: application/octet-stream; name=x.eml\nContent-Transfer-Encoding: base64\n\n" + b64(attached(""))), reasons: "message-by-name"},

	{name: "a bounce with the original in its text", text: "From: MAILER-DAEMON@example.org\n\nHi. This is the qmail-send program at example.org.\n\n--- Below this line is a copy of the message.\n\n" + attached(""), reasons: "parts-in-text"},
	{name: "a bounce with an original of one part", text: "From: MAILER-DAEMON@example.org\n\nHi. This is the qmail-send program at example.org.\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <a@b>\nContent-Transfer-Encoding: base64\n\n" + program, reasons: "parts-in-text"},
	{name: "a byte order mark before the header", text: "\xef\xbb\xbfContent-Transfer-Encoding: base64\n\n" + program, reasons: "field-name"},

	// Encodings.
	{name: "encoding twice, base64 first", text: mixed("Content-Transfer-Encoding: base64\nContent-Transfer-Encoding: 7bit\n\n" + program), reasons: "encoding-contradicts"},
	{name: "encoding twice, base64 last", text: mixed("Content-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64\n\n" + program), reasons: "encoding-contradicts"},
	{name: "encoding with a blank", text: mixed("Content-Transfer-Encoding: base 64\n\n" + program)},
	{name: "encoding with a comment", text: mixed("Content-Transfer-Encoding: (x) base64 (y)\n\n" + program)},
	{name: "encoding in quotes", text: mixed("Content-Transfer-Encoding: \"base64\"\n\n" + program)},
	{name: "encoding with a parameter", text: mixed("Content-Transfer-Encoding: base64; x=y\n\n" + program)},
	{name: "encoding folded", text: mixed("Content-Transfer-Encoding:\n base64\n\n" + program)},
	{name: "encoding unknown", text: mixed("Content-Transfer-Encoding: x-base64x\n\n" + program), reasons: "encoding-unknown"},
	{name: "encoding missing", text: mixed("Content-Type: application/octet-stream\n\n" + program), reasons: "encoding-guessed"},
	{name: "said to be quoted-printable and base64", text: mixed("Content-Transfer-Encoding: quoted-printable\nContent-Transfer-Encoding: base64\n\n" + program), reasons: "encoding-contradicts"},
	{name: "as it stands", text: mixed("Content-Transfer-Encoding: 8bit\n\n" + exe)},
	{name: "said to be base64, as it stands", text: mixed("Content-Transfer-Encoding: base64\n\n" + exe), reasons: "base64-junk"},
	{name: "base64 with junk", text: mixed("Content-Transfer-Encoding: base64\n\n" + junk(program)), reasons: "base64-junk"},
	{name: "base64 in other lines", text: mixed("Content-Transfer-Encoding: base64\n\n" + strings.Join(strings.SplitAfter(program, "A"), "\n"))},
	{name: "base64 with blanks", text: mixed("Content-Transfer-Encoding: base64\n\n" + strings.ReplaceAll(program, "A", "A \t"))},
	{name: "base64 padded in each line", text: mixed("Content-Transfer-Encoding: base64\n\n" + padded(exe)), reasons: "base64-padding"},
	{name: "base64 with pads between", text: mixed("Content-Transfer-Encoding: base64\n\n" + strings.ReplaceAll(program, "A", "A=")), reasons: "base64-padding"},
	{name: "base64 that begins with a pad", text: mixed("Content-Transfer-Encoding: base64\n\n====" + program), reasons: "base64-padding"},
	{name: "base64 behind a line of text", text: mixed("Content-Transfer-Encoding: base64\n\nPlease see the file.\n" + program), reasons: "base64-junk"},
	{name: "base64 for URLs", text: mixed("Content-Transfer-Encoding: base64\n\n" + strings.NewReplacer("+", "-", "/", "_").Replace(program)), reasons: "base64-url"},
	{name: "base64 without its end", text: mixed("Content-Transfer-Encoding: base64\n\n" + strings.TrimRight(program, "=\n")[:205])},
	{name: "quoted-printable", text: mixed("Content-Transfer-Encoding: quoted-printable\n\n" + quoted(exe))},
	{name: "quoted-printable in lower case", text: mixed("Content-Transfer-Encoding: quoted-printable\n\n" + strings.ToLower(quotedAll(exe))), reasons: "quoted-lower"},
	{name: "quoted-printable with soft breaks", text: mixed("Content-Transfer-Encoding: quoted-printable\n\n" + strings.Join(strings.Split(quotedAll(exe), "=0"), "=\n=0"))},
	{name: "quoted-printable, soft breaks with blanks", text: mixed("Content-Transfer-Encoding: quoted-printable\n\n" + strings.Join(strings.Split(quotedAll(exe), "=0"), "= \t\n=0")), reasons: "quoted-blanks"},
	{name: "quoted-printable with a bad escape", text: mixed("Content-Transfer-Encoding: quoted-printable\n\n=" + quoted(exe)), reasons: "quoted-bad"},

	// Names alone.
	{name: "name", byName: true, text: named("Content-Type: text/plain; name=a.exe\n")},
	{name: "file name", byName: true, text: named("Content-Disposition: attachment; filename=a.exe\n")},
	{name: "name in the wrong field", byName: true, text: named("Content-Disposition: attachment; name=a.exe\n")},
	{name: "name of a text/plain against a file name", byName: true, text: named("Content-Type: text/plain; name=a.exe\nContent-Disposition: attachment; filename=a.txt\n"), reasons: "name-contradicts"},
	{name: "disposition twice", byName: true, text: named("Content-Disposition: attachment; filename=a.txt\nContent-Disposition: attachment; filename=a.exe\n"), reasons: "name-contradicts"},
	{name: "file name twice", byName: true, text: named("Content-Disposition: attachment; filename=a.txt; filename=a.exe\n"), reasons: "name-contradicts"},
	{name: "file name with a blank, without quotes", byName: true, text: named("Content-Disposition: attachment; filename=a b.exe\n")},
	{name: "file name in a comment", byName: true, text: named("Content-Disposition: attachment (; filename=a.exe)\n")},
	{name: "file name behind an open quote", byName: true, text: named("Content-Disposition: attachment; x=\"y; filename=a.exe\n")},
	{name: "file name without its quote", byName: true, text: named("Content-Disposition: attachment; filename=\"a.exe\n")},
	{name: "file name with a quote in it", byName: true, text: named("Content-Disposition: attachment; filename=\"a.txt\".exe\n")},
	{name: "file name that ends at its quote", byName: true, text: named("Content-Disposition: attachment; filename=\"a.exe\".txt\n")},
	{name: "file name with a comment in it", byName: true, text: named("Content-Disposition: attachment; filename=a.(x)exe\n")},
	{name: "file name in a line of its own", byName: true, text: named("Content-Disposition: attachment;\nfilename=\"a.exe\"\n"), reasons: "header-ends-at-garbage"},
	{name: "file name folded in its middle", byName: true, text: named("Content-Disposition: attachment; filename=\"a.\n exe\"\n")},
	{name: "encoded word", byName: true, text: named("Content-Disposition: attachment; filename=\"=?utf-8?B?YS5leGU=?=\"\n")},
	{name: "encoded words in pieces", byName: true, text: named("Content-Disposition: attachment; filename=\"=?utf-8?Q?a=2E?=\n =?utf-8?Q?exe?=\"\n")},
	{name: "encoded word in UTF-16", byName: true, text: named("Content-Disposition: attachment; filename=\"=?utf-16be?Q?=00a=00.=00e=00x=00e?=\"\n")},
	{name: "encoded word in UTF-7", byName: true, text: named("Content-Disposition: attachment; filename=\"=?utf-7?Q?a+AC4-exe?=\"\n")},
	{name: "encoded word inside RFC 2231", byName: true, text: named("Content-Disposition: attachment; filename*=utf-8''%3D%3Futf-8%3FB%3FYS5leGU%3D%3F%3D\n")},
	{name: "a field that is an encoded word", byName: true, text: named("Content-Disposition: =?us-ascii?q?attachment=3B_filename=3Da=2Eexe?=\n")},
	{name: "a type that is an encoded word", byName: true, text: named("Content-Type: =?us-ascii?q?text/plain=3B_name=3Da=2Eexe?=\n")},
	{name: "RFC 2231", byName: true, text: named("Content-Disposition: attachment; filename*=utf-8''a%2Eexe\n")},
	{name: "RFC 2231 without a charset", byName: true, text: named("Content-Disposition: attachment; filename*=a%2Eexe\n")},
	{name: "RFC 2231 syntax without the star", byName: true, text: named("Content-Disposition: attachment; filename=\"utf-8''a%2Eexe\"\n")},
	{name: "RFC 2231 against a plain name", byName: true, text: named("Content-Disposition: attachment; filename=a.txt; filename*=utf-8''a.exe\n"), reasons: "name-contradicts"},
	{name: "RFC 2231 in pieces", byName: true, text: named("Content-Disposition: attachment; filename*0=a.e; filename*1=xe\n")},
	{name: "RFC 2231 in pieces, encoded", byName: true, text: named("Content-Disposition: attachment; filename*0*=utf-8''a%2E; filename*1*=%65xe\n")},
	{name: "RFC 2231 out of order", byName: true, text: named("Content-Disposition: attachment; filename*1=exe; filename*0=a.\n")},
	{name: "RFC 2231 read as it comes", byName: true, text: named("Content-Disposition: attachment; filename*1=a.; filename*0=exe\n")},
	{name: "RFC 2231 with a gap", byName: true, text: named("Content-Disposition: attachment; filename*0=a.; filename*2=exe\n")},
	{name: "RFC 2231 from 1", byName: true, text: named("Content-Disposition: attachment; filename*1=a.; filename*2=exe\n")},
	{name: "RFC 2231 with a piece twice", byName: true, text: named("Content-Disposition: attachment; filename*0=a.; filename*1=txt; filename*1=exe\n")},
	{name: "RFC 2231 name of the type", byName: true, text: named("Content-Type: x/y; name*0=a.; name*1=exe\nContent-Disposition: attachment; filename=a.txt\n"), reasons: "name-contradicts"},
	{name: "RFC 2231 with leading zeros", byName: true, text: named("Content-Disposition: attachment; filename*00=a.; filename*01=exe\n")},

	// Files in texts.
	{name: "uuencode", text: mixed("\nSee below.\n\nbegin 644 a.exe\n" + uu(exe) + "end\n"), reasons: "in-text"},
	{name: "uuencode, its name", byName: true, text: mixed("\nbegin 644 a.exe\n" + uu("x") + "end\n")},
	{name: "uuencode in a reply", text: mixed("\n> begin 644 a.exe\n> " + strings.ReplaceAll(strings.TrimSuffix(uu(exe), "\n"), "\n", "\n> ") + "\n> end\n")},
	{name: "uuencode without its end", text: mixed("\nbegin 666 a.exe\n" + uu(exe))},
	{name: "uuencode in base64", text: mixed("Content-Transfer-Encoding: base64\n\n" + b64("begin 644 a.exe\n"+uu(exe)+"end\n"))},
	{name: "uuencode as an encoding", text: mixed("Content-Transfer-Encoding: x-uuencode\n\nbegin 644 a.exe\n" + uu(exe) + "end\n")},
	{name: "uuencode as an encoding, without begin", text: mixed("Content-Transfer-Encoding: x-uuencode\n\n" + uu(exe) + "end\n")},
	{name: "xxencode", text: mixed("\nbegin 644 a.exe\n" + xx(exe) + "end\n")},
	{name: "uuencode in the preamble", text: strings.Replace(mixed(""), "\n\n--B", "\n\nbegin 644 a.exe\n"+uu(exe)+"end\n--B", 1)},
	{name: "uuencode with base64", text: mixed("\nbegin-base64 644 a.exe\n" + program + "====\n")},
	{name: "yEnc", text: mixed("\n=ybegin line=128 size=222 name=a.exe\n" + yEnc(exe) + "\n=yend size=222\n")},
	{name: "yEnc, its name", byName: true, text: mixed("\n=ybegin line=128 size=1 name=a.exe\n" + yEnc("x") + "\n=yend size=1\n")},
	{name: "BinHex", text: mixed("\n(This file must be converted with BinHex 4.0)\n\n:" + binHex("a.exe", exe) + ":\n")},
	{name: "BinHex, its name", byName: true, text: mixed("\n(This file must be converted with BinHex 4.0)\n\n:" + binHex("a.exe", "x") + ":\n")},
}

// named is a message with a harmless part under a header.
func named(fields string) string { return mixed(fields + "\nharmless\n") }

func junk(s string) string {
	var b strings.Builder
	for i, c := range s {
		b.WriteRune(c)
		if i%5 == 4 {
			b.WriteString("!\x01*")
		}
	}
	return b.String()
}

// padded is base64 whose lines each are an encoding of their own.
func padded(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		n := min(31, len(s))
		b.WriteString(b64(s[:n]))
		s = s[n:]
	}
	return b.String()
}

func quoted(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c > ' ' && c < 127 && c != '=' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

func quotedAll(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "=%02X", s[i])
	}
	return b.String()
}

func uu(s string) string {
	return uuWith(s, func(v byte) byte {
		return []byte("`!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_")[v]
	})
}

func xx(s string) string { return uuWith(s, func(v byte) byte { return xxLetters[v] }) }

func uuWith(s string, letter func(byte) byte) string {
	var b strings.Builder
	for len(s) > 0 {
		n := min(45, len(s))
		line := s[:n] + "\x00\x00"
		b.WriteByte(letter(byte(n)))
		for i := 0; i < n; i += 3 {
			b.Write([]byte{letter(line[i] >> 2), letter(line[i]<<4&63 | line[i+1]>>4), letter(line[i+1]<<2&63 | line[i+2]>>6), letter(line[i+2] & 63)})
		}
		b.WriteByte('\n')
		s = s[n:]
	}
	b.WriteString(string(letter(0)) + "\n")
	return b.String()
}

func yEnc(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i] + 42; c {
		case 0, '\n', '\r', '=', '.':
			b.Write([]byte{'=', c + 64})
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func binHex(name, data string) string {
	n := len(data)
	file := string([]byte{byte(len(name))}) + name + "\x00APPL????\x00\x00" +
		string([]byte{0, 0, byte(n >> 8), byte(n), 0, 0, 0, 0}) + "\x00\x00" + data + "\x00\x00\x00\x00"
	file = strings.ReplaceAll(file, "\x90", "\x90\x00")
	var runs strings.Builder
	for i := 0; i < len(file); {
		k := i + 1
		for k < len(file) && file[k] == file[i] && k-i < 255 {
			k++
		}
		runs.WriteByte(file[i])
		if k-i > 3 && file[i] != 0x90 {
			runs.Write([]byte{0x90, byte(k - i)})
		} else {
			k = i + 1
		}
		i = k
	}
	var b strings.Builder
	acc, have, column := 0, 0, 1
	for i := range runs.Len() {
		acc, have = acc<<8|int(runs.String()[i]), have+8
		for have >= 6 {
			have -= 6
			b.WriteByte(binHexLetters[acc>>have&63])
			if column++; column%64 == 0 {
				b.WriteByte('\n')
			}
		}
	}
	if have > 0 {
		b.WriteByte(binHexLetters[acc<<(6-have)&63])
	}
	return b.String()
}

// TestTricks hides a program in each way, and finds it.
func TestTricks(t *testing.T) {
	for _, x := range tricks {
		t.Run(x.name, func(t *testing.T) {
			m := read(t, x.text)
			checkTree(t, x.text, m)
			if len(m.Exceeded) > 0 {
				t.Errorf("beyond limits: %v", m.Exceeded)
			}
			if x.byName {
				if exts := extensions(m); !slices.Contains(exts, "exe") {
					t.Errorf("extensions: %v", exts)
				}
			} else if _, _, ok := holder(t, m, begins(exe[:150])); !ok {
				t.Error("the program is not found")
			}
			if x.reasons != "" && !slices.Contains(findings(m), x.reasons) {
				t.Errorf("findings: %v, not %s", findings(m), x.reasons)
			}
			if t.Failed() {
				t.Logf("%s\n%s", x.text, dump(t, m))
			}
		})
	}
}
