package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

func TestStores(t *testing.T) {
	d := newDaemon(t, func(o *Options) {
		o.Received, o.Invokers = true, &Invokers{Alias: 7790, Network: 0, Bounce: 7792}
		o.Now = func() time.Time { return time.Date(2026, 3, 5, 14, 7, 9, 0, time.FixedZone("", 3600)) }
	}, says(pipeline.Verdict{}))
	r := d.call([]string{"TCPREMOTEIP=192.0.2.1", "TCPREMOTEHOST=client.example"}, mail, list)
	if r.exit == nil || r.exit.Code != 0 || r.exit.Text != "" || !r.envelope {
		t.Fatalf("%+v", r)
	}
	if r.accepted.Beat != 240_000 || r.accepted.Slow != 300_000 {
		t.Errorf("%+v", r.accepted)
	}
	line := d.log.line(t)
	all := d.sink.all()
	if len(all) != 1 {
		t.Fatal(all)
	}
	received := fmt.Sprintf("Received: (qmail %d invoked from network); 5 Mar 2026 13:07:09 -0000\n", os.Getpid())
	if all[0].text != received+mail || all[0].Envelope.Sender != "a@example.org" || all[0].Envelope.Recipients[0].Address != "b@example.net" {
		t.Errorf("%q %+v", all[0].text, all[0].Envelope)
	}
	if o := all[0].Origin; o.Peer != "192.0.2.1" || o.Standing != "external" || o.UID != -1 || o.Chain != "inbound" || o.Entrance != "qmail-queue" || o.Transaction != line["id"] {
		t.Errorf("%+v", o)
	}
	for key, want := range map[string]any{
		"message_id": "<1@example.org>", "from": "a@example.org", "to": "b@example.net", "recipients": 1.0, "peer": "192.0.2.1",
		"peer_name": "client.example", "qp": float64(os.Getpid()), "standing": "external", "chain": "inbound", "size": float64(len(mail)),
		"answer": "250 2.0.0 ok", "exit": 0.0, "uid": 0.0,
	} {
		if line[key] != want {
			t.Errorf("%s = %v, want %v", key, line[key], want)
		}
	}
	if f, ok := line["filters"].([]any); !ok || len(f) != 1 || !strings.HasPrefix(f[0].(string), "stub=continue ") {
		t.Error(line["filters"])
	}
	if line["given_up"] != nil || line["error"] != nil {
		t.Error(line)
	}
}

func TestReceived(t *testing.T) {
	o := Options{Now: func() time.Time { return time.Unix(0, 0) }, Invokers: &Invokers{1, 2, 3}}
	for uid, by := range map[int]string{0: "by uid 0", 1: "by alias", 2: "from network", 3: "for bounce"} {
		if got, want := o.received(9, uid), "(qmail 9 invoked "+by+"); 1 Jan 1970 00:00:00 -0000"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	o.Invokers = nil
	if got := o.received(9, 0); !strings.Contains(got, "by uid 0") {
		t.Error(got)
	}
}

func TestAnswers(t *testing.T) {
	refused := reply.Make(550, reply.Enhanced{Subject: 7, Detail: 1}, "no thanks")
	for _, c := range []struct {
		name    string
		verdict pipeline.Verdict
		code    int
		text    string
		log     string
		stored  int
	}{
		{"continue", pipeline.Verdict{}, 0, "", "250 2.0.0 ok", 1},
		{"reject", pipeline.Verdict{Action: pipeline.Reject, Reply: refused}, 31, "Dno thanks (#5.7.1)", "550 5.7.1 no thanks", 0},
		{"defer", pipeline.Verdict{Action: pipeline.Defer}, 71, "Zmessage deferred, please try again later (#4.7.1)", "451 4.7.1 message deferred, please try again later", 0},
		{"discard", pipeline.Verdict{Action: pipeline.Discard}, 0, "", "250 2.0.0 ok", 0},
		{"quarantine", pipeline.Verdict{Action: pipeline.Quarantine, Reason: "odd"}, 0, "", "250 2.0.0 ok", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDaemon(t, nil, says(c.verdict))
			r := d.call(nil, mail, list)
			if r.exit == nil || int(r.exit.Code) != c.code || r.exit.Text != c.text || r.exit.Dialect != wire.DialectNotqmail {
				t.Fatalf("%+v", r.exit)
			}
			if line := d.log.line(t); line["answer"] != c.log || line["exit"] != float64(c.code) {
				t.Error(line)
			}
			if n := len(d.sink.all()); n != c.stored {
				t.Errorf("%d stored", n)
			}
		})
	}
}

