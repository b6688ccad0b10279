package filters

import (
	"context"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/filters/execban"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/worker"
)

// TestMain lets this program be the worker of its own benchmarks.
func TestMain(m *testing.M) {
	worker.Main(execban.Jobs())
	os.Exit(m.Run())
}

// benchConfigs are the filters of BenchmarkChain, as a site has them.
var benchConfigs = map[string]string{
	"header": "[[rule]]\nop = \"remove\"\nname = \"X-Scanned\"\nwhen = 'external'\n[[rule]]\nop = \"add\"\nname = \"X-Scanned\"\nvalue = \"from ${ip} (${helo}) as ${id}\"\n",
	"tap":    "rules = [\"F:^joe@example\\\\.org$:archive@example.org\", \"T:^boss@example\\\\.org$:archive@example.org\", \"A:@lists\\\\.example\\\\.org$:lists@example.org\"]\n",
}

// BenchmarkChain runs a message of 4 KiB through a chain of the real header and
// tap, whose target is 20 µs where the tap finds nothing. The floor is copying
// the message's bytes once.
func BenchmarkChain(b *testing.B) {
	for _, c := range []struct {
		name, to string
		copies   int
	}{{"untapped", "joe@example.org", 0}, {"tapped", "boss@example.org", 1}} {
		b.Run(c.name, func(b *testing.B) { benchChain(b, c.to, c.copies, benchConfigs) })
	}
	// With execban, which has each message looked at in another process: the
	// target is 20 µs and 100 more.
	all := maps.Clone(benchConfigs)
	all["execban"] = "text = \"ask postmaster@example.org\"\n"
	b.Run("execban", func(b *testing.B) { benchChain(b, "joe@example.org", 0, all) })
}

func benchChain(b *testing.B, to string, copies int, configs map[string]string) {
	chain := benchSteps(b, configs)
	target := 20 * time.Microsecond
	if configs["execban"] != "" {
		target += 100 * time.Microsecond
	}
	head := "Received: from a (b [192.0.2.1]) by c with ESMTPS; Mon, 2 Nov 2026 10:00:00 +0000\nSubject: hello\nFrom: a@example.net\n" +
		"To: r@example.org\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nMessage-ID: <1@example.net>\nMIME-Version: 1.0\nContent-Type: text/plain\n\n"
	text := (head + strings.Repeat("All work and no play makes Jack a dull boy, they say.\n", 76))[:4095] + "\n"
	m := message.FromString(text)
	tx := &pipeline.Transaction{ID: "t1", Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", to)}
	ctx := context.Background()
	o := chain.Run(ctx, tx, m)
	if len(o.Outgoing) != 1+copies || o.Outgoing[0].Message.Head().Get("X-Scanned") == "" {
		b.Fatalf("%+v", o.Trace)
	}
	o.Release()
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		chain.Run(ctx, tx, m).Release()
	}
	used := (cpuTime(b) - before) / time.Duration(b.N)
	each := b.Elapsed() / time.Duration(b.N)
	floor, buffer := time.Now(), make([]byte, len(text))
	for range b.N {
		copy(buffer, m.Bytes())
	}
	if least := time.Since(floor) / time.Duration(b.N); least > 0 {
		b.ReportMetric(float64(each)/float64(least), "x-copy")
	}
	b.ReportMetric(float64(used), "cpu-ns/op")
	b.ReportMetric(float64(each)/float64(target), "x-target")
}

// cpuTime is what the process has used: on a busy machine it says more than the
// time that passed. The collector's share is in it.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchSteps(b *testing.B, configs map[string]string) *pipeline.Chain {
	b.Helper()
	pool := worker.New(worker.Options{Size: 1})
	b.Cleanup(func() { pool.Close() })
	env := filtertest.Env(b)
	env.Workers = pool
	var steps []pipeline.Step
	for _, kind := range Kinds() {
		config, ok := configs[kind.Name]
		if !ok {
			continue
		}
		f, err := kind.New(env, filtertest.Decode(config))
		if err != nil {
			b.Fatal(err)
		}
		traits := pipeline.TraitsOf(f)
		steps = append(steps, pipeline.Step{Name: kind.Name, Filter: f, OnError: traits.OnError, Always: traits.Always})
	}
	if len(steps) != len(configs) {
		b.Fatalf("%d of %d filters", len(steps), len(configs))
	}
	chain, err := pipeline.NewChain("bench", steps, pipeline.ChainOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return chain
}
