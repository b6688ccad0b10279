package host

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/filters/header"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
)

// BenchmarkPlugin is a plugin that adds a field, having looked at the head or at
// the whole body, beside the built-in filter that adds one; with one call at a
// time and with sixteen. The plugin runs as a user of its own where we are root.
func BenchmarkPlugin(b *testing.B) {
	for _, c := range []struct {
		name, needs, act string
		size             int
	}{
		{"head", "head", "tag", 4 << 10},
		{"4KiB", "body", "touch", 4 << 10},
		{"64KiB", "body", "touch", 64 << 10},
		{"1MiB", "body", "touch", 1 << 20},
	} {
		for _, atOnce := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/%d", c.name, atOnce), func(b *testing.B) { benchmarkPlugin(b, c.needs, c.act, c.size, atOnce) })
		}
	}
}

func benchmarkPlugin(b *testing.B, needs, act string, size, atOnce int) {
	r := newRig(b)
	s := r.settings("needs=" + needs)
	s.User = users()[len(users())-1]
	plugin := r.filter(b, s, do(act))
	builtin, err := header.Kind().New(r.env(b), filtertest.Decode("[[rule]]\nop = \"add\"\nname = \"X-Seen\"\nvalue = \"yes\"\n"))
	if err != nil {
		b.Fatal(err)
	}
	messages := make([]message.Message, atOnce) // a spool file is lent to one call at a time
	for i := range messages {
		messages[i] = r.read(b, size)
		defer messages[i].Body().Release()
	}
	flow(b, plugin, messages, 50)
	pid := r.Status()[0].PIDs[0]
	b.ResetTimer()
	began, host, theirs := time.Now(), usedTime(b), processorTime(pid)
	flow(b, plugin, messages, b.N)
	asked := time.Since(began)
	host, theirs = usedTime(b)-host, processorTime(pid)-theirs
	began = time.Now()
	flow(b, builtin, messages, b.N)
	own := time.Since(began)
	b.ReportMetric(float64(b.N)/asked.Seconds(), "calls/s")
	b.ReportMetric(float64(b.N)/own.Seconds(), "built-in-calls/s")
	b.ReportMetric(asked.Seconds()/own.Seconds(), "x-built-in")
	// What a call costs in processor time, however busy the host is.
	b.ReportMetric(float64(host.Microseconds())/float64(b.N), "host-us/call")
	b.ReportMetric(float64(theirs.Microseconds())/float64(b.N), "plugin-us/call")
}

// usedTime is the processor time that this process has used.
func usedTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// flow makes n calls, as many at once as there are messages, each in a session of
// its own.
func flow(b *testing.B, f pipeline.Filter, messages []message.Message, n int) {
	var left atomic.Int64
	left.Store(int64(n))
	var all sync.WaitGroup
	for _, m := range messages {
		all.Go(func() {
			session := filtertest.Stranger()
			tx := &pipeline.Transaction{ID: "t1", Session: session, Envelope: envelope.To("a@example.net", "b@example.org"), Active: []int{0}, Chain: "inbound"}
			for left.Add(-1) >= 0 {
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				i, err := f.Open(ctx, session)
				if err == nil {
					var v pipeline.Verdict
					if v, err = i.(pipeline.Messager).Message(ctx, tx, m); err == nil && len(v.Edits) != 1 {
						err = fmt.Errorf("%d edits", len(v.Edits))
					}
				}
				cancel()
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}
