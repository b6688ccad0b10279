package smtp_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// gate admits as a test says, and writes down what it hears.
type gate struct {
	mu      sync.Mutex
	heard   []string
	open    int
	most    int // at once
	refuse  func(what string) *smtp.NotNow
	address map[string]bool // that are refused
}

func (g *gate) note(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.heard = append(g.heard, fmt.Sprintf(format, args...))
}

func (g *gate) ask(what string) error {
	if g.refuse != nil {
		if n := g.refuse(what); n != nil {
			return n
		}
	}
	return nil
}

func (g *gate) Open(site, source string, _ bool) (smtp.Ticket, error) {
	if err := g.ask("open"); err != nil {
		return nil, err
	}
	g.note("open %s", strings.TrimSpace(site+" "+source))
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open++
	g.most = max(g.most, g.open)
	return &ticket{g: g}, nil
}

type ticket struct {
	g *gate
}

func (t *ticket) At(a netip.Addr) error {
	t.g.note("at %s", a)
	if t.g.address[a.String()] {
		return &smtp.NotNow{Why: "address " + a.String()}
	}
	return nil
}
func (t *ticket) Greeted()              { t.g.note("greeted") }
func (t *ticket) Unreachable(err error) { t.g.note("unreachable") }
func (t *ticket) Message(n int) error {
	if err := t.g.ask("message"); err != nil {
		return err
	}
	t.g.note("message %d", n)
	return nil
}
func (t *ticket) Taken() { t.g.note("taken") }
func (t *ticket) Said(a wire.Reply, early bool) bool {
	t.g.note("said %d %v", a.Code, early)
	return strings.Contains(a.Text, "connections")
}

func (t *ticket) Return() { t.Close() }

func (t *ticket) TakeOver(other smtp.Ticket, _ netip.Addr) {
	t.g.note("take over")
	other.Close()
}

func (t *ticket) Close() {
	t.g.note("close")
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	t.g.open--
}

func TestGateHearsEverything(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps []smtptest.Step
		dead  bool
		want  string
	}{
		{name: "a message that is taken", want: "[open d.test at 192.0.2.1 greeted message 1 taken close]"},
		{name: "nobody there", dead: true, want: "[open d.test at 192.0.2.1 unreachable close]"},
		{name: "too many at the greeting", steps: says(smtptest.Connect, "421 4.7.0 too many connections"), want: "[open d.test at 192.0.2.1 said 421 true close]"},
		{name: "too fast at MAIL", steps: says(smtptest.Mail, "451 4.7.1 slow down"), want: "[open d.test at 192.0.2.1 greeted message 1 said 451 false close]"},
		{name: "a mailbox is full", steps: says(smtptest.Rcpt, "452 4.2.2 full"), want: "[open d.test at 192.0.2.1 greeted message 1 said 452 false close]"},
		{name: "too fast after the dot", steps: says(smtptest.Dot, "421 4.7.0 rate limit"), want: "[open d.test at 192.0.2.1 greeted message 1 said 421 false close]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInternet(t)
			g := &gate{}
			if c.dead {
				n.refuse("d.test", "192.0.2.1")
			} else {
				n.serve("d.test", "192.0.2.1", c.steps...)
			}
			x := n.exit(smtp.Options{Gate: g, Idle: -1})
			one(t, x, job("d.test", "r@d.test"))
			eventually(t, "the connection stays open", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.open == 0 })
			if got := fmt.Sprint(g.heard); got != c.want {
				t.Errorf("heard %s, want %s", got, c.want)
			}
		})
	}
}

func TestWhatIsNotAdmittedIsNotTried(t *testing.T) {
	until := time.Now().Add(time.Hour)
	for _, what := range []string{"open", "message"} {
		n := newInternet(t)
		s := n.put("d.test", "192.0.2.1", smtptest.Options{})
		g := &gate{refuse: func(w string) *smtp.NotNow {
			if w == what {
				return &smtp.NotNow{Until: until, Why: "a limit"}
			}
			return nil
		}}
		r := one(t, n.exit(smtp.Options{Gate: g}), job("d.test", "r@d.test"))
		if r.NotNow == nil || !r.NotNow.Until.Equal(until) || r.Reply.Class != reply.Temporary {
			t.Errorf("%s: %+v", what, r)
		}
		if st := s.Stats(); st.Messages != 0 {
			t.Errorf("%s: %+v", what, st)
		}
	}
}

