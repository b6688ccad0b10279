package smtp_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

func TestMain(m *testing.M) {
	x509.SystemCertPool() //nolint:errcheck // it is read once, which takes a while under the race detector
	goleak.VerifyTestMain(m)
}

func TestDelivered(t *testing.T) {
	n := newInternet(t)
	n.mx["d.test"] = exchangers(resolve.Host{Name: "mx.d.test", Preference: 10})
	s := n.serve("mx.d.test", "192.0.2.1")
	r := one(t, n.exit(smtp.Options{}), job("d.test", "r@d.test"))
	if r.Reply.Class != reply.Success || !r.Remote || r.Where != "mx.d.test [192.0.2.1]" || r.Perhaps || r.Phase != wire.Dot {
		t.Fatalf("%+v", r)
	}
	m := s.Messages()[0]
	if string(m.Content) != sample || m.Hello != "us.test" || m.Mail.Sender != "sender@us.test" || m.Mail.Size != int64(len(sample)+3) {
		t.Errorf("%+v", m)
	}
}

// TestOneServer is what each thing that one server can do means, in clear and under
// TLS.
func TestOneServer(t *testing.T) {
	secure := smtptest.TLS((*smtptest.Authority)(nil).Issue(t, time.Time{}, "d.test"))
	big := "Subject: big\n\n" + strings.Repeat("0123456789abcdef 0123456789abcdef\n", 1<<19)
	died := "Connected to 192.0.2.1 but connection died."
	for _, c := range []struct {
		name    string
		steps   []smtptest.Step
		want    string // the reply
		phase   wire.Phase
		perhaps bool
		remote  bool
		big     bool
		got     int // messages that the server has
	}{
		{name: "closed before the greeting", steps: at(smtptest.Connect, smtptest.Close), want: "451 4.4.2 Connected to 192.0.2.1 but greeting failed.", phase: wire.Greeting},
		{name: "no greeting", steps: at(smtptest.Connect, smtptest.Hole), want: "451 4.4.2 Connected to 192.0.2.1 but greeting failed.", phase: wire.Greeting},
		{
			name: "greeted with 554", steps: says(smtptest.Connect, "554 5.7.1 go away"), phase: wire.Greeting,
			want: "451 4.4.2 Connected to 192.0.2.1 but greeting failed. Remote host said: 554 5.7.1 go away",
		},
		{
			name: "greeted with 421", steps: says(smtptest.Connect, "421 4.7.0 too many connections"), phase: wire.Greeting,
			want: "421 4.7.0 Connected to 192.0.2.1 but greeting failed. Remote host said: 421 4.7.0 too many connections",
		},
		{
			name: "name rejected", steps: says(smtptest.Hello, "550 5.7.1 who?"), phase: wire.Hello,
			want: "451 4.4.2 Connected to 192.0.2.1 but my name was rejected. Remote host said: 550 5.7.1 who?",
		},
		{name: "reset after EHLO", steps: at(smtptest.Hello, smtptest.Abort), want: "451 4.4.2 Connected to 192.0.2.1 but my name was rejected.", phase: wire.Hello},
		{name: "reset at MAIL", steps: at(smtptest.Mail, smtptest.Abort), want: "451 4.4.2 " + died, phase: wire.MailFrom},
		{name: "hole at MAIL", steps: at(smtptest.Mail, smtptest.Hole), want: "451 4.4.2 " + died, phase: wire.MailFrom},
		{name: "MAIL refused", steps: says(smtptest.Mail, "550 5.7.1 not you"), want: "550 5.7.1 not you", phase: wire.MailFrom, remote: true},
		{name: "MAIL deferred", steps: says(smtptest.Mail, "451 4.7.1 later"), want: "451 4.7.1 later", phase: wire.MailFrom, remote: true},
		{name: "421 at MAIL", steps: says(smtptest.Mail, "421 4.3.2 down"), want: "421 4.3.2 down", phase: wire.MailFrom, remote: true},
		{name: "RCPT refused", steps: says(smtptest.Rcpt, "550 no such user"), want: "550 5.0.0 no such user", phase: wire.RcptTo, remote: true},
		{name: "RCPT greylisted", steps: says(smtptest.Rcpt, "450 4.7.1 greylisted"), want: "450 4.7.1 greylisted", phase: wire.RcptTo, remote: true},
		{name: "421 at RCPT", steps: says(smtptest.Rcpt, "421 4.3.2 down"), want: "421 4.3.2 down", phase: wire.RcptTo, remote: true},
		{name: "reset at RCPT", steps: at(smtptest.Rcpt, smtptest.Abort), want: "451 4.4.2 " + died, phase: wire.RcptTo},
		{name: "hole at RCPT", steps: at(smtptest.Rcpt, smtptest.Hole), want: "451 4.4.2 " + died, phase: wire.RcptTo},
		{name: "DATA refused", steps: says(smtptest.Data, "554 5.7.1 no"), want: "554 5.7.1 no", phase: wire.Data, remote: true},
		{name: "421 at DATA", steps: says(smtptest.Data, "421 4.3.2 down"), want: "421 4.3.2 down", phase: wire.Data, remote: true},
		{name: "reset at DATA", steps: at(smtptest.Data, smtptest.Abort), want: "451 4.4.2 " + died, phase: wire.Data},
		{name: "hole at DATA", steps: at(smtptest.Data, smtptest.Hole), want: "451 4.4.2 " + died, phase: wire.Data},
		{name: "reset in the body", steps: at(smtptest.Body, smtptest.Abort), want: "451 4.4.2 " + died, phase: wire.Body, big: true},
		{name: "stops reading the body", steps: at(smtptest.Body, smtptest.Stall), want: "451 4.4.2 " + died, phase: wire.Body, big: true},
		{
			name: "refused in the body", steps: []smtptest.Step{{At: smtptest.Body, Bytes: 1000, Reply: "552 5.3.4 too big", End: smtptest.Close}},
			want: "552 5.3.4 too big", phase: wire.Body, remote: true, big: true,
		},
		{name: "250 at DATA", steps: says(smtptest.Data, "250 ok"), want: "451 4.4.2 " + died, phase: wire.Data},
		{name: "closed after the dot", steps: at(smtptest.Dot, smtptest.Close), want: "451 4.4.2 " + died + " Possible duplicate!", phase: wire.Dot, perhaps: true, got: 1},
		{name: "reset after the dot", steps: at(smtptest.Dot, smtptest.Abort), want: "451 4.4.2 " + died + " Possible duplicate!", phase: wire.Dot, perhaps: true, got: 1},
		{name: "half-closed after the dot", steps: at(smtptest.Dot, smtptest.HalfClose), want: "451 4.4.2 " + died + " Possible duplicate!", phase: wire.Dot, perhaps: true, got: 1},
		{name: "hole after the dot", steps: at(smtptest.Dot, smtptest.Hole), want: "451 4.4.2 " + died + " Possible duplicate!", phase: wire.Dot, perhaps: true, got: 1},
		{name: "nonsense after the dot", steps: says(smtptest.Dot, "354 go ahead"), want: "451 4.4.2 " + died + " Possible duplicate!", phase: wire.Dot, perhaps: true, got: 1},
		{name: "refused after the dot", steps: says(smtptest.Dot, "554 5.6.0 spam"), want: "554 5.6.0 spam", phase: wire.Dot, remote: true, got: 1},
		{name: "421 after the dot", steps: says(smtptest.Dot, "421 4.3.2 down"), want: "421 4.3.2 down", phase: wire.Dot, remote: true, got: 1},
		{name: "reset after the 250", steps: at(smtptest.After, smtptest.Abort), want: "250 2.0.0 ok 1.1", phase: wire.Dot, remote: true, got: 1},
		{name: "hole after the 250", steps: at(smtptest.After, smtptest.Hole), want: "250 2.0.0 ok 1.1", phase: wire.Dot, remote: true, got: 1},
		{name: "hole at QUIT", steps: at(smtptest.Quit, smtptest.Hole), want: "250 2.0.0 ok 1.1", phase: wire.Dot, remote: true, got: 1},
		{
			name: "a reply with another line in it", steps: []smtptest.Step{{At: smtptest.Rcpt, Raw: "550 5.1.1 \r\nT victim@x\r\n", End: smtptest.Hole}},
			want: "550 5.1.1 message refused", phase: wire.RcptTo, remote: true,
		},
		{
			name: "8-bit and control bytes", steps: []smtptest.Step{{At: smtptest.Rcpt, Raw: "550-5.1.1 J\xf6rg\x1b[2J\x00\r\n550 5.1.1 gone\r\n"}},
			want: "550 5.1.1 J?rg?[2J? gone", phase: wire.RcptTo, remote: true,
		},
	} {
		for name, tls := range map[string]*tls.Config{"": nil, ", TLS": secure} {
			t.Run(c.name+name, func(t *testing.T) {
				t.Parallel()
				n := newInternet(t)
				s := n.put("d.test", "192.0.2.1", smtptest.Options{Steps: c.steps, TLS: tls})
				j := job("d.test", "r@d.test")
				if c.big {
					j.Content = message.FromString(big)
				}
				r := one(t, n.exit(smtp.Options{}), j)
				if got := r.Reply.SMTP(); got != c.want || r.Phase != c.phase || r.Perhaps != c.perhaps || r.Remote != c.remote {
					t.Errorf("%q, phase %v, perhaps %v, remote %v: %v", got, r.Phase, r.Perhaps, r.Remote, r.Err)
				}
				if r.Where != "d.test [192.0.2.1]" || len(s.Messages()) != c.got || r.Perhaps && r.Reply.Class != reply.Temporary {
					t.Errorf("%+v, %d messages", r, len(s.Messages()))
				}
				if r.Phase >= wire.MailFrom && (r.TLS.Version != 0) != (tls != nil) {
					t.Errorf("TLS %q", r.TLS)
				}
			})
		}
	}
}

