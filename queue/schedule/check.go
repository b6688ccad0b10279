package schedule

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Check walks everything and returns what contradicts itself, joined, or nil.
// It is for tests and for the operator's verification; it takes about half a
// second for a million recipients.
func (s *Schedule) Check() error {
	c := checker{s: s, place: make([]uint64, len(s.slots.chunks)*chunkSize/64)}
	c.timers()
	flying := c.flights()
	for _, ch := range s.channels {
		c.channel(ch)
	}
	c.slots(flying)
	c.index()
	c.sites()
	return errors.Join(c.faults...)
}

type checker struct {
	s      *Schedule
	place  []uint64 // slots that stand in a chain, a bit each
	lanes  int
	nodes  int
	faults []error
}

func (c *checker) stands(i uint32)   { c.place[i/64] |= 1 << (i % 64) }
func (c *checker) has(i uint32) bool { return c.place[i/64]&(1<<(i%64)) != 0 }

// that notes a fault unless ok; a hundred are enough.
func (c *checker) that(ok bool, format string, args ...any) {
	if !ok && len(c.faults) < 100 {
		c.faults = append(c.faults, fmt.Errorf("schedule: "+format, args...))
	}
}

func (c *checker) timers() {
	for i, t := range c.s.timers {
		c.that(int(*c.s.posOf(t.ref)) == i+1, "timer %d does not know its place", i)
		c.that(i == 0 || c.s.timers[(i-1)/arity].at <= t.at, "timer %d is earlier than its parent", i)
	}
}

// flights checks what is in flight and returns the number of recipients.
func (c *checker) flights() int {
	s, total := c.s, 0
	bySite := map[uint32]uint32{}
	byLane := map[uint32]uint32{}
	byClass := map[[2]int]int{}
	s.flights.each(func(fi uint32, f *flight) bool {
		n := uint32(0)
		for i := f.first; i != 0; i = s.slots.at(i).next {
			n++
			c.stands(i)
			sl := s.slots.at(i)
			c.that(sl.flags&slotFlying != 0 && sl.lane == f.lane, "slot %d in flight %d is not its own", i, fi)
		}
		c.that(n == f.count && n > 0, "flight %d has %d recipients and says %d", fi, n, f.count)
		total += int(n)
		bySite[f.site]++
		byLane[f.lane] += n
		byClass[[2]int{int(f.channel), int(f.class)}]++
		return true
	})
	s.sites.each(func(i uint32, st *site) bool {
		c.that(st.inflight == bySite[i], "site %q counts %d batches in flight, not %d", s.siteNames[i], st.inflight, bySite[i])
		return true
	})
	s.lanes.each(func(i uint32, l *lane) bool {
		c.that(l.flying == byLane[i], "domain %q counts %d in flight, not %d", s.laneNames[i], l.flying, byLane[i])
		return true
	})
	for _, ch := range s.channels {
		c.that(ch.pos == 0 || s.timers[ch.pos-1].at == ch.more, "channel %q has the wrong timer", ch.name)
		for k, n := range ch.flying {
			c.that(n == byClass[[2]int{int(ch.number), k}], "channel %q counts %d batches of class %d", ch.name, n, k)
		}
	}
	return total
}

// channel checks the lines and lanes of a channel.
func (c *checker) channel(ch *channel) {
	s := c.s
	for k := range classes {
		prev := uint32(0)
		for ni := ch.lines[k].head; ni != 0; ni = s.nodes.at(ni).next {
			n := s.nodes.at(ni)
			c.that(n.line == k && n.channel == ch.number && n.prev == prev, "node %d stands in the wrong line", ni)
			prev = ni
		}
		c.that(ch.lines[k].tail == prev, "line %d of channel %q has the wrong end", k, ch.name)
	}
	for name, li := range ch.lanes {
		c.lanes++
		l := s.lanes.at(li)
		c.that(s.lanes.live(li) && s.laneNames[li] == name, "domain %q is not known by its name", name)
		c.that(s.nodes.at(l.node).channel == ch.number, "domain %q is in another channel", name)
		c.that(l.queued+l.held+l.flying > 0, "domain %q has no recipients", name)
		queued := 0
		for kind := range uint32(2) {
			queued += c.strand(li<<1|kind, name)
		}
		c.that(int(l.queued) == queued, "domain %q counts %d queued, not %d", name, l.queued, queued)
	}
}

