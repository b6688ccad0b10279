package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// Store runs everything on a store: the suite of single properties, Random,
// Crash and Fail.
func Store(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Open)
	}{
		{"put and read", putAndRead},
		{"large bodies", largeBodies},
		{"shared bodies", sharedBodies},
		{"many recipients", manyRecipients},
		{"scan from", scanFrom},
		{"gone messages are passed over", goneMessages},
		{"wrong batches leave nothing", wrongBatches},
		{"context", contexts},
		{"later is in order", laterInOrder},
		{"nothing new is still a flush", emptyFlush},
		{"ids", idsAscend},
		{"readers are consistent", readers},
		{"no space", noSpace},
		{"concurrent use", concurrent},
		{"closed", afterClose},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open) })
	}
	t.Run("random", func(t *testing.T) { Random(t, open) })
	t.Run("crash", func(t *testing.T) { Crash(t, open) })
	t.Run("fail", func(t *testing.T) { Fail(t, open) })
}

// newRun opens a store for a test that ends by closing it.
func newRun(t *testing.T, open Open) *player {
	t.Helper()
	p := &player{Run: NewRun(open, 1, fatal(t))}
	must(t, p.Open())
	t.Cleanup(func() { must(t, p.S.Close()) })
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// same compares all that the store holds with the model, now and reopened.
func (p *player) same(t *testing.T) {
	t.Helper()
	got, err := Read(p.S)
	must(t, err)
	if d := p.Shows().Diff(got); d != "" {
		t.Fatalf("the store differs from the model: %s", d)
	}
	must(t, p.check())
	must(t, p.reopen())
}

func putAndRead(t *testing.T, open Open) {
	p := newRun(t, open)
	for _, size := range bodySizes {
		must(t, p.putOne(1+size%3, size))
		must(t, p.states())
		must(t, p.hold())
		must(t, p.policy())
	}
	p.same(t)
	must(t, p.edit())
	for len(p.Shows().Messages) > 2 {
		must(t, p.remove())
	}
	p.same(t)
	nul := strings.Repeat("x\x00\r\n\xff", 100)
	put, err := p.Put(1, 0)
	must(t, err)
	put.Body = message.BytesBody([]byte(nul))
	put.Message.Head = nul
	must(t, p.apply(false, &store.Batch{Puts: []store.Put{put}, Policies: []store.Policy{{Name: "a", Value: []byte(nul)}, {Name: "b", Value: []byte("1")}}}))
	must(t, p.apply(false, &store.Batch{Policies: []store.Policy{{Name: "b"}}}))
	p.same(t)
}

// body opens the body of a message.
func body(t *testing.T, s store.Store, id store.ID) *message.Body {
	t.Helper()
	r, err := s.Reader()
	must(t, err)
	defer r.Close()
	m, err := r.Message(id)
	must(t, err)
	b, err := r.Body(m)
	must(t, err)
	return b
}

func largeBodies(t *testing.T, open Open) {
	p := newRun(t, open)
	put, err := p.Put(1, 200_000)
	must(t, err)
	mine := put.Body.Retain()
	name := mine.SpoolName()
	want := content(mine)
	must(t, p.apply(false, &store.Batch{Puts: []store.Put{put}}))
	if content(mine) != want {
		t.Error("the body that was put cannot be read on")
	}
	if f, err := p.S.Open(name); err == nil {
		f.Close()
		t.Error("the body still lies in the spool: it was copied, not taken")
	}
	// The same body, and one that a store gave, in another message.
	again, err := p.Put(1, 0)
	must(t, err)
	again.Body = mine
	third, err := p.Put(1, 0)
	must(t, err)
	third.Body = body(t, p.S, put.Message.ID)
	must(t, p.apply(false, &store.Batch{Puts: []store.Put{again}}))
	must(t, p.apply(false, &store.Batch{Puts: []store.Put{third}}))
	// What was opened before its message is removed can be read after it.
	open1 := body(t, p.S, put.Message.ID)
	must(t, p.apply(false, &store.Batch{Removes: []store.ID{put.Message.ID}}))
	if content(open1) != want {
		t.Error("an open body changed when its message was removed")
	}
	must(t, open1.Release())
	p.same(t)
	must(t, p.S.Remove(name))
	if err := p.S.Remove("../db/LOCK"); err == nil {
		t.Error("a name that leaves the spool is taken")
	}
}

func sharedBodies(t *testing.T, open Open) {
	p := newRun(t, open)
	for _, size := range []int{100, 100_000} {
		for range 4 { // the order in which they go is random
			b, err := p.shares()
			must(t, err)
			b.Puts[0].Body.Release()
			b.Puts[0].Body, err = p.Body(size)
			must(t, err)
			must(t, p.apply(false, b))
			p.RNG.Shuffle(len(b.Puts), func(i, j int) { b.Puts[i], b.Puts[j] = b.Puts[j], b.Puts[i] })
			for _, put := range b.Puts {
				must(t, p.apply(false, &store.Batch{Removes: []store.ID{put.Message.ID}}))
				p.same(t)
			}
		}
	}
	// All at a time, in one batch and from all sides.
	b, err := p.shares()
	must(t, err)
	must(t, p.apply(false, b))
	all := &store.Batch{}
	for _, put := range b.Puts {
		all.Removes = append(all.Removes, put.Message.ID)
	}
	must(t, p.apply(false, all))
	p.same(t)
	b, err = p.shares()
	must(t, err)
	must(t, p.apply(false, b))
	var single []*store.Batch
	for _, put := range b.Puts {
		single = append(single, &store.Batch{Removes: []store.ID{put.Message.ID}})
	}
	must(t, p.Together(single))
	p.same(t)
}

func manyRecipients(t *testing.T, open Open) {
	p := newRun(t, open)
	for _, n := range []int{999, 1000, 1001, 10_000} {
		must(t, p.putOne(n, 10))
	}
	b := &store.Batch{}
	for _, id := range p.Shows().IDs() {
		for _, n := range []uint32{0, 998} {
			b.States = append(b.States, store.SetState{ID: id, Recipient: n, State: p.State()})
		}
	}
	must(t, p.apply(false, b))
	p.same(t)
	must(t, p.apply(false, &store.Batch{Removes: p.Shows().IDs()}))
	p.same(t)
}

func scanFrom(t *testing.T, open Open) {
	p := newRun(t, open)
	for range 20 {
		must(t, p.putOne(1, 1))
		must(t, p.states())
		must(t, p.hold())
	}
	ids := p.Shows().IDs()
	r, err := p.S.Reader()
	must(t, err)
	defer r.Close()
	for i, from := range append([]store.ID{0}, ids...) {
		n := 0
		must(t, r.Scan(from, func(e *store.Entry) error {
			want := p.Shows().Messages[e.Message.ID]
			if len(e.States) != len(want.States) || (e.Hold == nil) != (want.Hold == nil) {
				return fmt.Errorf("from %s: message %s has other states or another hold", from, e.Message.ID)
			}
			n++
			return nil
		}))
		if want := len(ids) - max(i-1, 0); n != want {
			t.Errorf("a scan from %s gives %d messages, not %d", from, n, want)
		}
	}
	n := 0
	if err := r.Scan(0, func(*store.Entry) error { n++; return io.EOF }); err != io.EOF || n != 1 {
		t.Errorf("a scan that is to end after one message gave %d and %v", n, err)
	}
}

func goneMessages(t *testing.T, open Open) {
	p := newRun(t, open)
	must(t, p.putOne(2, 10))
	gone, err := p.ID()
	must(t, err)
	must(t, p.apply(false, &store.Batch{
		States: []store.SetState{{ID: gone, State: p.State()}}, Removes: []store.ID{gone, gone}, Holds: []store.SetHold{{ID: gone, Hold: p.randomHold()}},
	}))
	p.same(t)
	r, err := p.S.Reader()
	must(t, err)
	defer r.Close()
	if _, err := r.Message(gone); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a message that is not there gives %v", err)
	}
	if _, err := r.Body(&store.Message{ID: gone, Body: store.BodyInfo{Of: gone}}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a body that is not there gives %v", err)
	}
}

