package clamav

import (
	"context"
	"io"
	"testing"

	"github.com/postern-mta/postern/pipeline/worker"
)

// testJobs are the filter's job, and those that go wrong.
func testJobs() map[string]worker.Job {
	jobs := Jobs()
	jobs["garbage"] = func(context.Context, []byte, io.ReaderAt, int64, *worker.Scratch) ([]byte, error) {
		return []byte("all is well"), nil
	}
	return jobs
}

func TestHonest(t *testing.T) {
	s := newStub(t, honest)
	f := newFilter(t, "", s.Address)
	if v := must(t, f, large); v.Reason != "nothing found in the message" {
		t.Error(v)
	}
	if v := must(t, f, large+"EICAR"); v.Reply.SMTP() != "554 5.7.1 a virus was found in this message: Eicar-Test" {
		t.Error(v.Reply.SMTP())
	}
}
