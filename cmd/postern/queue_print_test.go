package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

// hostile holds what a terminal might obey: an escape, a line end, DEL, a
// control of ISO 6429 in UTF-8 and as a lone byte, and a mark of direction.
const hostile = "a\x1b[2J\r\n\x7f\u009b31m\x9b\u202eb\tä"

// queued are messages of every sort.
func queued() []api.QueueMessage {
	at := func(s int) string {
		return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC).Add(time.Duration(s) * time.Second).Format(time.RFC3339)
	}
	return []api.QueueMessage{
		{
			ID: "6h013h3s00000", Number: "7500000000000000001", Arrival: at(0), Age: 3*3600 + 125, Sender: "a@b.example", Size: 5 << 20, Form: "8bit",
			Total: 3, Left: 1, Counts: map[string]int{"deferred": 1, "delivered": 1, "failed": 1}, Bouncing: true, Next: at(4 * 3600),
			Recipients: []api.QueueRecipient{
				{Address: "one@c.example", Status: "delivered", Attempts: 1, Last: at(1), Reply: "250 ok", Where: "mx.c.example", Channel: "remote", Domain: "c.example"},
				{
					Address: "two@c.example", Status: "deferred", Attempts: 4, Last: at(3600), Next: at(4 * 3600), Reply: "451 4.7.1 later", Where: "mx.c.example",
					Channel: "remote", Domain: "c.example", Site: "mx.c.example", Lane: "news", Perhaps: true, Warned: true,
				},
				{Address: "three@here.example", Status: "failed", Attempts: 1, Last: at(2), Reply: "550 5.1.1 no such user", Where: "local", Channel: "local", Domain: "here.example"},
			},
			Origin: &api.Origin{
				Transaction: "t1", Entrance: "mx", Protocol: "smtp", Standing: "external", Peer: "192.0.2.7", PeerName: "a.example", Helo: "helo.example",
				UID: -1, Chain: "inbound", Generation: 7, Results: []api.AuthResult{{Method: "dkim", Result: "pass", Reason: "good", Props: []string{"header.d=a.example"}}},
				Trace: []api.TraceEntry{
					{Filter: "dnsbl", Stage: "connect", Action: "continue", Took: 1500},
					{Filter: "score", Stage: "message", Action: "quarantine", Reason: "looks odd", Shadow: true, Edits: []string{"add X-Score"}, Took: 20},
					{Filter: "tap", Stage: "message", Skipped: "when"},
				},
			},
			Head: "Received: from x\n\tby y\nDate: today\nSubject: hello\n there\n\n",
		},
		{
			ID: "6h013h3s00001", Number: "7500000000000000002", Arrival: at(0), Age: 59, Size: 512, Form: "7bit", Bounce: 1,
			Total: 1, Left: 1, Counts: map[string]int{"fresh": 1}, Next: at(0),
			Recipients: []api.QueueRecipient{{Address: "a@b.example", Status: "fresh", Channel: "remote", Domain: "b.example", Site: "b.example", InFlight: true, Next: at(0)}},
			Origin:     &api.Origin{UID: 12, Error: "origin: unexpected end"},
		},
		{
			ID: "6h013h3s00002", Number: "7500000000000000003", Arrival: at(0), Age: 86400*2 + 7200, Sender: hostile, Size: 2048, Form: hostile,
			Hold:  &api.QueueHold{Reason: hostile, By: hostile, Since: at(60)},
			Total: 1, Left: 1, Counts: map[string]int{"deferred": 1},
			Recipients: []api.QueueRecipient{{
				Address: hostile, Status: "deferred", Attempts: 1, Last: at(5), Reply: hostile, Where: hostile, Channel: hostile, Domain: hostile, Site: hostile, Lane: hostile, Reported: true,
			}},
			Origin: &api.Origin{
				Transaction: hostile, Entrance: hostile, Protocol: hostile, Standing: hostile, Peer: hostile, PeerName: hostile, Helo: hostile, User: hostile, UID: 3,
				Chain: hostile, Results: []api.AuthResult{{Method: hostile, Result: hostile, Reason: hostile, Props: []string{hostile}}},
				Trace: []api.TraceEntry{
					{Filter: hostile, Stage: hostile, Action: hostile, Reply: hostile, Reason: hostile, Edits: []string{hostile}},
					{Filter: hostile, Stage: hostile, Skipped: hostile},
					{Filter: hostile, Stage: hostile, Error: hostile},
				},
			},
			Head: "Subject: " + hostile + "\n" + hostile + "\n\n",
		},
	}
}

