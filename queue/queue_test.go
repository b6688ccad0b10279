package queue

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sent is one recipient's delivery as an exit saw it.
type sent struct {
	id           store.ID
	sender, to   string
	text         string
	at           time.Time
	attempts     int
	acknowledged bool
}

// exit is an exit whose answers a test decides.
type exit struct {
	mu     sync.Mutex
	answer func(j *Job, to string) Result
	before func(ctx context.Context, j *Job)
	all    []sent
}

var (
	accepted = Result{Reply: reply.Make(250, reply.Enhanced{}, "ok"), Where: "mx.example"}
	later    = Result{Reply: reply.Make(451, reply.Enhanced{Subject: 4, Detail: 1}, "try later"), Where: "mx.example"}
	never    = Result{Reply: reply.Make(550, reply.Enhanced{Subject: 1, Detail: 1}, "no such user"), Where: "mx.example"}
)

func (x *exit) Deliver(ctx context.Context, j *Job) ([]Result, schedule.Health) {
	if x.before != nil {
		x.before(ctx, j)
	}
	text := string(j.Message.Bytes())
	var all []Result
	for _, r := range j.Envelope.Recipients {
		x.mu.Lock()
		res := accepted
		if x.answer != nil {
			res = x.answer(j, r.Address)
		}
		x.all = append(x.all, sent{j.ID, j.Envelope.Sender, r.Address, text, time.Now(), j.Attempts, res.Reply.Class == reply.Success})
		x.mu.Unlock()
		all = append(all, res)
	}
	return all, schedule.Succeeded
}

// to are the deliveries to an address, tried or acknowledged.
func (x *exit) to(address string) (all []sent) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range x.all {
		if s.to == address {
			all = append(all, s)
		}
	}
	return all
}

// byDomain routes a test's addresses.
func byDomain(address string) (channel, domain string) {
	return "remote", envelope.Domain(address)
}

// rig is a queue on a store in memory.
type rig struct {
	*Queue
	t     *testing.T
	store *queuetest.Memory
	exit  *exit
	log   *syncBuffer
	o     Options
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newRig(t *testing.T, change func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, store: queuetest.NewMemory(nil), exit: &exit{}, log: &syncBuffer{}}
	r.o = Options{
		Log: slog.New(slog.NewTextHandler(r.log, nil)), Host: "mx.here.example", Route: byDomain,
		Channels: []Channel{{Name: "remote", Exit: r.exit}},
		Rand:     func() float64 { return 0 },
	}
	if change != nil {
		change(&r.o)
	}
	r.open()
	return r
}

func (r *rig) open() {
	r.t.Helper()
	r.o.Store = r.store
	q, err := Open(r.o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Queue = q
}

func (r *rig) close() {
	r.t.Helper()
	if err := r.Close(r.t.Context()); err != nil {
		r.t.Error(err)
	}
	if len(r.tracks) > 0 || len(r.idle) > 0 {
		r.t.Errorf("%d tracks are left", len(r.tracks))
	}
	if err := r.schedule.Check(); err != nil {
		r.t.Error(err)
	}
}

func (r *rig) submit(sender string, to ...string) store.ID {
	r.t.Helper()
	return r.submitAll(Submission{Envelope: envelope.To(sender, to...)})[0]
}

func (r *rig) submitAll(all ...Submission) []store.ID {
	r.t.Helper()
	for i := range all {
		if all[i].Message.Size() == 0 {
			all[i].Message = message.FromString("Subject: a test\n\nhello\n")
		}
	}
	ids, err := r.Submit(r.t.Context(), all)
	if err != nil {
		r.t.Fatal(err)
	}
	return ids
}

// left are the messages in the queue.
func (r *rig) left() []*View {
	r.t.Helper()
	all, err := r.List(r.t.Context(), 0, 1000, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if n := r.counters.messages.Load(); int(n) != len(all) {
		r.t.Errorf("%d messages are counted, %d are there", n, len(all))
	}
	return all
}

func (r *rig) empty() {
	r.t.Helper()
	for _, v := range r.left() {
		r.t.Errorf("still there: %s from %s to %v", v.ID, v.Envelope.Sender, v.Recipients)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.schedule.Len() > 0 || len(r.many) > 0 || len(r.owing.due) > 0 {
		r.t.Errorf("memory keeps %d recipients, %d messages, %d debts", r.schedule.Len(), len(r.many), len(r.owing.due))
	}
}

// bubble runs a test with a clock of its own and a queue that is started.
func bubble(t *testing.T, change func(*Options), f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, change)
		r.Start()
		defer func() { r.close() }()
		f(t, r)
	})
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

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
		if err != nil || st.Submitted != 1 || st.Delivered != 3 || st.Removed != 1 || st.Messages != 0 {
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
