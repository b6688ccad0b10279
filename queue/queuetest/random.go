package queuetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/queue/store"
)

// operations is how many one random run makes.
const operations = 50

// Random makes random operations, crashes among them, on stores and models
// beside each other: see the package's documentation for how many.
func Random(t *testing.T, open Open) {
	defaultSeeds := 300
	if testing.Short() {
		defaultSeeds = 30
	}
	start := time.Now()
	next, stop := iter.Pull(seeds(t, defaultSeeds))
	defer stop()
	var mu sync.Mutex
	runs := 0
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		seed, ok := next()
		if ok && !t.Failed() {
			runs++
			return seed, true
		}
		return 0, false
	}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed, ok := take(); ok; seed, ok = take() {
				if err := randomRun(open, seed); err != nil {
					t.Errorf("seed %d (repeat with POSTERN_SEED=%d): %v", seed, seed, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d runs of %d operations in %v", runs, operations, time.Since(start).Round(time.Millisecond))
}

// seeds gives the seeds that the environment asks for.
func seeds(t *testing.T, count int) iter.Seq[uint64] {
	number := func(name string, missing uint64) uint64 {
		v := os.Getenv(name)
		if v == "" {
			return missing
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s=%q is no number", name, v)
		}
		return n
	}
	first, last := uint64(1), number("POSTERN_SEEDS", uint64(count))
	if one := number("POSTERN_SEED", 0); one != 0 {
		first, last = one, one
	}
	var until time.Time
	if v := os.Getenv("POSTERN_CRASH_TIME"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("POSTERN_CRASH_TIME=%q is no duration: write 90s", v)
		}
		until, last = time.Now().Add(d), math.MaxUint64
	}
	return func(yield func(uint64) bool) {
		for seed := first; seed <= last && (until.IsZero() || time.Now().Before(until)) && yield(seed); seed++ {
		}
	}
}

// player is a random run.
type player struct {
	*Run
	wreck *Wreck // where a crash at a call to come has led
}

// operation is one row of the table of what a random run does.
type operation struct {
	name   string
	weight int
	do     func(*player) error
}

var table = []operation{
	{"put", 10, (*player).put},
	{"put a large body", 4, (*player).putLarge},
	{"put for many recipients", 1, (*player).putMany},
	{"split", 6, (*player).split},
	{"put together", 3, (*player).together},
	{"set states", 10, (*player).states},
	{"set states later", 6, (*player).statesLater},
	{"hold or release", 4, (*player).hold},
	{"set a policy", 2, (*player).policy},
	{"edit", 3, (*player).edit},
	{"remove", 8, (*player).remove},
	{"remove later", 4, (*player).removeLater},
	{"put with a context that ended", 2, (*player).cancelled},
	{"a wrong batch", 1, (*player).wrong},
	{"turn back the clock", 1, (*player).turnBack},
	{"reopen", 2, (*player).reopen},
	{"crash", 2, (*player).crash},
	{"crash soon", 4, (*player).crashSoon},
}

func randomRun(open Open, seed uint64) error {
	p := &player{Run: NewRun(open, seed, func(err error) { panic(err) })}
	if err := p.Open(); err != nil {
		return err
	}
	total := 0
	for _, o := range table {
		total += o.weight
	}
	for n := range operations {
		pick := p.RNG.IntN(total)
		for _, o := range table {
			if pick -= o.weight; pick >= 0 {
				continue
			}
			if err := p.step(o); err != nil {
				return fmt.Errorf("operation %d, %s: %w", n, o.name, err)
			}
			break
		}
	}
	if err := p.reopen(); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return p.S.Close()
}

func (p *player) step(o operation) error {
	if err := o.do(p); err != nil {
		return err
	}
	p.mu.Lock()
	w := p.wreck
	p.wreck = nil
	p.mu.Unlock()
	if w == nil {
		return nil
	}
	p.FS.Hook(nil)
	if err := p.S.Close(); err != nil {
		return err
	}
	return p.Resume(*w)
}

func (p *player) apply(later bool, b *store.Batch) error {
	return p.Apply(context.Background(), b, later)
}

func (p *player) putOne(recipients, size int) error {
	put, err := p.Put(recipients, size)
	if err != nil {
		return err
	}
	if p.RNG.IntN(5) == 0 {
		put.Hold = p.randomHold()
	}
	return p.apply(false, &store.Batch{Puts: []store.Put{put}})
}

func (p *player) put() error {
	return p.putOne(1+p.RNG.IntN(3), bodySizes[p.RNG.IntN(len(bodySizes))])
}
func (p *player) putLarge() error { return p.putOne(1, 65_537+p.RNG.IntN(100_000)) }
func (p *player) putMany() error  { return p.putOne(999+p.RNG.IntN(1100), 10) }

// shares is a random message and others that share its body.
func (p *player) shares() (*store.Batch, error) {
	first, err := p.Put(1, bodySizes[p.RNG.IntN(len(bodySizes))])
	if err != nil {
		return nil, err
	}
	b := &store.Batch{Puts: []store.Put{first}}
	for range 1 + p.RNG.IntN(3) {
		id, err := p.ID()
		if err != nil {
			return nil, err
		}
		m := p.message(id, 1+p.RNG.IntN(2))
		m.Body.Of = first.Message.ID
		b.Puts = append(b.Puts, store.Put{Message: m})
	}
	return b, nil
}

func (p *player) split() error {
	b, err := p.shares()
	if err != nil {
		return err
	}
	p.RNG.Shuffle(len(b.Puts), func(i, j int) { b.Puts[i], b.Puts[j] = b.Puts[j], b.Puts[i] })
	return p.apply(false, b)
}

func (p *player) together() error {
	batches := make([]*store.Batch, 2+p.RNG.IntN(2))
	for i := range batches {
		var err error
		if batches[i], err = p.shares(); err != nil {
			return err
		}
	}
	return p.Together(batches)
}

func (p *player) someStates() *store.Batch {
	b := &store.Batch{}
	for range 1 + p.RNG.IntN(4) {
		id := p.Pick()
		if id == 0 {
			continue
		}
		n := len(p.Shows().Messages[id].Message.Envelope.Recipients)
		b.States = append(b.States, store.SetState{ID: id, Recipient: uint32(p.RNG.IntN(n)), State: p.State()})
	}
	return b
}

func (p *player) states() error      { return p.apply(false, p.someStates()) }
func (p *player) statesLater() error { return p.apply(true, p.someStates()) }

func (p *player) randomHold() *store.Hold {
	return &store.Hold{Reason: "because", Filter: "greylist", Since: time.Unix(1_790_000_000, 0).UTC()}
}

func (p *player) hold() error {
	h := store.SetHold{ID: p.Pick()}
	if p.RNG.IntN(2) == 0 {
		h.Hold = p.randomHold()
	}
	return p.apply(false, &store.Batch{Holds: []store.SetHold{h}})
}

func (p *player) policy() error {
	v := make([]byte, p.RNG.IntN(3)*10)
	return p.apply(false, &store.Batch{Policies: []store.Policy{{Name: strconv.Itoa(p.RNG.IntN(3)), Value: v}}})
}

// edit puts a message anew and removes it in one batch.
func (p *player) edit() error {
	id := p.Pick()
	if id == 0 {
		return nil
	}
	r, err := p.S.Reader()
	if err != nil {
		return err
	}
	defer r.Close()
	m, err := r.Message(id)
	if err != nil {
		return err
	}
	body, err := r.Body(m)
	if err != nil {
		return err
	}
	if m.ID, err = p.ID(); err != nil {
		return err
	}
	m.Body.Of = 0
	return p.apply(false, &store.Batch{Puts: []store.Put{{Message: *m, Body: body}}, Removes: []store.ID{id}})
}

func (p *player) someRemoves() *store.Batch {
	b := p.someStates() // of messages that leave by the same batch, perhaps
	for range 1 + p.RNG.IntN(4) {
		b.Removes = append(b.Removes, p.Pick())
	}
	return b
}

func (p *player) remove() error      { return p.apply(false, p.someRemoves()) }
func (p *player) removeLater() error { return p.apply(true, p.someRemoves()) }

func (p *player) cancelled() error {
	put, err := p.Put(1, bodySizes[p.RNG.IntN(len(bodySizes))])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Apply(ctx, &store.Batch{Puts: []store.Put{put}}, false); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("a context that ended gives %v", err)
	}
	return nil
}