// TestQueueOutput holds everything that people and scripts read against
// testdata/queue. POSTERN_UPDATE=1 writes it anew.
func TestQueueOutput(t *testing.T) {
	all := queued()
	counts := api.QueueCounts{
		By: "sender", Messages: 12, Recipients: 1205, More: 3,
		Names: []api.QueueCount{{Name: "<" + hostile + ">", Messages: 11, Recipients: 1200}, {Name: "<>", Messages: 1, Recipients: 5}},
	}
	sites := api.QueueCounts{By: "site", Names: []api.QueueCount{{Name: "c.example", Recipients: 12}}}
	outputs := map[string]func(io.Writer) error{
		"list": func(w io.Writer) error {
			table := newQueueTable(w)
			for i := range all {
				if err := table.add(&all[i]); err != nil {
					return err
				}
			}
			return table.flush()
		},
		"show":         func(w io.Writer) error { return printMessage(w, &all[0], false) },
		"show-head":    func(w io.Writer) error { return printMessage(w, &all[0], true) },
		"show-report":  func(w io.Writer) error { return printMessage(w, &all[1], false) },
		"show-hostile": func(w io.Writer) error { return printMessage(w, &all[2], true) },
		"json":         func(w io.Writer) error { return printLine(w, &all[2]) },
		"json-show":    func(w io.Writer) error { return printIndented(w, &all[2]) },
		"count":        func(w io.Writer) error { return printCounts(w, &counts) },
		"count-site":   func(w io.Writer) error { return printCounts(w, &sites) },
		"sites": func(w io.Writer) error {
			return printSites(w, []api.Site{
				{Name: "mx.c.example", Domains: 2, Queued: 12, Due: 3, InFlight: 4, Held: 1, Connections: 2, Limit: 10, Allowed: 10, Living: true},
				{Name: "mx.c.example", Lane: "news", Domains: 1, Queued: 1, Limit: 10, Allowed: 2},
				{Name: hostile, Lane: hostile, Domains: 1, Queued: 1, Connections: 2, Limit: 10, Allowed: 2, Failures: 3},
				{Domains: 1, Limit: 10, Allowed: 2},
				{Name: "x", Suspended: "forever", Limit: 10, Allowed: 10},
			})
		},
		"changed": func(w io.Writer) error {
			return printChanged(w, &queueChanges[3], &api.QueueChanged{Messages: 12, Recipients: 15, DryRun: true, InFlight: 2, IDs: strings.Fields("1 2 3 4 5 6 7 8 9 10 11 12")})
		},
		"verify": func(w io.Writer) error {
			return printVerify(w, &api.Verify{Problems: []string{"a body without a message: " + hostile, "more"}, More: 1})
		},
		"qread": func(w io.Writer) error {
			for i := range all {
				if err := qread(w, &all[i]); err != nil {
					return err
				}
			}
			return nil
		},
	}
	for name, print := range outputs {
		var b bytes.Buffer
		if err := print(&b); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, c := range b.String() {
			if c != '\n' && c != '\t' && !unicode.IsPrint(c) || c == unicode.ReplacementChar && !strings.HasPrefix(name, "json") {
				t.Errorf("%s has %U", name, c)
			}
		}
		golden(t, filepath.Join("testdata", "queue", name+".golden"), b.Bytes())
	}
	if files, _ := filepath.Glob(filepath.Join("testdata", "queue", "*.golden")); len(files) != len(outputs) {
		t.Errorf("%d files for %d outputs", len(files), len(outputs))
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if os.Getenv("POSTERN_UPDATE") != "" {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestSpans(t *testing.T) {
	for in, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", time.Minute: "1m", 61 * time.Second: "1m1s", 3*time.Hour + 59*time.Second: "3h", 25 * time.Hour: "1d1h", 480 * time.Hour: "20d",
	} {
		if got := span(in); got != want {
			t.Errorf("%v is %s, not %s", in, got, want)
		}
	}
	for in, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1.0K", 5<<20 + 1: "5.0M", 3 << 30: "3.0G"} {
		if got := amount(in); got != want {
			t.Errorf("%d is %s, not %s", in, got, want)
		}
	}
}
