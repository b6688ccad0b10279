package queue

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/store"
)

func TestOneReport(t *testing.T) {
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
			if j.Domain == "three.example" {
				time.Sleep(20 * time.Second)
			}
		}
		id := r.submit("a@here.example", "bad1@one.example", "bad2@two.example", "good@one.example", "bad3@three.example", "slow@four.example")
		pass(10 * time.Second)
		if n := len(r.exit.to("a@here.example")); n != 0 {
			t.Errorf("%d reports while a delivery is going on", n)
		}
		pass(time.Minute)
		reports := r.exit.to("a@here.example")
		if len(reports) != 1 {
			t.Fatalf("%d reports", len(reports))
		}
		for i, want := range []int{1, 1, 1, 0, 0} {
			to := []string{"bad1@one.example", "bad2@two.example", "bad3@three.example", "good@one.example", "slow@four.example"}[i]
			if got := strings.Count(reports[0].text, "Final-Recipient: rfc822; "+to+"\n"); got != want {
				t.Errorf("%s: %d times", to, got)
			}
		}
		v, err := r.Show(id)
		if err != nil || v.Left() != 1 || v.Bouncing() || !v.Recipients[0].Reported || v.Recipients[4].Status != store.Deferred || v.Recipients[4].Site != "four.example" {
			t.Errorf("%+v %v", v, err)
		}
		pass(20 * 24 * time.Hour)
		r.empty()
		if n := len(r.exit.to("a@here.example")); n != 3 { // failures, delay, expiry
			t.Errorf("%d reports in the end", n)
		}
	})
}

func TestWarnOnce(t *testing.T) {
	for _, to := range [][]string{{"b@one.example"}, {"b@one.example", "c@two.example", "d@three.example"}} {
		bubble(t, nil, func(t *testing.T, r *rig) {
			r.exit.answer = func(_ *Job, to string) Result {
				if to == "a@here.example" {
					return accepted
				}
				return later
			}
			id := r.submit("a@here.example", to...)
			pass(3 * 24 * time.Hour)
			all := r.exit.to("a@here.example")
			if len(all) != 1 || !strings.Contains(all[0].text, "Action: delayed") || strings.Contains(all[0].text, "hello") {
				t.Fatalf("%d warnings: %v", len(all), all)
			}
			if age := all[0].at.Sub(id.Time()); age < 4*time.Hour || age > 7*time.Hour {
				t.Errorf("warned at %v", age)
			}
			for _, a := range to {
				if !strings.Contains(all[0].text, a) {
					t.Errorf("no %s in the warning", a)
				}
			}
			v, err := r.Show(id)
			if err != nil || !v.Recipients[len(to)-1].Warned {
				t.Errorf("%+v %v", v, err)
			}
			if _, err := r.Queue.Delete(t.Context(), Selection{IDs: []store.ID{id}}, "me"); err != nil {
				t.Error(err)
			}
			r.empty()
		})
	}
}

// TestExpiryOfIDsAhead: what is tried for how long does not depend on ids that
// are ahead of the clock, nor behind it, also after a restart.
func TestExpiryOfIDsAhead(t *testing.T) {
	for _, ahead := range []time.Duration{30 * 24 * time.Hour, -30 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			r := &rig{t: t, store: queuetest.NewMemory(func() time.Time { return time.Now().Add(ahead) }), exit: &exit{}, log: &syncBuffer{}}
			r.exit.answer = func(_ *Job, to string) Result {
				if to == "a@here.example" {
					return accepted
				}
				return later
			}
			r.o = Options{
				Log: slog.New(slog.NewTextHandler(r.log, nil)), Host: "mx.here.example", Route: byDomain,
				Channels: []Channel{{Name: "remote", Exit: r.exit}}, Lifetime: 24 * time.Hour, Rand: func() float64 { return 0 },
			}
			r.open()
			r.Start()
			came := time.Now()
			id := r.submit("a@here.example", "b@one.example")
			pass(time.Minute)
			v, err := r.Show(id)
			if err != nil || !v.Arrival.Equal(came) {
				t.Errorf("it came at %v, not %v (%v)", v.Arrival, came, err)
			}
			r.close()
			r.open()
			r.Start()
			pass(3 * 24 * time.Hour)
			all := r.exit.to("a@here.example")
			if len(all) != 2 || !strings.Contains(all[0].text, "Action: delayed") || !strings.Contains(all[1].text, "Action: failed") {
				t.Fatalf("%d reports: %v", len(all), all)
			}
			if age := all[0].at.Sub(came); age < 4*time.Hour || age > 7*time.Hour {
				t.Errorf("warned after %v", age)
			}
			if age := all[1].at.Sub(came); age < 24*time.Hour || age > 34*time.Hour {
				t.Errorf("given up after %v", age)
			}
			r.empty()
			r.close()
		})
	}
}