func TestDialectBoundsTheText(t *testing.T) {
	long := reply.Make(550, reply.Enhanced{}, strings.Repeat("x", 470))
	for dialect, most := range map[wire.Dialect]int{wire.DialectNone: 0, wire.DialectNetqmail: 255, wire.DialectIndimail: 480} {
		d := newDaemon(t, func(o *Options) { o.Dialect = dialect }, says(pipeline.Verdict{Action: pipeline.Reject, Reply: long}))
		r := d.call(nil, mail, list)
		if r.exit == nil || len(r.exit.Text) != min(most, len("D")+470+len(" (#5.0.0)")) {
			t.Errorf("%v: %+v", dialect, r.exit)
		}
	}
}

func TestSinkFails(t *testing.T) {
	for _, c := range []struct {
		err  error
		r    reply.Reply
		code int
	}{
		{err: errors.New("EIO"), code: 71},
		{err: reply.With(reply.NoSpace, errors.New("ENOSPC")), code: 53},
		{r: reply.Deferred, code: 71},
	} {
		d := newDaemon(t, nil)
		d.sink.err, d.sink.reply = c.err, c.r
		line := d.exits(c.code, mail, list)
		if c.err != nil && line["error"] != c.err.Error() {
			t.Error(line)
		}
		if c.r != (reply.Reply{}) {
			continue
		}
		if !d.log.has("could not be stored") {
			t.Error("nothing logged for the administrator")
		}
	}
}

type panics struct{}

func (panics) Submit(context.Context, []pipeline.Outgoing) (reply.Reply, error) { panic("boom") }

func TestPanicIsOneMessagesTrouble(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.Sink = panics{} })
	for range 2 {
		c := d.connect()
		check(t, c.hello(nil, 0, int(d.fed(mail).Fd()), int(d.fed(list).Fd())))
		c.hangsUp(t)
		if line := d.log.line(t); line["error"] != "panic: boom" || line["given_up"] != "commit" {
			t.Error(line)
		}
	}
}

func TestNoConfiguration(t *testing.T) {
	for name, chains := range map[string]Chains{
		"none":     &pipeline.Generations{},
		"no chain": chains(t),
	} {
		d := newDaemon(t, func(o *Options) { o.Chains, o.Local = chains, "absent" })
		if line := d.exits(55, mail, list); line["error"] == nil {
			t.Error(name, line)
		}
	}
}

func TestEnvelopes(t *testing.T) {
	long := strings.Repeat("a", envelope.MaxAddress+1)
	d := newDaemon(t, func(o *Options) { o.Limits.Recipients = 10 })
	for _, c := range []struct {
		name, list string
		code       int
	}{
		{"ended early", "Fa@b\x00Tc@d", 54},
		{"no final NUL", "Fa@b\x00Tc@d\x00", 54},
		{"empty", "", 54},
		{"only NUL", "\x00", 91},
		{"bad letter", "Xa\x00", 91},
		{"bad record", "Fa@b\x00Xc@d\x00\x00", 91},
		{"sender too long", "F" + long + "\x00\x00", 11},
		{"recipient too long", "Fa\x00T" + long + "\x00\x00", 11},
		{"line feed", "Fa@b\nT root@c\x00Tc@d\x00\x00", 31},
		{"too many", "Fa\x00" + strings.Repeat("Tb@c\x00", 11) + "\x00", 31},
	} {
		t.Run(c.name, func(t *testing.T) {
			d.t = t
			if line := d.exits(c.code, mail, c.list); line["error"] == nil || line["exit"] != float64(c.code) {
				t.Error(line)
			}
		})
	}
	d.t = t
	d.exits(0, mail, "F\x00\x00ignored")
	if all := d.sink.all(); len(all) != 1 || all[0].Envelope.Sender != "" {
		t.Error(all)
	}
}

