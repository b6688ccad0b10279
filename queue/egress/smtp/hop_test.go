package smtp_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// to is a route for all domains.
func to(hops ...smtp.Hop) func(string) []smtp.Hop {
	return func(string) []smtp.Hop { return hops }
}

func TestParseHop(t *testing.T) {
	for _, c := range []struct {
		text string
		want smtp.Hop
		str  string // if it is not text
	}{
		{"", smtp.Hop{}, ""},
		{":26", smtp.Hop{Port: 26}, ""},
		{"mx.test", smtp.Hop{Host: "mx.test"}, ""},
		{"mx.test:2525", smtp.Hop{Host: "mx.test", Port: 2525}, ""},
		{"smtp:25", smtp.Hop{Host: "smtp", Port: 25}, ""},
		{"lmtp", smtp.Hop{Host: "lmtp"}, ""},
		{"smtp:mx.test", smtp.Hop{Host: "mx.test"}, "mx.test"},
		{"[192.0.2.1]", smtp.Hop{Host: "192.0.2.1"}, "192.0.2.1"},
		{"[192.0.2.1]:26", smtp.Hop{Host: "192.0.2.1", Port: 26}, "192.0.2.1:26"},
		{"2001:db8::1", smtp.Hop{Host: "2001:db8::1"}, "[2001:db8::1]"},
		{"[IPv6:2001:db8::1]", smtp.Hop{Host: "2001:db8::1"}, "[2001:db8::1]"},
		{"[2001:db8::1]:26", smtp.Hop{Host: "2001:db8::1", Port: 26}, ""},
		{"smtps://mx.test", smtp.Hop{Transport: smtp.SMTPS, Host: "mx.test"}, ""},
		{"SMTP://mx.test:26", smtp.Hop{Host: "mx.test", Port: 26}, "mx.test:26"},
		{"lmtp://mx.test:2424", smtp.Hop{Transport: smtp.LMTP, Host: "mx.test", Port: 2424}, ""},
		{"lmtp:unix:/run/lmtp", smtp.Hop{Transport: smtp.LMTP, Socket: "/run/lmtp"}, ""},
		{"qmtp://[::1]", smtp.Hop{Transport: smtp.QMTP, Host: "::1"}, ""},
		{"qmqp:192.0.2.1", smtp.Hop{Transport: smtp.QMQP, Host: "192.0.2.1"}, "qmqp://192.0.2.1"},
		{"discard:", smtp.Hop{Transport: smtp.Discard}, ""},
	} {
		h, err := smtp.ParseHop(c.text)
		if err != nil || h != c.want {
			t.Errorf("%q: %+v %v", c.text, h, err)
		}
		if want := c.str; h.String() != want && (want != "" || h.String() != c.text) {
			t.Errorf("%q is written %q", c.text, h)
		}
	}
	for _, text := range []string{
		"a b", "mx.test:0", "mx.test:x", "mx.test:99999", "http://mx.test", "lmtp://", "qmqp:", "discard:x", "lmtp:unix:run/lmtp", "lmtp:unix:/a/../b", "-x.test",
		"unix:/run/lmtp", "smtp://a/b", "[x", strings.Repeat("a", 600), "qmtp:unix:/\x01", "2001:db8::1%eth0",
	} {
		if h, err := smtp.ParseHop(text); err == nil {
			t.Errorf("%q is taken for %+v", text, h)
		}
	}
}

func FuzzParseHop(f *testing.F) {
	for _, s := range []string{"", "a:25", "[::1]:25", "lmtp:unix:/x", "qmqp://a", "discard:", "smtps://[IPv6:::1]:465"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := smtp.ParseHop(s)
		if err != nil {
			return
		}
		if again, err := smtp.ParseHop(h.String()); err != nil || again.String() != h.String() {
			t.Errorf("%q is %+v, written %q, which is %+v %v", s, h, h.String(), again, err)
		}
		if strings.ContainsAny(h.Host+h.Socket, "\r\n\x00 ") {
			t.Errorf("%q gives %+v", s, h)
		}
	})
}

