package main

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const portsConfig = `[listen.mx]
address = "$AT_MX"
next = "queue"
[listen.other]
address = "$AT_OTHER"
next = "queue"
[mailbox]
"joe@example.org" = "$RUN/mail/joe"
`

// inMessage begins a message and stops in its middle.
func (g *gateway) inMessage(t *testing.T, entrance string) *talk {
	t.Helper()
	c := g.hello(t, entrance, "")
	c.want("MAIL FROM:<a@client.example>", "250 ")
	c.want("RCPT TO:<joe@example.org>", "250 ")
	c.want("DATA", "354 ")
	if _, err := io.WriteString(c.conn, "Subject: in two halves\r\n\r\none half\r\n"); err != nil {
		t.Fatal(err)
	}
	return c
}

// rest sends the other half.
func (c *talk) rest() {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, "the other half\r\n.\r\n"); err != nil {
		c.t.Fatal(err)
	}
	if said := c.read(); !strings.HasPrefix(said, "250 2.0.0 ok") {
		c.t.Errorf("the message is answered %q", said)
	}
}

// TestSMTPReload: entrances come, go and change while messages are under way,
// none of which is dropped, and a daemon that stops ends what has begun.
func TestSMTPReload(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.env["AT_NEW"] = freeAddress(t)
	g.start(t, portsConfig)
	changed, removed, kept := g.inMessage(t, "mx"), g.inMessage(t, "other"), g.hello(t, "other", "")
	withNew := strings.Replace(portsConfig, "[listen.other]\naddress = \"$AT_OTHER\"", "[listen.new]\naddress = \"$AT_NEW\"", 1)
	withNew = strings.Replace(withNew, "[listen.mx]\n", "[listen.mx]\nmessages = 5\n", 1)
	g.reload(t, withNew)
	if said := kept.read(); !strings.HasPrefix(said, "421 4.3.2 ") {
		t.Errorf("a session that waits hears %q", said)
	}
	if c, err := net.Dial("tcp", g.at("other")); err == nil {
		c.Close()
		t.Error("an entrance that was removed still listens")
	}
	if said := g.hello(t, "mx", "").say("EHLO client.example"); !strings.Contains(said, "MAILMAX=5") {
		t.Errorf("by the new configuration EHLO is answered %q", said)
	}
	g.hello(t, "new", "").mail("a@client.example", "joe@example.org", "Subject: x\n\nnew\n", "250 ")
	// A configuration that is wrong, or whose port is taken, changes nothing.
	l, err := net.Listen("tcp", loopback()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, bad := range []string{"relay = 'nonsense('\n", "[listen.taken]\naddress = \"" + l.Addr().String() + "\"\n"} {
		g.write(t, "postern.toml", "control = \"\"\ndomains = [\"example.org\"]\n"+gatewayConfig+strings.Replace(withNew, "[mailbox]", bad+"[mailbox]", 1))
		if out, err := g.try("reload"); err == nil {
			t.Errorf("%q is taken: %s", bad, out)
		}
	}
	same := g.inMessage(t, "new")
	g.reload(t, withNew) // nothing has changed
	changed.rest()
	removed.rest()
	same.rest()
	same.want("NOOP", "250 ") // its server was left alone
	g.arrived(t, "joe", 4)

	last, waiting := g.inMessage(t, "mx"), g.hello(t, "new", "")
	if err := g.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if said := waiting.read(); !strings.HasPrefix(said, "421 4.3.2 ") {
		t.Errorf("when the daemon stops, a session that waits hears %q", said)
	}
	waiting.conn.Close()
	last.rest()
	if said := last.read(); !strings.HasPrefix(said, "421 4.3.2 ") {
		t.Errorf("after the last message the client hears %q", said)
	}
	last.conn.Close()
	if err := g.daemon.Wait(); err != nil {
		t.Errorf("the daemon: %v", err)
	}
	for _, c := range []*talk{changed, removed, kept, same} {
		c.conn.Close()
	}
	g.run(t, exec.Command("postern", "serve", "--config", g.config))
	g.arrived(t, "joe", 5)
}

// TestSMTPSupervisor: a supervisor opens the port and keeps it. Clients wait
// while the daemon is started again.
func TestSMTPSupervisor(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.boxes(t, portsConfig)
	l, err := net.Listen("tcp", loopback()+":0")
	if err != nil {
		t.Fatal(err)
	}
	handed, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer handed.Close()
	g.env["AT_MX"] = l.Addr().String()
	l.Close()
	early := g.connect(t, "mx", "") // before there is a daemon
	config := g.write(t, "postern.toml", "control = \"\"\ndomains = [\"example.org\"]\n"+gatewayConfig+portsConfig)
	s := newSupervisor(t)
	d, out := s.start(config, handed)
	s.hears(stateReady)
	if said := early.read(); !strings.HasPrefix(said, "220 ") {
		t.Errorf("who came early is greeted %q", said)
	}
	early.want("EHLO client.example", "250 ")
	early.mail("a@client.example", "joe@example.org", "Subject: x\n\nearly\n", "250 ")
	early.want("QUIT", "221 ")
	d.Process.Signal(syscall.SIGHUP) //nolint:errcheck // the next line sees it
	s.hears("RELOADING=1\nMONOTONIC_USEC=")
	s.hears(stateReady)
	g.hello(t, "mx", "").want("QUIT", "221 ")
	d.Process.Signal(syscall.SIGTERM) //nolint:errcheck // likewise
	s.hears(stateStopping)
	if err := d.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	between := g.connect(t, "mx", "") // while there is none
	d, out = s.start(config, handed)
	s.hears(stateReady)
	if said := between.read(); !strings.HasPrefix(said, "220 ") {
		t.Errorf("who came between is greeted %q", said)
	}
	between.want("QUIT", "221 ")
	d.Process.Signal(syscall.SIGTERM) //nolint:errcheck // likewise
	s.hears(stateStopping)
	if err := d.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if strings.Contains(out.String(), "level=ERROR") {
		t.Error(out)
	}
	if names, err := filepath.Glob(filepath.Join(g.dir, "mail", "joe", "new", "*")); err != nil || len(names) != 1 {
		t.Errorf("%d messages arrived (%v)", len(names), err)
	}
	if _, err := os.Stat(filepath.Join(g.dir, "state")); err != nil {
		t.Error(err)
	}
}
