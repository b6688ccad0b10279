package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/queuetest/internet"
)

// internetConfig is a daemon that sends to an Internet of ours. Whoever was put off
// is tried again after a second.
const internetConfig = `hostname = "mx.example.org"
control = ""
domains = []
state = "$DIR/state"
admin.socket = "$DIR/admin.sock"
log.level = "error"
[listen.queue]
socket = "$DIR/queue.sock"
next = "queue"
[queue]
retry = "list 1s jitter 0%"
resolver = ["$DNS"]
remote = 400
low_space = "1 MB"
[route]
"" = ":$PORT"
[mailbox]
"us@example.org" = "$DIR/us"
"postmaster@mx.example.org" = "$DIR/postmaster"
`

// lifted is a site's limits out of the way of what is found out.
const lifted = `[site.default]
connections = 64
connection_rate = "none"
message_rate = "none"
messages_per_connection = "none"
[address.default]
connections = "none"
`

// sender is a daemon with an Internet around it.
type sender struct {
	*internet.Internet
	t *testing.T
	d *daemon
	// origin is that of our own mail.
	origin []byte
	begun  time.Time
}

// newSender starts a daemon; the Internet's names are declared by then.
func newSender(t *testing.T, n *internet.Internet, text string) *sender {
	t.Helper()
	dir, err := os.MkdirTemp("", "net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, box := range []string{"us", "postmaster"} {
		for _, part := range []string{"cur", "new", "tmp"} {
			if err := os.MkdirAll(filepath.Join(dir, box, part), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := filepath.Join(dir, "postern.toml")
	text = strings.NewReplacer("$DIR", dir, "$DNS", n.Nameserver(), "$PORT", strconv.Itoa(int(n.Port()))).Replace(internetConfig + text)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &sender{Internet: n, t: t, begun: time.Now()}
	if s.origin, err = ownOrigin().Encode(); err != nil {
		t.Fatal(err)
	}
	if s.d, err = startDaemon(file, t.Output()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.d.stop(ctx); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	return s
}

// send queues so many letters, each to the recipient that to makes of its number.
func (s *sender) send(count int, to func(i int) string) {
	s.t.Helper()
	all := make([]*internet.Letter, count)
	for i := range all {
		all[i] = s.Letter("us@example.org", to(i))
	}
	s.queue(all...)
}

// queue queues letters, a thousand in a batch.
func (s *sender) queue(all ...*internet.Letter) {
	s.t.Helper()
	for len(all) > 0 {
		n := min(len(all), 1000)
		batch := make([]queue.Submission, n)
		for i, l := range all[:n] {
			batch[i] = queue.Submission{Envelope: envelope.To(l.From, l.To...), Message: message.FromString(l.Text), Origin: s.origin}
		}
		if _, err := s.d.engine.queue.Submit(s.t.Context(), batch); err != nil {
			s.t.Fatal(err)
		}
		all = all[n:]
	}
}

// arrive waits until all letters are there, once each unless again of them may have
// come twice.
func (s *sender) arrive(again int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		s.t.Fatalf("%v\n%s", err, s.sites())
	}
	if got := s.Tally(); got.Strange > 0 || got.Again > again {
		s.t.Errorf("%+v", got)
	}
}

// sites are the queue's, for a test that fails.
func (s *sender) sites() string {
	var b strings.Builder
	for i, x := range s.d.engine.queue.Sites() {
		if i == 20 {
			b.WriteString("...\n")
			break
		}
		fmt.Fprintf(&b, "%+v\n", x)
	}
	return b.String()
}

// found is what was found out about a domain.
func (s *sender) found(domain string) api.SiteExplanation {
	s.t.Helper()
	e, err := s.d.engine.limits.Explain(s.t.Context(), domain)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

// show prints what came of a scenario, a row for each provider.
func (s *sender) show(all ...*internet.Provider) {
	s.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "after %.1f s\n%-14s %6s %6s %6s %6s  %s\n", time.Since(s.begun).Seconds(), "provider", "taken", "tried", "peak", "each", "refused")
	for _, p := range all {
		c := p.Course()
		fmt.Fprintf(&b, "%-14s %6d %6d %6d %6d ", p.Name(), c.Taken, c.Tried, c.Peak, c.MostEach)
		for _, why := range internet.Reasons {
			if n := c.Refused(why); n > 0 {
				fmt.Fprintf(&b, " %d %s", n, why)
			}
		}
		b.WriteByte('\n')
	}
	s.t.Log(b.String())
}

// cutsOf counts the moves of a control that took connections away.
func cutsOf(c *api.SiteControl) (count int) {
	for _, m := range c.Moves {
		from, err1 := strconv.Atoi(m.From)
		to, err2 := strconv.Atoi(m.To)
		if m.What == "connections" && err1 == nil && err2 == nil && to < from {
			count++
		}
	}
	return count
}

// slowed counts the moves of a control that took from its rate.
func slowed(c *api.SiteControl) (count int) {
	for _, m := range c.Moves {
		if m.What == "messages a second" {
			count++
		}
	}
	return count
}

func to(domain string) func(int) string { return func(int) string { return "you@" + domain } }

// TestInternetFindsConnections: a limit of connections that nobody told us of is
// found, whatever the words, and what is too much is refused only once.
func TestInternetFindsConnections(t *testing.T) {
	const hidden = 12
	for i, words := range []string{"exim", "office365", "at RCPT", "without a word"} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			n := internet.New(t)
			p := n.Provider(words, internet.Manner{Connections: hidden, Full: internet.WordingOf(words).Full})
			p.HostSet(internet.Setting{Tarpit: 10 * time.Millisecond}, "mx.hidden.example", fmt.Sprintf("127.2.%d.1", i+1))
			n.Domain("hidden.example", "mx.hidden.example")
			s := newSender(t, n, lifted)
			s.send(300, to("hidden.example"))
			s.arrive(0)
			s.show(p)
			e, c := s.found("hidden.example").Control, p.Course()
			if d := e.Allowed - hidden; d < -1 || d > 1 {
				t.Errorf("found %d of %d: %+v", e.Allowed, hidden, e.Moves)
			}
			// Sixteen are tried after eight.
			if refused := c.Refused("connections"); refused == 0 || refused > 16-hidden+2 || words != "at RCPT" && c.Peak > hidden {
				t.Errorf("%d were refused, and %d open at a time: %+v", refused, c.Peak, e.Moves)
			}
		})
	}
}

