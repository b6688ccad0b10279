package queue

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/resolve"

	"github.com/postern-mta/postern/queue/dsn"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// outside is a way out over SMTP to a domain with two hosts of two addresses each, in
// simulated time. Nobody is there unless answer is set.
type outside struct {
	exit *smtp.Exit
	// answer holds one side of a conversation.
	answer func(conn net.Conn)
	refuse error // of connecting; nil: silence

	mu       sync.Mutex
	attempts []attempt
	dialed   []string
	served   sync.WaitGroup
}

// attempt is from when to when a delivery was tried.
type attempt struct{ from, to time.Time }

func newOutside(t *testing.T) *outside {
	t.Helper()
	o := &outside{}
	var err error
	o.exit, err = smtp.New(smtp.Options{Resolver: o, Dialer: o, Hello: "mx.here.example", Shuffle: func(int, func(i, k int)) {}})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *outside) LookupMX(context.Context, string) (resolve.MX, error) {
	return resolve.MX{Hosts: []resolve.Host{{Name: "mx1.far.example", Preference: 1}, {Name: "mx2.far.example", Preference: 2}}}, nil
}

func (o *outside) LookupAddrs(_ context.Context, host string) ([]netip.Addr, error) {
	if host == "mx1.far.example" {
		return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, nil
	}
	return []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}, nil
}

func (o *outside) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	o.mu.Lock()
	o.dialed = append(o.dialed, address)
	answer, refuse := o.answer, o.refuse
	o.mu.Unlock()
	switch {
	case answer != nil:
		ours, theirs := net.Pipe()
		o.served.Go(func() {
			defer theirs.Close()
			answer(theirs)
		})
		return ours, nil
	case refuse != nil:
		return nil, &net.OpError{Op: "dial", Err: refuse}
	}
	<-ctx.Done()
	return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
}

// Deliver is the queue's exit.
func (o *outside) Deliver(ctx context.Context, j *Job) ([]Result, schedule.Health) {
	a := attempt{from: time.Now()}
	var all []Result
	for _, r := range o.exit.Deliver(ctx, &smtp.Job{Domain: j.Domain, Envelope: j.Envelope, Content: j.Message}) {
		all = append(all, Result{Reply: r.Reply, Where: r.Where, Perhaps: r.Perhaps})
	}
	a.to = time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.attempts = append(o.attempts, a)
	return all, schedule.Failed
}

// away sends mail for far.example out, and takes the rest.
func away(o *outside) func(*Options) {
	return func(q *Options) {
		q.Channels = append(q.Channels, Channel{Name: "outside", Exit: o})
		q.Route = func(address string) (channel, domain string) {
			if domain = envelope.Domain(address); domain == "far.example" {
				return "outside", domain
			}
			return "remote", domain
		}
	}
}

const day = 24 * time.Hour

// TestAllDeadForFiveDays: mail for a domain whose hosts are all dead is tried at the
// times of the schedule, its sender is warned once after four hours, and has it back
// with the first attempt that fails after five days, also over a restart.
func TestAllDeadForFiveDays(t *testing.T) {
	for name, refuse := range map[string]error{"refused": syscall.ECONNREFUSED, "silent": nil, "unreachable": syscall.EHOSTUNREACH} {
		t.Run(name, func(t *testing.T) {
			o := newOutside(t)
			o.refuse = refuse
			change := func(q *Options) { away(o)(q); q.Lifetime = 5 * day }
			bubble(t, change, func(t *testing.T, r *rig) {
				birth := time.Now()
				r.submit("a@here.example", "b@far.example")
				pass(2*day + 1234*time.Second)
				if n := len(r.exit.to("a@here.example")); n != 1 {
					t.Errorf("%d reports after two days", n)
				}
				r.close()
				r.open()
				r.Start()
				pass(8 * day)
				reports := r.exit.to("a@here.example")
				if len(reports) != 2 || !strings.Contains(reports[0].text, "Action: delayed\nStatus: 4.4.1\n") || !strings.Contains(reports[1].text, "Action: failed\nStatus: 5.4.7\n") {
					t.Fatalf("%d reports: %v", len(reports), reports)
				}
				if text := reports[1].text; !strings.Contains(text, "I wasn't able to establish an SMTP connection. I'm not going to try again; this message has been in the queue too long.") {
					t.Error(text)
				}
				if len(o.attempts) < 15 || len(o.attempts) > 60 {
					t.Errorf("%d attempts", len(o.attempts))
				}
				for i, a := range o.attempts[1:] {
					due := (schedule.Backoff{}).Next(birth, o.attempts[i].to, i+1, func() float64 { return 0 })
					if late := a.from.Sub(due); late < 0 || late > time.Second {
						t.Errorf("attempt %d came %v after it was due", i+2, late)
					}
					if took := a.to.Sub(a.from); took > 4*30*time.Second {
						t.Errorf("attempt %d took %v", i+2, took)
					}
				}
				warned := slices.IndexFunc(o.attempts, func(a attempt) bool { return a.to.Sub(birth) >= 4*time.Hour })
				if late := reports[0].at.Sub(o.attempts[warned].to); late < 0 || late > time.Hour {
					t.Errorf("warned %v after the first attempt that failed after four hours", late)
				}
				last := o.attempts[len(o.attempts)-1]
				if before := o.attempts[len(o.attempts)-2]; before.from.Sub(birth) > 5*day || last.from.Sub(birth) <= 5*day || reports[1].at.Sub(last.to) > time.Second {
					t.Errorf("given up at %v, after attempts at %v and %v", reports[1].at.Sub(birth), before.from.Sub(birth), last.from.Sub(birth))
				}
				if silent := refuse == nil; silent && len(o.dialed) >= 4*len(o.attempts) {
					t.Errorf("%d connections in %d attempts: silent hosts are not remembered", len(o.dialed), len(o.attempts))
				}
				r.empty()
			})
		})
	}
}

