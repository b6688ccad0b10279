package smtp_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

func fixed(p smtp.TLSPolicy) func(string, string) smtp.TLSPolicy {
	return func(string, string) smtp.TLSPolicy { return p }
}

// TestTLSPolicies is what each policy makes of what servers do.
func TestTLSPolicies(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	good, expired := ca.Issue(t, time.Time{}, "mx.d.test"), ca.Issue(t, time.Now().Add(-time.Minute), "mx.d.test")
	other, own := ca.Issue(t, time.Time{}, "mx.other.test"), (*smtptest.Authority)(nil).Issue(t, time.Time{}, "mx.d.test")
	wild := ca.Issue(t, time.Time{}, "*.d.test")
	leaf, err := x509.ParseCertificate(own.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	key, whole := sha256.Sum256(leaf.RawSubjectPublicKeyInfo), sha256.Sum256(leaf.Raw)
	prints := func(f ...[sha256.Size]byte) smtp.TLSPolicy {
		return smtp.TLSPolicy{Level: smtp.Fingerprint, Fingerprints: f}
	}
	verified := smtp.TLSPolicy{Level: smtp.Verified, Roots: ca.Pool()}
	named := func(names ...string) smtp.TLSPolicy {
		return smtp.TLSPolicy{Level: smtp.Verified, Roots: ca.Pool(), Names: names}
	}
	faults := func(at smtptest.At, end smtptest.End) []smtptest.Step {
		return []smtptest.Step{{At: at, End: end}}
	}
	for _, c := range []struct {
		name     string
		server   *tls.Certificate // nil: no TLS
		steps    []smtptest.Step
		policy   smtp.TLSPolicy
		want     string // the reply
		tls      string // the state, "" in clear
		dials    int    // 1 if 0
		implicit bool
		phase    wire.Phase
	}{
		{name: "opportunistic", server: &good, want: "250", tls: "unverified"}, // its roots are the system's
		{name: "opportunistic, none offered", want: "250"},
		{name: "opportunistic, expired", server: &expired, want: "250", tls: "unverified"},
		{name: "opportunistic, self-signed", server: &own, want: "250", tls: "unverified"},
		{name: "opportunistic, roots given", server: &good, policy: smtp.TLSPolicy{Roots: ca.Pool()}, want: "250", tls: "verified"},
		{name: "opportunistic, 454", server: &good, steps: says(smtptest.StartTLS, "454 4.7.0 not now"), want: "250"},
		{name: "opportunistic, 421 at STARTTLS", server: &good, steps: []smtptest.Step{{At: smtptest.StartTLS, Reply: "421 4.3.2 down", Times: 1}}, want: "250", dials: 2},
		{name: "opportunistic, closed", server: &good, steps: faults(smtptest.StartTLS, smtptest.Close), want: "250", dials: 2},
		{name: "opportunistic, garbage", server: &good, steps: []smtptest.Step{{At: smtptest.Handshake, Raw: "what?\r\n", End: smtptest.Hole}}, want: "250", dials: 2},
		{name: "opportunistic, alert", server: &good, steps: []smtptest.Step{{At: smtptest.Handshake, Raw: "\x15\x03\x03\x00\x02\x02\x28", End: smtptest.Close}}, want: "250", dials: 2},
		{name: "opportunistic, reset", server: &good, steps: faults(smtptest.Handshake, smtptest.Abort), want: "250", dials: 2},
		{name: "opportunistic, hangs", server: &good, steps: faults(smtptest.Handshake, smtptest.Hole), want: "250", dials: 2},
		{name: "opportunistic, cut off", server: &good, steps: []smtptest.Step{{At: smtptest.Handshake, Bytes: 200, End: smtptest.Close}}, want: "250", dials: 2},
		{name: "opportunistic, injected", server: &good, steps: []smtptest.Step{{At: smtptest.StartTLS, Raw: "220 go\r\n250 AUTH PLAIN\r\n"}}, want: "250", dials: 2},
		{name: "opportunistic, lost behind the handshake", server: &good, steps: []smtptest.Step{{At: smtptest.Hello, Skip: 1, Times: 1, End: smtptest.Abort}}, want: "250", dials: 2},
		{name: "opportunistic, name refused under TLS", server: &good, steps: []smtptest.Step{{At: smtptest.Hello, Skip: 1, Times: 2, Reply: "550 5.7.1 who?"}}, want: "451 4.4.2", phase: wire.Hello},
		{name: "none", server: &good, policy: smtp.TLSPolicy{Level: smtp.NoTLS}, want: "250"},
		{name: "required", server: &own, policy: smtp.TLSPolicy{Level: smtp.Required}, want: "250", tls: "unverified"},
		{name: "required, none offered", policy: smtp.TLSPolicy{Level: smtp.Required}, want: "451 4.7.4", phase: wire.Secure},
		{name: "required, 454", server: &good, steps: says(smtptest.StartTLS, "454 4.7.0 not now"), policy: smtp.TLSPolicy{Level: smtp.Required}, want: "454 4.7.0", phase: wire.Secure},
		{name: "required, 502", server: &good, steps: says(smtptest.StartTLS, "502 5.5.1 what?"), policy: smtp.TLSPolicy{Level: smtp.Required}, want: "451 4.7.5", phase: wire.Secure},
		{name: "required, alert", server: &good, steps: faults(smtptest.Handshake, smtptest.Close), policy: smtp.TLSPolicy{Level: smtp.Required}, want: "451 4.7.5", phase: wire.Secure},
		{name: "required, injected", server: &good, steps: []smtptest.Step{{At: smtptest.StartTLS, Raw: "220 go\r\n250 AUTH PLAIN\r\n"}}, policy: smtp.TLSPolicy{Level: smtp.Required}, want: "451 4.7.5", phase: wire.Secure},
		{name: "verified", server: &good, policy: verified, want: "250", tls: "verified"},
		{name: "verified, expired", server: &expired, policy: verified, want: "451 4.7.5", phase: wire.Secure},
		{name: "verified, self-signed", server: &own, policy: verified, want: "451 4.7.5", phase: wire.Secure},
		{name: "verified, another's name", server: &other, policy: verified, want: "451 4.7.5", phase: wire.Secure},
		{name: "verified, by the system's roots", server: &good, policy: smtp.TLSPolicy{Level: smtp.Verified}, want: "451 4.7.5", phase: wire.Secure},
		{name: "verified, wildcard", server: &wild, policy: verified, want: "250", tls: "verified"},
		{name: "verified, names given", server: &other, policy: named("mx.other.test"), want: "250", tls: "verified"},
		{name: "verified, names below", server: &other, policy: named(".OTHER.test"), want: "250", tls: "verified"},
		{name: "verified, the host's name is not among those given", server: &good, policy: named("mx.other.test", ".x.test"), want: "451 4.7.5", phase: wire.Secure},
		{name: "verified, none offered", policy: verified, want: "451 4.7.4", phase: wire.Secure},
		{name: "fingerprint of the key", server: &own, policy: prints(whole, key), want: "250", tls: "verified"},
		{name: "fingerprint of the certificate", server: &own, policy: prints(whole), want: "250", tls: "verified"},
		{name: "fingerprint of another", server: &good, policy: prints(whole, key), want: "451 4.7.5", phase: wire.Secure},
		{name: "implicit", server: &good, implicit: true, policy: smtp.TLSPolicy{Implicit: true}, want: "250", tls: "unverified"},
		{name: "implicit, verified", server: &good, implicit: true, policy: smtp.TLSPolicy{Level: smtp.Verified, Roots: ca.Pool(), Implicit: true}, want: "250", tls: "verified"},
		{name: "implicit, to a server in clear", policy: smtp.TLSPolicy{Implicit: true}, want: "451 4.7.5", phase: wire.Secure},
		{name: "implicit, no handshake", server: &good, implicit: true, steps: faults(smtptest.Handshake, smtptest.Close), policy: smtp.TLSPolicy{Implicit: true}, want: "451 4.7.5", phase: wire.Secure},
		{name: "banner twice", server: &good, steps: []smtptest.Step{{At: smtptest.Connect, Raw: "220 a ESMTP\r\n220 b ESMTP\r\n"}}, want: "451 4.4.2", phase: wire.Hello},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newInternet(t)
			n.mx["d.test"] = exchangers(resolve.Host{Name: "mx.d.test"})
			o := smtptest.Options{Steps: c.steps, Implicit: c.implicit}
			if c.server != nil {
				o.TLS = smtptest.TLS(*c.server)
			}
			s := n.put("mx.d.test", "192.0.2.1", o)
			r := one(t, n.exit(smtp.Options{TLS: fixed(c.policy)}), job("d.test", "r@d.test"))
			if !strings.HasPrefix(r.Reply.SMTP(), c.want) || len(n.dials()) != max(c.dials, 1) {
				t.Fatalf("%s, %d dials: %+v", r.Reply.SMTP(), len(n.dials()), r)
			}
			if c.want != "250" {
				if len(s.Messages()) != 0 || r.Phase != c.phase || r.Reply.Class != reply.Temporary {
					t.Errorf("phase %v, %d messages", r.Phase, len(s.Messages()))
				}
				return
			}
			if got := r.TLS.String(); (got == "") != (c.tls == "") || !strings.HasSuffix(got, c.tls) || (s.Messages()[0].TLS == nil) != (c.tls == "") {
				t.Errorf("TLS %q", got)
			}
		})
	}
}

