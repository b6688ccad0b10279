package pebble

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postern-mta/postern/queue/store"
)

// Ids are given out below a mark that is on stable storage. After a crash they
// go on at the mark, so the mark is also how far they may then be ahead of the
// clock. It is idStep above the last id, so that crashes that follow each other
// at once add next to nothing; and it is ahead of the clock by as long as the
// store has been open, at most by idLead, so that crashes at any pace never add
// up to more than that.
const (
	idStep = 1 << 16 // ids: a sixty-fourth of a millisecond
	idLead = time.Second
)

// lastID keeps a clock that is wild from using up the ids.
const lastID = 1<<63 - 1

// ids gives out ids below the mark. Nothing is reserved before the first id is
// asked for. The mark is moved on when half of what it allows is used up, and
// waited for only when all of it is.
type ids struct {
	opened  time.Time
	mu      sync.Mutex
	last    store.ID // the greatest ever given out
	durable store.ID // ids below it may be given out
	pending store.ID // the mark that wait waits for
	wait    func()
}

// NewID is an id greater than every one before; 0 when the store is closed.
func (s *Store) NewID() store.ID {
	if s.enter() != nil {
		return 0
	}
	defer s.leave()
	now := s.o.Now()
	i := &s.ids
	i.mu.Lock()
	defer i.mu.Unlock()
	id, mark := i.next(now)
	if id >= i.durable {
		i.settle()
	}
	if id >= i.durable {
		s.reserve(mark)
		i.settle()
	} else if i.wait == nil && i.durable-id < (mark-id)/2 {
		s.reserve(mark)
	}
	i.last = id
	return id
}

// next is the next id, and where the mark should be.
func (i *ids) next(now time.Time) (id, mark store.ID) {
	id = i.last + 1
	clock := store.FirstID(now)
	if clock >= lastID {
		return id, id + idStep
	}
	lead := min(max(now.Sub(i.opened), 0), idLead)
	id = max(id, clock)
	return id, max(id+idStep, store.FirstID(now.Add(lead)))
}

// settle waits for the mark on its way, if there is one.
func (i *ids) settle() {
	if i.wait != nil {
		i.wait()
		i.durable, i.wait = i.pending, nil
	}
}

func (s *Store) reserve(mark store.ID) {
	b := s.db.NewBatch()
	if err := b.Set(idsKey, appendNumber(nil, uint64(mark)), nil); err != nil {
		s.die(err)
	}
	s.ids.pending, s.ids.wait = mark, s.commit(b)
}

// given reports whether an id can have come from NewID.
func (i *ids) given(id store.ID) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return id > 0 && id <= i.last
}

// openIDs goes on above every id that was or may have been given out.
func (s *Store) openIDs() error {
	s.ids.opened = s.o.Now()
	mark, err := s.mark()
	if isDamage(err) {
		was := err
		mark, err = s.guessMark()
		s.o.Log.Error("the mark of used message ids is damaged: going on above what is stored", "error", was, "mark", mark.String())
	}
	if err != nil || mark == 0 {
		return err
	}
	s.ids.last, s.ids.durable, s.used.floor = mark-1, mark, mark-1
	return nil
}

// guessMark is above the clock and all that is stored, by as much as may have
// been reserved.
func (s *Store) guessMark() (store.ID, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixEnvelope}, UpperBound: []byte{prefixEnvelope + 1}})
	if err != nil {
		return 0, err
	}
	defer it.Close()
	mark := store.FirstID(s.o.Now())
	if it.Last() {
		if id, _, ok := numbered(it.Key(), 1); ok {
			mark = max(mark, id)
		}
	}
	mark = max(mark, store.FirstID(mark.Time().Add(idLead))) + idStep
	if err := it.Error(); !isDamage(err) {
		return mark, err
	}
	return mark, nil
}

// mark reads the high-water mark of ids, 0 if there is none.
func (s *Store) mark() (store.ID, error) {
	v, closer, err := s.db.Get(idsKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	n, err := decodeNumber(idsKey, v)
	if err != nil {
		return 0, fmt.Errorf("the mark of used message ids: %w", err)
	}
	return store.ID(n), nil
}

// closeIDs gives back what was reserved and not used, so that the next Open
// goes on with the clock.
func (s *Store) closeIDs() {
	s.ids.mu.Lock()
	defer s.ids.mu.Unlock()
	s.ids.settle()
	if s.ids.last+1 < s.ids.durable {
		s.reserve(s.ids.last + 1)
		s.ids.settle()
	}
}
