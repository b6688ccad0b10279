package schedule

import "math/bits"

// A pool is a set of numbered items in chunks that never move: growing copies
// nothing, and a chunk that becomes empty is given back (all but one, so that a
// queue that breathes at a chunk's edge does not allocate). Number 0 is never
// used; it means none. Sizes are chosen so that a chunk of any item whose size
// is a multiple of four fills an allocation class exactly.
type pool[T any] struct {
	chunks []chunk[T]
	room   []uint32 // chunks that may have a free item
	gone   []uint32 // chunks that were given back
	spare  uint32   // an empty chunk that is kept, or 0
	n      int
}

const (
	chunkBits = 11
	chunkSize = 1 << chunkBits
)

type chunk[T any] struct {
	items  []T
	used   int
	listed bool                   // in room
	free   [chunkSize / 64]uint64 // a set bit is a free item
}

func (p *pool[T]) at(i uint32) *T {
	return &p.chunks[i>>chunkBits].items[i%chunkSize]
}

// live tells whether i is a number in use.
func (p *pool[T]) live(i uint32) bool {
	c := int(i >> chunkBits)
	if i == 0 || c >= len(p.chunks) || p.chunks[c].items == nil {
		return false
	}
	return p.chunks[c].free[i%chunkSize/64]&(1<<(i%64)) == 0
}

// get takes an unused number; its item is zero.
func (p *pool[T]) get() uint32 {
	for len(p.room) > 0 {
		ci := p.room[len(p.room)-1]
		c := &p.chunks[ci]
		if c.items == nil || c.used == chunkSize {
			c.listed = false
			p.room = p.room[:len(p.room)-1]
			continue
		}
		if p.spare == ci {
			p.spare = 0
		}
		for w := range c.free {
			if c.free[w] == 0 {
				continue
			}
			b := bits.TrailingZeros64(c.free[w])
			c.free[w] &^= 1 << b
			c.used++
			p.n++
			return ci<<chunkBits | uint32(w*64+b)
		}
	}
	p.grow()
	return p.get()
}

func (p *pool[T]) grow() {
	var ci uint32
	if n := len(p.gone); n > 0 {
		ci, p.gone = p.gone[n-1], p.gone[:n-1]
	} else {
		ci = uint32(len(p.chunks))
		p.chunks = append(p.chunks, chunk[T]{})
	}
	c := &p.chunks[ci]
	c.items = make([]T, chunkSize)
	for w := range c.free {
		c.free[w] = ^uint64(0)
	}
	if ci == 0 { // number 0 is nobody's, and so chunk 0 is never empty
		c.free[0] &^= 1
		c.used = 1
	}
	if !c.listed {
		c.listed = true
		p.room = append(p.room, ci)
	}
}

// put gives a number back.
func (p *pool[T]) put(i uint32) {
	ci := i >> chunkBits
	c := &p.chunks[ci]
	var zero T
	c.items[i%chunkSize] = zero
	c.free[i%chunkSize/64] |= 1 << (i % 64)
	c.used--
	p.n--
	if c.used == 0 {
		if p.spare != 0 {
			c.items = nil
			p.gone = append(p.gone, ci)
			return
		}
		p.spare = ci
	}
	if !c.listed {
		c.listed = true
		p.room = append(p.room, ci)
	}
}

// after is the next number in use after i, 0 if there is none.
func (p *pool[T]) after(i uint32) uint32 {
	for i++; int(i>>chunkBits) < len(p.chunks); i++ {
		c := &p.chunks[i>>chunkBits]
		if c.items == nil || c.used == 0 {
			i |= chunkSize - 1
			continue
		}
		if w := ^c.free[i%chunkSize/64] >> (i % 64); w == 0 {
			i |= 63
		} else if i += uint32(bits.TrailingZeros64(w)); i != 0 {
			return i
		}
	}
	return 0
}

// each calls f for every number in use, in rising order, until f says false. f
// may put the number it is given.
func (p *pool[T]) each(f func(uint32, *T) bool) {
	for ci := range p.chunks {
		if p.chunks[ci].items == nil {
			continue
		}
		for w := range p.chunks[ci].free {
			used := ^p.chunks[ci].free[w]
			if ci == 0 && w == 0 {
				used &^= 1
			}
			for ; used != 0; used &= used - 1 {
				i := uint32(ci<<chunkBits + w*64 + bits.TrailingZeros64(used))
				if !f(i, p.at(i)) {
					return
				}
				if p.chunks[ci].items == nil {
					break
				}
			}
		}
	}
}