// TestFailOver: the next hop is for those cases in which there was no session with
// the one before.
func TestFailOver(t *testing.T) {
	hops := []smtp.Hop{{Host: "a.test", Port: 25}, {Host: "192.0.2.2"}, {Host: "c.test"}, {Host: "d.test"}}
	for _, c := range []struct {
		name  string
		set   func(n *internet)
		where string
		want  string
	}{
		{"the first", func(n *internet) { n.serve("a.test", "192.0.2.1") }, "a.test [192.0.2.1]", "250"},
		{"refused", func(n *internet) { n.refuse("a.test", "192.0.2.1") }, "[192.0.2.2]", "250"},
		{"no such host", func(*internet) {}, "[192.0.2.2]", "250"},
		{"silent", func(n *internet) { n.dead("a.test", "192.0.2.1") }, "[192.0.2.2]", "250"},
		{"greeted with 554", func(n *internet) { n.serve("a.test", "192.0.2.1", says(smtptest.Connect, "554 no")...) }, "[192.0.2.2]", "250"},
		{"name rejected", func(n *internet) { n.serve("a.test", "192.0.2.1", says(smtptest.Hello, "550 no")...) }, "[192.0.2.2]", "250"},
		{"MAIL refused", func(n *internet) { n.serve("a.test", "192.0.2.1", says(smtptest.Mail, "550 no")...) }, "a.test [192.0.2.1]", "550"},
		{"MAIL deferred", func(n *internet) { n.serve("a.test", "192.0.2.1", says(smtptest.Mail, "450 no")...) }, "a.test [192.0.2.1]", "450"},
		{"RCPT refused", func(n *internet) { n.serve("a.test", "192.0.2.1", says(smtptest.Rcpt, "550 no")...) }, "a.test [192.0.2.1]", "550"},
		{"three that greet badly", func(n *internet) {
			n.serve("a.test", "192.0.2.1", says(smtptest.Connect, "421 no")...)
			n.serve("b.test", "192.0.2.2", says(smtptest.Connect, "421 no")...)
			n.serve("c.test", "192.0.2.3", says(smtptest.Connect, "421 no")...)
			n.serve("d.test", "192.0.2.4")
		}, "d.test [192.0.2.4]", "250"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInternet(t)
			c.set(n)
			if n.sinks["192.0.2.2:25"] == nil {
				n.serve("b.test", "192.0.2.2")
			}
			x := n.exit(smtp.Options{Routes: to(hops...), Self: func(host string, _ netip.Addr) bool { return host == "d.test" }})
			r := one(t, x, job("e.test", "r@e.test"))
			if r.Where != c.where || !strings.HasPrefix(r.Reply.SMTP(), c.want) {
				t.Errorf("%+v", r)
			}
			if s, err := x.Site(t.Context(), "e.test"); err != nil || s.Name != "192.0.2.2,a.test,c.test,d.test" {
				t.Errorf("%+v %v", s, err)
			}
		})
	}
}

func TestDiscard(t *testing.T) {
	n := newInternet(t)
	x := n.exit(smtp.Options{Routes: to(smtp.Hop{Transport: smtp.Discard})})
	for _, r := range x.Deliver(t.Context(), job("d.test", "a@d.test", "b@d.test")) {
		if r.Reply.Class != reply.Success || r.Remote || r.Where != "discard:" {
			t.Errorf("%+v", r)
		}
	}
	if len(n.dials()) > 0 {
		t.Errorf("%q", n.dials())
	}
	if s, err := x.Site(t.Context(), "d.test"); err != nil || s.Name == "" {
		t.Errorf("%+v %v", s, err)
	}
}

// TestLMTPRoute: each recipient has the answer that the server gave for him.
func TestLMTPRoute(t *testing.T) {
	n := newInternet(t)
	s := smtptest.New(t,
		smtptest.Step{At: smtptest.Rcpt, Match: "no@d.test", Reply: "550 5.1.1 no such user"},
		smtptest.Step{At: smtptest.Dot, Match: "full@d.test", Reply: "452 4.2.2 full"},
		smtptest.Step{At: smtptest.Dot, Match: "never@d.test", Reply: "552 5.2.2 full"},
		smtptest.Step{At: smtptest.Dot, Match: "lost@d.test", End: smtptest.Close})
	n.sinks["192.0.2.1:24"] = s
	x := n.exit(smtp.Options{Routes: to(smtp.Hop{Transport: smtp.LMTP, Host: "192.0.2.1"})})
	check := func(want []string, names ...string) {
		t.Helper()
		for i, r := range x.Deliver(t.Context(), job("d.test", names...)) {
			if got := r.Reply.SMTP(); !strings.HasPrefix(got, want[i]) || r.Perhaps != strings.Contains(want[i], "died") || r.Where != "[192.0.2.1]:24" {
				t.Errorf("%s: %+v", names[i], r)
			}
		}
	}
	check([]string{"452 4.2.2", "550 5.1.1", "250 2.1.5", "552 5.2.2"}, "full@d.test", "no@d.test", "yes@d.test", "never@d.test")
	check([]string{"452 4.2.2", "552 5.2.2"}, "full@d.test", "never@d.test")
	died := "451 4.4.2 Connected to 192.0.2.1 but connection died. Possible duplicate!"
	check([]string{"250 2.1.5", died, died}, "yes@d.test", "lost@d.test", "full@d.test")
	if st := s.Stats(); st.Connections != 1 {
		t.Errorf("%+v", st)
	}
}