func TestMessages(t *testing.T) {
	keep := message.Keep
	many := strings.Repeat("Received: x\n", 100)
	for _, c := range []struct {
		name, in, out string
		change        func(*Options)
		code          int
	}{
		{name: "repaired", in: "A: b\r\n\r\nx\ry\x00", out: "A: b\n\nx\ny\n"},
		{name: "kept", in: "A: b\r\n\r\nx\ry\x00", out: "A: b\r\n\r\nx\ry\x00", change: func(o *Options) { o.Lines = &keep }},
		{name: "empty", in: "", out: ""},
		{name: "too big", in: mail, change: func(o *Options) { o.Limits.Size = 10 }, code: 31},
		{name: "head too big", in: mail, change: func(o *Options) { o.Limits.Head = 10 }, code: 31},
		{name: "fields", in: mail, change: func(o *Options) { o.Limits.Fields = 1 }, code: 31},
		{name: "99 hops", in: many[:99*12] + "\nx\n", out: many[:99*12] + "\nx\n"},
		{name: "100 hops", in: many + "\nx\n", code: 31},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDaemon(t, c.change)
			d.exits(c.code, c.in, list)
			if all := d.sink.all(); c.code == 0 && (len(all) != 1 || all[0].text != c.out) {
				t.Errorf("%+v", all)
			}
		})
	}
}

// The caller writes the message, closes it, and only then the envelope.
func TestMessageIsReadBeforeTheEnvelope(t *testing.T) {
	d := newDaemon(t, nil)
	mr, mw := d.pipe()
	er, ew := d.pipe()
	c := d.connect()
	check(t, c.hello(nil, 0, int(mr.Fd()), int(er.Fd())))
	body := strings.Repeat("x", 1<<20) + "\n" // more than a pipe holds
	_, err := io.WriteString(mw, body)
	check(t, err)
	mw.Close()
	_, err = io.WriteString(ew, list)
	check(t, err)
	r, err := c.converse()
	check(t, err)
	if r.exit.Code != 0 || d.sink.all()[0].text != body {
		t.Error(r.exit)
	}
}

func TestReports(t *testing.T) {
	other := "Fa@example.org\x00Tb@example.net\x00Tc@example.net\x00\x00"
	half := says(pipeline.Verdict{Action: pipeline.Reject, Only: []int{1}})
	d := newDaemon(t, nil, half)
	if line := d.exits(71, mail, other); !strings.Contains(line["error"].(string), `mixed = "reject"`) {
		t.Error(line)
	}
	report := func(_ context.Context, tx *pipeline.Transaction, refused []pipeline.Refusal, _ message.Message) ([]pipeline.Outgoing, error) {
		return []pipeline.Outgoing{{
			Envelope: envelope.To("", tx.Envelope.Sender),
			Message:  message.FromString("\nabout " + refused[0].Recipient.Address + "\n"),
		}}, nil
	}
	d = newDaemon(t, func(o *Options) { o.Report = report }, half)
	if line := d.exits(0, mail, other); line["stored"] != 2.0 {
		t.Error(line)
	}
	if all := d.sink.all(); len(all) != 2 || len(all[0].Envelope.Recipients) != 1 || all[1].text != "\nabout c@example.net\n" {
		t.Errorf("%+v", all)
	}
	// The report goes out, too, where the rest of the message is dropped.
	none := says(pipeline.Verdict{Action: pipeline.Reject, Only: []int{1}, Others: []pipeline.Verdict{{Action: pipeline.Discard, Only: []int{0}}}})
	d = newDaemon(t, func(o *Options) { o.Report = report }, none)
	d.exits(0, mail, other)
	if all := d.sink.all(); len(all) != 1 || all[0].text != "\nabout c@example.net\n" {
		t.Errorf("%+v", all)
	}
}

func TestOverload(t *testing.T) {
	wait := make(chan struct{})
	d := newDaemon(t, func(o *Options) { o.MaxSessions, o.waits.slot = 1, 50*time.Millisecond }, step(func(ctx context.Context, _ *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
		select {
		case <-wait:
		case <-ctx.Done():
		}
		return pipeline.Verdict{}, nil
	}))
	first := d.connect()
	check(t, first.hello(nil, 0, int(d.fed(mail).Fd()), int(d.fed(list).Fd())))
	var seen result
	for !seen.envelope {
		_, err := first.step(&seen)
		check(t, err)
	}
	r := d.call(nil, mail, list)
	if r.exit == nil || r.exit.Code != 71 || r.envelope || r.accepted != (wire.Accepted{}) {
		t.Errorf("%+v", r)
	}
	if line := d.log.line(t); line["exit"] != 71.0 {
		t.Error(line)
	}
	close(wait)
	r, err := first.converse()
	check(t, err)
	if r.exit.Code != 0 {
		t.Error(r.exit)
	}
	d.exits(0, mail, list)
}

func TestOneUserCannotKeepOthersOut(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.Trusted, o.MaxPerUser = nil, 2 })
	for range 2 {
		d.connect()
	}
	until(t, "two sessions", func() bool { return d.srv.Sessions() == 2 })
	third := d.connect()
	third.hangsUp(t)
	until(t, "a log line", func() bool { return d.log.has("too many sessions of this user") })
}