func at(a smtptest.At, end smtptest.End) []smtptest.Step {
	return []smtptest.Step{{At: a, End: end, Bytes: 1000}}
}

func says(a smtptest.At, text string) []smtptest.Step { return []smtptest.Step{{At: a, Reply: text}} }

// TestNoServer is what the DNS and the network mean by themselves.
func TestNoServer(t *testing.T) {
	notFound := &net.DNSError{Err: "no such domain", IsNotFound: true}
	for _, c := range []struct {
		name, domain string
		set          func(n *internet, o *smtp.Options)
		want         string
	}{
		{"NXDOMAIN", "d.test", func(n *internet, _ *smtp.Options) { n.mxErr["d.test"] = notFound }, "550 5.1.2 Sorry, I couldn't find any host named d.test."},
		{"SERVFAIL", "d.test", func(n *internet, _ *smtp.Options) { n.mxErr["d.test"] = errTemporary }, "451 4.4.3 Sorry, I couldn't find any host by that name."},
		{"null MX", "d.test", func(n *internet, _ *smtp.Options) { n.mx["d.test"] = resolve.MX{Null: true} }, "556 5.1.10 Sorry, d.test does not accept mail (null MX)."},
		{"neither MX nor address", "d.test", func(*internet, *smtp.Options) {}, "550 5.1.2 Sorry, I couldn't find any host named d.test."},
		{"MX without an address", "d.test", func(n *internet, _ *smtp.Options) {
			n.mx["d.test"] = exchangers(resolve.Host{Name: "mx.d.test"})
		}, "550 5.4.4 Sorry, I couldn't find a mail exchanger or IP address."},
		{"MX that names no host", "d.test", func(n *internet, _ *smtp.Options) { n.mx["d.test"] = exchangers() }, "550 5.4.4 Sorry, I couldn't find a mail exchanger or IP address."},
		{"MX whose address nobody could tell", "d.test", func(n *internet, _ *smtp.Options) {
			n.mx["d.test"] = exchangers(resolve.Host{Name: "mx1.d.test"}, resolve.Host{Name: "mx2.d.test", Preference: 1})
			n.soft["mx2.d.test"] = true
		}, "451 4.4.3 Sorry, I couldn't find any host by that name."},
		{"refused", "d.test", func(n *internet, _ *smtp.Options) { n.refuse("d.test", "192.0.2.1") }, "451 4.4.1 Sorry, I wasn't able to establish an SMTP connection."},
		{"black hole", "d.test", func(n *internet, _ *smtp.Options) { n.hosts["d.test"] = []string{"192.0.2.1"} }, "451 4.4.1 Sorry, I wasn't able to establish an SMTP connection."},
		{"all networks unreachable", "d.test", func(n *internet, _ *smtp.Options) {
			n.hosts["d.test"] = []string{"2001:db8::1"}
			n.fails["[2001:db8::1]:25"] = &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}
		}, "451 4.4.1 Sorry, I wasn't able to establish an SMTP connection."},
		{"0.0.0.0", "d.test", func(n *internet, _ *smtp.Options) { n.hosts["d.test"] = []string{"0.0.0.0", "::", "224.0.0.1"} }, "550 5.1.2 Sorry, I couldn't find any host named d.test."},
		{"we are the best MX by name", "d.test", func(n *internet, o *smtp.Options) {
			n.mx["d.test"] = exchangers(resolve.Host{Name: "us.test", Preference: 5}, resolve.Host{Name: "mx.d.test", Preference: 10})
			n.hosts["mx.d.test"] = []string{"192.0.2.1"}
			o.Self = func(host string, _ netip.Addr) bool { return host == "us.test" }
		}, "554 5.4.6 Sorry. Although I'm listed as a best-preference MX or A for that host, it isn't in my control/locals file, so I don't treat it as local."},
		{"we are the best MX by address", "d.test", func(n *internet, o *smtp.Options) {
			n.hosts["d.test"] = []string{"198.51.100.1", "192.0.2.1"}
			o.Self = func(_ string, a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.1") }
		}, "554 5.4.6 Sorry. Although I'm listed as a best-preference MX or A for that host, it isn't in my control/locals file, so I don't treat it as local."},
		{"no literal", "[mx.d.test]", func(*internet, *smtp.Options) {}, "550 5.1.2 Sorry, I couldn't find any host named [mx.d.test]."},
		{"route to nowhere", "d.test", func(n *internet, o *smtp.Options) {
			n.refuse("d.test", "192.0.2.1")
			o.Routes = to(smtp.Hop{Host: "inner.test", Port: 2525})
		}, "451 4.4.4 Sorry, I couldn't find any host named inner.test, which is the route to this domain."},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newInternet(t)
			var o smtp.Options
			c.set(n, &o)
			r := one(t, n.exit(o), job(c.domain, "r@d.test"))
			if got := r.Reply.SMTP(); got != c.want || r.Remote || r.Perhaps || r.Phase != wire.Connect {
				t.Errorf("%q %+v", got, r)
			}
		})
	}
}

