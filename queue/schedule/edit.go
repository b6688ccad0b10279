package schedule

import (
	"cmp"
	"slices"
	"time"
)

// A Select chooses recipients. Every field that is not zero must agree; the
// zero value chooses all.
type Select struct {
	ID uint64
	// IDs are several messages, each once; nil chooses those of all.
	IDs     []uint64
	Channel string
	Site    string // to which the domain belongs now
	Domain  string
	// Match is asked last. It must not call the schedule.
	Match func(Item) bool
}

// One chooses a single recipient.
func One(id uint64, recipient uint32) Select {
	return Select{ID: id, Match: func(i Item) bool { return i.Recipient == recipient }}
}

// An edit of messages that are named looks at their recipients, and at all that
// is queued for the same domains; any other looks at every recipient once: some
// milliseconds for a million. To change many, make one call.

// Remove forgets recipients and returns how many. Those in flight stay until
// their batch ends, and then do not come back.
func (s *Schedule) Remove(sel Select) int {
	return s.edit(sel, func(sl *slot) bool { return sl.flags&slotGone == 0 }, func(i uint32, sl *slot) {
		switch {
		case sl.flags&slotFlying != 0:
			sl.flags |= slotGone
			return
		case sl.flags&slotHeld != 0:
			s.lanes.at(sl.lane).held--
		}
		s.drop(i)
	})
}

// Hold keeps recipients from becoming due until they are released, and returns
// how many it found that were not held. Those in flight are held if they come
// back.
func (s *Schedule) Hold(sel Select) int {
	return s.edit(sel, func(sl *slot) bool { return sl.flags&(slotHeld|slotHold|slotGone) == 0 }, func(_ uint32, sl *slot) {
		if sl.flags&slotFlying != 0 {
			sl.flags |= slotHold
			return
		}
		sl.flags, sl.next = slotHeld, 0
		s.lanes.at(sl.lane).held++
	})
}

// Release queues held recipients again, with the due time that they had, and
// returns how many.
func (s *Schedule) Release(sel Select) int {
	held := func(sl *slot) bool { return sl.flags&(slotHeld|slotHold) != 0 && sl.flags&slotGone == 0 }
	return s.edit(sel, held, func(i uint32, sl *slot) {
		if sl.flags&slotFlying != 0 {
			sl.flags &^= slotHold
			return
		}
		sl.flags = 0
		s.lanes.at(sl.lane).held--
		s.insert(i)
	})
}

// Retry makes queued recipients due now and returns how many were to wait
// longer. Attempts, holds, suspensions and limits stay as they are: Resume a
// site to have it tried at once.
func (s *Schedule) Retry(now time.Time, sel Select) int {
	at := seconds(now)
	return s.edit(sel, func(sl *slot) bool { return sl.flags == 0 && sl.due > at }, func(i uint32, sl *slot) {
		sl.due = at
		s.insert(i)
	})
}

// Refile moves recipients, queued or held, to another channel or domain, as a
// change of route for some of a domain's mail demands; an empty name leaves the
// one or the other as it is. It returns how many it moved. Those in flight are
// left where they are.
func (s *Schedule) Refile(sel Select, channel, domain string) int {
	dest := func(sl *slot) (string, string) {
		return cmp.Or(channel, s.channelOf(sl.lane).name), cmp.Or(domain, s.laneNames[sl.lane])
	}
	moves := func(sl *slot) bool {
		c, d := dest(sl)
		return sl.flags&slotFlying == 0 && (c != s.channelOf(sl.lane).name || d != s.laneNames[sl.lane])
	}
	return s.edit(sel, moves, func(i uint32, sl *slot) {
		c, d := dest(sl)
		to := s.lane(s.channel(c), d)
		if sl.flags&slotHeld != 0 {
			s.lanes.at(sl.lane).held--
			s.lanes.at(to).held++
			sl.lane = to
			return
		}
		sl.lane = to
		s.insert(i)
	})
}

func (s *Schedule) channelOf(li uint32) *channel {
	return s.channels[s.nodes.at(s.lanes.at(li).node).channel]
}

// edit picks the slots that sel chooses and wants finds to need it, takes those
// that are queued out of their chains, and lets act do with each what it likes.
// It goes by message, so that insert can chain again what belongs together.
func (s *Schedule) edit(sel Select, wants func(*slot) bool, act func(uint32, *slot)) int {
	match := s.matcher(sel)
	var picked, touched []uint32
	s.eachIn(sel, func(i uint32, sl *slot) bool {
		if wants(sl) && match(sl) {
			picked = append(picked, i)
		}
		return true
	})
	s.sortSlots(picked)
	for _, i := range picked {
		sl := s.slots.at(i)
		if len(touched) == 0 || touched[len(touched)-1] != sl.lane {
			touched = append(touched, sl.lane)
		}
		if sl.flags == 0 {
			sl.flags = slotPicked
		}
	}
	for _, li := range touched {
		s.purge(li)
	}
	for _, i := range picked {
		sl := s.slots.at(i)
		sl.flags &^= slotPicked
		act(i, sl)
	}
	for _, li := range touched {
		for kind := range uint32(2) {
			s.settle(li<<1 | kind)
		}
		s.dropLane(li)
	}
	return len(picked)
}

// purge takes the picked slots of a lane out of its chains. The strands are to
// be settled afterwards.
func (s *Schedule) purge(li uint32) {
	l := s.lanes.at(li)
	for kind := range l.strands {
		st := &l.strands[kind]
		kept := st.heap[:0]
		for _, head := range st.heap {
			first, last := uint32(0), uint32(0)
			for i := head; i != 0; {
				sl := s.slots.at(i)
				next := sl.next
				switch {
				case sl.flags&slotPicked != 0:
					sl.next = 0
					l.queued--
				case first == 0:
					first, last = i, i
				default:
					s.slots.at(last).next = i
					last = i
				}
				i = next
			}
			if first != 0 {
				s.slots.at(last).next = 0
				kept = append(kept, first)
			}
		}
		st.heap, st.last = trimHeap(kept), 0
		s.chainFix(st.heap)
	}
}

// matcher compiles a Select.
func (s *Schedule) matcher(sel Select) func(*slot) bool {
	return func(sl *slot) bool {
		if sel.ID != 0 && sl.id() != sel.ID {
			return false
		}
		if sel.Domain != "" && s.laneNames[sl.lane] != sel.Domain {
			return false
		}
		if sel.Channel != "" && s.channelOf(sl.lane).name != sel.Channel {
			return false
		}
		if sel.Site != "" && s.siteOf(sl.lane) != sel.Site {
			return false
		}
		return sel.Match == nil || sel.Match(s.item(sl))
	}
}

func (s *Schedule) siteOf(li uint32) string {
	return s.siteNames[s.nodes.at(s.lanes.at(li).node).site]
}

// sortSlots brings together what insert can chain.
func (s *Schedule) sortSlots(all []uint32) {
	slices.SortFunc(all, func(a, b uint32) int {
		x, y := s.slots.at(a), s.slots.at(b)
		return cmp.Or(
			cmp.Compare(x.lane, y.lane), cmp.Compare(x.idHi, y.idHi), cmp.Compare(x.idLo, y.idLo),
			cmp.Compare(x.due, y.due), cmp.Compare(x.attempts, y.attempts), cmp.Compare(x.rcpt, y.rcpt),
		)
	})
}
