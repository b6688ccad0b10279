package limit

import (
	"slices"
	"sync"
	"time"
)

// OpenFirst asks for a connection by one of several paths to the same site: the first
// that admits it, of which it gives the place. If all refuse, the refusal is the one
// that ends first, and the site waits for all of them.
func (g *Gate) OpenFirst(now time.Time, paths []Path) (*Ticket, int, *Refusal) {
	g.mu.Lock()
	defer g.unlock()
	all := make([]*Refusal, 0, len(paths))
	var no *Refusal
	for i := range paths {
		t, refused := g.open(now, paths[i])
		if refused == nil {
			return t, i, nil
		}
		all = append(all, refused)
		no = Sooner(now, no, refused)
	}
	for i, r := range all {
		g.refuse(r, paths[i].Site)
		g.passOn(now, paths[i])
	}
	return nil, -1, no
}

// Try asks for a connection, and waits for nothing if there is none to be had: nil.
func (g *Gate) Try(now time.Time, p Path) *Ticket {
	g.mu.Lock()
	defer g.unlock()
	t, _ := g.open(now, p)
	return t
}

// soon is within what time a refusal with an end is worth more than one of whose end
// the Gate tells.
const soon = time.Minute

// Sooner is the refusal after which it is worth asking first. Either may be nil.
func Sooner(now time.Time, a, b *Refusal) *Refusal {
	switch {
	case a == nil || b != nil && b.rank(now) < a.rank(now):
		return b
	case b == nil || a.rank(now) < b.rank(now):
		return a
	case b.Until.Before(a.Until):
		return b
	}
	return a
}

// rank orders refusals by how soon it is worth asking again.
func (r *Refusal) rank(now time.Time) int {
	switch {
	case !r.Until.IsZero() && r.Until.Before(now.Add(soon)):
		return 0
	case r.Until.IsZero() && r.What != suspendedWhat:
		return 1
	case !r.Until.IsZero():
		return 2
	}
	return 3
}

// suspendedWhat is Refusal.What of what is suspended.
const suspendedWhat = "suspended"

// Balance deals messages out to sources by weight: smoothly, so that of any few
// messages in a row each source has about its share, and exactly in the long run. A
// source that may not be chosen for a site loses nothing elsewhere. The zero Balance
// is ready. It is safe for concurrent use.
type Balance struct {
	mu sync.Mutex
	// behind is how many messages a source is behind its share.
	behind map[string]float64
}

// Candidate is a source that may be chosen.
type Candidate struct {
	Source string
	// Weight is at least 1.
	Weight int
	// Ready is set where nothing has to be opened first.
	Ready bool
}

// readyAhead is how many messages a source that is ready may be ahead of the one
// whose turn it is: the price of a connection that need not be opened.
const readyAhead = 20

// Order is the candidates as they are to be tried: the one that is furthest behind its
// share first, but those that are ready before others, as long as no other falls too
// far behind for that. Its indexes are those of all.
func (b *Balance) Order(all []Candidate) []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	order := make([]int, len(all))
	scores := make([]float64, len(all))
	sum, most := total(all), 0.0
	for i, c := range all {
		order[i] = i
		scores[i] = b.behind[c.Source] + float64(c.Weight)/sum
		if i == 0 || scores[i] > most {
			most = scores[i]
		}
	}
	for i, c := range all {
		if c.Ready && scores[i] >= most-readyAhead {
			scores[i] += 2 * readyAhead
		}
	}
	slices.SortStableFunc(order, func(i, j int) int {
		switch {
		case scores[i] > scores[j]:
			return -1
		case scores[i] < scores[j]:
			return 1
		}
		return 0
	})
	return order
}

// Chose notes that a message goes from one of those that could have been chosen.
func (b *Balance) Chose(all []Candidate, chosen int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.behind == nil {
		b.behind = map[string]float64{}
	}
	sum := total(all)
	for i, c := range all {
		n := b.behind[c.Source] + float64(c.Weight)/sum
		if i == chosen {
			n--
		}
		b.behind[c.Source] = min(max(n, -mostBehind), mostBehind)
	}
}

// mostBehind bounds what a source that could not be used for long makes up for, and
// what one that was used alone waits for.
const mostBehind = 2 * readyAhead

func total(all []Candidate) (sum float64) {
	for _, c := range all {
		sum += float64(c.Weight)
	}
	return sum
}
