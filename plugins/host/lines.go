package host

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

// The bounds of what a plugin may say into the log.
const (
	maxLine   = 1000     // bytes of a line; the rest of it is dropped
	lineBurst = 100      // lines at once
	lineRate  = 10       // lines a second
	byteBurst = 4 << 20  // bytes that are read at once
	byteRate  = 16 << 20 // bytes a second: beyond it the plugin has to wait
)

// lines takes what a plugin writes, and puts it into the log: line by line,
// cleaned, and not more than the log can bear. It never fails, so that a plugin
// is never hurt by what it says; one that floods waits. It is safe for
// concurrent use.
type lines struct {
	log   *slog.Logger
	level slog.Level
	from  string // "stdout" or "stderr"
	now   func() time.Time
	wait  func(time.Duration)

	mu      sync.Mutex
	line    []byte
	lost    bool // the line goes on beyond its bound
	lines   bucket
	bytes   bucket
	dropped int
}

func newLines(log *slog.Logger, from string, level slog.Level, now func() time.Time) *lines {
	return &lines{
		log: log, level: level, from: from, now: now, wait: time.Sleep,
		lines: bucket{rate: lineRate, burst: lineBurst}, bytes: bucket{rate: byteRate, burst: byteBurst},
	}
}

// Write is io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if over := l.bytes.spend(float64(len(p)), l.now(), true); over > 0 {
		l.wait(min(over, time.Second))
	}
	rest := p
	for len(rest) > 0 {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		l.add(line)
		if ended {
			l.end()
		}
		rest = after
	}
	return len(p), nil
}

func (l *lines) add(part []byte) {
	if room := maxLine - len(l.line); len(part) > room {
		part, l.lost = part[:room], true
	}
	l.line = append(l.line, part...)
}

// end writes the line, if the log can bear it.
func (l *lines) end() {
	line, lost := l.line, l.lost
	l.line, l.lost = l.line[:0], false
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	if l.lines.spend(1, l.now(), false) > 0 {
		l.dropped++
		return
	}
	l.tellDropped()
	attrs := []slog.Attr{slog.String("from", l.from), slog.String("line", reply.Clean(string(line), maxLine))}
	if lost {
		attrs = append(attrs, slog.Bool("cut", true))
	}
	l.log.LogAttrs(context.Background(), l.level, "plugin says", attrs...)
}

func (l *lines) tellDropped() {
	if l.dropped > 0 {
		l.log.Warn("plugin said more than the log takes", "from", l.from, "lines", l.dropped)
		l.dropped = 0
	}
}

// close writes what is left of a line without an end.
func (l *lines) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
	l.tellDropped()
}

// drain reads to the end.
func (l *lines) drain(r io.Reader) {
	io.CopyBuffer(struct{ io.Writer }{l}, struct{ io.Reader }{r}, make([]byte, 32<<10)) //nolint:errcheck // its end is all that counts
	l.close()
}

// bucket bounds a rate: it holds up to burst, and gains rate a second. The zero
// time is a full one.
type bucket struct {
	rate, burst, left float64
	at                time.Time
}

// spend takes n out. What lacks is told as the time in which it comes; with debt
// it is taken all the same.
func (b *bucket) spend(n float64, now time.Time, debt bool) time.Duration {
	if b.at.IsZero() {
		b.left = b.burst
	} else if gone := now.Sub(b.at).Seconds(); gone > 0 {
		b.left = min(b.burst, b.left+gone*b.rate)
	}
	b.at = now
	if b.left >= n || debt {
		b.left -= n
	} else {
		return time.Duration((n - b.left) / b.rate * float64(time.Second))
	}
	if b.left >= 0 {
		return 0
	}
	return time.Duration(-b.left / b.rate * float64(time.Second))
}
