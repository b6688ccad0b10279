package smtp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// TestMixedAnswers has servers that say different things to the recipients of one
// message, and then something to the message. Whoever was answered keeps that answer.
// The connection takes the next message as if nothing had been.
func TestMixedAnswers(t *testing.T) {
	no := smtptest.Step{At: smtptest.Rcpt, Match: "no@d.test", Reply: "550 5.1.1 no such user"}
	full := smtptest.Step{At: smtptest.Rcpt, Match: "full@d.test", Reply: "452 4.2.2 mailbox full"}
	gray := smtptest.Step{At: smtptest.Rcpt, Match: "gray@d.test", Reply: "450 4.7.1 greylisted"}
	once := func(at smtptest.At, text string) smtptest.Step {
		return smtptest.Step{At: at, Reply: text, Times: 1}
	}
	for _, c := range []struct {
		name  string
		to    string
		steps []smtptest.Step
		want  string
		lost  bool // with the connection
	}{
		{"some of each", "no full yes gray yes2", []smtptest.Step{no, full, gray}, "550 452 250 450 250", false},
		{"all refused", "no no", []smtptest.Step{no}, "550 550", false},
		{"all deferred", "full gray", []smtptest.Step{full, gray}, "452 450", false},
		{"deferred and refused", "gray no", []smtptest.Step{no, gray}, "450 550", false},
		{"all refused, and 354", "no gray", []smtptest.Step{no, gray, once(smtptest.Data, "354 go ahead")}, "550 450", false},
		{"MAIL refused, and all else taken", "yes no", []smtptest.Step{no, once(smtptest.Mail, "550 5.7.1 not you")}, "550 550", false},
		{"DATA refused", "yes no gray", []smtptest.Step{no, gray, once(smtptest.Data, "554 5.5.1 nobody")}, "554 550 450", false},
		{"DATA deferred", "yes no gray", []smtptest.Step{no, gray, once(smtptest.Data, "451 4.3.0 no disk")}, "451 550 450", false},
		{"message refused", "yes no gray", []smtptest.Step{no, gray, once(smtptest.Dot, "554 5.6.0 spam")}, "554 550 450", false},
		{"message deferred", "yes no gray", []smtptest.Step{no, gray, once(smtptest.Dot, "451 4.7.1 later")}, "451 550 450", false},
		{"lost behind the dot", "yes no gray yes2", []smtptest.Step{no, gray, {At: smtptest.Dot, End: smtptest.Close, Times: 1}}, "perhaps 550 450 perhaps", true},
		{"lost among them", "no yes", []smtptest.Step{no, {At: smtptest.Rcpt, Match: "yes@d.test", End: smtptest.Abort, Times: 1}}, "550 451", true},
		{"421 among them", "yes no bye gray", []smtptest.Step{no, {At: smtptest.Rcpt, Match: "bye@d.test", Reply: "421 4.3.2 down", Times: 1}}, "421 550 421 421", true},
		{"more than there is room for", "a no b c d", []smtptest.Step{no, once(smtptest.Rcpt, "250 ok"), {At: smtptest.Rcpt, Skip: 1, Times: 1, Reply: "550 5.5.3 too many recipients"}, {At: smtptest.Rcpt, Skip: 1, Times: 1, Reply: "451 4.5.3 too many recipients"}}, "250 550 250 250 250", false},
		{"room for nobody", "a b", []smtptest.Step{{At: smtptest.Rcpt, Times: 2, Reply: "550 5.5.3 too many recipients"}}, "550 550", false},
		{"nonsense among them", "yes what no", []smtptest.Step{no, {At: smtptest.Rcpt, Match: "what@d.test", Reply: "354 go ahead"}}, "250 451 550", false},
	} {
		for name, offers := range map[string][]string{"": nil, ", lockstep": {"8BITMIME"}} {
			t.Run(c.name+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newScene(t, mode{offers: offers}, trouble{steps: c.steps}, false)
					var to []string
					for who := range strings.FieldsSeq(c.to) {
						to = append(to, who+"@d.test")
					}
					j := job("d.test", to...)
					var got []string
					for _, r := range s.exit.Deliver(t.Context(), j) {
						w := r.Reply.SMTP()[:3]
						if r.Perhaps {
							w = "perhaps"
						}
						got = append(got, w)
					}
					if strings.Join(got, " ") != c.want {
						t.Errorf("%s, want %s", strings.Join(got, " "), c.want)
					}
					if r := one(t, s.exit, job("d.test", "next@d.test")); r.Reply.Class != reply.Success {
						t.Errorf("the next message: %+v", r)
					}
					if n := len(s.net.dials()); (n == 2) != c.lost {
						t.Errorf("%d connections", n)
					}
					for _, m := range s.servers[0].Messages() {
						if len(m.Recipients) == 0 && m.Size > 0 {
							t.Error("a message went to nobody")
						}
					}
					s.exit.Close(t.Context())
					s.close()
				})
			})
		}
	}
}

