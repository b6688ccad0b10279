package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const sppConfig = `
[listen.mx]
address = "$AT_MX"
next = "queue"
tcprules = "$RUN/tcp.smtp"
tarpit = "0s"
[mailbox]
"joe@example.org" = "$RUN/mail/joe"
"box@example.org" = "$RUN/mail/box"
"former@example.org" = "$RUN/mail/former"
[chain]
inbound = ["spp", "badaddress"]
[filter.spp]
file = "$RUN/control/smtpplugins"
[filter.badaddress]
senders = ["friend@spam.example", "foe@spam.example"]
recipients = ["former@example.org", "box@example.org"]
`

const sppPlugins = `# as in qmail
[connection]
:echo P220-be polite; echo "HX-From: $TCPREMOTEIP"
[helo]
:case $SMTPHELOHOST in evil*) echo R550 5.7.1 not you;; spy*) echo D;; esac; echo P250-STARTTLS
plugins/count
[mail]
:case $SMTPMAILFROM in friend@*) echo O;; quiet@*) echo A;; later@*) echo LRno; echo LD554 5.7.1 not this;; bad@*) kill -9 $$;; esac
[rcpt]
:case $SMTPRCPTTO in no@*) echo 'E550 no such user (#5.1.1)';; drop@*) echo E250 ok;; former@*) echo O;; moved@*) echo Cbox@example.org;; bye@*) echo R421 4.7.0 enough;; esac
:echo "P250-$SMTPRCPTCOUNT of $SMTPRCPTCOUNTALL, $helos, $SMTPRCPTHOSTSOK"
[data]
:test "$SMTPRCPTTO" = sue@example.org && echo E450 4.2.1 her box is full; echo "HX-Count: $SMTPRCPTCOUNT"
`

// The programs of qmail-spp in the SMTP server: each command is heard where the
// client can hear it, and the message is stored as they say.
func TestSPP(t *testing.T) {
	g := newGateway(t)
	file := filepath.Join(g.dir, "control", "smtpplugins")
	g.write(t, "plugins/count", "")
	for name, text := range map[string]string{file: sppPlugins, filepath.Join(g.dir, "plugins", "count"): "#!/bin/sh\necho Shelos=$((helos + 1))\n"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(g.dir, "plugins", "count"), 0o755); err != nil {
		t.Fatal(err)
	}
	off := loopback()
	g.write(t, "tcp.smtp", off+":allow,NOSPP=\"\"\n:allow\n")
	g.start(t, sppConfig)

	c, greeting := g.dial(t, "mx", "")
	if greeting != "220 be polite\nmx.example.org ESMTP" {
		t.Errorf("the greeting is %q", greeting)
	}
	if got := c.want("EHLO client.example", "250 mx.example.org"); strings.Contains(got, "STARTTLS") {
		t.Errorf("what a program prints is an extension: %q", got)
	}
	c.want("MAIL FROM:<foe@spam.example>", "553 5.7.1 ")
	c.want("MAIL FROM:<bad@example.net>", "451 4.3.0 temporary trouble here")
	c.want("MAIL FROM:<friend@spam.example>", "250 ")
	c.want("RCPT TO:<joe@elsewhere.example>", "550 5.7.1 relaying denied")
	c.want("RCPT TO:<no@example.org>", "550 5.1.1 no such user")
	c.want("RCPT TO:<box@example.org>", "553 5.7.1 0 of 2, 1, 1\n5.7.1 mail to this recipient")
	c.want("RCPT TO:<joe@example.org>", "250 2.1.5 0 of 3, 1, 1\n2.1.5 ok")
	c.want("RCPT TO:<former@example.org>", "250 2.1.5 ok")
	c.want("RCPT TO:<moved@example.org>", "250 2.1.5 2 of 5, 1, 1\n2.1.5 ok")
	c.want("RCPT TO:<drop@example.org>", "250 2.1.5 ok")
	c.data("Subject: one\r\n\r\nx\r\n", "250 ")
	for _, box := range []string{"joe", "former", "box"} {
		got := g.arrived(t, box, 1)[0]
		head, _, _ := strings.Cut(got, "\n\n")
		_, ours, _ := strings.Cut(head, "Received: ")
		if !strings.Contains(ours, "\nX-From: 127.0.0.1\nX-Count: 4\nSubject: one") {
			t.Errorf("%s has\n%s", box, head)
		}
	}
	c.want("MAIL FROM:<later@example.net>", "250 ")
	c.want("RCPT TO:<joe@example.org>", "451 4.7.0 no")
	c.want("RSET", "250 ")
	c.want("EHLO again.example", "250 ")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<sue@example.org>", "250 2.1.5 0 of 1, 2, 1")
	c.data("Subject: two\r\n\r\nx\r\n", "450 4.2.1 her box is full")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<bye@example.org>", "421 4.7.0 enough")
	c.closed()

	// A program may end the connection, with a word or without one, or leave.
	c, _ = g.dial(t, "mx", "")
	c.want("EHLO evil.example", "550 5.7.1 not you")
	c.closed()
	c, _ = g.dial(t, "mx", "")
	if err := c.PrintfLine("EHLO spy.example"); err != nil {
		t.Fatal(err)
	}
	c.closed()
	c, _ = g.dial(t, "mx", "")
	c.want("EHLO client.example", "250 ")
	c.want("MAIL FROM:<quiet@example.net>", "250 ")
	c.want("RCPT TO:<no@example.org>", "250 2.1.5 ok")
	c.want("QUIT", "221 ")

	// tcprules switch the programs off, and a changed list is read again.
	c, greeting = g.dial(t, "mx", off)
	if !strings.HasPrefix(greeting, "220 mx.example.org") {
		t.Errorf("with NOSPP the greeting is %q", greeting)
	}
	c.want("EHLO evil.example", "250 ")
	c.want("QUIT", "221 ")
	if err := os.WriteFile(file+".new", []byte("[connection]\n:echo E554 5.7.1 closed today\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		c, greeting := g.dial(t, "mx", "")
		c.conn.Close()
		if strings.HasPrefix(greeting, "554 5.7.1 closed today") {
			break
		}
		if n == 200 {
			t.Fatalf("the changed list is not read: %q", greeting)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// After a login the session begins anew for the user, and [auth] may refuse his
// mail.
func TestSPPAuth(t *testing.T) {
	g := newGateway(t)
	g.env["$"] = "$"
	for _, user := range []string{"joe", "ann"} {
		addUser(t, g, user, "secret")
	}
	g.start(t, `
[listen.users]
address = "$AT_USERS"
service = "submission"
tls = "off"
auth_clear = true
next = "discard"
tarpit = "0s"
[auth.file]
file = "$RUN/users"
[chain]
inbound = ["spp"]
[filter.spp]
helo = [":echo Sclient=$${RELAYCLIENT-none}-$$SMTPAUTHUSER"]
auth = [":case $$SMTPAUTHUSER in ann) echo E535 5.7.8 not today, $$TCPREMOTEINFO;; esac"]
rcpt = [":echo P$$client"]
`)
	for user, want := range map[string]string{"joe": "250 ", "ann": "535 5.7.8 not today, ann"} {
		c := g.hello(t, "users", "")
		c.want("AUTH PLAIN "+plainLogin(user, "secret"), "235 ")
		c.want("MAIL FROM:<"+user+"@example.org>", want)
		if user == "joe" {
			c.want("RCPT TO:<x@elsewhere.example>", "250 2.1.5 -joe\n2.1.5 ok")
		}
		c.want("QUIT", "221 ")
	}
}
