package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/store"
)

func from(sender string) func(*View) bool {
	return func(v *View) bool { return v.Envelope.Sender == sender }
}

func TestSurgery(t *testing.T) {
	bubble(t, func(o *Options) { o.Bounce.Warn = -1 }, func(t *testing.T, r *rig) {
		r.exit.answer = func(*Job, string) Result { return later }
		ctx := t.Context()
		var ids []store.ID
		for i := range 20 {
			ids = append(ids, r.submit(fmt.Sprintf("s%d@here.example", i%2), fmt.Sprintf("r%d@one.example", i), "x@two.example"))
		}
		pass(time.Second)

		if _, err := r.Delete(ctx, Selection{}, "me"); !errors.Is(err, ErrNothingSelected) {
			t.Error(err)
		}
		if c, err := r.Delete(ctx, Selection{Match: from("s0@here.example"), DryRun: true}, "me"); err != nil || c.Messages != 10 || c.Recipients != 20 || len(c.IDs) != 10 {
			t.Errorf("%+v %v", c, err)
		}
		if n := len(r.left()); n != 20 {
			t.Fatalf("%d messages after a dry run", n)
		}
		if c, err := r.Hold(ctx, Selection{Match: from("s0@here.example")}, store.Hold{Reason: "odd", By: "me"}); err != nil || c.Messages != 10 || c.Recipients != 20 {
			t.Errorf("%+v %v", c, err)
		}
		if c, err := r.Hold(ctx, Selection{Match: from("s0@here.example")}, store.Hold{Reason: "again"}); err != nil || c.Messages != 0 {
			t.Errorf("%+v %v", c, err)
		}
		count, err := r.Count(ctx, func(v *View, r *Recipient) string {
			if v.Hold != nil {
				return "held"
			}
			return r.Status.String()
		})
		if err != nil || count["held"] != (Count{10, 20}) || count["deferred"] != (Count{10, 20}) {
			t.Errorf("%v %v", count, err)
		}
		r.exit.mu.Lock()
		r.exit.answer = nil
		r.exit.mu.Unlock()
		c, err := r.Retry(ctx, Selection{IDs: append([]store.ID{1, 1, 1 << 60}, ids...)}, "me")
		if err != nil || c.Messages != 10 || c.Recipients != 20 {
			t.Errorf("%+v %v", c, err)
		}
		pass(time.Second)
		all := r.left()
		if len(all) != 10 || all[0].Hold == nil || all[0].Hold.Reason != "odd" || all[0].Hold.By != "me" {
			t.Fatalf("%d messages", len(all))
		}
		r.close()
		r.open()
		r.Start()
		pass(24 * time.Hour)
		if n := len(r.left()); n != 10 {
			t.Errorf("%d messages after a restart", n)
		}
		if c, err := r.Release(ctx, Selection{IDs: []store.ID{ids[0], ids[2]}}, "me"); err != nil || c.Messages != 2 {
			t.Errorf("%+v %v", c, err)
		}
		pass(time.Second)
		if n := len(r.left()); n != 8 {
			t.Errorf("%d messages after a release", n)
		}
		if c, err := r.Delete(ctx, Selection{Match: from("s0@here.example")}, "me"); err != nil || c.Messages != 8 {
			t.Errorf("%+v %v", c, err)
		}
		r.empty()
		if n := r.store.Len(); n != 0 {
			t.Errorf("%d messages are stored", n)
		}
	})
}

