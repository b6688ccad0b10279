package pebble

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// benchOptions are those of a daemon, but that a full disk does not matter.
func benchOptions(dir string) Options {
	return Options{Dir: dir, LowBytes: -1, LowInodes: -1, Ballast: -1}
}

// spread calls f n times from so many writers and gives the time of each call,
// in order of size, and of all.
func spread(b *testing.B, n, writers int, f func(i int) error) (each []time.Duration, all time.Duration) {
	each = make([]time.Duration, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range writers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				at := time.Now()
				if err := f(int(i)); err != nil {
					b.Error(err)
					return
				}
				each[i] = time.Since(at)
			}
		})
	}
	wg.Wait()
	all = time.Since(start)
	slices.Sort(each)
	return each, all
}

// filePerMessage is the design that most mail systems have: write, fsync,
// rename, fsync of the directory. It is what the store is measured against.
type filePerMessage struct {
	dir string
	d   *os.File
	seq atomic.Int64
}

func (q *filePerMessage) put(head string, body []byte) error {
	name := fmt.Sprint(q.seq.Add(1))
	tmp := filepath.Join(q.dir, "tmp."+name)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(head); err != nil {
		return err
	}
	if _, err := f.Write(body); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(q.dir, name)); err != nil {
		return err
	}
	return q.d.Sync()
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkApply puts messages with their bodies, from the first byte of the
// body to the flush. x-file is how many times as fast it is as a file for each
// message with fsync, rename and fsync of the directory, made in the same run;
// x-fdatasync, with one writer, the part of what writing and flushing as much
// to one preallocated file reaches.
func BenchmarkApply(b *testing.B) {
	for _, size := range []int{4 << 10, 100 << 10} {
		for _, writers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%dKiB/%d", size>>10, writers), func(b *testing.B) { benchApply(b, size, writers) })
		}
	}
}

func benchApply(b *testing.B, size, writers int) {
	s, err := Open(benchOptions(b.TempDir()))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	text := make([]byte, size)
	for i := range text {
		text[i] = byte('a' + i*i%26)
	}
	const head = "From: sender@example.org\nTo: recipient@example.com\nSubject: a message of the usual kind\nMessage-Id: <1@example.org>\n\n"
	put := func(int) error {
		w := message.NewWriter(s, 0)
		if _, err := w.Write(text); err != nil {
			return err
		}
		body, err := w.Body()
		if err != nil {
			return err
		}
		defer body.Release()
		m := store.Message{ID: s.NewID(), Envelope: envelope.To("sender@example.org", "recipient@example.com"), Head: head}
		return s.Apply(context.Background(), &store.Batch{Puts: []store.Put{{Message: m, Body: body}}}, false)
	}
	files := newFilePerMessage(b)
	defer files.d.Close()
	flush := newFlusher(b, text)
	defer flush.Close()
	syncs := s.Stats().Syncs
	var each []time.Duration
	var all, used, byFile, byFlush time.Duration
	b.SetBytes(int64(size))
	b.ResetTimer()
	b.StopTimer()
	// By turns, since a machine is not as fast at all times.
	for left := b.N; left > 0; {
		n := min(left, max(b.N/10, writers*10))
		left -= n
		before := cpu()
		b.StartTimer()
		some, took := spread(b, n, writers, put)
		b.StopTimer()
		used += cpu() - before
		each, all = append(each, some...), all+took
		_, took = spread(b, n, writers, func(int) error { return files.put(head, text) })
		byFile += took
		if writers == 1 {
			_, took = spread(b, n, 1, flush.flush)
			byFlush += took
		}
	}
	slices.Sort(each)
	b.ReportMetric(float64(each[len(each)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(each[len(each)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(b.N)/all.Seconds(), "msg/s")
	b.ReportMetric(float64(s.Stats().Syncs-syncs)/float64(b.N), "flushes/msg")
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-µs/msg")
	b.ReportMetric(byFile.Seconds()/all.Seconds(), "x-file")
	if writers == 1 {
		b.ReportMetric(byFlush.Seconds()/all.Seconds(), "x-fdatasync")
	}
}

func newFilePerMessage(b *testing.B) *filePerMessage {
	q := &filePerMessage{dir: b.TempDir()}
	var err error
	if q.d, err = os.Open(q.dir); err != nil {
		b.Fatal(err)
	}
	return q
}

// flusher writes a text over and over in a preallocated file, and flushes.
type flusher struct {
	*os.File
	text []byte
	at   int64
}

const flusherRoom = 64 << 20

func newFlusher(b *testing.B, text []byte) *flusher {
	f, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, flusherRoom); err != nil {
		b.Fatal(err)
	}
	return &flusher{File: f, text: text}
}

func (f *flusher) flush(int) error {
	if _, err := f.WriteAt(f.text, f.at); err != nil {
		return err
	}
	if f.at += int64(len(f.text)); f.at+int64(len(f.text)) > flusherRoom {
		f.at = 0
	}
	return syscall.Fdatasync(int(f.Fd()))
}

// BenchmarkRemove removes what BenchmarkApply puts, flushed.
func BenchmarkRemove(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			s, err := Open(benchOptions(b.TempDir()))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			ids := fillStore(b, s, b.N, 4096)
			b.ResetTimer()
			each, all := spread(b, b.N, writers, func(i int) error {
				return s.Apply(context.Background(), &store.Batch{Removes: ids[i : i+1]}, false)
			})
			b.ReportMetric(float64(each[len(each)*99/100].Microseconds()), "p99-µs")
			b.ReportMetric(float64(b.N)/all.Seconds(), "msg/s")
		})
	}
}