// TestUnixSocket: LMTP over a Unix socket, with connections kept, and a next hop.
func TestUnixSocket(t *testing.T) {
	n := newInternet(t)
	s := smtptest.New(t)
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { listener.Close() })
	wg.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			with, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				from.Close()
				return
			}
			for _, way := range [][2]net.Conn{{from, with}, {with, from}} {
				wg.Go(func() { relay(way[0], way[1]) })
			}
		}
	})
	there := smtp.Hop{Transport: smtp.LMTP, Socket: path}
	x := n.exit(smtp.Options{Routes: to(smtp.Hop{Transport: smtp.LMTP, Socket: path + ".none"}, there)})
	for range 2 {
		j := job("d.test", "r@d.test")
		j.Envelope.RequireTLS = true // nobody listens on the way
		if r := one(t, x, j); r.Reply.Class != reply.Success || r.Where != "unix:"+path {
			t.Fatalf("%+v", r)
		}
	}
	if st := s.Stats(); st.Connections != 1 || st.Messages != 2 {
		t.Errorf("%+v", st)
	}
	x = n.exit(smtp.Options{Routes: to(smtp.Hop{Transport: smtp.LMTP, Socket: path + ".none"})})
	for range 3 {
		if r := one(t, x, job("d.test", "r@d.test")); r.Reply.SMTP() != "451 4.4.1 Sorry, I wasn't able to establish an SMTP connection." || r.Err == nil {
			t.Errorf("%+v", r)
		}
	}
	if len(x.Dead()) > 0 {
		t.Errorf("%+v", x.Dead())
	}
}

func relay(from, to net.Conn) {
	defer to.Close()
	b := make([]byte, 4096)
	for {
		k, err := from.Read(b)
		if k > 0 {
			if _, err := to.Write(b[:k]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// courier is one that answers as it is told.
type courier struct {
	answers []reply.Reply
	perhaps int
	err     error

	got []string
}

func (c *courier) Carry(_ context.Context, conn net.Conn, e envelope.Envelope, m message.Message) ([]reply.Reply, int, error) {
	for _, r := range e.Recipients {
		c.got = append(c.got, conn.RemoteAddr().Network()+" "+r.Address+" "+m.HeadText())
	}
	return c.answers, c.perhaps, c.err
}

func TestCourier(t *testing.T) {
	ok, no := reply.Make(250, reply.Enhanced{}, "fine"), reply.Make(554, reply.Enhanced{}, "no")
	died, torn := "451 4.4.2 Connected to 192.0.2.1 but connection died.", errors.New("torn")
	for _, c := range []struct {
		name  string
		with  courier
		want  []string
		calls int
	}{
		{"all", courier{answers: []reply.Reply{ok, no}}, []string{"250 2.0.0 fine", "554 5.0.0 no"}, 1},
		{"torn before", courier{err: torn}, []string{died, died}, 2},
		{"torn between", courier{answers: []reply.Reply{ok}, perhaps: 1, err: torn}, []string{"250 2.0.0 fine", died + " Possible duplicate!"}, 1},
		{"torn before the second", courier{answers: []reply.Reply{ok}, err: torn}, []string{"250 2.0.0 fine", "250 2.0.0 fine"}, 2},
		{"too few", courier{answers: []reply.Reply{ok}}, []string{"250 2.0.0 fine", died + " Possible duplicate!"}, 1},
		{"cannot be carried", courier{err: reply.With(no, torn)}, []string{"554 5.0.0 no", "554 5.0.0 no"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInternet(t)
			n.sinks["192.0.2.1:209"] = smtptest.New(t)
			n.sinks["192.0.2.1:2209"] = n.sinks["192.0.2.1:209"]
			x := n.exit(smtp.Options{
				Routes:   to(smtp.Hop{Transport: smtp.QMTP, Host: "192.0.2.1", Port: 2209}, smtp.Hop{Transport: smtp.QMTP, Host: "192.0.2.1"}),
				Couriers: map[smtp.Transport]smtp.Courier{smtp.QMTP: &c.with},
			})
			j := job("d.test", "a@d.test", "b@d.test")
			j.Prepare = func(_ context.Context, can wire.Capabilities) (message.Message, error) {
				if !can.Extensions.Has(wire.EightBit) || !can.Extensions.Has(wire.UTF8) {
					t.Errorf("%+v", can)
				}
				return message.FromString("X: signed\n\n"), nil
			}
			for i, r := range x.Deliver(t.Context(), j) {
				if r.Reply.SMTP() != c.want[i] || r.Perhaps != strings.Contains(c.want[i], "duplicate") {
					t.Errorf("%d: %+v", i, r)
				}
			}
			if c.name != "torn before the second" && len(c.with.got) != 2*c.calls || c.with.got[0] != "tcp a@d.test X: signed\n\n" {
				t.Errorf("%q", c.with.got)
			}
			if open, _ := x.Connections("192.0.2.1"); open != 0 {
				t.Errorf("%d connections are counted", open)
			}
		})
	}
	n := newInternet(t)
	x := n.exit(smtp.Options{Routes: to(smtp.Hop{Transport: smtp.QMQP, Host: "192.0.2.1"})})
	if r := one(t, x, job("d.test", "a@d.test")); r.Reply.SMTP() != "451 4.3.5 The route to this domain cannot be used here." {
		t.Errorf("%+v", r)
	}
}