func TestNextAddress(t *testing.T) {
	for _, c := range []struct {
		name  string
		first []smtptest.Step // nil: refused
		want  string
		both  bool
	}{
		{"refused", nil, "250", true},
		{"greeting", says(smtptest.Connect, "554 no"), "250", true},
		{"name", says(smtptest.Hello, "421 no"), "250", true},
		{"lost at MAIL", at(smtptest.Mail, smtptest.Close), "250", true},
		{"lost at DATA", at(smtptest.Data, smtptest.Abort), "250", true},
		{"4xx at MAIL", says(smtptest.Mail, "451 4.0.0 later"), "451", false},
		{"421 at RCPT", says(smtptest.Rcpt, "421 4.0.0 later"), "421", false},
		{"lost after the dot", at(smtptest.Dot, smtptest.Close), "451", false},
		{"lost in the body", at(smtptest.Body, smtptest.Close), "451", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newInternet(t)
			n.mx["d.test"] = exchangers(resolve.Host{Name: "mx1.d.test", Preference: 10}, resolve.Host{Name: "mx2.d.test", Preference: 20})
			if c.first == nil {
				n.refuse("mx1.d.test", "192.0.2.1")
			} else {
				n.serve("mx1.d.test", "192.0.2.1", c.first...)
			}
			second := n.serve("mx2.d.test", "192.0.2.2")
			j := job("d.test", "r@d.test")
			j.Content = message.FromString(sample + strings.Repeat("more\n", 1000))
			r := one(t, n.exit(smtp.Options{}), j)
			if r.Reply.SMTP()[:3] != c.want || (second.Stats().Connections == 1) != c.both {
				t.Errorf("%+v, %+v", r, second.Stats())
			}
		})
	}
}

