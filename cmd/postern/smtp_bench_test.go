package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkSMTP sends messages to the daemon and, in the same run and by the same
// client, to a peer: from 1, 16 and 64 sessions, of 4 KiB and 100 KiB, on
// connections that are kept or made for each message.
//
// "discard" throws them away, as Debian's smtp-sink does. The targets are 0.8 of
// its rate on kept connections, and 1.0 where clients pipeline.
//
// "queue" stores them in the durable queue, from which nothing is delivered
// meanwhile, beside Debian's Postfix: once where its queue manager defers what
// comes, as ours puts it into its schedule (deferring), and once where messages
// go on hold and its queue manager hears nothing of them (holding). What that does
// after the last answer counts for processor and flushes, not for rates. The
// targets, by the first, are 6 times its rate at 16 kept sessions with half of the
// answers within 5 ms, 8 times at 64 with 99 in a hundred within 50 ms and less
// than 0.3 flushes a message; 3 times with a connection for each message; 2.4
// times with messages of 100 KiB.
//
// "chain" is as queue, with TLS and with the filters header and tap.
//
// Flushes are those of the disk, so nobody else may write to it; in brackets, how
// many of them our store asked for.
func BenchmarkSMTP(b *testing.B) {
	var fs unix.Statfs_t
	if err := unix.Statfs(os.TempDir(), &fs); err != nil || fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		b.Fatalf("temporary files are not on a disk (%v): set TMPDIR to a directory that is", err)
	}
	dir := b.TempDir()
	sub := func(name string) string {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			b.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	h := startHeavy(b, sub("postern"))
	sinkServer, sink := startSink(b, dir)
	p := startPostfix(b, sub("postfix"))
	kept, pipelined, fresh := manner{name: "kept"}, manner{name: "pipelined", pipelined: true}, manner{name: "new", fresh: true}
	deferring, holding := p.measured, p.measured
	deferring.name, holding.name = "deferring", "holding"
	for _, g := range []struct {
		name    string
		all     []contender
		manners []manner
		span    time.Duration
	}{
		{"discard", []contender{{h.measured, h.discard}, {sinkServer, sink}}, []manner{kept, pipelined, fresh}, 300 * time.Millisecond},
		{"queue", []contender{{h.measured, h.queue}, {deferring, p.deferring}, {holding, p.holding}}, []manner{kept, pipelined, fresh}, 500 * time.Millisecond},
		{"chain", []contender{{h.measured, h.chain}}, []manner{kept, fresh}, 500 * time.Millisecond},
	} {
		for _, m := range g.manners {
			for _, size := range []int{4, 100} {
				for _, sessions := range []int{1, 16, 64} {
					b.Run(fmt.Sprintf("%s/%s/%dKiB/sessions=%d", g.name, m.name, size, sessions), func(b *testing.B) {
						r := race{h: h, dir: dir, all: g.all, manner: m, sessions: sessions, content: contentOf(size << 10), span: g.span}
						r.run(b)
					})
				}
			}
		}
	}
}

// contender is a server with the entrance that is measured.
type contender struct {
	measured
	dialer
}

// race sends to some servers in turn; the first of them is ours.
type race struct {
	h        *heavy
	dir      string
	all      []contender
	manner   manner
	sessions int
	content  string
	span     time.Duration // of a turn
}

// tally is what became of one server's turns.
type tally struct {
	sent
	processor      time.Duration
	flushes, syncs int64
}

func (t *tally) rate() float64 { return float64(len(t.each)) / t.took.Seconds() }

func (t *tally) per(n float64) float64 { return n / float64(max(1, len(t.each))) }

// leastTurns is how often each server has its turn, at least.
const leastTurns = 2

func (r *race) run(b *testing.B) {
	results := make([]tally, len(r.all))
	was, taken := r.h.metric(b, "postern_queue_messages"), 0
	for turns, going := 0, true; going || turns < leastTurns; turns++ {
		if going {
			going = b.Loop()
		}
		for i := range r.all {
			n := r.turn(b, i, &results[i])
			if i == 0 {
				taken += n
			}
		}
	}
	if stored := int(r.h.metric(b, "postern_queue_messages") - was); stored != taken && r.all[0].dialer != r.h.discard {
		b.Errorf("the queue took %d messages and has %d more", taken, stored)
	}
	r.report(b, results)
}

// turn measures one server once.
func (r *race) turn(b *testing.B, i int, t *tally) (taken int) {
	c := r.all[i]
	syncs := int64(0)
	if i == 0 {
		syncs = r.h.metric(b, "postern_store_syncs_total")
	}
	before, flushed := processorTime(c.process.Pid), flushes(b, r.dir)
	s, err := c.sendFor(r.manner, r.sessions, r.content, r.span)
	if err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	if c.settle != nil {
		c.settle()
	}
	t.flushes += flushes(b, r.dir) - flushed
	t.processor += processorTime(c.process.Pid) - before
	if i == 0 {
		t.syncs += r.h.metric(b, "postern_store_syncs_total") - syncs
	}
	t.took += s.took
	t.each = append(t.each, s.each...)
	return len(s.each)
}

func (r *race) report(b *testing.B, results []tally) {
	var text strings.Builder
	for i, c := range r.all {
		t := &results[i]
		p50, p99, cpu := percentile(t.each, 50), percentile(t.each, 99), t.per(t.processor.Seconds()*1000)
		fmt.Fprintf(&text, "\n  %-9s %6.0f/s  p50 %6.2f ms  p99 %6.2f ms  processor %.3f s per 1,000", c.name, t.rate(), p50, p99, cpu)
		if r.h.discard != r.all[0].dialer {
			fmt.Fprintf(&text, "  %.2f flushes a message", t.per(float64(t.flushes)))
		}
		if i > 0 {
			b.ReportMetric(results[0].rate()/t.rate(), "of-"+c.name)
			fmt.Fprintf(&text, "  ratio %.2f", results[0].rate()/t.rate())
			continue
		}
		if r.h.discard != c.dialer {
			fmt.Fprintf(&text, " (%.2f)", t.per(float64(t.syncs)))
			b.ReportMetric(t.per(float64(t.flushes)), "flushes/msg")
		}
		b.ReportMetric(t.rate(), "msg/s")
		b.ReportMetric(p50, "p50-ms")
		b.ReportMetric(p99, "p99-ms")
		b.ReportMetric(cpu, "cpu-s/1000")
	}
	b.ReportMetric(0, "ns/op") // of all servers together: says nothing
	b.Log(text.String())
}
