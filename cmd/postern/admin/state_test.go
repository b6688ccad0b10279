package admin

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/state"
)

// What a filter remembers, through the door: more than one answer holds.
func TestState(t *testing.T) {
	store, err := state.Open(state.Options{Dir: "/state", FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var log lockedBuffer
	r := newRig(t, func(d *Daemon) {
		d.Log = slog.New(slog.NewTextHandler(&log, nil))
		d.State = func(filter string) Space {
			if filter == "greylist" {
				return store.Space(filter)
			}
			return nil
		}
	})
	ctx := context.Background()
	s := r.client.State("greylist", "root\n")
	for i := range 2*statePage + 10 {
		if err := store.Space("greylist").Put(ctx, fmt.Sprintf("k\x00\xff%04d", i), []byte("v"), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(ctx, "other", []byte("\x00\xff"), time.Minute); err != nil {
		t.Fatal(err)
	}
	if v, ok, err := s.Get(ctx, "other"); string(v) != "\x00\xff" || !ok || err != nil {
		t.Errorf("%q %v %v", v, ok, err)
	}
	if _, ok, err := s.Get(ctx, "another"); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	scan := func(prefix, from string, most int) (keys []string) {
		t.Helper()
		if err := s.Scan(ctx, prefix, from, func(e state.Entry) bool {
			keys = append(keys, e.Key)
			return len(keys) < most
		}); err != nil {
			t.Fatal(err)
		}
		return keys
	}
	all := scan("k\x00", "", 1<<20)
	if len(all) != 2*statePage+10 || all[statePage] != "k\x00\xff1000" {
		t.Fatalf("%d keys", len(all))
	}
	if keys := scan("", all[5], 3); len(keys) != 3 || keys[0] != all[6] {
		t.Errorf("%q", keys)
	}
	if err := s.DeleteAll(ctx, all); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "no such key"); err != nil {
		t.Fatal(err)
	}
	if keys := scan("", "", 1<<20); len(keys) != 1 || keys[0] != "other" {
		t.Errorf("%q", keys)
	}
	for what, err := range map[string]error{
		"not found": r.client.State("tap", "").Delete(ctx, "k"),
		"lives for": s.Put(ctx, "k", nil, 0),
		"a key has": s.Put(ctx, "", nil, time.Hour),
	} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %s", err, what)
		}
	}
	if l := log.String(); !strings.Contains(l, "changed by hand") || !strings.Contains(l, "by=root") {
		t.Errorf("the log says %s", l)
	}
	closed := newRig(t, nil)
	if _, _, err := closed.client.State("greylist", "").Get(ctx, "k"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("without state: %v", err)
	}
}
