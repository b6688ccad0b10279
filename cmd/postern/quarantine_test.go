package main

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	q, err := queue.Open(queue.Options{
		Store: queuetest.NewMemory(nil), Log: slog.New(slog.DiscardHandler), Host: "mx.example.org", Route: func(a string) (string, string) { return "out", envelope.Domain(a) },
		Channels: []queue.Channel{{Name: "out", Exit: localExit{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close(t.Context()) }) //nolint:errcheck // it was never started
	r := &quarantineRig{t: t, c: c, clock: time.Date(2026, 11, 22, 15, 0, 0, 0, time.Local)}
	r.restart(filepath.Join(dir, "quarantine-summary"), q)
	return r
}

// restart leaves nothing but what is on disk.
func (r *quarantineRig) restart(memory string, q *queue.Queue) {
	r.quarantine = &quarantine{
		queue: q, config: func() *config.Config { return r.c }, chains: &pipeline.Generations{}, now: func() time.Time { return r.clock },
		log: slog.New(slog.DiscardHandler), memory: memory, busy: map[store.ID]bool{},
	}
}

// add puts a message with that hold into the queue.
func (r *quarantineRig) add(subject string, h *store.Hold) string {
	r.t.Helper()
	if h != nil {
		h.Since = r.clock
	}
	m := message.FromString("Subject: " + subject + "\n\nbody\n")
	ids, err := r.queue.Submit(r.t.Context(), []queue.Submission{{Envelope: envelope.To("a@b.example", "joe@demo.example", "ann@demo.example"), Message: m, Hold: h}})
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
	for i := range maxListed + 50 {
		r.add(fmt.Sprint("many ", i), scanned())
	}
	r.clock = r.clock.AddDate(0, 0, 1)
	if text = look(3); !strings.Contains(text, "and 50 more: postern quarantine list") || strings.Count(text, "Subject: many") != maxListed {
		t.Errorf("a summary of %d bytes", len(text))
	}
	if origin, err := pipeline.DecodeOrigin(r.last().Origin); err != nil || origin.IsExternal() {
		t.Errorf("%+v %v", origin, err)
	}
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
