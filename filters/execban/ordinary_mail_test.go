package execban

import (
	"fmt"
	"math/rand/v2"
	"mime/quotedprintable"
	"net/url"
	"strings"
	"testing"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
)

// writer makes an ordinary message, as one program writes it.
type writer struct {
	name string
	make func(w *mailer) string
}

// mailer is what a writer needs.
type mailer struct {
	t testing.TB
	*rand.Rand
}

func (w *mailer) attachment() attachment { return pick(w.Rand, attachments)(w.t, w.Rand) }

func quoted(s string) string {
	var b strings.Builder
	q := quotedprintable.NewWriter(&b)
	q.Write([]byte(s)) //nolint:errcheck // it is memory
	q.Close()
	return b.String()
}

func (w *mailer) head(more string) string {
	subject := []string{"Re: your invoice", "=?UTF-8?Q?Gr=C3=BC=C3=9Fe?=", "Fwd: report.exe is gone", "=?iso-2022-jp?B?GyRCMnE1RBsoQg==?=", "[list] begin", ""}[w.IntN(6)]
	return fmt.Sprintf("Return-Path: <anna@example.net>\nReceived: from mx.example.net (mx.example.net [192.0.2.%d])\n\tby mx.example.org with ESMTPS;\n\tMon, 2 Nov 2026 10:00:00 +0000\n"+
		"DKIM-Signature: v=1; a=rsa-sha256; d=example.net; s=s1;\n\tb=%s\nFrom: Anna Muster <anna@example.net>\nTo: \"Meier, Bob\" <bob@example.org>\nSubject: %s\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nMessage-ID: <%x@example.net>\nMIME-Version: 1.0\n%s",
		1+w.IntN(250), strings.TrimSpace(lines(noise(w.Rand, 48))), subject, w.Uint64(), more)
}

// text is a text part in one of the usual encodings.
func (w *mailer) text(subtype, body string) string {
	switch w.IntN(3) {
	case 0:
		return "Content-Type: text/" + subtype + "; charset=\"utf-8\"\nContent-Transfer-Encoding: quoted-printable\n\n" + quoted(body) + "\n"
	case 1:
		return "Content-Type: text/" + subtype + "; charset=UTF-8\nContent-Transfer-Encoding: base64\n\n" + lines([]byte(body)) + "\n"
	}
	return "Content-Type: text/" + subtype + "; charset=utf-8; format=flowed\nContent-Transfer-Encoding: 8bit\n\n" + body + "\n"
}

func (w *mailer) html() string {
	return "<html><head><meta http-equiv=\"Content-Type\" content=\"text/html; charset=utf-8\"><style>td { color: #333; }</style></head><body><p>" + words(w.Rand, 80+w.IntN(300)) + "</p><a href=\"https://example.com/setup.exe\">setup</a></body></html>"
}

// parts joins parts as a multipart; preamble may be "".
func parts(typ, boundary, preamble string, all ...string) string {
	var b strings.Builder
	b.WriteString("Content-Type: multipart/" + typ + "; boundary=\"" + boundary + "\"\n\n" + preamble)
	for _, p := range all {
		b.WriteString("\n--" + boundary + "\n" + p)
	}
	b.WriteString("\n--" + boundary + "--\n")
	return b.String()
}

// file is a part with a file, its name written by the program's habit.
func (w *mailer) file(a attachment, habit func(name string) (typ, disposition string)) string {
	typ, disposition := habit(a.name)
	return "Content-Type: " + a.typ + typ + "\nContent-Disposition: attachment" + disposition + "\nContent-Transfer-Encoding: base64\n\n" + lines(a.content)
}

func quotedName(n string) (string, string) {
	return ";\n\tname=\"" + n + "\"", "; filename=\"" + n + "\"; size=1234;\n\tcreation-date=\"Mon, 02 Nov 2026 10:00:00 GMT\""
}

