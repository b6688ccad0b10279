package queue

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/queue/dsn"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// counters count what the queue did since it was opened; messages is how many
// it holds.
type counters struct {
	messages, submitted, removed, deleted, held, discarded atomic.Int64
	reports                                                [dsn.Kinds]atomic.Int64
}

// Attempts are numbers of attempts at delivery, each for one recipient, by what
// came of them.
type Attempts struct{ Delivered, Deferred, Failed int64 }

func (a *Attempts) add(b Attempts) {
	a.Delivered += b.Delivered
	a.Deferred += b.Deferred
	a.Failed += b.Failed
}

// Stats is the queue at a glance.
type Stats struct {
	// Messages are those in the queue now, held ones included; Recipients those
	// that are not done with.
	Messages   int64
	Recipients schedule.Counts
	// Oldest is when the oldest message came; zero without any.
	Oldest   time.Time
	Channels []schedule.ChannelInfo
	// What follows counts since the queue was opened. Submitted, Removed, Deleted
	// (by operators), Held (undeliverable, with a sender who must not be told) and
	// Discarded (triple bounces) are messages; the Attempts are those of all
	// channels together.
	Submitted, Removed, Deleted, Held, Discarded int64
	Attempts
	// ByChannel are the attempts of each channel, by its name: of those that
	// Options.Channels names, and of any other that mail was routed to.
	ByChannel map[string]Attempts
	// Reports are the reports sent, by kind.
	Reports [dsn.Kinds]int64
}

// Stats takes a look. It costs as much as there are domains in the queue.
func (q *Queue) Stats() (Stats, error) {
	c := &q.counters
	s := Stats{
		Messages: c.messages.Load(), Submitted: c.submitted.Load(), Removed: c.removed.Load(), Deleted: c.deleted.Load(), Held: c.held.Load(),
		Discarded: c.discarded.Load(), ByChannel: map[string]Attempts{},
	}
	for i := range s.Reports {
		s.Reports[i] = c.reports[i].Load()
	}
	q.mu.Lock()
	s.Channels = q.schedule.Channels()
	for name, n := range q.attempts {
		s.ByChannel[name] = n
		s.add(n)
	}
	q.mu.Unlock()
	for _, in := range s.Channels {
		s.Recipients.Queued += in.Queued
		s.Recipients.InFlight += in.InFlight
		s.Recipients.Held += in.Held
	}
	r, err := q.o.Store.Reader()
	if err != nil {
		return s, err
	}
	defer r.Close()
	err = r.Scan(0, func(e *store.Entry) error {
		s.Oldest = e.Message.Arrival()
		return errStop
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return s, err
}

// SiteOf is the site to which mail for a domain goes by a channel, in whatever
// lane; "" if the queue has none.
func (q *Queue) SiteOf(channel, domain string) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	found := ""
	for _, lane := range q.lanes {
		key := place{domain, lane}.key()
		switch site, _ := q.schedule.SiteOf(channel, key); site {
		case "":
		case unlocated:
			found = site
		default:
			return siteOf(key, site).name
		}
	}
	return found
}

// Site is what there is to say about a site in one lane.
type Site struct {
	schedule.SiteInfo
	Lane string
}

// lookAtOnce is how many sites or recipients are looked at under one hold of
// the queue's lock.
const lookAtOnce = 1000

// Sites tells about the sites that have mail or had some lately, by name and
// lane.
func (q *Queue) Sites() []Site {
	now := q.o.Now()
	var all []Site
	for place, more := uint32(0), true; more; more = place != 0 {
		var part []schedule.SiteInfo
		q.mu.Lock()
		part, place = q.schedule.SitesAfter(now, place, lookAtOnce)
		q.mu.Unlock()
		for _, s := range part {
			at := placeOf(s.Name)
			s.Name = at.name
			all = append(all, Site{s, at.lane})
		}
	}
	slices.SortFunc(all, func(a, b Site) int { return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Lane, b.Lane)) })
	return all
}
