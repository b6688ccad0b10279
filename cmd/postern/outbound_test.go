package main

import (
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

const outboundConfig = `hostname = "mx.example.org"
control = ""
domains = ["example.org"]
trusted = ["$UID"]
state = "$RUN/state"
admin.socket = "$RUN/admin.sock"
log.format = "json"
[queue]
low_space = "1 MB"
resolver = ["127.0.0.1:1"]
[listen.mx]
address = "$AT_MX"
next = "queue"
relay = 'cidr(ip, "127.0.0.0/8")'
tls = "offer"
requiretls = true
certificates = ["own"]
[certificate.own]
cert = "$RUN/own.crt"
key = "$RUN/own.key"
[chain]
inbound = []
[tls.strict]
domains = ["strict.example", "trusted.example"]
level = "verified"
names = ["trusted.test"]
ca = "$RUN/ca.pem"
[tls.never]
domains = ["never.example"]
level = "none"
[route]
"clear.example" = "$CLEAR"
"any.example" = "$ANY"
"never.example" = "$ANY"
"strict.example" = "$ANY"
"trusted.example" = "$TRUSTED"
"broken.example" = "$BROKEN"
"smart.example" = {to = "$SMART", smtps = true, user = "joe", password = "secret"}
"wrong.example" = {to = "$SMART", smtps = true, user = "joe", password = "wrong"}
`

// outboundPeers are the servers that mail leaves for.
func outboundPeers(t *testing.T, g *gateway) map[string]*smtptest.Server {
	t.Helper()
	ca := smtptest.NewAuthority(t)
	g.write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate()})))
	own := (*smtptest.Authority)(nil).Issue(t, time.Time{}, "any.test")
	peers := map[string]*smtptest.Server{
		"CLEAR": smtptest.New(t),
		"ANY":   smtptest.Start(t, smtptest.Options{TLS: smtptest.TLS(own)}),
		"TRUSTED": smtptest.Start(t, smtptest.Options{
			TLS: smtptest.TLS(ca.Issue(t, time.Time{}, "trusted.test")), Secure: []string{"REQUIRETLS"},
		}),
		"BROKEN": smtptest.Start(t, smtptest.Options{
			TLS: smtptest.TLS(own), Steps: []smtptest.Step{{At: smtptest.Handshake, End: smtptest.Close}},
		}),
		"SMART": smtptest.Start(t, smtptest.Options{
			TLS: smtptest.TLS(own), Implicit: true, Logins: []string{"PLAIN"}, Users: map[string]string{"joe": "secret"},
		}),
	}
	for name, s := range peers {
		g.env[name] = s.Addr().String()
	}
	return peers
}

// TestOutbound has mail leave under every policy, and the log tell how.
func TestOutbound(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	peers := outboundPeers(t, g)
	client := newAuthority(t, g)
	client.issue(t, g, "own", "mx.example.org")
	g.start(t, outboundConfig)
	for _, c := range []struct {
		domain, peer string
		status       string
		tls          string // in the log, "" for none
		reply        string // how the answer begins
	}{
		{"clear.example", "CLEAR", "delivered", "", "250"},
		{"any.example", "ANY", "delivered", "unverified", "250"},
		{"never.example", "ANY", "delivered", "", "250"},
		{"strict.example", "ANY", "deferred", "", "451 4.7.5"},
		{"trusted.example", "TRUSTED", "delivered", "verified", "250"},
		{"broken.example", "BROKEN", "delivered", "", "250"},
		{"smart.example", "SMART", "delivered", "unverified", "250"},
		{"wrong.example", "SMART", "deferred", "", "451 4.7.8"},
	} {
		session := g.hello(t, "mx", "")
		session.want("MAIL FROM:<joe@example.org>", "250 ")
		session.want("RCPT TO:<sue@"+c.domain+">", "250 ")
		session.data("Subject: to "+c.domain+"\n\nHello.\n", "250 ")
		line := g.logged(t, 1, "msg", "delivery", "to", "sue@"+c.domain)[0]
		tls, _ := line["tls"].(string)
		answer, _ := line["reply"].(string)
		if line["status"] != c.status || !strings.HasPrefix(answer, c.reply) || (tls == "") != (c.tls == "") || !strings.HasSuffix(tls, " "+c.tls) && c.tls != "" {
			t.Errorf("%s: %v", c.domain, line)
		}
		var taken []*smtptest.Message
		for _, m := range peers[c.peer].Messages() {
			if m.Addresses()[0] == "sue@"+c.domain {
				taken = append(taken, m)
			}
		}
		if c.status == "deferred" {
			if len(taken) != 0 {
				t.Errorf("%s: sent all the same", c.domain)
			}
			continue
		}
		if len(taken) != 1 || (taken[0].TLS != nil) != (c.tls != "") || (taken[0].User == "joe") != (c.peer == "SMART") {
			t.Errorf("%s: %d messages", c.domain, len(taken))
		}
	}
	// REQUIRETLS goes where a server proves who it is and goes on with it, and comes
	// back from elsewhere.
	for to, want := range map[string]string{"bob@trusted.example": "delivered", "bob@any.example": "failed", "bob@clear.example": "failed"} {
		session, _ := g.hello(t, "mx", "").startTLS(client.trust("mx.example.org"))
		session.want("MAIL FROM:<joe@example.org> REQUIRETLS", "250 ")
		session.want("RCPT TO:<"+to+">", "250 ")
		session.data("Subject: secret\n\nHello.\n", "250 ")
		line := g.logged(t, 1, "msg", "delivery", "to", to)[0]
		if answer, _ := line["reply"].(string); line["status"] != want || want == "failed" && !strings.HasPrefix(answer, "550 5.7.10 ") {
			t.Errorf("%s: %v", to, line)
		}
	}
	if m := peers["TRUSTED"].Messages(); len(m) != 2 || !m[1].Mail.RequireTLS {
		t.Errorf("%d messages, and not one that requires TLS", len(m))
	}
	if got := g.lines(t, "level", "WARN", "domain", "broken.example"); len(got) != 1 {
		t.Errorf("%d warnings of TLS that does not work", len(got))
	}
	if got := g.lines(t, "level", "ERROR", "domain", "wrong.example"); len(got) == 0 {
		t.Error("no error of a login that fails")
	}
	if b, err := os.ReadFile(filepath.Join(g.dir, "log")); err != nil || strings.Contains(string(b), "secret") {
		t.Error("the log tells a password", err)
	}
}

