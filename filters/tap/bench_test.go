package tap

import (
	"context"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// ratio reports how many times the time of floor an operation took.
func ratio(b *testing.B, floor func()) {
	each := b.Elapsed() / time.Duration(b.N)
	b.StopTimer()
	start := time.Now()
	for range b.N {
		floor()
	}
	if least := time.Since(start) / time.Duration(b.N); least > 0 {
		b.ReportMetric(float64(each)/float64(least), "x-floor")
	}
}

// Ten rules that do not match, one recipient, a message of 4 KiB. The floor is
// the same expressions, asked directly.
func BenchmarkNoMatch(b *testing.B) {
	var lines []string
	var patterns []*regexp.Regexp
	for i := range 10 {
		lines = append(lines, fmt.Sprintf(`A:^user%d@example\.org$:archive@example.org`, i))
		patterns = append(patterns, regexp.MustCompile(fmt.Sprintf(`(?i)^user%d@example\.org$`, i)))
	}
	f := newTap(b, Options{Rules: lines})
	m := message.FromString(text + strings.Repeat("0123456789abcdef0123456789abcde\n", 120))
	tx := &pipeline.Transaction{Session: &pipeline.Session{}, Envelope: envelope.To("someone@example.net", "somebody@example.org"), Active: []int{0}}
	b.ReportAllocs()
	for b.Loop() {
		if v, err := f.Message(context.Background(), tx, m); err != nil || v.Edits != nil {
			b.Fatal(v, err)
		}
	}
	ratio(b, func() {
		for _, p := range patterns {
			if p.MatchString("someone@example.net") || p.MatchString("somebody@example.org") {
				b.Fatal("match")
			}
		}
	})
}

// A copy of a message, by size. The floor is SHA-256 of its body alone.
func BenchmarkCopy(b *testing.B) {
	f := everything(b)
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			m := message.FromString(text + strings.Repeat("0123456789abcdef0123456789abcde\n", size/32))
			tx := &pipeline.Transaction{Session: &pipeline.Session{}, Envelope: envelope.To("s@t", "a@b"), Active: []int{0}}
			b.SetBytes(m.Body().Size())
			b.ReportAllocs()
			for b.Loop() {
				if v, err := f.Message(context.Background(), tx, m); err != nil || len(v.Edits) != 1 {
					b.Fatal(v, err)
				}
			}
			content, _ := m.Body().Memory()
			ratio(b, func() { sha256.Sum256(content) })
		})
	}
}
