package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/reply"
)

// TestLogShadow: what a line says of filters in shadow, by configuration and by
// hand, and beside it what counted.
func TestLogShadow(t *testing.T) {
	modes := NewModes(nil)
	modes.Set("switched", Shadow, 0)
	c := newChain(t, ChainOptions{Modes: modes},
		Step{Name: "callers", Filter: at(AtRecipient, func(a asked) (Verdict, error) {
			return Verdict{Action: Reject, Reason: "no " + a.rcpt.Address}, nil
		}), Mode: Shadow},
		Step{Name: "parts", Filter: at(AtMessage, func(asked) (Verdict, error) {
			return Verdict{Only: []int{0}, Others: []Verdict{{Only: []int{1, 2}, Action: Discard, Reason: "why"}}}, nil
		}), Mode: Shadow},
		Step{Name: "edits", Filter: says(AtMessage, Verdict{Edits: []Edit{addField("X-A", "1"), addField("X-B", "2")}}), Mode: Shadow},
		Step{Name: "fails", Filter: at(AtMessage, func(asked) (Verdict, error) { return Verdict{}, errBroken }), Mode: Shadow},
		Step{Name: "switched", Filter: says(AtMessage, Verdict{Action: Quarantine, Reason: "\"],\x1b[31m\u202e\n=" + strings.Repeat("x", 500)})},
		Step{Name: "counts", Filter: says(AtMessage, Verdict{Action: Defer})},
	)
	var spool memorySpool
	runWith(t, context.Background(), &spool, c, txTo(rcpts(4)...), func(o *Outcome) {
		want := LogShadow{
			{Filter: "callers", Stage: "recipient", Action: "reject", Recipients: 4, Reason: "no r0@example.org"},
			{Filter: "parts", Stage: "message", Action: "continue", Recipients: 1, Reason: "; discard for 2 others: why"},
			{Filter: "parts", Stage: "message", Action: "discard", Recipients: 2, Reason: "; discard for 2 others: why"},
			{Filter: "edits", Stage: "message", Action: "continue", Recipients: 4, Edits: 2, Reason: "add X-A: 1"},
			{Filter: "fails", Stage: "message", Action: "defer", Recipients: 4, Reason: "broken?line of clamd", Failed: true},
			{Filter: "switched", Stage: "message", Action: "quarantine", Recipients: 4, Reason: `"],?[31m??? =` + strings.Repeat("x", 187)},
		}
		for _, form := range []string{"text", "json"} {
			var b bytes.Buffer
			h := slog.Handler(slog.NewTextHandler(&b, nil))
			if form == "json" {
				h = slog.NewJSONHandler(&b, nil)
			}
			slog.New(h).LogAttrs(context.Background(), slog.LevelInfo, "message", o.Trace.LogShadow(nil)...)
			if strings.Count(b.String(), "\n") != 1 || strings.ContainsAny(b.String(), "\x1b\u202e") {
				t.Errorf("%q", b.String())
			}
			got, enforced := o.Trace.shadow()
			if form == "json" {
				var line struct {
					Shadow   LogShadow
					Enforced string
				}
				if err := json.Unmarshal(b.Bytes(), &line); err != nil {
					t.Fatal(err)
				}
				got, enforced = line.Shadow, Continue
				if a, ok := reply.ParseAction(line.Enforced); ok {
					enforced = a
				}
			}
			if enforced != Defer || len(got) != len(want) {
				t.Fatalf("%s: %v, %+v", form, enforced, got)
			}
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("%s: %+v, want %+v", form, got[i], want[i])
				}
			}
		}
	})
}

// A line without filters in shadow is as it was, and one is bounded by the
// filters.
func TestLogShadowBounds(t *testing.T) {
	plain := Trace{{Filter: "a", Stage: "message", Action: "reject"}, {Filter: "b", Stage: "message", Shadow: true, Skipped: "when"}}
	if attrs := plain.LogShadow(nil); attrs != nil {
		t.Error(attrs)
	}
	var all Trace
	for i := range 200 {
		all = append(all, Entry{Filter: strings.Repeat("f", i), Stage: "message", Action: "reject", Shadow: true, Reason: strings.Repeat("\"", 1000)})
	}
	list, _ := all.shadow()
	if text, err := list.MarshalText(); err != nil || len(list) != maxLoggedFilters || len(text) > maxLoggedFilters*(3*maxLogged) {
		t.Errorf("%d filters in %d bytes, %v", len(list), len(text), err)
	}
}

// BenchmarkLogShadow is what a line costs with a trace of eight filters, none of
// them in shadow ("plain", which is what a busy server pays) or all ("shadow"),
// beside one that does not ask.
func BenchmarkLogShadow(b *testing.B) {
	trace := func(shadow bool) (t Trace) {
		for _, name := range []string{"dnsbl", "rcptcheck", "greylist", "dkim-verify", "execban", "clamav", "header", "tap"} {
			t = append(t, Entry{Filter: name, Stage: "message", Action: "continue", Recipients: 1, Shadow: shadow})
		}
		return t
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	line := func(b *testing.B, t Trace, add bool) {
		attrs := append(make([]slog.Attr, 0, 8), slog.Any("filters", t.LogList()))
		if add {
			attrs = t.LogShadow(attrs)
		}
		log.LogAttrs(b.Context(), slog.LevelInfo, "message", attrs...)
	}
	for _, c := range []struct {
		name        string
		shadow, add bool
	}{{"without", false, false}, {"plain", false, true}, {"shadow", true, true}} {
		b.Run(c.name, func(b *testing.B) {
			t := trace(c.shadow)
			b.ReportAllocs()
			for b.Loop() {
				line(b, t, c.add)
			}
		})
	}
}
