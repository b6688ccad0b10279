package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// Verifier checks what must hold of it, and reports each thing that does not.
type Verifier interface {
	Verify(ctx context.Context, report func(problem string)) error
}

// Store is what the door needs of the queue's store.
type Store interface {
	Verifier
	Stats() pebble.Stats
}

var (
	_ Store    = (*pebble.Store)(nil)
	_ Verifier = (*queue.Queue)(nil)
)

// errNoQueue is the answer of a daemon whose messages all go elsewhere.
var errNoQueue = fmt.Errorf("%w: this daemon has no queue of its own, no entrance of its configuration says next = \"queue\"", ErrNotFound)

const (
	// searchTime is how long the search for one page may take before the client
	// must ask again.
	searchTime = 5 * time.Second
	// longWork is how long an operation on the whole queue may take.
	longWork = time.Hour
	// maxReasonGiven bounds a hold's reason in bytes.
	maxReasonGiven = 300
)

// queueRoutes adds what is about the queue.
func (d Daemon) queueRoutes(mux *http.ServeMux) {
	h := queueDoor{d}
	mux.HandleFunc("GET /v1/queue", h.with(h.list))
	mux.HandleFunc("GET /v1/queue/count", h.with(h.count))
	mux.HandleFunc("GET /v1/queue/stats", h.with(h.stats))
	mux.HandleFunc("GET /v1/queue/{id}", h.with(h.show))
	mux.HandleFunc("GET /v1/sites", h.with(h.sites))
	mux.HandleFunc("POST /v1/queue/verify", h.with(h.verify))
	for _, op := range operations {
		mux.HandleFunc("POST /v1/queue/"+op.name, h.with(func(w http.ResponseWriter, r *http.Request) (any, error) { return h.operate(w, r, op.do) }))
	}
}

// queueDoor answers what is about the queue.
type queueDoor struct{ Daemon }

// with is a handler that there is a queue for.
func (d queueDoor) with(f func(http.ResponseWriter, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if d.Queue == nil {
			answer(w, nil, errNoQueue)
			return
		}
		v, err := f(w, r)
		answer(w, v, err)
	}
}

// query is what a GET asks for.
type query struct {
	from       store.ID
	skip, most int
	// recipients is how many of each message are wanted, allOfThem for all.
	recipients int
	match      *matcher
}

// allOfThem is as many as the API may ever be asked for.
const allOfThem = math.MaxInt

// queryOf reads a query; most is how much there may be at a time.
func queryOf(v url.Values, most int, now time.Time) (q query, err error) {
	if s := v.Get("from"); s != "" {
		if q.from, err = ParseQueueID(s); err != nil {
			return q, err
		}
	}
	q.most, q.recipients = most, allOfThem
	for name, into := range map[string]*int{"skip": &q.skip, "max": &q.most, "recipients": &q.recipients} {
		s := v.Get(name)
		if s == "" {
			continue
		}
		if *into, err = strconv.Atoi(s); err != nil || *into < 0 {
			return q, fmt.Errorf("%s is no number from 0 on", name)
		}
	}
	if q.most == 0 || q.most > most {
		q.most = most
	}
	if q.recipients > api.MaxPageRecipients {
		q.recipients = allOfThem
	}
	q.match, err = newMatcher(v.Get("match"), now)
	return q, err
}

// errFull ends the search for a page.
var errFull = errors.New("the page is full")

// list finds the messages of a page first and looks them up then: a reader must
// not wait for a client, and what the schedule knows is asked once.
func (d queueDoor) list(_ http.ResponseWriter, r *http.Request) (any, error) {
	q, err := queryOf(r.URL.Query(), api.MaxPage, d.now())
	if err != nil {
		return nil, err
	}
	return d.page(r, q)
}

