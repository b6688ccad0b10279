package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// farExit stands for the Internet: what an address's domain is decides how a
// server there behaves.
type farExit struct {
	took  sync.Map // address -> time of delivery
	count atomic.Int64
	first chan struct{}
	once  sync.Once
}

func newFarExit() *farExit { return &farExit{first: make(chan struct{})} }

// Deliver is queue.Exit.
func (x *farExit) Deliver(ctx context.Context, j *queue.Job) ([]queue.Result, schedule.Health) {
	answer, health, delay := reply.OK, schedule.Succeeded, 20*time.Millisecond
	switch {
	case strings.HasSuffix(j.Domain, ".refuses.example"):
		answer = reply.Make(451, reply.Enhanced{}, "not now")
	case strings.HasSuffix(j.Domain, ".dead.example"):
		answer, health, delay = reply.Make(451, reply.Enhanced{}, "no connection"), schedule.Failed, time.Minute
	case strings.HasSuffix(j.Domain, ".nodns.example"):
		answer, health, delay = reply.Make(451, reply.Enhanced{}, "DNS failure"), schedule.Failed, 5*time.Second
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		answer, health = reply.Trouble, schedule.Unchanged
	}
	if _, err := io.Copy(io.Discard, j.Message.Reader()); err != nil {
		answer = reply.Trouble
	}
	all := make([]queue.Result, len(j.Envelope.Recipients))
	for i, r := range j.Envelope.Recipients {
		all[i] = queue.Result{Reply: answer}
		if answer == reply.OK {
			x.took.Store(r.Address, time.Now())
			x.count.Add(1)
			x.once.Do(func() { close(x.first) })
		}
	}
	return all, health
}

// bench is a queue on a disk.
type bench struct {
	b   testing.TB
	dir string
	st  *pebble.Store
	q   *queue.Queue
	out *farExit
}

func (b *bench) open() {
	b.b.Helper()
	var err error
	if b.st, err = pebble.Open(pebble.Options{Dir: b.dir, Ballast: -1}); err != nil {
		b.b.Fatal(err)
	}
	b.out = newFarExit()
	b.q, err = queue.Open(queue.Options{
		Store: b.st, Spool: b.st, Host: "mx.example", Log: slog.New(slog.DiscardHandler),
		Route:    func(address string) (string, string) { return "remote", envelope.Domain(address) },
		Channels: []queue.Channel{{Name: "remote", Exit: b.out}},
	})
	if err != nil {
		b.b.Fatal(err)
	}
}

func (b *bench) close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b.q.Close(ctx) //nolint:errcheck // deliveries are cut off on purpose
	if err := b.st.Close(); err != nil {
		b.b.Error(err)
	}
}

// submit submits messages for addresses, each to one, by several writers.
func (b *bench) submit(writers int, text string, hold *store.Hold, addresses []string) (took []time.Duration) {
	b.b.Helper()
	took = make([]time.Duration, len(addresses))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			m := message.FromString(text)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(addresses) {
					return
				}
				start := time.Now()
				if _, err := b.q.Submit(context.Background(), []queue.Submission{{Envelope: envelope.To("a@src.example", addresses[i]), Message: m, Hold: hold}}); err != nil {
					b.b.Error(err)
					return
				}
				took[i] = time.Since(start)
			}
		})
	}
	wg.Wait()
	return took
}

func addresses(n int, format string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(format, i)
	}
	return all
}

func percentile(all []time.Duration, p int) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[min(len(all)-1, len(all)*p/100)]
}

