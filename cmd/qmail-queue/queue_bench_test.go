package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whole injections through the C shim into the daemon's own queue, which are
// safe on the disk once the shim has ended. Nothing is delivered meanwhile.
// They are compared with the same into nothing, which leaves out the disk, and
// with a program in C that makes files as qmail-queue does and nothing else.
// The targets are 400 messages a second with one injector and 1,200 with 16,
// where notqmail's qmail-queue has made about 200 and 420.

const queueBenchConfig = `hostname = "mx.example.org"
control = ""
trusted = ["$UID"]
state = "$DIR/state"
admin.socket = "$DIR/admin.sock"
[listen.discard]
socket = "$DIR/discard.sock"
next = "discard"
[listen.queue]
socket = "$DIR/queue.sock"
next = "queue"
[chain]
inbound = ["header", "tap"]
[filter.header]
rule = [{op = "add", name = "X-Checked", value = "yes"}]
[filter.tap]
rules = ["T:^boss@example\\.org$:archive@example.org", "F:@sales\\.example\\.org$:archive@example.org"]
[queue]
remote = 0
local = 0
`

// leastBatches makes for a p99 of a thousand messages.
const leastBatches = 16

// queueTally is what injections of one program took.
type queueTally struct {
	took, children, daemon time.Duration
	each                   []time.Duration
	syncs                  int
}

// BenchmarkQueue measures injections into the queue.
func BenchmarkQueue(b *testing.B) {
	var fs unix.Statfs_t
	if err := unix.Statfs(os.TempDir(), &fs); err != nil || fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		b.Fatalf("temporary files are not on a disk (%v): set TMPDIR to a directory that is", err)
	}
	i := slices.IndexFunc(built.programs, func(p program) bool { return p.name == "C" })
	if i < 0 {
		b.Fatal("no C compiler: install cc")
	}
	m := newBench(b, queueBenchConfig)
	at := func(name string) string { return filepath.Join(m.dir, name) }
	if err := command("cc", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", at("files"), "testdata/floor/c/qmail.c"); err != nil {
		b.Fatal(err)
	}
	for _, sub := range []string{"pid", "mess", "intd", "todo"} {
		if err := os.MkdirAll(filepath.Join(at("files.d"), sub), 0o700); err != nil {
			b.Fatal(err)
		}
	}
	programs := []called{
		{"files", at("files"), []string{"QUEUE_DIR=" + at("files.d")}, 0},
		{"discard", built.programs[i].path, []string{"POSTERN_SOCKET=" + at("discard.sock")}, 1},
		{"queue", built.programs[i].path, []string{"POSTERN_SOCKET=" + at("queue.sock")}, 0},
	}
	for _, injectors := range []int{1, 16} {
		b.Run(fmt.Sprintf("injectors=%d", injectors), func(b *testing.B) { m.injections(b, programs, injectors) })
	}
}

// injections has several injectors call the programs in turn as fast as they
// can. In the end the queue must hold what it took.
func (m *bench) injections(b *testing.B, programs []called, injectors int) {
	all := make([]queueTally, len(programs))
	for i := range programs {
		if _, _, err := m.inject(&programs[i], injectors); err != nil { // what is made once is made now
			b.Fatal(err)
		}
	}
	held, batches := m.metric(b, "postern_queue_messages"), 0
	for going := true; going || batches < leastBatches; batches++ {
		if going {
			going = b.Loop()
		}
		for i := range programs {
			t := &all[i]
			syncs, before, begun := m.metric(b, "postern_store_syncs_total"), m.daemonTime(b), time.Now()
			cpu, each, err := m.inject(&programs[i], injectors)
			if err != nil {
				b.Fatal(err)
			}
			t.took += time.Since(begun)
			t.children += cpu
			t.daemon += m.daemonTime(b) - before
			t.each = append(t.each, each...)
			t.syncs += m.metric(b, "postern_store_syncs_total") - syncs
		}
	}
	if n := m.metric(b, "postern_queue_messages") - held; n != batches*batch {
		b.Fatalf("the queue took %d messages and holds %d", batches*batch, n)
	}
	messages := float64(batches * batch)
	rate := func(i int) float64 { return messages / all[i].took.Seconds() }
	report := fmt.Sprintf("%d injectors, %.0f messages each:", injectors, messages)
	for i, p := range programs {
		t := &all[i]
		slices.Sort(t.each)
		p50, p99 := t.each[len(t.each)/2].Seconds()*1e3, t.each[len(t.each)*99/100].Seconds()*1e3
		own, served := t.children.Seconds()*1e3/messages, t.daemon.Seconds()*1e3/messages
		report += fmt.Sprintf("\n  %-8s %6.0f/s  p50 %.2f ms  p99 %.2f ms  processor %.2f + %.2f ms", p.name, rate(i), p50, p99, own, served)
		b.ReportMetric(rate(i), p.name+"-msg/s")
		if p.name == "queue" {
			report += fmt.Sprintf("  %.2f flushes a message, %.2f of files, %.2f of discard", float64(t.syncs)/messages, rate(i)/rate(0), rate(i)/rate(1))
			b.ReportMetric(p50, "queue-p50-ms")
			b.ReportMetric(p99, "queue-p99-ms")
			b.ReportMetric(own+served, "queue-cpu-ms/msg")
			b.ReportMetric(float64(t.syncs)/messages, "queue-flushes/msg")
			b.ReportMetric(rate(i)/rate(0), "queue-files-ratio")
			b.ReportMetric(rate(i)/rate(1), "queue-discard-ratio")
		}
	}
	b.ReportMetric(0, "ns/op") // of all programs together: says nothing
	b.Log(report)
}

// metric is a number that the daemon counts.
func (m *bench) metric(b *testing.B, name string) int {
	b.Helper()
	out, err := exec.Command(filepath.Join(m.dir, "postern"), "metrics", "--config", filepath.Join(m.dir, "postern.toml")).Output()
	if err != nil {
		b.Fatalf("postern metrics: %v", err)
	}
	found := regexp.MustCompile(`(?m)^` + name + ` ([0-9.e+]+)$`).FindSubmatch(out)
	if found == nil {
		b.Fatalf("there is no metric %s:\n%s", name, out)
	}
	n, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return int(n)
}
