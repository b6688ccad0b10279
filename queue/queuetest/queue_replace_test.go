package queuetest

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
)

// TestReplaceCrash cuts the power before every change of the file system that
// the replacing of a held message makes, and in the middle of every write: what
// is there then is the old message, held, or all that took its place; never
// both, never neither.
func TestReplaceCrash(t *testing.T) {
	for name, size := range map[string]int{"small": 3000, "large": 100_000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { replaceCrash(t, strings.Repeat("x\n", size/2)) })
		})
	}
}

func replaceCrash(t *testing.T, text string) {
	w := newWorld(1)
	w.calm = true
	must(t, w.open())
	ctx := context.Background()
	hold := &store.Hold{Reason: "a virus", Filter: "clamav", Since: time.Now()}
	ids, err := w.q.Submit(ctx, []queue.Submission{{Envelope: envelope.To("s@a.example", "a@b.example", "b@c.example"), Message: message.FromString("X: y\n\n" + text), Hold: hold}})
	must(t, err)
	was, err := w.q.Show(ids[0])
	must(t, err)
	m, err := w.q.Content(ids[0])
	must(t, err)

	var mu sync.Mutex
	var wrecks []*vfs.MemFS
	var calls []Call
	rng := rand.New(rand.NewPCG(1, 2))
	w.fs.Hook(func(c Call) error {
		mu.Lock()
		defer mu.Unlock()
		percent := [...]int{0, 100, 50}[len(wrecks)%3]
		wrecks, calls = append(wrecks, w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})), append(calls, c)
		return nil
	})
	h, err := m.Head().Edit(message.FieldEdit{Op: message.Add, Name: "X-Seen", Value: "yes"})
	must(t, err)
	next, err := w.q.Replace(ctx, was, []queue.Submission{
		{Envelope: envelope.To("s@a.example", "a@b.example"), Message: m.WithHead(h), Hold: &store.Hold{Reason: "spam", Filter: "score"}},
		{Envelope: envelope.To("s@a.example", "b@c.example"), Message: m, Hold: &store.Hold{Reason: "odd", Filter: "execban"}},
	}, "me")
	must(t, err)
	w.fs.Hook(nil)
	must(t, m.Body().Release())
	after := w.mem.CrashClone(vfs.CrashCloneCfg{})
	must(t, w.close())
	if len(wrecks) < 3 {
		t.Fatalf("%d power cuts", len(wrecks))
	}
	olds, news := 0, 0
	for i, fs := range append(wrecks, after) {
		found := heldIn(t, fs, text)
		switch {
		case slices.Equal(found, ids) && i < len(wrecks):
			olds++
		case slices.Equal(found, next):
			news++
		default:
			t.Errorf("power cut %d (%+v): there are %v; the old one is %v, the new ones %v", i, append(calls, Call{})[i], found, ids, next)
		}
	}
	if olds == 0 || news == 0 {
		t.Errorf("the cuts leave the old one %d times and the new ones %d times", olds, news)
	}
}

// heldIn are the messages that a crash left, each of which must be whole and
// held.
func heldIn(t *testing.T, fs *vfs.MemFS, text string) (ids []store.ID) {
	t.Helper()
	w := newWorld(2)
	w.mem, w.fs = fs, NewFaultFS(fs)
	must(t, w.open())
	defer func() { must(t, w.close()) }()
	must(t, w.st.Verify(context.Background(), func(p string) { t.Error(p) }))
	all, err := w.q.List(context.Background(), 0, 10, nil)
	must(t, err)
	for _, v := range all {
		m, err := w.q.Content(v.ID)
		must(t, err)
		if _, body, _ := strings.Cut(string(m.Bytes()), "\n\n"); body != text || v.Hold == nil {
			t.Errorf("%v is damaged, or not held: %+v", v.ID, v.Hold)
		}
		must(t, m.Body().Release())
		ids = append(ids, v.ID)
	}
	return ids
}
