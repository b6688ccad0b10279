package smtp_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// mail delivers some messages, one after the other.
func mail(t *testing.T, x *smtp.Exit, messages int, domain string) {
	t.Helper()
	for i := range messages {
		if r := one(t, x, job(domain, "r@"+domain)); r.Reply.Class != reply.Success {
			t.Fatalf("message %d: %+v", i, r)
		}
	}
}

// eventually waits for something that happens in passing.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func TestConnectionsAreReused(t *testing.T) {
	for _, c := range []struct {
		name    string
		o       smtp.Options
		offered []string
		want    int64 // connections for ten messages
	}{
		{name: "by default", want: 1},
		{name: "not at all", o: smtp.Options{Idle: -1}, want: 10},
		{name: "for so many messages", o: smtp.Options{MaxMessages: 4}, want: 3},
		{name: "for as many as the server says", offered: []string{"LIMITS MAILMAX=3"}, want: 4},
		{name: "for so long", o: smtp.Options{MaxAge: time.Nanosecond}, want: 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInternet(t)
			s := n.put("d.test", "192.0.2.1", smtptest.Options{Extensions: c.offered})
			x := n.exit(c.o)
			mail(t, x, 10, "d.test")
			if st := s.Stats(); st.Connections != c.want || st.Messages != 10 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestDomainsShareConnections(t *testing.T) {
	n := newInternet(t)
	s := n.put("mx.host.test", "192.0.2.1", smtptest.Options{})
	for i := range 5 {
		n.mx[fmt.Sprintf("d%d.test", i)] = exchangers(resolve.Host{Name: "mx.host.test"})
	}
	x := n.exit(smtp.Options{})
	for i := range 5 {
		mail(t, x, 2, fmt.Sprintf("d%d.test", i))
	}
	if st := s.Stats(); st.Connections != 1 {
		t.Errorf("%+v", st)
	}
	if open, free := x.Connections("mx.host.test"); open != 1 || free != 1 {
		t.Error(open, free)
	}
}

// TestWhatIsNotShared: a connection is for those who agree on TLS and on who they
// are.
func TestWhatIsNotShared(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	n := newInternet(t)
	s := n.put("mx.host.test", "192.0.2.1", smtptest.Options{
		TLS: smtptest.TLS(ca.Issue(t, time.Time{}, "mx.host.test")), Logins: []string{"PLAIN"}, Users: map[string]string{"joe": "secret", "ann": "secret"},
	})
	policies := map[string]smtp.TLSPolicy{
		"a.test": {}, "b.test": {Level: smtp.NoTLS}, "c.test": {Level: smtp.Required}, "d.test": {Level: smtp.Verified, Roots: ca.Pool()},
		"e.test": {Level: smtp.Verified, Roots: ca.Pool(), Names: []string{".host.test"}},
	}
	users := map[string]*smtp.Credentials{"f.test": {User: "joe", Password: "secret"}, "g.test": {User: "ann", Password: "secret"}}
	x := n.exit(smtp.Options{
		TLS:   func(domain, _ string) smtp.TLSPolicy { return policies[domain] },
		Login: func(domain, _ string) *smtp.Credentials { return users[domain] },
	})
	for range 2 {
		for _, domain := range []string{"a.test", "b.test", "c.test", "d.test", "e.test", "f.test", "g.test"} {
			n.mx[domain] = exchangers(resolve.Host{Name: "mx.host.test"})
			mail(t, x, 1, domain)
		}
	}
	if st := s.Stats(); st.Connections != 7 {
		t.Errorf("%+v", st)
	}
	for i, m := range s.Messages() {
		domain := m.Recipients[0].Address[2:]
		if u := users[domain]; u != nil && m.User != u.User || u == nil && m.User != "" || (m.TLS == nil) != (domain == "b.test") {
			t.Errorf("message %d, %s: user %q, TLS %v", i, domain, m.User, m.TLS != nil)
		}
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	n := newInternet(t)
	s := n.put("d.test", "192.0.2.1", smtptest.Options{})
	x := n.exit(smtp.Options{Idle: 20 * time.Millisecond})
	mail(t, x, 1, "d.test")
	eventually(t, "still open", func() bool { open, _ := x.Connections("d.test"); return open == 0 && s.Stats().Open == 0 })
	n.put("e.test", "192.0.2.2", smtptest.Options{})
	x = n.exit(smtp.Options{MaxIdle: 1})
	mail(t, x, 1, "d.test")
	mail(t, x, 1, "e.test")
	eventually(t, "too many are kept", func() bool { open, _ := x.Connections("d.test"); return open == 0 })
	if _, free := x.Connections("e.test"); free != 1 {
		t.Error("the newest was not kept")
	}
	x.Close(t.Context())
	if open, _ := x.Connections("e.test"); open != 0 {
		t.Error("open after Close")
	}
	mail(t, x, 2, "e.test")
	if open, _ := x.Connections("e.test"); open != 0 {
		t.Error("kept after Close")
	}
}

// TestStaleConnections: what happens to a kept connection before MAIL is answered
// costs the message nothing, and what happens later counts.
func TestStaleConnections(t *testing.T) {
	second := func(at smtptest.At, end smtptest.End, text string) smtptest.Step {
		return smtptest.Step{At: at, Skip: 1, Times: 1, End: end, Reply: text}
	}
	for _, c := range []struct {
		name  string
		step  smtptest.Step
		wait  bool // until the server has gone
		want  string
		dials int
	}{
		{name: "closed while idle", step: smtptest.Step{At: smtptest.After, End: smtptest.Close, Times: 1}, wait: true, want: "250", dials: 2},
		{name: "reset while idle", step: smtptest.Step{At: smtptest.After, End: smtptest.Abort, Times: 1}, wait: true, want: "250", dials: 2},
		{name: "goodbye while idle", step: smtptest.Step{At: smtptest.After, Reply: "421 4.4.2 idle for too long", Times: 1}, wait: true, want: "250", dials: 2},
		{name: "goodbye, and it stays", step: smtptest.Step{At: smtptest.After, Raw: "421 4.4.2 idle for too long\r\n", End: smtptest.Hole, Times: 1}, want: "250", dials: 2},
		{name: "closed at MAIL", step: second(smtptest.Mail, smtptest.Close, ""), want: "250", dials: 2},
		{name: "reset at MAIL", step: second(smtptest.Mail, smtptest.Abort, ""), want: "250", dials: 2},
		{name: "silent at MAIL", step: second(smtptest.Mail, smtptest.Hole, ""), want: "250", dials: 2},
		{name: "421 at MAIL", step: second(smtptest.Mail, smtptest.GoOn, "421 4.7.0 enough"), want: "250", dials: 2},
		{name: "451 at MAIL", step: second(smtptest.Mail, smtptest.GoOn, "451 4.7.1 later"), want: "451 4.7.1", dials: 1},
		{name: "550 at MAIL", step: second(smtptest.Mail, smtptest.GoOn, "550 5.7.1 not you"), want: "550 5.7.1", dials: 1},
		{name: "421 at RCPT", step: second(smtptest.Rcpt, smtptest.GoOn, "421 4.7.0 enough"), want: "421 4.7.0", dials: 1},
		{name: "closed after the dot", step: second(smtptest.Dot, smtptest.Close, ""), want: "451 4.4.2", dials: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newInternet(t)
			s := n.serve("d.test", "192.0.2.1", c.step)
			x := n.exit(smtp.Options{MaxSessions: 1})
			mail(t, x, 1, "d.test")
			if c.wait {
				eventually(t, "the server stays", func() bool { return s.Stats().Open == 0 })
			}
			r := one(t, x, job("d.test", "r@d.test"))
			if !strings.HasPrefix(r.Reply.SMTP(), c.want) || len(n.dials()) != c.dials {
				t.Errorf("%+v, %d dials", r, len(n.dials()))
			}
			if got := r.Reply.Class == reply.Success; (len(s.Messages()) == 2) != (got || r.Perhaps) {
				t.Errorf("%d messages", len(s.Messages()))
			}
		})
	}
}

// TestRefusedMessageLeavesTheConnection: a message that nobody took does not cost
// the next one a connection.
func TestRefusedMessageLeavesTheConnection(t *testing.T) {
	n := newInternet(t)
	s := n.serve("d.test", "192.0.2.1", smtptest.Step{At: smtptest.Rcpt, Match: "no@d.test", Reply: "550 5.1.1 who?"})
	x := n.exit(smtp.Options{})
	for i := range 4 {
		to := [...]string{"r@d.test", "no@d.test"}[i%2]
		if r := one(t, x, job("d.test", to)); (r.Reply.Class == reply.Success) != (i%2 == 0) {
			t.Errorf("%+v", r)
		}
	}
	if st := s.Stats(); st.Connections != 1 || st.Messages != 2 {
		t.Errorf("%+v", st)
	}
}

// TestSiteHasSoManyConnections: with deliveries in parallel, to a site with several
// addresses, the servers never see more connections than are allowed, free ones
// included.
func TestSiteHasSoManyConnections(t *testing.T) {
	const most, messages = 4, 200
	n := newInternet(t)
	var servers []*smtptest.Server
	for i := range 3 {
		servers = append(servers, n.put("mx.d.test", fmt.Sprintf("192.0.2.%d", i+1), smtptest.Options{Keep: smtptest.KeepNothing}))
	}
	n.mx["d.test"], n.mx["e.test"] = exchangers(resolve.Host{Name: "mx.d.test"}), exchangers(resolve.Host{Name: "mx.d.test"})
	var freed atomic.Int64
	x := n.exit(smtp.Options{
		Connections: func(site string) int { return most }, MaxMessages: 7, Freed: func(string, netip.Addr) { freed.Add(1) },
	})
	slots := make(chan struct{}, most)
	var wg sync.WaitGroup
	var over atomic.Int64
	for i := range messages {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			domain := [...]string{"d.test", "e.test"}[i%2]
			if r := x.Deliver(context.Background(), job(domain, "r@"+domain))[0]; r.Reply.Class != reply.Success {
				t.Errorf("%+v", r)
			}
			if open, _ := x.Connections("mx.d.test"); open > most {
				over.Add(1)
			}
		})
	}
	wg.Wait()
	var got, connections int64
	for _, s := range servers {
		got += s.Stats().Messages
		connections += s.Stats().Connections
	}
	if got != messages || over.Load() > 0 || connections < messages/7 || connections > messages/3 || freed.Load() == 0 {
		t.Errorf("%d messages, %d connections, %d times too many, %d times free", got, connections, over.Load(), freed.Load())
	}
}

