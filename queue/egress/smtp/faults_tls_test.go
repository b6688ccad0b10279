package smtp_test

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// TestTLSFaultMatrix has every fault of TLS under every policy: none may be missing,
// and each ends as testdata/faults_tls.txt has it. Time is simulated.
func TestTLSFaultMatrix(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	server := func(c tls.Certificate) *tls.Config { return smtptest.TLS(c) }
	good := server(ca.Issue(t, time.Time{}, "mx1.d.test", "mx2.d.test"))
	step := func(at smtptest.At, s smtptest.Step) trouble {
		s.At = at
		return trouble{step: &s}
	}
	faults := []struct {
		name string
		bad  trouble
	}{
		{"none", trouble{}},
		{"not-offered", trouble{clear: true}},
		{"self-signed", trouble{tls: server((*smtptest.Authority)(nil).Issue(t, time.Time{}, "mx1.d.test"))}},
		{"other-authority", trouble{tls: server(smtptest.NewAuthority(t).Issue(t, time.Time{}, "mx1.d.test"))}},
		{"expired", trouble{tls: server(ca.Issue(t, today.Add(-time.Minute), "mx1.d.test"))}},
		{"other-name", trouble{tls: server(ca.Issue(t, time.Time{}, "mx.other.test"))}},
		{"454", step(smtptest.StartTLS, smtptest.Step{Reply: "454 4.7.0 not now"})},
		{"502", step(smtptest.StartTLS, smtptest.Step{Reply: "502 5.5.1 what?"})},
		{"421", step(smtptest.StartTLS, smtptest.Step{Reply: "421 4.3.2 down"})},
		{"hole-at-starttls", step(smtptest.StartTLS, smtptest.Step{End: smtptest.Hole})},
		{"close-at-starttls", step(smtptest.StartTLS, smtptest.Step{End: smtptest.Close})},
		{"reset-at-starttls", step(smtptest.StartTLS, smtptest.Step{End: smtptest.Abort})},
		{"injected", step(smtptest.StartTLS, smtptest.Step{Raw: "220 go\r\n250 AUTH PLAIN\r\n"})},
		{"stall", step(smtptest.Handshake, smtptest.Step{End: smtptest.Hole})},
		{"zero-window", step(smtptest.Handshake, smtptest.Step{End: smtptest.Stall})},
		{"close", step(smtptest.Handshake, smtptest.Step{End: smtptest.Close})},
		{"reset", step(smtptest.Handshake, smtptest.Step{End: smtptest.Abort})},
		{"stall-halfway", step(smtptest.Handshake, smtptest.Step{Bytes: 200, End: smtptest.Hole})},
		{"close-halfway", step(smtptest.Handshake, smtptest.Step{Bytes: 200, End: smtptest.Close})},
		{"garbage", step(smtptest.Handshake, smtptest.Step{Raw: "what?\r\n", End: smtptest.Hole})},
		{"alert", step(smtptest.Handshake, smtptest.Step{Raw: "\x15\x03\x03\x00\x02\x02\x28", End: smtptest.Close})},
		{"slow-loris", step(smtptest.Handshake, smtptest.Step{Raw: "\x16\x03\x03\x40\x00", Drip: time.Second, End: smtptest.Endless})},
		{"endless", step(smtptest.Handshake, smtptest.Step{Raw: "\x16\x03\x03\x00\x04\x0b\xff\xff\xff", End: smtptest.Endless})},
		{"hole-behind-it", step(smtptest.Hello, smtptest.Step{Skip: 1, Times: 1, End: smtptest.Hole})},
		{"reset-behind-it", step(smtptest.Hello, smtptest.Step{Skip: 1, Times: 1, End: smtptest.Abort})},
		{"no-close-notify", step(smtptest.Dot, smtptest.Step{End: smtptest.Close})},
	}
	m := &matrix{file: "faults_tls.txt", want: cells(t, "faults_tls.txt"), known: map[string]bool{}}
	levels := []mode{
		{name: "opportunistic"},
		{name: "clear", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{Level: smtp.NoTLS})}},
		{name: "required", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{Level: smtp.Required})}},
		{name: "verified", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{Level: smtp.Verified, Roots: ca.Pool()})}},
		{name: "fingerprint", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{Level: smtp.Fingerprint, Fingerprints: [][sha256.Size]byte{sha256.Sum256(good.Certificates[0].Certificate[0])}})}},
		{name: "implicit", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{Implicit: true, Level: smtp.Verified, Roots: ca.Pool()})}, implicit: true},
	}
	var names []string
	for _, f := range faults {
		names = append(names, f.name)
		for _, level := range levels {
			level.tls = good
			t.Run(f.name+" "+level.name, func(t *testing.T) {
				if level.implicit && (strings.Contains(f.name, "starttls") || slices.Contains([]string{"454", "502", "421", "injected", "hole-behind-it", "reset-behind-it"}, f.name)) {
					m.check(t, f.name, level.name, "", "-")
					return
				}
				m.check(t, f.name, level.name, "", level.both(t, f.bad))
			})
		}
	}
	m.whole(t)
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-18s", "")
	for _, level := range levels {
		fmt.Fprintf(&b, " %-26s", level.name)
	}
	for _, name := range names {
		fmt.Fprintf(&b, "\n%-18s", name)
		for _, level := range levels {
			alone, _, _ := strings.Cut(m.want[name+" "+level.name], " | ")
			fmt.Fprintf(&b, " %-26s", alone)
		}
	}
	t.Log(b.String())
}

// TestBrokenTLSIsNotTriedTwice: what has gone in clear goes on in clear, without the
// wait for a handshake that stalls.
func TestBrokenTLSIsNotTriedTwice(t *testing.T) {
	secure := smtptest.TLS((*smtptest.Authority)(nil).Issue(t, time.Time{}, "d.test"))
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, mode{tls: secure, o: smtp.Options{Idle: -1}}, trouble{step: &smtptest.Step{At: smtptest.Handshake, End: smtptest.Hole}}, false)
		for i, want := range []time.Duration{time.Minute, 0, 0} {
			start := time.Now()
			if r := s.exit.Deliver(t.Context(), s.job())[0]; r.TLS.Version != 0 || r.Reply.Code != 250 || time.Since(start) != want {
				t.Errorf("message %d after %v: %+v", i+1, time.Since(start), r)
			}
		}
		s.exit.Close(t.Context())
		s.close()
	})
}
