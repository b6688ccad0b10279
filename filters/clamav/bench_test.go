package clamav

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	clamd "github.com/dutchcoders/go-clamd"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/worker"
)

// BenchmarkScan is a message through the filter with the real clamd and a real
// worker; own/clamd is what the filter adds to clamd's own time, the floor: one
// connection, the message in one write, the answer. raw is without the parts,
// library the same by go-clamd.
func BenchmarkScan(b *testing.B) {
	r := newReal(b, "")
	pool := worker.New(worker.Options{Size: 1, Wait: time.Minute})
	defer pool.Close()
	f, raw := newFilter(b, "", r.address), newFilter(b, "parts = \"none\"", r.address)
	f.workers = pool
	path := strings.TrimPrefix(r.address, "unix:")
	part := "--b\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n"
	for _, size := range []struct {
		name  string
		bytes int
	}{{"4KiB", 3 << 10}, {"100KiB", 75 << 10}, {"1MiB", 768 << 10}} {
		b.Run(size.name, func(b *testing.B) {
			ctx := context.Background()
			ways := [...]func(text string) error{
				func(text string) error { return bare(path, text) },
				func(text string) error {
					_, err := f.Message(ctx, nil, message.FromString(text))
					return err
				},
				func(text string) error {
					_, err := raw.Message(ctx, nil, message.FromString(text))
					return err
				},
				func(text string) error { return byLibrary(path, text) },
			}
			var took [len(ways)]time.Duration
			b.SetBytes(int64(size.bytes) * 4 / 3)
			for i := range b.N {
				// The ways take turns in being the first, and clamd, which remembers what it
				// has seen, sees each message once.
				for k := range ways {
					way := (i + k) % len(ways)
					content := make([]byte, size.bytes)
					for j := range content {
						content[j] = byte(i>>(j%4*8)) ^ byte(j*7) ^ byte(j>>8) ^ byte(way)
					}
					text := "From: a@example.net\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n" + part + encoded(content) + "--b--\n"
					start := time.Now()
					if err := ways[way](text); err != nil {
						b.Fatal(err)
					}
					took[way] += time.Since(start)
				}
			}
			n := float64(b.N) * float64(time.Microsecond)
			b.ReportMetric(float64(took[0])/n, "clamd-us")
			b.ReportMetric(float64(took[1]-took[0])/n, "own-us")
			b.ReportMetric(float64(took[1])/float64(took[0]), "filter/clamd")
			b.ReportMetric(float64(took[2])/float64(took[0]), "raw/clamd")
			b.ReportMetric(float64(took[3])/float64(took[0]), "library/clamd")
		})
	}
}

// byLibrary is a scan by go-clamd.
func byLibrary(path, text string) error {
	abort := make(chan bool)
	defer close(abort)
	results, err := clamd.NewClamd("unix://"+path).ScanStream(strings.NewReader(text), abort)
	if err != nil {
		return err
	}
	for range results {
	}
	return nil
}

// bare is the least that a scan takes.
func bare(path, text string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	n := len(text)
	if _, err := io.WriteString(c, inStream+string([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})+text+"\x00\x00\x00\x00"); err != nil {
		return err
	}
	_, err = io.ReadAll(c)
	return err
}