// TestBrokenTLSIsRemembered: with expiry, with one line in the log, and only where
// TLS is a mere wish.
func TestBrokenTLSIsRemembered(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	n := newInternet(t)
	s := n.put("d.test", "192.0.2.1", smtptest.Options{
		TLS: smtptest.TLS(ca.Issue(t, time.Time{}, "d.test")), Steps: []smtptest.Step{{At: smtptest.Handshake, End: smtptest.Close, Times: 2}},
	})
	var mu sync.Mutex
	now, policy := time.Now(), smtp.TLSPolicy{}
	var log bytes.Buffer
	x := n.exit(smtp.Options{
		TLS:      func(string, string) smtp.TLSPolicy { return policy },
		ClearFor: time.Minute, Idle: -1, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo})),
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now },
	})
	secure := func() bool {
		t.Helper()
		r := one(t, x, job("d.test", "r@d.test"))
		if r.Reply.Class != reply.Success {
			t.Fatalf("%+v", r)
		}
		return r.TLS.Version != 0
	}
	first := secure()
	if first || secure() || len(n.dials()) != 3 || strings.Count(log.String(), "level=WARN") != 1 || !strings.Contains(log.String(), "d.test [192.0.2.1]") {
		t.Fatalf("%d dials, log %s", len(n.dials()), log.String())
	}
	policy.Level = smtp.Required
	if r := one(t, x, job("d.test", "r@d.test")); r.Reply.Class != reply.Temporary {
		t.Errorf("%+v", r)
	}
	if !secure() {
		t.Error("required, and in clear")
	}
	if policy.Level = smtp.Opportunistic; secure() {
		t.Error("forgotten too early")
	}
	mu.Lock()
	now = now.Add(2 * time.Minute)
	mu.Unlock()
	if !secure() || s.Messages()[0].TLS != nil {
		t.Error("remembered for too long")
	}
}

