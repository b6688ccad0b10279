package admin

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/store"
)

func TestNoQueue(t *testing.T) {
	r := newRig(t, func(d *Daemon) { d.Queue, d.Store, d.Meter = nil, nil, nil })
	ctx := context.Background()
	var errs []error
	_, err := r.client.Queue(ctx, QueueQuery{}, nil)
	errs = append(errs, err)
	_, err = r.client.QueueShow(ctx, store.ID(1).String())
	errs = append(errs, err)
	_, err = r.client.QueueCount(ctx, "status", "", 0)
	errs = append(errs, err)
	for _, op := range operations {
		_, err = r.client.QueueChange(ctx, op.name, api.QueueSelect{All: true})
		errs = append(errs, err)
	}
	_, err = r.client.QueueStats(ctx)
	errs = append(errs, err)
	_, err = r.client.QueueVerify(ctx)
	errs = append(errs, err)
	_, err = r.client.Sites(ctx)
	errs = append(errs, err)
	for i, err := range errs {
		if err == nil || !strings.Contains(err.Error(), "no queue of its own") {
			t.Errorf("request %d of a daemon without a queue: %v", i, err)
		}
	}
	families := r.families()
	if families["postern_info"] == nil {
		t.Error("a daemon without a queue has no metrics")
	}
	for name := range families {
		if strings.HasPrefix(name, "postern_queue_") || strings.HasPrefix(name, "postern_store_") {
			t.Errorf("a daemon without a queue tells %s", name)
		}
	}
}

