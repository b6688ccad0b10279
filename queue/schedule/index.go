package schedule

import "math/bits"

// An index finds the recipients of a message: a hash table of slots by message
// id, with as many buckets as slots, chained through the slots themselves. It
// grows and shrinks by a few buckets at a time (Litwin's linear hashing), so that
// no call ever waits for all of it to be built anew.
type index struct {
	chunks  [][]uint32 // the buckets' first slots
	buckets uint32
}

func hash(id uint64) uint32 { return uint32(id * 0x9e3779b97f4a7c15 >> 32) }

func (x *index) at(bucket uint32) *uint32 {
	return &x.chunks[bucket>>chunkBits][bucket%chunkSize]
}

// place is the bucket of a hash: as many of its bits as there are buckets for.
func (x *index) place(h uint32) uint32 {
	whole := uint32(1) << (bits.Len32(x.buckets) - 1)
	if b := h & (2*whole - 1); b < x.buckets {
		return b
	}
	return h & (whole - 1)
}

// bucket is that of a message, which may have no recipients.
func (s *Schedule) bucket(id uint64) *uint32 { return s.index.at(s.index.place(hash(id))) }

// enter puts a new slot into the index.
func (s *Schedule) enter(i uint32) {
	if s.index.buckets < uint32(s.slots.n) {
		s.splitBucket()
	}
	s.hang(s.bucket(s.slots.at(i).id()), i)
}

// hang puts a slot before the first of a bucket.
func (s *Schedule) hang(bucket *uint32, i uint32) {
	sl := s.slots.at(i)
	sl.akin, sl.kin = 0, *bucket
	if sl.kin != 0 {
		s.slots.at(sl.kin).akin = i
	}
	*bucket = i
}

// drop takes a slot out of the index and gives its number back.
func (s *Schedule) drop(i uint32) {
	sl := s.slots.at(i)
	if sl.akin != 0 {
		s.slots.at(sl.akin).kin = sl.kin
	} else {
		*s.bucket(sl.id()) = sl.kin
	}
	if sl.kin != 0 {
		s.slots.at(sl.kin).akin = sl.akin
	}
	s.slots.put(i)
	for range 3 {
		if s.index.buckets > 2*uint32(s.slots.n)+chunkSize {
			s.joinBucket()
		}
	}
}

// splitBucket adds a bucket, and moves to it what belongs there now.
func (s *Schedule) splitBucket() {
	x := &s.index
	added := x.buckets
	if int(added>>chunkBits) == len(x.chunks) {
		x.chunks = append(x.chunks, make([]uint32, chunkSize))
	}
	x.buckets++
	if added == 0 {
		return
	}
	from := x.at(added &^ (1 << (bits.Len32(added) - 1)))
	i := *from
	*from = 0
	for i != 0 {
		sl := s.slots.at(i)
		next := sl.kin
		s.hang(s.bucket(sl.id()), i)
		i = next
	}
}

// joinBucket takes the last bucket away.
func (s *Schedule) joinBucket() {
	x := &s.index
	x.buckets--
	i := *x.at(x.buckets)
	*x.at(x.buckets) = 0
	for i != 0 {
		sl := s.slots.at(i)
		next := sl.kin
		s.hang(s.bucket(sl.id()), i)
		i = next
	}
	if keep := int(x.buckets>>chunkBits) + 2; len(x.chunks) > keep {
		x.chunks[keep] = nil
		x.chunks = x.chunks[:keep]
	}
}

// eachOf calls f for the recipients of a message. The index must not change
// meanwhile.
func (s *Schedule) eachOf(id uint64, f func(uint32, *slot) bool) bool {
	if s.index.buckets == 0 {
		return true
	}
	for i := *s.bucket(id); i != 0; {
		sl := s.slots.at(i)
		next := sl.kin
		if sl.id() == id && !f(i, sl) {
			return false
		}
		i = next
	}
	return true
}

// eachIn calls f for the slots that may be chosen by sel: those of its
// messages, or all.
func (s *Schedule) eachIn(sel Select, f func(uint32, *slot) bool) {
	switch {
	case sel.ID != 0:
		s.eachOf(sel.ID, f)
	case sel.IDs != nil:
		for _, id := range sel.IDs {
			if !s.eachOf(id, f) {
				return
			}
		}
	default:
		s.slots.each(f)
	}
}
