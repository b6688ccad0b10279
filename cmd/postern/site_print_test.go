package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

// badDay is what there may be on one.
func badDay() ([]api.SiteState, []api.SiteHeld) {
	sites := []api.SiteState{
		{Site: "a.example", Queued: 7, SiteControl: api.SiteControl{Allowed: 4}},
		{
			Site: "alt1.aspmx.l.google.com,alt2.aspmx.l.google.com,aspmx.l.google.com", Provider: "google", Queued: 900,
			SiteControl: api.SiteControl{Allowed: 20, Connections: 3}, Binding: &api.SiteRefusal{Level: "provider", Name: "google", What: "suspended", Why: "ticket 4711, by joe"},
		},
		{
			Site: "blocks.example", Queued: 40, SiteControl: api.SiteControl{Allowed: 4, Since: "2026-11-01T11:00:00Z", Suspended: "2026-11-01T14:00:00Z", Why: "421 [TSS04] complaints"},
			Binding: &api.SiteRefusal{Level: "adapted", Name: "blocks.example", What: "suspended", Since: "2026-11-01T11:00:00Z", Until: "2026-11-01T14:00:00Z", Why: "421 [TSS04] complaints"},
		},
		{
			Site: "busy.example", Queued: 1, SiteControl: api.SiteControl{
				Connections: 5, Allowed: 5, Ceiling: 5, Probe: "2026-11-01T12:09:00Z",
				Moves: []api.SiteMove{{Time: "2026-11-01T11:59:00Z", What: "connections", From: "8", To: "5", Why: "421 too many connections"}},
			}, Binding: &api.SiteRefusal{Level: "adapted", Name: "busy.example", What: "connections", Limit: "5"},
		},
		{Site: "full.example", Groups: []string{"net"}, SiteControl: api.SiteControl{Allowed: 9, Connections: 9}, Binding: &api.SiteRefusal{Level: "group", Name: "net", What: "connections", Limit: "9"}},
		{Site: "grey.example", SiteControl: api.SiteControl{Allowed: 4, Said: &api.SiteSaid{Time: "2026-11-01T11:58:00Z", Class: "greylisted", Text: "450 later"}}},
		{Site: "slow.example", SiteControl: api.SiteControl{Allowed: 4, Rate: 0.1, Moves: []api.SiteMove{{What: "messages", From: "none", To: "6/min", Why: "451 rate limit"}}}},
		{Site: "mute.example", Silent: []api.SiteSilent{{Address: "192.0.2.1:25", Until: "2026-11-01T12:05:00Z"}, {Address: "192.0.2.2:25", Until: "2026-11-01T12:04:00Z"}, {Address: "192.0.2.3:25"}}},
		{Site: "broken.example", SiteControl: api.SiteControl{Allowed: 4, Failures: 2, Said: &api.SiteSaid{Class: "down", Text: "connection refused " + strings.Repeat("x", 200)}}},
	}
	return sites, []api.SiteHeld{
		{Level: "provider", Name: "google", Suspended: true, Since: "2026-11-01T11:30:00Z", Why: "ticket 4711, by joe"},
		{Level: "site", Name: "a.example", SiteBounds: api.SiteBounds{Connections: "2"}, Since: "2026-11-01T11:30:00Z", Until: "2026-11-01T12:30:00Z"},
	}
}

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// TestSiteList tells at once what is the matter with each site.
func TestSiteList(t *testing.T) {
	all, held := badDay()
	var b bytes.Buffer
	if err := printSiteStates(&b, all, held, false, noon); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"SITE PROVIDER OPEN ALLOWED CEILING RATE QUEUED STATE",
		"a.example - 0 4 - - 7 -",
		"alt1.aspmx.l.google.com +2 google 3 20 - - 900 suspended by an operator (provider google): ticket 4711, by joe",
		"blocks.example - 0 4 - - 40 suspended until 2026-11-01T14:00:00Z (in 2h): 421 [TSS04] complaints",
		"busy.example - 5 5 5 - 1 takes no more, tries more at 2026-11-01T12:09:00Z (in 9m): 421 too many connections",
		"full.example - 9 9 - - 0 kept by group net: connections 9",
		"grey.example - 0 4 - - 0 greylists, last 2m ago",
		"slow.example - 0 4 - 6/min 0 slowed down: 451 rate limit",
		"mute.example - 0 0 - - 0 2 servers passed over until 2026-11-01T12:05:00Z (in 5m): no answer",
		"",
		"provider google is suspended until postern site resume: ticket 4711, by joe, said 30m ago",
		"site a.example is limited to 2 connections until 2026-11-01T12:30:00Z (in 30m), said 30m ago",
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines:\n%s", len(lines), &b)
	}
	for i, line := range lines {
		if i == 9 {
			if n := len([]rune(line)); !strings.HasSuffix(line, "xxx…") || n > 220 {
				t.Errorf("a long reason is not cut (%d): %s", n, line)
			}
			continue
		}
		if got := strings.Join(strings.Fields(line), " "); got != want[i] {
			t.Errorf("%s\n%s", got, want[i])
		}
	}
	b.Reset()
	if err := printSiteStates(&b, all, held, true, noon); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), all[1].Site) || !strings.Contains(b.String(), strings.Repeat("x", 200)) {
		t.Errorf("not all is told:\n%s", &b)
	}
}

