package queue

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

func TestDeliver(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.submit("a@here.example", "b@one.example", "c@one.example", "d@two.example")
		pass(time.Second)
		r.empty()
		for _, to := range []string{"b@one.example", "c@one.example", "d@two.example"} {
			if all := r.exit.to(to); len(all) != 1 || all[0].text != "Subject: a test\n\nhello\n" || all[0].sender != "a@here.example" {
				t.Errorf("%s: %v", to, all)
			}
		}
		st, err := r.Stats()
		if err != nil || st.Submitted != 1 || st.Delivered != 3 || st.ByChannel["remote"] != (Attempts{Delivered: 3}) || st.Removed != 1 || st.Messages != 0 {
			t.Errorf("%+v %v", st, err)
		}
	})
}

func TestDeferAndExpire(t *testing.T) {
	bubble(t, func(o *Options) { o.Bounce.Warn = -1 }, func(t *testing.T, r *rig) {
		r.exit.answer = func(*Job, string) Result { return later }
		r.exit.before = nil
		r.submit("a@here.example", "b@one.example")
		pass(8 * 24 * time.Hour)
		tries := r.exit.to("b@one.example")
		if len(tries) != 40 {
			t.Errorf("%d attempts, want 40 as qmail-send makes", len(tries))
		}
		for i, s := range tries {
			if s.attempts != i {
				t.Errorf("attempt %d says %d", i, s.attempts)
			}
		}
		r.exit.mu.Lock()
		r.exit.answer = nil
		r.exit.mu.Unlock()
		pass(24 * time.Hour)
		r.empty()
		reports := r.exit.to("a@here.example")
		if len(reports) == 0 || reports[len(reports)-1].sender != "" {
			t.Fatalf("%v", reports)
		}
		for _, want := range []string{"Status: 5.4.7", "try later", "this message has been in the queue too long", "Final-Recipient: rfc822; b@one.example"} {
			if !strings.Contains(reports[0].text, want) {
				t.Errorf("no %q in\n%s", want, reports[0].text)
			}
		}
	})
}

func TestVERP(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.exit.answer = func(_ *Job, to string) Result {
			if to == "c@one.example" {
				return never
			}
			return accepted
		}
		r.submit("list-@here.example-@[]", "b@one.example", "c@one.example")
		pass(time.Minute)
		r.empty()
		if s := r.exit.to("b@one.example"); len(s) != 1 || s[0].sender != "list-b=one.example@here.example" {
			t.Errorf("%v", s)
		}
		if s := r.exit.to("list-@here.example"); len(s) != 1 || s[0].sender != "" || !strings.Contains(s[0].text, "c@one.example") {
			t.Errorf("%v", s)
		}
	})
}

func TestHeldFromTheStart(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		id := r.submitAll(Submission{Envelope: envelope.To("a@here.example", "b@one.example"), Hold: &store.Hold{Reason: "a virus", Filter: "clamav"}})[0]
		pass(30 * 24 * time.Hour)
		r.close()
		r.open()
		r.Start()
		pass(time.Hour)
		v, err := r.Show(id)
		if err != nil || v.Hold == nil || v.Hold.Filter != "clamav" || len(r.exit.all) > 0 {
			t.Fatalf("%+v %v %v", v, err, r.exit.all)
		}
		if c, err := r.Release(t.Context(), Selection{IDs: []store.ID{id}}, "me"); err != nil || c.Messages != 1 || c.Recipients != 1 {
			t.Errorf("%+v %v", c, err)
		}
		pass(time.Second)
		r.empty()
	})
}

func TestBadExits(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.exit.before = func(_ context.Context, j *Job) {
			if j.Domain == "panic.example" && j.Attempts == 0 {
				panic("oops")
			}
		}
		r.channels["remote"] = Channel{Name: "remote", Exit: shortExit{r.exit}}
		r.submit("a@here.example", "b@panic.example", "c@short.example", "d@fine.example")
		pass(time.Second)
		if v := r.left(); len(v) != 1 || v[0].Left() != 2 {
			t.Errorf("%+v", v)
		}
		pass(time.Hour)
		r.empty()
		for _, want := range []string{"exit panicked", "wrong number of results"} {
			if !strings.Contains(r.log.String(), want) {
				t.Errorf("no %q in the log", want)
			}
		}
	})
}