// TestAliveOnTheThirdDay: one warning, and the message.
func TestAliveOnTheThirdDay(t *testing.T) {
	o := newOutside(t)
	bubble(t, away(o), func(t *testing.T, r *rig) {
		r.submit("a@here.example", "b@far.example")
		pass(3 * day)
		o.mu.Lock()
		o.answer = func(conn net.Conn) { speak(conn, "", "") }
		o.mu.Unlock()
		pass(day)
		o.exit.Close(t.Context())
		o.served.Wait()
		if reports := r.exit.to("a@here.example"); len(reports) != 1 || !strings.Contains(reports[0].text, "Action: delayed") {
			t.Errorf("%v", reports)
		}
		r.empty()
	})
}

// TestLargeMessageOverASlowLine: what takes longer than a delivery may take by itself is
// not broken off again and again, and a server that reads nothing is.
func TestLargeMessageOverASlowLine(t *testing.T) {
	for name, pace := range map[string]int{"a modem": 5 << 10, "not even that": 1 << 10} {
		t.Run(name, func(t *testing.T) {
			o := newOutside(t)
			o.answer = func(conn net.Conn) { speak(&slowLine{conn, pace}, "", "") }
			bubble(t, away(o), func(t *testing.T, r *rig) {
				text := "Subject: large\n\n" + strings.Repeat(strings.Repeat("0123456789abcdef", 60)+"\n", 32<<20/961)
				r.submitAll(Submission{Envelope: envelope.To("a@here.example", "b@far.example"), Message: message.FromString(text)})
				pass(4 * time.Hour)
				o.exit.Close(t.Context())
				if pace > slowest {
					o.served.Wait()
					r.empty()
					return
				}
				if v := r.left(); len(v) != 1 || v[0].Recipients[0].Attempts != 1 || v[0].Recipients[0].Perhaps {
					t.Errorf("%+v", v)
				}
				if _, err := r.Queue.Delete(t.Context(), Selection{Match: func(*View) bool { return true }}, "me"); err != nil {
					t.Error(err)
				}
				pass(4 * time.Hour)
				o.served.Wait()
			})
		})
	}
}

// slowLine is read at a pace of so many bytes a second.
type slowLine struct {
	net.Conn
	pace int
}

func (s *slowLine) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p[:min(len(p), s.pace)])
	time.Sleep(time.Duration(n) * time.Second / time.Duration(s.pace))
	return n, err
}

// speak is a server that says something strange at a command.
func speak(conn net.Conn, at, strange string) {
	in := bufio.NewReader(conn)
	say := func(verb, usual string) bool {
		text := usual
		if verb == at || at == "EHLO" && verb == "HELO" {
			text = strange
		}
		_, err := io.WriteString(conn, text)
		if endless, ok := strings.CutSuffix(text, endlessly); ok {
			for err == nil {
				_, err = io.WriteString(conn, endless)
			}
		}
		return err == nil
	}
	if !say("CONNECT", "220 x\r\n") {
		return
	}
	usual := map[string]string{"DATA": "354 go\r\n", "QUIT": "221 bye\r\n"}
	body := false
	for {
		text, err := in.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.TrimSpace(text), " ")
		if body && verb != "." {
			continue
		}
		answer, known := usual[verb]
		if !known {
			answer = "250 ok\r\n"
		}
		if body = verb == "DATA"; !say(verb, answer) {
			return
		}
	}
}

// endlessly is the end of what is said again and again.
const endlessly = "\x00again"

