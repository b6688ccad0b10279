package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSMTPReadme starts the daemon with the example of the README and sends mail
// by each of its ports.
func TestSMTPReadme(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("run this test as root: the example gives it up")
	}
	section := readme(t)[strings.Index(readme(t), "\n## The SMTP server\n"):]
	block := regexp.MustCompile("(?s)```toml\n(.*?)```").FindStringSubmatch(section)
	if block == nil {
		t.Fatal("no example")
	}
	g := newGateway(t)
	ca := newAuthority(t, g)
	ca.issue(t, g, "mx", "mx.example.org")
	addUser(t, g, clientSender, clientPassword)
	if err := os.Chown(filepath.Join(g.dir, "users"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	g.write(t, "tcp.smtp", ":allow\n")
	config := strings.NewReplacer(`"postern"`, `"nobody"`, "/etc/postern/", "$RUN/", `":25"`, `"$AT_MX"`, `":587"`, "\"$AT_SUBMISSION\"\nservice = \"submission\"",
		`":465"`, "\"$AT_SMTPS\"\nservice = \"submission\"\ntls = \"implicit\"", `"/var/mail/%d/%l"`, `"$RUN/mail/%l"`, "192.0.2.0/24", "127.0.2.0/24").Replace(block[1])
	g.box(t, "joe")
	for _, dir := range []string{"tmp", "new", "cur"} {
		if err := os.Chmod(filepath.Join(g.dir, "mail", "joe", dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	g.start(t, "control = \"\"\nstate = \"$RUN/run/state\"\nadmin.socket = \"$RUN/run/admin.sock\"\nlog.format = \"json\"\n"+config)
	mx, _ := g.hello(t, "mx", "127.0.2.1").startTLS(ca.trust("mx.example.org"))
	mx.mail("a@client.example", "joe@example.org", "Subject: x\n\nby 25\n", "250 ")
	submission, _ := g.hello(t, "submission", "").startTLS(ca.trust("mx.example.org"))
	submission.want("AUTH PLAIN "+plainLogin(clientSender, clientPassword), "235 ")
	submission.mail(clientSender, "joe@example.org", "Subject: x\n\nby 587\n", "250 ")
	smtps := overTLS(t, g.connect(t, "smtps", ""), ca)
	smtps.read()
	smtps.want("EHLO client.example", "250 ")
	smtps.want("AUTH PLAIN "+plainLogin(clientSender, clientPassword), "235 ")
	smtps.mail(clientSender, "joe@example.org", "Subject: x\n\nby 465\n", "250 ")
	all := strings.Join(g.arrived(t, "joe", 3), "")
	for _, want := range []string{"by 25", "by 587", "by 465"} {
		if !strings.Contains(all, "\n\n"+want+"\n") {
			t.Errorf("no message %s: %q", want, all)
		}
	}
}
