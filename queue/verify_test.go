package queue

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

func (r *rig) problems() (all []string) {
	r.t.Helper()
	if err := r.Verify(r.t.Context(), func(p string) { all = append(all, p) }); err != nil {
		r.t.Error(err)
	}
	return all
}

// TestVerify finds nothing wrong with a queue at work, whatever its messages
// are doing, and everything that is done to it behind its back.
func TestVerify(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.exit.answer = func(_ *Job, to string) Result {
			switch {
			case strings.HasPrefix(to, "bad"):
				return never
			case strings.HasPrefix(to, "slow"):
				return later
			}
			return accepted
		}
		r.exit.before = func(_ context.Context, j *Job) {
			if j.Domain == "busy.example" {
				time.Sleep(time.Minute)
			}
		}
		ids := []store.ID{
			r.submit("a@here.example", "slow@one.example"),
			r.submit("a@here.example", "good@one.example", "slow@one.example", "slow2@two.example"),
			r.submit("a@here.example", "good@one.example", "good@busy.example", "bad@two.example", "slow@two.example"),
		}
		ids = append(ids, r.submitAll(Submission{Envelope: envelope.To("a@here.example", "x@one.example", "y@two.example"), Hold: &store.Hold{Reason: "odd"}})...)
		pass(10 * time.Second)
		if _, err := r.Queue.Hold(t.Context(), Selection{IDs: ids[2:3]}, store.Hold{Reason: "odd"}); err != nil {
			t.Fatal(err)
		}
		if all := r.problems(); len(all) > 0 {
			t.Errorf("%q", all)
		}
		pass(2 * time.Minute)
		if all := r.problems(); len(all) > 0 {
			t.Errorf("%q", all)
		}
		for _, c := range []struct {
			says       string
			do, undone func()
		}{
			{
				"0 recipients are in the schedule, 2 on disk are not done with",
				func() { r.schedule.Remove(schedule.Select{ID: uint64(ids[1])}) },
				func() {
					for n, d := range []string{"", "one.example", "two.example"} {
						if n > 0 {
							r.schedule.Add(schedule.Entry{Channel: "remote", Domain: d, ID: uint64(ids[1]), Recipient: uint32(n), Attempts: 1, Due: time.Now().Add(time.Hour)})
						}
					}
				},
			},
			{
				"it is in the schedule and not on disk",
				func() {
					r.schedule.Add(schedule.Entry{Channel: "remote", Domain: "one.example", ID: 77, Due: time.Now().Add(time.Hour)})
				},
				func() { r.schedule.Remove(schedule.Select{ID: 77}) },
			},
			{
				"recipient 0 is queued in the schedule and done with on disk",
				func() {
					r.schedule.Add(schedule.Entry{Channel: "remote", Domain: "one.example", ID: uint64(ids[1]), Due: time.Now().Add(time.Hour)})
				},
				func() { r.schedule.Remove(schedule.One(uint64(ids[1]), 0)) },
			},
			{
				"is queued in the schedule and held on disk",
				func() { r.schedule.Release(schedule.Select{ID: uint64(ids[3])}) },
				func() { r.schedule.Hold(schedule.Select{ID: uint64(ids[3])}) },
			},
			{
				"postern queue retry",
				func() { r.schedule.Hold(schedule.Select{ID: uint64(ids[0])}) },
				func() { r.schedule.Release(schedule.Select{ID: uint64(ids[0])}) },
			},
			{
				`leaves by lane "" and waits for a site in lane "a"`,
				func() { r.schedule.Assign("one.example", "one.example@a") },
				func() { r.schedule.Assign("one.example", "one.example") },
			},
			{
				"7 recipients are counted in memory",
				func() { r.many[ids[1]] = tally{left: 7} },
				func() { r.many[ids[1]] = tally{left: 2} },
			},
			{
				"is there twice",
				func() {
					r.schedule.Add(schedule.Entry{Channel: "remote", Domain: "one.example", ID: uint64(ids[0]), Due: time.Now().Add(time.Hour)})
				},
				func() {
					r.schedule.Remove(schedule.Select{ID: uint64(ids[0])})
					r.schedule.Add(schedule.Entry{Channel: "remote", Domain: "one.example", ID: uint64(ids[0]), Due: time.Now().Add(time.Hour)})
				},
			},
		} {
			r.mu.Lock()
			c.do()
			r.mu.Unlock()
			if all := strings.Join(r.problems(), "\n"); !strings.Contains(all, c.says) {
				t.Errorf("%s: %q", c.says, all)
			}
			r.mu.Lock()
			c.undone()
			r.mu.Unlock()
			if all := r.problems(); len(all) > 0 {
				t.Fatalf("after %s: %q", c.says, all)
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("enough of it"))
		if err := r.Verify(ctx, func(string) {}); err == nil || err.Error() != "enough of it" {
			t.Error(err)
		}
	})
}