// TestInternetCutsOnce: twelve refusals at once move the limit once.
func TestInternetCutsOnce(t *testing.T) {
	t.Parallel()
	n := internet.New(t)
	p := n.Provider("twenty", internet.Manner{PerSource: 20, Full: internet.WordingOf("exim").Full})
	p.HostSet(internet.Setting{Tarpit: 20 * time.Millisecond}, "mx.hidden.example", "127.3.1.1")
	n.Domain("hidden.example", "mx.hidden.example")
	s := newSender(t, n, lifted)
	s.send(500, to("hidden.example"))
	s.arrive(0)
	s.show(p)
	e, c := s.found("hidden.example").Control, p.Course()
	if refused := c.Refused("connections"); refused < 10 || refused > 14 || cutsOf(&e) != 1 || e.Allowed < 18 || e.Allowed > 22 {
		t.Errorf("%d refusals cut %d times: %+v", refused, cutsOf(&e), e)
	}
}

// TestInternetFindsRate: who takes only so many messages in a time is sent no more
// than that, after a few refusals, whatever the words.
func TestInternetFindsRate(t *testing.T) {
	for i, words := range []string{"google", "office365", "outlook.com", "postfix", "sendmail"} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			n := internet.New(t)
			// A hundred letters are more than it takes at a time, in letters or connections.
			fast := internet.WordingOf(words).Fast
			p := n.Provider(words, internet.Manner{Messages: 80, Window: 3 * time.Second, Fast: fast})
			p.Host("mx.fast.example", fmt.Sprintf("127.6.%d.1", i+1))
			n.Domain("fast.example", "mx.fast.example")
			limits := lifted
			if fast.At == smtptest.Connect {
				limits = strings.Replace(limits, `messages_per_connection = "none"`, "messages_per_connection = 1", 1)
			}
			s := newSender(t, n, limits)
			s.send(100, to("fast.example"))
			s.arrive(0)
			s.show(p)
			e, c := s.found("fast.example").Control, p.Course()
			if c.Refused("messages") == 0 && slowed(&e) == 0 {
				t.Log("this machine was too busy to send faster than it takes: nothing to be found")
				return
			}
			if e.Rate <= 0 || e.Rate > 80 {
				t.Errorf("found %v a second: %+v", e.Rate, e.Moves)
			}
			if refused := c.Refused("messages"); refused == 0 || refused > 64 || cutsOf(&e) > 0 || slowed(&e) > 2 {
				t.Errorf("%d were refused: %+v", refused, e.Moves)
			}
		})
	}
}