func TestAnotherAddressIsAdmitted(t *testing.T) {
	n := newInternet(t)
	n.put("d.test", "192.0.2.1", smtptest.Options{})
	n.put("d.test", "192.0.2.2", smtptest.Options{})
	g := &gate{address: map[string]bool{"192.0.2.1": true}}
	r := one(t, n.exit(smtp.Options{Gate: g}), job("d.test", "r@d.test"))
	if r.Reply.Class != reply.Success || r.Address.String() != "192.0.2.2" {
		t.Errorf("%+v", r)
	}
	if i := slices.Index(g.heard, "at 192.0.2.2"); i < 0 || slices.Contains(g.heard[1:], "open d.test") {
		t.Errorf("one ticket was enough: %v", g.heard)
	}
}

func TestJobsTicketIsUsedOnce(t *testing.T) {
	n := newInternet(t)
	s := n.put("d.test", "192.0.2.1", smtptest.Options{})
	g := &gate{refuse: func(w string) *smtp.NotNow {
		if w == "open" {
			return &smtp.NotNow{Why: "nothing but what you have"}
		}
		return nil
	}}
	x := n.exit(smtp.Options{Gate: g})
	first, second := job("d.test", "r@d.test"), job("d.test", "r@d.test")
	first.Ticket, second.Ticket = &ticket{g: g}, &ticket{g: g}
	g.open = 2
	reused := 0
	for _, j := range []*smtp.Job{first, second} {
		j.Reuses = func() { reused++ }
		if r := one(t, x, j); r.Reply.Class != reply.Success {
			t.Fatalf("%+v", r)
		}
	}
	if first.Ticket != nil || second.Ticket == nil || reused != 1 {
		t.Error("the first job's ticket is for its connection, the second job needs none and keeps its own")
	}
	if st := s.Stats(); st.Connections != 1 {
		t.Errorf("%+v", st)
	}
}

// TestOneTooManyIsClosed: a connection that hears that there are too many is not kept.
func TestOneTooManyIsClosed(t *testing.T) {
	n := newInternet(t)
	s := n.put("d.test", "192.0.2.1", smtptest.Options{Steps: []smtptest.Step{{At: smtptest.Rcpt, Times: 1, Reply: "451 4.7.1 too many connections"}}})
	g := &gate{}
	x := n.exit(smtp.Options{Gate: g})
	for i := range 3 {
		r := one(t, x, job("d.test", "r@d.test"))
		if (r.Reply.Class == reply.Success) != (i > 0) {
			t.Errorf("message %d: %+v", i, r)
		}
		if open, free := x.Connections("d.test"); open != min(i, 1) || free != open {
			t.Errorf("after message %d %d are open, %d of them free", i, open, free)
		}
	}
	if st := s.Stats(); st.Connections != 2 {
		t.Errorf("%+v", st)
	}
}

// TestUsedUpConnectionsMakeRoom has a gate that admits three messages a
// connection.
func TestUsedUpConnectionsMakeRoom(t *testing.T) {
	n := newInternet(t)
	s := n.put("d.test", "192.0.2.1", smtptest.Options{})
	sent := 0
	g := &gate{}
	g.refuse = func(w string) *smtp.NotNow {
		switch w {
		case "open":
			sent = 0
		case "message":
			if sent++; sent > 3 {
				return &smtp.NotNow{Why: "3 messages a connection"}
			}
		}
		return nil
	}
	mail(t, n.exit(smtp.Options{Gate: g}), 10, "d.test")
	if st := s.Stats(); st.Connections != 4 || st.Messages != 10 {
		t.Errorf("%+v", st)
	}
	if g.most > 2 {
		t.Errorf("%d open at once", g.most)
	}
}

