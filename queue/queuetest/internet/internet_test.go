package internet_test

import (
	"context"
	"net/smtp"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/queuetest/internet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client connects to an address and says EHLO.
func client(t *testing.T, n *internet.Internet, address string) (*smtp.Client, error) {
	t.Helper()
	c, err := smtp.Dial(address + ":" + strconv.Itoa(int(n.Port())))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c, c.Hello("client.example")
}

// send sends a letter, and returns the code that it was answered with.
func send(c *smtp.Client, l *internet.Letter) int {
	err := c.Mail(l.From)
	for _, r := range l.To {
		if err == nil {
			err = c.Rcpt(r)
		}
	}
	if err == nil {
		w, err2 := c.Data()
		if err = err2; err == nil {
			w.Write([]byte(strings.ReplaceAll(l.Text, "\n", "\r\n"))) //nolint:errcheck // Close says it
			err = w.Close()
		}
	}
	return code(err)
}

func code(err error) int {
	if e, ok := err.(*textproto.Error); ok {
		return e.Code
	}
	if err != nil {
		return -1
	}
	return 250
}

func TestNames(t *testing.T) {
	n := internet.New(t)
	p := n.Provider("p", internet.Manner{})
	p.Host("mx1.p.example", "127.9.0.1", "127.9.0.2")
	p.Host("mx2.p.example", "127.9.0.3")
	n.Domain("one.example", "mx1.p.example", "mx2.p.example")
	n.Fails("broken.example")
	r := n.Resolver()
	mx, err := r.LookupMX(t.Context(), "one.example")
	if err != nil || len(mx.Hosts) != 2 || mx.Hosts[0].Name != "mx1.p.example" || mx.Hosts[1].Preference != 20 {
		t.Errorf("%+v %v", mx, err)
	}
	if all, err := r.LookupAddrs(t.Context(), "mx1.p.example"); err != nil || len(all) != 2 {
		t.Errorf("%v %v", all, err)
	}
	if _, err := r.LookupMX(t.Context(), "broken.example"); err == nil {
		t.Error("a broken domain has an answer")
	}
	if _, err := client(t, n, "127.9.0.4"); err == nil {
		t.Error("somebody lives where nobody was put")
	}
}

// TestLimits: connections by source and at all, and what is too many over one or in
// a time, with the account of it.
func TestLimits(t *testing.T) {
	n := internet.New(t)
	p := n.Provider("p", internet.Manner{Connections: 2, MessagesEach: 2, RecipientsEach: 3, Mailboxes: map[string]string{"full": "452 4.2.2 mailbox full"}})
	p.Host("mx.p.example", "127.9.0.1", "127.9.0.2")
	one, err := client(t, n, "127.9.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, n, "127.9.0.2"); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, n, "127.9.0.2"); code(err) != 421 {
		t.Errorf("a third connection: %v", err)
	}
	full := n.Letter("a@client.example", "full@p.example").Without("full@p.example")
	if got := send(one, full); got != 452 {
		t.Errorf("to a full mailbox: %d", got)
	}
	if err := one.Reset(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := send(one, n.Letter("a@client.example", "b@p.example")); got != 250 {
			t.Fatal(got)
		}
	}
	if got := send(one, n.Letter("a@client.example", "b@p.example")); got != 421 {
		t.Errorf("a third message: %d", got)
	}
	c := p.Course()
	if c.Connections != 2 || c.Tried != 3 || c.Peak != 2 || c.Refused("connections") != 1 || c.Refused("used") != 1 || c.Refused("mailbox") != 1 || c.Refused("") != 3 || c.MostEach != 2 || c.Taken != 2 {
		t.Errorf("%+v", c)
	}
	if after := c.After(time.Now()); after.Refused("") != 0 {
		t.Errorf("%+v", after)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := n.Wait(ctx); err == nil || !strings.Contains(err.Error(), "2 of 3") {
		t.Errorf("%v", err)
	}
	if err := n.WaitFor(t.Context(), 2); err != nil {
		t.Error(err)
	}
}

// TestTempers: greylisting, a rate, a block, a limit at RCPT, and a reset after the
// dot whose message came all the same.
func TestTempers(t *testing.T) {
	n := internet.New(t)
	at := 0
	call := func(m internet.Manner, set internet.Setting, tries int, want ...int) *internet.Provider {
		t.Helper()
		at++
		p, address := n.Provider("p", m), "127.9.1."+strconv.Itoa(at)
		p.HostSet(set, "mx.p.example", address)
		l := n.Letter("a@client.example", "b@p.example")
		for i := range tries {
			c, err := client(t, n, address)
			if err != nil {
				t.Fatal(err)
			}
			if got := send(c, l); got != want[i] {
				t.Errorf("try %d of %+v: %d", i, m, got)
			}
		}
		return p
	}
	call(internet.Manner{Greylist: time.Millisecond}, internet.Setting{Tarpit: 2 * time.Millisecond}, 2, 450, 250)
	call(internet.Manner{Messages: 2, Window: time.Hour}, internet.Setting{}, 3, 250, 250, 450)
	call(internet.Manner{Blocked: internet.WordingOf("yahoo").Blocked}, internet.Setting{}, 1, 421)
	call(internet.Manner{Blocked: internet.WordingOf("yahoo").Blocked, Blocks: []string{"127.9.9.9"}}, internet.Setting{}, 1, 250)
	p := call(internet.Manner{PerSource: 1, Full: internet.WordingOf("at RCPT").Full}, internet.Setting{}, 2, 250, 451)
	p.Change(func(m *internet.Manner) { m.PerSource = 3 })
	if c := p.Course(); c.Connections != 2 || c.Peak != 2 {
		t.Errorf("%+v", c)
	}
	before := n.Tally()
	call(internet.Manner{}, internet.Setting{Faults: []smtptest.Step{{At: smtptest.Dot, Times: 1, End: smtptest.Abort}}}, 2, -1, 250)
	if after := n.Tally(); after.Taken != before.Taken+1 || after.Again != before.Again+1 || after.Strange != 0 {
		t.Errorf("%+v", after)
	}
}

// TestStrangers: letters that nobody sent, that were changed, or that are for others.
func TestStrangers(t *testing.T) {
	n := internet.New(t)
	n.Provider("p", internet.Manner{}).Host("mx.p.example", "127.9.2.1")
	c, err := client(t, n, "127.9.2.1")
	if err != nil {
		t.Fatal(err)
	}
	l := n.Letter("a@client.example", "b@p.example")
	changed, elsewhere := *l, *l
	changed.Text += "P.S.\n"
	elsewhere.To = []string{"c@p.example"}
	for _, l := range []*internet.Letter{l, &changed, &elsewhere, {From: l.From, To: l.To, Text: "Message-ID: <0@letters.example>\n\n\n"}, l} {
		if got := send(c, l); got != 250 {
			t.Fatal(got)
		}
	}
	if got := n.Tally(); got.Taken != 1 || got.Strange != 3 || got.Again != 1 || len(got.Oddities) != 3 {
		t.Errorf("%+v", got)
	}
	if err := n.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}
