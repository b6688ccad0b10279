package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// newNextRig is a quarantine whose messages go on to a program, which runs script
// in the folder of the rig. Its filters are those of laterFilters.
func newNextRig(t *testing.T, script string) (r *quarantineRig, dir string) {
	t.Helper()
	dir = t.TempDir()
	next := filepath.Join(dir, "next")
	if err := os.WriteFile(next, []byte("#!/bin/sh\ncd "+dir+"\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r = newQuarantineRig(t, strings.Replace(laterFilters, `next = "queue"`, fmt.Sprintf("next = %q", next), 1))
	r.nextTime = time.Minute
	r.useChains()
	return r, dir
}

// useChains puts the configuration's chains into force.
func (r *quarantineRig) useChains() {
	r.t.Helper()
	chains, err := r.c.Chains(nil, 1)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.chains.Swap(pipeline.NewGeneration(1, chains...)); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.chains.Swap(nil) }) //nolint:errcheck // the test is over
}

func waitForFile(t *testing.T, path string) {
	t.Helper()
	for range 2000 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("there is no %s", path)
}

// TestQuarantineStops: a daemon that stops waits for what the next program has
// begun to take, and removes it; what it cannot wait for stays, and nothing is
// begun any more.
func TestQuarantineStops(t *testing.T) {
	for _, patient := range []bool{true, false} {
		t.Run(fmt.Sprint(patient), func(t *testing.T) {
			r, dir := newNextRig(t, "cat >/dev/null; : >begun; while [ ! -e go ]; do sleep 0.02; done; exit 0")
			r.add("fine", scanned())
			v := r.last()
			result := make(chan api.QuarantineResult, 1)
			go func() { result <- r.release(context.Background(), v, &api.QuarantineRelease{}) }()
			waitForFile(t, filepath.Join(dir, "begun"))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stopped := make(chan struct{})
			go func() { defer close(stopped); r.stop(ctx) }()
			if !patient {
				cancel()
			} else if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			<-stopped
			got := <-result
			ids, _ := r.there()
			if patient && (got.Gone != 2 || got.Error != "" || len(ids) != 0) || !patient && (got.Gone != 0 || got.Error == "" || len(ids) != 1) {
				t.Errorf("%+v; left %v", got, ids)
			}
			if late := r.release(t.Context(), v, &api.QuarantineRelease{}); !strings.Contains(late.Error, "stopping") {
				t.Errorf("%+v", late)
			}
			r.stop(ctx)
			(*quarantine)(nil).stop(ctx)
		})
	}
}

type fakeMarks struct{ handoff.Marks }

func (fakeMarks) Put(m message.Message, o pipeline.Origin) (message.Message, error) {
	h, err := m.Head().Edit(message.FieldEdit{Op: message.Add, Name: "X-Fake-Mark", Value: o.Standing})
	return m.WithHead(h), err
}

// TestQuarantineMarks: the next program gets a released message with its origin
// in it, like all mail of its entrance; else a stranger's would leave as ours.
func TestQuarantineMarks(t *testing.T) {
	r, dir := newNextRig(t, "cat >>taken")
	r.marks = func(l *config.Listen) (handoff.Marks, error) {
		if l == nil || l.Name != "queue" {
			return nil, errors.New("another entrance")
		}
		return fakeMarks{}, nil
	}
	for _, deliver := range []bool{false, true} {
		r.add("fine", scanned())
		if got := r.release(t.Context(), r.last(), &api.QuarantineRelease{Deliver: deliver}); got.Gone != 2 || got.Error != "" {
			t.Errorf("%+v", got)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "taken"))
	if err != nil || strings.Count(string(b), "X-Fake-Mark: external\n") != 2 || !strings.HasPrefix(string(b), "X-Fake-Mark: external\nX-Marked: yes\n") {
		t.Errorf("%q %v", b, err)
	}
	r.c.Quarantine.Summary = "pm@example.org"
	if err := r.summary(t.Context(), r.c, time.Time{}, r.clock); err != nil {
		t.Error(err)
	}
	r.add("fine", scanned())
	if err := r.summary(t.Context(), r.c, time.Time{}, r.clock); err != nil {
		t.Error(err)
	}
	if b, err = os.ReadFile(filepath.Join(dir, "taken")); err != nil || !strings.Contains(string(b), "X-Fake-Mark: local\nFrom: Postern") {
		t.Errorf("%q %v", b, err)
	}
}

