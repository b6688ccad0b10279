package greylist

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/state"
)

// BenchmarkMillion is the filter with a million triplets on the disk: verdicts a
// second on those that are known and those that are new, beside a map in memory
// as the floor; bytes of each on the disk; and the time to open the state.
func BenchmarkMillion(b *testing.B) {
	const triplets = 1_000_000
	dir := filepath.Join(b.TempDir(), "state")
	s, err := state.Open(state.Options{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	// Time stands still: on a slow machine the delay would else be over by the end.
	now := time.Now()
	clock := func() time.Time { return now }
	f, err := New(pipeline.Env{State: s.Space("greylist"), Now: clock}, Options{Normalise: true, Bounces: true})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	ask := func(f *Filter, i int) pipeline.Verdict {
		session := filtertest.Stranger()
		session.Peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(i % 223), byte(i >> 8), byte(i >> 16), 1}), 0)
		tx := &pipeline.Transaction{Session: session, Envelope: envelope.To(fmt.Sprintf("some.sender%c@domain%d.example.net", 'a'+i%26, i%50_000))}
		opened, err := f.Open(ctx, session)
		if err != nil {
			b.Fatal(err)
		}
		v, err := opened.(pipeline.Recipienter).Recipient(ctx, tx, envelope.Recipient{Address: fmt.Sprintf("recipient%d@example.org", i%7919)})
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
	start := time.Now()
	for i := range triplets {
		if v := ask(f, i); v.Action != pipeline.Defer {
			b.Fatalf("%d: %v", i, v)
		}
	}
	if err := s.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	filling := triplets / time.Since(start).Seconds()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	size := used(b, dir)
	start = time.Now()
	if s, err = state.Open(state.Options{Dir: dir}); err != nil {
		b.Fatal(err)
	}
	opening := time.Since(start)
	defer s.Close()
	if n, _ := s.Space("greylist").Usage(); n != triplets {
		b.Fatalf("%d triplets", n)
	}
	f.book.state = s.Space("greylist")
	var floor float64
	b.Run("floor", func(b *testing.B) {
		m, err := New(pipeline.Env{State: new(filtertest.State), Now: clock}, Options{Normalise: true, Bounces: true})
		if err != nil {
			b.Fatal(err)
		}
		for i := range 10_000 {
			ask(m, i)
		}
		for i := 0; b.Loop(); i++ {
			ask(m, i%10_000)
		}
		floor = b.Elapsed().Seconds() / float64(b.N)
		b.ReportMetric(1/floor, "verdicts/s")
	})
	b.Run("known", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if v := ask(f, i*7919%triplets); v.Action != pipeline.Defer || v.Reason == "first seen" {
				b.Fatal(v)
			}
		}
		each := b.Elapsed().Seconds() / float64(b.N)
		b.ReportMetric(1/each, "verdicts/s")
		b.ReportMetric(each/floor, "x-floor")
		b.ReportMetric(float64(size)/triplets, "disk-B/triplet")
		b.ReportMetric(float64(opening.Milliseconds()), "ms-to-open")
		b.ReportMetric(filling, "new/s")
	})
}

// used is what the files in a directory have, in bytes.
func used(b *testing.B, dir string) (n int64) {
	if err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		i, err := d.Info()
		if err == nil {
			n += i.Size()
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	return n
}
