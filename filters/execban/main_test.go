package execban

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/worker"
)

func TestMain(m *testing.M) {
	worker.Main(testJobs())
	goleak.VerifyTestMain(m)
}

// testJobs are the filter's job, and those that go wrong.
func testJobs() map[string]worker.Job {
	jobs := Jobs()
	for name, job := range crimes() {
		jobs[name] = job
	}
	return jobs
}

// here does jobs in this process, for tests of what is found.
type here struct{ job worker.Job }

func newHere() here { return here{Jobs()[Name]} }

// Do does a job, with temporary space in memory.
func (h here) Do(ctx context.Context, r worker.Request) ([]byte, error) {
	scratch := worker.NewScratch(nil, 256<<20)
	defer scratch.Reset() //nolint:errcheck // it is in memory
	b, err := h.job(ctx, r.Args, io.NewSectionReader(r.Body, 0, r.Size), r.Size, scratch)
	if err == nil && r.Decode != nil {
		err = r.Decode(b)
	}
	return b, err
}

func envOf(w pipeline.Workers) pipeline.Env {
	return pipeline.Env{Log: slog.New(slog.DiscardHandler), Workers: w}
}

// newFilter is a filter whose jobs are done in this process.
func newFilter(t testing.TB, config string) *Filter {
	t.Helper()
	return newFilterOn(t, newHere(), config)
}

func newFilterOn(t testing.TB, w pipeline.Workers, config string) *Filter {
	t.Helper()
	f, err := Kind().New(envOf(w), filtertest.Decode(config))
	if err != nil {
		t.Fatal(err)
	}
	return f.(*Filter)
}

// newPool is a pool for a test.
func newPool(t testing.TB, o worker.Options) *worker.Pool {
	t.Helper()
	if o.Size == 0 {
		o.Size = 1
	}
	if o.Wait == 0 {
		o.Wait = time.Minute
	}
	p := worker.New(o)
	t.Cleanup(func() { p.Close() })
	return p
}

func transaction() *pipeline.Transaction {
	return &pipeline.Transaction{Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org"), Active: []int{0}}
}

// judge has a filter judge a message.
func judge(t testing.TB, f *Filter, text string) pipeline.Verdict {
	t.Helper()
	v, err := f.Message(context.Background(), transaction(), message.FromString(text))
	if err != nil {
		t.Fatalf("%v; of\n%s", err, cut(text))
	}
	return v
}

func cut(text string) string { return text[:min(len(text), 2000)] }

// found is the classes that a message was found to have, in their order.
func found(v pipeline.Verdict) string {
	var names []string
	for _, s := range v.Symbols {
		names = append(names, strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(s.Name, "EXECBAN_"), "_", "-")))
	}
	return strings.Join(names, " ")
}

// findingsOf is what the scan of a message comes to.
func findingsOf(t testing.TB, f *Filter, text string) *answer {
	t.Helper()
	var a *answer
	_, err := newHere().Do(context.Background(), worker.Request{
		Args: f.request, Body: strings.NewReader(text), Size: int64(len(text)),
		Decode: func(b []byte) (err error) {
			a, err = decode(b, f.policy.known)
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}
