package schedule

import "math"

// Heaps are 4-ary: half the depth of binary ones, and the four children lie in
// one cache line.
const arity = 4

// before orders the chains of a domain: oldest due first, then by message.
func (s *Schedule) before(a, b uint32) bool {
	x, y := s.slots.at(a), s.slots.at(b)
	if x.due != y.due {
		return x.due < y.due
	}
	if x.id() != y.id() {
		return x.id() < y.id()
	}
	return a < b
}

func (s *Schedule) chainUp(h []uint32, i int) {
	x := h[i]
	for i > 0 {
		p := (i - 1) / arity
		if !s.before(x, h[p]) {
			break
		}
		h[i] = h[p]
		i = p
	}
	h[i] = x
}

func (s *Schedule) chainDown(h []uint32, i int) {
	x := h[i]
	for {
		c := i*arity + 1
		if c >= len(h) {
			break
		}
		least := c
		for j := c + 1; j < min(c+arity, len(h)); j++ {
			if s.before(h[j], h[least]) {
				least = j
			}
		}
		if !s.before(h[least], x) {
			break
		}
		h[i] = h[least]
		i = least
	}
	h[i] = x
}

// chainPop removes the first chain. A heap that has shrunk to a quarter of its
// room gives the room back.
func (s *Schedule) chainPop(h []uint32) []uint32 {
	n := len(h) - 1
	h[0] = h[n]
	h = h[:n]
	if n > 1 {
		s.chainDown(h, 0)
	}
	return trimHeap(h)
}

func trimHeap(h []uint32) []uint32 {
	if len(h) == 0 {
		return nil
	}
	if cap(h) >= 64 && len(h) <= cap(h)/4 {
		return append(make([]uint32, 0, cap(h)/2), h...)
	}
	return h
}

func (s *Schedule) chainFix(h []uint32) {
	for i := (len(h) - 2) / arity; i >= 0 && len(h) > 1; i-- {
		s.chainDown(h, i)
	}
}

// A timer says when a strand's first recipient falls due, when a site's gate
// opens, or when a channel has another slot for newcomers. ref is a strand's
// number, or a site's or channel's with a bit set.
type timer struct {
	at  int64 // Unix milliseconds
	ref uint32
}

const (
	siteTimer    = 1 << 31
	channelTimer = 1 << 30
	inRing       = math.MaxUint32 // a strand's pos while it stands in its node's ring
)

// place notes where a timer stands; positions count from 1, 0 is nowhere.
func (s *Schedule) place(i int, t timer) {
	s.timers[i] = t
	*s.posOf(t.ref) = uint32(i) + 1
}

func (s *Schedule) posOf(ref uint32) *uint32 {
	switch {
	case ref&siteTimer != 0:
		return &s.sites.at(ref &^ siteTimer).pos
	case ref&channelTimer != 0:
		return &s.channels[ref&^channelTimer].pos
	}
	return &s.strand(ref).pos
}

func (s *Schedule) timerUp(i int, t timer) {
	for i > 0 {
		p := (i - 1) / arity
		if t.at >= s.timers[p].at {
			break
		}
		s.place(i, s.timers[p])
		i = p
	}
	s.place(i, t)
}

func (s *Schedule) timerDown(i int, t timer) {
	for {
		c := i*arity + 1
		if c >= len(s.timers) {
			break
		}
		least := c
		for j := c + 1; j < min(c+arity, len(s.timers)); j++ {
			if s.timers[j].at < s.timers[least].at {
				least = j
			}
		}
		if s.timers[least].at >= t.at {
			break
		}
		s.place(i, s.timers[least])
		i = least
	}
	s.place(i, t)
}

// setTimer arms or moves the timer of ref, which must not be in a ring.
func (s *Schedule) setTimer(ref uint32, at int64) {
	t := timer{at: at, ref: ref}
	pos := *s.posOf(ref)
	if pos == 0 {
		s.timers = append(s.timers, t)
		s.timerUp(len(s.timers)-1, t)
		return
	}
	i := int(pos) - 1
	switch old := s.timers[i].at; {
	case at < old:
		s.timerUp(i, t)
	case at > old:
		s.timerDown(i, t)
	}
}

// stopTimer disarms the timer of ref, if it is armed.
func (s *Schedule) stopTimer(ref uint32) {
	pos := s.posOf(ref)
	if *pos == 0 || *pos == inRing {
		return
	}
	i := int(*pos) - 1
	*pos = 0
	n := len(s.timers) - 1
	last := s.timers[n]
	s.timers = s.timers[:n]
	if i == n {
		return
	}
	if i > 0 && last.at < s.timers[(i-1)/arity].at {
		s.timerUp(i, last)
	} else {
		s.timerDown(i, last)
	}
}
