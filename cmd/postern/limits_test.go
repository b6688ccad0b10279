package main

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/limit"
	"github.com/postern-mta/postern/queue/queuetest"
)

// zone has the hosts of domains, and one address for all of them.
type zone map[string][]string

func (z zone) LookupMX(_ context.Context, domain string) (resolve.MX, error) {
	var mx resolve.MX
	for _, h := range z[domain] {
		mx.Hosts = append(mx.Hosts, resolve.Host{Name: h, Preference: 10})
	}
	return mx, nil
}

func (z zone) LookupAddrs(_ context.Context, host string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.25")}, nil
}

// limitsRig is the limits of a daemon, without the daemon.
type limitsRig struct {
	*limits
	t       *testing.T
	current atomic.Pointer[config.Config]
	clock   time.Time
}

func newLimitsRig(t *testing.T, z zone, text string) *limitsRig {
	t.Helper()
	r := &limitsRig{t: t, clock: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
	r.configure(text)
	var err error
	if r.limits, err = newLimits(r.current.Load, z); err != nil {
		t.Fatal(err)
	}
	r.limits.now = func() time.Time { return r.clock }
	r.exit, err = smtp.New(smtp.Options{Resolver: z, Hello: "mx.example.org", Group: func(domain string) string { return r.current.Load().GroupOf(domain) }})
	if err != nil {
		t.Fatal(err)
	}
	r.limits.queue, err = queue.Open(queue.Options{
		Store: queuetest.NewMemory(nil), Host: "mx.example.org",
		Route: func(string) (string, string) { return "remote", "x" }, Channels: []queue.Channel{{Name: "remote", Exit: remoteExit{&outward{exit: r.exit, limits: r.limits}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.limits.queue.Close(context.Background()) }) //nolint:errcheck // nothing goes on
	return r
}

func (r *limitsRig) configure(text string) {
	r.t.Helper()
	c, err := config.Parse("postern.toml", []byte("hostname = \"mx.example.org\"\ncontrol = \"\"\n"+text), loadOptions(quietEnv()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.current.Store(c)
}

func (r *limitsRig) explain(domain string) api.SiteExplanation {
	r.t.Helper()
	e, err := r.Explain(context.Background(), domain)
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

// line is a limit of an explanation, "LIMIT from FROM".
func line(e *api.SiteExplanation, level, what string) string {
	for _, l := range e.Limits {
		if l.Level == level && l.What == what {
			return l.Limit + " from " + l.From
		}
	}
	return ""
}

var limitsZone = zone{
	"gmail.example":    {"aspmx.l.google.com", "alt1.aspmx.l.google.com"},
	"tenant.example":   {"tenant.mail.protection.outlook.com"},
	"one.example":      {"mx.shared.example"},
	"two.example":      {"mx.shared.example"},
	"partner.example":  {"mx.shared.example"},
	"big.example":      {"mx1.big-host.example"},
	"literally.exampl": {"mx.literally.exampl"},
}

func TestLimitsExplained(t *testing.T) {
	r := newLimitsRig(t, limitsZone, `
[site.partner]
domains = ["partner.example"]
connections = 2
[site.big]
mx = [".big-host.example"]
addresses = ["192.0.2.0/24"]
connections = 40
[provider.google]
messages_per_connection = "none"
`)
	e := r.explain("Gmail.example.")
	if e.Provider != "google" || e.Site != "alt1.aspmx.l.google.com,aspmx.l.google.com" || !slices.Equal(e.Addresses, []string{"192.0.2.25"}) || !slices.Equal(e.Groups, []string{"big"}) {
		t.Errorf("%+v", e)
	}
	for _, want := range []struct{ level, what, line string }{
		{"provider", "connections", "5 from shipped table, provider google"},
		{"provider", "messages a connection", "none from postern.toml:12"},
		{"site", "connections", "20 from default"},
		{"site", "messages", "100/s from default"},
		{"address", "connections", "40 from postern.toml:10"}, // it is in the group
		{"group", "connections", "40 from postern.toml:10"},
		{"adapted", "connections", "4 from what has worked so far"},
		{"source", "connections", ""},
	} {
		if got := line(&e, want.level, want.what); got != want.line {
			t.Errorf("%s %s: %s, want %s", want.level, want.what, got, want.line)
		}
	}
	if i := slices.IndexFunc(e.Limits, func(l api.SiteLimit) bool { return l.Tightest }); i < 0 || e.Limits[i].Level != "adapted" || e.Binding != nil {
		t.Errorf("tightest is %d, %+v binds", i, e.Binding)
	}
	if a, b, c := r.explain("one.example"), r.explain("two.example"), r.explain("partner.example"); a.Site != b.Site || c.Site != "partner="+a.Site || !slices.Equal(c.Hosts, a.Hosts) || c.Provider != a.Provider {
		t.Errorf("sites %s, %s and %s", a.Site, b.Site, c.Site)
	}
}

// TestLimitsBind opens connections until something keeps the next one, and asks
// what.
func TestLimitsBind(t *testing.T) {
	const text = "[site.partner]\ndomains = [\"partner.example\"]\nconnections = 2\n[site.default]\nconnection_rate = \"none\"\n"
	r := newLimitsRig(t, limitsZone, text)
	name, err := r.locate(context.Background(), "partner.example")
	if err != nil {
		t.Fatal(err)
	}
	var open []*permit
	for {
		leave, wait := r.admit(r.clock, name, "")
		if wait != nil {
			break
		}
		v, ok := leave.(*permit)
		if !ok {
			t.Fatalf("%T", leave)
		}
		open = append(open, v)
	}
	e := r.explain("partner.example")
	if len(open) != 2 || e.Binding == nil || e.Binding.Level != "group" || e.Binding.Name != "partner" || e.Binding.What != "connections" || e.Control.Connections != 2 {
		t.Fatalf("%d were let in, %+v binds", len(open), e.Binding)
	}
	if s := r.Stats(); s.Connections["other"] != 2 || s.Refused[[2]string{"group", "connections"}] != 1 {
		t.Errorf("%+v", s)
	}
	// Domains of the same hosts that are not in the group have their own.
	if other, _ := r.locate(context.Background(), "one.example"); r.path(other).Groups != nil {
		t.Errorf("%s is in %q", other, r.path(other).Groups)
	} else if leave, wait := r.admit(r.clock, other, ""); wait != nil {
		t.Error("it is kept by the group's limit")
	} else {
		leave.Release()
	}
	// A new configuration counts at once, for what is known already.
	r.configure(strings.Replace(text, "= 2", "= 3", 1))
	r.reloaded()
	leave, wait := r.admit(r.clock, name, "")
	if wait != nil {
		t.Fatal("the new limit does not count")
	}
	leave.Release()
	for _, v := range open {
		v.Release()
	}
	if e := r.explain("partner.example"); e.Binding != nil || e.Control.Connections != 0 || r.Stats().Connections["other"] != 0 {
		t.Errorf("what was given back is still open: %+v, %+v", e, r.Stats())
	}
}

func TestLimitsChangedByHand(t *testing.T) {
	r := newLimitsRig(t, limitsZone, "[site.big]\nmx = [\".big-host.example\"]\nconnections = 40\n[source.default]\nconnections = 100\n")
	ctx := context.Background()
	change := func(what string, c api.SiteChange) api.SiteChanged {
		t.Helper()
		done, err := r.Change(ctx, what, c)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	name, err := r.locate(ctx, "tenant.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []api.SiteChange{
		{Level: "domain", Name: "Tenant.example."},
		{Level: "site", Name: name},
		{Level: "provider", Name: "office365"},
		{Level: "source", Name: "default"},
	} {
		c.For, c.Reason, c.By = 3600, "a test", "joe"
		done := change("suspend", c)
		if want := "2026-11-01T13:00:00Z"; done.Until != want || !done.Changed {
			t.Errorf("%+v", done)
		}
		if _, wait := r.admit(r.clock, name, ""); wait == nil || !wait.Until.Equal(r.clock.Add(time.Hour)) {
			t.Errorf("%s %s is suspended: %+v", c.Level, c.Name, wait)
		}
		e := r.explain("tenant.example")
		if e.Binding == nil || e.Binding.What != "suspended" || e.Binding.Level != done.Level || e.Binding.Why != "a test, by joe" || len(e.Held) != 1 || !e.Held[0].Suspended {
			t.Errorf("%s: %+v, %+v", c.Level, e.Binding, e.Held)
		}
		if s := r.Stats(); s.Suspended["operator"] != 1 {
			t.Errorf("%+v", s.Suspended)
		}
		if done := change("resume", c); !done.Changed {
			t.Errorf("%s: there was nothing to resume", c.Level)
		}
		leave, wait := r.admit(r.clock, name, "")
		if wait != nil {
			t.Fatalf("%s was resumed: %+v", c.Level, wait)
		}
		leave.Release()
	}
	// It ends by itself.
	change("limit", api.SiteChange{Name: "tenant.example", SiteBounds: api.SiteBounds{Connections: "1", MessageRate: "none"}, For: 60, Reason: "slowly"})
	e := r.explain("tenant.example")
	if got := line(&e, "site", "connections"); got != "1 from operator until 2026-11-01T12:01:00Z: slowly" {
		t.Error(got)
	}
	if got := line(&e, "site", "messages"); !strings.HasPrefix(got, "none from operator") {
		t.Error(got)
	}
	r.clock = r.clock.Add(time.Minute)
	e = r.explain("tenant.example")
	if got := line(&e, "site", "connections"); got != "20 from default" || len(e.Held) != 0 {
		t.Error(got, e.Held)
	}
	for _, bad := range []struct {
		what string
		c    api.SiteChange
		want string
	}{
		{"limit", api.SiteChange{Name: "one.example"}, "no limit is given"},
		{"limit", api.SiteChange{Name: "one.example", SiteBounds: api.SiteBounds{Connections: "-3"}}, "connections: write a number"},
		{"suspend", api.SiteChange{Level: "address", Name: "mx.example"}, "is no address"},
		{"suspend", api.SiteChange{Level: "group", Name: "default"}, "there is no table"},
		{"suspend", api.SiteChange{Level: "source", Name: "other"}, "there is no table"},
		{"forget", api.SiteChange{Level: "provider", Name: "google"}, "only a domain or a site"},
	} {
		if _, err := r.Change(ctx, bad.what, bad.c); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s %+v: %v, want %s", bad.what, bad.c, err, bad.want)
		}
	}
	if done := change("suspend", api.SiteChange{Level: "address", Name: "2001:db8::17"}); done.Name != "2001:db8::/64" {
		t.Errorf("%+v", done)
	}
}

// TestLimitsListed: a list goes on behind a site's source, and tells what keeps each.
func TestLimitsListed(t *testing.T) {
	r := newLimitsRig(t, limitsZone, "")
	for _, source := range []string{"a", "b", "c"} {
		k, no := r.gate.Open(r.clock, limit.Path{Site: "mx.shared.example", Source: source})
		if no != nil {
			t.Fatal(no)
		}
		defer k.Close(r.clock)
		if source != "b" {
			continue
		}
		k.Said(r.clock, limit.Answer{Code: 421, Text: "4.7.0 [TSS04] Messages temporarily deferred due to user complaints"})
	}
	first := r.List("", 2)
	if len(first) != 2 || first[0].Source != "a" || first[1].Source != "b" || first[0].Binding != nil {
		t.Fatalf("%+v", first)
	}
	b := first[1]
	if b.Binding == nil || b.Binding.What != "suspended" || b.Binding.Since != "2026-11-01T12:00:00Z" || b.Since != b.Binding.Since || b.Said == nil || b.Said.Class != "blocked" || len(b.Moves) != 1 {
		t.Errorf("%+v %+v", b, b.Binding)
	}
	if rest := r.List("mx.shared.example\x00b\x00", 2); len(rest) != 1 || rest[0].Source != "c" {
		t.Errorf("%+v", rest)
	}
}

// TestSiteIsExplainedByName: what the list tells can be asked about, also after a
// restart, when no domain of it is known.
func TestSiteIsExplainedByName(t *testing.T) {
	r := newLimitsRig(t, limitsZone, "")
	const google = "alt1.aspmx.l.google.com,aspmx.l.google.com"
	if _, err := r.Explain(context.Background(), google); err == nil || !strings.Contains(err.Error(), "no mail was sent to such a site lately") {
		t.Errorf("%v", err)
	}
	k, no := r.gate.Open(r.clock, limit.Path{Site: google})
	if no != nil {
		t.Fatal(no)
	}
	defer k.Close(r.clock)
	for range 2 {
		e := r.explain(google)
		if e.Domain != "" || e.Site != google || e.Provider != "google" || len(e.Hosts) != 2 || len(e.Addresses) != 1 || e.Control.Connections != 1 {
			t.Errorf("%+v", e)
		}
		if _, err := r.locate(context.Background(), "gmail.example"); err != nil {
			t.Fatal(err)
		}
	}
	if e := r.explain("gmail.example"); e.Domain != "gmail.example" || e.Site != google {
		t.Errorf("%+v", e)
	}
	for want, e := range map[string]api.SiteExplanation{
		"postern site resume x.example --as site": {Site: "x.example", Binding: &api.SiteRefusal{Level: "adapted", Name: "x.example", What: "suspended"}},
		"is due 2026-11-01T12:05:00Z (in 5m)":     {Site: "x.example", Queue: &api.Site{Queued: 3, NextDue: "2026-11-01T12:05:00Z"}},
	} {
		if got := advice(&e, noon); len(got) != 1 || !strings.HasSuffix(got[0], want) {
			t.Errorf("%q, want %s", got, want)
		}
	}
}

// TestBlockCountsOnce: a provider that blocks us is one suspension, with all its sites.
func TestBlockCountsOnce(t *testing.T) {
	r := newLimitsRig(t, limitsZone, "")
	for i, domain := range []string{"gmail.example", "one.example"} {
		name, err := r.locate(context.Background(), domain)
		if err != nil {
			t.Fatal(err)
		}
		k, no := r.gate.Open(r.clock, r.path(name))
		if no != nil {
			t.Fatal(no)
		}
		k.Said(r.clock, limit.Answer{Code: 421, Text: "4.7.0 [TSS04] Messages temporarily deferred due to user complaints"})
		k.Close(r.clock)
		if n := r.Stats().Suspended["answers"]; n != i+1 {
			t.Errorf("%s: %d suspensions", domain, n)
		}
	}
	if list := r.List("", 10); len(list) != 2 || list[0].Binding == nil || list[0].Binding.What != "suspended" {
		t.Errorf("%+v", list)
	}
}

// TestLimitsLearn has a server refuse the third connection, and be blocked later.
func TestLimitsLearn(t *testing.T) {
	r := newLimitsRig(t, limitsZone, "")
	name, err := r.locate(context.Background(), "one.example")
	if err != nil {
		t.Fatal(err)
	}
	var all []smtp.Ticket
	for range 3 {
		k, err := r.Open(name, "", false)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.At(netip.MustParseAddr("192.0.2.25")); err != nil {
			t.Fatal(err)
		}
		all = append(all, k)
	}
	all[0].Greeted()
	all[1].Greeted()
	all[2].Said(wire.Reply{Code: 421, Text: "4.7.0 Too many concurrent SMTP connections"}, true)
	e := r.explain("one.example")
	if e.Control.Allowed != 2 || e.Control.Ceiling != 2 || len(e.Control.Moves) != 1 || !strings.Contains(e.Control.Moves[0].Why, "Too many concurrent") {
		t.Errorf("%+v", e.Control)
	}
	if got := line(&e, "adapted", "connections"); !strings.HasPrefix(got, "2 from since 2026-11-01T12:00:00Z: 421 ") {
		t.Error(got)
	}
	all[0].Said(wire.Reply{Code: 421, Text: "4.7.0 [TSS04] Messages temporarily deferred due to user complaints"}, false)
	if err := all[1].Message(1); err == nil || !strings.Contains(err.Error(), "suspended") {
		t.Errorf("an open connection to who has blocked us: %v", err)
	}
	list := r.List("", 10)
	if len(list) != 1 || list[0].Suspended != "2026-11-01T14:00:00Z" || !strings.Contains(list[0].Why, "TSS04") || r.Stats().Suspended["answers"] != 1 || r.Stats().Answers["count"] != 1 || r.Stats().Answers["blocked"] != 1 {
		t.Errorf("%+v, %+v", list, r.Stats())
	}
	if done, err := r.Change(context.Background(), "resume", api.SiteChange{Name: "two.example"}); err != nil || !done.Changed {
		t.Errorf("%+v, %v", done, err)
	}
	for _, k := range all {
		k.Close()
		k.Close() // counts once
	}
	if s := r.Stats(); s.Connections["other"] != 0 || s.Suspended["answers"] != 0 {
		t.Errorf("%+v", s)
	}
	if done, err := r.Change(context.Background(), "forget", api.SiteChange{Name: "one.example"}); err != nil || !done.Changed || len(r.List("", 10)) != 0 {
		t.Errorf("%+v, %v", done, err)
	}
}
