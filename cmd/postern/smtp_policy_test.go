package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/rules"
)

const policyRules = `127.0.2.:allow,RELAYCLIENT=""
127.0.3.:allow,RELAYCLIENT=".via.example"
127.0.4.:deny
127.0.5.:allow,DATABYTES="100"
:allow
`

const policyConfig = `control = "$RUN/control"
state = "$RUN/state"
admin.socket = "$RUN/admin.sock"
log.format = "json"
[listen.mx]
address = "$AT_MX"
next = "discard"
tcprules = "$RUN/tcp.rules"
[listen.cdb]
address = "$AT_CDB"
next = "discard"
tcprules = "$RUN/tcp.cdb"
relay = 'cidr(ip, "127.0.6.0/24")'
[listen.users]
address = "$AT_USERS"
service = "submission"
next = "discard"
auth = ["file"]
auth_clear = true
[auth.file]
file = "$RUN/users"
`

// control makes a qmail control directory.
func (g *gateway) control(t *testing.T, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(g.dir, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(g.dir, "control", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// newPolicyGateway starts a daemon on a control directory, of which some files
// are as given.
func newPolicyGateway(t *testing.T, files map[string]string) *gateway {
	t.Helper()
	g := newGateway(t)
	g.control(t, map[string]string{"me": "mx.example.org\n", "databytes": "2000\n", "smtpgreeting": "mx.example.org no unsolicited mail\n", "timeoutsmtpd": "2\n"})
	g.control(t, files)
	text := g.write(t, "tcp.rules", policyRules)
	c := exec.Command("tcprules", filepath.Join(g.dir, "tcp.cdb"), filepath.Join(g.dir, "tcp.tmp"))
	c.Stdin = strings.NewReader(policyRules)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("tcprules of %s: %v: %s (install Debian's package ucspi-tcp)", text, err, out)
	}
	addUser(t, g, clientSender, clientPassword)
	g.start(t, policyConfig)
	return g
}

const (
	taken  = "250 2.1.5 "
	denied = "550 5.7.1 relaying denied"
)

// named is a recipient that a client names.
type named struct {
	entrance, from, to, answer string
	as                         string // as the log has it, if that is not to
}

var allNamed = []named{
	{entrance: "mx", to: "joe@example.org", answer: taken},
	{entrance: "mx", to: "joe@deep.sub.example.org", answer: taken},
	{entrance: "mx", to: "joe@many.example", answer: taken},
	{entrance: "mx", to: "postmaster", answer: taken, as: "postmaster@mx.example.org"},
	{entrance: "mx", to: "joe@sub.example.org", answer: denied},
	{entrance: "mx", to: "joe@elsewhere.example", answer: denied},
	{entrance: "mx", to: "joe@notmany.example", answer: denied},
	{entrance: "mx", to: "joe%elsewhere.example@example.org", answer: denied},
	{entrance: "mx", to: `"joe@elsewhere.example"@example.org`, answer: denied},
	{entrance: "mx", to: `"joe%elsewhere.example"@example.org`, answer: denied},
	{entrance: "mx", to: "elsewhere.example!joe@example.org", answer: denied},
	{entrance: "mx", to: "joe@elsewhere.example@example.org", answer: "501 5.1.3 "},
	{entrance: "mx", to: "@example.org:joe@elsewhere.example", answer: denied},
	{entrance: "mx", from: "127.0.2.1", to: "joe@elsewhere.example", answer: taken},
	{entrance: "mx", from: "127.0.3.1", to: "joe@elsewhere.example", answer: taken, as: "joe@elsewhere.example.via.example"},
	{entrance: "cdb", from: "127.0.2.1", to: "joe@elsewhere.example", answer: taken},
	{entrance: "cdb", from: "127.0.3.1", to: "joe@elsewhere.example", answer: taken, as: "joe@elsewhere.example.via.example"},
	{entrance: "cdb", from: "127.0.6.1", to: "joe@elsewhere.example", answer: taken},
	{entrance: "cdb", from: "127.0.7.1", to: "joe@elsewhere.example", answer: denied},
	{entrance: "users", to: "joe@elsewhere.example", answer: "530 5.7.0 authentication required"},
}

// TestSMTPPolicy: who may send where, with a qmail control directory.
func TestSMTPPolicy(t *testing.T) {
	t.Parallel()
	var cdb bytes.Buffer
	if err := rules.WriteCDB(&cdb, []rules.CDBRecord{{Key: "many.example"}}); err != nil {
		t.Fatal(err)
	}
	g := newPolicyGateway(t, map[string]string{
		"rcpthosts": "example.org\n.sub.example.org\n", "morercpthosts": "many.example\n", "morercpthosts.cdb": cdb.String(),
		"badmailfrom": "evil@spam.example\n@bad.example\n",
	})
	for i, n := range allNamed {
		testNamed(t, g, fmt.Sprintf("s%d@client.example", i), n)
	}
	t.Run("sizes", func(t *testing.T) { testSizes(t, g) })
	t.Run("senders", func(t *testing.T) { testSenders(t, g) })
	t.Run("user", func(t *testing.T) { testUserRelays(t, g) })
	t.Run("timeout", func(t *testing.T) { testTimeout(t, g) })
	t.Run("changed", func(t *testing.T) { testChangedRules(t, g) })
	t.Run("reloads", func(t *testing.T) { testRulesAreClosed(t, g) })
	t.Run("explain", func(t *testing.T) { testExplainSMTP(t, g) })
}

// TestSMTPWithoutRcpthosts: where nobody says which domains are ours, strangers
// reach postmaster and nobody else.
func TestSMTPWithoutRcpthosts(t *testing.T) {
	t.Parallel()
	g := newPolicyGateway(t, map[string]string{"locals": "example.org\n", "virtualdomains": "virtual.example:joe\n"})
	for i, n := range []named{
		{entrance: "mx", to: "postmaster", answer: taken, as: "postmaster@mx.example.org"},
		{entrance: "mx", to: "joe@example.org", answer: denied},
		{entrance: "mx", to: "joe@virtual.example", answer: denied},
		{entrance: "mx", to: "joe@elsewhere.example", answer: denied},
		{entrance: "mx", from: "127.0.2.1", to: "joe@elsewhere.example", answer: taken},
	} {
		testNamed(t, g, fmt.Sprintf("s%d@client.example", i), n)
	}
}

func testNamed(t *testing.T, g *gateway, sender string, n named) {
	t.Helper()
	c := g.hello(t, n.entrance, n.from)
	defer c.conn.Close()
	mail := c.say("MAIL FROM:<" + sender + ">")
	if !strings.HasPrefix(mail, "250 ") {
		if !strings.HasPrefix(mail, n.answer) {
			t.Errorf("%s from %s: the sender is answered %q, want %q", n.entrance, n.from, mail, n.answer)
		}
		return
	}
	c.want("RCPT TO:<"+n.to+">", n.answer)
	if n.answer != taken {
		c.want("DATA", "5")
		return
	}
	c.data("Subject: x\n\nbody\n", "250 ")
	if n.as == "" {
		n.as = n.to
	}
	g.logged(t, 1, "msg", "message", "from", sender, "to", n.as)
}

// testSizes: databytes, also that of tcprules, before and within the message.
func testSizes(t *testing.T, g *gateway) {
	long := "Subject: long\n\n" + strings.Repeat("a line\n", 20)
	for from, limit := range map[string]string{"127.0.1.1": "2000", "127.0.5.1": "100"} {
		c := g.hello(t, "mx", from)
		if said := c.say("EHLO client.example"); !strings.Contains(said, "SIZE "+limit+"\n") {
			t.Errorf("from %s: EHLO is answered %q", from, said)
		}
		c.want("MAIL FROM:<a@client.example> SIZE=9999", "552 5.3.4 ")
		if limit == "100" {
			c.mail("a@client.example", "joe@example.org", long, "552 5.3.4 ")
		} else {
			c.mail("a@client.example", "joe@example.org", long, "250 ")
			c.mail("a@client.example", "joe@example.org", strings.Repeat(long, 20), "552 5.3.4 ")
		}
		c.want("QUIT", "221 ")
	}
}

// testSenders: badmailfrom, the greeting, and a client that is denied.
func testSenders(t *testing.T, g *gateway) {
	c, greeting := g.dial(t, "mx", "")
	if greeting != "220 mx.example.org no unsolicited mail" {
		t.Errorf("the greeting is %q", greeting)
	}
	c.want("EHLO client.example", "250 ")
	for _, bad := range []string{"evil@spam.example", "anybody@bad.example", "EVIL@Spam.Example"} {
		c.want("MAIL FROM:<"+bad+">", "553 5.7.1 ")
	}
	c.mail("good@spam.example", "joe@example.org", "Subject: x\n\nbody\n", "250 ")
	if _, greeting := g.dial(t, "mx", "127.0.4.1"); !strings.HasPrefix(greeting, "554 5.7.1 ") {
		t.Errorf("a client whom the rules deny is greeted %q", greeting)
	}
}

// testUserRelays: who has logged in may send anywhere.
func testUserRelays(t *testing.T, g *gateway) {
	c := g.hello(t, "users", "")
	c.want("AUTH PLAIN "+plainLogin(clientSender, clientPassword), "235 ")
	c.mail("ann@example.org", "joe@elsewhere.example", "Subject: x\n\nbody\n", "250 ")
	l := g.logged(t, 1, "msg", "message", "to", "joe@elsewhere.example", "user", clientSender)[0]
	if l["standing"] != "auth" {
		t.Errorf("the log has %v", l)
	}
}

// testTimeout: timeoutsmtpd ends a silent session, and one silent in a message.
func testTimeout(t *testing.T, g *gateway) {
	idle := g.hello(t, "mx", "")
	busy := g.hello(t, "mx", "")
	busy.want("MAIL FROM:<silent@client.example>", "250 ")
	busy.want("RCPT TO:<joe@example.org>", "250 ")
	busy.want("DATA", "354 ")
	if err := busy.PrintfLine("Subject: half"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for _, c := range []*talk{idle, busy} {
		if said := c.read(); !strings.HasPrefix(said, "421 4.4.2 ") {
			t.Errorf("a silent client hears %q", said)
		}
		c.closed()
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("after %v", took)
	}
	g.logged(t, 1, "msg", "message", "from", "silent@client.example", "given_up", "connection")
}

// testChangedRules: tcprules that change count for the next client, and those
// that are wrong do not.
func testChangedRules(t *testing.T, g *gateway) {
	replace := func(text string) {
		t.Helper()
		path := filepath.Join(g.dir, "tcp.rules")
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	replace("127.0.2.:allow\n127.0.8.:allow,RELAYCLIENT=\"\"\n:allow\n")
	relays := func(from string) string {
		c := g.hello(t, "mx", from)
		defer c.conn.Close()
		c.want("MAIL FROM:<a@client.example>", "250 ")
		return c.say("RCPT TO:<joe@elsewhere.example>")
	}
	for i := 0; !strings.HasPrefix(relays("127.0.8.1"), "250 "); i++ {
		if i == 200 {
			t.Fatal("the new rules never counted")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if said := relays("127.0.2.1"); said != denied {
		t.Errorf("by the new rules the answer is %q", said)
	}
	replace("this is no rule\n")
	for range 400 {
		if said := relays("127.0.8.1"); !strings.HasPrefix(said, "250 ") {
			t.Fatalf("by wrong rules the answer is %q", said)
		}
		if len(g.lines(t, "level", "ERROR", "what", "tcprules")) > 0 {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Error("the log never told of the wrong rules")
}

// testExplainSMTP: explain knows what a client is to an SMTP entrance.
func testExplainSMTP(t *testing.T, g *gateway) {
	m := g.write(t, "message", "Subject: x\n\nbody\n")
	for ip, want := range map[string]string{"127.0.6.1": "relay", "127.0.9.1": "external"} {
		said := g.postern(t, "explain", "--entrance", "cdb", "--ip", ip, "--from", "a@client.example", "--to", "joe@example.org", m, "--json")
		if !strings.Contains(said, `"standing": "`+want+`"`) || !strings.Contains(said, `"protocol": "smtp"`) {
			t.Errorf("from %s: %s", ip, said)
		}
	}
	said := g.postern(t, "status")
	if want := "entrance mx on " + g.at("mx") + ", "; !strings.Contains(said, want) {
		t.Errorf("postern status has not %q:\n%s", want, said)
	}
}

// testRulesAreClosed: servers that a reload has replaced keep no files, once
// their sessions have ended, and a reload that fails keeps none either.
func testRulesAreClosed(t *testing.T, g *gateway) {
	l, err := net.Listen("tcp", loopback()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	last := g.hello(t, "cdb", "127.0.2.1")
	last.want("MAIL FROM:<last@client.example>", "250 ")
	for _, n := range []string{"7", "8", "9"} {
		g.reload(t, strings.Replace(policyConfig, "[listen.cdb]\n", "[listen.cdb]\nmessages = "+n+"\n", 1))
		g.write(t, "postern.toml", strings.Replace(policyConfig, "[listen.cdb]\n", "[listen.cdb]\nmessages = 1\n", 1)+"[listen.taken]\naddress = \""+l.Addr().String()+"\"\nnext = \"discard\"\n")
		if out, err := g.try("reload"); err == nil || !strings.Contains(out, "address already in use") {
			t.Errorf("an entrance at an address that is taken: %v: %s", err, out)
		}
	}
	g.reload(t, policyConfig)
	last.want("RCPT TO:<joe@elsewhere.example>", "250 ") // by rules of its own
	last.data("Subject: x\n\nbody\n", "250 ")
	last.conn.Close()
	open := 0
	for range 200 {
		open = 0
		fds := filepath.Join("/proc", strconv.Itoa(g.daemon.Process.Pid), "fd")
		all, err := os.ReadDir(fds)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range all {
			if to, err := os.Readlink(filepath.Join(fds, fd.Name())); err == nil && strings.HasSuffix(to, "/tcp.cdb") {
				open++
			}
		}
		if open == 1 {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Errorf("tcp.cdb is open %d times", open)
}