func (d queueDoor) page(r *http.Request, q query) (any, error) {
	now := d.now()
	page := api.QueuePage{Messages: []api.QueueMessage{}}
	room := api.MaxPageRecipients
	found := map[store.ID]bool{}
	first := store.ID(0)
	until := now.Add(searchTime)
	err := d.Queue.Each(r.Context(), q.from, func(v *queue.View) error {
		size := len(v.Recipients)
		if v.ID == q.from {
			size = max(size-q.skip, 0)
		}
		size = min(size, q.recipients)
		if len(found) == q.most || len(found) > 0 && size > room || d.now().After(until) {
			page.Next = v.ID.String()
			return errFull
		}
		if !q.match.match(v) {
			return nil
		}
		if len(found) == 0 {
			first = v.ID
		}
		found[v.ID] = true
		room -= size
		return nil
	})
	if err != nil && !errors.Is(err, errFull) {
		return nil, err
	}
	page.Undecided, page.Why = q.match.undecided, q.match.why
	if len(found) == 0 {
		return page, nil
	}
	views, err := d.Queue.List(r.Context(), first, len(found), func(v *queue.View) bool { return found[v.ID] })
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		d.put(&page, v, q, now)
	}
	return page, nil
}

// put adds a message to a page, as far as its recipients go.
func (d queueDoor) put(page *api.QueuePage, v *queue.View, q query, now time.Time) {
	m := messageOf(v, now)
	if v.ID == q.from {
		m.First = min(q.skip, m.Total)
	}
	m.Recipients = recipientsOf(v, m.First, min(api.MaxPageRecipients, q.recipients))
	if end := m.First + len(m.Recipients); end < m.Total && len(m.Recipients) < q.recipients {
		page.Next, page.Skip = m.ID, end
	}
	page.Messages = append(page.Messages, m)
}

func (d queueDoor) show(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := ParseQueueID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	now := d.now()
	q, err := queryOf(r.URL.Query(), api.MaxPage, now)
	if err != nil {
		return nil, err
	}
	v, err := d.Queue.Show(id)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", id, err)
	}
	return whole(v, q, now), nil
}

// whole is one message with all that is known of it.
func whole(v *queue.View, q query, now time.Time) api.QueueMessage {
	m := messageOf(v, now)
	m.First = min(q.skip, m.Total)
	m.Recipients = recipientsOf(v, m.First, api.MaxPageRecipients)
	if m.First == 0 {
		m.Origin, m.Head = originOf(v.Origin), v.Head
	}
	return m
}

func (d queueDoor) stats(http.ResponseWriter, *http.Request) (any, error) {
	s, err := d.Queue.Stats()
	if err != nil {
		return nil, err
	}
	return api.QueueStats{
		Messages: s.Messages, Queued: s.Recipients.Queued, InFlight: s.Recipients.InFlight, Held: s.Recipients.Held, Oldest: stamp(s.Oldest),
	}, nil
}

// operation is one way of changing messages.
type operation func(ctx context.Context, q *queue.Queue, sel queue.Selection, s *api.QueueSelect) (queue.Changed, error)

// operations are all of them.
var operations = [...]struct {
	name string
	do   operation
}{
	{"hold", func(ctx context.Context, q *queue.Queue, sel queue.Selection, s *api.QueueSelect) (queue.Changed, error) {
		return q.Hold(ctx, sel, store.Hold{Reason: s.Reason, By: s.By})
	}},
	{"release", func(ctx context.Context, q *queue.Queue, sel queue.Selection, s *api.QueueSelect) (queue.Changed, error) {
		return q.Release(ctx, sel, s.By)
	}},
	{"retry", func(ctx context.Context, q *queue.Queue, sel queue.Selection, s *api.QueueSelect) (queue.Changed, error) {
		return q.Retry(ctx, sel, s.By)
	}},
	{"delete", func(ctx context.Context, q *queue.Queue, sel queue.Selection, s *api.QueueSelect) (queue.Changed, error) {
		return q.Delete(ctx, sel, s.By)
	}},
}

