package queue

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// quarantined is a message that a filter holds, as an operator sees it.
func (r *rig) quarantined(to ...string) *View {
	r.t.Helper()
	hold := &store.Hold{Reason: "a virus", Filter: "clamav", Since: time.Now()}
	id := r.submitAll(Submission{Envelope: envelope.To("s@far.example", to...), Hold: hold})[0]
	return r.show(id)
}

func (r *rig) show(id store.ID) *View {
	r.t.Helper()
	v, err := r.Show(id)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// TestReplace: what a filter held for a month is delivered when it is let go,
// tried for a whole lifetime from then on, and nobody was told meanwhile.
func TestReplace(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		v := r.quarantined("a@one.example", "b@one.example")
		pass(31 * 24 * time.Hour)
		if len(r.exit.all) > 0 || len(r.left()) != 1 {
			t.Fatalf("a held message was tried, or reported: %+v", r.exit.all)
		}
		r.exit.answer = func(*Job, string) Result { return later }
		m, err := r.Content(v.ID)
		if err != nil {
			t.Fatal(err)
		}
		again := &store.Hold{Reason: "spam", Filter: "score", Since: time.Now()}
		ids, err := r.Replace(t.Context(), v, []Submission{
			{Envelope: envelope.To("s@far.example", "a@one.example"), Message: m},
			{Envelope: envelope.To("s@far.example", "b@one.example"), Message: m, Hold: again},
		}, "me")
		m.Body().Release() //nolint:errcheck // nothing depends on it
		if err != nil || len(ids) != 2 {
			t.Fatal(ids, err)
		}
		pass(time.Second)
		if all := r.left(); len(all) != 2 || all[0].ID != ids[0] || all[0].Hold != nil || all[1].Hold.Filter != "score" || all[0].Recipients[0].Status != store.Deferred {
			t.Fatalf("left: %+v", all)
		}
		if got := r.exit.to("a@one.example"); len(got) != 1 || got[0].text != "Subject: a test\n\nhello\n" {
			t.Errorf("deliveries: %+v", got)
		}
		// The old one is gone for every purpose.
		if _, err := r.Replace(t.Context(), v, []Submission{{Envelope: envelope.To("", "a@one.example")}}, "me"); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		if _, err := r.Content(v.ID); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		r.exit.mu.Lock()
		r.exit.answer = nil
		r.exit.mu.Unlock()
		pass(24 * time.Hour)
		if _, err := r.Release(t.Context(), Selection{IDs: ids[1:]}, "me"); err != nil {
			t.Error(err)
		}
		pass(time.Second)
		r.empty()
		if n := len(r.exit.to("s@far.example")); n != 0 {
			t.Errorf("%d reports", n)
		}
	})
}

// TestReplaceReport: a report that is let go stays a report.
func TestReplaceReport(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		hold := &store.Hold{Reason: "no key", Filter: "sign", Since: time.Now()}
		id := r.submitAll(Submission{Envelope: envelope.To("", "a@one.example"), Hold: hold, bounce: 1})[0]
		v := r.show(id)
		if err := r.Exchangeable(t.Context(), v); err != nil {
			t.Error(err)
		}
		ids, err := r.Replace(t.Context(), v, []Submission{{Envelope: v.Envelope, Message: message.FromString("A: b\n\n"), Hold: hold}}, "me")
		if err != nil {
			t.Fatal(err)
		}
		if got := r.show(ids[0]); got.Bounce != 1 {
			t.Errorf("%+v", got)
		}
		if err := r.Exchangeable(t.Context(), v); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
}

// TestReplaceChanged: a message that is not as it was looked at stays as it is.
func TestReplaceChanged(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		ctx := t.Context()
		one := []Submission{{Envelope: envelope.To("s@far.example", "a@one.example"), Message: message.FromString("A: b\n\n")}}
		v := r.quarantined("a@one.example")
		if _, err := r.Replace(ctx, v, nil, "me"); err == nil {
			t.Error("replaced by nothing")
		}
		if _, err := r.Replace(ctx, v, []Submission{{Envelope: envelope.To("", "a\n@one.example"), Message: one[0].Message}}, "me"); err == nil {
			t.Error("replaced by what cannot be delivered")
		}
		hold := *v.Hold
		hold.Reason = "refused by score"
		if err := r.Rehold(ctx, v, hold, "me"); err != nil {
			t.Error(err)
		}
		if err := r.Rehold(ctx, v, hold, "me"); !errors.Is(err, ErrChanged) {
			t.Error(err)
		}
		if _, err := r.Replace(ctx, v, one, "me"); !errors.Is(err, ErrChanged) {
			t.Error(err)
		}
		if now := r.show(v.ID); now.Hold.Reason != "refused by score" || now.Hold.Filter != "clamav" {
			t.Errorf("%+v", now.Hold)
		}
		r.store.Fail(func(*store.Batch) error { return errors.New("no") })
		now := r.show(v.ID)
		if _, err := r.Replace(ctx, now, one, "me"); err == nil {
			t.Error("a store that failed was taken for one that worked")
		}
		r.store.Fail(nil)
		if _, err := r.Release(ctx, Selection{IDs: []store.ID{v.ID}}, "me"); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		if len(r.exit.to("a@one.example")) != 1 {
			t.Error("not delivered once")
		}
		r.empty()
	})
}

// TestReplaceInFlight: while a delivery is going on, or a report is owed, there
// is no exchange.
func TestReplaceInFlight(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.exit.before = func(context.Context, *Job) { time.Sleep(time.Minute) }
		r.exit.answer = func(_ *Job, to string) Result {
			if to == "bad@one.example" {
				return never
			}
			return later
		}
		id := r.submit("s@far.example", "bad@one.example", "a@two.example")
		pass(time.Second)
		if _, err := r.Hold(t.Context(), Selection{IDs: []store.ID{id}}, store.Hold{Filter: "sign", Reason: "no key"}); err != nil {
			t.Fatal(err)
		}
		one := []Submission{{Envelope: envelope.To("s@far.example", "a@two.example"), Message: message.FromString("A: b\n\n")}}
		if _, err := r.Replace(t.Context(), r.show(id), one, "me"); !errors.Is(err, ErrChanged) || !errors.Is(err, errFlying) {
			t.Error(err)
		}
		pass(2 * time.Minute)
		if v := r.show(id); !v.Bouncing() {
			t.Fatalf("%+v", v)
		}
		if _, err := r.Replace(t.Context(), r.show(id), one, "me"); !errors.Is(err, errOwes) {
			t.Error(err)
		}
		if len(r.left()) != 1 {
			t.Error("something was queued")
		}
	})
}
