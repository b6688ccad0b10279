package pebble

import (
	"sync"

	"github.com/postern-mta/postern/queue/store"
)

// used knows which ids messages were put under lately, so that a new one need
// not be looked for on disk. It forgets by generations.
type used struct {
	mu sync.Mutex
	// floor is the greatest id of which nothing is known. What was put under a
	// greater one since Open is in one of the maps.
	floor      store.ID
	young, old map[store.ID]struct{}
	most       store.ID // in young; likewise mostOld
	mostOld    store.ID
}

// generation is how many ids are in a map.
const generation = 4096

// has reports whether an id was put; unknown if that is forgotten.
func (u *used) has(id store.ID) (there, unknown bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if id <= u.floor {
		return false, true
	}
	if _, there = u.young[id]; !there {
		_, there = u.old[id]
	}
	return there, false
}

func (u *used) add(id store.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if id <= u.floor {
		return
	}
	if u.young == nil || len(u.young) >= generation {
		u.floor = max(u.floor, u.mostOld)
		u.old, u.mostOld = u.young, u.most
		u.young, u.most = make(map[store.ID]struct{}, generation), 0
	}
	u.young[id] = struct{}{}
	u.most = max(u.most, id)
}
