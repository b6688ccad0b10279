package mime

import (
	"context"
	"encoding/base64"
	"io"
	"mime/multipart"
	"net/mail"
	"strings"
	"testing"
	"time"
)

const benchHead = "Received: from mx.example.org (mx.example.org [192.0.2.1])\n  by mail.example.com with ESMTPS; Thu, 1 Jan 2026 00:00:00 +0000\n" +
	"From: Somebody <somebody@example.org>\nTo: other@example.com\nSubject: =?utf-8?q?a_subject?=\nMessage-ID: <1@example.org>\n" +
	"Date: Thu, 1 Jan 2026 00:00:00 +0000\nMIME-Version: 1.0\n"

// benchText is a plain message of about size bytes.
func benchText(size int) string {
	const line = "It was a dark and stormy night; the rain fell in torrents, except at\n"
	head := benchHead + "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n"
	return head + strings.Repeat(line, (size-len(head))/len(line)+1)
}

// benchHTML is a message with a text and the same in HTML, in quoted-printable.
func benchHTML(size int) string {
	const line = "<p style=3D\"margin:0\">caf=C3=A9 and cr=C3=A8me, <a href=3D\"http://example=\n.org/\">a link</a></p>\n"
	return benchHead + "Content-Type: multipart/alternative; boundary=\"=_abc\"\n\n--=_abc\nContent-Type: text/plain\n\nhello\n\n" +
		"--=_abc\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n" +
		strings.Repeat(line, size/len(line)) + "\n--=_abc--\n"
}

// benchAttachment is a message with an attachment of size bytes.
func benchAttachment(size int) string {
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * i >> 3)
	}
	return benchHead + "Content-Type: multipart/mixed; boundary=\"=_abc\"\n\n--=_abc\nContent-Type: text/plain\n\nhello\n\n" +
		"--=_abc\nContent-Type: application/pdf; name=\"large.pdf\"\nContent-Disposition: attachment; filename=\"large.pdf\"\n" +
		"Content-Transfer-Encoding: base64\n\n" + b64(string(content)) + "\n--=_abc--\n"
}

// readAndDecode reads a message and all contents of all its parts.
func readAndDecode(at io.ReaderAt, size int64) error {
	m, err := Read(context.Background(), at, size, Options{})
	if err != nil {
		return err
	}
	for p := range m.Walk() {
		for _, c := range p.Contents {
			if _, err := io.Copy(io.Discard, c.Open()); err != nil {
				return err
			}
		}
	}
	return m.Close()
}

// floor is the least that a program does who uses the standard library on a
// message that it knows to be well-formed: split it and decode base64.
func floor(text, boundary string) error {
	m, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		return err
	}
	if boundary == "" {
		_, err := io.Copy(io.Discard, m.Body)
		return err
	}
	r := multipart.NewReader(m.Body, boundary)
	for {
		p, err := r.NextPart()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var content io.Reader = p // it decodes quoted-printable itself
		if p.Header.Get("Content-Transfer-Encoding") == "base64" {
			content = base64.NewDecoder(base64.StdEncoding, p)
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return err
		}
	}
}

// BenchmarkRead times reading with all contents decoded; x-floor is how many
// times as long it takes as the standard library's reader, which sees one
// reading and indexes nothing.
func BenchmarkRead(b *testing.B) {
	large := benchAttachment(10 << 20)
	for _, x := range []struct{ name, text, plain, boundary string }{
		{"text-4KiB", benchText(4 << 10), benchText(4 << 10), ""},
		{"html-100KiB", benchHTML(100 << 10), benchHTML(100 << 10), "=_abc"},
		{"attachment-10MiB", large, large, "=_abc"},
		// Every way to decode base64 applies. The standard library would give up at
		// once: it has the message without junk.
		{"junk-10MiB", strings.ReplaceAll(large, "\nA", "\n!=_A"), large, "=_abc"},
	} {
		b.Run(x.name, func(b *testing.B) {
			at, size := strings.NewReader(x.text), int64(len(x.text))
			b.SetBytes(size)
			b.ReportAllocs()
			var took time.Duration
			for b.Loop() {
				if err := readAndDecode(at, size); err != nil {
					b.Fatal(err)
				}
			}
			n := b.N
			begin := time.Now()
			for range n {
				if err := floor(x.plain, x.boundary); err != nil {
					b.Fatal(err)
				}
			}
			took = time.Since(begin)
			b.ReportMetric(float64(b.Elapsed())/float64(max(took, 1)), "x-floor")
		})
	}
}
