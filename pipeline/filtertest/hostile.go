package filtertest

import (
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline/envelope"
)

// Hostile is a message as nobody should send it.
type Hostile struct {
	Name string
	envelope.Envelope
	Text string
}

const (
	plainHead = "Received: from a by b; Mon, 2 Nov 2026 10:00:00 +0000\nSubject: hello\nFrom: <a@example.net>\nTo: <r@example.org>\n"
	plainText = plainHead + "\nThe body of the message.\n"
)

// HostileMessages are the odd shapes that a filter meets in its life. A filter
// that has no reason to fail at one does not fail.
func HostileMessages() []Hostile {
	one := envelope.To("a@example.net", "r@example.org")
	var all []Hostile
	for _, m := range []struct{ name, text string }{
		{"empty", ""},
		{"only an empty line", "\n"},
		{"header only", "Subject: x\n"},
		{"header without its end", "Subject: x"},
		{"header and an empty line", "Subject: x\n\n"},
		{"no header", "\nbody\n"},
		{"body at once", "this is no header\nbody\n"},
		{"folded first line", " folded\nSubject: x\n\nbody\n"},
		{"mbox line", "From a@example.net Mon Nov  2 10:00:00 2026\n" + plainText},
		{"no last line end", plainHead + "\nbody"},
		{"CRLF", strings.ReplaceAll(plainText, "\n", "\r\n")},
		{"bare CR", plainHead + "\na\rb\r\n"},
		{"NUL", "Subject: a\x00b\nX-\x00: y\n\n\x00\x00body\x00\n"},
		{"8-bit", "Subject: \xe4\xf6\xfc\xff\xfe\nX-\x80: \xc3\xa9\n\n\xe4\xf6\xfc \xf0\x9f\x92\xa9\n"},
		{"control bytes", "Subject: \x1b[2J\x07\x7f\n\n\x01\x02\x03\n"},
		{"a line of a mebibyte in the header", "X-Long: " + strings.Repeat("a", 1<<20) + "\n" + plainText},
		{"a line of a mebibyte in the body", plainHead + "\n" + strings.Repeat("a", 1<<20) + "\n"},
		{"10,000 fields", strings.Repeat("X-A: b\n", 10_000) + plainText},
		{"a value of 10,000 folds", "Subject: x\n" + strings.Repeat(" y\n", 10_000) + "\nbody\n"},
		{"empty values", "Subject:\nFrom: \nTo:\n \n\nbody\n"},
		{"every field twice", plainHead + plainText},
		{"unbalanced MIME", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"x\n\n--x\n--x--\n--x\nContent-Type: multipart/mixed; boundary=x\n\n--x\n"},
		{"bad encodings", "Subject: =?utf-8?q?=FF=zz?= =?x?b?!!?=\nContent-Transfer-Encoding: base64\n\n=====\n!!!\n"},
	} {
		all = append(all, Hostile{m.name, one, m.text})
	}
	for _, e := range []struct{ name, sender, rcpt string }{
		{"null sender", "", "r@example.org"},
		{"double bounce", envelope.DoubleBounce, "r@example.org"},
		{"VERP sender", "list-@example.net-@[]", "r@example.org"},
		{"sender without a domain", "a", "r"},
		{"sender of @", "@", "@"},
		{"sender of 1002 bytes", strings.Repeat("a", envelope.MaxAddress), strings.Repeat("@", envelope.MaxAddress)},
		{"domain of 1000 bytes", "a@" + strings.Repeat("a.", 500), "r@" + strings.Repeat(".", 1000)},
		{"quoted and 8-bit addresses", "\"a b\\\"@x\"@example.net", "\xff\xfe@\xc3\xa9.example.org"},
		{"shell in an address", "|/bin/sh -c 'a;b'@`x`", "$(reboot)@example.org"},
	} {
		all = append(all, Hostile{e.name, envelope.To(e.sender, e.rcpt), plainText})
	}
	many := make([]string, 10_000)
	for i := range many {
		many[i] = fmt.Sprintf("r%d@example.org", i)
	}
	return append(
		all,
		Hostile{"no recipients", envelope.To("a@example.net"), plainText},
		Hostile{"the same recipient twice", envelope.To("a@example.net", "r@example.org", "r@example.org"), plainText},
		Hostile{"10,000 recipients", envelope.To("a@example.net", many...), plainText},
	)
}
