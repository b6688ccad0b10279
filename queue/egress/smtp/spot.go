package smtp

import (
	"net/netip"
	"slices"
)

// spot is where somebody takes mail by a transport.
type spot struct {
	address   netip.AddrPort
	transport Transport
}

// fewSpots is up to how many spots are cheaper to look through than to index.
const fewSpots = 16

// spots are spots that were seen: hardly ever more than a few.
type spots struct {
	few  []spot
	many map[spot]struct{} // all of them, once they are too many
}

func (s *spots) has(at spot) bool {
	if s.many != nil {
		_, ok := s.many[at]
		return ok
	}
	return slices.Contains(s.few, at)
}

// add adds a spot that is not there.
func (s *spots) add(at spot) {
	if s.many == nil && len(s.few) < fewSpots {
		s.few = append(s.few, at)
		return
	}
	if s.many == nil {
		s.many = make(map[spot]struct{}, 2*fewSpots)
		for _, other := range s.few {
			s.many[other] = struct{}{}
		}
	}
	s.many[at] = struct{}{}
}

func (s *spots) len() int { return max(len(s.few), len(s.many)) }