// TestInternetNothingMoves: what is about a message or a mailbox, or what comes by
// waiting, moves no limit, however much of it there is.
func TestInternetNothingMoves(t *testing.T) {
	t.Parallel()
	n := internet.New(t)
	gray := n.Provider("greylisting", internet.Manner{Greylist: 100 * time.Millisecond})
	gray.Host("mx.gray.example", "127.7.1.1")
	n.Domain("gray.example", "mx.gray.example")
	bad := n.Provider("mailboxes", internet.Manner{Mailboxes: map[string]string{
		"full": "452 4.2.2 The email account that you tried to reach is over quota", "gone": "550 5.1.1 There is nobody of that name here",
		"busy": "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered",
	}})
	bad.Host("mx.bad.example", "127.7.2.1")
	n.Domain("bad.example", "mx.bad.example")
	used := n.Provider("used up", internet.Manner{MessagesEach: 3, Used: internet.WordingOf("yahoo").Used})
	used.Host("mx.used.example", "127.7.3.1")
	n.Domain("used.example", "mx.used.example")
	s := newSender(t, n, lifted)
	var letters []*internet.Letter
	for i := range 100 {
		letters = append(letters, s.Letter("us@example.org", fmt.Sprintf("you%d@gray.example", i)), s.Letter("us@example.org", "you@used.example"), s.Letter("us@example.org", "you@bad.example"))
		for _, name := range []string{"full@bad.example", "gone@bad.example", "busy@bad.example"} {
			letters = append(letters, s.Letter("us@example.org", name).Without(name))
		}
	}
	s.queue(letters...)
	s.arrive(0)
	s.show(gray, bad, used)
	if c := gray.Course(); c.Refused("greylisted") < 100 {
		t.Errorf("%d were greylisted", c.Refused("greylisted"))
	}
	if c := bad.Course(); c.Refused("mailbox") < 300 {
		t.Errorf("%d mailboxes said no", c.Refused("mailbox"))
	}
	for _, domain := range []string{"gray.example", "bad.example", "used.example"} {
		if e := s.found(domain).Control; cutsOf(&e) > 0 || e.Rate > 0 || e.Suspended != "" || e.Ceiling > 0 {
			t.Errorf("%s: %+v", domain, e)
		}
	}
}

