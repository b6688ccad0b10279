package schedule

// A lane is a domain in a channel. It belongs to a node, which is a site in that
// channel.
type lane struct {
	node       uint32
	prev, next uint32 // among the node's lanes
	queued     uint32 // recipients; likewise held and flying
	held       uint32
	flying     uint32
	strands    [2]strand
}

// A strand is what a lane has queued of one kind: never tried, or deferred.
type strand struct {
	heap       []uint32 // chains, by their first slot
	last       uint32   // the chain that was queued last, if it still is
	pos        uint32   // 1 + its timer's place, inRing, or 0 when it is empty
	prev, next uint32   // in the node's ring, by number
}

// A strand's number is that of its lane, doubled, plus its kind.
const (
	fresh    = 0
	deferred = 1
)

func (s *Schedule) strand(ref uint32) *strand { return &s.lanes.at(ref >> 1).strands[ref&1] }

func kindOf(attempts uint16) uint32 {
	if attempts == 0 {
		return fresh
	}
	return deferred
}

// lane finds a domain in a channel, or makes it and asks for its site.
func (s *Schedule) lane(c *channel, domain string) uint32 {
	if i, ok := c.lanes[domain]; ok {
		return i
	}
	i := s.lanes.get()
	s.laneNames = name(s.laneNames, i, domain)
	domain = s.laneNames[i]
	c.lanes[domain] = i
	where := ""
	if s.opt.Route != nil {
		where = s.opt.Route(c.name, domain)
	}
	if where == "" {
		where = domain
	}
	s.join(i, s.node(s.site(where), c.number))
	return i
}

// dropLane forgets a domain that has no recipients.
func (s *Schedule) dropLane(i uint32) {
	l := s.lanes.at(i)
	if l.queued+l.held+l.flying > 0 {
		return
	}
	n := s.leave(i)
	c := s.channels[s.nodes.at(n).channel]
	delete(c.lanes, s.laneNames[i])
	s.laneNames[i] = ""
	s.lanes.put(i)
	s.dropNode(n)
}

// insert queues a slot that is in no chain, and free of flags.
func (s *Schedule) insert(i uint32) {
	sl := s.slots.at(i)
	l := s.lanes.at(sl.lane)
	l.queued++
	kind := kindOf(sl.attempts)
	st := &l.strands[kind]
	if st.last != 0 {
		h := s.slots.at(st.last)
		if h.idHi == sl.idHi && h.idLo == sl.idLo && h.due == sl.due && h.attempts == sl.attempts {
			sl.next, h.next = h.next, i
			return
		}
	}
	sl.next = 0
	st.last = i
	st.heap = append(st.heap, i)
	s.chainUp(st.heap, len(st.heap)-1)
	if st.heap[0] == i {
		s.settle(sl.lane<<1 | kind)
	}
}

// settle puts a strand where it belongs after its heap has changed: into its
// node's ring if something in it is due, else on a timer, or nowhere.
func (s *Schedule) settle(ref uint32) {
	st := s.strand(ref)
	if len(st.heap) == 0 {
		s.stopTimer(ref)
		s.unring(ref)
		return
	}
	at := int64(s.slots.at(st.heap[0]).due) * 1000
	if at > s.now {
		s.unring(ref)
		s.setTimer(ref, at)
		return
	}
	if st.pos == inRing {
		return
	}
	s.stopTimer(ref)
	s.enring(ref)
}

// enring puts a strand at the end of its node's ring.
func (s *Schedule) enring(ref uint32) {
	st := s.strand(ref)
	st.pos = inRing
	ni := s.lanes.at(ref >> 1).node
	n := s.nodes.at(ni)
	head := n.ring[ref&1]
	if head != 0 {
		h := s.strand(head)
		st.prev, st.next = h.prev, head
		s.strand(h.prev).next = ref
		h.prev = ref
		return
	}
	n.ring[ref&1] = ref
	st.prev, st.next = ref, ref
	s.refresh(n.site)
}

// unring takes a strand out of its node's ring, if it stands there.
func (s *Schedule) unring(ref uint32) {
	st := s.strand(ref)
	if st.pos != inRing {
		return
	}
	st.pos = 0
	n := s.nodes.at(s.lanes.at(ref >> 1).node)
	if st.next == ref {
		n.ring[ref&1] = 0
		st.prev, st.next = 0, 0
		s.refresh(n.site)
		return
	}
	if n.ring[ref&1] == ref {
		n.ring[ref&1] = st.next
	}
	s.strand(st.prev).next = st.next
	s.strand(st.next).prev = st.prev
	st.prev, st.next = 0, 0
}

// join puts a lane under a node.
func (s *Schedule) join(li, ni uint32) {
	l, n := s.lanes.at(li), s.nodes.at(ni)
	l.node, l.prev, l.next = ni, 0, n.lanes
	if n.lanes != 0 {
		s.lanes.at(n.lanes).prev = li
	}
	n.lanes = li
	for kind := range uint32(2) {
		s.settle(li<<1 | kind)
	}
}

// leave takes a lane from its node, which may then be without lanes, and
// returns the node.
func (s *Schedule) leave(li uint32) uint32 {
	for kind := range uint32(2) {
		s.stopTimer(li<<1 | kind)
		s.unring(li<<1 | kind)
	}
	l := s.lanes.at(li)
	ni := l.node
	if l.prev != 0 {
		s.lanes.at(l.prev).next = l.next
	} else {
		s.nodes.at(ni).lanes = l.next
	}
	if l.next != 0 {
		s.lanes.at(l.next).prev = l.prev
	}
	l.node, l.prev, l.next = 0, 0, 0
	return ni
}

// draw takes up to limit recipients of the chain that comes first in a strand,
// and returns them as a chain of their own, by rising number, with their count.
func (s *Schedule) draw(ref uint32, limit int) (uint32, int) {
	st := s.strand(ref)
	head := st.heap[0]
	s.picked = s.picked[:0]
	h := s.slots.at(head)
	next := h.next
	for next != 0 && len(s.picked) < limit {
		s.picked = append(s.picked, next)
		next = s.slots.at(next).next
	}
	h.next = next
	if next == 0 && len(s.picked) < limit { // the whole chain: its head goes last
		s.picked = append(s.picked, head)
		if st.last == head {
			st.last = 0
		}
		st.heap = s.chainPop(st.heap)
	}
	s.sortSlots(s.picked)
	l := s.lanes.at(ref >> 1)
	first := uint32(0)
	for k := len(s.picked) - 1; k >= 0; k-- {
		sl := s.slots.at(s.picked[k])
		sl.next, sl.flags = first, slotFlying
		first = s.picked[k]
	}
	l.queued -= uint32(len(s.picked))
	l.flying += uint32(len(s.picked))
	return first, len(s.picked)
}