func TestBeatsAndSlow(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.Beat, o.Slow = 5*time.Millisecond, 300*time.Millisecond }, step(func(ctx context.Context, _ *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
		<-ctx.Done()
		return pipeline.Verdict{}, ctx.Err()
	}))
	r := d.call(nil, mail, list)
	if r.exit == nil || r.exit.Code != 71 || r.beats < 3 || r.accepted.Beat != 20 || r.accepted.Slow != 300 {
		t.Errorf("%+v %+v", r.exit, r)
	}
	if line := d.log.line(t); line["error"] != errSlow.Error() {
		t.Error(line)
	}
}

// One byte and then nothing.
func TestTotalTime(t *testing.T) {
	for _, what := range []string{"message", "envelope"} {
		d := newDaemon(t, func(o *Options) { o.Limits.Total = 100 * time.Millisecond })
		mr, mw := d.pipe()
		er, ew := d.pipe()
		c := d.connect()
		check(t, c.hello(nil, 0, int(mr.Fd()), int(er.Fd())))
		io.WriteString(mw, "x")
		io.WriteString(ew, "F")
		if what == "envelope" {
			mw.Close()
		}
		r, err := c.converse()
		check(t, err)
		if r.exit == nil || r.exit.Code != 52 {
			t.Errorf("%s: %+v", what, r.exit)
		}
	}
}

// A shim that reads nothing costs a session for a while, and no more.
func TestShimThatStopsReading(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.Beat, o.waits.write = 100*time.Microsecond, 100*time.Millisecond })
	mr, _ := d.pipe()
	er, _ := d.pipe()
	c := d.connect()
	check(t, c.hello(nil, 0, int(mr.Fd()), int(er.Fd())))
	if line := d.log.line(t); line["given_up"] != "reading message" || line["error"] != errGone.Error() {
		t.Error(line)
	}
	until(t, "the session to end", func() bool { return d.srv.Sessions() == 0 })
}

func TestOptionsAreChecked(t *testing.T) {
	some := &pipeline.Generations{}
	for _, o := range []Options{
		{},
		{Chains: some, Path: "/s"},
		{Chains: some, Sink: &sink{}},
		{Chains: some, Next: "qmail-queue", Path: "/s"},
		{Chains: some, Next: "/" + strings.Repeat("x", wire.MaxPath), Path: "/s"},
		{Chains: some, Sink: &sink{}, Path: "/s", Dialect: 99},
	} {
		if s, err := New(o); err == nil {
			s.Shutdown(context.Background())
			t.Errorf("%+v", o)
		}
	}
	for m := NextAuto; m <= NextWait; m++ {
		if got, ok := ParseNextMode(m.String()); !ok || got != m {
			t.Error(m)
		}
	}
	if _, ok := ParseNextMode("never"); ok {
		t.Error("never")
	}
}

func TestUnservedServerShutsDown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := New(Options{Chains: &pipeline.Generations{}, Sink: &sink{}, Path: path})
	check(t, err)
	check(t, s.Shutdown(context.Background()))
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is still there")
	}
}

// Many at once, some of which give up: what was answered with 0 is stored, once.
func TestManyAtOnce(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.MaxSessions = 30 }, says(pipeline.Verdict{}))
	const calls = 60
	var callers sync.WaitGroup
	var stored atomic.Int64
	for i := range calls {
		content, list := d.fed(large), d.fed(list)
		callers.Go(func() {
			c, err := dial(d.path)
			if err == nil {
				defer c.conn.Close()
				err = c.hello(nil, 0, int(content.Fd()), int(list.Fd()))
			}
			if err != nil {
				t.Error(err)
				return
			}
			if i%6 == 0 {
				return // gone
			}
			r, err := c.converse()
			if err != nil || r.exit.Code != 0 {
				t.Error(r.exit, err)
				return
			}
			stored.Add(1)
		})
	}
	callers.Wait()
	told := 0
	for range calls {
		if line := d.log.line(t); line["answer"] == "250 2.0.0 ok" && line["caller_gone"] == nil {
			told++
		}
	}
	if n := stored.Load(); n != calls*5/6 || told < int(n) || len(d.sink.all()) < int(n) {
		t.Error(n, told, len(d.sink.all()))
	}
	for _, m := range d.sink.all() {
		if m.text != large {
			t.Errorf("%d bytes", len(m.text))
		}
	}
}