// TestAnswerBeforeTheMessage: an answer that is there before the message is not the
// one to it, whatever it says; a refusal is believed.
func TestAnswerBeforeTheMessage(t *testing.T) {
	refused := smtptest.Step{At: smtptest.Dot, Reply: "554 5.6.0 spam"}
	for _, c := range []struct {
		name  string
		steps []smtptest.Step
		m     mode
		want  string
	}{
		{"with the 354", []smtptest.Step{{At: smtptest.Data, Raw: "354 go\r\n250 2.0.0 ok\r\n"}, refused}, mode{}, "451"},
		{"with the 354, under TLS", []smtptest.Step{{At: smtptest.Data, Raw: "354 go\r\n250 2.0.0 ok\r\n"}, refused}, mode{tls: smtptest.TLS((*smtptest.Authority)(nil).Issue(t, time.Time{}, "d.test"))}, "451"},
		{"twice to a recipient, and then a chunk", []smtptest.Step{{At: smtptest.Rcpt, Raw: "250 ok\r\n250 ok\r\n"}, refused}, mode{o: smtp.Options{Chunking: true}}, "451"},
		{"no, with the 354", []smtptest.Step{{At: smtptest.Data, Raw: "354 go\r\n552 5.3.4 too big\r\n"}}, mode{}, "552"},
		{"goodbye, with the 354", []smtptest.Step{{At: smtptest.Data, Raw: "354 go\r\n421 4.3.2 down\r\n"}}, mode{}, "421"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, c.m, trouble{steps: c.steps}, false)
				r := one(t, s.exit, job("d.test", "a@d.test"))
				if !strings.HasPrefix(r.Reply.SMTP(), c.want) || r.Phase != wire.Data || r.Perhaps {
					t.Errorf("%+v", r)
				}
				if n := len(s.servers[0].Messages()); n > 0 {
					t.Errorf("the server got %d messages", n)
				}
				s.exit.Close(t.Context())
				s.close()
			})
		})
	}
}

// TestMoreAnswersThanCommands: nobody is refused by an answer that may be another's.
func TestMoreAnswersThanCommands(t *testing.T) {
	for name, steps := range map[string][]smtptest.Step{
		"to MAIL": {{At: smtptest.Mail, Raw: "250 ok\r\n250 ok\r\n"}, {At: smtptest.Rcpt, Match: "no@d.test", Reply: "550 5.1.1 no such user"}},
		"to RCPT": {{At: smtptest.Rcpt, Match: "a@d.test", Raw: "250 ok\r\n250 ok\r\n"}, {At: smtptest.Rcpt, Match: "no@d.test", Reply: "550 5.1.1 no such user"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, mode{}, trouble{steps: steps}, false)
				for _, r := range s.exit.Deliver(t.Context(), job("d.test", "a@d.test", "b@d.test", "no@d.test")) {
					if r.Reply.Class != reply.Temporary || r.Perhaps {
						t.Errorf("%+v", r)
					}
				}
				if n := len(s.servers[0].Messages()); n > 0 {
					t.Errorf("the server got %d messages", n)
				}
				s.exit.Close(t.Context())
				s.close()
			})
		})
	}
}

// TestLongAnswersAreNotKept: a server may say 64 KiB to each recipient.
func TestLongAnswersAreNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat("550-5.1.1 "+strings.Repeat("x", 900)+"\r\n", 60) + "550 5.1.1 x\r\n"
		s := newScene(t, mode{}, trouble{steps: []smtptest.Step{{At: smtptest.Rcpt, Raw: long}}}, false)
		s.most, s.net.window = 64<<20, 64<<10
		var to []string
		for i := range 100 {
			to = append(to, fmt.Sprintf("%d@d.test", i))
		}
		for _, r := range s.exit.Deliver(t.Context(), job("d.test", to...)) {
			if r.Reply.Code != 550 || len(r.Said.Text) > 4<<10 || len(r.Said.Text) < 1<<10 || len(r.Reply.Text) > reply.MaxText {
				t.Errorf("%d bytes are kept", len(r.Said.Text))
				break
			}
		}
		s.exit.Close(t.Context())
		s.close()
	})
}