// strand checks the chains of a strand and returns the number of recipients.
func (c *checker) strand(ref uint32, name string) int {
	s, n := c.s, 0
	st := s.strand(ref)
	last := st.last == 0
	for k, head := range st.heap {
		last = last || head == st.last
		c.that(k == 0 || !s.before(head, st.heap[(k-1)/arity]), "domain %q: a chain is out of order", name)
		h := s.slots.at(head)
		for i := head; i != 0; i = s.slots.at(i).next {
			sl := s.slots.at(i)
			n++
			c.that(!c.has(i), "slot %d stands in two chains", i)
			c.stands(i)
			same := sl.id() == h.id() && sl.due == h.due && sl.attempts == h.attempts
			c.that(same && sl.lane == ref>>1 && sl.flags == 0 && kindOf(sl.attempts) == ref&1, "slot %d is not of its chain", i)
		}
	}
	c.that(last, "domain %q remembers a chain that is not there", name)
	switch {
	case len(st.heap) == 0:
		c.that(st.pos == 0, "domain %q: an empty strand waits", name)
	case st.pos == inRing:
		c.that(s.strand(st.next).prev == ref && s.strand(st.prev).next == ref, "domain %q: the ring is broken", name)
		c.that(s.nodes.at(s.lanes.at(ref >> 1).node).ring[ref&1] != 0, "domain %q: its node has no ring", name)
	case st.pos == 0:
		c.that(false, "domain %q: a strand is not due and has no timer", name)
	default:
		c.that(s.timers[st.pos-1].at == int64(s.slots.at(st.heap[0]).due)*1000, "domain %q: the timer is wrong", name)
	}
	return n
}

// slots checks that every recipient is known once and stands in one place.
func (c *checker) slots(flying int) {
	s := c.s
	held := map[uint32]uint32{}
	n := 0
	s.slots.each(func(i uint32, sl *slot) bool {
		n++
		if sl.flags&slotHeld != 0 {
			held[sl.lane]++
			c.that(sl.flags == slotHeld && !c.has(i), "slot %d is held, and something else", i)
			return true
		}
		c.that(c.has(i), "slot %d is neither queued nor in flight nor held", i)
		if sl.flags != 0 {
			flying--
		}
		return true
	})
	c.that(flying == 0 && n == s.slots.n, "%d recipients more in flight than slots say", flying)
	lanes := 0
	s.lanes.each(func(i uint32, l *lane) bool {
		lanes++
		c.that(l.held == held[i], "domain %q counts %d held, not %d", s.laneNames[i], l.held, held[i])
		return true
	})
	c.that(lanes == c.lanes, "%d domains are known by name, %d exist", c.lanes, lanes)
}

// index checks that every recipient is found by its message, once.
func (c *checker) index() {
	s := c.s
	n := 0
	var all [][2]uint64
	for b := range s.index.buckets {
		all = all[:0]
		before := uint32(0)
		for i := *s.index.at(b); i != 0; i = s.slots.at(i).kin {
			n++
			sl := s.slots.at(i)
			if !c.s.slots.live(i) || sl.akin != before || s.index.place(hash(sl.id())) != b {
				c.that(false, "slot %d is in the wrong place of the index", i)
				break
			}
			before = i
			all = append(all, [2]uint64{sl.id(), uint64(sl.rcpt)})
		}
		slices.SortFunc(all, func(x, y [2]uint64) int { return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1])) })
		for k := 1; k < len(all); k++ {
			c.that(all[k] != all[k-1], "recipient %d of message %d is there twice", all[k][1], all[k][0])
		}
	}
	c.that(n == s.slots.n, "the index knows %d recipients, not %d", n, s.slots.n)
}

// sites checks the tree of sites, nodes and lanes, and that each node stands in
// a line exactly if something may be taken from it.
func (c *checker) sites() {
	s := c.s
	lanes, idle, n := 0, 0, 0
	s.sites.each(func(i uint32, st *site) bool {
		n++
		name := s.siteNames[i]
		c.that(s.siteByKey[name] == i, "site %q is not known by its name", name)
		c.that(!st.idle || st.node == 0 && st.inflight == 0 && st.limit == 0, "site %q is among the idle and is not", name)
		if st.idle {
			idle++
		}
		open := st.gate() <= s.now && st.pos == 0 && st.inflight < s.most(st, s.now) // pos: its timer is about to be seen
		for ni := st.node; ni != 0; ni = s.nodes.at(ni).sibling {
			nd := s.nodes.at(ni)
			c.nodes++
			c.that(nd.site == i && nd.lanes != 0, "site %q: node %d is lost or empty", name, ni)
			ready := nd.ring != [2]uint32{}
			c.that(!open || !ready || nd.line != none, "site %q is open and in no line", name)
			c.that(ready || nd.line == none, "site %q is in a line with nothing due", name)
			prev := uint32(0)
			for li := nd.lanes; li != 0; li = s.lanes.at(li).next {
				lanes++
				c.that(s.lanes.at(li).node == ni && s.lanes.at(li).prev == prev, "domain %q is not at its site", s.laneNames[li])
				prev = li
			}
		}
		return true
	})
	c.that(n == len(s.siteByKey), "%d sites are known by name, %d exist", len(s.siteByKey), n)
	c.that(idle == s.nidle, "%d sites are idle, not %d", idle, s.nidle)
	c.that(lanes == c.lanes && c.nodes == s.nodes.n, "domains or nodes are at no site")
}
