package message

import (
	"bytes"
	"errors"
	"io"
	"net/mail"
	"strings"
	"testing"
	"time"
)

// benchMessage is a message of about size bytes as they come from the net.
func benchMessage(size int) string {
	head := strings.Repeat("Received: from mx.example.org (192.0.2.1)\n  by mail.example.com with ESMTP; 1 Jan 2026 00:00:00 +0000\n", 6) +
		"From: Somebody <somebody@example.org>\nTo: other@example.com\nSubject: =?utf-8?q?a_subject?=\n" +
		"Message-ID: <1@example.org>\nDate: Thu, 1 Jan 2026 00:00:00 +0000\nMIME-Version: 1.0\nContent-Type: text/plain\n\n"
	line := strings.Repeat("0123456789", 7) + "\n"
	return head + strings.Repeat(line, (size-len(head))/len(line)+1)
}

// against times ours, having timed on the same input what it is compared with:
// x-floor is how many times as long ours takes.
func against(b *testing.B, size int, floor, ours func() error) {
	b.Helper()
	b.StopTimer()
	b.SetBytes(int64(size))
	b.ReportAllocs()
	loop := func(f func() error) {
		for range b.N {
			if err := f(); err != nil {
				b.Fatal(err)
			}
		}
	}
	begin := time.Now()
	loop(floor)
	took := time.Since(begin)
	b.ResetTimer()
	b.StartTimer()
	loop(ours)
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed())/float64(max(took, 1)), "x-floor")
}

// readPlainly is what net/mail needs for the same: head parsed, body in memory.
func readPlainly(in string) func() error {
	return func() error {
		m, err := mail.ReadMessage(strings.NewReader(in))
		if err != nil {
			return err
		}
		_, err = io.ReadAll(m.Body)
		return err
	}
}

func benchRead(b *testing.B, in string, o Options, floor func() error) {
	against(b, len(in), floor, func() error {
		m, err := Read(strings.NewReader(in), o)
		if err != nil {
			return err
		}
		return m.Body().Release()
	})
}

// The floor of BenchmarkRead is net/mail, which makes nothing canonical.
func BenchmarkRead(b *testing.B) {
	for name, size := range map[string]int{"4KiB": 4 << 10, "1MiB": 1 << 20} {
		in := benchMessage(size)
		b.Run(name, func(b *testing.B) { benchRead(b, in, Options{}, readPlainly(in)) })
		crlf := toCRLF(in)
		b.Run(name+"-CRLF", func(b *testing.B) { benchRead(b, crlf, Options{}, readPlainly(crlf)) })
	}
}

// The floor of BenchmarkReadSpooled is copying the message into a file.
func BenchmarkReadSpooled(b *testing.B) {
	spool, err := OpenDirectory(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	in := benchMessage(1 << 20)
	benchRead(b, in, Options{Spool: spool}, func() error {
		name, f, err := spool.Create()
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{strings.NewReader(in)}, make([]byte, 32<<10))
		return errors.Join(err, f.Close(), spool.Remove(name))
	})
}

// The floor of BenchmarkEdit is joining the new field and the head as text.
func BenchmarkEdit(b *testing.B) {
	h := FromString(benchMessage(4 << 10)).Head()
	text := h.String()
	edit := FieldEdit{Op: Add, Name: "X-Spam", Value: "no"}
	sink := 0
	against(b, len(text), func() error {
		sink += len(bytes.Join([][]byte{[]byte("X-Spam: no\n"), []byte(text)}, nil))
		return nil
	}, func() error {
		edited, err := h.Edit(edit)
		sink += edited.Len()
		return err
	})
	if sink == 0 {
		b.Error("nothing was made")
	}
}

// The floor of BenchmarkCRLF is reading the message as it stands.
func BenchmarkCRLF(b *testing.B) {
	m := FromString(benchMessage(1 << 20))
	buf := make([]byte, 32<<10)
	discard := struct{ io.Writer }{io.Discard}
	against(b, int(m.Size()), func() error {
		_, err := io.CopyBuffer(discard, struct{ io.Reader }{m.Reader()}, buf)
		return err
	}, func() error {
		_, err := io.CopyBuffer(discard, m.CRLF(), buf)
		return err
	})
}
