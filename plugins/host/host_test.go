package host

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
)

// TestSuite takes a plugin through the suite of all filters.
func TestSuite(t *testing.T) {
	r := newRig(t)
	kind, err := r.Kind(r.settings())
	if err != nil {
		t.Fatal(err)
	}
	r.Settle(true)
	plain := "From: a@example.net\nSubject: hello\n\nbody\n"
	filtertest.Run(t, filtertest.Suite{
		Kind: kind, Config: do("tag"),
		Cases: []filtertest.Case{
			{Name: "nothing", Config: do("nothing")},
			{Name: "tag", Message: plain, WantMessage: "X-Seen: STAGE_MESSAGE\n" + plain},
			{Name: "reject", Config: do("reject"), WantAction: pipeline.Reject, WantReason: "told to"},
			{Name: "words", Config: do("reject", "not here"), WantAction: pipeline.Reject, WantReply: "550 5.7.1 not here", WantReason: "told to"},
			{Name: "body", Config: do("body", "below"), Message: plain, WantMessage: "From: a@example.net\nSubject: hello\n\nabove\nbody\nbelow\n"},
			{
				Name: "one of two", Config: do("first"), To: []string{"a@example.org", "b@example.org"}, Message: plain,
				WantActions: []pipeline.Action{pipeline.Reject, pipeline.Continue}, WantMessage: "X-Rest: yes\n" + plain, WantReason: "the first",
				WantEnvelopes: []string{" -> b@example.org"},
			},
			{
				Name: "envelope", Config: do("envelope"), From: "old@example.net", Message: plain, WantMessage: plain,
				WantEnvelopes: []string{"new@example.net -> r@example.org more@example.org"}, WantCopies: []string{"c@example.org -> archive@example.org"},
			},
			{Name: "large", Config: do("large"), WantAction: pipeline.Defer, WantErr: "too large"},
			{Name: "die", Config: do("die"), WantAction: pipeline.Defer, WantErr: "exit 7"},
			{Name: "after that", Message: plain, WantMessage: "X-Seen: STAGE_MESSAGE\n" + plain},
		},
	})
}

// TestBodies has a plugin read bodies of all sizes, with a user of its own and
// without.
func TestBodies(t *testing.T) {
	r := newRig(t)
	for _, user := range users() {
		s := r.settings()
		s.User = user
		f, rewrite := r.filter(t, s, do("length")), r.filter(t, s, do("body", "below\n"))
		for _, size := range []int{0, 1, 16 << 10, 16<<10 + 1, 64 << 10, 64<<10 + 1, 1 << 20, 5 << 20} {
			m := r.read(t, size)
			v, err := r.ask(t, f, m, 10*time.Second)
			want := "head 35 of 35, body " + itoa(size) + " of " + itoa(size)
			if err != nil || v.Reason != want {
				t.Errorf("user %q, %d bytes: %q, %v, want %q", user, size, v.Reason, err, want)
			}
			v, err = r.ask(t, rewrite, m, 10*time.Second)
			if err != nil || v.Body.Size() != int64(size+len("above\nbelow\n")) {
				t.Errorf("user %q, %d bytes: a new body of %d, %v", user, size, v.Body.Size(), err)
			}
			v.Body.Release() //nolint:errcheck // counted next
			m.Body().Release()
			for _, left := range r.left(t) {
				if filepath.Base(filepath.Dir(left)) == "b" {
					t.Errorf("user %q, %d bytes: left is %s", user, size, left)
				}
			}
		}
	}
}

// TestLentBodyIsNotChanged has a plugin write on what it is lent.
func TestLentBodyIsNotChanged(t *testing.T) {
	r := newRig(t)
	for _, user := range users() {
		s := r.settings()
		s.User = user
		f, m := r.filter(t, s, do("scrub")), r.read(t, 1<<20)
		before := string(m.Bytes())
		v, err := r.ask(t, f, m, 10*time.Second)
		if err != nil {
			t.Error(err)
		}
		if string(m.Bytes()) != before {
			t.Errorf("user %q: the message's body is another one (%s)", user, v.Reason)
		}
		m.Body().Release()
	}
}

