package rewrite

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/rules"
)

// BenchmarkRecipient is the rewriting of a recipient by a map of 100,000 entries,
// beside looking an address up in a Go map as the floor.
func BenchmarkRecipient(b *testing.B) {
	const size = 100_000
	var text bytes.Buffer
	var records []rules.CDBRecord
	var all []string
	known := map[string]string{}
	for i := range size {
		from, to := fmt.Sprintf("user%d@example.org", i), fmt.Sprintf("box%d@example.net", i)
		fmt.Fprintf(&text, "%s %s\n", from, to)
		records, all = append(records, rules.CDBRecord{Key: from, Value: to}), append(all, from)
		known[from] = to
	}
	file, err := os.Create(filepath.Join(b.TempDir(), "cdb"))
	if err != nil {
		b.Fatal(err)
	}
	if err := rules.WriteCDB(file, records); err != nil {
		b.Fatal(err)
	}
	if err := file.Close(); err != nil {
		b.Fatal(err)
	}
	var floor float64
	b.Run("floor-map", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			if known[all[n*7919%size]] == "" {
				b.Fatal(n)
			}
		}
		floor = b.Elapsed().Seconds() / float64(b.N)
	})
	for _, c := range []struct {
		name string
		m    Map
	}{
		{"file", Map{File: write(b, filepath.Join(b.TempDir(), "map"), text.String())}},
		{"cdb", Map{CDB: file.Name()}},
		{"pattern", Map{Entries: []string{`/user(.*)@example\.org/ box$1@example.net`}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			f, err := New(pipeline.Env{}, Options{Maps: []Map{c.m}})
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			for n := 0; b.Loop(); n++ {
				address := all[n*7919%size]
				if to, _, err := f.expand(address, ours); err != nil || len(to) != 1 || to[0] != known[address] {
					b.Fatal(to, err)
				}
			}
			if floor > 0 {
				b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/floor, "x-floor")
			}
		})
	}
}
