package execban

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/worker"
)

// BenchmarkMessage judges messages in a worker and in this process. "overhead-us"
// is what the worker costs more, "x-read" how many times as long the whole
// takes as reading the message's bytes once.
func BenchmarkMessage(b *testing.B) {
	plain := func(n int) string {
		return "From: a@example.net\nTo: r@example.org\nSubject: hello\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n" + strings.Repeat("All work and no play makes Jack a dull boy, they say.\n", n/54)
	}
	html := func() string {
		return "From: a@example.net\nMIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n" + quoted("<html><body>"+strings.Repeat("<p style=\"color: #333\">All work &amp; no play makes Jack a dull boy, schöne Grüße.</p>\n", 1200)+"</body></html>")
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name string
		text func() string
	}{
		{"text 4 KiB", func() string { return plain(4 << 10) }},
		{"HTML 100 KiB", html},
		{"attachment 10 MiB", func() string { return attached("report.pdf", pdf(r, 15<<20/2)) }},
		{"zip 20 MiB", func() string {
			photo := "\xff\xd8\xff\xe0" + string(noise(r, 15<<20/2))
			return attached("photos.zip", zipFiles(b, [2]string{"1.jpg", photo}, [2]string{"2.jpg", photo}))
		}},
	} {
		text := sync.OnceValue(c.text)
		var hereTime time.Duration
		b.Run(c.name+"/here", func(b *testing.B) {
			hereTime = bench(b, newFilter(b, ""), inFile(b, text()))
		})
		b.Run(c.name+"/worker", func(b *testing.B) {
			pool := newPool(b, worker.Options{Directory: b.TempDir()})
			f, m := newFilterOn(b, pool, ""), inFile(b, text())
			judgeMessage(b, f, m)
			there := bench(b, f, m)
			b.ReportMetric(float64((there-hereTime).Nanoseconds())/1000, "overhead-us")
			start, buffer := time.Now(), make([]byte, 64<<10)
			for off := int64(0); off < m.Size(); off += int64(len(buffer)) {
				m.Reader().ReadAt(buffer, off) //nolint:errcheck // it was read before
			}
			b.ReportMetric(float64(there)/float64(max(time.Since(start), 1)), "x-read")
		})
	}
}

// inFile is a message as an entrance has it: a large body in a spool file.
func inFile(b *testing.B, text string) message.Message {
	b.Helper()
	spool, err := message.OpenDirectory(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	m, err := message.Read(strings.NewReader(text), message.Options{Spool: spool})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Body().Release() })
	return m
}

func judgeMessage(b *testing.B, f *Filter, m message.Message) {
	v, err := f.Message(context.Background(), transaction(), m)
	if err != nil || v.Action != pipeline.Continue {
		b.Fatal(v, err)
	}
}

func bench(b *testing.B, f *Filter, m message.Message) time.Duration {
	b.SetBytes(m.Size())
	b.ReportAllocs()
	for b.Loop() {
		judgeMessage(b, f, m)
	}
	return b.Elapsed() / time.Duration(b.N)
}

// BenchmarkEvasion judges one message of each structure: what hostile mail costs
// compared with the same file attached plainly.
func BenchmarkEvasion(b *testing.B) {
	f := newFilter(b, "")
	h := payloads(b)[1]
	var plain time.Duration
	for i, s := range structures() {
		text := s.make(newRand(uint64(i)), encodings()[0].make(nil, namings()[0].make(nil, "a.bin"), h))
		m := message.FromString(text)
		b.Run(strings.ReplaceAll(s.name, " ", "_"), func(b *testing.B) {
			for b.Loop() {
				if _, err := f.Message(context.Background(), transaction(), m); err != nil {
					b.Fatal(err)
				}
			}
			each := b.Elapsed() / time.Duration(b.N)
			if i == 0 {
				plain = each
			}
			b.ReportMetric(float64(each)/float64(max(plain, 1)), "x-plain")
		})
	}
}

// BenchmarkParallel is how many messages of 4 KiB go through a pool at once.
func BenchmarkParallel(b *testing.B) {
	f := newFilterOn(b, newPool(b, worker.Options{Size: max(runtime.NumCPU(), 2)}), "")
	m := inFile(b, "Subject: x\n\n"+strings.Repeat("All work and no play makes Jack a dull boy.\n", 90))
	b.SetBytes(m.Size())
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := f.Message(context.Background(), transaction(), m); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	})
}