func wrongBatches(t *testing.T, open Open) {
	p := newRun(t, open)
	must(t, p.put())
	there := p.Pick()
	for name, spoil := range map[string]func(*store.Batch){
		"no recipients":              func(b *store.Batch) { b.Puts[1].Message.Envelope.Recipients = nil },
		"an id of its own":           func(b *store.Batch) { b.Puts[1].Message.ID = 1 << 63 },
		"no id":                      func(b *store.Batch) { b.Puts[1].Message.ID = 0 },
		"an id twice":                func(b *store.Batch) { b.Puts[1].Message.ID = b.Puts[0].Message.ID },
		"an id that is stored":       func(b *store.Batch) { b.Puts[1].Message.ID = there },
		"the body of nobody":         func(b *store.Batch) { b.Puts[1].Message.Body.Of = there },
		"a body of one who shares":   func(b *store.Batch) { b.Puts[0].Message.Body.Of = b.Puts[1].Message.ID },
		"put and removed":            func(b *store.Batch) { b.Removes = []store.ID{b.Puts[1].Message.ID} },
		"a state of no recipient":    func(b *store.Batch) { b.States = []store.SetState{{ID: there, Recipient: 1 << 20}} },
		"a status that is not known": func(b *store.Batch) { b.States = []store.SetState{{ID: there, State: store.State{Status: 9}}} },
		"an address too long": func(b *store.Batch) {
			b.Puts[1].Message.Envelope.Recipients[0].Address = strings.Repeat("x", 1003)
		},
		"a policy without name": func(b *store.Batch) { b.Policies = []store.Policy{{Value: []byte("x")}} },
	} {
		b, err := p.shares()
		must(t, err)
		b.Puts[0].Body.Release()
		b.Puts[0].Body, err = p.Body(100_000)
		must(t, err)
		spoil(b)
		if err := p.S.Apply(context.Background(), b, false); err == nil {
			t.Errorf("a batch with %s is taken", name)
		}
		release(b)
		p.same(t)
	}
}