func TestShortPausesAreWaitedFor(t *testing.T) {
	n := newInternet(t)
	n.put("d.test", "192.0.2.1", smtptest.Options{})
	asked := 0
	g := &gate{refuse: func(w string) *smtp.NotNow {
		if w == "message" {
			if asked++; asked < 4 {
				return &smtp.NotNow{Until: time.Now().Add(5 * time.Millisecond), Why: "a rate"}
			}
		}
		return nil
	}}
	if r := one(t, n.exit(smtp.Options{Gate: g}), job("d.test", "r@d.test")); r.Reply.Class != reply.Success || asked != 4 {
		t.Errorf("asked %d times: %+v", asked, r)
	}
}

// TestGroupsHaveConnectionsOfTheirOwn sends to domains on one address, of which
// some are in a group.
func TestGroupsHaveConnectionsOfTheirOwn(t *testing.T) {
	n := newInternet(t)
	s := n.put("a.test", "192.0.2.1", smtptest.Options{})
	for _, d := range []string{"b.test", "c.test", "d.test"} {
		n.hosts[d] = []string{"192.0.2.1"}
	}
	g := &gate{}
	x := n.exit(smtp.Options{Gate: g, Group: func(domain string) string {
		return map[string]string{"b.test": "slow", "d.test": "slow"}[domain]
	}})
	for _, d := range []string{"a.test", "b.test", "c.test", "d.test"} {
		if r := one(t, x, job(d, "r@"+d)); r.Reply.Class != reply.Success {
			t.Fatalf("%s: %+v", d, r)
		}
	}
	if st := s.Stats(); st.Connections != 2 || st.Messages != 4 {
		t.Errorf("%+v", st)
	}
	g.mu.Lock()
	heard := slices.DeleteFunc(slices.Clone(g.heard), func(h string) bool { return !strings.HasPrefix(h, "open") && h != "take over" })
	g.mu.Unlock()
	want := []string{"open a.test", "open slow=b.test", "open c.test", "take over", "open slow=d.test", "take over"}
	if !slices.Equal(heard, want) {
		t.Errorf("%q, want %q", heard, want)
	}
	if p, err := x.Locate(t.Context(), "d.test"); err != nil || p.Site.Name != "slow=d.test" || !slices.Equal(p.Hosts, []string{"d.test"}) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestSpareConnections(t *testing.T) {
	n := newInternet(t)
	g := &gate{}
	for i, host := range []string{"a.test", "b.test"} {
		n.put(host, fmt.Sprintf("192.0.2.%d", i+1), smtptest.Options{})
	}
	x := n.exit(smtp.Options{Gate: g, Idle: time.Hour})
	for _, d := range []string{"a.test", "b.test"} {
		one(t, x, job(d, "r@"+d))
	}
	if x.Spare(func(site, _ string) bool { return site == "c.test" }) {
		t.Error("a connection was closed that nobody meant")
	}
	if !x.Spare(func(site, _ string) bool { return site == "b.test" }) || x.Spare(func(site, _ string) bool { return site == "b.test" }) {
		t.Error("the one connection to b.test was not closed once")
	}
	eventually(t, "the connection stays open", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.open == 1 })
	if open, free := x.Connections("a.test"); open != 1 || free != 1 {
		t.Errorf("the other has %d open, %d free", open, free)
	}
	x.Close(t.Context())
	if x.Spare(func(string, string) bool { return true }) {
		t.Error("a connection was closed after the end")
	}
}

// TestTicketsComeBack: a ticket for whose connection no address has room is given back
// by whoever has got it.
func TestTicketsComeBack(t *testing.T) {
	n := newInternet(t)
	n.put("d.test", "192.0.2.1", smtptest.Options{})
	n.put("d.test", "192.0.2.2", smtptest.Options{})
	g := &gate{address: map[string]bool{"192.0.2.1": true, "192.0.2.2": true}}
	x := n.exit(smtp.Options{Gate: g})
	if _, err := x.Ask(t.Context(), "d.test", "r@d.test"); err == nil {
		t.Error("a question was asked")
	}
	if r := one(t, x, job("d.test", "r@d.test")); r.NotNow == nil {
		t.Errorf("%+v", r)
	}
	if g.open != 0 {
		t.Errorf("%d tickets are left of nobody: %v", g.open, g.heard)
	}
	j := job("d.test", "r@d.test")
	j.Ticket, g.open = &ticket{g: g}, 1
	if r := one(t, x, j); r.NotNow == nil || j.Ticket == nil || g.open != 1 {
		t.Errorf("the caller's own ticket is his: %d open, %+v", g.open, r)
	}
}

