package pipeline

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// trivial is a filter that says one thing of every message.
type trivial struct{ v Verdict }

func (f *trivial) Open(context.Context, *Session) (Instance, error) { return f, nil }
func (f *trivial) Close() error                                     { return nil }
func (f *trivial) Message(context.Context, *Transaction, message.Message) (Verdict, error) {
	return f.v, nil
}

// BenchmarkRun runs a message of 4 KiB through a chain of two trivial filters,
// one that adds a field and one with a rule that matches, and compares it with
// a floor: copying the message once.
func BenchmarkRun(b *testing.B) {
	head := "Received: from a (b [192.0.2.1]) by c with ESMTPS; Mon, 2 Nov 2026 10:00:00 +0000\nSubject: hello\nFrom: a@example.org\n" +
		"To: r@example.org\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nMessage-ID: <1@example.org>\nMIME-Version: 1.0\nContent-Type: text/plain\n\n"
	text := head + strings.Repeat("All work and no play makes Jack a dull boy, they say.\n", 76)
	text = text[:4095] + "\n"
	m := message.FromString(text)
	c := newChain(b, ChainOptions{},
		Step{Name: "header", Filter: &trivial{Verdict{Edits: []Edit{addField("X-Scanned", "yes")}}}},
		Step{Name: "tap", Filter: &trivial{}, When: rule(b, `sender == "a@example.org" && size < 50 * 1024`)})
	tx := &Transaction{ID: "t1", Session: &Session{ID: "s1", Entrance: "queue"}, Envelope: envelope.To("a@example.org", "r@example.org")}
	ctx := context.Background()
	if o := c.Run(ctx, tx, m); outgoing(o) != "a@example.org -> r@example.org X-Scanned=yes\n" || len(o.Trace) != 2 || o.Trace[1].Skipped != "" {
		b.Fatalf("%s %+v", outgoing(o), o.Trace)
	}
	floor := time.Duration(0)
	b.ReportAllocs()
	for b.Loop() {
		c.Run(ctx, tx, m).Release()
		start := time.Now()
		if n := len(m.Bytes()); n != len(text) {
			b.Fatal(n)
		}
		floor += time.Since(start)
	}
	b.ReportMetric(float64(b.Elapsed()-floor)/float64(b.N), "chain-ns/op")
	b.ReportMetric(float64(b.Elapsed()-floor)/float64(floor), "x-copy")
}