func TestAddressAsExchanger(t *testing.T) {
	n := newInternet(t)
	n.mx["d.test"] = exchangers(resolve.Host{Name: "192.0.2.1"})
	n.serve("unnamed", "192.0.2.1")
	if r := one(t, n.exit(smtp.Options{}), job("d.test", "r@d.test")); r.Reply.Class != reply.Success {
		t.Errorf("%+v", r)
	}
}

func TestOrderOfAddresses(t *testing.T) {
	n := newInternet(t)
	n.mx["d.test"] = exchangers(resolve.Host{Name: "a", Preference: 1}, resolve.Host{Name: "b", Preference: 1}, resolve.Host{Name: "c", Preference: 2}, resolve.Host{Name: "d", Preference: 3})
	n.refuse("a", "192.0.2.1")
	n.refuse("a", "2001:db8::1")
	n.refuse("b", "192.0.2.2")
	n.refuse("b", "192.0.2.1") // known already
	n.refuse("b", "2001:db8::2")
	n.refuse("b", "2001:db8::3")
	n.refuse("c", "192.0.2.3")
	n.refuse("d", "192.0.2.4")
	r := one(t, n.exit(smtp.Options{}), job("d.test", "r@d.test"))
	want := []string{"[2001:db8::1]:25", "192.0.2.1:25", "[2001:db8::2]:25", "192.0.2.2:25", "192.0.2.3:25"}
	if got := n.dials(); !slices.Equal(got, want) || r.Reply.Class != reply.Temporary {
		t.Errorf("%v %+v", got, r)
	}
	// With an IPv4 source, IPv6 is not tried, and there is room for more.
	n.dialed = nil
	one(t, n.exit(smtp.Options{Source: smtp.Source{IPv4: netip.MustParseAddr("192.0.2.99")}, MaxAddresses: 9}), job("d.test", "r@d.test"))
	if got := n.dials(); !slices.Equal(got, []string{"192.0.2.1:25", "192.0.2.2:25", "192.0.2.3:25", "192.0.2.4:25"}) {
		t.Error(got)
	}
}

