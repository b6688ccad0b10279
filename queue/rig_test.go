package queue

import (
	"bytes"
	"context"
	"log/slog"
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

// scheduled is how many recipients the schedule knows.
func (r *rig) scheduled() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.schedule.Len()
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
