package queue

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// View is a message as an operator sees it.
type View struct {
	ID store.ID
	// Arrival is when it came, to the millisecond.
	Arrival time.Time
	// Envelope is as it was submitted, whatever became of its recipients.
	Envelope envelope.Envelope
	// Head is the head's text with its separator.
	Head string
	// Size in bytes of head and body.
	Size   int64
	Form   message.Form
	Origin []byte
	// Bounce is how many reports deep it is; 0 for mail.
	Bounce uint8
	// Hold is why it is held; nil: it is not.
	Hold *store.Hold
	// Recipients are the envelope's, in order.
	Recipients []Recipient
}

// Recipient is one recipient of a View.
type Recipient struct {
	Address string
	// Channel and Domain are what Options.Route says of the address.
	Channel, Domain string
	store.State
	// What follows is filled in by Show and List alone: what the schedule knows
	// of a recipient that is not done with. Next is when it may be tried again.
	// Lane is by which lane it leaves, where there are several.
	Site, Lane string
	Next       time.Time
	InFlight   bool
}

// Left is how many recipients are not done with.
func (v *View) Left() int {
	n := 0
	for i := range v.Recipients {
		if !v.Recipients[i].Status.Done() {
			n++
		}
	}
	return n
}

// Bouncing reports whether recipients were given up of whom nobody was told
// yet: the "bouncing" of qmail-qread.
func (v *View) Bouncing() bool {
	return slices.ContainsFunc(v.Recipients, func(r Recipient) bool { return r.Status == store.Failed && !r.Reported })
}

// set makes the view that of an entry, using its memory again.
func (v *View) set(q *Queue, e *store.Entry) {
	m := e.Message
	to := v.Recipients[:0]
	next := 0
	for n, r := range m.Envelope.Recipients {
		one := Recipient{Address: r.Address}
		one.Channel, one.Domain = q.o.Route(r.Address)
		if next < len(e.States) && e.States[next].Recipient == uint32(n) {
			one.State = e.States[next].State
			next++
		}
		to = append(to, one)
	}
	*v = View{
		ID: m.ID, Arrival: m.Arrival(), Envelope: m.Envelope, Head: m.Head, Size: int64(len(m.Head)) + m.Body.Size, Form: m.Form, Origin: m.Origin,
		Bounce: m.Bounce, Hold: e.Hold, Recipients: to,
	}
}

// clone is a copy that outlasts the call in which the view is valid.
func (v *View) clone() *View {
	c := *v
	c.Envelope = v.Envelope.Clone()
	c.Origin = slices.Clone(v.Origin)
	c.Recipients = slices.Clone(v.Recipients)
	if v.Hold != nil {
		hold := *v.Hold
		c.Hold = &hold
	}
	return &c
}

// Each calls f for every message from an id on, in ascending order, until f
// fails or ctx ends. The view is valid during the call. What qmail-qread and
// qmail-qstat print is in it; nothing is ever "not yet preprocessed" here.
func (q *Queue) Each(ctx context.Context, from store.ID, f func(*View) error) error {
	r, err := q.o.Store.Reader()
	if err != nil {
		return err
	}
	defer r.Close()
	v := &View{}
	return r.Scan(from, func(e *store.Entry) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v.set(q, e)
		return f(v)
	})
}

// List gives up to most messages from an id on for which match (nil: every one)
// says yes, in ascending order.
func (q *Queue) List(ctx context.Context, from store.ID, most int, match func(*View) bool) ([]*View, error) {
	var all []*View
	err := q.Each(ctx, from, func(v *View) error {
		if len(all) >= most {
			return errStop
		}
		if match == nil || match(v) {
			all = append(all, v.clone())
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return nil, err
	}
	q.locate(all)
	return all, nil
}

// Show gives one message; store.ErrNotFound if there is none of that id.
func (q *Queue) Show(id store.ID) (*View, error) {
	v := &View{}
	err := q.scan(id, func(e *store.Entry) error {
		v.set(q, e)
		v = v.clone()
		return nil
	})
	if err != nil {
		return nil, err
	}
	q.locate([]*View{v})
	return v, nil
}

// locate fills in what the schedule knows. The queue is locked for one message
// at a time.
func (q *Queue) locate(all []*View) {
	for _, v := range all {
		q.mu.Lock()
		for i := range q.schedule.Items(schedule.Select{ID: uint64(v.ID)}) {
			if int(i.Recipient) < len(v.Recipients) {
				r := &v.Recipients[i.Recipient]
				at := siteOf(i.Domain, i.Site)
				r.Site, r.Lane, r.Next, r.InFlight = at.name, at.lane, i.Due, i.State == schedule.InFlight
			}
		}
		q.mu.Unlock()
	}
}

// Count is how many there are of something.
type Count struct{ Messages, Recipients int }

// Count counts messages and their recipients under the names that key gives
// them; those with the name "" are left out. A message counts once for each
// name. Status, domain, channel, sender or a filter's name make good keys.
func (q *Queue) Count(ctx context.Context, key func(*View, *Recipient) string) (map[string]Count, error) {
	all := map[string]Count{}
	seen := map[string]struct{}{}
	err := q.Each(ctx, 0, func(v *View) error {
		clear(seen)
		for i := range v.Recipients {
			name := key(v, &v.Recipients[i])
			if name == "" {
				continue
			}
			c := all[name]
			c.Recipients++
			if _, there := seen[name]; !there {
				seen[name] = struct{}{}
				c.Messages++
			}
			all[name] = c
		}
		return nil
	})
	return all, err
}