func TestUnreachableNetworkDoesNotCount(t *testing.T) {
	n := newInternet(t)
	for _, a := range []string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8::5"} {
		n.hosts["d.test"] = append(n.hosts["d.test"], a)
		n.fails["["+a+"]:25"] = &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}
	}
	n.refuse("d.test", "192.0.2.1")
	n.serve("d.test", "192.0.2.2")
	if r := one(t, n.exit(smtp.Options{MaxAddresses: 2}), job("d.test", "r@d.test")); r.Reply.Class != reply.Success {
		t.Errorf("%+v %v", r, n.dials())
	}
}

func TestAtMostTwoSessions(t *testing.T) {
	n := newInternet(t)
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
		n.serve("d.test", a, smtptest.Step{At: smtptest.Connect, Reply: "421 4.3.2 " + a})
	}
	r := one(t, n.exit(smtp.Options{}), job("d.test", "r@d.test"))
	if !strings.Contains(r.Reply.Text, "421 4.3.2 192.0.2.2") || len(n.dials()) != 2 {
		t.Errorf("%+v %v", r, n.dials())
	}
}

func TestManyExchangers(t *testing.T) {
	n := newInternet(t)
	var all []resolve.Host
	for i := range 250 {
		all = append(all, resolve.Host{Name: "mx" + strings.Repeat("x", i) + ".test", Preference: uint16(i / 50)})
	}
	n.mx["d.test"] = exchangers(all...)
	n.serve("mx"+strings.Repeat("x", 100)+".test", "192.0.2.1")
	if r := one(t, n.exit(smtp.Options{}), job("d.test", "r@d.test")); r.Reply.Class != reply.Success {
		t.Errorf("%+v", r)
	}
}