// TestStages asks at all stages.
func TestStages(t *testing.T) {
	r := newRig(t)
	f := r.filter(t, r.settings("stages=connect,helo,sender,recipient,message", "needs=envelope"), do("facts")+"size = 17\n")
	chain, err := pipeline.NewChain("inbound", []pipeline.Step{{Name: "player", Filter: f}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m := r.read(t, 100)
	defer m.Body().Release()
	tx := &pipeline.Transaction{ID: "t", Session: filtertest.Stranger()}
	tx.Envelope.Sender = "s@example.net"
	tx.Envelope.Recipients = append(tx.Envelope.Recipients, recipients("r1@example.org", "r2@example.org")...)
	o := chain.Run(t.Context(), tx, m)
	defer o.Release()
	var lines []string
	for _, e := range o.Trace {
		if e.Err != "" {
			t.Error(e.Err)
		}
		lines = append(lines, e.Stage+": "+e.Reason)
	}
	want := []string{
		"connect: STAGE_CONNECT ip=192.0.2.1 helo=mail.example.net from= rcpt= to=0 size=17",
		"helo: STAGE_HELO ip=192.0.2.1 helo=mail.example.net from= rcpt= to=0 size=17",
		"sender: STAGE_SENDER ip=192.0.2.1 helo=mail.example.net from=s@example.net rcpt= to=0 size=17",
		"recipient: STAGE_RECIPIENT ip=192.0.2.1 helo=mail.example.net from=s@example.net rcpt=r1@example.org to=2 size=17",
		"recipient: STAGE_RECIPIENT ip=192.0.2.1 helo=mail.example.net from=s@example.net rcpt=r2@example.org to=2 size=17",
		"message: STAGE_MESSAGE ip=192.0.2.1 helo=mail.example.net from=s@example.net rcpt= to=2 size=17",
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// TestConcurrency has as many calls in a plugin as it may have, and no more.
func TestConcurrency(t *testing.T) {
	r := newRig(t)
	s := r.settings()
	s.Concurrency, s.Instances = 3, 2
	f := r.filter(t, s, do("wait"))
	soon(t, "two processes", func() bool { return len(r.Status()[0].PIDs) == 2 })
	m := r.read(t, 10)
	type answer struct {
		v   pipeline.Verdict
		err error
	}
	answers := make(chan answer)
	for range 30 {
		go func() {
			v, err := r.ask(t, f, m, 20*time.Second)
			answers <- answer{v, err}
		}()
	}
	most := 0
	for range 30 {
		a := <-answers
		if a.err != nil {
			t.Error(a.err)
		}
		var n int
		if _, err := fmt.Sscanf(a.v.Reason, "%d at once", &n); err != nil {
			t.Errorf("%q: %v", a.v.Reason, err)
		}
		most = max(most, n)
	}
	if most != 3 {
		t.Errorf("%d at once, want 3", most)
	}
}

// TestSurroundings looks at what a plugin has.
func TestSurroundings(t *testing.T) {
	t.Setenv("SECRET_OF_THE_DAEMON", "1")
	r := newRig(t)
	s := r.settings()
	s.Env, s.CPU = map[string]string{"MINE": "yes"}, time.Hour
	f := r.filter(t, s, do("env"))
	m := r.read(t, 10)
	v, err := r.ask(t, f, m, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	env, limits := v.Symbols[0].Detail, v.Symbols[3].Detail
	if strings.Contains(env, "SECRET") || !strings.Contains(env, "MINE=yes") {
		t.Errorf("its environment is %s", env)
	}
	if !strings.Contains(strings.Join(strings.Fields(limits), " "), "Max cpu time 3600 3600") && !strings.Contains(strings.Join(strings.Fields(limits), " "), "Max cpu time 3600 3601") {
		t.Errorf("its limits are %s", limits)
	}
}

// TestNeeds gives a plugin what it needs, and no more.
func TestNeeds(t *testing.T) {
	r := newRig(t)
	m := r.read(t, 100)
	for needs, want := range map[string]string{
		"nothing":  "from= to=0 head=0 of 35 body=0 of 100",
		"envelope": "from=a@example.net to=2 head=0 of 35 body=0 of 100",
		"head":     "from=a@example.net to=2 head=35 of 35 body=0 of 100",
		"body":     "from=a@example.net to=2 head=35 of 35 body=100 of 100",
	} {
		f := r.filter(t, r.settings("needs="+needs), do("given"))
		if v, err := r.ask(t, f, m, 10*time.Second); err != nil || v.Reason != want {
			t.Errorf("%s: %q, %v, want %q", needs, v.Reason, err, want)
		}
	}
}

// TestDelivery asks about a message that leaves, whose envelope is settled.
func TestDelivery(t *testing.T) {
	r := newRig(t)
	m := r.read(t, 100)
	d := &pipeline.Delivery{ID: "q1", Host: "mx.example.net", Origin: pipeline.Origin{Transaction: "t1", Peer: "192.0.2.1", Helo: "client", Standing: "external"}}
	d.Envelope.Sender, d.Envelope.Recipients = "a@example.net", recipients("b@example.org")
	deliver := func(act string) (pipeline.Verdict, error) {
		f := r.filter(t, r.settings("stages=delivery"), do(act))
		i, err := f.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer i.Close()
		return i.(pipeline.Deliverer).Deliver(t.Context(), d, m)
	}
	if v, err := deliver("tag"); err != nil || len(v.Edits) != 1 || v.Edits[0].Field.Value != "STAGE_DELIVERY" {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err := deliver("facts"); err != nil || v.Reason != "STAGE_DELIVERY ip=192.0.2.1 helo=client from=a@example.net rcpt= to=1 size=0" {
		t.Errorf("%q, %v", v.Reason, err)
	}
	if v, err := deliver("body"); err != nil || v.Body.Size() != 106 {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err := deliver("envelope"); err == nil || !strings.Contains(err.Error(), "at the delivery stage") || v.Edits != nil {
		t.Errorf("%+v, %v", v, err)
	}
}
