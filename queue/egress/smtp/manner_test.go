package smtp_test

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// TestConfigure: what may change does, with the next connection.
func TestConfigure(t *testing.T) {
	n := newInternet(t)
	s := n.put("d.test", "192.0.2.1", smtptest.Options{Extensions: []string{"PIPELINING", "CHUNKING"}})
	x := n.exit(smtp.Options{Idle: time.Minute})
	greeted := func(want string, connections int64) {
		t.Helper()
		mail(t, x, 2, "d.test")
		all := s.Messages()
		if got := all[len(all)-1].Hello; got != want || s.Stats().Connections != connections {
			t.Errorf("greeted as %q, %d connections", got, s.Stats().Connections)
		}
	}
	greeted("us.test", 1)
	// As it was: the connection is used on.
	o := smtp.Options{Hello: "us.test", Idle: time.Minute}
	x.Configure(o)
	greeted("us.test", 1)
	o.Hello = "other.test"
	x.Configure(o)
	greeted("other.test", 2)
	o.MaxMessages = 1
	x.Configure(o)
	greeted("other.test", 3) // the one that is there has had its share
	o.Idle = -1
	x.Configure(o)
	eventually(t, "free connections stay", func() bool { _, free := x.Connections(mustSite(t, x)); return free == 0 })
	greeted("other.test", 5)
	o.RefuseEightBit = true
	x.Configure(o)
	eight := job("d.test", "r@d.test")
	eight.Content = message.FromString("Subject: x\n\n\xe4\n")
	if r := one(t, x, eight); r.Reply.Class != reply.Permanent {
		t.Errorf("8 bits: %+v", r)
	}
	hole := n.put("e.test", "192.0.2.2", smtptest.Options{Steps: at(smtptest.Connect, smtptest.Stall)})
	o.Timeouts = wire.Timeouts{Greeting: 10 * time.Millisecond}
	x.Configure(o)
	if r := one(t, x, job("e.test", "r@e.test")); r.Phase != wire.Greeting || hole.Stats().Connections == 0 {
		t.Errorf("the greeting: %+v", r)
	}
}

func mustSite(t *testing.T, x *smtp.Exit) string {
	t.Helper()
	s, err := x.Site(t.Context(), "d.test")
	if err != nil {
		t.Fatal(err)
	}
	return s.Name
}

// TestTLSField: the field tells of the connection that the message goes over, above
// what Prepare gave, and nobody but the server sees it.
func TestTLSField(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	n := newInternet(t)
	n.put("d.test", "192.0.2.1", smtptest.Options{TLS: smtptest.TLS(ca.Issue(t, time.Time{}, "d.test"))})
	n.put("clear.test", "192.0.2.2", smtptest.Options{})
	policies := map[string]smtp.TLSPolicy{"d.test": {Level: smtp.Verified, Roots: ca.Pool()}}
	x := n.exit(smtp.Options{TLSField: "X-How", TLS: func(domain, _ string) smtp.TLSPolicy { return policies[domain] }})
	for domain, want := range map[string]string{
		"d.test":     `^X-How: TLS1\.3 TLS_[A-Z0-9_]+ verified; level verified;\n\tfrom us\.test to d\.test \[192\.0\.2\.1\]\nX-Signed: yes\n`,
		"clear.test": `^X-How: none; level opportunistic;\n\tfrom us\.test to clear\.test \[192\.0\.2\.2\]\nX-Signed: yes\n`,
	} {
		j := job(domain, "r@"+domain)
		signed := message.FromString("X-Signed: yes\n" + sample)
		j.Prepare = func(context.Context, wire.Capabilities) (message.Message, error) { return signed, nil }
		if r := one(t, x, j); r.Reply.Class != reply.Success {
			t.Fatalf("%+v", r)
		}
		got := n.arrived(domain)
		if !regexp.MustCompile(want).MatchString(got) || !strings.HasSuffix(got, sample) {
			t.Errorf("%s: %q", domain, got)
		}
		if strings.Contains(signed.HeadText(), "X-How") {
			t.Error("the message itself was changed")
		}
	}
	x.Configure(smtp.Options{Hello: "us.test"})
	mail(t, x, 1, "clear.test")
	if got := n.arrived("clear.test"); got != sample {
		t.Errorf("without it: %q", got)
	}
}

// arrived is the last message that a host took.
func (n *internet) arrived(host string) string {
	n.t.Helper()
	s := n.sinks[n.hosts[host][0]+":25"]
	all := s.Messages()
	if len(all) == 0 {
		n.t.Fatalf("%s has no message", host)
	}
	return string(all[len(all)-1].Content)
}
