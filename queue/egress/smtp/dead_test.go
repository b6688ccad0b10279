package smtp_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// clock is one that is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// errSilent is a network's answer where there is none, without the wait for it.
var errSilent = fmt.Errorf("dial: %w", syscall.ETIMEDOUT)

// dead puts a host there that does not answer.
func (n *internet) dead(host, address string) {
	n.hosts[host] = append(n.hosts[host], address)
	n.fails[netip.AddrPortFrom(netip.MustParseAddr(address), 25).String()] = errSilent
}

// tries counts the connections that one message makes.
func (n *internet) tries(x *smtp.Exit, domain string) int {
	n.t.Helper()
	before := len(n.dials())
	one(n.t, x, job(domain, "r@"+domain))
	return len(n.dials()) - before
}

func TestDeadHostIsPassedOver(t *testing.T) {
	n, c := newInternet(t), newClock()
	var log strings.Builder
	n.dead("d.test", "192.0.2.1")
	x := n.exit(smtp.Options{Now: c.Now, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for i := range 3 { // all at once count as one
		if got := n.tries(x, "d.test"); got != 1 {
			t.Fatalf("message %d: %d connections", i, got)
		}
	}
	c.pass(2 * time.Minute)
	n.tries(x, "d.test")
	for _, pause := range []time.Duration{15, 30, 60, 120, 120} {
		pause *= time.Minute
		dead := x.Dead()
		if len(dead) != 1 || dead[0].Until != c.Now().Add(pause) || dead[0].Host != "d.test" {
			t.Fatalf("wanted a pause of %v: %+v", pause, dead)
		}
		c.pass(pause - time.Second)
		before := len(n.dials())
		r := one(t, x, job("d.test", "r@d.test"))
		if len(n.dials()) != before || r.Reply.SMTP() != "451 4.4.1 Sorry, I wasn't able to establish an SMTP connection." || r.Err == nil || !strings.Contains(r.Err.Error(), "postern site forget") {
			t.Fatalf("%q: %v, dials %d", r.Reply.SMTP(), r.Err, len(n.dials())-before)
		}
		c.pass(time.Second)
		if got := n.tries(x, "d.test"); got != 1 {
			t.Fatalf("after the pause: %d connections", got)
		}
		if got := n.tries(x, "d.test"); got != 0 {
			t.Fatalf("after the probe: %d connections", got)
		}
	}
	if !strings.Contains(log.String(), "passed over for a while") {
		t.Errorf("the log does not tell: %s", &log)
	}
	c.pass(2 * time.Hour)
	delete(n.fails, "192.0.2.1:25")
	n.sinks["192.0.2.1:25"] = smtptest.New(t)
	if r := one(t, x, job("d.test", "r@d.test")); r.Reply.Class != reply.Success || len(x.Dead()) != 0 {
		t.Errorf("%+v, %+v", r, x.Dead())
	}
	if !strings.Contains(log.String(), "answers again") {
		t.Errorf("the log does not tell: %s", &log)
	}
}

// TestDeadHostOneProbe: while somebody finds out, the others do not wait for the
// same timeout.
func TestDeadHostOneProbe(t *testing.T) {
	n, c := newInternet(t), newClock()
	n.dead("d.test", "192.0.2.1")
	x := n.exit(smtp.Options{Now: c.Now})
	n.tries(x, "d.test")
	c.pass(2 * time.Minute)
	n.tries(x, "d.test")
	c.pass(15 * time.Minute)
	delete(n.fails, "192.0.2.1:25") // a black hole, now really
	before := len(n.dials())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { x.Deliver(t.Context(), job("d.test", "r@d.test")) })
	}
	wg.Wait()
	if got := len(n.dials()) - before; got != 1 {
		t.Errorf("%d probes", got)
	}
}

func TestDeadHostOthersAreTried(t *testing.T) {
	n, c := newInternet(t), newClock()
	n.mx["d.test"] = exchangers(resolve.Host{Name: "a.test", Preference: 1}, resolve.Host{Name: "b.test", Preference: 2})
	n.dead("a.test", "192.0.2.1")
	s := n.serve("b.test", "192.0.2.2")
	x := n.exit(smtp.Options{Now: c.Now, Idle: -1})
	n.tries(x, "d.test")
	c.pass(2 * time.Minute)
	n.tries(x, "d.test")
	if got := n.tries(x, "d.test"); got != 1 || len(s.Messages()) < 2 {
		t.Errorf("%d connections, %d messages", got, len(s.Messages()))
	}
}

// TestDeadHostWhatCounts: a no is not silence, and the end of our own patience with
// a message is not the server's.
func TestDeadHostWhatCounts(t *testing.T) {
	n, c := newInternet(t), newClock()
	n.refuse("refused.test", "192.0.2.1")
	n.serve("late.test", "192.0.2.2", at(smtptest.Connect, smtptest.Hole)...)
	n.serve("busy.test", "192.0.2.3", says(smtptest.Connect, "421 busy")...)
	n.serve("slow.test", "192.0.2.4", at(smtptest.Mail, smtptest.Hole)...)
	x := n.exit(smtp.Options{Now: c.Now})
	for _, d := range []string{"refused.test", "late.test", "busy.test", "slow.test"} {
		n.tries(x, d)
	}
	var got []string
	for _, d := range x.Dead() {
		got = append(got, d.Host)
	}
	if !slices.Equal(got, []string{"late.test"}) {
		t.Errorf("%q", got)
	}
}

func TestForget(t *testing.T) {
	n, c := newInternet(t), newClock()
	n.dead("a.test", "192.0.2.1")
	n.dead("a.test", "2001:db8::1")
	n.dead("b.test", "192.0.2.2")
	n.dead("c.test", "192.0.2.3")
	x := n.exit(smtp.Options{Now: c.Now})
	fill := func() {
		for _, d := range []string{"a.test", "b.test", "c.test"} {
			n.tries(x, d)
		}
	}
	fill()
	c.pass(2 * time.Minute)
	fill()
	for _, f := range []struct {
		name string
		want int
	}{{"z.test", 0}, {"A.test.", 2}, {"[192.0.2.2]", 1}, {"192.0.2.2", 0}, {"", 1}, {"", 0}} {
		if got := x.Forget(f.name); got != f.want {
			t.Errorf("Forget(%q) = %d, not %d", f.name, got, f.want)
		}
	}
	if got := n.tries(x, "a.test"); got != 2 {
		t.Errorf("%d connections to what was forgotten", got)
	}
}
