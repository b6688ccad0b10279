package relay_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/relay"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/rules"
)

func controlLines(t testing.TB, text string) []rules.Line {
	t.Helper()
	lines, err := rules.ControlLines(strings.NewReader(text), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestAdmit(t *testing.T) {
	tcp, err := rules.ParseTCPRules(controlLines(t, `10.:allow,RELAYCLIENT="",DATABYTES="1000"
10.9.:allow,RELAYCLIENT="@fix.example"
203.0.113.7:deny
198.51.100.:allow,DATABYTES="5"
=.partner.example:allow,RELAYCLIENT=""
:allow
`))
	if err != nil {
		t.Fatal(err)
	}
	rule, err := rules.Compile(pipeline.Facts(), `rdns endsWith ".branch.example" and cidr(ip, "192.0.2.0/24")`)
	if err != nil {
		t.Fatal(err)
	}
	o := options(t)
	o.TCPRules, o.Rule, o.Networks = tcp, rule, []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("172.16.0.0/12")}
	p := policy(t, o)
	for _, test := range []struct {
		peer, name string
		standing   pipeline.Standing
		env        map[string]string
		denied     bool
	}{
		{peer: "10.1.2.3", standing: pipeline.Relayed, env: map[string]string{"RELAYCLIENT": "", "DATABYTES": "1000"}},
		{peer: "::ffff:10.1.2.3", standing: pipeline.Relayed, env: map[string]string{"RELAYCLIENT": "", "DATABYTES": "1000"}},
		{peer: "10.9.2.3", standing: pipeline.Relayed, env: map[string]string{"RELAYCLIENT": "@fix.example"}},
		{peer: "203.0.113.7", denied: true},
		{peer: "203.0.113.8"},
		{peer: "198.51.100.1", env: map[string]string{"DATABYTES": "5"}},
		{peer: "198.51.101.1", name: "mail.partner.example", standing: pipeline.Relayed, env: map[string]string{"RELAYCLIENT": ""}},
		{peer: "198.51.101.1", name: "mail.xpartner.example"},
		{peer: "2001:db8:1::9", standing: pipeline.Relayed},
		{peer: "2001:db8:2::9"},
		{peer: "172.31.0.1", standing: pipeline.Relayed},
		{peer: "192.0.2.8", name: "mx.branch.example", standing: pipeline.Relayed},
		{peer: "192.0.3.8", name: "mx.branch.example"},
		{peer: "192.0.2.8", name: "mx.other.example"},
		{peer: ""},
	} {
		s := &pipeline.Session{PeerName: test.name}
		if test.peer != "" {
			s.Peer = netip.AddrPortFrom(netip.MustParseAddr(test.peer), 12345)
		}
		standing, env, err := p.Admit(context.Background(), s)
		if test.denied {
			if reply.Of(err) != reply.ClientDenied || standing != pipeline.Stranger {
				t.Errorf("%s: %v, %v", test.peer, standing, err)
			}
			continue
		}
		if err != nil || standing != test.standing || !maps.Equal(env, test.env) {
			t.Errorf("%s %s: %v, %q, %v; want %v, %q", test.peer, test.name, standing, env, err, test.standing, test.env)
		}
	}
	// What the session has already stays, and is not written to.
	s := &pipeline.Session{Peer: netip.MustParseAddrPort("10.1.2.3:1"), Standing: pipeline.Authenticated, Env: map[string]string{"A": "b", "DATABYTES": "2"}}
	standing, env, err := p.Admit(context.Background(), s)
	if want := (map[string]string{"A": "b", "RELAYCLIENT": "", "DATABYTES": "1000"}); err != nil || standing != pipeline.Authenticated || !maps.Equal(env, want) {
		t.Errorf("%v, %q, %v", standing, env, err)
	}
	if len(s.Env) != 2 || s.Env["DATABYTES"] != "2" {
		t.Errorf("the session's environment was changed: %q", s.Env)
	}
}

func TestRuleMustBeOfTheConnection(t *testing.T) {
	for _, source := range []string{`helo == "x"`, `sender == "x"`, `size > 3`} {
		rule, err := rules.Compile(pipeline.Facts(), source)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := relay.New(relay.Options{Hostname: "h", Rule: rule}); err == nil || !strings.Contains(err.Error(), "not known when a client connects") {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestSender(t *testing.T) {
	bad, err := rules.NewAddressList(controlLines(t, "spam@other.example\n@bad.example\n@xn--bcher-kva.example\n@müller.example\n!ok@bad.example\n"), rules.Globs)
	if err != nil {
		t.Fatal(err)
	}
	o := options(t)
	o.BadMailFrom = bad
	p := policy(t, o)
	for sender, listed := range map[string]bool{
		"": false, "joe@us.example": false, "spam@other.example": true, "SPAM@other.example.": true, "x@bad.example": true, "x@BAD.example.": true,
		"OK@bad.example": false, "ok@bad.example.": false, "x@bücher.example": true, "x@XN--BCHER-KVA.example": true, "x@xn--mller-kva.example": true, "x@MÜLLER.example": true,
		"spam": false, "#@[]": false, "x@sub.bad.example": false,
	} {
		for _, standing := range []pipeline.Standing{pipeline.Stranger, pipeline.Authenticated} {
			err := p.Sender(context.Background(), &pipeline.Session{Standing: standing}, wire.Mail{Sender: sender})
			if (err != nil) != listed || listed && reply.Of(err) != reply.SenderDenied {
				t.Errorf("%q: %v", sender, err)
			}
		}
	}
	if err := policy(t, options(t)).Sender(context.Background(), &pipeline.Session{}, wire.Mail{Sender: "x@bad.example"}); err != nil {
		t.Errorf("no list: %v", err)
	}
}

func TestInterfaces(t *testing.T) {
	now, calls := time.Unix(1e9, 0), 0
	var fail error
	f := relay.Interfaces{
		Now: func() time.Time { return now },
		Addresses: func() ([]net.Addr, error) {
			calls++
			return []net.Addr{&net.IPNet{IP: net.IPv4(192, 0, 2, 25), Mask: net.CIDRMask(24, 32)}, &net.IPNet{IP: net.ParseIP("2001:db8::25"), Mask: net.CIDRMask(64, 128)}}, fail
		},
	}
	for ip, want := range map[string]bool{"192.0.2.25": true, "192.0.2.26": false, "2001:db8::25": true, "::ffff:192.0.2.25": true, "2001:db8::25%eth0": true} {
		if f.Has(netip.MustParseAddr(ip)) != want {
			t.Errorf("%s: not %t", ip, want)
		}
	}
	now, fail = now.Add(time.Minute), errors.New("no netlink")
	if !f.Has(netip.MustParseAddr("192.0.2.25")) || calls != 2 {
		t.Errorf("after a failure, %d calls", calls)
	}
	if new(relay.Interfaces).Has(netip.MustParseAddr("192.0.2.99")) || !new(relay.Interfaces).Has(netip.MustParseAddr("127.0.0.1")) {
		t.Error("the real ones")
	}
}
