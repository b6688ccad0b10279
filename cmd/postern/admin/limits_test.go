package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

// fakeLimits knows so many sites, and notes what is changed.
type fakeLimits struct {
	sites   int
	changes []string
}

func (f *fakeLimits) List(from string, most int) []api.SiteState {
	all := []api.SiteState{}
	for i := range f.sites {
		if name := fmt.Sprintf("mx%06d.example", i); name >= from && len(all) < most {
			all = append(all, api.SiteState{Site: name, SiteControl: api.SiteControl{Allowed: i}})
		}
	}
	return all
}

func (f *fakeLimits) Held() []api.SiteHeld {
	return []api.SiteHeld{{Level: "provider", Name: "google", Suspended: true, Why: "they asked"}}
}

func (f *fakeLimits) Sources() []api.Source {
	return []api.Source{{Name: "a", Hello: "a.example.org", Pools: []string{"default"}}}
}

func (f *fakeLimits) Explain(_ context.Context, domain string) (api.SiteExplanation, error) {
	if domain == "unknown.example" {
		return api.SiteExplanation{}, errors.New("unknown.example: no such host")
	}
	return api.SiteExplanation{Domain: domain, Site: "mx." + domain, Binding: &api.SiteRefusal{Level: "site", What: "connections", Limit: "1"}}, nil
}

func (f *fakeLimits) Change(_ context.Context, what string, c api.SiteChange) (api.SiteChanged, error) {
	switch c.Name {
	case "nobody":
		return api.SiteChanged{}, fmt.Errorf("group nobody: %w", ErrNotFound)
	case "quiet.example":
		return api.SiteChanged{Level: "site", Name: c.Name}, nil
	}
	f.changes = append(f.changes, fmt.Sprintf("%s %s %s %s %d %s", what, c.Level, c.Name, c.Connections, c.For, c.Reason))
	return api.SiteChanged{Level: "site", Name: "mx." + c.Name, Until: "soon", Changed: true}, nil
}

func (f *fakeLimits) Stats() LimitStats {
	return LimitStats{
		Connections: map[string]int{"google": 2, "other": 5}, Refused: map[[2]string]uint64{{"provider", "connections"}: 7},
		Answers: map[string]uint64{"count": 3}, Suspended: map[string]int{"operator": 1, "answers": 0},
	}
}

func TestLimits(t *testing.T) {
	f := &fakeLimits{sites: api.MaxSites + 17}
	r := newRig(t, func(d *Daemon) { d.Limits = f })
	ctx := context.Background()

	all, err := r.client.SiteStates(ctx)
	if err != nil || len(all) != f.sites || all[f.sites-1].Allowed != f.sites-1 {
		t.Errorf("%d sites, %v", len(all), err)
	}
	if held, err := r.client.SiteHeld(ctx); err != nil || !slices.Equal(held, f.Held()) {
		t.Errorf("%+v, %v", held, err)
	}
	if e, err := r.client.SiteExplain(ctx, "a+b.example"); err != nil || e.Site != "mx.a+b.example" || e.Binding == nil || e.Binding.Limit != "1" {
		t.Errorf("%+v, %v", e, err)
	}
	for domain, want := range map[string]string{"unknown.example": "no such host", "": "name a domain", strings.Repeat("a", maxNameGiven+1): "name a domain"} {
		if _, err := r.client.SiteExplain(ctx, domain); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20s: %v, want %s", domain, err, want)
		}
	}

	for _, what := range limitChanges {
		done, err := r.client.SiteChange(ctx, what, api.SiteChange{Level: "domain", Name: "a.example", SiteBounds: api.SiteBounds{Connections: "none"}, For: 60, Reason: "a reason", By: "joe"})
		if err != nil || done != (api.SiteChanged{Level: "site", Name: "mx.a.example", Until: "soon", Changed: true}) {
			t.Errorf("%s: %+v, %v", what, done, err)
		}
	}
	want := []string{"limit domain a.example none 60 a reason", "suspend domain a.example none 60 a reason", "resume domain a.example none 60 a reason", "forget domain a.example none 60 a reason"}
	if !slices.Equal(f.changes, want) {
		t.Errorf("%q", f.changes)
	}
	if done, err := r.client.SiteChange(ctx, "resume", api.SiteChange{Name: "quiet.example"}); err != nil || done.Changed {
		t.Errorf("%+v, %v", done, err)
	}
	for _, bad := range []struct {
		what string
		c    api.SiteChange
		want string
	}{
		{"suspend", api.SiteChange{}, "name a domain"},
		{"suspend", api.SiteChange{Name: strings.Repeat("a", maxNameGiven+1)}, "name a domain"},
		{"suspend", api.SiteChange{Name: "a", For: -1}, "for must be between"},
		{"suspend", api.SiteChange{Name: "a", For: maxLimitTime + 1}, "for must be between"},
		{"suspend", api.SiteChange{Name: "a", Reason: strings.Repeat("a", maxReasonGiven+1)}, "the reason is longer"},
		{"suspend", api.SiteChange{Name: "nobody"}, "not found"},
		{"adjourn", api.SiteChange{Name: "a"}, "404"},
	} {
		if _, err := r.client.SiteChange(ctx, bad.what, bad.c); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s %.20s: %v, want %s", bad.what, bad.c.Name, err, bad.want)
		}
	}
	if len(f.changes) != len(want) {
		t.Errorf("what was refused was done: %q", f.changes[len(want):])
	}
	resp, err := r.client.http.Post("http://postern/v1/limits/suspend", "application/json", strings.NewReader(`{"name": "a", "until": 5}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("an unknown field is answered with %s", resp.Status)
	}
}

func TestNoLimits(t *testing.T) {
	r := newRig(t, nil)
	if _, err := r.client.SiteStates(context.Background()); err == nil || !strings.Contains(err.Error(), "no queue of its own") {
		t.Error(err)
	}
}
