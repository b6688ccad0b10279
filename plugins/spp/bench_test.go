package spp

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
)

// BenchmarkRecipient is a recipient's verdict by a program that says one word,
// beside running that program alone and reading what it writes, which is the
// floor; by one that says nothing; by a command for the shell; with the programs
// switched off; and sixteen at once.
func BenchmarkRecipient(b *testing.B) {
	program := write(b, filepath.Join(b.TempDir(), "program"), "#!/bin/sh\necho HX-A: b\n", 0o755)
	var alone, together float64
	bare := func(b *testing.B) {
		c := exec.Command(program)
		c.Env = []string{"PATH=/usr/bin:/bin"}
		if out, err := c.Output(); err != nil || len(out) == 0 {
			b.Error(err)
		}
	}
	const sixteen = 8 // times the processors of a small host
	b.Run("floor-exec", func(b *testing.B) {
		for b.Loop() {
			bare(b)
		}
		alone = b.Elapsed().Seconds() / float64(b.N)
	})
	b.Run("floor-exec-16", func(b *testing.B) {
		b.SetParallelism(sixteen)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				bare(b)
			}
		})
		together = b.Elapsed().Seconds() / float64(b.N)
	})
	session := filtertest.Stranger()
	tx := &pipeline.Transaction{Session: session, Envelope: envelope.To("a@example.net")}
	begin := func(b *testing.B, o Options) *Filter {
		f, err := New(filtertest.Env(b), o)
		if err != nil {
			b.Fatal(err)
		}
		return f
	}
	ask := func(b *testing.B, f *Filter, s *pipeline.Session) {
		i, err := f.Open(context.Background(), s)
		if err != nil {
			b.Fatal(err)
		}
		if v, err := i.(pipeline.Recipienter).Recipient(context.Background(), tx, envelope.Recipient{Address: "b@example.org"}); err != nil || v.Action != pipeline.Continue {
			b.Error(v, err)
		}
	}
	off := *session
	off.Env = map[string]string{envOff: ""}
	for _, c := range []struct {
		name    string
		line    string
		session *pipeline.Session
	}{
		{"program", program, session},
		{"silent", "/bin/true", session},
		{"shell", ":echo HX-A: b", session},
		{"off", program, &off},
	} {
		b.Run(c.name, func(b *testing.B) {
			f := begin(b, Options{Rcpt: []string{c.line}})
			for b.Loop() {
				ask(b, f, c.session)
			}
			if alone > 0 {
				b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/alone, "x-floor")
			}
		})
	}
	b.Run("program-16", func(b *testing.B) {
		f := begin(b, Options{Rcpt: []string{program}})
		ask(b, f, session) // starters are run when they are needed
		b.ResetTimer()
		b.SetParallelism(sixteen)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				ask(b, f, session)
			}
		})
		if together > 0 {
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/together, "x-floor")
		}
	})
}