// TestInternetBlocks: who wants nothing of us gets nothing for a while, with his words
// as the reason; the others do not notice, and when he has changed his mind an
// operator lets it go on.
func TestInternetBlocks(t *testing.T) {
	t.Parallel()
	n := internet.New(t)
	no := internet.WordingOf("yahoo").Blocked
	cross := n.Provider("cross", internet.Manner{Blocked: no})
	cross.Host("mx.cross.example", "127.8.1.1")
	n.Domain("cross.example", "mx.cross.example")
	friend := n.Provider("friendly", internet.Manner{})
	friend.Host("mx.friend.example", "127.8.2.1")
	n.Domain("friend.example", "mx.friend.example")
	s := newSender(t, n, lifted)
	s.send(50, to("cross.example"))
	s.send(50, to("friend.example"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.WaitFor(ctx, 50); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a block to be heard", func() bool { return s.found("cross.example").Control.Suspended != "" })
	if e := s.found("cross.example"); !strings.Contains(e.Control.Why, "[TSS04]") || e.Binding == nil || e.Binding.What != "suspended" {
		t.Errorf("%+v %+v", e.Control, e.Binding)
	}
	if c := cross.Course(); c.Refused("blocked") == 0 || c.Refused("blocked") > 4 || c.Taken > 0 || friend.Course().Taken != 50 {
		t.Errorf("%+v", c)
	}
	cross.Change(func(m *internet.Manner) { m.Blocked = internet.No{} })
	if done, err := s.d.engine.limits.Change(t.Context(), "resume", api.SiteChange{Name: "cross.example"}); err != nil || !done.Changed {
		t.Fatalf("%+v %v", done, err)
	}
	s.arrive(0)
	s.show(cross, friend)
}

// TestInternetTarpits: servers that think long before each answer keep those of
// others from nothing.
func TestInternetTarpits(t *testing.T) {
	t.Parallel()
	n := internet.New(t)
	slow, quick := n.Provider("tarpits", internet.Manner{}), n.Provider("quick", internet.Manner{})
	for i := range 20 {
		host := "mx." + domainOf(i)
		slow.HostSet(internet.Setting{Tarpit: 300 * time.Millisecond}, host, fmt.Sprintf("127.10.1.%d", i+1))
		n.Domain(domainOf(i), host)
	}
	quick.Host("mx.quick.example", "127.10.2.1")
	n.Domain("quick.example", "mx.quick.example")
	s := newSender(t, n, "")
	var letters []*internet.Letter
	for i := range 100 {
		letters = append(letters, s.Letter("us@example.org", "you@"+domainOf(i%20)))
	}
	for range 300 {
		letters = append(letters, s.Letter("us@example.org", "you@quick.example"))
	}
	s.queue(letters...)
	waitFor(t, "all quick letters", func() bool { return quick.Course().Taken == 300 })
	behind := 100 - slow.Course().Taken
	s.arrive(0)
	s.show(slow, quick)
	if behind == 0 {
		t.Error("nothing was on its way through a tarpit when the last quick letter came")
	}
}

// TestInternetFaults: whatever a server breaks off, and whatever its TLS is worth,
// each letter comes, and twice only where it was broken off behind the dot.
func TestInternetFaults(t *testing.T) {
	t.Parallel()
	n := internet.New(t)
	fault := func(at smtptest.At, end smtptest.End) internet.Setting {
		return internet.Setting{Faults: []smtptest.Step{{At: at, Skip: 1, Times: 3, End: end, Bytes: 10}}}
	}
	all := []struct {
		name  string
		set   internet.Setting
		again int
	}{
		{"closed at the greeting", fault(smtptest.Connect, smtptest.Close), 0},
		{"reset at EHLO", fault(smtptest.Hello, smtptest.Abort), 0},
		{"reset at MAIL", fault(smtptest.Mail, smtptest.Abort), 0},
		{"closed at RCPT", fault(smtptest.Rcpt, smtptest.Close), 0},
		{"reset at DATA", fault(smtptest.Data, smtptest.Abort), 0},
		{"reset in the message", fault(smtptest.Body, smtptest.Abort), 0},
		{"reset at the dot", fault(smtptest.Dot, smtptest.Abort), 3},
		{"closed after the answer", fault(smtptest.After, smtptest.Close), 0},
		{"good TLS", internet.Setting{TLS: internet.GoodTLS}, 0},
		{"TLS for another name", internet.Setting{TLS: internet.SelfSigned}, 0},
		{"expired TLS", internet.Setting{TLS: internet.Expired}, 0},
		{"closed in the handshake", internet.Setting{TLS: internet.HangsUp}, 0},
		{"nothing but SMTP", internet.Setting{Extensions: []string{}}, 0},
	}
	var providers []*internet.Provider
	again := 0
	for i, f := range all {
		p := n.Provider(f.name, internet.Manner{})
		p.HostSet(f.set, "mx."+domainOf(i), fmt.Sprintf("127.11.%d.1", i))
		n.Domain(domainOf(i), "mx."+domainOf(i))
		providers, again = append(providers, p), again+f.again
	}
	s := newSender(t, n, lifted)
	const each = 12
	s.send(each*len(all), func(i int) string { return "you@" + domainOf(i%len(all)) })
	s.arrive(again)
	s.show(providers...)
	for i, f := range all {
		if c := providers[i].Course(); c.Taken < each || c.Taken > each+f.again {
			t.Errorf("%s: %d came of %d", f.name, c.Taken, each)
		}
	}
	if got := s.Tally(); got.Again != again {
		t.Errorf("%d came twice, of %d that were broken off behind the dot", got.Again, again)
	}
}

// waitFor waits for something that comes about by itself.
func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}
