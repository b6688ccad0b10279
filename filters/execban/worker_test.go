package execban

import (
	"context"
	"io"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/worker"
)

// crimes are jobs that end badly, by name.
func crimes() map[string]worker.Job {
	return map[string]worker.Job{
		"garbage": func(context.Context, []byte, io.ReaderAt, int64, *worker.Scratch) ([]byte, error) {
			return []byte("all is well"), nil
		},
	}
}

// The filter with real workers.
func TestWorkers(t *testing.T) {
	f := newFilterOn(t, newPool(t, worker.Options{}), "")
	if v := judge(t, f, attached("x.exe", tinyPE())); v.Action != pipeline.Reject {
		t.Errorf("%+v", v)
	}
	if v := judge(t, f, "Subject: x\n\nhello\n"); v.Action != pipeline.Continue {
		t.Errorf("%+v", v)
	}
}