func (d queueDoor) operate(w http.ResponseWriter, r *http.Request, op operation) (any, error) {
	var s api.QueueSelect
	if err := readUpTo(r, &s, api.MaxSelect); err != nil {
		return nil, err
	}
	s.Reason, s.By = reply.Clean(s.Reason, maxReasonGiven), cmp.Or(reply.Clean(s.By, maxReasonGiven), "unknown")
	sel, m, err := selection(&s, d.now())
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(r.URL.Path, "/release") {
		if err := d.withoutQuarantine(&sel); err != nil {
			return nil, err
		}
	}
	takeLong(w)
	return d.change(r.Context(), op, &s, sel, m)
}

// change makes an operation on a selection.
func (d queueDoor) change(ctx context.Context, op operation, s *api.QueueSelect, sel queue.Selection, m *matcher) (any, error) {
	c, err := op(ctx, d.Queue, sel, s)
	if err != nil {
		return nil, err
	}
	a := api.QueueChanged{
		Messages: c.Messages, Recipients: c.Recipients, DryRun: s.DryRun, InFlight: c.InFlight, Undecided: m.undecided, Why: m.why,
	}
	done := map[store.ID]bool{}
	for _, id := range c.IDs {
		a.IDs = append(a.IDs, id.String())
		done[id] = true
	}
	if s.Match == "" && len(c.IDs) == c.Messages {
		for _, id := range slices.Compact(slices.Sorted(slices.Values(sel.IDs))) {
			if !done[id] {
				a.Missing = append(a.Missing, id.String())
			}
		}
	}
	return a, nil
}

// takeLong lets an answer take longer than the server's timeout.
func takeLong(w http.ResponseWriter) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(longWork)) //nolint:errcheck // a recorder of a test has none
}

func (d queueDoor) verify(w http.ResponseWriter, r *http.Request) (any, error) {
	if d.Store == nil {
		return nil, errNoQueue
	}
	takeLong(w)
	return Verify(r.Context(), d.Store, d.Queue)
}

// Verify checks one after the other and keeps the first problems.
func Verify(ctx context.Context, all ...Verifier) (v api.Verify, err error) {
	v.Problems = []string{}
	for _, one := range all {
		err = one.Verify(ctx, func(problem string) {
			if len(v.Problems) == api.MaxProblems {
				v.More++
				return
			}
			v.Problems = append(v.Problems, problem)
		})
		if err != nil {
			break
		}
	}
	return v, err
}

// counted is what the queue can be counted by: under which name a recipient
// counts, "" for none.
var counted = [...]struct {
	by   string
	name func(*queue.View, *queue.Recipient) string
}{
	{"status", func(_ *queue.View, r *queue.Recipient) string { return r.Status.String() }},
	{"domain", waiting(func(r *queue.Recipient) string { return cmp.Or(r.Domain, "(none)") })},
	{bySite, nil}, // the queue's schedule knows
	{"sender", func(v *queue.View, _ *queue.Recipient) string { return "<" + v.Envelope.Sender + ">" }},
	{"channel", waiting(func(r *queue.Recipient) string { return r.Channel })},
	{"hold", func(v *queue.View, _ *queue.Recipient) string { return holder(v.Hold) }},
}

const bySite = "site"

// CountBy are the words that the queue can be counted by.
func CountBy() []string {
	var all []string
	for _, c := range counted {
		all = append(all, c.by)
	}
	return all
}

// waiting counts recipients that are not done with.
func waiting(name func(*queue.Recipient) string) func(*queue.View, *queue.Recipient) string {
	return func(_ *queue.View, r *queue.Recipient) string {
		if r.Status.Done() {
			return ""
		}
		return name(r)
	}
}

// holder is who holds a message, "" if nobody does.
func holder(h *store.Hold) string {
	switch {
	case h == nil:
		return ""
	case h.Filter != "":
		return "filter " + h.Filter
	case h.By != "":
		return "operator " + h.By
	}
	return "undeliverable"
}