func TestSessionsAreResumed(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	n := newInternet(t)
	n.put("d.test", "192.0.2.1", smtptest.Options{TLS: smtptest.TLS(ca.Issue(t, time.Time{}, "d.test"))})
	x := n.exit(smtp.Options{Idle: -1, TLS: fixed(smtp.TLSPolicy{Level: smtp.Verified, Roots: ca.Pool()})})
	for i := range 3 {
		r := one(t, x, job("d.test", "r@d.test"))
		if r.Reply.Class != reply.Success || r.TLS.Resumed != (i > 0) || !r.TLS.Verified {
			t.Errorf("%d: %+v", i, r)
		}
	}
}

// TestResumedSessionIsVerified: what was begun with any certificate does not go on
// where a certain one is asked for.
func TestResumedSessionIsVerified(t *testing.T) {
	n := newInternet(t)
	n.put("d.test", "192.0.2.1", smtptest.Options{TLS: smtptest.TLS((*smtptest.Authority)(nil).Issue(t, time.Time{}, "d.test"))})
	policy := smtp.TLSPolicy{Level: smtp.Required}
	x := n.exit(smtp.Options{Idle: -1, TLS: func(string, string) smtp.TLSPolicy { return policy }})
	if r := one(t, x, job("d.test", "r@d.test")); r.Reply.Class != reply.Success {
		t.Fatalf("%+v", r)
	}
	policy.Level, policy.Roots = smtp.Verified, smtptest.NewAuthority(t).Pool()
	if r := one(t, x, job("d.test", "r@d.test")); r.Reply.Class != reply.Temporary || r.Phase != wire.Secure {
		t.Errorf("%+v", r)
	}
}

