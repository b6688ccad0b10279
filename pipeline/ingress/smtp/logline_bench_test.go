package smtp

import (
	"bytes"
	"io"
	"log/slog"
	"testing"

	"github.com/postern-mta/postern/pipeline"
)

// TestLists are the same in the log as those of slog's own.
func TestLists(t *testing.T) {
	untimed := &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}
	for _, l := range []pipeline.LogList{{}, {"tap=continue 0.1ms"}, {`a "b"`, "c\nd", "é"}} {
		for _, h := range []func(io.Writer) slog.Handler{
			func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, untimed) },
			func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, untimed) },
		} {
			var ours, theirs bytes.Buffer
			slog.New(h(&ours)).Info("x", "filters", l)
			slog.New(h(&theirs)).Info("x", "filters", []string(l))
			if ours.String() != theirs.String() {
				t.Errorf("%q, want %q", ours.String(), theirs.String())
			}
		}
	}
}

// BenchmarkLists is how long a line with an empty list takes, beside a line with
// a list that slog formats itself.
func BenchmarkLists(b *testing.B) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for name, v := range map[string]any{"ours": pipeline.LogList{}, "slog": []string{}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				log.LogAttrs(b.Context(), slog.LevelInfo, "message", slog.Any("filters", v))
			}
		})
	}
}
