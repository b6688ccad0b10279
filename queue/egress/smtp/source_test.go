package smtp_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// sourced is an exit over the loopback to one server behind d.test.
func sourced(t *testing.T, o smtp.Options, hosts ...string) (*smtp.Exit, *smtptest.Server) {
	t.Helper()
	n := newInternet(t)
	s := smtptest.New(t)
	n.hosts["d.test"] = hosts
	o.Resolver, o.Port, o.Hello = n, s.AddrPort().Port(), "us.test"
	x, err := smtp.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close(t.Context()) })
	return x, s
}

func from(s smtp.Source) *smtp.Job {
	j := job("d.test", "r@d.test")
	j.Source = s
	return j
}

var (
	second = smtp.Source{Name: "second", IPv4: netip.MustParseAddr("127.0.0.2"), Hello: "second.us.test"}
	third  = smtp.Source{Name: "third", IPv4: netip.MustParseAddr("127.0.0.3"), Hello: "third.us.test"}
	// foreign is an address for documentation (RFC 5737), which no machine has.
	foreign = smtp.Source{Name: "foreign", IPv4: netip.MustParseAddr("192.0.2.77")}
	six     = smtp.Source{Name: "six", IPv6: netip.MustParseAddr("2001:db8::6")}
)

// TestMailLeavesFromItsSource sends from two addresses: each with its name, and over
// connections of its own.
func TestMailLeavesFromItsSource(t *testing.T) {
	g := &gate{}
	x, s := sourced(t, smtp.Options{Gate: g}, "::1", "127.0.0.1")
	for _, source := range []smtp.Source{second, third, second, third, {}} {
		if r := one(t, x, from(source)); r.Reply.Class != reply.Success {
			t.Fatalf("%s: %+v", source.Name, r)
		}
	}
	var got []string
	for _, m := range s.Messages() {
		got = append(got, m.Peer.Addr().String()+" "+m.Hello)
	}
	want := "[127.0.0.2 second.us.test 127.0.0.3 third.us.test 127.0.0.2 second.us.test 127.0.0.3 third.us.test 127.0.0.1 us.test]"
	if fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	for _, source := range []string{"", "second", "third", "fourth"} {
		want := 1
		if source == "fourth" {
			want = 0
		}
		if n := x.Free("d.test", source); n != want {
			t.Errorf("%d free connections from %q", n, source)
		}
	}
	if n := s.Stats().Connections; n != 3 {
		t.Errorf("%d connections, want one a source", n)
	}
	if heard := strings.Join(g.heard, " "); strings.Count(heard, "open d.test second") != 1 || strings.Count(heard, "open d.test third") != 1 {
		t.Error(heard)
	}
}

// TestSourceThatIsNotOurs has the mail wait for a reason that names it, blames no
// server, and tells the administrator once.
func TestSourceThatIsNotOurs(t *testing.T) {
	var log bytes.Buffer
	g := &gate{}
	x, s := sourced(t, smtp.Options{Gate: g, Log: slog.New(slog.NewTextHandler(&log, nil))}, "127.0.0.1")
	for range 3 {
		r := one(t, x, from(foreign))
		var fault *smtp.SourceError
		if r.Reply.Class != reply.Temporary || !strings.Contains(r.Reply.Text, "foreign") || !errors.As(r.Err, &fault) || fault.Address != foreign.IPv4 {
			t.Fatalf("%+v", r)
		}
	}
	if heard := fmt.Sprint(g.heard); strings.Contains(heard, "unreachable") || g.open != 0 {
		t.Error(heard)
	}
	if dead := x.Dead(); len(dead) != 0 || s.Stats().Connections != 0 {
		t.Errorf("%+v", dead)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 || !strings.Contains(log.String(), "192.0.2.77") {
		t.Errorf("%d errors in the log: %s", n, log.String())
	}
	// Another source goes on.
	if r := one(t, x, from(second)); r.Reply.Class != reply.Success {
		t.Errorf("%+v", r)
	}
}

func TestSourceOfOneFamily(t *testing.T) {
	for _, test := range []struct {
		name   string
		source smtp.Source
		hosts  []string
		class  reply.Class
		says   string
	}{
		{"the other family is passed over", second, []string{"2001:db8::1", "127.0.0.1"}, reply.Success, ""},
		{"there is no other", six, []string{"127.0.0.1"}, reply.Temporary, "six, is of another family"},
		{"without a name", smtp.Source{IPv6: six.IPv6}, []string{"127.0.0.1"}, reply.Temporary, "2001:db8::6, is of another family"},
	} {
		x, s := sourced(t, smtp.Options{}, test.hosts...)
		began := time.Now()
		r := one(t, x, from(test.source))
		if r.Reply.Class != test.class || !strings.Contains(r.Reply.Text, test.says) {
			t.Errorf("%s: %+v", test.name, r)
		}
		if fault := new(smtp.SourceError); errors.As(r.Err, &fault) != (test.says != "") || fault.Address.IsValid() {
			t.Errorf("%s: %v", test.name, r.Err)
		}
		if test.class == reply.Temporary && (s.Stats().Connections != 0 || time.Since(began) > 20*time.Second) {
			t.Errorf("%s: something was tried", test.name)
		}
	}
}

// TestServerThatRefusesIsNoSourceFault keeps the two apart.
func TestServerThatRefusesIsNoSourceFault(t *testing.T) {
	x, s := sourced(t, smtp.Options{}, "127.0.0.1")
	s.Close()
	r := one(t, x, from(second))
	if r.Reply.Class != reply.Temporary || errors.As(r.Err, new(*smtp.SourceError)) || !strings.Contains(r.Reply.Text, "establish") {
		t.Errorf("%+v", r)
	}
}