// TestWhoeverGivesUpBlamesNobody: if the caller's time is over, or ours, the Gate and
// the memory of silent hosts hear nothing.
func TestWhoeverGivesUpBlamesNobody(t *testing.T) {
	for name, bad := range map[string]trouble{
		"no connection": {silent: true}, "no greeting": {step: &smtptest.Step{At: smtptest.Connect, End: smtptest.Hole}},
		"no answer to EHLO": {step: &smtptest.Step{At: smtptest.Hello, End: smtptest.Hole}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, mode{}, bad, false)
				for range 3 {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					if r := s.exit.Deliver(ctx, s.job())[0]; r.Reply.Class != reply.Temporary {
						t.Errorf("%+v", r)
					}
					if _, err := s.exit.Ask(ctx, "d.test", "a@d.test"); err == nil {
						t.Error("an answer from nobody")
					}
					cancel()
					time.Sleep(5 * time.Minute)
				}
				if heard := s.gate.heardOf("192.0.2.1"); !isNothing(heard) || len(s.exit.Dead()) > 0 {
					t.Errorf("%s, %v", heard, s.exit.Dead())
				}
				s.exit.Close(t.Context())
				s.close()
			})
		})
	}
}

// isNothing reports whether nothing was heard of any connection.
func isNothing(heard string) bool {
	return heard != "" && strings.ReplaceAll(heard, "nothing", "") == strings.Repeat("; ", strings.Count(heard, "; "))
}

// TestTarpitEndsWithTheJob: a server that is slow with everything, just not too slow,
// holds a delivery for as long as the queue lets it, and no longer.
func TestTarpitEndsWithTheJob(t *testing.T) {
	script := func(m *smtptest.Moment) *smtptest.Step {
		return &smtptest.Step{Delay: map[smtptest.At]time.Duration{smtptest.Data: 2 * time.Minute, smtptest.Dot: 10 * time.Minute}[m.At] + 5*time.Minute - time.Second}
	}
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, mode{offers: []string{}}, trouble{script: script}, true)
		var to []string
		for i := range 100 {
			to = append(to, fmt.Sprintf("%d@d.test", i))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		results := s.exit.Deliver(ctx, job("d.test", to...))
		if took := time.Since(start); took != time.Hour {
			t.Errorf("it took %v", took)
		}
		for _, r := range results {
			if r.Reply.Class != reply.Temporary || r.Perhaps {
				t.Errorf("%+v", r)
			}
		}
		s.exit.Close(t.Context())
		s.close()
	})
}

// TestSlowReaderEndsWithTheJob has a server that reads a hundred bytes a second, which
// is just enough for each write.
func TestSlowReaderEndsWithTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, mode{}, trouble{silent: true}, false)
		l := s.net.listen("192.0.2.1:25")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			crawl(conn)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		j := job("d.test", "a@d.test")
		j.Content = message.FromString(strings.Repeat("0123456789abcdef\n", 1<<16))
		start := time.Now()
		r := s.exit.Deliver(ctx, j)[0]
		if took := time.Since(start); took != time.Hour || r.Reply.Class != reply.Temporary || r.Phase != wire.Body || r.Perhaps || !errors.Is(r.Err, context.DeadlineExceeded) {
			t.Errorf("after %v: %+v", took, r)
		}
		s.exit.Close(t.Context())
		<-ended
		l.Close()
		s.close()
	})
}

// crawl takes a message slowly.
func crawl(conn net.Conn) {
	io.WriteString(conn, "220 x\r\n") //nolint:errcheck // the read fails then
	r := wire.NewReader(conn, 512)
	for _, answer := range []string{"250 x", "250 x", "250 x", "354 x"} {
		if _, err := r.Line(1000); err != nil {
			return
		}
		io.WriteString(conn, answer+"\r\n") //nolint:errcheck // the read fails then
	}
	some := make([]byte, 100)
	for {
		if _, err := conn.Read(some); err != nil {
			return
		}
		time.Sleep(time.Second)
	}
}