func TestReportsThatFail(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.exit.answer = func(*Job, string) Result { return never }
		r.submit("a@here.example", "b@one.example")
		pass(time.Minute)
		r.empty()
		bounce, double := r.exit.to("a@here.example"), r.exit.to("postmaster@mx.here.example")
		if len(bounce) != 1 || bounce[0].sender != "" {
			t.Errorf("%v", bounce)
		}
		if len(double) != 1 || double[0].sender != envelope.DoubleBounce || !strings.Contains(double[0].text, "the bounce bounced") {
			t.Errorf("%v", double)
		}
		if n := r.counters.discarded.Load(); n != 1 || !strings.Contains(r.log.String(), "triple bounce") {
			t.Errorf("%d discarded", n)
		}
	})
}

func TestNotify(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.exit.answer = func(_ *Job, to string) Result {
			switch envelope.Domain(to) {
			case "here.example":
				return accepted
			case "slow.example":
				return later
			}
			return never
		}
		notify := func(sender string, n envelope.Notify, to string) {
			e := envelope.To(sender, to)
			e.Recipients[0].DSN = &envelope.DSN{Notify: n, ORcpt: "rfc822;orig@x.example"}
			e.Ret = "HDRS"
			r.submitAll(Submission{Envelope: e})
		}
		notify("never@here.example", envelope.NotifyNever, "b@bad.example")
		notify("delay@here.example", envelope.NotifyDelay, "b@bad.example")
		notify("failure@here.example", envelope.NotifyFailure, "b@bad.example")
		notify("nodelay@here.example", envelope.NotifyFailure, "b@slow.example")
		notify("yesdelay@here.example", envelope.NotifyDelay, "b@slow.example")
		pass(48 * time.Hour)
		for to, want := range map[string]int{"never": 0, "delay": 0, "failure": 1, "nodelay": 0, "yesdelay": 1} {
			if n := len(r.exit.to(to + "@here.example")); n != want {
				t.Errorf("%s: %d reports", to, n)
			}
		}
		text := r.exit.to("failure@here.example")[0].text
		if strings.Contains(text, "hello") || !strings.Contains(text, "Subject: a test") || !strings.Contains(text, "Original-Recipient: rfc822; orig@x.example") {
			t.Error(text)
		}
		if n := len(r.left()); n != 2 {
			t.Errorf("%d messages are left", n)
		}
	})
}

func TestStrangersAreNotBounced(t *testing.T) {
	may := func(_ []byte, sender string) bool { return strings.HasSuffix(sender, "here.example") }
	bubble(t, func(o *Options) { o.Bounce.May = may }, func(t *testing.T, r *rig) {
		r.exit.answer = func(_ *Job, to string) Result {
			switch {
			case strings.HasPrefix(to, "bad"):
				return never
			case strings.HasPrefix(to, "slow"):
				return later
			}
			return accepted
		}
		for i := range 5 {
			r.submit(fmt.Sprintf("stranger%d@far.example", i), "bad@one.example")
		}
		mixed := r.submit("stranger@far.example", "bad@one.example", "slow@two.example")
		pass(time.Minute)
		notes := r.exit.to("postmaster@mx.here.example")
		if len(notes) != 1 || notes[0].sender != envelope.DoubleBounce || !strings.Contains(notes[0].text, "is held in the queue") {
			t.Errorf("%v", notes)
		}
		held := 0
		for _, v := range r.left() {
			if v.Hold != nil && v.Left() == 0 && v.Recipients[0].Status == store.Failed {
				held++
			}
			if v.ID == mixed && (v.Hold != nil || v.Recipients[1].Next.IsZero()) {
				t.Errorf("a message with a recipient left: %+v", v)
			}
		}
		if held != 5 {
			t.Errorf("%d are held", held)
		}
		pass(9 * 24 * time.Hour)
		v, err := r.Show(mixed)
		if err != nil || v.Hold == nil || len(r.exit.to("stranger@far.example")) > 0 {
			t.Errorf("%+v %v", v, err)
		}
		notes = r.exit.to("postmaster@mx.here.example")
		if len(notes) != 2 || !strings.Contains(notes[1].text, "4 other messages were held") {
			t.Errorf("%d notices: %v", len(notes), notes)
		}
		// What is held stays held over a restart, and is tried again when released.
		r.close()
		r.open()
		r.Start()
		pass(time.Hour)
		if n := len(r.left()); n != 6 {
			t.Errorf("%d messages after a restart", n)
		}
		r.exit.mu.Lock()
		r.exit.answer = nil
		r.exit.mu.Unlock()
		c, err := r.Release(t.Context(), Selection{Match: func(v *View) bool { return v.Hold != nil }}, "me")
		if err != nil || c.Messages != 6 {
			t.Errorf("%+v %v", c, err)
		}
		pass(time.Minute)
		r.empty()
		if n := len(r.exit.to("bad@one.example")); n != 12 {
			t.Errorf("%d deliveries", n)
		}
	})
}