// shortExit forgets a result, once.
type shortExit struct{ *exit }

func (x shortExit) Deliver(ctx context.Context, j *Job) ([]Result, schedule.Health) {
	all, h := x.exit.Deliver(ctx, j)
	if j.Domain == "short.example" && j.Attempts == 0 {
		return nil, h
	}
	return all, h
}

func TestForNobody(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		ids := r.submitAll(Submission{Envelope: envelope.To("a@here.example")})
		if len(ids) != 1 || ids[0] == 0 {
			t.Error(ids)
		}
		r.empty()
		for _, bad := range []string{"a\n@x", strings.Repeat("x", envelope.MaxAddress+1)} {
			for _, e := range []envelope.Envelope{envelope.To(bad, "b@x"), envelope.To("a@x", bad)} {
				if _, err := r.Submit(t.Context(), []Submission{{Envelope: e, Message: message.FromString("\n")}}); reply.Of(err).Class != reply.Permanent {
					t.Errorf("%q: %v", bad, err)
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Submit(ctx, []Submission{{Envelope: envelope.To("a@x", "b@x"), Message: message.FromString("\n")}}); err == nil || reply.Of(err).Class != reply.Temporary {
			t.Error(err)
		}
		pass(time.Second)
		r.empty()
	})
}

func TestSharedBody(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		spool, err := message.OpenDirectory(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{100, 200_000} {
			w := message.NewWriter(spool, 0)
			if _, err := io.WriteString(w, strings.Repeat("x\n", size/2)); err != nil {
				t.Fatal(err)
			}
			body, err := w.Body()
			if err != nil {
				t.Fatal(err)
			}
			m := message.FromString("Subject: shared\n\n").WithBody(body)
			r.submitAll(
				Submission{Envelope: envelope.To("a@here.example", "b@one.example"), Message: m},
				Submission{Envelope: envelope.To("a@here.example", "c@one.example"), Message: m},
			)
			body.Release()
			pass(time.Second)
			for _, to := range []string{"b@one.example", "c@one.example"} {
				all := r.exit.to(to)
				if s := all[len(all)-1]; len(s.text) != size+len("Subject: shared\n\n") {
					t.Errorf("%s: %d bytes", to, len(s.text))
				}
			}
			r.empty()
		}
		if names, err := os.ReadDir(spool.Path()); err != nil || len(names) > 0 {
			t.Error(names, err)
		}
	})
}

func TestCloseCutsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		free := make(chan struct{})
		r.exit.before = func(ctx context.Context, j *Job) {
			switch j.Domain {
			case "slow.example":
				<-ctx.Done()
			case "hang.example":
				<-free
			}
		}
		r.exit.answer = func(*Job, string) Result { return later }
		r.submit("a@here.example", "b@slow.example")
		r.Start()
		r.Start()
		pass(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := r.Close(ctx); err == nil {
			t.Error("nothing was cut off")
		}
		if _, err := r.Submit(t.Context(), []Submission{{Envelope: envelope.To("a@x", "b@x"), Message: message.FromString("\n")}}); reply.Of(err) != reply.Trouble {
			t.Error(err)
		}
		r.Start() // does nothing
		r.open()
		r.submit("a@here.example", "b@hang.example")
		r.Start()
		pass(time.Second)
		start := time.Now()
		ctx2, cancel2 := context.WithTimeout(t.Context(), time.Minute)
		defer cancel2()
		if err := r.Close(ctx2); err == nil || time.Since(start) > 2*time.Minute || !strings.Contains(r.log.String(), "deliveries do not end") {
			t.Error(err, time.Since(start))
		}
		close(free)
		synctest.Wait()
		r.open()
		if n := len(r.left()); n != 2 {
			t.Errorf("%d messages", n)
		}
		r.close()
	})
}
