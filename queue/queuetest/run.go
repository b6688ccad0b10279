package queuetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// Run is a store on a file system that can lose its power, beside the models
// of what may be left then. One goroutine uses it.
type Run struct {
	S   Subject
	FS  *FaultFS
	RNG *rand.Rand

	open  Open
	mem   *vfs.MemFS
	fatal func(error)
	clock time.Time
	maxID store.ID
	text  []byte // what bodies are cut from

	mu sync.Mutex
	// may are the states that a crash may leave now, the last one being what
	// the store shows; there are several while batches are not yet flushed.
	may []*Model
}

// NewRun opens a new store. fatal is Options.Fatal.
func NewRun(open Open, seed uint64, fatal func(error)) *Run {
	r := &Run{
		open: open, RNG: rand.New(rand.NewPCG(seed, 1)), fatal: fatal,
		mem: vfs.NewCrashableMem(), clock: time.UnixMilli(1_790_000_000_000), may: []*Model{NewModel()},
	}
	r.FS = NewFaultFS(r.mem)
	return r
}

// Open opens the store, and checks that it holds one of the states that it
// may, and that ids go on ascending.
func (r *Run) Open() error {
	s, err := r.open(Options{FS: r.FS, Now: r.now, Fatal: r.fatal})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	r.S = s
	return r.settle()
}

// now is a clock that sometimes goes back.
func (r *Run) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = r.clock.Add(3 * time.Millisecond)
	return r.clock
}

