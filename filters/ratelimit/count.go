package ratelimit

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// charge is what a transaction asks of one subject's limit.
type charge struct {
	limit   *limit
	subject string
	need    counts
	// who are the recipients it is about, as the envelope counts them; nil: all.
	who []int
}

// excess is a charge that a limit has no room for.
type excess struct {
	charge
	quantity int
	wait     time.Duration
	// never is set if there will be no room, however long one waits.
	never bool
}

// stripes is how many locks there are.
const stripes = 64

// lock takes the locks of all charges, in one order for everybody.
func (f *Filter) lock(keys []string) (unlock func()) {
	var wanted [stripes]bool
	for _, k := range keys {
		wanted[maphash.String(f.seed, k)%stripes] = true
	}
	for i := range f.locks {
		if wanted[i] {
			f.locks[i].Lock()
		}
	}
	return func() {
		for i := range f.locks {
			if wanted[i] {
				f.locks[i].Unlock()
			}
		}
	}
}

// take sees whether there is room for all charges, and with count counts them:
// all, or none of them. What there is no room for is returned; of several that
// with the longest wait.
func (f *Filter) take(ctx context.Context, charges []charge, count bool) (*excess, error) {
	if len(charges) == 0 {
		return nil, nil
	}
	keys := make([]string, len(charges))
	for i, c := range charges {
		keys[i] = c.limit.key(c.subject)
	}
	defer f.lock(keys)()
	now := f.now()
	windows := make([]*window, len(charges))
	var over *excess
	for i, c := range charges {
		w, err := f.load(ctx, keys[i], c.limit.per, now)
		if err != nil {
			return nil, err
		}
		windows[i] = w
		if x := w.excess(c, now); x != nil && (over == nil || x.worse(over)) {
			over = x
		}
	}
	if over != nil || !count {
		return over, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err // the message is put off by now, and must not count
	}
	for i, c := range charges {
		windows[i].add(c.limit.per, now, c.need)
		if f.state == nil {
			return nil, errNoState
		}
		if err := f.state.Put(ctx, keys[i], windows[i].encode(c.limit.per), c.limit.per+c.limit.per/parts+time.Second); err != nil {
			return nil, fmt.Errorf("counting for limit %s: %w", c.limit.name, err)
		}
	}
	return nil, nil
}

// load is what was counted under a key. A record that cannot be read is as good
// as none: it is written again.
func (f *Filter) load(ctx context.Context, key string, per time.Duration, now time.Time) (*window, error) {
	if f.state == nil {
		return &window{}, nil
	}
	b, ok, err := f.state.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	w := &window{}
	if ok {
		if known, err := decode(b, per); err == nil {
			w = known
		}
	}
	w.forget(per, now)
	return w, nil
}

// excess is what a window has no room for, nil if it has for all.
func (w *window) excess(c charge, now time.Time) (over *excess) {
	used := w.total()
	for q, limit := range c.limit.most {
		need := c.need[q]
		if limit == 0 || need == 0 || used[q]+need <= limit {
			continue
		}
		x := &excess{charge: c, quantity: q, never: need > limit}
		x.wait = w.wait(c.limit.per, now, q, min(need, limit), limit)
		if over == nil || x.worse(over) {
			over = x
		}
	}
	return over
}

func (x *excess) worse(than *excess) bool {
	if x.never != than.never {
		return x.never
	}
	return x.wait > than.wait
}

// perRecipient are the charges of the limits that count by recipient.
func (f *Filter) perRecipient(tx *pipeline.Transaction, m message.Message, who []int) (all []charge, err error) {
	for n := range f.limits {
		l := &f.limits[n]
		if l.by.each == nil {
			continue
		}
		at := map[string]int{}
		for _, r := range who {
			own := *tx
			own.Active = []int{r}
			is, err := l.applies(pipeline.AtMessage, pipeline.FactsAt(&own, m))
			if err != nil {
				return nil, err
			}
			subject := l.by.each(tx.Envelope.Recipients[r].Address)
			if !is || subject == "" {
				continue
			}
			i, ok := at[subject]
			if !ok {
				i = len(all)
				at[subject] = i
				all = append(all, charge{limit: l, subject: subject, need: counts{messages: 1, bytes: uint64(m.Size())}})
			}
			all[i].need[recipients]++
			all[i].who = append(all[i].who, r)
		}
	}
	return all, nil
}