func foreignName(n string) (string, string) {
	n = "Übersicht " + n
	return "; name=\"=?UTF-8?B?" + strings.TrimSpace(strings.ReplaceAll(lines([]byte(n)), "\n", "")) + "?=\"", "; filename*=UTF-8''" + url.PathEscape(n)
}

func splitName(n string) (string, string) {
	n = url.PathEscape("Anlage äöü zum Schreiben vom zweiten November " + n)
	half := strings.LastIndexByte(n[:len(n)/2], '%')
	return ";\n name*0*=UTF-8''" + n[:half] + ";\n name*1*=" + n[half:], ";\n filename*0*=UTF-8''" + n[:half] + ";\n filename*1*=" + n[half:]
}

func rawName(n string) (string, string) {
	return "; name=\"Gruß " + n + "\"", "; filename=\"Gruß " + n + "\""
}

func (w *mailer) anyName() func(string) (string, string) {
	return []func(string) (string, string){quotedName, foreignName, splitName, rawName}[w.IntN(4)]
}

func (w *mailer) alternative(boundary string) string {
	return parts("alternative", boundary, "", w.text("plain", words(w.Rand, 60)), w.text("html", w.html()))
}

// simple is a message with a text and files, as programs with this boundary and
// these names write it.
func simple(more, preamble, boundary string, habit func(string) (string, string)) func(*mailer) string {
	return func(w *mailer) string {
		b := fmt.Sprintf(boundary, w.Uint64())
		all := []string{w.alternative(b + "a")}
		for range 1 + w.IntN(3) {
			h := habit
			if h == nil {
				h = w.anyName()
			}
			all = append(all, w.file(w.attachment(), h))
		}
		return w.head(more) + parts("mixed", b, preamble, all...)
	}
}

func (w *mailer) inline(cid string) string {
	a := attachments[1](w.t, w.Rand)
	return "Content-Type: image/png; name=\"" + a.name + "\"\nContent-ID: <" + cid + ">\nContent-Location: https://example.com/logo.com/image001.png\nContent-Description: from example.com\nContent-Disposition: inline; filename=\"" + a.name + "\"\nContent-Transfer-Encoding: base64\n\n" + lines(a.content)
}

// armor is what PGP writes.
func (w *mailer) armor(kind string) string {
	return "-----BEGIN PGP " + kind + "-----\nVersion: GnuPG v2\n\n" + lines(noise(w.Rand, 400)) + "=AbCd\n-----END PGP " + kind + "-----\n"
}

