package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// restartedRig is the limits of a daemon that has begun in a state directory, and
// what it has logged.
func restartedRig(t *testing.T, dir string, now time.Time) (*limitsRig, *bytes.Buffer) {
	t.Helper()
	r := newLimitsRig(t, limitsZone, "[site.big]\nmx = [\".big-host.example\"]\n")
	r.clock = now
	var log bytes.Buffer
	r.remember(dir, slog.New(slog.NewTextHandler(&log, nil)))
	return r, &log
}

// TestOrdersAreKept: what an operator said is on disk when the command ends, and
// what was taken back is not.
func TestOrdersAreKept(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	change := func(r *limitsRig, what string, c api.SiteChange) {
		t.Helper()
		if done, err := r.Change(context.Background(), what, c); err != nil || !done.Changed || done.Unkept != "" {
			t.Fatalf("%s %+v: %+v, %v", what, c, done, err)
		}
	}
	r, log := restartedRig(t, dir, now)
	if log.Len() > 0 {
		t.Errorf("the first start: %s", log)
	}
	change(r, "suspend", api.SiteChange{Name: "tenant.example", Reason: "they asked", By: "joe"})
	change(r, "suspend", api.SiteChange{Level: "provider", Name: "google", For: 3600, Reason: "bad day"})
	change(r, "limit", api.SiteChange{Level: "group", Name: "big", For: 7200, SiteBounds: api.SiteBounds{Connections: "2", MessageRate: "none", ConnectionRate: "3/min"}})
	change(r, "suspend", api.SiteChange{Level: "address", Name: "192.0.2.1", For: 1})
	held := r.Held()

	// Nobody has ended the daemon in order.
	r, log = restartedRig(t, dir, now.Add(time.Minute))
	got := r.Held()
	if len(got) != 3 || got[0] != held[0] || got[1] != held[1] || got[2] != held[2] || !strings.Contains(log.String(), "orders=3") {
		t.Errorf("%+v\n%+v\n%s", held, got, log)
	}
	if e := r.explain("tenant.example"); e.Binding == nil || e.Binding.What != "suspended" || e.Binding.Why != "they asked, by joe" || e.Held[0].Since != "2026-11-01T12:00:00Z" {
		t.Errorf("%+v", e)
	}
	change(r, "resume", api.SiteChange{Name: "tenant.example"})
	r, _ = restartedRig(t, dir, now.Add(2*time.Hour))
	if got := r.Held(); len(got) != 0 {
		t.Errorf("after the end: %+v", got)
	}
	if leftover, err := filepath.Glob(filepath.Join(dir, "limits", "*.new")); err != nil || len(leftover) > 0 {
		t.Errorf("%q, %v", leftover, err)
	}
}

// TestOrdersHoldWithoutDisk: a suspension must not need room on a disk.
func TestOrdersHoldWithoutDisk(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "limits"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, log := restartedRig(t, dir, time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC))
	done, err := r.Change(context.Background(), "suspend", api.SiteChange{Name: "tenant.example"})
	if err != nil || !done.Changed || !strings.Contains(done.Unkept, "not a directory") || len(r.Held()) != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	r.keepLearned()
	r.keepLearned()
	if n := strings.Count(log.String(), "cannot be written"); n != 1 {
		t.Errorf("it was logged %d times: %s", n, log)
	}
	// With a disk again, it is kept without another word.
	if err := errors.Join(os.Remove(filepath.Join(dir, "limits")), os.Mkdir(filepath.Join(dir, "limits"), 0o700)); err != nil {
		t.Fatal(err)
	}
	r.keepLearned()
	if r, _ := restartedRig(t, dir, r.clock); len(r.Held()) != 1 {
		t.Errorf("after a restart: %+v", r.Held())
	}
}

// TestDamagedLimits: whatever lies there, the daemon starts, says so, and what can be
// understood of an operator's words counts.
func TestDamagedLimits(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	r, _ := restartedRig(t, dir, now)
	for _, name := range []string{"tenant.example", "one.example", "big.example"} {
		if _, err := r.Change(context.Background(), "suspend", api.SiteChange{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	orders, learned := filepath.Join(dir, "limits", ordersFile), filepath.Join(dir, "limits", learnFile)
	whole, err := os.ReadFile(orders)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		text []byte
		left int
	}{
		{"empty", nil, 0},
		{"cut", whole[:len(whole)-90], 2},
		{"another thing", []byte("hello"), 0},
		{"one line", bytes.Replace(whole, []byte(`{"held"`), []byte("\x00\xff"), 1), 2},
	} {
		if err := os.WriteFile(orders, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		r, log := restartedRig(t, dir, now.Add(time.Minute))
		if n := len(r.Held()); n != c.left || !strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("%s: %d are left\n%s", c.name, n, log)
		}
		if b, err := os.ReadFile(orders + damagedSuffix); err != nil || !bytes.Equal(b, c.text) {
			t.Errorf("%s: set aside is %q, %v", c.name, b, err)
		}
		if err := os.WriteFile(learned, whole[:min(len(whole), 70)], 0o600); err != nil {
			t.Fatal(err)
		}
		r, log = restartedRig(t, dir, now.Add(time.Minute))
		if n := len(r.Held()); n != c.left {
			t.Errorf("%s: %d are left of %d after another restart", c.name, n, c.left)
		}
		if len(r.List("", 10)) != 0 || !strings.Contains(log.String(), "found out anew") {
			t.Errorf("%s: %s", c.name, log)
		}
	}
}

// TestLearnedIsKept: what servers have answered counts after a restart, and what an
// operator has taken back or forgotten does not come back.
func TestLearnedIsKept(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	blocked := func(r *limitsRig, domain string) {
		t.Helper()
		name, err := r.locate(context.Background(), domain)
		if err != nil {
			t.Fatal(err)
		}
		k, err := r.Open(name, "", false)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.At(netip.MustParseAddr("192.0.2.25")); err != nil {
			t.Fatal(err)
		}
		k.Said(wire.Reply{Code: 421, Text: "4.7.0 [TSS04] Messages temporarily deferred due to user complaints"}, false)
		k.Close()
	}
	r, _ := restartedRig(t, dir, now)
	blocked(r, "gmail.example")
	blocked(r, "one.example")
	blocked(r, "big.example")
	r.start()
	r.close() // as the daemon ends

	r, log := restartedRig(t, dir, now.Add(time.Minute))
	list := r.List("", 10)
	if len(list) != 3 || !strings.Contains(log.String(), "sites=3") {
		t.Fatalf("%+v\n%s", list, log)
	}
	e := r.explain("gmail.example")
	if list[0].Provider != "google" || e.Binding == nil || e.Binding.Until != "2026-11-01T14:00:00Z" || !strings.Contains(e.Binding.Why, "TSS04") || len(e.Control.Moves) != 1 {
		t.Errorf("%+v, %+v", list, e)
	}
	if done, err := r.Change(context.Background(), "resume", api.SiteChange{Name: "one.example"}); err != nil || !done.Changed {
		t.Errorf("%+v, %v", done, err)
	}
	if done, err := r.Change(context.Background(), "forget", api.SiteChange{Name: "big.example"}); err != nil || !done.Changed || done.Forgotten.Learned != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	r, _ = restartedRig(t, dir, now.Add(2*time.Minute)) // after a crash
	if list := r.List("", 10); len(list) != 1 || list[0].Provider != "google" {
		t.Errorf("%+v", list)
	}
	r, _ = restartedRig(t, dir, now.Add(10*time.Hour))
	if list := r.List("", 10); len(list) != 0 {
		t.Errorf("ten hours later: %+v", list)
	}
}