// TestChunksThatFail: the message goes by DATA over another connection, and the
// next one at once.
func TestChunksThatFail(t *testing.T) {
	n := newInternet(t)
	s := n.serve("d.test", "192.0.2.1", smtptest.Step{At: smtptest.Data, Match: "BDAT", Reply: "502 5.5.1 what?"})
	x := n.exit(smtp.Options{Chunking: true, MaxSessions: 1})
	mail(t, x, 3, "d.test")
	if st := s.Stats(); st.Connections != 2 || st.Messages != 3 {
		t.Errorf("%+v", st)
	}
	good := n.serve("e.test", "192.0.2.2", smtptest.Step{At: smtptest.Data, Match: "DATA", Reply: "554 5.5.1 no DATA here"})
	mail(t, x, 3, "e.test")
	if st := good.Stats(); st.Connections != 1 || st.Messages != 3 {
		t.Errorf("%+v", st)
	}
	// A connection lost in doubt is not risked twice.
	lost := n.serve("f.test", "192.0.2.3", smtptest.Step{At: smtptest.Dot, End: smtptest.Close, Times: 1})
	if r := one(t, x, job("f.test", "r@f.test")); !r.Perhaps {
		t.Errorf("%+v", r)
	}
	mail(t, x, 1, "f.test")
	if m := lost.Messages(); len(m) != 2 {
		t.Errorf("%d messages", len(m))
	}
}
