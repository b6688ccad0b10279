package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

// Limits are what is known of sites and their limits. The functions are called
// concurrently.
type Limits interface {
	// List are the sites from a name on, by name and source, at most so many; the name
	// may have a NUL and a source behind it.
	List(from string, most int) []api.SiteState
	// Held are the operators' words that hold.
	Held() []api.SiteHeld
	// Sources are the addresses that mail leaves from.
	Sources() []api.Source
	// Explain takes a domain, or a site as List has it.
	Explain(ctx context.Context, domain string) (api.SiteExplanation, error)
	// Change does limit, suspend, resume or forget.
	Change(ctx context.Context, what string, c api.SiteChange) (api.SiteChanged, error)
	Stats() LimitStats
}

// LimitStats are counts of what limits do. The names are of small sets.
type LimitStats struct {
	// Connections are open, by known provider, or "other".
	Connections map[string]int
	// Refused are questions that were refused, by level and what was limited.
	Refused map[[2]string]uint64
	// Answers are those that were no success, by class.
	Answers map[string]uint64
	// Suspended are sites, providers and so on to which nothing goes, by who said so:
	// operator, or answers.
	Suspended map[string]int
}

// limitChanges are the operations of Limits.Change.
var limitChanges = []string{"limit", "suspend", "resume", "forget"}

// maxLimitTime is the longest that an operator's word may hold, in seconds.
const maxLimitTime = 366 * 24 * 3600

// limitRoutes adds what is about limits.
func (d Daemon) limitRoutes(mux *http.ServeMux) {
	with := func(f func(*http.Request) (any, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if d.Limits == nil {
				answer(w, nil, errNoQueue)
				return
			}
			v, err := f(r)
			answer(w, v, err)
		}
	}
	mux.HandleFunc("GET /v1/limits", with(func(r *http.Request) (any, error) {
		return d.Limits.List(r.URL.Query().Get("from"), api.MaxSites), nil
	}))
	mux.HandleFunc("GET /v1/limits/held", with(func(*http.Request) (any, error) { return d.Limits.Held(), nil }))
	mux.HandleFunc("GET /v1/limits/sources", with(func(*http.Request) (any, error) { return d.Limits.Sources(), nil }))
	mux.HandleFunc("GET /v1/limits/explain", with(func(r *http.Request) (any, error) {
		domain := r.URL.Query().Get("domain")
		if domain == "" || len(domain) > maxNameGiven {
			return nil, errors.New("name a domain")
		}
		return d.Limits.Explain(r.Context(), domain)
	}))
	for _, what := range limitChanges {
		mux.HandleFunc("POST /v1/limits/"+what, with(func(r *http.Request) (any, error) {
			var c api.SiteChange
			if err := read(r, &c); err != nil {
				return nil, err
			}
			return d.changeLimits(r.Context(), what, c)
		}))
	}
}

// maxNameGiven bounds the name of a site or the like, in bytes.
const maxNameGiven = 1000

func (d Daemon) changeLimits(ctx context.Context, what string, c api.SiteChange) (api.SiteChanged, error) {
	switch {
	case c.Name == "" || len(c.Name) > maxNameGiven:
		return api.SiteChanged{}, errors.New("name a domain, or what else it is about")
	case c.For < 0 || c.For > maxLimitTime:
		return api.SiteChanged{}, errors.New("for must be between 0 (until it is taken back) and a year")
	case len(c.Reason) > maxReasonGiven:
		return api.SiteChanged{}, fmt.Errorf("the reason is longer than %d bytes", maxReasonGiven)
	}
	done, err := d.Limits.Change(ctx, what, c)
	if err == nil && done.Changed {
		d.Log.Warn("limits changed by hand", "change", what, "level", done.Level, "name", clip(done.Name), "until", done.Until, "reason", clip(c.Reason), "by", clip(c.By))
	}
	return done, err
}

// clip makes a text fit for the log.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxReasonGiven)], "?") }

// SiteStates asks for the sites that mail was sent to lately.
func (c *Client) SiteStates(ctx context.Context) ([]api.SiteState, error) {
	var all []api.SiteState
	for v := (url.Values{}); ; {
		var page []api.SiteState
		if err := c.call(ctx, "GET", "/v1/limits?"+v.Encode(), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page...)
		if len(page) < api.MaxSites {
			return all, nil
		}
		last := &page[len(page)-1]
		v.Set("from", last.Site+"\x00"+last.Source+"\x00")
	}
}

// SiteHeld asks for the operators' words that hold.
func (c *Client) SiteHeld(ctx context.Context) (all []api.SiteHeld, err error) {
	err = c.call(ctx, "GET", "/v1/limits/held", nil, &all)
	return all, err
}

// Sources asks for the addresses that mail leaves from.
func (c *Client) Sources(ctx context.Context) (all []api.Source, err error) {
	err = c.call(ctx, "GET", "/v1/limits/sources", nil, &all)
	return all, err
}

// SiteExplain asks for everything that decides about mail for a domain.
func (c *Client) SiteExplain(ctx context.Context, domain string) (e api.SiteExplanation, err error) {
	err = c.call(ctx, "GET", "/v1/limits/explain?"+url.Values{"domain": {domain}}.Encode(), nil, &e)
	return e, err
}

// SiteChange does limit, suspend, resume or forget.
func (c *Client) SiteChange(ctx context.Context, what string, s api.SiteChange) (done api.SiteChanged, err error) {
	err = c.call(ctx, "POST", "/v1/limits/"+url.PathEscape(what), s, &done)
	return done, err
}
