package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const qfilterConfig = `
[listen.mx]
address = "$AT_MX"
chain = "programs"
[chain]
programs = ["qfilter"]
[mailbox]
"joe@example.org" = "$RUN/mail/joe"
"sue@example.org" = "$RUN/mail/sue"
[filter.qfilter]
programs = [["$RUN/filter", "-x"], ["cat"]]
`

const qfilterProgram = `#!/bin/sh
[ "$QMAILUSER" = no ] && { printf 'Dnot from him' >&6; exit 82; }
[ "$QMAILUSER" = never ] && exit 31
[ "$QMAILUSER" = later ] && exit 71
[ "$QMAILUSER" = dead ] && kill -9 $$
printf 'X-Client: %s %s %s\n' "$TCPREMOTEIP" "$SMTPHELOHOST" "$1"
cat
[ "$QMAILUSER" = forward ] && printf 'F%s@%s\0Tsue@example.org\0\0' "$QMAILUSER" "$QMAILHOST" >&4
exit 0
`

// Programs of qmail-qfilter behind the SMTP server, in front of our own queue.
func TestQfilterBySMTP(t *testing.T) {
	g := newGateway(t)
	program := g.write(t, "filter", "")
	if err := os.WriteFile(program, []byte(qfilterProgram), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	g.boxes(t, qfilterConfig)
	g.start(t, qfilterConfig)
	c := g.hello(t, "mx", "")
	for _, m := range []struct{ sender, answer string }{
		{"no", "554 5.3.0 not from him"}, {"never", "554 5.3.0 "}, {"later", "451 4.3.0 "}, {"dead", "451 4.3.0 temporary trouble"}, {"plain", "250 "}, {"forward", "250 "},
	} {
		c.want("MAIL FROM:<"+m.sender+"@example.net>", "250 ")
		c.want("RCPT TO:<joe@example.org>", "250 ")
		c.data("Subject: "+m.sender+"\r\n\r\n..x\r\n", m.answer)
	}
	c.want("QUIT", "221 ")
	for box, subject := range map[string]string{"joe": "plain", "sue": "forward"} {
		all := g.arrived(t, box, 1)
		if !strings.Contains(all[0], "\nX-Client: 127.0.0.1 client.example -x\nReceived: from client.example ") || !strings.HasSuffix(all[0], "Subject: "+subject+"\n\n..x\n") {
			t.Errorf("%s got %q", box, all)
		}
	}
	if names, err := filepath.Glob(filepath.Join(g.dir, "mail", "*", "new", "*")); err != nil || len(names) != 2 {
		t.Errorf("%q is delivered: %v", names, err)
	}
}