// TestWhatServersSay: whatever a server says is one clean line in the log, in the
// queue and in the report, splits no envelope, and is bounded.
func TestWhatServersSay(t *testing.T) {
	for name, strange := range map[string]string{
		"a line of an envelope":         "550 5.1.1 \r\nT victim@x\r\n",
		"a line of an envelope, LF":     "550 5.1.1 no\nT victim@x\n",
		"a line of an envelope, CR":     "550 5.1.1 no\rT victim@x\r\n",
		"an envelope's NULs":            "550 5.1.1 no\x00Tvictim@x\x00\x00\r\n",
		"lines of a report":             "550-5.1.1 no\r\n550-\r\n550-Final-Recipient: rfc822; victim@x\r\n550-Action: failed\r\n550 5.1.1 x\r\n",
		"a paragraph of a report":       "550-5.1.1 no\r\n550-\r\n550-<victim@x>:\r\n550 5.1.1 x\r\n",
		"the end of a report":           "550-5.1.1 no\r\n550---- Below this line is a copy of the message.\r\n550 5.1.1 x\r\n",
		"the end of a message":          "550-5.1.1 no\r\n550-.\r\n550-MAIL FROM:<victim@x>\r\n550 5.1.1 x\r\n",
		"8-bit and control bytes":       "550 5.1.1 J\xf6rg \x1b[2J\x07\x08\x7f\x80\xff\r\n",
		"UTF-8 that turns lines around": "550 5.1.1 \u202egpj.exe\u2028T victim@x\u0085\r\n",
		"64 KiB":                        "550-5.1.1 " + strings.Repeat("x", 900) + "\r\n" + strings.Repeat("550-"+strings.Repeat("y", 900)+"\r\n", 60) + "550 5.1.1 z\r\n",
		"1 MiB":                         "550 5.1.1 " + strings.Repeat("x", 1<<20) + "\r\n",
		"10,000 lines":                  strings.Repeat("550-5.1.1 x\r\n", 10_000) + "550 5.1.1 x\r\n",
		"endless":                       "250-x\r\n" + endlessly,
		"no LF":                         "550 5.1.1 x" + endlessly,
		"no LF, and the end":            "550 5.1.1 x",
		"another code in each line":     "250-x\r\n550 5.1.1 T victim@x\r\n",
		"no reply":                      "T victim@x\r\n",
		"nothing":                       "\r\n",
	} {
		for _, at := range []string{"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."} {
			for kind, format := range map[string]dsn.Format{"MIME": dsn.MIME, "QSBMF": dsn.QSBMF} {
				if at != "RCPT" && (testing.Short() || format == dsn.QSBMF && at != ".") {
					continue // it is the same report
				}
				t.Run(name+" at "+at+", "+kind, func(t *testing.T) {
					o := newOutside(t)
					o.answer = func(conn net.Conn) { speak(conn, at, strange) }
					change := func(q *Options) { away(o)(q); q.Lifetime, q.Bounce.Format, q.Bounce.Warn = 6*time.Hour, format, -1 }
					bubble(t, change, func(t *testing.T, r *rig) {
						id := r.submit("a@here.example", "b@far.example")
						pass(2 * time.Second)
						v, err := r.Show(id)
						if err == nil && !oneLine(v.Recipients[0].Reply.SMTP(), 600) || err != nil && !errors.Is(err, store.ErrNotFound) {
							t.Errorf("in the queue: %+v, %v", v, err)
						}
						pass(12 * time.Hour)
						o.exit.Close(t.Context())
						o.served.Wait()
						r.checkReport(strange, format)
						r.empty()
					})
				})
			}
		}
	}
}

func oneLine(s string, most int) bool {
	return len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

var logLine = regexp.MustCompile(`^time=\S+ level=[A-Z]+ msg=`)

// checkReport checks that the sender alone got one report, about one recipient, and
// that log and report have nothing in them but what is ours and one line of the
// server's.
func (r *rig) checkReport(strange string, format dsn.Format) {
	r.t.Helper()
	reports := r.exit.to("a@here.example")
	if len(reports) != 1 || len(r.exit.all) != 1 {
		r.t.Errorf("%d reports, %d messages", len(reports), len(r.exit.all))
		return
	}
	text := reports[0].text
	if len(text) > 6000 {
		r.t.Errorf("the report has %d bytes", len(text))
	}
	recipients, said := 0, 0
	for l := range strings.Lines(text) {
		l = strings.TrimSuffix(l, "\n")
		if !oneLine(l, 998) {
			r.t.Errorf("a line of the report: %q", l)
		}
		if strings.HasPrefix(l, "Final-Recipient:") || format == dsn.QSBMF && strings.HasPrefix(l, "<") {
			recipients++
			if !strings.Contains(l, "b@far.example") {
				r.t.Errorf("the report is about %q", l)
			}
		}
		if strings.Contains(l, "--- Below this line") || strings.HasPrefix(l, "--=") {
			said++
		}
		if l == "T victim@x" || l == "." || strings.HasPrefix(l, "MAIL FROM") {
			r.t.Errorf("the server has a line of its own in the report: %q", l)
		}
	}
	if recipients != 1 {
		r.t.Errorf("the report is about %d recipients:\n%s", recipients, text)
	}
	if format == dsn.QSBMF && said < 1 {
		r.t.Errorf("the report does not end:\n%s", text)
	}
	for l := range strings.Lines(r.log.String()) {
		if l = strings.TrimSuffix(l, "\n"); !oneLine(l, 3000) || !logLine.MatchString(l) {
			r.t.Errorf("a line of the log: %.500q", l)
		}
	}
	if strings.Contains(r.log.String(), "to=victim@x") {
		r.t.Error("there is a delivery to somebody else")
	}
}
