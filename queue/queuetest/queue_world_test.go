package queuetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// A world is a queue on a file system that can lose its power, and what the
// rest of the world knows: what it was promised, what it got, and what its
// operator ordered. One goroutine makes the operations; it runs in a bubble
// with a clock of its own.
type world struct {
	rng *rand.Rand
	fs  *FaultFS
	mem *vfs.MemFS
	st  *pebble.Store
	q   *queue.Queue
	out *worldExit

	mu       sync.Mutex
	mail     []*letter
	events   []event // append only, except that a crash forgets what came after it
	epoch    int
	problems []string
	calm     bool // every delivery succeeds
}

// letter is a message as its sender wrote it.
type letter struct {
	n      int
	sender string
	to     []string
	text   string
}

// event is something that was seen from outside.
type event struct {
	kind   string // "acked", "deleted", "delivered" or "reported"
	letter int
	to     string
	epoch  int
	id     store.ID
	text   string // of a report
}

// worldExit gives random answers, late, until it is dead.
type worldExit struct {
	w    *world
	dead atomic.Bool
	out  atomic.Int32 // leaves that were given and not released
}

func newWorld(seed uint64) *world {
	mem := vfs.NewCrashableMem()
	return &world{rng: rand.New(rand.NewPCG(seed, 7)), mem: mem, fs: NewFaultFS(mem)}
}

func (w *world) problem(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

func (w *world) add(e event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e.epoch = w.epoch
	w.events = append(w.events, e)
}

// random is for exits: concurrent, and of no fixed order.
func (w *world) random(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

const (
	worldLifetime = 20 * time.Minute
	worldWarn     = 4 * time.Minute
)

func (w *world) open() error {
	var err error
	w.st, err = pebble.Open(pebble.Options{
		Dir: "q", FS: w.fs, LowBytes: -1, LowInodes: -1, Ballast: -1, MemTableSize: 64 << 10, CacheSize: 1 << 20, OpenFiles: 50,
		Fatal: func(err error) { panic(err) },
	})
	if err != nil {
		return err
	}
	w.out = &worldExit{w: w}
	w.q, err = queue.Open(queue.Options{
		Store: w.st, Spool: w.st, Host: "mx.example", Log: slog.New(slog.DiscardHandler), Lifetime: worldLifetime,
		Route: func(address string) (string, string) { return "out", envelope.Domain(address) },
		Lane:  worldLane,
		Channels: []queue.Channel{{
			Name: "out", Exit: w.out, Backoff: schedule.List(10*time.Second, 2*time.Minute), Limit: 20, Locate: w.locate, Admit: w.out.admit,
		}},
		Bounce: queue.Bounce{
			Origin: func() []byte { return []byte("reports") },
			Warn:   worldWarn, May: func(_ []byte, sender string) bool { return envelope.Domain(sender) != "stranger.example" },
		},
	})
	if err != nil {
		return errors.Join(err, w.st.Close())
	}
	w.q.Start()
	return nil
}

// close ends the queue and its store, in good order.
func (w *world) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return errors.Join(w.q.Close(ctx), w.st.Close())
}

// worldLane is the lane of a message: of a letter by its sender, of a report by its
// origin.
func worldLane(sender string, origin []byte) string {
	n, _ := strconv.Atoi(strings.Trim(envelope.Local(sender), "s"))
	if len(origin) > 0 {
		return string(origin)
	}
	return [...]string{"", "one", "two"}[n%3]
}

// locate moves domains between two sites, and does not always know.
func (w *world) locate(context.Context, string) (string, error) {
	if w.isCalm() {
		return "mx1.example", nil
	}
	switch w.random(12) {
	case 0:
		return "", errors.New("no name server")
	case 1, 2:
		return "mx2.example", nil
	}
	return "mx1.example", nil
}

// worldLeave is leave for one lane of one site.
type worldLeave struct {
	x          *worldExit
	site, lane string
	once       sync.Once
}

// Release is queue.Leave.
func (l *worldLeave) Release() { l.once.Do(func() { l.x.out.Add(-1) }) }

// admit keeps lanes of sites out at random, for a while or until they are called,
// which nobody may do.
func (x *worldExit) admit(now time.Time, site, lane string) (queue.Leave, *queue.Wait) {
	if !x.w.isCalm() {
		switch x.w.random(6) {
		case 0:
			return nil, &queue.Wait{}
		case 1:
			return nil, &queue.Wait{Until: now.Add(time.Duration(1+x.w.random(30)) * time.Second)}
		}
	}
	x.out.Add(1)
	return &worldLeave{x: x, site: site, lane: lane}, nil
}

// Deliver is queue.Exit. What it acknowledges it has got, whatever becomes of
// the queue.
func (x *worldExit) Deliver(ctx context.Context, j *queue.Job) ([]queue.Result, schedule.Health) {
	w := x.w
	if want := worldLane(j.Envelope.Sender, j.Origin); j.Lane != want {
		w.problem("message %v from %s leaves by %q, not %q", j.ID, j.Envelope.Sender, j.Lane, want)
	}
	if l, ok := j.Leave.(*worldLeave); ok && l.lane != j.Lane {
		w.problem("message %v leaves by %q with leave for %q", j.ID, j.Lane, l.lane)
	}
	all := make([]queue.Result, len(j.Envelope.Recipients))
	if !w.isCalm() && w.random(10) == 0 {
		for i := range all {
			all[i] = queue.Result{Reply: reply.Trouble, NotNow: &queue.Wait{}}
		}
		return all, schedule.Unchanged
	}
	time.Sleep(time.Duration(w.random(20)) * time.Second)
	text := string(j.Message.Bytes())
	for i, r := range j.Envelope.Recipients {
		all[i] = queue.Result{Reply: w.answer(r.Address), Where: "far.example"}
		if x.dead.Load() || ctx.Err() != nil {
			all[i].Reply = reply.Trouble
		}
		if all[i].Reply.Class == reply.Success {
			w.got(j, r.Address, text)
		}
	}
	return all, schedule.Succeeded
}

func (w *world) answer(address string) reply.Reply {
	n := w.random(10)
	switch {
	case w.isCalm(), strings.HasPrefix(address, "postmaster@"), n < 5:
		return reply.OK
	case n < 8:
		return reply.Make(451, reply.Enhanced{}, "later")
	}
	return reply.Make(550, reply.Enhanced{}, "never")
}

func (w *world) isCalm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calm
}