// TestSurgeryInFlight holds and deletes messages while they are being delivered.
func TestSurgeryInFlight(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.exit.before = func(context.Context, *Job) { time.Sleep(10 * time.Second) }
		r.exit.answer = func(_ *Job, to string) Result {
			if strings.HasPrefix(to, "bad") {
				return never
			}
			return accepted
		}
		ctx := t.Context()
		deleted := r.submit("a@here.example", "bad@one.example")
		held := r.submit("b@here.example", "bad@one.example", "good@two.example")
		fine := r.submit("c@here.example", "good@two.example")
		pass(time.Second)
		if c, err := r.Delete(ctx, Selection{IDs: []store.ID{deleted}}, "me"); err != nil || c.InFlight != 1 {
			t.Errorf("%+v %v", c, err)
		}
		if c, err := r.Hold(ctx, Selection{IDs: []store.ID{held, fine}}, store.Hold{Reason: "wait"}); err != nil || c.InFlight != 3 {
			t.Errorf("%+v %v", c, err)
		}
		pass(time.Hour)
		v := r.left()
		if len(v) != 1 || v[0].ID != held || v[0].Left() != 0 || !v[0].Bouncing() {
			t.Fatalf("%+v", v)
		}
		if n := len(r.exit.to("a@here.example")) + len(r.exit.to("b@here.example")); n != 0 {
			t.Errorf("%d reports about what is deleted or held", n)
		}
		if _, err := r.Release(ctx, Selection{IDs: []store.ID{held}}, "me"); err != nil {
			t.Error(err)
		}
		pass(time.Minute)
		if n := len(r.exit.to("b@here.example")); n != 1 {
			t.Errorf("%d reports after the release", n)
		}
		r.empty()
	})
}

// TestNoRoomForReports fills the disk: deliveries go on and are written down,
// and reports follow when there is room.
func TestNoRoomForReports(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.exit.answer = func(_ *Job, to string) Result {
			if strings.HasPrefix(to, "bad") {
				return never
			}
			return accepted
		}
		r.exit.before = func(context.Context, *Job) { time.Sleep(time.Second) }
		for range 30 {
			r.submit("a@here.example", "bad@one.example")
		}
		r.submit("b@here.example", "bad@one.example", "good@two.example")
		r.submit("c@here.example", "good@two.example")
		r.store.Fail(func(b *store.Batch) error {
			if len(b.Puts) > 0 {
				return reply.With(reply.NoSpace, errors.New("low water"))
			}
			return nil
		})
		pass(time.Hour)
		if all := r.left(); len(all) != 31 || all[0].Left() != 0 || !all[0].Bouncing() {
			t.Fatalf("%d messages", len(all))
		}
		if _, err := r.Submit(t.Context(), []Submission{{Envelope: envelope.To("a@x", "b@x"), Message: message.FromString("\n")}}); reply.Of(err) != reply.NoSpace {
			t.Error(err)
		}
		// Also over a restart.
		r.close()
		r.open()
		r.Start()
		pass(time.Hour)
		r.store.Fail(nil)
		pass(2 * time.Minute)
		if n := len(r.exit.to("a@here.example")); n != 30 {
			t.Errorf("%d reports", n)
		}
		if n := len(r.exit.to("b@here.example")); n != 1 {
			t.Errorf("%d reports", n)
		}
		if n := len(r.exit.to("bad@one.example")); n != 31 {
			t.Errorf("%d deliveries", n)
		}
		r.empty()
	})
}

// TestCannotWrite has a store that writes nothing for a while, and one that
// never does again.
func TestCannotWrite(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.exit.before = func(context.Context, *Job) { time.Sleep(time.Second) }
		r.submit("a@here.example", "b@one.example", "c@two.example")
		r.store.Fail(func(*store.Batch) error { return errors.New("EIO") })
		pass(10 * time.Second)
		r.store.Fail(nil)
		pass(10 * time.Second)
		r.empty()
		if n := len(r.exit.to("b@one.example")); n != 1 {
			t.Errorf("%d deliveries", n)
		}
		id := r.submit("a@here.example", "b@one.example", "d@two.example")
		r.store.Fail(func(*store.Batch) error { return errors.New("EIO") })
		pass(24 * time.Hour)
		r.store.Fail(nil)
		pass(24 * time.Hour)
		if n := len(r.exit.to("d@two.example")); n != 1 || len(r.left()) != 1 {
			t.Errorf("%d deliveries", n)
		}
		if c, err := r.Retry(t.Context(), Selection{IDs: []store.ID{id}}, "me"); err != nil || c.Messages != 1 {
			t.Errorf("%+v %v", c, err)
		}
		pass(time.Minute)
		r.empty()
	})
}

// damaged is a store in which a message cannot be read.
type damaged struct {
	*queuetest.Memory
	bad *atomic.Uint64
}

type damagedReader struct {
	store.Reader
	bad store.ID
}

func (d damaged) Reader() (store.Reader, error) {
	r, err := d.Memory.Reader()
	return damagedReader{r, store.ID(d.bad.Load())}, err
}