// BenchmarkBacklog delivers fresh mail while a backlog waits: beside an empty
// queue, twenty thousand messages for one domain that refuses, and as many for
// as many domains of which half do not answer and half do not resolve. x/empty
// is the rate of deliveries as a part of the empty queue's.
func BenchmarkBacklog(b *testing.B) {
	const backlog, fresh = 20_000, 1500
	var empty float64
	for _, c := range []struct {
		name    string
		waiting []string
	}{
		{"empty", nil},
		{"one domain refuses", addresses(backlog, "r%d@one.refuses.example")},
		{"many domains are dead", append(addresses(backlog/2, "r@d%d.dead.example"), addresses(backlog/2, "r@d%d.nodns.example")...)},
	} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				q := &bench{b: b, dir: b.TempDir()}
				q.open()
				// The first logs of a store are slower than those that follow.
				q.submit(64, "Subject: x\n\nhello\n", &store.Hold{Reason: "bench"}, addresses(backlog, "w%d@w.example"))
				if _, err := q.q.Delete(context.Background(), queue.Selection{Match: func(*queue.View) bool { return true }}, "bench"); err != nil {
					b.Fatal(err)
				}
				q.submit(64, "Subject: x\n\nhello\n", nil, c.waiting)
				q.q.Start()
				time.Sleep(5 * time.Second) // the backlog takes what it can
				to := make([]string, fresh)
				for i := range to {
					to[i] = fmt.Sprintf("f%d@d%d.example", i, i%150)
				}
				start := time.Now()
				q.submit(16, "Subject: fresh\n\nhello\n", nil, to)
				for deadline := time.Now().Add(2 * time.Minute); q.out.count.Load() < fresh && time.Now().Before(deadline); {
					time.Sleep(time.Millisecond)
				}
				rate := float64(q.out.count.Load()) / time.Since(start).Seconds()
				var waited []time.Duration
				for _, a := range to {
					at, ok := q.out.took.Load(a)
					if !ok {
						b.Errorf("%s was not delivered", a)
						continue
					}
					waited = append(waited, at.(time.Time).Sub(start))
				}
				if c.waiting == nil {
					empty = rate
				}
				b.ReportMetric(rate, "msg/s")
				b.ReportMetric(rate/empty, "x/empty")
				b.ReportMetric(float64(percentile(waited, 50).Milliseconds()), "p50-ms")
				b.ReportMetric(float64(percentile(waited, 99).Milliseconds()), "p99-ms")
				q.close()
			}
		})
	}
}

// BenchmarkSubmit submits messages of 4 KiB that are held, by as many senders as
// an SMTP server has: how long each waits, and how many flushes and how much
// time of processors a message costs.
func BenchmarkSubmit(b *testing.B) {
	text := "Subject: x\n\n" + strings.Repeat("0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnop\n", 64)
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			q := &bench{b: b, dir: b.TempDir()}
			q.open()
			defer q.close()
			hold := &store.Hold{Reason: "bench"}
			q.submit(64, text, hold, addresses(10_000, "w%d@w.example")) // the first logs are slower
			to := make([]string, b.N)
			for i := range to {
				to[i] = fmt.Sprintf("r%d@d%d.example", i, i%1000)
			}
			syncs, used := q.st.Stats().Syncs, cpu(b)
			b.ResetTimer()
			took := q.submit(writers, text, hold, to)
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			b.ReportMetric(float64(q.st.Stats().Syncs-syncs)/float64(b.N), "flushes/msg")
			b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-µs/msg")
			b.ReportMetric(float64(percentile(took, 50).Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(percentile(took, 99).Microseconds())/1000, "p99-ms")
		})
	}
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkMillion loads a million recipients over a hundred thousand domains,
// and measures: memory of each, from a cold start to the first delivery, Submit
// beside an empty queue, and an operator's looks at it; wait is the longest
// time that the queue was locked for others meanwhile.
func BenchmarkMillion(b *testing.B) {
	const messages, domains, probes = 1_000_000, 100_000, 200_000
	text := "Subject: x\n\n" + strings.Repeat("0123456789abcde\n", 16)
	probe := addresses(probes, "p%d@probe.example")
	for range b.N {
		q := &bench{b: b, dir: b.TempDir()}
		q.open()
		hold := &store.Hold{Reason: "bench"}
		load := func(n int) {
			for i := 0; i < n; i += 1000 {
				var all []queue.Submission
				m := message.FromString(text)
				for k := i; k < i+1000; k++ {
					all = append(all, queue.Submission{Envelope: envelope.To("a@src.example", fmt.Sprintf("r%d@d%d.example", k, k%domains)), Message: m})
				}
				if _, err := q.q.Submit(context.Background(), all); err != nil {
					b.Fatal(err)
				}
			}
		}
		// The store writes its first logs into new files, and later ones into old
		// ones, which is faster: both measurements are of the latter, and of mail
		// that is held, so that it is submission that is measured. A million that
		// came within seconds leave the store's compactions behind by seconds, as no
		// queue that fills in hours does: both measurements begin when they are done,
		// and are long enough to pay for compactions of their own.
		remove := func() {
			held := func(v *queue.View) bool { return v.Hold != nil }
			if _, err := q.q.Delete(context.Background(), queue.Selection{Match: held}, "bench"); err != nil {
				b.Fatal(err)
			}
		}
		q.submit(16, text, hold, probe)
		q.settle()
		start := time.Now()
		warm := q.submit(16, text, hold, probe)
		emptyRate := probes / time.Since(start).Seconds()
		remove()
		start = time.Now()
		load(messages)
		b.ReportMetric(messages/time.Since(start).Seconds(), "load-msg/s")
		q.settle()
		start = time.Now()
		full := q.submit(16, text, hold, probe)
		fullRate := probes / time.Since(start).Seconds()
		remove()
		q.operators()
		q.close()
		q.q, q.st = nil, nil

		before := heap()
		start = time.Now()
		q.open()
		opened := time.Since(start)
		q.q.Start()
		<-q.out.first
		cold := time.Since(start)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		q.q.Close(ctx) //nolint:errcheck // deliveries are cut off on purpose
		// The store's cache and tables are a base that does not grow.
		after := heap()
		b.ReportMetric((after-before)/messages, "bytes/recipient")
		b.ReportMetric(opened.Seconds(), "open-s")
		b.ReportMetric(cold.Seconds(), "first-delivery-s")
		b.ReportMetric(fullRate, "full-msg/s")
		b.ReportMetric(fullRate/emptyRate, "x/empty")
		b.ReportMetric(float64(percentile(full, 99))/float64(percentile(warm, 99)), "p99-x/empty")
		runtime.KeepAlive(q.q)
		if err := q.st.Close(); err != nil {
			b.Error(err)
		}
	}
}

