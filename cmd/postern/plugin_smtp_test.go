package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const pluginConfig = `
[listen.mx]
address = "$AT_MX"
next = "queue"
[plugin.actor]
command = ["$ACTOR", "1"]
memory = "100000 GB" # the race detector maps as much
[chain]
inbound = ["actor"]
[filter.actor]
dark = "dark.example"
refuse = ["gone@example.org"]
[mailbox]
"joe@example.org" = "$RUN/mail/joe"
`

// A plugin judges while the client speaks, at HELO and at each recipient, and
// edits what is stored; a reload changes it under way.
func TestPluginInTheSMTPServer(t *testing.T) {
	g := newGateway(t)
	postern, err := exec.LookPath("postern")
	if err != nil {
		t.Fatal(err)
	}
	g.env["ACTOR"] = filepath.Join(filepath.Dir(postern), "actor")
	g.start(t, pluginConfig)
	dark, _ := g.dial(t, "mx", "")
	dark.want("EHLO dark.example", "554 5.7.1 we do not know dark.example")
	c := g.hello(t, "mx", "")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<gone@example.org>", "550 5.1.1 not here")
	c.want("RCPT TO:<joe@example.org>", "250 ")
	c.data("Subject: one\r\n\r\n"+strings.Repeat("x\r\n", 100_000), "250 ")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<joe@example.org>", "250 ")
	// It is changed between the recipient and the message: this session ends with
	// the one that it began with.
	g.reload(t, strings.Replace(pluginConfig, `"1"]`, `"2"]`, 1))
	c.data("Subject: two\r\n\r\nappend here\r\n", "250 ")
	c.want("QUIT", "221 ")
	c = g.hello(t, "mx", "")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<joe@example.org>", "250 ")
	c.data("Subject: three\r\n\r\nappend here\r\n", "250 ")
	c.want("QUIT", "221 ")
	all := strings.Join(g.arrived(t, "joe", 3), "\n")
	for _, want := range []string{"Subject: [seen] one", "appended by version 1", "appended by version 2"} {
		if strings.Count(all, want) != 1 {
			t.Errorf("%q is %d times in what arrived", want, strings.Count(all, want))
		}
	}
	g.stop(t)
	for _, room := range []string{"b", "r"} {
		left, err := os.ReadDir(filepath.Join(g.dir, "state", "plugins", "actor", room))
		if err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", room, left, err)
		}
	}
}