func (d damagedReader) Message(id store.ID) (*store.Message, error) {
	if id == d.bad {
		return nil, errors.New("damaged")
	}
	return d.Reader.Message(id)
}

func (d damagedReader) Scan(from store.ID, f func(*store.Entry) error) error {
	return d.Reader.Scan(from, func(e *store.Entry) error {
		if e.Message.ID == d.bad {
			return nil
		}
		return f(e)
	})
}

func TestUnreadable(t *testing.T) {
	var bad atomic.Uint64
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, store: queuetest.NewMemory(nil), exit: &exit{}, log: &syncBuffer{}}
		r.o = newRig(t, nil).o
		r.o.Channels = []Channel{{Name: "remote", Exit: r.exit}}
		r.o.Store = damaged{r.store, &bad}
		var err error
		if r.Queue, err = Open(r.o); err != nil {
			t.Fatal(err)
		}
		bad.Store(uint64(r.submit("a@here.example", "b@one.example", "c@two.example")))
		r.Start()
		defer r.Close(t.Context()) //nolint:errcheck // nothing is going on
		pass(30 * 24 * time.Hour)
		if len(r.exit.to("b@one.example")) > 0 || r.store.Len() != 1 || r.scheduled() != 2 {
			t.Errorf("%v %d %d", r.exit.to("b@one.example"), r.store.Len(), r.scheduled())
		}
		bad.Store(0)
		pass(10 * time.Minute)
		if len(r.exit.to("b@one.example")) != 1 || r.store.Len() != 0 {
			t.Errorf("%v %d", r.exit.to("b@one.example"), r.store.Len())
		}
		r.exit.mu.Lock()
		r.exit.answer = func(*Job, string) Result { return later }
		r.exit.mu.Unlock()
		id := r.submit("a@here.example", "b@one.example")
		pass(time.Second)
		bad.Store(uint64(id))
		pass(time.Hour)
		if c, err := r.Delete(t.Context(), Selection{IDs: []store.ID{id}}, "me"); err != nil || c.Messages != 1 || r.store.Len() != 0 {
			t.Errorf("%+v %v", c, err)
		}
		pass(time.Hour)
		if r.scheduled() != 0 {
			t.Error("its recipients are still scheduled")
		}
	})
}

// TestManyRecipients reads a message with many domains once, not once for each.
func TestManyRecipients(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		reads := 0
		r.o.Store = countingStore{r.store, &reads}
		r.Queue.o.Store = r.o.Store
		r.exit.before = func(context.Context, *Job) { time.Sleep(time.Millisecond) }
		r.exit.answer = func(j *Job, to string) Result {
			switch {
			case strings.HasPrefix(to, "bad"):
				return never
			case strings.HasPrefix(to, "slow") && j.Attempts < 2:
				return later
			}
			return accepted
		}
		var to []string
		for i := range 3000 {
			to = append(to, fmt.Sprintf("%s@d%d.example", []string{"good", "bad", "slow"}[i%3], i))
		}
		r.submit("a@here.example", to...)
		pass(24 * time.Hour)
		r.empty()
		if reads > 20 {
			t.Errorf("the message was read %d times", reads)
		}
		reports := r.exit.to("a@here.example")
		n := 0
		for _, s := range reports {
			n += strings.Count(s.text, "Final-Recipient:")
		}
		if n != 1000 || len(reports) > 5 {
			t.Errorf("%d reports about %d recipients", len(reports), n)
		}
	})
}

type countingStore struct {
	*queuetest.Memory
	reads *int
}

type countingReader struct {
	store.Reader
	reads *int
}

func (c countingStore) Reader() (store.Reader, error) {
	r, err := c.Memory.Reader()
	return countingReader{r, c.reads}, err
}

func (c countingReader) Message(id store.ID) (*store.Message, error) {
	m, err := c.Reader.Message(id)
	if err == nil && len(m.Envelope.Recipients) > 1 {
		*c.reads++
	}
	return m, err
}

func (c countingReader) Scan(from store.ID, f func(*store.Entry) error) error {
	return c.Reader.Scan(from, func(e *store.Entry) error {
		if len(e.Message.Envelope.Recipients) > 1 {
			*c.reads++
		}
		return f(e)
	})
}