func TestShow(t *testing.T) {
	r := newRig(t, nil)
	origin := pipeline.Origin{
		Transaction: "t1", Entrance: "mx", Protocol: "smtp", Standing: "external", Peer: "192.0.2.7", PeerName: "a.example", Helo: "helo.example",
		User: "joe", UID: -1, Chain: "inbound", Generation: 7, Received: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
		Results: []pipeline.AuthResult{{Method: "dkim", Result: "pass", Reason: "good", Props: []pipeline.Prop{{Name: "header.d", Value: "a.example"}}}},
		Trace: pipeline.Trace{{
			Filter: "score", Stage: "message", Action: "continue", Reply: "x", Reason: "why", Err: "e", Skipped: "off", Shadow: true, Recipients: 2,
			Edits: []string{"+ X-A"}, Took: 1500 * time.Microsecond,
		}},
	}
	b, err := origin.Encode()
	if err != nil {
		t.Fatal(err)
	}
	since := time.Date(2026, 3, 4, 5, 6, 8, 0, time.UTC)
	id := r.submit(queue.Submission{
		Envelope: envelope.To("a@b.example", "one@here.example", "two@C.example."), Origin: b,
		Hold: &store.Hold{Reason: "looks odd", Filter: "score", Since: since},
	}, "Subject: hello\nX: y\n\nbody\n")
	m, err := r.client.QueueShow(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := store.ParseID(id); err != nil || m.Number != fmt.Sprint(uint64(parsed)) || m.Arrival != stamp(parsed.Time()) || m.Age < 0 || m.Age > 60 {
		t.Errorf("%s has number %s, arrival %s, age %d", id, m.Number, m.Arrival, m.Age)
	}
	m.Number, m.Arrival, m.Age = "", "", 0
	want := api.QueueMessage{
		ID: id, Sender: "a@b.example", Size: int64(len("Subject: hello\nX: y\n\nbody\n")), Form: "7bit",
		Hold:  &api.QueueHold{Reason: "looks odd", Filter: "score", Since: "2026-03-04T05:06:08Z"},
		Total: 2, Left: 2, Counts: map[string]int{"fresh": 2},
		Recipients: []api.QueueRecipient{
			{Address: "one@here.example", Status: "fresh", Channel: "local", Domain: "here.example", Site: "here.example"},
			{Address: "two@C.example.", Status: "fresh", Channel: "remote", Domain: "c.example", Site: "c.example"},
		},
		Origin: &api.Origin{
			Transaction: "t1", Entrance: "mx", Protocol: "smtp", Standing: "external", Peer: "192.0.2.7", PeerName: "a.example", Helo: "helo.example",
			User: "joe", UID: -1, Chain: "inbound", Generation: 7, Received: "2026-03-04T05:06:07Z",
			Results: []api.AuthResult{{Method: "dkim", Result: "pass", Reason: "good", Props: []string{"header.d=a.example"}}},
			Trace: []api.TraceEntry{{
				Filter: "score", Stage: "message", Action: "continue", Reply: "x", Reason: "why", Error: "e", Skipped: "off", Shadow: true, Recipients: 2,
				Edits: []string{"+ X-A"}, Took: 1500,
			}},
		},
		Head: "Subject: hello\nX: y\n\n",
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got  %+v\nwant %+v", m, want)
	}
	parsed, _ := store.ParseID(id)
	if byNumber, err := r.client.QueueShow(context.Background(), fmt.Sprintf("#%d", uint64(parsed))); err != nil || byNumber.ID != id {
		t.Errorf("by number: %v, %v", byNumber.ID, err)
	}
	bad := r.submit(queue.Submission{Envelope: envelope.To("", "x@here.example"), Origin: []byte("{")}, "\n")
	if m, err := r.client.QueueShow(context.Background(), bad); err != nil || m.Origin == nil || m.Origin.Error == "" {
		t.Errorf("a damaged origin: %+v, %v", m.Origin, err)
	}
	if _, err := r.client.QueueShow(context.Background(), store.ID(1).String()); err == nil || !strings.Contains(err.Error(), store.ErrNotFound.Error()) {
		t.Errorf("a message that is not there: %v", err)
	}
	if _, err := r.client.QueueShow(context.Background(), "nonsense\x1b"); err == nil || !strings.Contains(err.Error(), `"nonsense?" is no message's id`) {
		t.Errorf("a bad id: %v", err)
	}
}

// TestDelivered follows messages through deliveries that succeed, fail and are
// put off.
func TestDelivered(t *testing.T) {
	r := newRig(t, nil)
	id := r.send("a@b.example", "ok@c.example", "later-perhaps@c.example", "later@d.example")
	r.queue.Start()
	r.wait("all were tried", func(s queue.Stats) bool { return s.Delivered == 1 && s.Deferred == 2 })
	m, err := r.client.QueueShow(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	if m.Left != 2 || m.Counts["delivered"] != 1 || m.Counts["deferred"] != 2 || m.Next == "" {
		t.Errorf("%+v", m)
	}
	for i, want := range []struct {
		status, reply string
		perhaps, next bool
	}{{"delivered", "250 ok", false, false}, {"deferred", "451 4.4.1 greylisted, come back", true, true}, {"deferred", "451 4.4.1 greylisted, come back", false, true}} {
		to := m.Recipients[i]
		if to.Status != want.status || to.Reply != want.reply && want.status != "delivered" || to.Perhaps != want.perhaps || (to.Next != "") != want.next || to.Attempts != 1 || to.Where != "mx.example" || to.Last == "" {
			t.Errorf("recipient %d: %+v", i, to)
		}
	}
	for rule, n := range map[string]int{
		`any(replies, # contains "greylisted")`: 1, `perhaps`: 1, `attempts == 1`: 1, `attempts > 1`: 0, `"deferred" in status`: 1, `"fresh" in status`: 0,
		`len(waiting) == 2 and len(recipients) == 3`: 1, `any(servers, # == "mx.example")`: 1, `age > duration("1h")`: 0,
	} {
		if all, _ := r.list(QueueQuery{Match: rule}); len(all) != n {
			t.Errorf("%s chooses %d, not %d", rule, len(all), n)
		}
	}
	sites, err := r.client.Sites(context.Background())
	if err != nil || len(sites) != 2 || sites[0].Name != "c.example" || !sites[0].Living || sites[0].Queued != 1 || sites[0].NextDue == "" || sites[0].Limit == 0 || sites[0].Succeeded == "" {
		t.Errorf("%+v, %v", sites, err)
	}
	if c, err := r.client.QueueChange(context.Background(), "retry", api.QueueSelect{IDs: []string{id}}); err != nil || c.Messages != 1 || c.Recipients != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	r.wait("they were tried again", func(s queue.Stats) bool { return s.Deferred == 4 })
}

func TestList(t *testing.T) {
	r := newRig(t, nil)
	var all []string
	for i := range 25 {
		all = append(all, r.send("a@b.example", fmt.Sprintf("u%d@c%d.example", i, i%2)))
	}
	got, rest := r.list(QueueQuery{})
	if !slices.Equal(ids(got), all) || rest.Next != "" {
		t.Errorf("all: %v, rest %+v", ids(got), rest)
	}
	if len(got[0].Recipients) != 1 || got[0].Recipients[0].Site != "c0.example" || got[0].Origin != nil || got[0].Head != "" {
		t.Errorf("%+v", got[0])
	}
	got, rest = r.list(QueueQuery{Max: 10, Recipients: 1})
	if !slices.Equal(ids(got), all[:10]) || rest.Next != all[10] || len(got[0].Recipients) != 1 {
		t.Errorf("the first ten: %v, rest %+v", ids(got), rest)
	}
	if got, rest = r.list(QueueQuery{From: rest.Next, Max: 100}); !slices.Equal(ids(got), all[10:]) || rest.Next != "" {
		t.Errorf("from there on: %v, rest %+v", ids(got), rest)
	}
	if got, _ = r.list(QueueQuery{Match: `any(domains, # == "c1.example")`, Max: 3}); !slices.Equal(ids(got), []string{all[1], all[3], all[5]}) {
		t.Errorf("by rule: %v", ids(got))
	}
	stop := errors.New("stop")
	if _, err := r.client.Queue(context.Background(), QueueQuery{}, func(*api.QueueMessage) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the caller's error: %v", err)
	}
	for rule, want := range map[string]string{
		`sendr == ""`:            `rule: column 1: unknown fact "sendr", did you mean "sender"?`,
		`size > 1 and ("a"`:      "rule: column ",
		strings.Repeat("x", 5e3): "rule: ",
	} {
		_, err := r.client.Queue(context.Background(), QueueQuery{Match: rule}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20s: %v", rule, err)
		}
	}
	if got, rest = r.list(QueueQuery{Match: `1 % len(user) == 0`}); len(got) != 0 || rest.Undecided != 25 || rest.Why == "" {
		t.Errorf("a rule without an answer: %v, %+v", ids(got), rest)
	}
}

// TestManyRecipients proves that a message with more recipients than a page
// holds comes whole, and that the messages around it do.
func TestManyRecipients(t *testing.T) {
	r := newRig(t, nil)
	var to []string
	for i := range 2*api.MaxPageRecipients + 7 {
		to = append(to, fmt.Sprintf("u%d@c.example", i))
	}
	all := []string{r.send("a@b.example", "x@c.example"), r.send("a@b.example", to...), r.send("a@b.example", to[:10]...), r.send("a@b.example", "y@c.example")}
	whole := func(m api.QueueMessage) []string {
		var got []string
		for _, r := range m.Recipients {
			got = append(got, r.Address)
		}
		return got
	}
	got, _ := r.list(QueueQuery{})
	if !slices.Equal(ids(got), all) || !slices.Equal(whole(got[1]), to) || !slices.Equal(whole(got[2]), to[:10]) {
		t.Errorf("%v with %d and %d recipients", ids(got), len(got[1].Recipients), len(got[2].Recipients))
	}
	if got, rest := r.list(QueueQuery{Max: 2}); !slices.Equal(ids(got), all[:2]) || rest.Next != all[2] || !slices.Equal(whole(got[1]), to) {
		t.Errorf("%v, %+v", ids(got), rest)
	}
	if got, rest := r.list(QueueQuery{Recipients: 2}); !slices.Equal(ids(got), all) || rest.Next != "" || !slices.Equal(whole(got[1]), to[:2]) || got[1].Total != len(to) {
		t.Errorf("two of each: %v, %+v", ids(got), rest)
	}
	if s, err := r.client.QueueStats(context.Background()); err != nil || s.Messages != 4 || s.Queued != len(to)+12 || s.Oldest == "" {
		t.Errorf("%+v, %v", s, err)
	}
	m, err := r.client.QueueShow(context.Background(), all[1])
	if err != nil || !slices.Equal(whole(m), to) || m.Head == "" {
		t.Errorf("%d recipients, %v", len(m.Recipients), err)
	}
}

func TestCount(t *testing.T) {
	r := newRig(t, nil)
	r.send("a@b.example", "1@c.example", "2@c.example", "3@here.example")
	r.send("", "1@d.example")
	r.submit(queue.Submission{Envelope: envelope.To("z@b.example", "4@c.example"), Hold: &store.Hold{Filter: "clamav"}}, "\n")
	names := func(all ...any) (list []api.QueueCount) {
		for c := range slices.Chunk(all, 3) {
			list = append(list, api.QueueCount{Name: c[0].(string), Messages: c[1].(int), Recipients: c[2].(int)})
		}
		return list
	}
	for _, c := range []struct {
		by, match string
		most      int
		want      api.QueueCounts
	}{
		{"status", "", 0, api.QueueCounts{Messages: 3, Recipients: 5, Names: names("fresh", 3, 5)}},
		{"domain", "", 0, api.QueueCounts{Messages: 3, Recipients: 5, Names: names("c.example", 2, 3, "d.example", 1, 1, "here.example", 1, 1)}},
		{"domain", "", 1, api.QueueCounts{Messages: 3, Recipients: 5, More: 2, Names: names("c.example", 2, 3)}},
		{"domain", `not held`, 0, api.QueueCounts{Messages: 2, Recipients: 4, Names: names("c.example", 1, 2, "d.example", 1, 1, "here.example", 1, 1)}},
		{"channel", "", 0, api.QueueCounts{Messages: 3, Recipients: 5, Names: names("remote", 3, 4, "local", 1, 1)}},
		{"sender", "", 0, api.QueueCounts{Messages: 3, Recipients: 5, Names: names("<a@b.example>", 1, 3, "<>", 1, 1, "<z@b.example>", 1, 1)}},
		{"hold", "", 0, api.QueueCounts{Messages: 1, Recipients: 1, Names: names("filter clamav", 1, 1)}},
		{"site", "", 0, api.QueueCounts{Names: names("c.example", 0, 3, "d.example", 0, 1, "here.example", 0, 1)}},
		{"site", `held`, 0, api.QueueCounts{Messages: 1, Recipients: 1, Names: names("c.example", 1, 1)}},
		{"site", `not held`, 1, api.QueueCounts{Messages: 2, Recipients: 4, More: 2, Names: names("c.example", 1, 2)}},
	} {
		c.want.By = c.by
		if got, err := r.client.QueueCount(context.Background(), c.by, c.match, c.most); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s %s: %+v, %v", c.by, c.match, got, err)
		}
	}
	const want = "can be counted by status, domain, site, sender, channel, hold; not"
	if _, err := r.client.QueueCount(context.Background(), "colour", "held", 0); err == nil || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
}

// TestLanes shows a site for each lane, and counts it as one.
func TestLanes(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	r.send("a@b.example", "1@c.example", "2@here.example")
	id := r.send("news@lane.example", "1@c.example", "2@c.example", "3@here.example")
	r.send("bulk@lane.example", "1@d.example")
	row := func(all []api.Site) (names []string) {
		for _, s := range all {
			names = append(names, fmt.Sprintf("%s/%s/%d", s.Name, s.Lane, s.Queued))
		}
		return names
	}
	sites, err := r.client.Sites(ctx)
	if want := []string{"c.example//1", "c.example/news/2", "d.example/bulk/1", "here.example//2"}; err != nil || !slices.Equal(row(sites), want) {
		t.Errorf("%q, %v", row(sites), err)
	}
	var page []api.Site
	if err := r.client.call(ctx, "GET", "/v1/sites?max=1", nil, &page); err != nil || !slices.Equal(row(page), []string{"c.example//1", "c.example/news/2"}) {
		t.Errorf("a page parts a site: %q, %v", row(page), err)
	}
	for _, match := range []string{"", "true"} {
		c, err := r.client.QueueCount(ctx, "site", match, 0)
		if err != nil || len(c.Names) != 3 || c.Names[0].Name != "c.example" || c.Names[0].Recipients != 3 {
			t.Errorf("match %q: %+v, %v", match, c, err)
		}
	}
	m, err := r.client.QueueShow(ctx, id)
	if err != nil || m.Recipients[1].Site != "c.example" || m.Recipients[1].Lane != "news" || m.Recipients[2].Lane != "" {
		t.Errorf("%+v, %v", m.Recipients, err)
	}
}

// TestReleaseQuarantined: what a filter holds is let go by its ID alone: neither
// all nor a rule means it.
func TestReleaseQuarantined(t *testing.T) {
	r := newRig(t, nil)
	virus := r.submit(queue.Submission{Envelope: envelope.To("z@b.example", "4@c.example"), Hold: &store.Hold{Filter: "clamav", Reason: "a virus"}}, "\n")
	r.submit(queue.Submission{Envelope: envelope.To("z@b.example", "4@c.example"), Hold: &store.Hold{By: "joe", Reason: "odd"}}, "\n")
	for _, k := range []struct {
		s    api.QueueSelect
		want int
	}{
		{api.QueueSelect{All: true, DryRun: true}, 1},
		{api.QueueSelect{Match: "held"}, 1},
		{api.QueueSelect{All: true}, 0},
		{api.QueueSelect{Match: `hold_filter == "clamav"`}, 0},
		{api.QueueSelect{IDs: []string{virus}, Match: `hold_filter == "none"`}, 0},
		{api.QueueSelect{IDs: []string{virus}, Match: `hold_filter == "clamav"`, DryRun: true}, 1},
		{api.QueueSelect{IDs: []string{virus}}, 1},
	} {
		if got, err := r.client.QueueChange(context.Background(), "release", k.s); err != nil || got.Messages != k.want {
			t.Errorf("%+v: %+v %v", k.s, got, err)
		}
	}
}

func TestChange(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	a, b, c := r.send("a@x.example", "1@c.example"), r.send("b@x.example", "2@c.example", "3@d.example"), r.send("c@y.example", "4@c.example")
	change := func(op string, s api.QueueSelect, want api.QueueChanged) {
		t.Helper()
		if got, err := r.client.QueueChange(ctx, op, s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", op, got, err, want)
		}
	}
	for _, op := range operations {
		for want, s := range map[string]api.QueueSelect{
			"no message is selected":  {},
			"goes neither with":       {All: true, IDs: []string{a}},
			"is no message's id":      {IDs: []string{"x"}},
			`unknown fact "from"`:     {Match: `from == ""`},
			"goes neither with ids n": {All: true, Match: "held"},
		} {
			if _, err := r.client.QueueChange(ctx, op.name, s); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %+v: %v", op.name, s, err)
			}
		}
	}
	change("hold", api.QueueSelect{Match: `sender_domain == "x.example"`, DryRun: true, By: "joe"}, api.QueueChanged{Messages: 2, Recipients: 3, DryRun: true, IDs: []string{a, b}})
	if held, _ := r.list(QueueQuery{Match: "held"}); len(held) != 0 {
		t.Errorf("a dry run held %v", ids(held))
	}
	change("hold", api.QueueSelect{Match: `sender_domain == "x.example"`, By: "joe\x1b\n", Reason: "waiting for\nthe \x1b[31mfix"}, api.QueueChanged{Messages: 2, Recipients: 3, IDs: []string{a, b}})
	held, _ := r.list(QueueQuery{Match: `held and hold_by == "joe?" and hold_reason startsWith "waiting" and hold_filter == ""`})
	if !slices.Equal(ids(held), []string{a, b}) || held[0].Hold.Reason != "waiting for the ?[31mfix" || held[0].Hold.Since == "" || held[0].Next != "" {
		t.Errorf("%+v", held)
	}
	none := store.ID(5).String()
	change("hold", api.QueueSelect{IDs: []string{c, a, none, c}}, api.QueueChanged{Messages: 1, Recipients: 1, IDs: []string{c}, Missing: []string{none, a}})
	change("release", api.QueueSelect{IDs: []string{a, c}, Match: `sender == "c@y.example"`}, api.QueueChanged{Messages: 1, Recipients: 1, IDs: []string{c}})
	change("delete", api.QueueSelect{Match: `1 % len(user) == 0`}, api.QueueChanged{Undecided: 3, Why: a + `: rule "1 % len(user) == 0": runtime error: integer divide by zero`})
	change("release", api.QueueSelect{All: true}, api.QueueChanged{Messages: 2, Recipients: 3, IDs: []string{a, b}})
	change("delete", api.QueueSelect{IDs: []string{b}, By: "joe"}, api.QueueChanged{Messages: 1, Recipients: 2, IDs: []string{b}})
	if all, _ := r.list(QueueQuery{}); !slices.Equal(ids(all), []string{a, c}) {
		t.Errorf("left: %v", ids(all))
	}
	change("delete", api.QueueSelect{All: true}, api.QueueChanged{Messages: 2, Recipients: 2, IDs: []string{a, c}})
	if !strings.Contains(r.log.String(), "msg=deleted id="+b+" by=joe") || !strings.Contains(r.log.String(), "by=unknown") {
		t.Errorf("the log does not say who: %s", r.log)
	}
}