func TestEachRecipientHasItsResult(t *testing.T) {
	n := newInternet(t)
	s := n.serve("d.test", "192.0.2.1",
		smtptest.Step{At: smtptest.Rcpt, Match: "no@d.test", Reply: "550 5.1.1 no such user"},
		smtptest.Step{At: smtptest.Rcpt, Match: "full@d.test", Reply: "452 4.2.2 mailbox full"})
	results := n.exit(smtp.Options{}).Deliver(t.Context(), job("d.test", "no@d.test", "yes@d.test", "full@d.test", "bad>x@d.test", "a b@d.test", ""))
	var got []string
	for _, r := range results {
		got = append(got, r.Reply.SMTP()[:9])
	}
	// The full one is tried again in case that there was no room for it, and only
	// once.
	want := []string{"550 5.1.1", "250 2.0.0", "452 4.2.2", "553 5.1.3", "250 2.0.0", "553 5.1.3"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if m := s.Messages(); len(m) != 1 || !reflect.DeepEqual(m[0].Addresses(), []string{"yes@d.test", `"a b"@d.test`}) {
		t.Errorf("%d messages", len(m))
	}
}

func TestMoreRecipientsThanTheServerTakes(t *testing.T) {
	n := newInternet(t)
	n.hosts["d.test"] = []string{"192.0.2.1"}
	s := smtptest.Start(t, smtptest.Options{Recipients: 3})
	n.sinks["192.0.2.1:25"] = s
	j := job("d.test", "a@d.test", "b@d.test", "c@d.test", "d@d.test", "e@d.test", "f@d.test", "g@d.test", "h@d.test")
	for _, r := range n.exit(smtp.Options{MaxRecipients: 5}).Deliver(t.Context(), j) {
		if r.Reply.Class != reply.Success {
			t.Errorf("%+v", r)
		}
	}
	seen := map[string]int{}
	for _, m := range s.Messages() {
		for _, a := range m.Addresses() {
			seen[a]++
		}
	}
	if len(seen) != 8 || s.Stats().Recipients != 8 || s.Stats().Connections != 1 {
		t.Errorf("%v %+v", seen, s.Stats())
	}
}

// TestLostBetweenTransactions: what was delivered stays so, and the rest goes to
// the next address.
func TestLostBetweenTransactions(t *testing.T) {
	n := newInternet(t)
	first := n.serve("d.test", "192.0.2.1", smtptest.Step{At: smtptest.After, End: smtptest.Close})
	second := n.serve("d.test", "192.0.2.2")
	for _, r := range n.exit(smtp.Options{MaxRecipients: 2}).Deliver(t.Context(), job("d.test", "a@d.test", "b@d.test", "c@d.test")) {
		if r.Reply.Class != reply.Success {
			t.Errorf("%+v", r)
		}
	}
	if first.Stats().Recipients != 2 || second.Stats().Recipients != 1 {
		t.Errorf("%+v %+v", first.Stats(), second.Stats())
	}
}

func TestWhatTheServerCannotCarry(t *testing.T) {
	eight := "Subject: x\n\n\xe4\n"
	for _, c := range []struct {
		name     string
		offered  []string
		o        smtp.Options
		text     string
		from, to string
		want     string
		sent     string // the recipient's address, if sent
	}{
		{name: "too big", offered: []string{"SIZE 20"}, want: "552 5.3.4 The message has 26 bytes and the server takes 20 at most."},
		{name: "big enough", offered: []string{"SIZE 26"}, want: "250", sent: "r@d.test"},
		{name: "no limit", offered: []string{"SIZE 0"}, want: "250", sent: "r@d.test"},
		{name: "8-bit is sent all the same", offered: []string{}, text: eight, want: "250", sent: "r@d.test"},
		{name: "8-bit is refused by option", offered: []string{}, o: smtp.Options{RefuseEightBit: true}, text: eight, want: "554 5.6.3"},
		{name: "8-bit is taken", offered: []string{"8BITMIME"}, o: smtp.Options{RefuseEightBit: true}, text: eight, want: "250", sent: "r@d.test"},
		{name: "UTF-8 head is refused by option", offered: []string{"8BITMIME"}, o: smtp.Options{RefuseEightBit: true}, text: "Subject: ä\n\nx\n", want: "553 5.6.7"},
		{name: "UTF-8 local part", offered: []string{}, to: "jörg@d.test", want: "553 5.6.7"},
		{name: "UTF-8 local part taken", to: "jörg@d.test", want: "250", sent: "jörg@d.test"},
		{name: "UTF-8 domain in ASCII", offered: []string{}, to: "r@bücher.test", want: "250", sent: "r@xn--bcher-kva.test"},
		{name: "UTF-8 sender", offered: []string{}, from: "jörg@us.test", want: "553 5.6.7"},
		{name: "sender that cannot be written", from: "a@b\r\nRCPT TO:<x@y>", want: "553 5.1.7"},
		{name: "double bounce", from: "#@[]", want: "250", sent: "r@d.test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInternet(t)
			n.hosts["d.test"] = []string{"192.0.2.1"}
			s := smtptest.Start(t, smtptest.Options{Extensions: c.offered})
			n.sinks["192.0.2.1:25"] = s
			if c.to == "" {
				c.to = "r@d.test"
			}
			j := job("d.test", c.to)
			if c.text != "" {
				j.Content = message.FromString(c.text)
			}
			if c.from != "" {
				j.Envelope.Sender = c.from
			}
			r := one(t, n.exit(c.o), j)
			if !strings.HasPrefix(r.Reply.SMTP(), c.want) {
				t.Fatalf("%+v", r)
			}
			var sent string
			for _, m := range s.Messages() {
				sent = m.Recipients[0].Address
				if c.from == envelope.DoubleBounce && m.Mail.Sender != "" {
					t.Errorf("sender %q", m.Mail.Sender)
				}
			}
			if sent != c.sent {
				t.Errorf("sent to %q", sent)
			}
		})
	}
}