// TestPanicsLoseNoConnection: a job whose Prepare panics leaves nothing open.
func TestPanicsLoseNoConnection(t *testing.T) {
	n := newInternet(t)
	n.put("d.test", "192.0.2.1", smtptest.Options{})
	g := &gate{}
	x := n.exit(smtp.Options{Gate: g})
	j := job("d.test", "r@d.test")
	j.Prepare = func(context.Context, wire.Capabilities) (message.Message, error) { panic("a filter") }
	func() {
		defer func() {
			if p := recover(); p != "a filter" {
				t.Errorf("recovered %v", p)
			}
		}()
		x.Deliver(t.Context(), j)
	}()
	if open, _ := x.Connections("d.test"); open != 0 || g.open != 0 {
		t.Errorf("%d connections and %d tickets are left", open, g.open)
	}
}

// TestFreeConnectionsGiveWay: one that is free, and of no use because the next message
// wants another policy, does not stand in its way.
func TestFreeConnectionsGiveWay(t *testing.T) {
	n := newInternet(t)
	n.put("a.test", "192.0.2.1", smtptest.Options{})
	n.mx["b.test"] = exchangers(resolve.Host{Name: "a.test", Preference: 1})
	n.mx["c.test"] = n.mx["b.test"]
	g := &gate{}
	g.refuse = func(w string) *smtp.NotNow {
		g.mu.Lock()
		defer g.mu.Unlock()
		if w == "open" && g.open > 0 {
			return &smtp.NotNow{Why: "one connection"}
		}
		return nil
	}
	x := n.exit(smtp.Options{Gate: g, TLS: func(domain, _ string) smtp.TLSPolicy {
		if domain == "c.test" {
			return smtp.TLSPolicy{Level: smtp.NoTLS}
		}
		return smtp.TLSPolicy{}
	}})
	for _, d := range []string{"b.test", "c.test", "b.test"} {
		if r := one(t, x, job(d, "r@"+d)); r.Reply.Class != reply.Success {
			t.Errorf("%s: %+v", d, r)
		}
	}
	if g.most != 1 {
		t.Errorf("%d open at once", g.most)
	}
}

// TestAnothersConnection: a connection to an address that two domains share counts
// for the one whose message it carries, and stays the other's where that has no room.
func TestAnothersConnection(t *testing.T) {
	full := false
	n := newInternet(t)
	s := n.put("d.test", "192.0.2.1", smtptest.Options{})
	n.hosts["e.test"] = n.hosts["d.test"]
	g := &gate{refuse: func(w string) *smtp.NotNow {
		if w == "open" && full {
			return &smtp.NotNow{Until: time.Now().Add(time.Hour), Why: "a limit"}
		}
		return nil
	}}
	x := n.exit(smtp.Options{Gate: g})
	mail(t, x, 1, "d.test")
	mail(t, x, 1, "e.test")
	if d, _ := x.Connections("d.test"); d != 0 {
		t.Errorf("%d connections count for d.test", d)
	}
	full = true
	if r := one(t, x, job("d.test", "r@d.test")); r.NotNow == nil {
		t.Errorf("%+v", r)
	}
	if open, free := x.Connections("e.test"); open != 1 || free != 1 {
		t.Errorf("e.test has %d connections, %d of them free", open, free)
	}
	mail(t, x, 1, "e.test")
	want := "[open d.test at 192.0.2.1 greeted message 1 taken open e.test take over close message 1 taken message 1 taken]"
	if got := fmt.Sprint(g.heard); got != want {
		t.Errorf("heard %s, want %s", got, want)
	}
	if st := s.Stats(); st.Connections != 1 || st.Messages != 3 {
		t.Errorf("%+v", st)
	}
}
