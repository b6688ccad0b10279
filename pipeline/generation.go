package pipeline

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// Generation is one configuration's chains. It lives as long as a session uses
// it.
type Generation struct {
	Number uint64
	chains map[string]*Chain
	refs   int // guarded by its Generations
	owner  *Generations
}

// NewGeneration makes a generation of chains. One that never comes into force
// is given up with Release, too.
func NewGeneration(number uint64, chains ...*Chain) *Generation {
	g := &Generation{Number: number, chains: make(map[string]*Chain, len(chains))}
	for _, c := range chains {
		g.chains[c.name] = c
	}
	return g
}

// Chain is the chain of that name, nil if there is none.
func (g *Generation) Chain(name string) *Chain { return g.chains[name] }

// close closes the filters in the order of the chains' names.
func (g *Generation) close() error {
	chains := slices.Collect(maps.Values(g.chains))
	slices.SortFunc(chains, func(a, b *Chain) int { return strings.Compare(a.name, b.name) })
	return closeFilters(chains...)
}

// Release gives the generation up. The last holder of one that has been
// replaced closes its filters.
func (g *Generation) Release() error {
	if g.owner == nil {
		return g.close()
	}
	g.owner.mu.Lock()
	g.refs--
	last := g.refs == 0
	g.owner.mu.Unlock()
	if last {
		return g.close()
	}
	return nil
}

// Generations holds the current generation. Safe for concurrent use.
type Generations struct {
	mu      sync.Mutex
	current *Generation
}

// Acquire is the current generation, held by the caller; nil if there is none.
func (gs *Generations) Acquire() *Generation {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.current != nil {
		gs.current.refs++
	}
	return gs.current
}

// Swap makes next the current generation (nil: none) and gives up the one
// before, which its sessions finish on.
func (gs *Generations) Swap(next *Generation) error {
	gs.mu.Lock()
	old := gs.current
	gs.current = next
	if next != nil {
		next.owner, next.refs = gs, next.refs+1
	}
	gs.mu.Unlock()
	if old == nil {
		return nil
	}
	return old.Release()
}