func TestRoutes(t *testing.T) {
	n := newInternet(t)
	s := smtptest.New(t)
	for _, address := range []string{"192.0.2.7:2525", "192.0.2.7:25", "[2001:db8::7]:2525", "192.0.2.8:2525"} {
		n.sinks[address] = s
	}
	n.hosts["inner.test"], n.hosts["d.test"] = []string{"192.0.2.7"}, []string{"192.0.2.8"}
	for _, c := range []struct {
		host, domain string
		port         uint16
		want, site   string
	}{
		{"inner.test", "d.test", 2525, "inner.test [192.0.2.7]:2525", "inner.test"},
		{"192.0.2.7", "d.test", 0, "[192.0.2.7]", "192.0.2.7"},
		{"[192.0.2.7]", "d.test", 2525, "[192.0.2.7]:2525", "[192.0.2.7]"},
		{"2001:db8::7", "d.test", 2525, "[2001:db8::7]:2525", "2001:db8::7"},
		{"", "d.test", 2525, "d.test [192.0.2.8]:2525", "d.test"},
		{"", "[192.0.2.7]", 0, "[192.0.2.7]", "[192.0.2.7]"},
		{"", "[IPv6:2001:db8::7]", 2525, "[2001:db8::7]:2525", "[ipv6:2001:db8::7]"},
	} {
		x := n.exit(smtp.Options{Routes: to(smtp.Hop{Host: c.host, Port: c.port})})
		r := one(t, x, job(c.domain, "r@d.test"))
		if r.Reply.Class != reply.Success || r.Where != c.want {
			t.Errorf("%+v: %+v", c, r)
		}
		if site, err := x.Site(t.Context(), c.domain); err != nil || site.Name != c.site {
			t.Errorf("%+v: %+v %v", c, site, err)
		}
	}
}

func TestPrepare(t *testing.T) {
	n := newInternet(t)
	s := n.serve("d.test", "192.0.2.1")
	x := n.exit(smtp.Options{})
	j := job("d.test", "r@d.test")
	j.Prepare = func(_ context.Context, caps wire.Capabilities) (message.Message, error) {
		if !caps.Extensions.Has(wire.EightBit) {
			t.Error("the capabilities are missing")
		}
		return message.FromString("X: signed\n\nbody\n"), nil
	}
	if r := one(t, x, j); r.Reply.Class != reply.Success || string(s.Messages()[0].Content) != "X: signed\n\nbody\n" {
		t.Errorf("%+v", r)
	}
	j.Prepare = func(context.Context, wire.Capabilities) (message.Message, error) {
		return message.Message{}, errors.New("no key")
	}
	if r := one(t, x, j); r.Reply != reply.Trouble || len(s.Messages()) != 1 {
		t.Errorf("%+v", r)
	}
}