func (d queueDoor) count(_ http.ResponseWriter, r *http.Request) (any, error) {
	v := r.URL.Query()
	by := cmp.Or(v.Get("by"), "status")
	q, err := queryOf(v, api.MaxNames, d.now())
	if err != nil {
		return nil, err
	}
	if by == bySite && q.match.rule == nil {
		return top(api.QueueCounts{By: by, Names: d.countSites()}, q.most), nil
	}
	i := slices.Index(CountBy(), by)
	if i < 0 {
		return nil, fmt.Errorf("the queue can be counted by %s; not by %q", strings.Join(CountBy(), ", "), by)
	}
	name := counted[i].name
	if by == bySite {
		name = waiting(func(r *queue.Recipient) string { return d.Queue.SiteOf(r.Channel, r.Domain) })
	}
	c, err := d.countNames(r.Context(), name, q.match)
	c.By = by
	return top(c, q.most), err
}

func (d queueDoor) countNames(ctx context.Context, name func(*queue.View, *queue.Recipient) string, m *matcher) (c api.QueueCounts, err error) {
	var looked, counted store.ID
	chosen := false
	names, err := d.Queue.Count(ctx, func(v *queue.View, r *queue.Recipient) string {
		if v.ID != looked {
			looked, chosen = v.ID, m.match(v)
		}
		if !chosen {
			return ""
		}
		n := name(v, r)
		if n != "" {
			c.Recipients++
			if counted != v.ID {
				counted = v.ID
				c.Messages++
			}
		}
		return n
	})
	for name, n := range names {
		c.Names = append(c.Names, api.QueueCount{Name: name, Messages: n.Messages, Recipients: n.Recipients})
	}
	c.Undecided, c.Why = m.undecided, m.why
	return c, err
}

func (d queueDoor) countSites() []api.QueueCount {
	var all []api.QueueCount
	for _, s := range d.Queue.Sites() { // those of one name stand together
		n := s.Queued + s.InFlight + s.Held
		switch last := len(all) - 1; {
		case n == 0:
		case last >= 0 && all[last].Name == s.Name:
			all[last].Recipients += n
		default:
			all = append(all, api.QueueCount{Name: s.Name, Recipients: n})
		}
	}
	return all
}

// top sorts the names and keeps the first.
func top(c api.QueueCounts, most int) api.QueueCounts {
	slices.SortFunc(c.Names, func(a, b api.QueueCount) int {
		return cmp.Or(cmp.Compare(b.Recipients, a.Recipients), cmp.Compare(a.Name, b.Name))
	})
	if len(c.Names) > most {
		c.More = len(c.Names) - most
		c.Names = c.Names[:most]
	}
	if c.Names == nil {
		c.Names = []api.QueueCount{}
	}
	return c
}

func (d queueDoor) sites(_ http.ResponseWriter, r *http.Request) (any, error) {
	v := r.URL.Query()
	from := v.Get("from")
	v.Del("from")
	q, err := queryOf(v, api.MaxSites, d.now())
	if err != nil {
		return nil, err
	}
	all := []api.Site{}
	for _, s := range d.Queue.Sites() {
		// The lanes of a site stay together, because the next page begins after its name.
		if n := len(all); s.Name >= from && (n < q.most || n > 0 && all[n-1].Name == s.Name) {
			all = append(all, SiteOf(s))
		}
	}
	return all, nil
}

// SiteOf puts a site of the schedule into the API's words.
func SiteOf(s queue.Site) api.Site {
	a := api.Site{
		Name: s.Name, Lane: s.Lane, Domains: s.Domains, Queued: s.Queued, InFlight: s.InFlight, Held: s.Held, Due: s.Due, NextDue: stamp(s.NextDue),
		Connections: s.Batches, Limit: s.Limit, Allowed: s.Allowed, Own: s.Own, Living: s.Living, Failures: s.Failures,
		Succeeded: stamp(s.Succeeded), Suspended: stamp(s.Suspended), Paced: stamp(s.Paced),
	}
	if s.Forever {
		a.Suspended = "forever"
	}
	return a
}