// TestQuarantineTwice: what the next program has taken and what cannot be removed
// is told, because it would come twice.
func TestQuarantineTwice(t *testing.T) {
	r, dir := newNextRig(t, "cat >/dev/null; cat <&1 >>taken")
	id := r.add("some", scanned())
	r.store.Fail(func(b *store.Batch) error {
		if len(b.Puts) > 0 {
			return errors.New("disk full")
		}
		return nil
	})
	got := r.release(t.Context(), r.last(), &api.QuarantineRelease{})
	r.store.Fail(nil)
	if got.Gone != 1 || got.Error != "" || !strings.Contains(got.Warning, "disk full") || !strings.Contains(got.Warning, "released again it comes twice") {
		t.Errorf("%+v", got)
	}
	if ids, _ := r.there(); len(ids) != 1 || ids[0] != id {
		t.Errorf("left: %v", ids)
	}
	var b strings.Builder
	printResult(&b, &got, false)
	if !strings.Contains(b.String(), "1 of 2 recipients to "+dir+"/next\n    beware: it was taken by") {
		t.Error(b.String())
	}
}

// TestQuarantineOwed: what its sender must still be told of is not handed to
// another program: our queue alone can report it.
func TestQuarantineOwed(t *testing.T) {
	r, dir := newNextRig(t, "cat >taken")
	r.add("fine", scanned())
	v := r.last()
	failed := store.State{Status: store.Failed, Attempts: 1, Reply: reply.Make(550, reply.Enhanced{}, "no")}
	if err := r.store.Apply(t.Context(), &store.Batch{States: []store.SetState{{ID: v.ID, State: failed}}}, false); err != nil {
		t.Fatal(err)
	}
	if !r.elsewhere(v) {
		t.Error("it was to go to the program")
	}
	for _, order := range []api.QuarantineRelease{{}, {Deliver: true}, {From: "later"}, {Deliver: true, QueueSelect: api.QueueSelect{DryRun: true}}} {
		if got := r.release(t.Context(), r.last(), &order); got.Gone != 0 || !strings.Contains(got.Error, "postern queue release lets it go, and reports") {
			t.Errorf("%+v: %+v", order, got)
		}
	}
	if stale := r.release(t.Context(), v, &api.QuarantineRelease{Deliver: true}); stale.Error == "" {
		t.Errorf("%+v", stale)
	}
	if r.elsewhere(r.last()) {
		t.Error("postern queue release would refuse it")
	}
	if _, err := os.Stat(filepath.Join(dir, "taken")); err == nil {
		t.Error("the program ran")
	}
}

// TestQuarantineLeaving: what a filter holds as it leaves does not go through the
// chain of its entrance again, whatever stands there, and says what to do.
func TestQuarantineLeaving(t *testing.T) {
	r := newQuarantineRig(t, laterFilters)
	r.useChains()
	r.add("fine", scanned())
	v := r.last()
	tried := store.State{Status: store.Deferred, Attempts: 1, Due: r.clock, Reply: reply.Deferred}
	if err := r.store.Apply(t.Context(), &store.Batch{States: []store.SetState{{ID: v.ID, Recipient: 1, State: tried}, {ID: v.ID, State: store.State{Status: store.Delivered, Attempts: 1}}}}, false); err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		got := r.release(t.Context(), r.last(), &api.QuarantineRelease{QueueSelect: api.QueueSelect{DryRun: dry}})
		if got.Gone != 0 || !strings.Contains(got.Error, "--deliver has it leave again") {
			t.Errorf("%+v", got)
		}
	}
	got := r.release(t.Context(), r.last(), &api.QuarantineRelease{Deliver: true})
	last := r.last()
	if got.Gone != 1 || got.Error != "" || last.Hold != nil || len(last.Recipients) != 1 || last.Recipients[0].Address != "ann@demo.example" || strings.Contains(last.Head, "X-Marked") {
		t.Errorf("%+v: %+v", got, last)
	}
}