func TestUnreadableMessage(t *testing.T) {
	n := newInternet(t)
	s := n.serve("d.test", "192.0.2.1")
	j := job("d.test", "r@d.test")
	body := message.StoredBody{At: shorter{}, Size: 1000, LFs: 1}.Open()
	defer body.Release()
	j.Content = j.Content.WithBody(body)
	r := one(t, n.exit(smtp.Options{}), j)
	s.Close()
	if r.Reply.SMTP() != "451 4.3.0 Unable to read message." || r.Perhaps || r.Remote || len(s.Messages()) != 0 {
		t.Errorf("%+v, %d messages", r, len(s.Messages()))
	}
}

type shorter struct{}

func (shorter) ReadAt([]byte, int64) (int, error) { return 0, errors.New("EIO") }

func TestContextEnds(t *testing.T) {
	n := newInternet(t)
	n.hosts["hole.test"] = []string{"192.0.2.9"}
	s := n.serve("d.test", "192.0.2.1", smtptest.Step{At: smtptest.Dot, End: smtptest.Hole})
	long := time.Hour
	x := n.exit(smtp.Options{ConnectTimeout: long, Timeouts: wire.Timeouts{Dot: long}})
	for _, domain := range []string{"hole.test", "d.test"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			for len(s.Messages()) == 0 && (domain == "d.test" || len(n.dials()) == 0) {
				time.Sleep(time.Millisecond)
			}
			cancel(errShutdown)
		}()
		r := x.Deliver(ctx, job(domain, "r@d.test"))[0]
		if r.Reply.Class != reply.Temporary || r.Perhaps != (domain == "d.test") || !errors.Is(r.Err, errShutdown) {
			t.Errorf("%s: %+v", domain, r)
		}
	}
}

// TestAnswersBeforeTheLossStand: who was refused stays refused, and the others go
// to the next address.
func TestAnswersBeforeTheLossStand(t *testing.T) {
	n := newInternet(t)
	n.serve("d.test", "192.0.2.1",
		smtptest.Step{At: smtptest.Rcpt, Match: "no@d.test", Reply: "550 5.1.1 no such user"},
		smtptest.Step{At: smtptest.Rcpt, Match: "last@d.test", End: smtptest.Close})
	second := n.serve("d.test", "192.0.2.2")
	var got []string
	for _, r := range n.exit(smtp.Options{}).Deliver(t.Context(), job("d.test", "first@d.test", "no@d.test", "last@d.test")) {
		got = append(got, r.Reply.SMTP()[:9]+" "+r.Where)
	}
	want := []string{"250 2.0.0 d.test [192.0.2.2]", "550 5.1.1 d.test [192.0.2.1]", "250 2.0.0 d.test [192.0.2.2]"}
	if !slices.Equal(got, want) || !reflect.DeepEqual(second.Messages()[0].Addresses(), []string{"first@d.test", "last@d.test"}) {
		t.Errorf("%q", got)
	}
}

func TestSourceAddress(t *testing.T) {
	n := newInternet(t)
	s := smtptest.New(t)
	n.hosts["d.test"] = []string{"::1", "127.0.0.1"}
	x, err := smtp.New(smtp.Options{Resolver: n, Port: s.AddrPort().Port(), Source: smtp.Source{IPv4: netip.MustParseAddr("127.0.0.2")}})
	if err != nil {
		t.Fatal(err)
	}
	r := one(t, x, job("d.test", "r@d.test"))
	if r.Reply.Class != reply.Success || s.Messages()[0].Peer.Addr() != netip.MustParseAddr("127.0.0.2") {
		t.Errorf("%+v", r)
	}
}

func TestResolverIsNeeded(t *testing.T) {
	if _, err := smtp.New(smtp.Options{}); err == nil {
		t.Error("no resolver, no error")
	}
}