// settle waits until the store has had nothing to compact for a second.
func (b *bench) settle() {
	for idle := 0; idle < 10; idle++ {
		was := b.st.Stats()
		time.Sleep(100 * time.Millisecond)
		if is := b.st.Stats(); is.Flushes != was.Flushes || is.Compactions != was.Compactions || is.DiskBytes != was.DiskBytes {
			idle = 0
		}
	}
}

// operators looks at a queue as operators do.
func (b *bench) operators() {
	ctx := context.Background()
	var ids []store.ID
	b.look("list", func() error {
		for from := store.ID(0); ; from = ids[len(ids)-1] + 1 {
			page, err := b.q.List(ctx, from, 1000, nil)
			if err != nil || len(page) == 0 {
				return err
			}
			for _, v := range page {
				ids = append(ids, v.ID)
			}
		}
	})
	var took []time.Duration
	b.look("show", func() error {
		for i := 0; i < len(ids); i += len(ids) / 1000 {
			start := time.Now()
			if _, err := b.q.Show(ids[i]); err != nil {
				return err
			}
			took = append(took, time.Since(start))
		}
		return nil
	})
	b.report(float64(percentile(took, 50).Microseconds()), "show-p50-µs")
	b.look("sites", func() error {
		if len(b.q.Sites()) == 0 {
			return errors.New("there are no sites")
		}
		return nil
	})
	b.look("verify", func() error { return b.q.Verify(ctx, func(p string) { b.b.Error(p) }) })
}

// look reports how long something took, and the longest wait for the queue's
// lock meanwhile.
func (b *bench) look(name string, f func() error) {
	stop, longest := make(chan struct{}), make(chan time.Duration)
	go func() {
		most := time.Duration(0)
		for {
			select {
			case <-stop:
				longest <- most
				return
			case <-time.After(time.Millisecond):
			}
			start := time.Now()
			b.q.SiteOf("remote", "d1.example")
			most = max(most, time.Since(start))
		}
	}()
	start := time.Now()
	if err := f(); err != nil {
		b.b.Error(err)
	}
	b.report(time.Since(start).Seconds(), name+"-s")
	close(stop)
	b.report(float64((<-longest).Microseconds())/1000, name+"-wait-ms")
}

func (b *bench) report(n float64, unit string) {
	if b, ok := b.b.(*testing.B); ok {
		b.ReportMetric(n, unit)
	}
}

// heap is what lives on Go's heap.
func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
