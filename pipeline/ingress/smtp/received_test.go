package smtp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
)

// TestReceived: what was spoken (RFC 3848, RFC 6531 §4.3), and by which TLS (RFC 8314
// §4.3), as the clauses of RFC 5321 §4.4 stand in their order.
func TestReceived(t *testing.T) {
	now := time.Date(2026, 3, 5, 14, 7, 9, 0, time.UTC)
	const suite = "TLSv1.3 TLS_AES_128_GCM_SHA256"
	for name, c := range map[string]struct {
		service    Service
		esmtp      bool
		tls, user  string
		utf8       bool
		recipients []string
		want       string
	}{
		"HELO": {want: "\n\tby mx.example.org with SMTP id s.1; "},
		"EHLO": {esmtp: true, recipients: []string{"b@d.example"}, want: "\n\tby mx.example.org with ESMTP id s.1\n\tfor <b@d.example>; "},
		"TLS": {
			esmtp: true, tls: suite, recipients: []string{"b@d.example"},
			want: "\n\t(using TLSv1.3)\n\tby mx.example.org with ESMTPS id s.1\n\tfor <b@d.example>\n\ttls TLS_AES_128_GCM_SHA256; ",
		},
		"TLS, logged in": {
			esmtp: true, tls: "TLSv1.2 TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", user: "ann@example.org", recipients: []string{"b@d.example", "c@d.example"},
			want: "\n\t(using TLSv1.2)\n\tby mx.example.org with ESMTPSA id s.1\n\ttls TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256; ",
		},
		"logged in": {esmtp: true, user: "ann@example.org", want: "\n\tby mx.example.org with ESMTPA id s.1; "},
		"SMTPUTF8":  {esmtp: true, utf8: true, tls: suite, want: "\n\t(using TLSv1.3)\n\tby mx.example.org with UTF8SMTPS id s.1\n\ttls TLS_AES_128_GCM_SHA256; "},
		"LMTP":      {service: LMTP, esmtp: true, tls: suite, want: "\n\t(using TLSv1.3)\n\tby mx.example.org with LMTPS id s.1\n\ttls TLS_AES_128_GCM_SHA256; "},
		"LMTP UTF8": {service: LMTP, esmtp: true, utf8: true, want: "\n\tby mx.example.org with UTF8LMTP id s.1; "},
	} {
		e := envelope.To("a@b.example", c.recipients...)
		e.UTF8 = c.utf8
		n := &session{
			srv:   &Server{o: Options{Hostname: "mx.example.org", Service: c.service, Now: func() time.Time { return now }}},
			facts: &pipeline.Session{Helo: "client.example", Peer: netip.MustParseAddrPort("192.0.2.7:4"), TLS: c.tls, User: c.user},
			esmtp: c.esmtp,
		}
		n.tx = &transaction{Transaction: pipeline.Transaction{ID: "s.1", Envelope: e}}
		if got, want := n.received(), "from client.example (unknown [192.0.2.7])"+c.want+"Thu, 05 Mar 2026 14:07:09 +0000"; got != want {
			t.Errorf("%s:\n%q, want\n%q", name, got, want)
		}
	}
}
