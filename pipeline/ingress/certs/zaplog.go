package certs

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Bounds of what certmagic may put into the log.
const (
	logLines  = 60 // in a logWindow
	logWindow = 10 * time.Minute
	maxValue  = 300 // bytes of one value
)

// zapCore writes certmagic's log into ours. Its information is for those who
// debug, and its errors are warnings: whether they matter, the manager says.
type zapCore struct {
	log    *slog.Logger
	now    func() time.Time
	bound  *bound
	fields []zapcore.Field
}

// bound counts lines in a window.
type bound struct {
	mu      sync.Mutex
	since   time.Time
	lines   int
	dropped int
}

// take reports whether a line may be written, and how many were not in the
// window before.
func (b *bound) take(now time.Time) (ok bool, dropped int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if age := now.Sub(b.since); age < 0 || age >= logWindow {
		dropped = b.dropped
		b.since, b.lines, b.dropped = now, 0, 0
	}
	if b.lines >= logLines {
		b.dropped++
		return false, 0
	}
	b.lines++
	return true, dropped
}

func slogLevel(l zapcore.Level) slog.Level {
	if l >= zapcore.WarnLevel {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Enabled implements zapcore.LevelEnabler.
func (c *zapCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.InfoLevel && c.log.Enabled(context.Background(), slogLevel(l))
}

// With implements zapcore.Core.
func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	d := *c
	d.fields = slices.Concat(c.fields, fields)
	return &d
}

// Check implements zapcore.Core.
func (c *zapCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	ok, dropped := c.bound.take(c.now())
	if !ok {
		return nil
	}
	if dropped > 0 {
		c.log.Warn("lines of the ACME library were left out", "lines", dropped)
	}
	encoded := zapcore.NewMapObjectEncoder()
	for _, f := range slices.Concat(c.fields, fields) {
		f.AddTo(encoded)
	}
	var names []string
	for n := range encoded.Fields {
		names = append(names, n)
	}
	slices.Sort(names)
	var attrs []slog.Attr
	for _, n := range names {
		attrs = append(attrs, slog.String(reply.Clean(n, maxValue), reply.Clean(fmt.Sprint(encoded.Fields[n]), maxValue)))
	}
	c.log.LogAttrs(context.Background(), slogLevel(e.Level), reply.Clean(e.LoggerName+": "+e.Message, maxValue), attrs...)
	return nil
}

// Sync implements zapcore.Core.
func (c *zapCore) Sync() error { return nil }