// wrong has a part that is right, of which nothing may remain.
func (p *player) wrong() error {
	b, err := p.shares()
	if err != nil {
		return err
	}
	b.States = []store.SetState{{ID: b.Puts[0].Message.ID, Recipient: 1000}}
	shows := p.Shows()
	if err := p.S.Apply(context.Background(), b, false); err == nil {
		return errors.New("a state for a recipient that is not there was taken")
	}
	release(b)
	got, err := Read(p.S)
	if err != nil {
		return err
	}
	if d := shows.Diff(got); d != "" {
		return fmt.Errorf("a wrong batch left something: %s", d)
	}
	return nil
}

func (p *player) turnBack() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock = p.clock.Add(-time.Duration(p.RNG.IntN(100)) * time.Second)
	return nil
}

func (p *player) reopen() error {
	if err := p.S.Close(); err != nil {
		return err
	}
	p.mu.Lock()
	p.may = p.may[len(p.may)-1:] // a close flushes
	p.mu.Unlock()
	return p.Open()
}

func (p *player) percent(g *rand.Rand) int { return [...]int{0, 0, 10, 50, 90, 100}[g.IntN(6)] }

func (p *player) crash() error {
	w := p.Crash(p.percent(p.RNG), p.RNG, Call{Op: "any call"})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wreck = &w
	return nil
}

// crashSoon cuts the power at one of the calls to come.
func (p *player) crashSoon() error {
	g := rand.New(rand.NewPCG(p.RNG.Uint64(), 2))
	left := 1 + g.IntN(40)
	percent := p.percent(g)
	p.FS.Hook(func(c Call) error {
		p.mu.Lock()
		left--
		now := left == 0
		p.mu.Unlock()
		if now {
			w := p.Crash(percent, g, c)
			p.mu.Lock()
			p.wreck = &w
			p.mu.Unlock()
		}
		return nil
	})
	return nil
}
