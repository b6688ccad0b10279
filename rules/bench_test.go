package rules_test

import (
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/rules"
)

// BenchmarkMatch measures rules against the same condition written in Go over the same Facts: the floor. It reports the
// ratio, taken in one run.
func BenchmarkMatch(b *testing.B) {
	m := values()
	read := facts(m)
	m["from"] = "x"
	for _, tc := range []struct {
		name, src string
		floor     func(rules.Facts) bool
	}{
		{"Simple", `from == "x" && size < 50*MB`, func(f rules.Facts) bool {
			return f("from").(string) == "x" && f("size").(int64) < 50<<20
		}},
		{"ShortCircuit", `from != "x" && size < 50*MB`, func(f rules.Facts) bool {
			return f("from").(string) != "x" && f("size").(int64) < 50<<20
		}},
		{"Recipients", `any(recipients, # == "nobody")`, func(f rules.Facts) bool {
			for _, r := range f("recipients").([]string) {
				if r == "nobody" {
					return true
				}
			}
			return false
		}},
		{"Header", `header("Subject") contains "Invoice"`, func(f rules.Facts) bool {
			return strings.Contains(f("header").(func(string) string)("Subject"), "Invoice")
		}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			r := compile(b, tc.src)
			want := tc.floor(read)
			b.ReportAllocs()
			start := time.Now()
			for b.Loop() {
				if ok, err := r.Match(read); ok != want || err != nil {
					b.Fatal(ok, err)
				}
			}
			rule := float64(time.Since(start)) / float64(b.N)
			n := max(b.N, 10_000)
			start = time.Now()
			for range n {
				if tc.floor(read) != want {
					b.Fatal("the floor changed its mind")
				}
			}
			b.ReportMetric(rule/(float64(time.Since(start))/float64(n)), "x-Go")
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	s := mail()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rules.Compile(s, `from == "x" && size < 50*MB`); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTap(b *testing.B) {
	tap, err := rules.ParseTap(`A:.*@(sales|info)\.example\.org$:archive@example.org`)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !tap.MatchTo("joe.doe@Sales.example.org") || tap.MatchFrom("somebody.else@example.net") {
			b.Fatal("wrong")
		}
	}
}
