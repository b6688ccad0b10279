package admin

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// exit is an exit whose answers depend on the address: ok..., later..., never...
type exit struct{}

func (exit) Deliver(_ context.Context, j *queue.Job) ([]queue.Result, schedule.Health) {
	var all []queue.Result
	for _, r := range j.Envelope.Recipients {
		res := queue.Result{Where: "mx.example"}
		switch {
		case strings.HasPrefix(r.Address, "later"):
			res.Reply, res.Perhaps = reply.Make(451, reply.Enhanced{Subject: 4, Detail: 1}, "greylisted, come back"), strings.HasPrefix(r.Address, "later-perhaps")
		case strings.HasPrefix(r.Address, "never"):
			res.Reply = reply.Make(550, reply.Enhanced{Subject: 1, Detail: 1}, "no such user")
		default:
			res.Reply = reply.Make(250, reply.Enhanced{}, "ok")
		}
		all = append(all, res)
	}
	return all, schedule.Succeeded
}

// fakeStore is a store's statistics and problems.
type fakeStore struct {
	stats    pebble.Stats
	problems []string
	err      error
}

func (f *fakeStore) Stats() pebble.Stats { return f.stats }

func (f *fakeStore) Verify(_ context.Context, report func(string)) error {
	for _, p := range f.problems {
		report(p)
	}
	return f.err
}

// rig is a door on a queue in memory, with a client outside.
type rig struct {
	t      *testing.T
	queue  *queue.Queue
	store  *fakeStore
	meter  *Meter
	client *Client
	log    *lockedBuffer
}

// newRig opens the door; change may change what is behind it.
func newRig(t *testing.T, change func(*Daemon)) *rig {
	t.Helper()
	return newRigOn(t, queuetest.NewMemory(nil), change)
}

// newRigOn does it for a queue on a given store.
func newRigOn(t *testing.T, disk *queuetest.Memory, change func(*Daemon)) *rig {
	t.Helper()
	r := &rig{t: t, store: &fakeStore{}, meter: NewMeter(), log: &lockedBuffer{}}
	q, err := queue.Open(queue.Options{
		Store: disk, Log: slog.New(slog.NewTextHandler(r.log, nil)), Host: "here.example",
		Route: func(address string) (channel, domain string) {
			if d := envelope.Domain(address); d != "here.example" {
				return "remote", d
			}
			return "local", "here.example"
		},
		Lane: func(sender string, _ []byte) string {
			if lane, ok := strings.CutSuffix(sender, "@lane.example"); ok {
				return lane
			}
			return ""
		},
		Channels: []queue.Channel{
			{Name: "local", Exit: exit{}},
			{Name: "remote", Exit: exit{}, Admit: func(time.Time, string, string) (queue.Leave, *queue.Wait) { return nil, nil }},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.queue = q
	t.Cleanup(func() { q.Close(context.Background()) }) //nolint:errcheck // nothing goes on
	d := Daemon{
		Log: slog.New(slog.DiscardHandler), Queue: q, Store: r.store, Meter: r.meter,
		Status: func() api.Status {
			return api.Status{Version: "1.2", Generation: 3, Entrances: []api.Entrance{{Name: "mx", Sessions: 4}}}
		},
	}
	if change != nil {
		change(&d)
	}
	socket := filepath.Join(t.TempDir(), "admin.sock")
	s, err := Listen(socket, d)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		s.Shutdown(context.Background()) //nolint:errcheck // the test is over
		<-served
	})
	r.client = NewClient(socket)
	return r
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (r *rig) submit(s queue.Submission, text string) string {
	r.t.Helper()
	s.Message = message.FromString(text)
	ids, err := r.queue.Submit(context.Background(), []queue.Submission{s})
	if err != nil {
		r.t.Fatal(err)
	}
	return ids[0].String()
}

func (r *rig) send(sender string, to ...string) string {
	return r.submit(queue.Submission{Envelope: envelope.To(sender, to...)}, "Subject: hello\n\nbody\n")
}

func (r *rig) list(q QueueQuery) (all []api.QueueMessage, rest QueueRest) {
	r.t.Helper()
	rest, err := r.client.Queue(context.Background(), q, func(m *api.QueueMessage) error {
		all = append(all, *m)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all, rest
}

func ids(all []api.QueueMessage) (list []string) {
	for _, m := range all {
		list = append(list, m.ID)
	}
	return list
}

// wait waits until the queue is as wanted.
func (r *rig) wait(what string, ok func(queue.Stats) bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := r.queue.Stats()
		if err != nil {
			r.t.Fatal(err)
		}
		if ok(s) {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("waited in vain until %s: %+v", what, s)
		}
	}
}
