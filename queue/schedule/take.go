package schedule

import "time"

// A Batch is up to Options.Batch recipients of one message in one domain, in
// flight. Whoever takes it ends it with Done or Return, once.
type Batch struct {
	Channel    string
	Site       string // for which it counts, even if the domain moves meanwhile
	Domain     string
	ID         uint64
	Attempts   int      // made before this one
	Recipients []uint32 // rising; the caller's own

	flight, serial uint32
}

// A flight is a batch, seen from the schedule.
type flight struct {
	serial  uint32
	first   uint32 // slot
	lane    uint32
	site    uint32
	count   uint32
	channel uint16
	class   class
}

// Health is what an attempt has told about a site.
type Health uint8

const (
	// Unchanged: nothing can be concluded (our own trouble, greylisting).
	Unchanged Health = iota
	// Succeeded: the site has answered like one that works, whatever it said
	// about the recipients.
	Succeeded
	// Failed: no connection, no greeting, a timeout, or "go away" before any
	// recipient was named.
	Failed
)

// An Outcome is what became of one recipient of a batch. The zero value means
// that it is finished, delivered or failed for good, and is forgotten.
type Outcome struct {
	Deferred bool      // it stays, with one attempt more
	Due      time.Time // when; kept to the second, rounded down; zero means at once
	Hold     bool      // with Deferred: it is held instead of becoming due
}

// Take hands out the batch that is next by the rules of the package's comment,
// if anything is due and allowed at now. The owner calls it until it says false.
func (s *Schedule) Take(now time.Time) (Batch, bool) {
	s.advance(now)
	for k := 0; k < len(s.channels); {
		turn := (s.turn + k) % len(s.channels)
		ni, ok := s.next(s.channels[turn])
		if !ok {
			k++
			continue
		}
		if b, ok := s.serve(ni); ok {
			s.turn = (turn + 1) % len(s.channels)
			return b, true
		}
	}
	return Batch{}, false
}

// TakeFrom is Take for one site, for a connection that is open and free: it
// keeps to all limits but does not ask whose turn it is. How many messages may
// follow each other on a connection is the caller's to bound.
func (s *Schedule) TakeFrom(now time.Time, where string) (Batch, bool) {
	s.advance(now)
	si, ok := s.siteByKey[where]
	if !ok {
		return Batch{}, false
	}
	s.refresh(si)
	for ni := s.sites.at(si).node; ni != 0; {
		n := s.nodes.at(ni)
		if _, ok := s.channels[n.channel].admit(n.line, s.now); n.line == none || !ok {
			ni = n.sibling
			continue
		}
		if b, ok := s.serve(ni); ok {
			return b, true
		}
	}
	return Batch{}, false
}

// next is the node whose turn it is in a channel.
func (s *Schedule) next(c *channel) (uint32, bool) {
	for k := class(0); k < classes; {
		line := (c.turn + k) % classes
		ni := c.lines[line].head
		if line == newcomer {
			ni = c.lines[line].tail
		}
		if _, ok := c.admit(line, s.now); ni == 0 || !ok {
			k++
			continue
		}
		n := s.nodes.at(ni)
		s.refresh(n.site) // its success may be too long ago by now
		if n.line == line {
			c.turn = (line + 1) % classes
			return ni, true
		}
		k = 0 // it stands in another line now, perhaps one that was passed
	}
	return 0, false
}

