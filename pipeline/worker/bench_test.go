package worker

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// BenchmarkJob compares a job that reads all of its body in a worker with the
// same job called in this process: "overhead-us" is what the worker costs more.
func BenchmarkJob(b *testing.B) {
	for _, size := range []int{4 << 10, 16 << 10, 32 << 10, 64 << 10, 10 << 20} {
		content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		args := content[:600]
		file, err := os.CreateTemp(b.TempDir(), "")
		if err != nil {
			b.Fatal(err)
		}
		defer file.Close()
		if _, err = file.Write(content); err != nil {
			b.Fatal(err)
		}
		r := Request{Job: "sum", Args: args, Body: file, Size: int64(size)}
		if size <= inlineBody {
			r.Body = memory{bytes.NewReader(content), content}
		}
		var here time.Duration
		b.Run(fmt.Sprintf("%dKiB/here", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := sum(context.Background(), args, r.Body, r.Size, nil); err != nil {
					b.Fatal(err)
				}
			}
			here = b.Elapsed() / time.Duration(b.N)
		})
		b.Run(fmt.Sprintf("%dKiB/worker", size>>10), func(b *testing.B) {
			p := newPool(b, Options{})
			must(b, p, "echo", "warm", "warm")
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Do(context.Background(), r); err != nil {
					b.Fatal(err)
				}
			}
			there := b.Elapsed() / time.Duration(b.N)
			b.ReportMetric(float64((there-here).Nanoseconds())/1000, "overhead-us")
			b.ReportMetric(float64(there)/float64(here), "x-in-process")
		})
	}
}

// BenchmarkStart is the time until a new worker can do its first job.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		p := New(Options{Size: 1})
		must(b, p, "echo", "x", "x")
		p.Close()
	}
}

// memory is a body that is in memory, like a message's.
type memory struct {
	*bytes.Reader
	content []byte
}

func (m memory) Memory() ([]byte, bool) { return m.content, true }
