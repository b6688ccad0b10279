package queue

import (
	"context"
	"time"

	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// unlocated is the site of domains whose real one is not known yet; no host has
// such a name.
const unlocated = "?"

// Leave is leave to deliver to a site, which an exit is given with a job.
type Leave interface {
	// Release gives up what the exit has not taken over. The queue calls it when
	// the delivery is over, and when there was none.
	Release()
}

// Wait says why a site may not be delivered to now.
type Wait struct {
	// Until is when to ask again; zero means when Queue.Admissible is called.
	Until time.Time
}

// noEnd stands for a Wait without an end; should nobody call, the site is asked
// about again after it.
const noEnd = time.Minute

// relocateAgain is how soon a domain that was moved may be moved again: an answer
// of the DNS that changes all the time must not keep mail from being tried.
const relocateAgain = 10 * time.Second

// maxRelocated bounds what is remembered of that.
const maxRelocated = 10_000

// admit asks for leave for a batch, and sends it back if there is none. The
// queue is locked.
func (q *Queue) admit(now time.Time, b schedule.Batch) (Leave, bool) {
	c, ok := q.channels[b.Channel]
	if !ok || c.Admit == nil || b.Site == unlocated {
		return nil, true
	}
	at := siteOf(b.Domain, b.Site)
	leave, wait := c.Admit(now, at.name, at.lane)
	if wait == nil {
		return leave, true
	}
	q.keepOut(now, b, wait)
	return nil, false
}

// keepOut sends a batch back and asks nothing for its site, in its lane, for a while:
// a millisecond at least. The queue is locked.
func (q *Queue) keepOut(now time.Time, b schedule.Batch, wait *Wait) {
	until := wait.Until
	if until.IsZero() || until.After(now.Add(noEnd)) {
		until = now.Add(noEnd)
	}
	// The schedule's clock goes by milliseconds, and a site that is not kept out by it
	// is asked about again at once, for ever.
	until = maxTime(until, now).Truncate(time.Millisecond).Add(time.Millisecond)
	q.schedule.Pace(b.Site, until)
	if err := q.schedule.Return(now, b); err != nil {
		q.o.Log.Error("the schedule does not know a batch; this is a fault in Postern", "id", store.ID(b.ID).String(), "error", err)
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// putBackPause is for how long a site is left alone that turned out to be shut
// when its delivery had begun, and that nobody may call.
const putBackPause = time.Second

// putBack sends a batch back of which nothing was tried.
func (q *Queue) putBack(b schedule.Batch, t *track, results []Result) bool {
	var wait *Wait
	for _, r := range results {
		if r.NotNow == nil {
			return false
		}
		wait = r.NotNow
	}
	if wait == nil {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.o.Now()
	if wait.Until.IsZero() {
		wait = &Wait{Until: now.Add(putBackPause)}
	}
	t.inFlight--
	q.keepOut(now, b, wait)
	return true
}

// Admissible says that a site, which Channel.Admit kept from delivering, is worth
// asking about again, in all lanes. It never waits, so that Admit may call it, too: what
// one site has asked for and has no use for may be for another.
func (q *Queue) Admissible(site string) {
	q.calls.Lock()
	q.called[site] = struct{}{}
	q.calls.Unlock()
	q.wake()
}

// callIn has sites that Admissible was told of ask again; the queue is locked.
func (q *Queue) callIn() {
	q.calls.Lock()
	defer q.calls.Unlock()
	for site := range q.called {
		for _, lane := range q.lanes {
			q.schedule.Unpace(place{site, lane}.key())
		}
	}
	clear(q.called)
}

// relocate looks where a batch's domain belongs, and sends the batch back if it
// was taken for another site. An error is no reason to: the exit meets it, too,
// and can say what it means.
func (q *Queue) relocate(b schedule.Batch, t *track) bool {
	c := q.channels[b.Channel]
	if c.Locate == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(q.ctx, q.o.JobTimeout)
	defer cancel()
	domain := placeOf(b.Domain)
	site, err := c.Locate(ctx, domain.name)
	if err != nil || site == "" {
		return false
	}
	to := place{site, domain.lane}.key()
	if to == b.Site {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.o.Now()
	if at, _ := q.schedule.SiteOf(b.Channel, b.Domain); at != to { // else another batch has moved it meanwhile
		if at, ok := q.relocated[b.Domain]; ok && b.Site != unlocated && now.Sub(at) < relocateAgain {
			return false
		}
		if len(q.relocated) >= maxRelocated {
			clear(q.relocated)
		}
		q.relocated[b.Domain] = now
		q.schedule.Assign(b.Domain, to)
	}
	t.inFlight--
	if err := q.schedule.Return(now, b); err != nil {
		q.o.Log.Error("the schedule does not know a batch; this is a fault in Postern", "id", t.id.String(), "error", err)
	}
	return true
}
