package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/store"
)

// quarantineRig is a quarantine with a clock of its own, whose queue delivers
// nothing.
type quarantineRig struct {
	*quarantine
	t     *testing.T
	c     *config.Config
	store *queuetest.Memory
	clock time.Time
}

func newQuarantineRig(t *testing.T, text string) *quarantineRig {
	t.Helper()
	dir := t.TempDir()
	o := loadOptions(quietEnv())
	o.LookupUser = func(string) (uint32, error) { return 1000, nil }
	c, err := config.Parse(filepath.Join(dir, "postern.toml"), []byte("hostname = \"mx.example.org\"\ncontrol = \"\"\n"+text), o)
	if err != nil {
		t.Fatal(err)
	}
	memory := queuetest.NewMemory(nil)
	q, err := queue.Open(queue.Options{
		Store: memory, Log: slog.New(slog.DiscardHandler), Host: "mx.example.org", Route: func(a string) (string, string) { return "out", envelope.Domain(a) },
		Channels: []queue.Channel{{Name: "out", Exit: localExit{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close(t.Context()) }) //nolint:errcheck // it was never started
	r := &quarantineRig{t: t, c: c, store: memory, clock: time.Date(2026, 11, 22, 15, 0, 0, 0, time.Local)}
	r.restart(filepath.Join(dir, "quarantine-summary"), q)
	return r
}

// restart leaves nothing but what is on disk.
func (r *quarantineRig) restart(memory string, q *queue.Queue) {
	r.quarantine = &quarantine{
		queue: q, config: func() *config.Config { return r.c }, chains: &pipeline.Generations{}, now: func() time.Time { return r.clock },
		log: slog.New(slog.DiscardHandler), memory: memory, busy: map[store.ID]context.CancelFunc{}, nextTime: 500 * time.Millisecond,
	}
}

// add puts a message with that hold into the queue.
func (r *quarantineRig) add(subject string, h *store.Hold) string {
	r.t.Helper()
	if h != nil {
		h.Since = r.clock
	}
	m := message.FromString("Subject: " + subject + "\n\nbody\n")
	origin, err := pipeline.Origin{Entrance: "queue", Standing: pipeline.Stranger.String(), Chain: "inbound", UID: -1}.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	ids, err := r.queue.Submit(r.t.Context(), []queue.Submission{{Envelope: envelope.To("a@b.example", "joe@demo.example", "ann@demo.example"), Message: m, Origin: origin, Hold: h}})
	if err != nil {
		r.t.Fatal(err)
	}
	return ids[0].String()
}

// there are the queue's messages but the summaries, and the summaries' texts.
func (r *quarantineRig) there() (ids, summaries []string) {
	r.t.Helper()
	views, err := r.queue.List(r.t.Context(), 0, 10_000, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, v := range views {
		if v.Envelope.Sender != envelope.DoubleBounce {
			ids = append(ids, v.ID.String())
			continue
		}
		m, err := r.queue.Content(v.ID)
		if err != nil || v.Hold != nil || len(v.Recipients) != 1 || v.Recipients[0].Address != "pm@example.org" {
			r.t.Fatalf("%+v %v", v, err)
		}
		summaries = append(summaries, string(m.Bytes()))
	}
	return ids, summaries
}

func scanned() *store.Hold { return &store.Hold{Filter: "scan", Reason: "a virus\n\x1b[31m"} }

// TestQuarantineRetention: what a filter holds goes when its time is over, and
// nothing else does.
func TestQuarantineRetention(t *testing.T) {
	r := newQuarantineRig(t, "[quarantine]\nretention = \"30d\"\n")
	old := r.add("old", scanned())
	kept := []string{r.add("operator's", &store.Hold{By: "root", Reason: "odd"}), r.add("undeliverable", &store.Hold{Reason: "nobody may be told"}), r.add("mail", nil)}
	r.clock = r.clock.Add(time.Hour)
	young := r.add("young", scanned())
	r.clock = r.clock.Add(30*24*time.Hour - time.Hour - time.Second)
	r.sweep(t.Context())
	if ids, _ := r.there(); len(ids) != 5 {
		t.Fatalf("too early: %v", ids)
	}
	r.clock = r.clock.Add(time.Second)
	r.sweep(t.Context())
	ids, summaries := r.there()
	if strings.Join(ids, " ") != strings.Join(append(kept, young), " ") || len(summaries) != 0 {
		t.Errorf("left: %v and %d more; %s was to go", ids, len(summaries), old)
	}
	r.c = newQuarantineRig(t, "[quarantine]\nretention = \"0s\"\n").c
	r.clock = r.clock.Add(10 * 365 * 24 * time.Hour)
	r.sweep(t.Context())
	if ids, _ := r.there(); len(ids) != 4 {
		t.Errorf("0 is for ever, and there are %v", ids)
	}
}

// TestQuarantineSummary: once a day, also across restarts, and only where there
// is something new; what strangers wrote is harmless in it.
func TestQuarantineSummary(t *testing.T) {
	r := newQuarantineRig(t, "[quarantine]\nsummary = \"pm@example.org\"\nsummary_hour = 7\n")
	look := func(want int) string {
		t.Helper()
		r.summarize(t.Context())
		_, all := r.there()
		if len(all) != want {
			t.Fatalf("%v: %d summaries, not %d", r.clock, len(all), want)
		}
		if want == 0 {
			return ""
		}
		return all[want-1]
	}
	id := r.add("evil\x1b[31m =?utf-8?q?x?=", scanned())
	r.add("spam", &store.Hold{Filter: "score", Reason: "10 points"})
	r.add("operator's", &store.Hold{By: "root", Reason: "odd"})
	look(0) // a daemon that starts in the afternoon waits for the hour
	r.clock = time.Date(2026, 11, 23, 6, 59, 59, 0, time.Local)
	look(0)
	r.clock = r.clock.Add(time.Second)
	text := look(1)
	for _, want := range []string{"To: <pm@example.org>\n", "Subject: quarantine on mx.example.org: 2 new, 2 in all\n", "Auto-Submitted: auto-generated\n", id, "Subject: evil?[31m =?utf-8?q?x?=", "a virus ?[31m", "       1  scan\n", "       1  score\n", "deleted after 30d", "from <a@b.example> to <joe@demo.example> and 1 more"} {
		if !strings.Contains(text, want) {
			t.Errorf("the summary lacks %q:\n%s", want, text)
		}
	}
	for _, c := range text {
		if c != '\n' && (c < 0x20 || c > 0x7e) {
			t.Fatalf("the summary holds %q", c)
		}
	}
	r.clock = r.clock.Add(time.Minute)
	look(1)
	r.add("another", scanned())
	r.restart(r.memory, r.queue)
	r.clock = r.clock.Add(10 * time.Hour)
	look(1)
	r.clock = time.Date(2026, 11, 24, 9, 0, 0, 0, time.Local)
	if text = look(2); !strings.Contains(text, "1 new, 3 in all") || strings.Contains(text, id) {
		t.Errorf("the second summary:\n%s", text)
	}
	for range 3 { // nothing new, no mail
		r.clock = r.clock.AddDate(0, 0, 1)
		look(2)
	}
	r.clock = r.clock.AddDate(0, -1, 0) // the clock goes back, and on from there
	look(2)
	r.clock = r.clock.AddDate(0, 2, 0)
	if text = look(3); !strings.Contains(text, "3 new, 3 in all") {
		t.Errorf("after the clock went back:\n%s", text)
	}
	r.clock = r.clock.Add(time.Second)
	for i := range maxListed + 50 {
		r.add(fmt.Sprint("many ", i), scanned())
	}
	r.clock = r.clock.AddDate(0, 0, 1)
	if text = look(4); !strings.Contains(text, "and 50 more: postern quarantine list") || strings.Count(text, "Subject: many") != maxListed {
		t.Errorf("a summary of %d bytes", len(text))
	}
	if origin, err := pipeline.DecodeOrigin(r.last().Origin); err != nil || origin.IsExternal() {
		t.Errorf("%+v %v", origin, err)
	}
}

// TestQuarantineSummaryLate: what was being stored while a summary was written is
// in the next one.
func TestQuarantineSummaryLate(t *testing.T) {
	r := newQuarantineRig(t, "[quarantine]\nsummary = \"pm@example.org\"\nsummary_hour = 7\n")
	r.summarize(t.Context())
	r.add("there", scanned())
	turn := time.Date(2026, 11, 23, 7, 0, 0, 0, time.Local)
	r.clock = turn
	r.summarize(t.Context())
	r.clock = turn.Add(-10 * time.Second)
	r.add("late", scanned())
	r.clock = turn.AddDate(0, 0, 1)
	r.summarize(t.Context())
	if _, all := r.there(); len(all) != 2 || !strings.Contains(all[1], ": 1 new, 2 in all") || !strings.Contains(all[1], "Subject: late") {
		t.Errorf("%q", all)
	}
}

// TestQuarantineSummaryAhead: a clock that was years ahead for a while does not
// silence the summary until then.
func TestQuarantineSummaryAhead(t *testing.T) {
	r := newQuarantineRig(t, "[quarantine]\nsummary = \"pm@example.org\"\nsummary_hour = 7\n")
	today := r.clock
	look := func(at time.Time, want int) {
		t.Helper()
		r.clock = at
		r.summarize(t.Context())
		if _, all := r.there(); len(all) != want {
			t.Fatalf("%v: %d summaries, not %d", at, len(all), want)
		}
	}
	look(today, 0)
	r.add("one", scanned())
	look(today.AddDate(10, 0, 0), 1)
	look(today, 1)
	r.clock = today.Add(time.Minute)
	r.add("two", scanned())
	look(today.AddDate(0, 0, 1), 2)
}

// last is the last message of the queue.
func (r *quarantineRig) last() *queue.View {
	r.t.Helper()
	views, err := r.queue.List(r.t.Context(), 0, 10_000, nil)
	if err != nil || len(views) == 0 {
		r.t.Fatal(err)
	}
	return views[len(views)-1]
}

// TestQuarantineDestination: a message goes on where its entrance's mail goes
// today.
func TestQuarantineDestination(t *testing.T) {
	next := "/bin/true"
	text := "[listen.queue]\nsocket = \"/run/q\"\nnext = \"" + next + "\"\nchain = \"in\"\nlocal = \"own\"\n[chain]\nin = []\nown = []\n"
	r := newQuarantineRig(t, text+"[listen.mx]\naddress = \":25\"\nchain = \"in\"\nnext = \"queue\"\n")
	for _, k := range []struct {
		o           pipeline.Origin
		chain, next string
	}{
		{pipeline.Origin{Entrance: "queue", Standing: "external", Chain: "x"}, "in", next},
		{pipeline.Origin{Entrance: "queue", Standing: "local", Chain: "x"}, "own", next},
		{pipeline.Origin{Entrance: "mx", Standing: "auth", Chain: "x"}, "in", ""},
		{pipeline.Origin{Entrance: "gone", Standing: "external", Chain: "x"}, "x", ""},
	} {
		if d := destinationOf(r.c, k.o); d.chain != k.chain || d.next != k.next {
			t.Errorf("%+v: chain %s, next %q", k.o, d.chain, d.next)
		}
	}
	r = newQuarantineRig(t, text)
	if d := destinationOf(r.c, pipeline.Origin{Entrance: "gone"}); d.next != next || d.entrance != "queue" {
		t.Errorf("%+v", d)
	}
	if mayHold(r.c) || wantsQueue(r.c) {
		t.Error("chains without filters hold nothing")
	}
}

// laterFilters judge by the subject what scan has held.
const laterFilters = `
[listen.queue]
socket = "/run/q"
next = "queue"
[chain]
inbound = ["scan", "mark", "later"]
[filter.scan]
kind = "rule"
rule = [{when = 'size == 0', action = "quarantine"}]
[filter.mark]
kind = "header"
rule = [{op = "add", name = "X-Marked", value = "yes"}]
[filter.later]
kind = "rule"
rule = [{when = 'header("Subject") == "reject"', action = "reject", reason = "no"},
  {when = 'header("Subject") == "defer"', action = "defer", reason = "not now"},
  {when = 'header("Subject") == "discard"', action = "discard", reason = "junk"},
  {when = 'header("Subject") == "hold"', action = "quarantine", reason = "odd"},
  {when = 'header("Subject") == "some" and "ann@demo.example" in recipients', each = true, action = "defer", reason = "not ann"}]
`

// TestQuarantineRelease: whatever a later filter says, nothing is lost, and what
// stays says why.
func TestQuarantineRelease(t *testing.T) {
	r := newQuarantineRig(t, laterFilters)
	chains, err := r.c.Chains(nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.chains.Swap(pipeline.NewGeneration(1, chains...)); err != nil {
		t.Fatal(err)
	}
	defer r.chains.Swap(nil) //nolint:errcheck // the test is over
	for _, k := range []struct {
		subject      string
		order        api.QuarantineRelease
		gone, as     int
		filter, says string // of what is still held
		marked       bool   // whether the message in the queue went through the filters
	}{
		{"fine", api.QuarantineRelease{}, 2, 1, "", "", true},
		{"reject", api.QuarantineRelease{}, 0, 0, "scan", "refused by later: no, when root released it; held first: a virus ?[31m", false},
		{"defer", api.QuarantineRelease{}, 0, 0, "scan", "put off by later: not now, when root", false},
		{"discard", api.QuarantineRelease{}, 0, 0, "scan", "discarded by later: junk, when root", false},
		{"hold", api.QuarantineRelease{}, 0, 1, "later", "odd", true},
		{"some", api.QuarantineRelease{}, 1, 2, "scan", "put off by later: not ann, when root", true},
		{"reject", api.QuarantineRelease{Deliver: true}, 2, 1, "", "", false},
		{"fine", api.QuarantineRelease{From: "later"}, 2, 1, "", "", false},
	} {
		t.Run(fmt.Sprint(k.subject, k.order.From, k.order.Deliver), func(t *testing.T) {
			r.t = t
			id := r.add(k.subject, scanned())
			v := r.last()
			k.order.By = "root"
			got := r.release(t.Context(), v, &k.order)
			if got.Gone != k.gone || got.Error != "" || len(got.As) != k.as || got.Recipients != 2 {
				t.Errorf("%+v", got)
			}
			ids, _ := r.there()
			if stays := slices.Contains(ids, id); stays != (k.as == 0) {
				t.Errorf("%v: as %v", ids, got.As)
			}
			recipients := 0
			for _, id := range append(slices.Clone(got.As), id) {
				recipients += r.examine(id, k.filter, k.says, k.marked)
			}
			if recipients != 2 {
				t.Errorf("%d recipients are left of 2", recipients)
			}
			// Once more it is held for the last reason, and the first one stays known.
			if k.as == 0 {
				again := r.release(t.Context(), r.last(), &k.order)
				if h := r.last().Hold; again.Gone != 0 || strings.Count(h.Reason, "held first: a virus") != 1 || !h.Since.Equal(v.Hold.Since) {
					t.Errorf("%+v: %+v", again, h)
				}
			}
			if stale := r.release(t.Context(), v, &k.order); stale.Error == "" || stale.Gone != 0 {
				t.Errorf("what is not there any more, or has changed, was released: %+v", stale)
			}
		})
	}
}

// examine looks at a message that a release left, and tells how many recipients
// it has; 0 if it is not there.
func (r *quarantineRig) examine(id, filter, says string, marked bool) int {
	r.t.Helper()
	n, err := store.ParseID(id)
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := r.queue.Show(n)
	if err != nil {
		return 0
	}
	if v.Hold != nil && (v.Hold.Filter != filter || !strings.Contains(v.Hold.Reason, says)) {
		r.t.Errorf("held: %+v", v.Hold)
	}
	if (v.Hold == nil || v.Hold.Filter != "scan") && marked != strings.Contains(v.Head, "X-Marked: yes") {
		r.t.Errorf("the head is %q", v.Head)
	}
	if o, err := pipeline.DecodeOrigin(v.Origin); err != nil || v.Hold == nil && !slices.ContainsFunc(o.Trace, func(e pipeline.Entry) bool { return strings.HasPrefix(e.Reason, "released by root") }) {
		r.t.Errorf("the trace says nothing of the release: %+v %v", o.Trace, err)
	}
	return len(v.Recipients)
}

// TestQuarantineProgram: the next program gets a message as qmail-queue does, and
// ends with all that it started when its time is over.
func TestQuarantineProgram(t *testing.T) {
	r := newQuarantineRig(t, "")
	dir := t.TempDir()
	run := func(script string) error {
		t.Helper()
		path := filepath.Join(dir, "next")
		if err := os.WriteFile(path, []byte("#!/bin/sh\ncd "+dir+"\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return r.hand(t.Context(), path, envelope.To("a@b", "c@d", "e@f"), message.FromString("Subject: x\n\nbody\n"))
	}
	t.Setenv("POSTERN_SECRET_OF_OURS", "yes")
	if err := run("cat >message; cat <&1 >envelope; env >env"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"message": "Subject: x\n\nbody\n", "envelope": "Fa@b\x00Tc@d\x00Te@f\x00\x00"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "env")); err != nil || strings.Contains(string(b), "SECRET") {
		t.Errorf("its environment: %s %v", b, err)
	}
	for script, want := range map[string]string{"exit 53": "exit 53", "kill -9 $$": "signal killed", "sleep 60 & echo $! >pid; wait": "no answer"} {
		if err := run(script); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", script, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	for range 400 {
		if ended(pid) {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Error("what it had started is still there")
}

const quarantineSMTP = `
[listen.mx]
address = "$AT_MX"
next = "queue"
tarpit = "1ms"
chain = "inbound"
[chain]
inbound = ["policy", "mark"]
[filter.policy]
kind = "rule"
rule = [{when = 'header("Subject") == "bad"', action = "quarantine", reason = "bad words"}]
[filter.mark]
kind = "header"
rule = [{op = "add", name = "X-Marked", value = "yes"}]
[mailbox]
"bob@example.org" = "$RUN/mail/bob"
`

// TestQuarantineSMTP: a stranger whose message is held hears 250, and it is
// delivered, as new, when it is released after a restart.
func TestQuarantineSMTP(t *testing.T) {
	g := newGateway(t)
	g.start(t, quarantineSMTP)
	c := g.hello(t, "mx", "")
	c.mail("a@example.net", "bob@example.org", "Subject: bad\r\n\r\nheld words\r\n", "250 ")
	c.mail("a@example.net", "bob@example.org", "Subject: good\r\n\r\nplain words\r\n", "250 ")
	g.arrived(t, "bob", 1)
	if list := g.postern(t, "queue", "list"); !strings.Contains(list, " quarantined ") {
		t.Error(list)
	}
	g.stop(t)
	g.start(t, quarantineSMTP)
	list := g.postern(t, "quarantine", "list", "--rule", `hold_filter == "policy" and standing == "external"`)
	if !strings.Contains(list, "bad words") || strings.Count(list, "\n") != 2 {
		t.Fatal(list)
	}
	if done := g.postern(t, "quarantine", "release", "--all"); !strings.Contains(done, "released: 1 message\n") {
		t.Error(done)
	}
	found := false
	for _, m := range g.arrived(t, "bob", 2) {
		found = found || strings.Contains(m, "held words") && strings.Contains(m, "X-Marked: yes")
	}
	if !found {
		t.Error("the released message did not go through the rest of the chain")
	}
	g.stop(t)
}
