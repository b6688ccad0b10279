package program

import (
	"context"
	"os/exec"
	"testing"
)

// BenchmarkStart is the start and the end of a program that does nothing, beside
// starting it without a starter.
func BenchmarkStart(b *testing.B) {
	const name = "/bin/true"
	var floor float64
	b.Run("floor-exec", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command(name).Run(); err != nil {
				b.Fatal(err)
			}
		}
		floor = b.Elapsed().Seconds() / float64(b.N)
	})
	b.Run("starter", func(b *testing.B) {
		s := New(Options{})
		defer s.Close() //nolint:errcheck // it has none to tell
		if err := s.Ready(); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			p, err := s.Start(Spec{Path: name})
			if err != nil {
				b.Fatal(err)
			}
			if e, err := p.Wait(context.Background()); err != nil || e.Exit != 0 {
				b.Fatal(e, err)
			}
		}
		if floor > 0 {
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/floor, "x-floor")
		}
	})
}
