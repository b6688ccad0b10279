package main

import (
	"context"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// silentNet is a network in which nobody answers.
type silentNet struct{ dials int }

func (n *silentNet) DialContext(context.Context, string, string) (net.Conn, error) {
	n.dials++
	return nil, &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}
}

// TestForgetSilentServers: postern site forget lets servers be tried again that did
// not answer.
func TestForgetSilentServers(t *testing.T) {
	for _, c := range []api.SiteChange{
		{Name: "one.example"}, {Name: "mx.one.example", Level: "site"}, {Name: "192.0.2.25", Level: "address"},
	} {
		r := newLimitsRig(t, zone{"one.example": {"mx.one.example"}}, "")
		var n silentNet
		var err error
		r.exit, err = smtp.New(smtp.Options{Resolver: zone{"one.example": {"mx.one.example"}}, Hello: "mx.example.org", Dialer: &n, Now: func() time.Time { return r.clock }})
		if err != nil {
			t.Fatal(err)
		}
		try := func() {
			r.exit.Deliver(t.Context(), &smtp.Job{Domain: "one.example", Envelope: envelope.To("a@b.example", "r@one.example"), Content: message.FromString("\n")})
		}
		try()
		r.clock = r.clock.Add(2 * time.Minute)
		try()
		name, err := r.locate(t.Context(), "one.example")
		if err != nil {
			t.Fatal(err)
		}
		k, no := r.gate.Open(r.clock, r.path(name))
		if no != nil {
			t.Fatal(no)
		}
		k.Close(r.clock)
		for _, silent := range [][]api.SiteSilent{r.List("", 1)[0].Silent, r.explain("one.example").Silent} {
			if len(silent) != 1 || silent[0].Address != "192.0.2.25:25" || silent[0].Host != "mx.one.example" || silent[0].Failures != 2 || silent[0].Until != "2026-11-01T12:17:00Z" {
				t.Errorf("%+v", silent)
			}
		}
		if try(); n.dials != 2 {
			t.Fatalf("%d connections were tried, and the last should not have been", n.dials)
		}
		if _, err := r.locate(t.Context(), "one.example"); err != nil {
			t.Fatal(err)
		}
		if done, err := r.Change(t.Context(), "forget", c); err != nil || !done.Changed || len(r.exit.Dead()) != 0 {
			t.Errorf("%+v: %+v %v", c, done, err)
		}
		if try(); n.dials != 3 {
			t.Errorf("%+v: %d connections were tried", c, n.dials)
		}
		if done, err := r.Change(t.Context(), "forget", api.SiteChange{Name: "192.0.2.26", Level: "address"}); err != nil || done.Changed {
			t.Errorf("%+v %v", done, err)
		}
	}
}

// nameserver answers for the names of a map that may change, and is the resolver that
// asks it.
func nameserver(t *testing.T, mx *sync.Map) *resolve.Resolver {
	t.Helper()
	at, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended, started := make(chan struct{}), make(chan struct{})
	s := &dns.Server{PacketConn: at, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		name := q.Question[0].Name
		switch host, there := mx.Load(name); {
		case strings.HasPrefix(name, "mx"):
			if q.Question[0].Qtype == dns.TypeA {
				m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 600}, A: net.IPv4(192, 0, 2, 25)}}
			}
		case !there:
			m.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeMX:
			m.Answer = []dns.RR{&dns.MX{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeMX, Class: dns.ClassINET, Ttl: 600}, Mx: host.(string)}}
		}
		w.WriteMsg(m) //nolint:errcheck // the asker times out then
	})}
	go func() {
		defer close(ended)
		s.ActivateAndServe() //nolint:errcheck // it ends by Shutdown
	}()
	<-started
	t.Cleanup(func() {
		s.Shutdown() //nolint:errcheck // nothing more to do
		<-ended
	})
	r, err := resolve.New(resolve.Options{Servers: []string{at.LocalAddr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestForgetShowsChangedMX: after postern site forget a domain's new MX counts at once,
// and a name that there was not is looked for again.
func TestForgetShowsChangedMX(t *testing.T) {
	var mx sync.Map
	mx.Store("d.example.", "mx-old.example.")
	r := newLimitsRig(t, nil, "")
	resolver := nameserver(t, &mx)
	var err error
	r.limits.resolver = resolver
	if r.exit, err = smtp.New(smtp.Options{Resolver: resolver, Hello: "mx.example.org"}); err != nil {
		t.Fatal(err)
	}
	at := func(domain string) string {
		name, err := r.locate(t.Context(), domain)
		if err != nil {
			return err.Error()
		}
		return name
	}
	if e := r.explain("d.example"); e.Site != "mx-old.example" || len(e.Addresses) != 1 {
		t.Fatalf("%+v", e)
	}
	gone := at("new.example")
	mx.Store("d.example.", "mx-new.example.")
	mx.Store("new.example.", "mx-new.example.")
	if got := at("d.example"); got != "mx-old.example" || !strings.Contains(gone, "no such domain") || at("new.example") != gone {
		t.Fatalf("nothing is remembered: %s, %s", got, gone)
	}
	done, err := r.Change(t.Context(), "forget", api.SiteChange{Name: "D.example."})
	if f := done.Forgotten; err != nil || !done.Changed || done.Level != "site" || done.Name != "mx-old.example" || f.Answers != 3 || strings.Join(f.Names, " ") != "d.example mx-old.example" {
		t.Errorf("%+v %+v, %v", done, f, err)
	}
	done, err = r.Change(t.Context(), "forget", api.SiteChange{Name: "new.example"})
	if err != nil || !done.Changed || done.Level != "domain" || done.Name != "new.example" || done.Forgotten.Answers != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	for _, domain := range []string{"d.example", "new.example"} {
		if got := at(domain); got != "mx-new.example" {
			t.Errorf("%s: %s", domain, got)
		}
	}
	if done, err := r.Change(t.Context(), "forget", api.SiteChange{Name: "nobody.invalid"}); err != nil || done.Forgotten == nil {
		t.Errorf("%+v, %v: that there is no such name was looked up, and is forgotten", done, err)
	}
	var b strings.Builder
	if err := printForgotten(&b, &api.SiteForgotten{Learned: 1, Silent: []string{"192.0.2.1:25"}, Answers: 2, Names: []string{"d.example"}}); err != nil || b.String() != "  what its answers have taught\n  that it did not answer: 192.0.2.1:25\n  2 answers of the DNS: d.example\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}