// serve takes a batch from a node that stands in a line. false means that the
// clock went back: what was due is not, and has been put back on its timer.
func (s *Schedule) serve(ni uint32) (Batch, bool) {
	n := s.nodes.at(ni)
	kind := n.turn
	if n.ring[kind] == 0 {
		kind ^= 1
	}
	ref := n.ring[kind]
	if head := s.strand(ref).heap[0]; int64(s.slots.at(head).due)*1000 > s.now {
		s.settle(ref)
		return Batch{}, false
	}
	c := s.channels[n.channel]
	k, _ := c.admit(n.line, s.now)
	if k == newcomer {
		s.spend(c)
	}
	first, count := s.draw(ref, s.opt.Batch)
	n.ring[kind] = s.strand(ref).next // to the ring's end
	n.turn = kind ^ 1
	si := n.site
	st := s.sites.at(si)
	st.inflight++
	st.tried = true
	c.flying[k]++
	s.unline(ni) // to the line's end, if it stays open
	s.settle(ref)
	s.refresh(si)

	s.serial++
	fi := s.flights.get()
	*s.flights.at(fi) = flight{
		serial: s.serial, first: first, lane: ref >> 1, site: si, count: uint32(count), channel: n.channel, class: k,
	}
	head := s.slots.at(first)
	b := Batch{
		Channel: c.name, Site: s.siteNames[si], Domain: s.laneNames[ref>>1], ID: head.id(), Attempts: int(head.attempts),
		Recipients: make([]uint32, 0, count), flight: fi, serial: s.serial,
	}
	for i := first; i != 0; i = s.slots.at(i).next {
		b.Recipients = append(b.Recipients, s.slots.at(i).rcpt)
	}
	return b, true
}

// Done ends a batch. outcomes go with b.Recipients; nil means that all are
// finished. An error (ErrStale, or ErrOutcomes) means that nothing was changed.
// Recipients that were removed meanwhile are forgotten whatever the outcome.
func (s *Schedule) Done(now time.Time, b Batch, h Health, outcomes []Outcome) error {
	f, err := s.landing(b)
	if err != nil {
		return err
	}
	if outcomes != nil && len(outcomes) != int(f.count) {
		return ErrOutcomes
	}
	s.tick(milliseconds(now))
	s.judge(f, h)
	k := 0
	s.land(b.flight, func(sl *slot) (stays, hold bool) {
		var o Outcome
		if outcomes != nil {
			o = outcomes[k]
		}
		k++
		if o.Deferred {
			sl.due = seconds(o.Due)
			sl.attempts = attempts(int(sl.attempts) + 1)
		}
		return o.Deferred, o.Hold
	})
	return nil
}

// Return ends a batch as if it had not been taken: the recipients are queued as
// they were, and no attempt is counted. It is for a batch that could not be
// tried, and for one whose domain has just been assigned. What made it
// impossible should be told (Assign, Suspend, Pace), or it is taken again at once.
func (s *Schedule) Return(now time.Time, b Batch) error {
	if _, err := s.landing(b); err != nil {
		return err
	}
	s.tick(milliseconds(now))
	s.land(b.flight, func(*slot) (stays, hold bool) { return true, false })
	return nil
}

func (s *Schedule) landing(b Batch) (flight, error) {
	if !s.flights.live(b.flight) || s.flights.at(b.flight).serial != b.serial {
		return flight{}, ErrStale
	}
	return *s.flights.at(b.flight), nil
}

// land frees what a flight occupies and decides about its slots.
func (s *Schedule) land(fi uint32, decide func(*slot) (stays, hold bool)) {
	f := *s.flights.at(fi)
	s.flights.put(fi)
	s.channels[f.channel].flying[f.class]--
	s.sites.at(f.site).inflight--
	l := s.lanes.at(f.lane)
	l.flying -= f.count
	for i := f.first; i != 0; {
		sl := s.slots.at(i)
		next := sl.next
		stays, hold := decide(sl)
		switch {
		case !stays, sl.flags&slotGone != 0:
			s.drop(i)
		case hold, sl.flags&slotHold != 0:
			sl.flags, sl.next = slotHeld, 0
			l.held++
		default:
			sl.flags = 0
			s.insert(i)
		}
		i = next
	}
	s.refresh(f.site)
	s.dropLane(f.lane)
	s.rest(f.site)
}

// judge notes what an attempt has told about a site.
func (s *Schedule) judge(f flight, h Health) {
	st := s.sites.at(f.site)
	switch h {
	case Succeeded:
		st.succeeded, st.strikes = max(1, s.now), 0
		if f.class == newcomer {
			s.refund(s.channels[f.channel])
		}
	case Failed:
		st.strikes = min(st.strikes+1, strikes)
	case Unchanged:
	}
}
