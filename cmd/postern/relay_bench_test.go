package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// BenchmarkRelay has messages of 4 KiB relayed, by the daemon and, in the same
// run, by Debian's Postfix, from 64 clients that send as fast as they are answered
// to a sink that takes everything at once: for one domain and for 1,000 domains,
// each with an address of its own. "plain" is with nothing else; "full" has TLS on
// both sides, every message signed (by OpenDKIM as a milter of Postfix, with the
// same key), and with us the filter execban, to which Postfix has no counterpart.
//
// Every message is at the sink once or more with the body that was sent, or the
// benchmark fails. The rate is from the first that is sent to the last that
// arrives; a message's time from when its client begins to send it to when the
// sink has it whole; processor time that of all processes of the server, the
// ended ones too, until its queue is empty; memory what its processes have of
// their own and their shares of what they have in common (PSS), at most.
//
// How Postfix is tuned stands at relayMain. It writes no log, while ours is
// written to a file, two lines a message. Both flush as they do when they are
// installed, on the same file system. The targets are 6 times its rate for one
// domain and 3.5 times for 1,000, at most 0.7 seconds of processor time for 1,000
// messages, half of them within 100 ms, and 120 MiB.
func BenchmarkRelay(b *testing.B) {
	count := 6000
	if testing.Short() {
		count = 600
	}
	program := buildProgram(b)
	for _, e := range []errand{
		{name: "plain/one", domains: 1},
		{name: "plain/1000", domains: 1000},
		{name: "full/one", domains: 1, full: true},
		{name: "full/1000", domains: 1000, full: true},
	} {
		e.program, e.remote, e.each = program, 100, 50
		b.Run(e.name, func(b *testing.B) {
			r := startRelays(b, e, true)
			for b.Loop() {
				for i := range r.all {
					r.turn(b, i, relayClients, count)
				}
			}
			r.report(b)
		})
	}
}

// relayClients is how many send at a time.
const relayClients = 64

// relays are servers that relay to one sink in turn; the first of them is ours.
type relays struct {
	errand
	h       *heavy
	sink    *relaySink
	all     []contender
	results []carriage
}

// carriage is what one server did.
type carriage struct {
	reception
	messages        int
	took, processor time.Duration
	memory          int64 // bytes, at most
}

func (c *carriage) rate() float64 { return float64(c.messages) / c.took.Seconds() }

func (c *carriage) cpu() float64 { return c.processor.Seconds() * 1000 / float64(max(1, c.messages)) }

// startRelays starts the sink and the servers, with Postfix if peers is set.
func startRelays(b testing.TB, e errand, peers bool) *relays {
	b.Helper()
	dir := b.TempDir()
	sub := func(name string) string {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			b.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	r := &relays{errand: e}
	var secret *tls.Config
	if e.full || e.secret {
		secret = smtptest.TLS(smtptest.NewAuthority(b).Issue(b, time.Time{}, "sink.example"))
	}
	r.sink = startRelaySink(b, secret)
	h, d := startRelay(b, sub("postern"), e, r.sink)
	r.h, r.all = h, []contender{{h.measured, d}}
	if peers {
		m, p := startRelayingPostfix(b, sub("postfix"), h.dir, e, r.sink)
		p.tls = d.tls
		r.all = append(r.all, contender{m, p})
	}
	r.results = make([]carriage, len(r.all))
	return r
}

// relayPatience is how long nothing may arrive.
const relayPatience = 30 * time.Second

// turn has one server relay so many messages.
func (r *relays) turn(b testing.TB, i, clients, count int) {
	b.Helper()
	c, t := r.all[i], &r.results[i]
	r.sink.expect(count)
	processor := c.processorTime()
	watch := watchMemory(c.measured)
	begun := time.Now()
	if err := r.sink.sendParcels(c.dialer, clients, count, r.domains); err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	got, err := r.sink.wait(relayPatience)
	if err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	c.settle()
	t.memory = max(t.memory, watch())
	t.processor += c.processorTime() - processor
	t.took += got.last.Sub(begun)
	t.messages += got.taken
	t.each = append(t.each, got.each...)
	t.most, t.mostEach, t.mostSent = max(t.most, got.most), max(t.mostEach, got.mostEach), max(t.mostSent, got.mostSent)
	t.again += got.again
	if got.strange > 0 {
		b.Errorf("%s: %d messages arrived that nobody had sent so", c.name, got.strange)
	}
	if r.full && (got.signed != got.taken || got.secret != got.taken) {
		b.Errorf("%s: of %d messages %d are signed, and %d came under TLS", c.name, got.taken, got.signed, got.secret)
	}
}

func (r *relays) report(b *testing.B) {
	var text strings.Builder
	for i, c := range r.all {
		t := &r.results[i]
		p50, p99, mem := percentile(t.each, 50), percentile(t.each, 99), float64(t.memory)/(1<<20)
		fmt.Fprintf(&text, "\n  %-8s %6.0f/s  p50 %7.1f ms  p99 %7.1f ms  processor %.3f s per 1,000  %6.1f MiB  %d connections at most  %d duplicates",
			c.name, t.rate(), p50, p99, t.cpu(), mem, t.most, t.again)
		if i > 0 {
			b.ReportMetric(r.results[0].rate()/t.rate(), "of-"+c.name)
			fmt.Fprintf(&text, "  ratio %.2f", r.results[0].rate()/t.rate())
			continue
		}
		b.ReportMetric(t.rate(), "msg/s")
		b.ReportMetric(p50, "p50-ms")
		b.ReportMetric(p99, "p99-ms")
		b.ReportMetric(t.cpu(), "cpu-s/1000")
		b.ReportMetric(mem, "MiB")
	}
	b.ReportMetric(0, "ns/op") // of all servers together: says nothing
	b.Log(text.String())
}

// processorTime is what a server has used, with what works beside it.
func (m measured) processorTime() time.Duration {
	all := processorTime(m.process.Pid)
	if m.beside != nil {
		all += processorTime(m.beside.Pid)
	}
	return all
}

// pauseToLook is for those who wait for something without an end to wait for.
func pauseToLook() { time.Sleep(100 * time.Millisecond) }

// watchMemory looks at a server's memory until it is called again for the most
// that it has seen.
func watchMemory(m measured) func() int64 {
	end, most := make(chan struct{}), make(chan int64)
	look := func() int64 {
		all := proportional(m.process.Pid)
		if m.beside != nil {
			all += proportional(m.beside.Pid)
		}
		return all
	}
	go func() {
		seen := int64(0)
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-tick.C:
				seen = max(seen, look())
			case <-end:
				tick.Stop()
				most <- max(seen, look())
				return
			}
		}
	}()
	return func() int64 {
		close(end)
		return <-most
	}
}

// proportional is the memory of a process and its descendants in bytes, where
// what several share is divided among them (PSS).
func proportional(pid int) (bytesOf int64) {
	for _, id := range family(pid) {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(id), "smaps_rollup"))
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := bytes.Cut(text, []byte("\nPss:"))
		if f := bytes.Fields(rest); len(f) > 0 {
			n, _ := strconv.ParseInt(string(f[0]), 10, 64)
			bytesOf += n << 10
		}
	}
	return bytesOf
}

// family is a process and its descendants.
func family(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := bytes.Cut(text, []byte(") ")) // behind the program's name
		if f := strings.Fields(string(rest)); len(f) > 1 {
			id, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			parent, _ := strconv.Atoi(f[1])
			children[parent] = append(children[parent], id)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}
