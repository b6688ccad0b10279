package queue

import (
	"context"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// slowStore takes five seconds to store new messages, and ten to say that they
// are stored.
type slowStore struct{ *queuetest.Memory }

func (s slowStore) Apply(ctx context.Context, b *store.Batch, later bool) error {
	if len(b.Puts) > 0 {
		time.Sleep(5 * time.Second)
		defer time.Sleep(5 * time.Second)
	}
	return s.Memory.Apply(ctx, b, later)
}

func slow(r *rig) { r.Queue.o.Store = slowStore{r.store} }

// TestOperateWhileSubmitting changes messages that are stored and that the
// schedule does not know yet.
func TestOperateWhileSubmitting(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		slow(r)
		r.exit.answer = func(*Job, string) Result { return later }
		done := make(chan error)
		for _, sender := range []string{"held@here.example", "deleted@here.example"} {
			go func() {
				_, err := r.Submit(t.Context(), []Submission{{Envelope: envelope.To(sender, "b@one.example", "c@two.example"), Message: message.FromString("\n")}})
				done <- err
			}()
		}
		pass(6 * time.Second)
		if all := r.problems(); len(all) > 0 { // it waits for what is on disk and not in memory
			t.Errorf("%q", all)
		}
		if c, err := r.Hold(t.Context(), Selection{Match: from("held@here.example")}, store.Hold{Reason: "x"}); err != nil || c.Messages != 1 {
			t.Errorf("%+v %v", c, err)
		}
		if c, err := r.Delete(t.Context(), Selection{Match: from("deleted@here.example")}, "me"); err != nil || c.Messages != 1 {
			t.Errorf("%+v %v", c, err)
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		pass(time.Hour)
		all := r.left()
		if len(all) != 1 || all[0].Hold == nil || all[0].Left() != 2 {
			t.Fatalf("%+v", all)
		}
		if n := len(r.exit.to("b@one.example")); n > 2 {
			t.Errorf("%d attempts: a message was tried again", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		id := all[0].ID
		r.mu.Lock()
		busy := r.track(id)
		r.mu.Unlock()
		busy.writing.Lock()
		if _, err := r.Delete(ctx, Selection{IDs: []store.ID{id}}, "me"); err == nil {
			t.Error("a busy message was deleted")
		}
		busy.writing.Unlock()
		r.untrack(busy)
		if _, err := r.Delete(t.Context(), Selection{IDs: []store.ID{id}}, "me"); err != nil {
			t.Error(err)
		}
		r.empty()
	})
}

// TestConcludeWhileReporting delivers to a recipient while the failure of
// another is being reported.
func TestConcludeWhileReporting(t *testing.T) {
	every := schedule.List(time.Second).WithJitter(0)
	bubble(t, func(o *Options) { o.Channels[0].Backoff = every }, func(t *testing.T, r *rig) {
		slow(r)
		start := time.Now()
		r.exit.answer = func(_ *Job, to string) Result {
			switch {
			case to == "bad@one.example":
				return never
			case to == "late@two.example" && time.Since(start) < 13*time.Second:
				return later
			}
			return accepted
		}
		r.submit("a@here.example", "bad@one.example", "late@two.example", "later@three.example")
		pass(time.Minute)
		r.empty()
		if n := len(r.exit.to("a@here.example")); n != 1 {
			t.Errorf("%d reports", n)
		}
	})
}

// TestSubmitAndClose closes the queue while messages come.
func TestSubmitAndClose(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		acked := make(chan int)
		for range 4 {
			go func() {
				n := 0
				for {
					_, err := r.Submit(t.Context(), []Submission{{Envelope: envelope.To("a@here.example", "b@one.example"), Message: message.FromString("\n")}})
					if err != nil {
						acked <- n
						return
					}
					n++
					time.Sleep(10 * time.Millisecond)
				}
			}()
		}
		pass(time.Second)
		r.close()
		total := 0
		for range 4 {
			total += <-acked
		}
		r.open()
		r.Start()
		pass(time.Minute)
		r.empty()
		if n := len(r.exit.to("b@one.example")); n != total || n == 0 {
			t.Errorf("%d deliveries of %d messages", n, total)
		}
	})
}