func TestSiteChoice(t *testing.T) {
	for _, c := range []struct {
		chosen      siteChoice
		sites, held string
	}{
		{siteChoice{sort: "name"}, "a alt1 blocks busy full grey slow mute broken", "google a.example"},
		{siteChoice{sort: "queued"}, "alt1 blocks a busy full grey slow mute broken", "google a.example"},
		{siteChoice{sort: "open"}, "full busy alt1 a blocks grey slow mute broken", "google a.example"},
		{siteChoice{sort: "name", suspended: true}, "alt1 blocks", "google"},
		{siteChoice{sort: "name", limited: true}, "a busy full slow", "a.example"},
		{siteChoice{sort: "queued", limited: true, suspended: true}, "alt1 blocks a busy full slow", "google a.example"},
		{siteChoice{sort: "name", provider: "google"}, "alt1", "google"},
		{siteChoice{sort: "name", provider: "google", limited: true}, "", ""},
		{siteChoice{sort: "name", provider: "nobody"}, "", ""},
	} {
		all, held := badDay()
		sites, words, err := c.chosen.of(all, held)
		if err != nil {
			t.Fatal(err)
		}
		var names, about []string
		for _, s := range sites {
			first, _, _ := strings.Cut(s.Site, ".")
			names = append(names, first)
		}
		for _, h := range words {
			about = append(about, h.Name)
		}
		if got := strings.Join(names, " "); got != c.sites || !slices.Equal(about, strings.Fields(c.held)) {
			t.Errorf("%+v: %s, and %s", c.chosen, got, about)
		}
	}
	if _, _, err := (&siteChoice{sort: "age"}).of(nil, nil); err == nil {
		t.Error("an order that there is not")
	}
}

// TestSiteExplanation: what binds, since when, why, and what to do stand in front of
// the limits.
func TestSiteExplanation(t *testing.T) {
	all, _ := badDay()
	limits := []api.SiteLimit{{Level: "group", Name: "net", What: "connections", Limit: "9", Used: "9", From: "postern.toml:21", Binds: true}}
	for _, c := range []struct {
		name string
		e    api.SiteExplanation
		want []string
	}{
		{"suspended by an answer", api.SiteExplanation{Control: all[2].SiteControl, Binding: all[2].Binding}, []string{
			"the next connection is kept by adapted blocks.example: suspended until 2026-11-01T14:00:00Z (in 2h): 421 [TSS04] complaints, since 2026-11-01T11:00:00Z (1h ago)",
			"  its servers' answers did that; to send before the end: postern site resume d.example",
		}},
		{"suspended by an operator", api.SiteExplanation{Binding: all[1].Binding}, []string{
			"the next connection is kept by provider google: suspended: ticket 4711, by joe",
			"  an operator did that; to take it back: postern site resume google --as provider",
		}},
		{"a ceiling", api.SiteExplanation{Control: all[3].SiteControl, Binding: all[3].Binding}, []string{
			"the next connection is kept by adapted busy.example: connections 5",
			"  that is what its servers take; more is tried 2026-11-01T12:09:00Z. To begin anew: postern site forget d.example",
		}},
		{"a configured limit", api.SiteExplanation{Limits: limits, Binding: all[4].Binding}, []string{
			"the next connection is kept by group net: connections 9",
			"  the limit is from postern.toml:21; another for a while: postern site limit net --as group --connections N --for 2h",
		}},
		{"a rate", api.SiteExplanation{Binding: &api.SiteRefusal{Level: "site", Name: "x", What: "messages", Limit: "3/h", Until: "2026-11-01T12:20:00Z"}}, []string{
			"the next message is kept by site x: messages 3/h until 2026-11-01T12:20:00Z (in 20m)",
			"  the limit is from the configuration; another for a while: postern site limit d.example --message-rate N --for 2h",
		}},
		{"nothing but a retry", api.SiteExplanation{Queue: &api.Site{Queued: 3, NextDue: "2026-11-01T12:05:00Z"}}, []string{
			"nothing keeps the next connection",
			`  what waits was put off, and is due 2026-11-01T12:05:00Z (in 5m); to try it now: postern queue retry --match '"d.example" in domains'`,
		}},
		{"a silent server", api.SiteExplanation{Silent: []api.SiteSilent{{Address: "192.0.2.25:25", Host: "mx.d.example", Failures: 2, Last: "2026-11-01T11:50:00Z", Until: "2026-11-01T12:05:00Z"}}}, []string{
			"server 192.0.2.25:25 (mx.d.example) did not answer 2 times running, last 10m ago; it is passed over until 2026-11-01T12:05:00Z (in 5m)",
			"  servers that did not answer are passed over; to try them now: postern site forget d.example",
		}},
		{"a silent server that is due", api.SiteExplanation{Silent: []api.SiteSilent{{Address: "192.0.2.25:25", Failures: 1, Last: "2026-11-01T11:50:00Z"}}}, []string{
			"server 192.0.2.25:25 did not answer once, last 10m ago; it is still tried",
		}},
		{"greylisting", api.SiteExplanation{Control: all[5].SiteControl}, []string{
			"last answer  2m ago, greylisted, which moves nothing: 450 later",
		}},
	} {
		c.e.Domain = "d.example"
		var b bytes.Buffer
		if err := printSiteExplanation(&b, &c.e, noon); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(b.String(), "\n")
		for _, want := range c.want {
			if !slices.Contains(lines, want) {
				t.Errorf("%s: there is no line\n%s\nin\n%s", c.name, want, &b)
			}
		}
	}
}