// BenchmarkPass puts messages and removes each of them when a thousand others have
// come, as they do that are delivered soon. cpu-µs/msg is the time of the processor
// for both; removals are not waited for.
func BenchmarkPass(b *testing.B) {
	s, err := Open(benchOptions(b.TempDir()))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ids := fillStore(b, s, 1000, 4096)
	b.ReportAllocs()
	before := cpu()
	for b.Loop() {
		ids = append(ids[1:], fillStore(b, s, 1, 4096)...)
		if err := s.Apply(context.Background(), &store.Batch{Removes: ids[:1]}, true); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/msg")
}

func fillStore(b *testing.B, s *Store, n, size int) []store.ID {
	ids := make([]store.ID, 0, n)
	body := message.BytesBody(make([]byte, size))
	for len(ids) < n {
		batch := &store.Batch{}
		for range min(500, n-len(ids)) {
			m := store.Message{
				ID: s.NewID(), Envelope: envelope.To("sender@example.org", fmt.Sprintf("r%d@d%d.example", len(ids), len(ids)%100_000)),
				Head: "Received: from a.example by b.example\n\tfor <x@y.example>; Mon, 1 Jan 2029 00:00:00 +0000\nFrom: x@y\nTo: z@y\nSubject: of the usual length\nMessage-Id: <0123456789@example.org>\nDate: Mon, 1 Jan 2029 00:00:00 +0000\n\n",
			}
			batch.Puts = append(batch.Puts, store.Put{Message: m, Body: body})
			ids = append(ids, m.ID)
		}
		if err := s.Apply(context.Background(), batch, true); err != nil {
			b.Fatal(err)
		}
	}
	return ids
}

// BenchmarkScan opens a store of 200,000 messages and scans it, as a daemon
// does when it starts.
func BenchmarkScan(b *testing.B) {
	const messages = 200_000
	dir := b.TempDir()
	s, err := Open(benchOptions(dir))
	if err != nil {
		b.Fatal(err)
	}
	fillStore(b, s, messages, 0)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	var open, scan time.Duration
	for b.Loop() {
		at := time.Now()
		if s, err = Open(benchOptions(dir)); err != nil {
			b.Fatal(err)
		}
		open += time.Since(at)
		at = time.Now()
		r, err := s.Reader()
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		if err := r.Scan(0, func(*store.Entry) error { n++; return nil }); err != nil || n != messages {
			b.Fatal(n, err)
		}
		scan += time.Since(at)
		r.Close()
		s.Close()
	}
	b.ReportMetric(float64(open.Milliseconds())/float64(b.N), "open-ms")
	b.ReportMetric(float64(scan.Microseconds())/float64(b.N)/messages, "scan-µs/msg")
}