// got notes a delivery, and that it is whole and right.
func (w *world) got(j *queue.Job, to, text string) {
	if j.Envelope.Sender == "" || j.Envelope.Sender == envelope.DoubleBounce {
		w.add(event{kind: "reported", to: to, text: text})
		return
	}
	_, rest, _ := strings.Cut(text, "X-Letter: ")
	number, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(number)
	w.mu.Lock()
	var l *letter
	if err == nil && n < len(w.mail) {
		l = w.mail[n]
	}
	w.mu.Unlock()
	switch {
	case l == nil:
		w.problem("message %v is no letter: %.100q", j.ID, text)
	case l.text != text:
		w.problem("letter %d was delivered with %d bytes, not %d", n, len(text), len(l.text))
	case l.sender != j.Envelope.Sender || !slices.Contains(l.to, to):
		w.problem("letter %d from %s to %v was delivered from %s to %s", n, l.sender, l.to, j.Envelope.Sender, to)
	default:
		w.add(event{kind: "delivered", letter: n, to: to, id: j.ID})
	}
}

// write makes a letter of about that size to that many recipients.
func (w *world) write(size, recipients int) *letter {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := &letter{n: len(w.mail)}
	l.sender = fmt.Sprintf("s%d@%s", l.n, [...]string{"src.example", "src.example", "stranger.example"}[w.rng.IntN(3)])
	for i := range recipients {
		l.to = append(l.to, fmt.Sprintf("r%d.%d@d%d.example", l.n, i, w.rng.IntN(4)))
	}
	l.text = fmt.Sprintf("X-Letter: %d\n\n", l.n) + strings.Repeat(fmt.Sprintf("line of letter %d\n", l.n), 1+size/18)
	w.mail = append(w.mail, l)
	return l
}

// submit submits letters, in one batch. What is acknowledged counts.
func (w *world) submit(hold *store.Hold, letters ...*letter) error {
	var all []queue.Submission
	for _, l := range letters {
		m, err := message.Read(strings.NewReader(l.text), message.Options{Spool: w.st})
		if err != nil {
			return err
		}
		defer m.Body().Release() //nolint:errcheck // the file system may be failing
		all = append(all, queue.Submission{Envelope: envelope.To(l.sender, l.to...), Message: m, Hold: hold})
	}
	if _, err := w.q.Submit(context.Background(), all); err != nil {
		return err
	}
	for _, l := range letters {
		w.add(event{kind: "acked", letter: l.n})
	}
	return nil
}

// split submits one letter in two parts that share a body.
func (w *world) split(l *letter) error {
	m, err := message.Read(strings.NewReader(l.text), message.Options{Spool: w.st})
	if err != nil {
		return err
	}
	defer m.Body().Release() //nolint:errcheck // the file system may be failing
	var all []queue.Submission
	for _, to := range l.to {
		all = append(all, queue.Submission{Envelope: envelope.To(l.sender, to), Message: m})
	}
	if _, err := w.q.Submit(context.Background(), all); err != nil {
		return err
	}
	w.add(event{kind: "acked", letter: l.n})
	return nil
}

// some selects messages at random, with the letters that they are.
func (w *world) some() queue.Selection {
	n := w.random(3)
	return queue.Selection{Match: func(v *queue.View) bool { return int(v.ID)%3 == n && v.Bounce == 0 }}
}