// together are the charges of the other limits.
func (f *Filter) together(tx *pipeline.Transaction, m message.Message) (all []charge, err error) {
	facts := pipeline.FactsAt(tx, m)
	for n := range f.limits {
		l := &f.limits[n]
		if l.by.one == nil {
			continue
		}
		subject := l.by.one(tx)
		if subject == "" {
			continue
		}
		is, err := l.applies(pipeline.AtMessage, facts)
		if err != nil {
			return nil, err
		}
		if is {
			all = append(all, charge{limit: l, subject: subject, need: counts{messages: 1, recipients: uint64(len(tx.Active)), bytes: uint64(m.Size())}})
		}
	}
	return all, nil
}

// refuse finds the recipients whose own limits have no room: what they are
// answered, and who is left.
func (f *Filter) refuse(ctx context.Context, tx *pipeline.Transaction, single []charge) (passing []int, verdicts []pipeline.Verdict, err error) {
	out := map[int]bool{}
	for _, c := range single {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		over, err := f.take(ctx, []charge{c}, false)
		if err != nil {
			return nil, nil, err
		}
		if over == nil {
			continue
		}
		who := slices.DeleteFunc(slices.Clone(c.who), func(n int) bool { return out[n] })
		if len(who) == 0 {
			continue
		}
		for _, n := range who {
			out[n] = true
		}
		v := f.verdict(over, false)
		v.Only = who
		verdicts = append(verdicts, v)
	}
	if len(out) == 0 {
		return tx.Active, nil, nil
	}
	for _, n := range tx.Active {
		if !out[n] {
			passing = append(passing, n)
		}
	}
	return passing, verdicts, nil
}

// words are what the peer hears of each quantity.
var words = [quantities]string{messages: "too many messages", recipients: "too many recipients", bytes: "too much mail", attempts: "too many attempts"}

// verdict is the answer to what there is no room for. While the recipients are
// still coming, there is nothing that could never pass: the rest may come in
// another message.
func (f *Filter) verdict(x *excess, coming bool) pipeline.Verdict {
	if x == nil {
		return pipeline.Verdict{}
	}
	text := f.text
	if text == "" {
		text = words[x.quantity]
	}
	reason := fmt.Sprintf("limit %s of %s: %d %s in %s", x.limit.name, reply.Clean(x.subject, 200), x.limit.most[x.quantity], quantityNames[x.quantity], short(x.limit.per))
	if x.never && !coming {
		return pipeline.Verdict{
			Action: pipeline.Reject, Reply: reply.Make(554, reply.Enhanced{Subject: 7, Detail: 1}, text+" at once"),
			Reason: fmt.Sprintf("%s; this is %d", reason, x.need[x.quantity]),
		}
	}
	r := reply.Make(451, reply.Enhanced{Subject: 7, Detail: 1}, text+", please try again in "+inWords(x.wait))
	switch {
	case x.limit.by.each != nil:
		r.Code, r.Enhanced = 450, reply.Enhanced{Subject: 2, Detail: 1}
	case coming:
		r.Code, r.Enhanced = 452, reply.Enhanced{Subject: 5, Detail: 3}
	}
	return pipeline.Verdict{Action: pipeline.Defer, Reply: r, Reason: reason + ", free in " + x.wait.Round(time.Second).String()}
}

// quantityNames are the keys of the quantities.
var quantityNames = [quantities]string{messages: "messages", recipients: "recipients", bytes: "bytes", attempts: "attempts"}

// inWords is a time as people say it, never less than it is.
func inWords(d time.Duration) string {
	for _, u := range []struct {
		length, above time.Duration
		word          string
	}{
		{24 * time.Hour, 48 * time.Hour, "days"}, {time.Hour, 2 * time.Hour, "hours"}, {time.Minute, time.Minute, "minutes"}, {time.Second, time.Second, "seconds"},
	} {
		if d > u.above {
			return fmt.Sprintf("%d %s", (d+u.length-1)/u.length, u.word)
		}
	}
	return "a second"
}