func contexts(t *testing.T, open Open) {
	p := newRun(t, open)
	for range 30 {
		must(t, p.cancelled())
	}
	p.same(t)
	// A body survives the context that ended, and can be put again.
	put, err := p.Put(1, 100_000)
	must(t, err)
	put.Body.Retain()
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("the client hung up")
	cancel(why)
	if err := p.Apply(ctx, &store.Batch{Puts: []store.Put{put}}, false); !errors.Is(err, why) {
		t.Errorf("the cause of the end is lost: %v", err)
	}
	must(t, p.apply(false, &store.Batch{Puts: []store.Put{put}}))
	p.same(t)
}

// laterInOrder finds what was applied later before what was applied after it.
func laterInOrder(t *testing.T, open Open) {
	p := newRun(t, open)
	must(t, p.putOne(3, 10))
	id := p.Pick()
	for n := range 200 {
		s := store.State{Status: store.Deferred, Attempts: uint16(n)}
		must(t, p.apply(true, &store.Batch{States: []store.SetState{{ID: id, Recipient: uint32(n % 3), State: s}}}))
		if n%50 == 0 {
			w := p.Crash(0, nil, Call{Op: "any call"})
			q := &player{Run: NewRun(open, 1, fatal(t))}
			must(t, q.Resume(w))
			must(t, q.S.Close())
		}
	}
	p.same(t)
}

// emptyFlush is a batch that changes nothing, behind one that is not flushed.
func emptyFlush(t *testing.T, open Open) {
	p := newRun(t, open)
	must(t, p.put())
	all := &store.Batch{Removes: p.Shows().IDs()}
	must(t, p.apply(true, all))
	must(t, p.apply(false, all))
	w := p.Crash(0, nil, Call{Op: "any call"})
	q := &player{Run: NewRun(open, 1, fatal(t))}
	must(t, q.Resume(w))
	if n := len(q.Shows().Messages); n != 0 {
		t.Errorf("%d messages came back after their removal was acknowledged", n)
	}
	must(t, q.S.Close())
}

func idsAscend(t *testing.T, open Open) {
	p := newRun(t, open)
	for round := range 6 {
		for range 3000 {
			_, err := p.ID()
			must(t, err)
		}
		must(t, p.put())
		must(t, p.removeAll())
		must(t, p.turnBack())
		if round%2 == 0 {
			must(t, p.reopen())
			continue
		}
		// After a crash, too, though all messages are gone.
		w := p.Crash(0, nil, Call{Op: "any call"})
		must(t, p.S.Close())
		must(t, p.Resume(w))
	}
	var mu sync.Mutex
	seen := make(map[store.ID]bool)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var last store.ID
			for range 1000 {
				id := p.S.NewID()
				mu.Lock()
				if id <= last || seen[id] {
					t.Errorf("id %s after %s", id, last)
				}
				seen[id] = true
				mu.Unlock()
				last = id
			}
		})
	}
	wg.Wait()
}

func (p *player) removeAll() error {
	return p.apply(false, &store.Batch{Removes: p.Shows().IDs()})
}