func (w *world) operate(order int) error {
	ctx := context.Background()
	var err error
	switch sel := w.some(); order {
	case 0:
		_, err = w.q.Hold(ctx, sel, store.Hold{Reason: "test", By: "world"})
	case 1:
		_, err = w.q.Release(ctx, sel, "world")
	case 2:
		w.q.Admissible("mx1.example")
		_, err = w.q.Retry(ctx, sel, "world")
	case 3:
		all, lerr := w.q.List(ctx, 0, 3, sel.Match)
		if lerr != nil {
			return lerr
		}
		var ids []store.ID
		for _, v := range all {
			var n int
			if _, err := fmt.Sscanf(v.Head, "X-Letter: %d", &n); err != nil {
				return err
			}
			for _, r := range v.Recipients {
				w.add(event{kind: "deleted", letter: n, to: r.Address})
			}
			ids = append(ids, v.ID)
		}
		if ids != nil {
			_, err = w.q.Delete(ctx, queue.Selection{IDs: ids}, "world")
		}
	}
	return err
}

// verify has the queue check itself while it is at work.
func (w *world) verify() error {
	return w.q.Verify(context.Background(), func(p string) { w.problem("verify: %s", p) })
}

// wreck is what a power cut leaves, and what the world knew at that moment.
type worldWreck struct {
	mem    *vfs.MemFS
	events int
	call   Call
}

// cut takes the wreck of a power cut now; the world goes on.
func (w *world) cut(percent int, rng *rand.Rand, call Call) worldWreck {
	w.mu.Lock()
	defer w.mu.Unlock()
	return worldWreck{w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), len(w.events), call}
}

// crash goes on from a wreck: what happened after it did not happen.
func (w *world) crash(wr worldWreck) error {
	w.out.dead.Store(true)
	w.fs.Hook(nil)
	w.mu.Lock()
	w.events = slices.Clone(w.events[:wr.events])
	w.mu.Unlock()
	w.close() //nolint:errcheck // it is gone
	w.mu.Lock()
	w.events = w.events[:wr.events]
	w.epoch++
	w.mu.Unlock()
	w.mem = wr.mem
	w.fs = NewFaultFS(w.mem)
	return w.open()
}

// drain lets everything go, and checks that everything has gone where it must.
func (w *world) drain() error {
	w.mu.Lock()
	w.calm = true
	w.mu.Unlock()
	for range 3 {
		all := queue.Selection{Match: func(*queue.View) bool { return true }}
		if _, err := w.q.Release(context.Background(), all, "world"); err != nil {
			return err
		}
		if _, err := w.q.Retry(context.Background(), all, "world"); err != nil {
			return err
		}
		time.Sleep(4 * time.Minute)
		synctest.Wait()
	}
	left, err := w.q.List(context.Background(), 0, 100, nil)
	if err != nil {
		return err
	}
	for _, v := range left {
		w.problem("message %v stays in the queue: %+v", v.ID, v)
	}
	if n := w.out.out.Load(); n != 0 {
		w.problem("%d leaves were not released", n)
	}
	s, err := w.q.Stats()
	if err != nil {
		return err
	}
	if s.Messages != 0 || s.Recipients != (schedule.Counts{}) || !s.Oldest.IsZero() {
		w.problem("an empty queue says %+v", s)
	}
	if err := w.st.Verify(context.Background(), func(p string) { w.problem("verify: %s", p) }); err != nil {
		return err
	}
	if err := w.verify(); err != nil {
		return err
	}
	for _, dir := range []string{"q/bodies", "q/spool"} {
		names, err := w.fs.List(dir)
		if err != nil || len(names) > 0 {
			w.problem("%s holds %v, %v", dir, names, err)
		}
	}
	return w.check()
}

// check compares what was promised with what came.
func (w *world) check() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	type pair struct {
		letter int
		to     string
	}
	got, gone, times := map[pair]bool{}, map[pair]bool{}, map[event]int{}
	var reports strings.Builder
	for _, e := range w.events {
		switch e.kind {
		case "delivered":
			got[pair{e.letter, e.to}] = true
			times[e]++
			if times[e] == 2 {
				w.problems = append(w.problems, fmt.Sprintf("letter %d was delivered to %s twice without a crash", e.letter, e.to))
			}
		case "deleted":
			gone[pair{e.letter, e.to}] = true
		case "reported":
			reports.WriteString(e.text)
		}
	}
	told := reports.String()
	for _, e := range w.events {
		if e.kind != "acked" {
			continue
		}
		for _, to := range w.mail[e.letter].to {
			p := pair{e.letter, to}
			if !got[p] && !gone[p] && !strings.Contains(told, "Final-Recipient: rfc822; "+to+"\nAction: failed\n") {
				w.problems = append(w.problems, fmt.Sprintf("letter %d to %s is lost", e.letter, to))
			}
		}
	}
	if len(w.problems) > 0 {
		return errors.New(strings.Join(w.problems, "\n"))
	}
	return nil
}
