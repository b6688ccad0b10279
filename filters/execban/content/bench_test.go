package content

import (
	"bytes"
	"strings"
	"testing"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
)

// BenchmarkIdentify looks at what mail is full of.
func BenchmarkIdentify(b *testing.B) {
	letter := []byte(strings.Repeat("An ordinary line of an ordinary letter, and nothing else.\r\n", 70))
	for _, c := range []struct {
		name    string
		content []byte
	}{
		{"letter-4KiB", letter},
		{"page-100KiB", []byte("<html><body>" + strings.Repeat("<p>An ordinary paragraph of a page.</p>\r\n", 2500))},
		{"photo-10MiB", append([]byte("\xff\xd8\xff\xe0\x00\x10JFIF\x00"), make([]byte, 10<<20)...)},
		{"pdf-10MiB", append([]byte("%PDF-1.7\n"), make([]byte, 10<<20)...)},
		{"compound-1MiB", archivetest.OLE([2]string{"WordDocument", strings.Repeat("text", 256<<10)})},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.content)))
			b.ReportAllocs()
			for b.Loop() {
				if got := Identify("", bytes.NewReader(c.content), int64(len(c.content))); len(got) != 0 {
					b.Fatal(got)
				}
			}
		})
	}
}

// BenchmarkByName reads a plain name and one in disguise.
func BenchmarkByName(b *testing.B) {
	for name, s := range map[string]string{"plain": "report of the year.pdf", "disguised": "invoice.pdf\u202eexe.\u200b"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ByName(s)
			}
		})
	}
}