// TestLoopbackIsSelf: mail that the DNS sends to 127.0.0.1 would come back in at our
// own port.
func TestLoopbackIsSelf(t *testing.T) {
	ours := "554 5.4.6 Sorry. Although I'm listed as a best-preference MX or A for that host"
	for _, c := range []struct {
		name, domain string
		set          func(n *internet, o *smtp.Options)
		want         string
	}{
		{"A", "d.test", func(n *internet, _ *smtp.Options) { n.hosts["d.test"] = []string{"127.0.0.1"} }, ours},
		{"AAAA", "d.test", func(n *internet, _ *smtp.Options) { n.hosts["d.test"] = []string{"::1"} }, ours},
		{"mapped", "d.test", func(n *internet, _ *smtp.Options) { n.hosts["d.test"] = []string{"::ffff:127.9.9.9"} }, ours},
		{"MX localhost", "d.test", func(n *internet, _ *smtp.Options) {
			n.mx["d.test"], n.hosts["localhost"] = exchangers(resolve.Host{Name: "localhost"}), []string{"127.0.0.1"}
		}, ours},
		{"MX is an address", "d.test", func(n *internet, _ *smtp.Options) { n.mx["d.test"] = exchangers(resolve.Host{Name: "127.0.0.1"}) }, ours},
		{"literal", "[127.0.0.1]", func(*internet, *smtp.Options) {}, ours},
		{"literal, IPv6", "[IPv6:::1]", func(*internet, *smtp.Options) {}, ours},
		{"the second MX, behind a dead one", "d.test", func(n *internet, _ *smtp.Options) {
			n.mx["d.test"] = exchangers(resolve.Host{Name: "mx1.d.test", Preference: 1}, resolve.Host{Name: "mx2.d.test", Preference: 2}, resolve.Host{Name: "mx3.d.test", Preference: 3})
			n.refuse("mx1.d.test", "192.0.2.1")
			n.hosts["mx2.d.test"], n.hosts["mx3.d.test"] = []string{"127.0.0.1"}, []string{"192.0.2.3"}
		}, "451 4.4.1"},
		{"a route", "d.test", func(n *internet, o *smtp.Options) {
			n.refuse("x", "127.0.0.1")
			o.Routes = to(smtp.Hop{Host: "127.0.0.1"})
		}, "451 4.4.1"},
		{"another port", "d.test", func(n *internet, o *smtp.Options) {
			n.hosts["d.test"] = []string{"127.0.0.1"}
			n.fails["127.0.0.1:2525"] = errRefused
			o.Port = 2525
		}, "451 4.4.1"},
		{"0.0.0.0 and ::", "d.test", func(n *internet, _ *smtp.Options) { n.hosts["d.test"] = []string{"0.0.0.0", "::"} }, "550 5.1.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInternet(t)
			var o smtp.Options
			c.set(n, &o)
			r := one(t, n.exit(o), job(c.domain, "r@"+c.domain))
			if !strings.HasPrefix(r.Reply.SMTP(), c.want) || slices.Contains(n.dials(), "127.0.0.1:25") != (c.name == "a route") {
				t.Errorf("%s, connected to %v", r.Reply.SMTP(), n.dials())
			}
		})
	}
}

// slowNames takes its time to say that it does not know, and counts.
type slowNames struct {
	*internet
	asked chan string
}

func (s slowNames) LookupAddrs(ctx context.Context, host string) ([]netip.Addr, error) {
	s.asked <- host
	select {
	case <-time.After(20 * time.Second):
	case <-ctx.Done():
	}
	return nil, errTemporary
}

// TestManyUnknownExchangers: two hundred hosts that nobody can look up hold a delivery
// for the time of a few look-ups.
func TestManyUnknownExchangers(t *testing.T) {
	for name, step := range map[string]int{"each for itself": 1, "ten by ten": 10, "all alike": 1000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newInternet(t)
				var all []resolve.Host
				for i := range 200 {
					all = append(all, resolve.Host{Name: fmt.Sprintf("mx%d.d.test", i), Preference: uint16(i / step)})
				}
				n.mx["d.test"] = exchangers(all...)
				asked := make(chan string, 1000)
				x, err := smtp.New(smtp.Options{Resolver: slowNames{n, asked}, Dialer: n})
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				r := one(t, x, job("d.test", "a@d.test"))
				took := time.Since(start)
				if r.Reply.SMTP() != "451 4.4.3 Sorry, I couldn't find any host by that name." || took > 100*time.Second || len(asked) > 40 {
					t.Errorf("%s after %v and %d look-ups", r.Reply.SMTP(), took, len(asked))
				}
			})
		})
	}
}

// TestRequireTLSDoesNotBlameTheSite: a message that asks for more than the server has
// says nothing about the server to the Gate, which would keep other mail waiting.
func TestRequireTLSDoesNotBlameTheSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, mode{}, trouble{}, false)
		for range 5 {
			j := s.job()
			j.Envelope.RequireTLS = true
			if r := s.exit.Deliver(t.Context(), j)[0]; r.Reply.SMTP()[:9] != "550 5.7.10"[:9] {
				t.Errorf("%+v", r)
			}
		}
		if heard := s.gate.heardOf("192.0.2.1"); !isNothing(heard) {
			t.Error(heard)
		}
		s.exit.Close(t.Context())
		s.close()
	})
}
