package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
)

// InQuarantine reports whether a filter holds a message. Neither what an
// operator holds is in quarantine, nor what cannot be delivered.
func InQuarantine(v *queue.View) bool { return v.Hold != nil && v.Hold.Filter != "" }

// errNotThere is the answer about a message that no filter holds.
var errNotThere = fmt.Errorf("not in quarantine: %w", ErrNotFound)

// quarantineRoutes adds what is about messages that filters hold.
func (d Daemon) quarantineRoutes(mux *http.ServeMux) {
	h := queueDoor{d}
	mux.HandleFunc("GET /v1/quarantine", h.with(h.quarantined))
	mux.HandleFunc("GET /v1/quarantine/{id}", h.with(h.showQuarantined))
	mux.HandleFunc("GET /v1/quarantine/{id}/raw", h.raw)
	mux.HandleFunc("POST /v1/quarantine/release", h.with(h.letGo))
	mux.HandleFunc("POST /v1/quarantine/delete", h.with(h.deleteQuarantined))
}

func (d queueDoor) quarantined(_ http.ResponseWriter, r *http.Request) (any, error) {
	q, err := queryOf(r.URL.Query(), api.MaxPage, d.now())
	if err != nil {
		return nil, err
	}
	q.match.only = InQuarantine
	return d.page(r, q)
}

// one is the message in quarantine that a request names.
func (d queueDoor) one(r *http.Request) (*queue.View, error) {
	id, err := ParseQueueID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	v, err := d.Queue.Show(id)
	if err == nil && !InQuarantine(v) {
		err = errNotThere
	}
	if err != nil {
		return nil, fmt.Errorf("%v: %w", id, err)
	}
	return v, nil
}

func (d queueDoor) showQuarantined(_ http.ResponseWriter, r *http.Request) (any, error) {
	q, err := queryOf(r.URL.Query(), api.MaxPage, d.now())
	if err != nil {
		return nil, err
	}
	v, err := d.one(r)
	if err != nil {
		return nil, err
	}
	return whole(v, q, d.now()), nil
}

// raw gives the message's bytes, with line feeds at the lines' ends.
func (d queueDoor) raw(w http.ResponseWriter, r *http.Request) {
	if d.Queue == nil {
		answer(w, nil, errNoQueue)
		return
	}
	v, err := d.one(r)
	if err != nil {
		answer(w, nil, err)
		return
	}
	m, err := d.Queue.Content(v.ID)
	if err != nil {
		answer(w, nil, fmt.Errorf("%v: %w", v.ID, err))
		return
	}
	defer m.Body().Release() //nolint:errcheck // nothing depends on it
	takeLong(w)
	w.Header().Set("Content-Type", "message/rfc822")
	w.Header().Set("Content-Length", strconv.FormatInt(m.Size(), 10))
	m.WriteTo(w) //nolint:errcheck // the client went away, or misses some of the length it was told
}

// inQuarantine is what was asked for, of the messages that filters hold.
func inQuarantine(d queueDoor, s *api.QueueSelect) (queue.Selection, *matcher, error) {
	s.By = cmp.Or(reply.Clean(s.By, maxReasonGiven), "unknown")
	sel, m, err := selection(s, d.now())
	if err != nil {
		return sel, m, err
	}
	m.only, sel.Match = InQuarantine, m.match
	return sel, m, nil
}

func (d queueDoor) deleteQuarantined(w http.ResponseWriter, r *http.Request) (any, error) {
	var s api.QueueSelect
	if err := readUpTo(r, &s, api.MaxSelect); err != nil {
		return nil, err
	}
	sel, m, err := inQuarantine(d, &s)
	if err != nil {
		return nil, err
	}
	takeLong(w)
	return d.change(r.Context(), func(ctx context.Context, q *queue.Queue, sel queue.Selection, s *api.QueueSelect) (queue.Changed, error) {
		return q.Delete(ctx, sel, s.By)
	}, &s, sel, m)
}

// letGo lets messages go on one after the other. What has begun when the client
// goes away is finished.
func (d queueDoor) letGo(w http.ResponseWriter, r *http.Request) (any, error) {
	var s api.QuarantineRelease
	if err := readUpTo(r, &s, api.MaxSelect); err != nil {
		return nil, err
	}
	switch {
	case d.Daemon.Release == nil:
		return nil, errNoQueue
	case s.From != "" && s.Deliver:
		return nil, errors.New("from a filter on, or delivered without any: not both")
	}
	sel, m, err := inQuarantine(d, &s.QueueSelect)
	if err != nil {
		return nil, err
	}
	ids, err := d.chosen(r.Context(), sel)
	if err != nil {
		return nil, err
	}
	takeLong(w)
	a := api.QuarantineReleased{DryRun: s.DryRun, Messages: []api.QuarantineResult{}}
	for _, id := range ids {
		if r.Context().Err() != nil {
			return nil, context.Cause(r.Context())
		}
		v, err := d.Queue.Show(id)
		if err != nil || !m.match(v) {
			if s.Match == "" && sel.IDs != nil {
				a.Missing = append(a.Missing, id.String())
			}
			continue
		}
		count(&a, d.Daemon.Release(context.WithoutCancel(r.Context()), v, &s))
	}
	a.Undecided, a.Why = m.undecided, m.why
	return a, nil
}

// maxReleased bounds the messages that an answer tells of, maxTraced those of
// which it tells what filters said.
const (
	maxReleased = 1000
	maxTraced   = 100
)

// count adds one message's result.
func count(a *api.QuarantineReleased, r api.QuarantineResult) {
	switch {
	case r.Gone > 0 && r.Gone == r.Recipients && r.Warning == "":
		a.Released++
	case r.Gone > 0:
		a.Partly++
	default:
		a.Held++
	}
	if len(a.Messages) >= maxTraced {
		r.Trace = nil
	}
	if len(a.Messages) < maxReleased {
		a.Messages = append(a.Messages, r)
	}
}

// chosen are the ids that a selection chooses, rising.
func (d queueDoor) chosen(ctx context.Context, sel queue.Selection) ([]store.ID, error) {
	if sel.IDs != nil {
		return slices.Compact(slices.Sorted(slices.Values(sel.IDs))), nil
	}
	var ids []store.ID
	err := d.Queue.Each(ctx, 0, func(v *queue.View) error {
		if sel.Match(v) {
			ids = append(ids, v.ID)
		}
		return nil
	})
	return ids, err
}

// withoutQuarantine takes out of a selection what the queue does not let go
// without its being named: what filters hold, so that who means what operators
// hold does not let viruses go; and what is to go to another program, which is an
// error where it is named.
func (d queueDoor) withoutQuarantine(sel *queue.Selection) error {
	for _, id := range sel.IDs {
		if d.Elsewhere == nil {
			break
		}
		if v, err := d.Queue.Show(id); err == nil && v.Hold != nil && d.Elsewhere(v) {
			return fmt.Errorf("%v goes to another program than our queue's exits when it is let go: use postern quarantine release", id)
		}
	}
	match, named := sel.Match, sel.IDs != nil
	if match == nil {
		return nil
	}
	sel.Match = func(v *queue.View) bool {
		if InQuarantine(v) && (!named || d.Elsewhere != nil && d.Elsewhere(v)) {
			return false
		}
		return match(v)
	}
	return nil
}
