package message

import (
	"encoding/base64"
	"io"
	"mime/quotedprintable"
	"strings"
	"testing"
	"time"
)

// BenchmarkToSevenBit converts 4 MiB of text, beside the encoders of the standard
// library on the same bytes, which read nothing and look for no boundaries.
func BenchmarkToSevenBit(b *testing.B) {
	for _, c := range []struct {
		name, line string
		floor      func(w io.Writer) io.WriteCloser
	}{
		{"quoted-printable", "Sehr geehrte Damen und Herren, anbei die Abrechnung f\u00fcr M\u00e4rz mit der Bitte um Kenntnisnahme.\n", func(w io.Writer) io.WriteCloser { return quotedprintable.NewWriter(w) }},
		{"base64", strings.Repeat("\u0431\u0443\u0434\u0435\u0442 ", 8) + "\n", func(w io.Writer) io.WriteCloser { return base64.NewEncoder(base64.StdEncoding, w) }},
	} {
		text := strings.Repeat(c.line, 4<<20/len(c.line))
		m := FromString("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain; charset=utf-8\n\n" + text + "--b--\n")
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				out, err := m.ToSevenBit(nil)
				if err != nil || out.Form() != SevenBit {
					b.Fatal(err)
				}
				out.Body().Release()
			}
			ours := b.Elapsed() / time.Duration(b.N)
			const rounds = 5
			start := time.Now()
			for range rounds {
				w := c.floor(io.Discard)
				io.WriteString(w, text) //nolint:errcheck // it is discarded
				w.Close()
			}
			b.ReportMetric(float64(ours)/float64(time.Since(start)/rounds), "x-of-encoder")
		})
	}
}
