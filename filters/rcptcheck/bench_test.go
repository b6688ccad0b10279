package rcptcheck

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
)

// BenchmarkRecipient is a recipient's verdict by each kind of check, of a list of
// 100,000 beside a map as the floor, and of a program beside running it alone.
func BenchmarkRecipient(b *testing.B) {
	const recipients = 100_000
	dir := b.TempDir()
	var text []byte
	var records, all []string
	known := map[string]bool{}
	for i := range recipients {
		address := fmt.Sprintf("user%d@example.org", i)
		text, records, all = append(append(text, address...), '\n'), append(records, ":"+address), append(all, address)
		known[address] = true
	}
	write(b, filepath.Join(dir, "text"), string(text), 0o600)
	write(b, filepath.Join(dir, "cdb"), cdb(records...), 0o600)
	write(b, filepath.Join(dir, "program"), "#!/bin/true\n", 0o700)
	session := filtertest.Stranger()
	tx := &pipeline.Transaction{Session: session, Envelope: envelope.To("a@example.net")}
	run := func(name string, floor float64, address func(i int) string, want pipeline.Action, c Check) {
		b.Run(name, func(b *testing.B) {
			f, err := New(filtertest.Env(b), Options{Checks: []Check{c}})
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			i := &instance{filter: f}
			for n := 0; b.Loop(); n++ {
				if v, err := i.Recipient(context.Background(), tx, envelope.Recipient{Address: address(n)}); err != nil || v.Action != want {
					b.Fatal(v, err)
				}
			}
			if floor > 0 {
				b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/floor, "x-floor")
			}
		})
	}
	var inMap, alone float64
	b.Run("floor-map", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			if !known[all[n*7919%recipients]] {
				b.Fatal(n)
			}
		}
		inMap = b.Elapsed().Seconds() / float64(b.N)
	})
	b.Run("floor-exec", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command(filepath.Join(dir, "program")).Run(); err != nil {
				b.Fatal(err)
			}
		}
		alone = b.Elapsed().Seconds() / float64(b.N)
	})
	ours := func(n int) string { return all[n*7919%recipients] }
	nobody := func(n int) string { return "no" + ours(n) }
	run("file", inMap, ours, pipeline.Continue, Check{File: filepath.Join(dir, "text")})
	run("cdb", inMap, ours, pipeline.Continue, Check{CDB: filepath.Join(dir, "cdb")})
	run("cdb-unknown", inMap, nobody, pipeline.Reject, Check{CDB: filepath.Join(dir, "cdb")})
	run("program", alone, ours, pipeline.Continue, Check{Program: filepath.Join(dir, "program"), Each: true})
}
