package program

import (
	"context"
	"os/exec"
	"slices"
	"testing"
	"time"
)

// median is the middle one of some times, in microseconds.
func median(all []time.Duration) float64 {
	slices.Sort(all)
	return float64(all[len(all)/2].Nanoseconds()) / 1000
}

// BenchmarkStart is the start and the end of a program that does nothing, by turns
// with starting it without a starter, limits and a group of its own. The ratio is
// that of the medians.
func BenchmarkStart(b *testing.B) {
	const name = "/bin/true"
	s := New(Options{})
	defer s.Close() //nolint:errcheck // it has none to tell
	if err := s.Ready(); err != nil {
		b.Fatal(err)
	}
	var floors, ours []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := exec.Command(name).Run(); err != nil {
			b.Fatal(err)
		}
		floors = append(floors, time.Since(start))
		start = time.Now()
		p, err := s.Start(Spec{Path: name})
		if err != nil {
			b.Fatal(err)
		}
		if e, err := p.Wait(context.Background()); err != nil || e.Exit != 0 {
			b.Fatal(e, err)
		}
		ours = append(ours, time.Since(start))
	}
	floor, our := median(floors), median(ours)
	b.ReportMetric(floor, "us/exec")
	b.ReportMetric(our, "us/start")
	b.ReportMetric(our/floor, "x-floor")
}