// settle finds out in which of the possible states the store is.
func (r *Run) settle() error {
	got, err := Read(r.S)
	if err != nil {
		return fmt.Errorf("reading the store: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	diff := ""
	for _, m := range slices.Backward(r.may) {
		d := m.Diff(got)
		if d == "" {
			r.may = []*Model{m}
			return r.check()
		}
		if diff == "" {
			diff = d
		}
	}
	return fmt.Errorf("the store is in none of the %d states that it may be in: %s", len(r.may), diff)
}

// check verifies the store.
func (r *Run) check() error {
	var problems []string
	if err := r.S.Verify(context.Background(), func(p string) { problems = append(problems, p) }); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if problems != nil {
		return fmt.Errorf("verify: %s", strings.Join(problems, "; "))
	}
	return nil
}

// Shows is the model of what the store shows.
func (r *Run) Shows() *Model {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.may[len(r.may)-1]
}

// Apply applies a batch to store and model. It releases the batch's bodies.
func (r *Run) Apply(ctx context.Context, b *store.Batch, later bool) error {
	next := r.Shows().Clone()
	next.Apply(b)
	r.mu.Lock()
	before := r.may
	r.may = append(slices.Clip(before), next)
	r.mu.Unlock()
	err := r.S.Apply(ctx, b, later)
	release(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		r.may = before
	case !later:
		r.may = []*Model{next}
	}
	return err
}

func release(b *store.Batch) {
	for _, p := range b.Puts {
		p.Body.Release() //nolint:errcheck // the file system may be failing
	}
}

// Together applies batches, which concern different messages, all at a time.
func (r *Run) Together(batches []*store.Batch) error {
	r.mu.Lock()
	shows := r.may[len(r.may)-1]
	for set := 1; set < 1<<len(batches); set++ {
		m := shows.Clone()
		for i, b := range batches {
			if set&(1<<i) != 0 {
				m.Apply(b)
			}
		}
		r.may = append(r.may, m)
	}
	r.mu.Unlock()
	errs := make([]error, len(batches))
	var wg sync.WaitGroup
	for i, b := range batches {
		wg.Go(func() {
			errs[i] = r.S.Apply(context.Background(), b, false)
			release(b)
		})
	}
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.may = r.may[len(r.may)-1:]
	return nil
}

// ID is a new id, checked to be above all before.
func (r *Run) ID() (store.ID, error) {
	id := r.S.NewID()
	r.mu.Lock()
	defer r.mu.Unlock()
	if id <= r.maxID {
		return 0, fmt.Errorf("id %s after %s", id, r.maxID)
	}
	r.maxID = id
	return id, nil
}

// Wreck is a file system after a crash, and what may be on it.
type Wreck struct {
	FS    *vfs.MemFS
	May   []*Model
	MaxID store.ID
	Call  Call
}

// Crash cuts the power now: of what was not flushed, percent survives. The run
// itself goes on.
func (r *Run) Crash(percent int, rng *rand.Rand, call Call) Wreck {
	r.mu.Lock()
	defer r.mu.Unlock()
	may := slices.Clone(r.may)
	return Wreck{r.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), may, r.maxID, call}
}

// Resume goes on after a crash.
func (r *Run) Resume(w Wreck) error {
	r.mem, r.FS = w.FS, NewFaultFS(w.FS)
	r.mu.Lock()
	// Ids that were given out after the power was cut, in a future that did not
	// come to be, are forgotten.
	r.may, r.maxID = w.May, w.MaxID
	r.mu.Unlock()
	if err := r.Open(); err != nil {
		return fmt.Errorf("after a crash before %s of %s: %w", w.Call.Op, w.Call.Path, err)
	}
	return nil
}

// What random messages are made of.
var bodySizes = []int{0, 1, 100, 100, 100, 4096, 4096, 20_000, message.InMemory, message.InMemory + 1, 100_000}

// Body is a random body of that size; a large one lies in the store's spool.
func (r *Run) Body(size int) (*message.Body, error) {
	const letters = "abcdefghijklmnopqrstuvwxyz \n\n.\xe9"
	if r.text == nil {
		r.text = make([]byte, 1<<16)
		for i := range r.text {
			r.text[i] = letters[r.RNG.IntN(len(letters))]
		}
	}
	w := message.NewWriter(r.S, 0)
	defer w.Abort()
	for size > 0 {
		from := r.RNG.IntN(len(r.text))
		part := r.text[from:min(from+size, len(r.text))]
		if _, err := w.Write(part); err != nil {
			return nil, err
		}
		size -= len(part)
	}
	return w.Body()
}

// Put is a random message.
func (r *Run) Put(recipients, bodySize int) (store.Put, error) {
	id, err := r.ID()
	if err != nil {
		return store.Put{}, err
	}
	body, err := r.Body(bodySize)
	if err != nil {
		return store.Put{}, err
	}
	return store.Put{Message: r.message(id, recipients), Body: body}, nil
}

func (r *Run) message(id store.ID, recipients int) store.Message {
	g := r.RNG
	m := store.Message{ID: id, Form: message.Form(g.IntN(3)), Bounce: uint8(g.IntN(3)), Head: fmt.Sprintf("Message-Id: <%s>\n\n", id)}
	m.Envelope = envelope.Envelope{
		Sender: fmt.Sprintf("s%d@example.org", g.IntN(1000)), NoScan: g.IntN(9) == 0, UTF8: g.IntN(9) == 0, RequireTLS: g.IntN(9) == 0,
	}
	if g.IntN(5) == 0 {
		m.Envelope.Ret, m.Envelope.EnvID = "HDRS", "id+2B"
	}
	if g.IntN(5) == 0 {
		m.Arrived = time.UnixMilli(1_790_000_000_000 + g.Int64N(1<<40)).UTC()
	}
	if g.IntN(3) > 0 {
		m.Origin = fmt.Appendf(nil, "origin %d\x00\xff", g.IntN(1000))
	}
	for i := range recipients {
		to := envelope.Recipient{Address: fmt.Sprintf("r%d@d%d.example", i, g.IntN(5))}
		if g.IntN(5) == 0 {
			to.DSN = &envelope.DSN{Notify: envelope.Notify(g.IntN(16)), ORcpt: "rfc822;x"}
		}
		m.Envelope.Recipients = append(m.Envelope.Recipients, to)
	}
	return m
}

// State is a random state.
func (r *Run) State() store.State {
	g := r.RNG
	s := store.State{
		Status: store.Status(g.IntN(4)), Attempts: uint16(g.IntN(1 << 16)), Where: "mx.example [192.0.2.1]",
		Perhaps: g.IntN(2) == 0, Warned: g.IntN(2) == 0, Reported: g.IntN(2) == 0,
		Reply: reply.Make(400+g.IntN(200), reply.Enhanced{Subject: 2, Detail: uint16(g.IntN(9))}, "said so"),
	}
	if g.IntN(2) == 0 {
		s.Due = time.Unix(1_790_000_000+int64(g.IntN(1000)), 0).UTC()
	}
	if g.IntN(2) == 0 {
		s.Last = time.Unix(1_790_000_000+int64(g.IntN(1000)), 0).UTC()
	}
	return s
}

// Pick is a random message that the store shows, 0 if there is none.
func (r *Run) Pick() store.ID {
	ids := r.Shows().IDs()
	if len(ids) == 0 {
		return 0
	}
	return ids[r.RNG.IntN(len(ids))]
}