func TestVerify(t *testing.T) {
	disk := queuetest.NewMemory(nil)
	r := newRigOn(t, disk, nil)
	r.send("a@b.example", "1@c.example", "2@c.example")
	if v, err := r.client.QueueVerify(context.Background()); err != nil || len(v.Problems) != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	// What is put behind the queue's back is not in its schedule.
	put := store.Message{ID: disk.NewID(), Envelope: envelope.To("a@b.example", "3@c.example")}
	put.Body.Of = put.ID
	if err := disk.Apply(context.Background(), &store.Batch{Puts: []store.Put{{Message: put, Body: message.BytesBody(nil)}}}, false); err != nil {
		t.Fatal(err)
	}
	if v, err := r.client.QueueVerify(context.Background()); err != nil || len(v.Problems) != 1 || !strings.Contains(v.Problems[0], put.ID.String()) {
		t.Errorf("%+v, %v", v, err)
	}
	for i := range api.MaxProblems + 3 {
		r.store.problems = append(r.store.problems, fmt.Sprintf("problem %d", i))
	}
	if v, err := r.client.QueueVerify(context.Background()); err != nil || len(v.Problems) != api.MaxProblems || v.More != 4 || v.Problems[1] != "problem 1" {
		t.Errorf("%d and %d, %v", len(v.Problems), v.More, err)
	}
	r.store.err = errors.New("disk on fire")
	if _, err := r.client.QueueVerify(context.Background()); err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Error(err)
	}
}