// TestOutboundToOurselves is Postern as the smarthost of another: one sends by
// STARTTLS and by smtps, logged in, with the certificate verified, and 8 bits and
// what SMTPUTF8 is for arrive as they were sent.
func TestOutboundToOurselves(t *testing.T) {
	t.Parallel()
	host := newGateway(t)
	ca := newAuthority(t, host)
	ca.issue(t, host, "own", "smart.example.org")
	users := filepath.Join(host.dir, "users")
	add := exec.Command("postern", "password", "--file", users, "--user", "ann@example.org")
	add.Stdin = strings.NewReader("her secret\n")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	host.start(t, `
[listen.submission]
address = "$AT_STARTTLS"
service = "submission"
auth = ["file"]
next = "queue"
[listen.smtps]
address = "$AT_SMTPS"
service = "submission"
tls = "implicit"
auth = ["file"]
next = "queue"
[certificate.own]
cert = "$RUN/own.crt"
key = "$RUN/own.key"
[auth.file]
file = "$RUN/users"
[chain]
inbound = []
[mailbox]
"bob@example.org" = "$RUN/mail/bob"
"j\u00f6rg@example.org" = "$RUN/mail/joerg"
`)
	g := newGateway(t)
	g.env["STARTTLS"], g.env["SMTPS"], g.env["CA"], g.env["SECRET"] = host.at("starttls"), host.at("smtps"), ca.file, g.write(t, "secret", "her secret\n")
	g.start(t, `
[listen.mx]
address = "$AT_MX"
next = "queue"
relay = 'cidr(ip, "127.0.0.0/8")'
[chain]
inbound = []
[tls.default]
level = "verified"
names = ["smart.example.org"]
ca = "$CA"
[route]
"" = {to = "$STARTTLS", user = "ann@example.org", password_file = "$SECRET"}
".smtps.example" = {to = "$SMTPS", smtps = true, user = "ann@example.org", password_file = "$SECRET"}
`)
	const text = "From: ann@example.org\nTo: bob@example.org\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nMessage-ID: <1@example.org>\nSubject: gr\u00fc\u00dfe\n\nGr\u00fc\u00dfe \xe4 .\n.\n"
	for i, to := range []string{"bob@example.org", "j\u00f6rg@example.org"} {
		session := g.hello(t, "mx", "")
		session.want("MAIL FROM:<ann@example.org> BODY=8BITMIME SMTPUTF8", "250 ")
		session.want("RCPT TO:<"+to+">", "250 ")
		session.data(text, "250 ")
		line := g.logged(t, i+1, "msg", "delivery")[i]
		if tls, _ := line["tls"].(string); line["status"] != "delivered" || !strings.HasSuffix(tls, " verified") {
			t.Errorf("%s: %v", to, line)
		}
		box := [...]string{"bob", "joerg"}[i]
		if got := host.arrived(t, box, 1)[0]; !strings.HasSuffix(got, text) {
			t.Errorf("%s: sent %q, arrived %q", to, text, got)
		}
	}
	// Nobody of that domain is there, which the smarthost has to find out.
	session := g.hello(t, "mx", "")
	session.want("MAIL FROM:<ann@example.org>", "250 ")
	session.want("RCPT TO:<x@far.smtps.example>", "250 ")
	session.data("Subject: x\n\nx\n", "250 ")
	if line := g.logged(t, 1, "msg", "delivery", "to", "x@far.smtps.example")[0]; line["status"] != "delivered" || !strings.HasSuffix(line["tls"].(string), " verified") {
		t.Errorf("%v", line)
	}
}