func TestRequireTLS(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	certificate := func(names ...string) *tls.Config { return smtptest.TLS(ca.Issue(t, time.Time{}, names...)) }
	for _, c := range []struct {
		name      string
		tls       *tls.Config
		offers    bool
		authentic bool
		routed    bool
		level     smtp.TLSLevel
		steps     []smtptest.Step
		want      string
	}{
		{name: "no TLS", want: "550 5.7.10"},
		{name: "none by configuration", tls: certificate("mx.d.test"), offers: true, level: smtp.NoTLS, want: "550 5.7.10"},
		{name: "not offered", tls: certificate("mx.d.test"), want: "550 5.7.30"},
		{name: "below the domain", tls: certificate("mx.d.test"), offers: true, want: "250"},
		{name: "the domain's own name", tls: certificate("d.test"), offers: true, want: "250"},
		{name: "required is not enough", tls: certificate("other.test"), offers: true, level: smtp.Required, want: "550 5.7.10"},
		{name: "of a stranger", tls: certificate("mx.host.test"), offers: true, want: "550 5.7.10"},
		{name: "a stranger whom the DNS vouches for", tls: certificate("mx.host.test"), offers: true, authentic: true, want: "250"},
		{name: "a stranger whom the administrator vouches for", tls: certificate("mx.host.test"), offers: true, routed: true, want: "250"},
		{name: "hangs up in the handshake", tls: certificate("mx.d.test"), offers: true, steps: at(smtptest.Handshake, smtptest.Close), want: "451 4.7.5"},
		{name: "not now", tls: certificate("mx.d.test"), offers: true, steps: says(smtptest.StartTLS, "454 4.7.0 later"), want: "454 4.7.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInternet(t)
			mx := exchangers(resolve.Host{Name: "mx.host.test"})
			mx.Authentic = c.authentic
			n.mx["d.test"] = mx
			o := smtptest.Options{TLS: c.tls, Steps: c.steps}
			if c.offers {
				o.Secure = []string{"REQUIRETLS"}
			}
			s := n.put("mx.host.test", "192.0.2.1", o)
			options := smtp.Options{TLS: fixed(smtp.TLSPolicy{Level: c.level, Roots: ca.Pool()})}
			if c.routed {
				options.Routes = to(smtp.Hop{Host: "mx.host.test"})
			}
			x := n.exit(options)
			j := job("d.test", "r@d.test")
			j.Envelope.RequireTLS = true
			r := one(t, x, j)
			if !strings.HasPrefix(r.Reply.SMTP(), c.want) {
				t.Fatalf("%+v", r)
			}
			if c.want == "250" && (!s.Messages()[0].Mail.RequireTLS || !r.TLS.Verified) || c.want != "250" && len(s.Messages()) > 0 {
				t.Errorf("%+v", r)
			}
			if c.level == smtp.Opportunistic && c.steps == nil && !c.offers {
				// Other mail goes there all the same.
				if r := one(t, x, job("d.test", "r@d.test")); r.Reply.Class != reply.Success {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// TestRequireTLSAsksAllHosts: more than two, and what none could be asked about is
// not given up.
func TestRequireTLSAsksAllHosts(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	n := newInternet(t)
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
		n.put("d.test", a, smtptest.Options{})
	}
	last := n.put("d.test", "192.0.2.4", smtptest.Options{TLS: smtptest.TLS(ca.Issue(t, time.Time{}, "d.test")), Secure: []string{"REQUIRETLS"}})
	x := n.exit(smtp.Options{TLS: fixed(smtp.TLSPolicy{Roots: ca.Pool()})})
	j := job("d.test", "r@d.test")
	j.Envelope.RequireTLS = true
	if r := one(t, x, j); r.Reply.Class != reply.Success || len(last.Messages()) != 1 {
		t.Errorf("%+v", r)
	}
	n.put("e.test", "192.0.2.11", smtptest.Options{})
	n.refuse("e.test", "192.0.2.12")
	j = job("e.test", "r@e.test")
	j.Envelope.RequireTLS = true
	if r := one(t, x, j); r.Reply.Class != reply.Temporary {
		t.Errorf("%+v", r)
	}
}

type assurance func(smtp.Peer) (smtp.TLSPolicy, error)

func (a assurance) Assure(_ context.Context, p smtp.Peer) (smtp.TLSPolicy, error) { return a(p) }

func TestAssurance(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	n := newInternet(t)
	n.mx["d.test"] = exchangers(resolve.Host{Name: "mx1.d.test", Preference: 1}, resolve.Host{Name: "mx2.d.test", Preference: 2})
	n.put("mx1.d.test", "192.0.2.1", smtptest.Options{})
	n.put("mx2.d.test", "192.0.2.2", smtptest.Options{TLS: smtptest.TLS(ca.Issue(t, time.Time{}, "mx2.d.test"))})
	var asked []smtp.Peer
	x := n.exit(smtp.Options{Assurance: assurance(func(p smtp.Peer) (smtp.TLSPolicy, error) {
		asked = append(asked, p)
		if p.Host == "mx1.d.test" {
			return smtp.TLSPolicy{}, errors.New("bogus")
		}
		return smtp.TLSPolicy{Level: smtp.Verified, Roots: ca.Pool()}, nil
	})})
	r := one(t, x, job("d.test", "r@d.test"))
	if r.Reply.Class != reply.Success || !r.TLS.Verified || len(n.dials()) != 1 || len(asked) != 2 || asked[1].Domain != "d.test" || asked[1].Authentic {
		t.Errorf("%+v %+v", r, asked)
	}
	n.mx["e.test"] = exchangers(resolve.Host{Name: "mx1.d.test"})
	if r := one(t, x, job("e.test", "r@e.test")); r.Reply.SMTP()[:9] != "451 4.7.5" {
		t.Errorf("%+v", r)
	}
}

func TestTLSLevels(t *testing.T) {
	for _, l := range []smtp.TLSLevel{smtp.Opportunistic, smtp.NoTLS, smtp.Required, smtp.Verified, smtp.Fingerprint} {
		if got, ok := smtp.ParseTLSLevel(l.String()); !ok || got != l {
			t.Error(l)
		}
	}
	if _, ok := smtp.ParseTLSLevel("perhaps"); ok || smtp.TLSLevel(99).String() != "invalid" {
		t.Error("a level that is none")
	}
}