// writers are the programs and occasions.
var writers = []writer{
	{"plain text", func(w *mailer) string { return w.head("") + w.text("plain", words(w.Rand, 200)) }},
	{"no MIME at all", func(w *mailer) string {
		return "From: a@example.net\nSubject: hi\n\n" + words(w.Rand, 100) + "begin at nine\nend\n-- \nAnna\n"
	}},
	{"cron", func(w *mailer) string {
		return "From: root@example.org (Cron Daemon)\nTo: root@example.org\nSubject: Cron <root@host> /usr/bin/backup.sh\n\n/usr/bin/backup.sh: line 3: disk full\n"
	}},
	{"Outlook", simple("X-Mailer: Microsoft Outlook 16.0\nThread-Index: AQHZ\n", "This is a multi-part message in MIME format.\n", "----=_NextPart_000_%016X_01DA", quotedName)},
	{"Exchange", simple("X-MS-Has-Attach: yes\nX-Originating-IP: [192.0.2.1]\n", "", "_004_%016X_", foreignName)},
	{"Outlook, winmail.dat", func(w *mailer) string {
		a := w.attachment()
		return w.head("") + parts("mixed", "----=_NextPart_1", "This is a multi-part message in MIME format.\n", w.text("plain", words(w.Rand, 30)),
			w.file(attachment{"winmail.dat", "application/ms-tnef", archivetest.TNEF("short.doc", a.name, a.content, nil)}, quotedName))
	}},
	{"Apple Mail", simple("X-Mailer: Apple Mail (2.3774.600.62)\nX-Uniform-Type-Identifier: com.apple.mail-draft\n", "", "Apple-Mail=_%016X-4A5B", splitName)},
	{"iPhone", func(w *mailer) string {
		return w.head("X-Mailer: iPhone Mail (22A3354)\n") + parts("mixed", "Apple-Mail-1", "", w.text("plain", "\n"), w.file(attachments[0](w.t, w.Rand), quotedName), w.text("plain", "\n\nSent from my iPhone\n"))
	}},
	{"Gmail", simple("X-Gm-Message-State: AOJu0Y\n", "", "000000000000%016x", quotedName)},
	{"Thunderbird", simple("User-Agent: Mozilla Thunderbird\nContent-Language: en-US\n", "This is a multi-part message in MIME format.\n", "------------%016X", splitName)},
	{"mutt", simple("User-Agent: Mutt/2.2.12\n", "", "%016xAbC/+=", rawName)},
	{"other programs", simple("X-Mailer: some webmail\n", "", "=_%x", nil)},
	{"pictures in HTML", func(w *mailer) string {
		return w.head("") + parts("related", "rel1", "", w.alternative("alt1"), w.inline("logo@example.com"), w.inline("foot@example.com"))
	}},
	{"newsletter", func(w *mailer) string {
		return w.head("List-Unsubscribe: <https://example.com/u>\nPrecedence: bulk\n") + w.alternative("----=_Part_1234_5678.90")
	}},
	{"mailing list", func(w *mailer) string {
		return w.head("List-Id: <list.example.com>\nX-Mailman-Version: 2.1.39\n") + parts("mixed", "===============1234567890==", "", w.text("plain", words(w.Rand, 60)), w.file(w.attachment(), w.anyName()),
			"Content-Type: text/plain; charset=\"us-ascii\"\nMIME-Version: 1.0\nContent-Transfer-Encoding: 7bit\nContent-Disposition: inline\n\n_______________________________________________\nlist mailing list\nlist@example.com\n")
	}},
	{"digest", func(w *mailer) string {
		one := w.head("") + w.text("plain", words(w.Rand, 40))
		two := w.head("") + parts("mixed", "inner", "", w.text("plain", words(w.Rand, 20)), w.file(w.attachment(), quotedName))
		return w.head("") + parts("mixed", "outer", "", "Content-Type: text/plain\nContent-Description: list Digest, Vol 1\n\nToday's topics:\n\n   1. begin (Anna)\n",
			parts("digest", "dig", "", "\n"+one, "Content-Type: message/rfc822\n\n"+two), "Content-Type: text/plain\nContent-Description: Digest Footer\n\n____\n")
	}},
	{"plain digest", func(w *mailer) string {
		return w.head("") + "Content-Type: text/plain\n\nToday's Topics:\n\n   1. one\n\n----------------------------------------------------------------------\n\nMessage: 1\nDate: Mon, 2 Nov 2026\nFrom: a@b\nSubject: one\n\n" + words(w.Rand, 60) + "\n------------------------------\n\nEnd of list Digest\n"
	}},
	{"PGP/MIME, signed", func(w *mailer) string {
		return w.head("") + parts("signed; micalg=pgp-sha512;\n protocol=\"application/pgp-signature\"", "sig1", "This is an OpenPGP/MIME signed message (RFC 4880 and 3156)\n",
			parts("mixed", "in1", "", w.text("plain", words(w.Rand, 40)), w.file(w.attachment(), w.anyName())),
			"Content-Type: application/pgp-signature; name=\"OpenPGP_signature.asc\"\nContent-Description: OpenPGP digital signature\nContent-Disposition: attachment; filename=\"OpenPGP_signature.asc\"\n\n"+w.armor("SIGNATURE"))
	}},
	{"PGP/MIME, encrypted", func(w *mailer) string {
		return w.head("") + parts("encrypted;\n protocol=\"application/pgp-encrypted\"", "enc1", "This is an OpenPGP/MIME encrypted message (RFC 4880 and 3156)\n",
			"Content-Type: application/pgp-encrypted\nContent-Description: PGP/MIME version identification\n\nVersion: 1\n",
			"Content-Type: application/octet-stream; name=\"encrypted.asc\"\nContent-Description: OpenPGP encrypted message\nContent-Disposition: inline; filename=\"encrypted.asc\"\n\n"+w.armor("MESSAGE"))
	}},
	{"PGP in the text", func(w *mailer) string {
		return w.head("") + "Content-Type: text/plain\n\n-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n" + words(w.Rand, 40) + w.armor("SIGNATURE") + "\n" + w.armor("PUBLIC KEY BLOCK")
	}},
	{"S/MIME, signed", func(w *mailer) string {
		return w.head("") + parts("signed; protocol=\"application/pkcs7-signature\"; micalg=sha-256", "----=_smime", "This is a cryptographically signed message in MIME format.\n",
			w.text("plain", words(w.Rand, 40)), w.file(attachment{"smime.p7s", "application/pkcs7-signature", append([]byte("\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0\x80"), noise(w.Rand, 2000)...)}, quotedName))
	}},
	{"S/MIME, encrypted", func(w *mailer) string {
		return w.head("") + "Content-Type: application/pkcs7-mime; smime-type=enveloped-data; name=\"smime.p7m\"\nContent-Disposition: attachment; filename=\"smime.p7m\"\nContent-Transfer-Encoding: base64\n\n" +
			lines(append([]byte("\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03\xa0\x80"), noise(w.Rand, 5000)...))
	}},
	{"invitation", func(w *mailer) string {
		ics := "BEGIN:VCALENDAR\r\nPRODID:-//Google Inc//Google Calendar 70.9054//EN\r\nVERSION:2.0\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nDTSTART:20261102T100000Z\r\nSUMMARY:Meeting\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
		return w.head("") + parts("mixed", "cal1", "", parts("alternative", "cal2", "", w.text("plain", words(w.Rand, 20)), w.text("html", w.html()), "Content-Type: text/calendar; charset=\"UTF-8\"; method=REQUEST\nContent-Transfer-Encoding: 7bit\n\n"+strings.ReplaceAll(ics, "\r\n", "\n")),
			w.file(attachment{"invite.ics", "application/ics", []byte(ics)}, quotedName))
	}},
	{"bounce of Postfix", func(w *mailer) string {
		return "From: MAILER-DAEMON@example.net (Mail Delivery System)\nTo: bob@example.org\nSubject: Undelivered Mail Returned to Sender\nMIME-Version: 1.0\nAuto-Submitted: auto-replied\n" +
			parts("report; report-type=delivery-status", "1234.5678/mx.example.net", "This is a MIME-encapsulated message.\n", "Content-Description: Notification\nContent-Type: text/plain; charset=us-ascii\n\nI'm sorry to have to inform you that your message could not be delivered.\n",
				"Content-Description: Delivery report\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mx.example.net\n\nFinal-Recipient: rfc822; x@example.com\nAction: failed\nStatus: 5.1.1\n",
				"Content-Description: Undelivered Message\nContent-Type: message/rfc822\n\n"+simple("", "", "b%x", quotedName)(w))
	}},
	{"bounce of qmail", func(w *mailer) string {
		return "From: MAILER-DAEMON@example.net\nTo: bob@example.org\nSubject: failure notice\n\nHi. This is the qmail-send program at example.net.\nI'm afraid I wasn't able to deliver your message to the following addresses.\nThis is a permanent error; I've given up. Sorry it didn't work out.\n\n<x@example.com>:\n192.0.2.1 does not like recipient.\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <bob@example.org>\n" + simple("", "", "b%x", quotedName)(w)
	}},
	{"bounce of Exim", func(w *mailer) string {
		return "From: Mail Delivery System <Mailer-Daemon@example.net>\nTo: bob@example.org\nSubject: Mail delivery failed: returning message to sender\n\nThis message was created automatically by mail delivery software.\n\nA message that you sent could not be delivered to one or more of its\nrecipients.\n\n------ This is a copy of the message, including all the headers. ------\n\nReturn-path: <bob@example.org>\n" + w.head("") + w.text("plain", words(w.Rand, 40))
	}},
	{"bounce with the head only", func(w *mailer) string {
		return w.head("") + parts("report; report-type=delivery-status", "hd1", "", w.text("plain", "Sorry.\n"), "Content-Type: message/delivery-status\n\nReporting-MTA: dns; x\n", "Content-Type: text/rfc822-headers\n\n"+w.head("Content-Type: multipart/mixed; boundary=\"gone\"\n"))
	}},
	{"read receipt", func(w *mailer) string {
		return w.head("") + parts("report; report-type=disposition-notification", "mdn1", "", w.text("plain", "It was displayed.\n"), "Content-Type: message/disposition-notification\n\nFinal-Recipient: rfc822; bob@example.org\nDisposition: manual-action/MDN-sent-manually; displayed\n")
	}},
	{"spam report", func(w *mailer) string {
		return w.head("") + parts("report; report-type=feedback-report", "arf1", "", w.text("plain", "This is an email abuse report.\n"), "Content-Type: message/feedback-report\n\nFeedback-Type: abuse\nVersion: 1\n", "Content-Type: message/rfc822\nContent-Disposition: inline\n\n"+w.head("")+w.text("html", w.html()))
	}},
	{"forwarded as a file", func(w *mailer) string {
		return w.head("") + parts("mixed", "fw1", "", w.text("plain", "see below\n"), "Content-Type: message/rfc822; name=\"Re: your invoice.eml\"\nContent-Disposition: attachment; filename=\"Re: your invoice.eml\"\n\n"+simple("", "", "b%x", nil)(w))
	}},
	{"forwarded under its subject", func(w *mailer) string {
		name := "Re: see " + pick(w.Rand, []string{"example.com", "www.example.com", "EXAMPLE.COM"})
		return w.head("") + parts("mixed", "fw2", "", w.text("plain", "see below\n"), "Content-Type: message/rfc822; name=\""+name+"\"\nContent-Disposition: attachment; filename=\""+name+"\"\n\n"+simple("", "", "b%x", nil)(w))
	}},
	{"forwarded in the text", func(w *mailer) string {
		return w.head("") + w.text("plain", words(w.Rand, 10)+"\n-----Original Message-----\nFrom: Anna <anna@example.net>\nSent: Monday, November 2, 2026\nTo: Bob\nSubject: RE: x\n\n"+words(w.Rand, 60)+"\n---------- Forwarded message ---------\nFrom: C <c@example.com>\nDate: Mon\nSubject: y\nTo: d\n\n> "+strings.ReplaceAll(words(w.Rand, 50), "\n", "\n> "))
	}},
	{"a text with tables", func(w *mailer) string {
		return w.head("") + "Content-Type: text/plain\n\n" + strings.Repeat("-", 40) + "\n--total\n  12,50\n" + strings.Repeat("=", 70) + "\n--- Summary ---\nbegin 10 of 20\n" + words(w.Rand, 50) + "\n-----BEGIN CERTIFICATE-----\n" + lines(noise(w.Rand, 300)) + "-----END CERTIFICATE-----\n"
	}},
	{"a report of a scanner", func(w *mailer) string {
		return w.head("") + parts("mixed", "lg1", "", w.text("plain", words(w.Rand, 20)), w.file(attachment{"virus.log", "text/plain", []byte("found: C:\\Users\\x\\invoice.exe MZ header; #!/bin/sh in /tmp/x\n")}, quotedName))
	}},
	{"an empty body", func(w *mailer) string { return w.head("Content-Type: text/plain\n") + "\n" }},
	{"headers only", func(w *mailer) string { return "From: a@example.net\nSubject: [EOM]\n" }},
	{"a large PDF", func(w *mailer) string {
		return w.head("") + parts("mixed", "big1", "", w.text("plain", "big\n"), w.file(attachment{"Katalog.pdf", "application/pdf", pdf(w.Rand, 300_000+w.IntN(300_000))}, w.anyName()))
	}},
}
