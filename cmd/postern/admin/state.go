package admin

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/state"
)

// Space is what one filter remembers.
type Space interface {
	pipeline.State
	Scan(ctx context.Context, prefix, from string, each func(state.Entry) bool) error
}

const (
	// statePage is how many entries an answer has, and statePageBytes how many
	// bytes of them, one entry more at most.
	statePage      = 1000
	statePageBytes = 8 << 20
	// maxStateBody bounds a change in bytes: a thousand keys as long as they may be.
	maxStateBody = 4 << 20
)

func (d Daemon) stateRoutes(mux *http.ServeMux) {
	with := func(f func(*http.Request, Space) (any, error)) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			name := r.PathValue("filter")
			var s Space
			if d.State != nil {
				s = d.State(name)
			}
			if s == nil {
				answer(w, nil, fmt.Errorf("filter %q: %w: see postern filter list", name, ErrNotFound))
				return
			}
			v, err := f(r, s)
			answer(w, v, err)
		}
	}
	mux.HandleFunc("GET /v1/state/{filter}", with(scanState))
	mux.HandleFunc("POST /v1/state/{filter}/get", with(getState))
	mux.HandleFunc("POST /v1/state/{filter}", with(d.changeState))
}

func scanState(r *http.Request, s Space) (any, error) {
	q := r.URL.Query()
	keys := map[string]string{}
	for _, name := range []string{"prefix", "from"} {
		b, err := base64.RawURLEncoding.DecodeString(q.Get(name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		keys[name] = string(b)
	}
	page := api.StatePage{Entries: []api.StateEntry{}}
	size := 0
	err := s.Scan(r.Context(), keys["prefix"], keys["from"], func(e state.Entry) bool {
		page.Entries = append(page.Entries, api.StateEntry{Key: []byte(e.Key), Value: e.Value, Left: int64(e.Left / time.Second)})
		size += len(e.Key) + len(e.Value)
		page.More = len(page.Entries) == statePage || size >= statePageBytes
		return !page.More
	})
	return page, err
}

func getState(r *http.Request, s Space) (any, error) {
	var k api.StateKey
	if err := read(r, &k); err != nil {
		return nil, err
	}
	value, ok, err := s.Get(r.Context(), string(k.Key))
	page := api.StatePage{Entries: []api.StateEntry{}}
	if ok {
		page.Entries = append(page.Entries, api.StateEntry{Key: k.Key, Value: value})
	}
	return page, err
}

func (d Daemon) changeState(r *http.Request, s Space) (any, error) {
	var c api.StateChange
	if err := readUpTo(r, &c, maxStateBody); err != nil {
		return nil, err
	}
	var done api.StateChanged
	d.Log.Warn("a filter's state is changed by hand", "filter", r.PathValue("filter"), "put", len(c.Put), "delete", len(c.Delete), "by", reply.Clean(c.By, 100))
	for _, e := range c.Put {
		if e.Left <= 0 || e.Left > int64(state.MaxTTL/time.Second) {
			return nil, fmt.Errorf("an entry lives for 1 to %d seconds", int64(state.MaxTTL/time.Second))
		}
		if err := s.Put(r.Context(), string(e.Key), e.Value, time.Duration(e.Left)*time.Second); err != nil {
			return nil, err
		}
		done.Changed++
	}
	for _, k := range c.Delete {
		if err := s.Delete(r.Context(), string(k)); err != nil {
			return nil, err
		}
		done.Changed++
	}
	return done, nil
}

// ClientSpace is what one filter of a daemon remembers, asked over its admin
// socket. It is a pipeline.State.
type ClientSpace struct {
	c      *Client
	filter string
	by     string
}

// State is what a filter of the daemon remembers. Changes are made in the name of
// by.
func (c *Client) State(filter, by string) *ClientSpace { return &ClientSpace{c, filter, by} }

func (s *ClientSpace) path() string { return "/v1/state/" + url.PathEscape(s.filter) }

// Get is the value of a key.
func (s *ClientSpace) Get(ctx context.Context, key string) ([]byte, bool, error) {
	var page api.StatePage
	if err := s.c.call(ctx, "POST", s.path()+"/get", api.StateKey{Key: []byte(key)}, &page); err != nil || len(page.Entries) == 0 {
		return nil, false, err
	}
	return page.Entries[0].Value, true, nil
}

// Put sets the value of a key.
func (s *ClientSpace) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	var done api.StateChanged
	e := api.StateEntry{Key: []byte(key), Value: value, Left: int64(ttl / time.Second)}
	return s.c.call(ctx, "POST", s.path(), api.StateChange{Put: []api.StateEntry{e}, By: s.by}, &done)
}

// Delete removes a key.
func (s *ClientSpace) Delete(ctx context.Context, key string) error {
	return s.DeleteAll(ctx, []string{key})
}

// DeleteAll removes keys, some at a time.
func (s *ClientSpace) DeleteAll(ctx context.Context, keys []string) error {
	for len(keys) > 0 {
		n := min(len(keys), statePage)
		c := api.StateChange{By: s.by}
		for _, k := range keys[:n] {
			c.Delete = append(c.Delete, []byte(k))
		}
		var done api.StateChanged
		if err := s.c.call(ctx, "POST", s.path(), c, &done); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// Scan calls each for the entries whose keys begin with prefix and come after
// from, page by page.
func (s *ClientSpace) Scan(ctx context.Context, prefix, from string, each func(state.Entry) bool) error {
	for {
		q := url.Values{
			"prefix": {base64.RawURLEncoding.EncodeToString([]byte(prefix))}, "from": {base64.RawURLEncoding.EncodeToString([]byte(from))},
		}
		var page api.StatePage
		if err := s.c.call(ctx, "GET", s.path()+"?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		for _, e := range page.Entries {
			if !each(state.Entry{Key: string(e.Key), Value: e.Value, Left: time.Duration(e.Left) * time.Second}) {
				return nil
			}
			from = string(e.Key)
		}
		if !page.More || len(page.Entries) == 0 {
			return nil
		}
	}
}
