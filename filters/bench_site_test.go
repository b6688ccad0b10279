package filters

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/state"
	"github.com/postern-mta/postern/pipeline/worker"
	"github.com/postern-mta/postern/rules"
)

// siteTarget is the time that a message of 4 KiB may take in the chain of
// BenchmarkSite.
const siteTarget = 300 * time.Microsecond

// BenchmarkSite runs a stranger's message of 4 KiB through the chain that a site
// would have: rcptcheck with a CDB of 100,000 recipients, greylist with its state
// on the disk and 10,000 triplets that have passed, execban with its worker, header
// and tap. Beside it there are the same chain without execban, each filter alone,
// and a chain without filters, which is the floor.
func BenchmarkSite(b *testing.B) {
	file := filepath.Join(b.TempDir(), "recipients.cdb")
	var records []rules.CDBRecord
	for i := range 100_000 {
		records = append(records, rules.CDBRecord{Key: fmt.Sprintf(":user%d@example.org", i)})
	}
	var cdb bytes.Buffer
	if err := rules.WriteCDB(&cdb, records); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(file, cdb.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	configs := map[string]string{
		"rcptcheck": fmt.Sprintf("[[check]]\ncdb = %q\n", file),
		"greylist":  "after = 0\n",
		"execban":   "text = \"ask postmaster@example.org\"\n",
		"header":    benchConfigs["header"],
		"tap":       benchConfigs["tap"],
	}
	var floor, light float64
	for _, c := range []struct {
		name  string
		chain []string
	}{
		{"floor", nil},
		{"rcptcheck", []string{"rcptcheck"}},
		{"greylist", []string{"greylist"}},
		{"execban", []string{"execban"}},
		{"header", []string{"header"}},
		{"tap", []string{"tap"}},
		{"without-execban", []string{"rcptcheck", "greylist", "header", "tap"}},
		{"all", []string{"rcptcheck", "greylist", "execban", "header", "tap"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			each := benchSite(b, configs, c.chain)
			switch c.name {
			case "floor":
				floor = each
				return
			case "without-execban":
				light = each
			case "all":
				b.ReportMetric(each/siteTarget.Seconds(), "x-target")
				b.ReportMetric(each/light, "x-without-execban")
			}
			b.ReportMetric(each/floor, "x-floor")
		})
	}
}

// benchSite measures one chain, and returns its seconds a message.
func benchSite(b *testing.B, configs map[string]string, names []string) float64 {
	kept, err := state.Open(state.Options{Dir: filepath.Join(b.TempDir(), "state")})
	if err != nil {
		b.Fatal(err)
	}
	pool := worker.New(worker.Options{Size: 1})
	b.Cleanup(func() {
		pool.Close()
		kept.Close() //nolint:errcheck // it is thrown away
	})
	var late time.Duration
	env := filtertest.Env(b)
	env.Workers, env.Now = pool, func() time.Time { return time.Now().Add(late) }
	var steps []pipeline.Step
	for _, name := range names {
		for _, kind := range Kinds() {
			if kind.Name != name {
				continue
			}
			env.State = kept.Space(name)
			f, err := kind.New(env, filtertest.Decode(configs[name]))
			if err != nil {
				b.Fatal(err)
			}
			traits := pipeline.TraitsOf(f)
			steps = append(steps, pipeline.Step{Name: name, Filter: f, OnError: traits.OnError, Always: traits.Always})
		}
	}
	if len(steps) != len(names) {
		b.Fatalf("%d of %d filters", len(steps), len(names))
	}
	chain, err := pipeline.NewChain("bench", steps, pipeline.ChainOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer chain.Close() //nolint:errcheck // the benchmark has ended
	ctx := context.Background()
	m := message.FromString(siteMessage())
	session := filtertest.Stranger()
	const triplets = 10_000
	pass := func(i int) int {
		to := fmt.Sprintf("user%d@example.org", i*7919%triplets)
		tx := &pipeline.Transaction{ID: "t1", Session: session, Envelope: envelope.To("joe@example.net", to)}
		o := chain.Run(ctx, tx, m)
		defer o.Release()
		return len(o.Outgoing)
	}
	for i := range triplets { // everybody is greylisted once
		pass(i)
		if len(names) == 1 && names[0] != "greylist" || len(names) == 0 {
			break
		}
	}
	late = time.Hour
	if pass(1) != 1 {
		b.Fatal("the message does not pass")
	}
	b.ReportAllocs()
	before, taken := cpuTime(b), 0
	for i := 0; b.Loop(); i++ {
		taken += pass(i)
	}
	if taken != b.N {
		b.Fatalf("%d of %d messages passed", taken, b.N)
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
	return b.Elapsed().Seconds() / float64(b.N)
}

// siteMessage has 4 KiB.
func siteMessage() string {
	head := "Received: from a (b [192.0.2.1]) by c with ESMTPS; Mon, 2 Nov 2026 10:00:00 +0000\nSubject: hello\nFrom: joe@example.net\n" +
		"To: r@example.org\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nMessage-ID: <1@example.net>\nMIME-Version: 1.0\nContent-Type: text/plain\n\n"
	return (head + strings.Repeat("All work and no play makes Jack a dull boy, they say.\n", 76))[:4095] + "\n"
}