// TestFacts matches each fact of the schema, so that none is without a test.
func TestFacts(t *testing.T) {
	origin, err := pipeline.Origin{Entrance: "mx", Standing: "auth", Peer: "192.0.2.7", Helo: "h.example", User: "joe", UID: 7}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	id := store.FirstID(now.Add(-2 * time.Hour))
	v := &queue.View{
		ID: id, Arrival: id.Time(), Envelope: envelope.To("Me@B.Example", "1@c.example", "2@here.example"), Head: "Subject: =?x\nReceived: 1\nReceived: 2\n\n", Size: 2048,
		Origin: origin, Bounce: 1, Hold: &store.Hold{Reason: "odd", Filter: "f", By: "ann"},
		Recipients: []queue.Recipient{
			{Address: "1@c.example", Channel: "remote", Domain: "c.example", State: store.State{
				Status: store.Deferred, Attempts: 3, Reply: reply.Make(451, reply.Enhanced{Subject: 4, Detail: 1}, "later"), Where: "mx.c.example", Perhaps: true,
			}},
			{Address: "2@here.example", Channel: "local", Domain: "here.example", State: store.State{Status: store.Delivered, Attempts: 1}},
		},
	}
	tests := map[string]string{
		"id": `id == "` + id.String() + `"`, "sender": `sender == "Me@B.Example"`, "sender_domain": `sender_domain == "b.example"`,
		"recipients": `len(recipients) == 2 and "2@here.example" in recipients`, "waiting": `len(waiting) == 1 and "1@c.example" in waiting`,
		"domains": `"c.example" in domains`, "channels": `"local" in channels`, "status": `"deferred" in status and "delivered" in status`,
		"replies": `any(replies, # == "451 4.4.1 later") and len(replies) == 1`, "servers": `"mx.c.example" in servers`, "size": `size == 2 * KB`,
		"age": `age >= duration("2h") and age < duration("2h1m")`, "attempts": `attempts == 3`, "perhaps": `perhaps`, "held": `held`,
		"hold_reason": `hold_reason == "odd"`, "hold_filter": `hold_filter == "f"`, "hold_by": `hold_by == "ann"`, "bounce": `bounce == 1`,
		"entrance": `entrance == "mx"`, "standing": `standing == "auth"`, "user": `user == "joe"`, "uid": `uid == 7`,
		"peer": `cidr(peer, "192.0.2.0/24")`, "helo": `helo == "h.example"`, "header": `header("subject") == "=?x"`, "headers": `len(headers("Received")) == 2`,
	}
	for _, f := range QueueFacts().Facts() {
		rule, ok := tests[f.Name]
		if !ok {
			t.Errorf("no test of the fact %s", f.Name)
			continue
		}
		m, err := newMatcher(rule, now)
		if err != nil {
			t.Error(err)
			continue
		}
		if !m.match(v) {
			t.Errorf("%s does not match: %s", rule, m.why)
		}
		if f.Doc == "" || !slices.Contains(m.rule.Uses(), f.Name) {
			t.Errorf("%s is not documented, or its test does not use it", f.Name)
		}
	}
	plain, err := newMatcher(`peer == "" and user == "" and uid == -1 and not held and hold_reason == "" and header("x") == ""`, now)
	if err != nil {
		t.Fatal(err)
	}
	if !plain.match(&queue.View{ID: id, Origin: []byte("junk")}) {
		t.Errorf("a message of which nothing is known: %s", plain.why)
	}
}