func readers(t *testing.T, open Open) {
	p := newRun(t, open)
	must(t, p.put())
	must(t, p.putLarge())
	before := p.Shows()
	r, err := p.S.Reader()
	must(t, err)
	must(t, p.removeAll())
	must(t, p.put())
	n := 0
	must(t, r.Scan(0, func(e *store.Entry) error {
		n++
		b, err := r.Body(e.Message)
		if e.Message.Body.File {
			if !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("a body whose file is gone gives %v", err)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if content(b) != before.Messages[e.Message.ID].Body {
			return errors.New("another body")
		}
		return b.Release()
	}))
	if n != len(before.Messages) {
		t.Errorf("%d messages where %d were when the reader was made", n, len(before.Messages))
	}
	must(t, r.Close())
	if _, err := r.Message(1); err == nil {
		t.Error("a closed reader reads")
	}
}

func noSpace(t *testing.T, open Open) {
	const mib = 1 << 20
	mem := vfs.NewMem()
	use := func(free uint64) { mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: free, TotalBytes: 1000 * mib}) }
	use(500 * mib)
	var mu sync.Mutex
	now := time.UnixMilli(1_790_000_000_000)
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(2 * time.Second); return now }
	s := mustOpen(t, open, Options{FS: mem, LowBytes: 100 * mib, Now: clock})
	defer mustClose(t, s)
	p := &player{Run: NewRun(open, 1, fatal(t))}
	p.S = s
	must(t, p.put())
	id := p.Pick()
	large, err := p.Body(100_000)
	must(t, err)
	use(99 * mib)
	full := func(err error) bool { return reply.Of(err) == reply.NoSpace }
	put := store.Put{Message: p.message(s.NewID(), 1), Body: large}
	if err := s.Apply(context.Background(), &store.Batch{Puts: []store.Put{put}}, false); !full(err) {
		t.Errorf("new mail below the low-water mark gives %v", err)
	}
	if name, f, err := s.Create(); !full(err) {
		t.Errorf("a spool file below the low-water mark gives %q, %v, %v", name, f, err)
	}
	must(t, p.apply(false, &store.Batch{States: []store.SetState{{ID: id, State: p.State()}}}))
	use(500 * mib)
	must(t, p.apply(false, &store.Batch{Puts: []store.Put{put}}))
	use(99 * mib)
	must(t, p.removeAll())
	mustHold(t, s, p.Shows())
}

// concurrent lets many do everything at a time, each with messages of its own.
func concurrent(t *testing.T, open Open) {
	p := newRun(t, open)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			q := &player{Run: NewRun(open, uint64(n), fatal(t))}
			q.S = p.S
			for i := range 15 {
				err := []func() error{q.put, q.split, q.states, q.hold, q.statesLater, q.putLarge, q.remove}[i%7]()
				if err != nil {
					t.Errorf("concurrently: %v", err)
					return
				}
				got, err := Read(only{p.S, q.Shows()})
				if err != nil {
					t.Errorf("concurrently: %v", err)
					return
				}
				if d := q.Shows().Diff(&Model{got.Messages, q.Shows().Policies}); d != "" {
					t.Errorf("concurrently: %s", d)
					return
				}
			}
			if err := q.removeAll(); err != nil {
				t.Errorf("concurrently: %v", err)
			}
		})
	}
	stop := make(chan struct{})
	var verifier sync.WaitGroup
	verifier.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				mustVerifyLive(t, p.S)
			}
		}
	})
	wg.Wait()
	close(stop)
	verifier.Wait()
	p.same(t)
}

func mustVerifyLive(t *testing.T, s Subject) {
	if err := s.Verify(context.Background(), func(p string) { t.Errorf("verify, while mail goes on: %s", p) }); err != nil {
		t.Errorf("verify, while mail goes on: %v", err)
	}
}

// only shows the messages of a model, and those that should not be there.
type only struct {
	store.Store
	m *Model
}

type onlyReader struct {
	store.Reader
	m *Model
}

// Reader is store.Store.
func (o only) Reader() (store.Reader, error) {
	r, err := o.Store.Reader()
	return onlyReader{r, o.m}, err
}

// Scan is store.Reader.
func (o onlyReader) Scan(from store.ID, f func(*store.Entry) error) error {
	return o.Reader.Scan(from, func(e *store.Entry) error {
		if _, mine := o.m.Messages[e.Message.ID]; !mine {
			return nil
		}
		return f(e)
	})
}

func afterClose(t *testing.T, open Open) {
	p := &player{Run: NewRun(open, 1, fatal(t))}
	must(t, p.Open())
	must(t, p.putLarge())
	b := body(t, p.S, p.Pick())
	must(t, p.S.Close())
	if got := content(b); got != p.Shows().Messages[p.Pick()].Body {
		t.Error("an open body changed when the store was closed")
	}
	must(t, b.Release())
	if err := p.S.Apply(context.Background(), &store.Batch{}, false); !errors.Is(err, store.ErrClosed) {
		t.Errorf("apply after close gives %v", err)
	}
	if _, err := p.S.Reader(); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a reader after close gives %v", err)
	}
	if id := p.S.NewID(); id != 0 {
		t.Errorf("an id after close is %s", id)
	}
	if _, _, err := p.S.Create(); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a spool file after close gives %v", err)
	}
	must(t, p.S.Close())
}
