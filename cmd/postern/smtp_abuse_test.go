package main

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

const abuseConfig = `[listen.mx]
address = "$AT_MX"
next = "discard"
reverse_dns = false
greet_pause = "300ms"
exempt = ["127.0.2.0/24"]
transcript = 'cidr(ip, "127.0.3.0/24")'
[listen.limited]
address = "$AT_LIMITED"
next = "discard"
exempt = ["127.0.2.0/24"]
per_address = 3
per_network = 5
[listen.rate]
address = "$AT_RATE"
next = "discard"
rate = 4
[listen.proxied]
address = "$AT_PROXIED"
next = "discard"
proxy = ["127.0.5.0/24"]
xclient = ["127.0.6.0/24"]
relay = 'cidr(ip, "192.0.2.0/24")'
[listen.tls]
address = "$AT_TLS"
next = "discard"
proxy = ["127.0.5.0/24"]
tls = "implicit"
[listen.users]
address = "$AT_USERS"
service = "submission"
tls = "off"
auth_clear = true
next = "discard"
transcript = "true"
[listen.patient]
address = "$AT_PATIENT"
next = "discard"
errors = 3
tarpit = "300ms"
[auth.file]
file = "$RUN/users"
[certificate.one]
cert = "$RUN/one.crt"
key = "$RUN/one.key"
`

// TestSMTPAbuse: what the entrances do against those who do not behave, and
// whom they believe.
func TestSMTPAbuse(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	ca := newAuthority(t, g)
	ca.issue(t, g, "one", "mx.example.org")
	addUser(t, g, clientSender, clientPassword)
	g.start(t, abuseConfig)
	t.Run("proxy", func(t *testing.T) { testProxy(t, g, ca) })
	t.Run("xclient", func(t *testing.T) { testXClient(t, g) })
	t.Run("early", func(t *testing.T) { testEarlyTalkers(t, g) })
	t.Run("transcript", func(t *testing.T) { testTranscripts(t, g) })
	t.Run("limits", func(t *testing.T) { testLimits(t, g) })
	t.Run("others", func(t *testing.T) { testOtherProtocols(t, g) })
	t.Run("struck", func(t *testing.T) { testStruck(t, g) })
	t.Run("status", func(t *testing.T) {
		c := g.hello(t, "users", "")
		if said := g.postern(t, "status"); !strings.Contains(said, "entrance users on "+g.at("users")+", 1 sessions\n") {
			t.Errorf("postern status says:\n%s", said)
		}
		c.want("QUIT", "221 ")
	})
}

// proxied are connections that a proxy may or may not make for others.
var proxied = []struct {
	from, header, peer string
	version            byte
	relays             bool
}{
	{from: "127.0.5.1", version: 1, peer: "192.0.2.7", relays: true},
	{from: "127.0.5.1", version: 2, peer: "192.0.2.8", relays: true},
	{from: "127.0.5.1", version: 2, peer: "2001:db8::7"},
	{from: "127.0.5.1", header: "PROXY UNKNOWN\r\n", peer: "127.0.5.1"},
}

func testProxy(t *testing.T, g *gateway, ca *authority) {
	for _, p := range proxied {
		c := g.connect(t, "proxied", p.from)
		header := []byte(p.header)
		if p.version > 0 {
			to := "192.0.2.200"
			if strings.Contains(p.peer, ":") {
				to = "2001:db8::200"
			}
			h := proxyproto.HeaderProxyFromAddrs(p.version, &net.TCPAddr{IP: net.ParseIP(p.peer), Port: 4711}, &net.TCPAddr{IP: net.ParseIP(to), Port: 25})
			var err error
			if header, err = h.Format(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.conn.Write(header); err != nil {
			t.Fatal(err)
		}
		if said := c.read(); !strings.HasPrefix(said, "220 ") {
			t.Errorf("%+v is greeted %q", p, said)
		}
		c.want("EHLO client.example", "250 ")
		c.want("MAIL FROM:<a@client.example>", "250 ")
		answer := "550 5.7.1 "
		if p.relays {
			answer = "250 "
		}
		c.want("RCPT TO:<joe@elsewhere.example>", answer)
		c.want("QUIT", "221 ")
		g.logged(t, 1, "msg", "session", "entrance", "proxied", "peer", p.peer)
	}
	// A header from elsewhere is a bad command, and from a proxy it must be there.
	c, _ := g.dial(t, "proxied", "127.0.4.1")
	c.want("PROXY TCP4 192.0.2.9 192.0.2.200 4711 25", "500 ")
	c.want("QUIT", "221 ")
	c = g.connect(t, "proxied", "127.0.5.1")
	if err := c.PrintfLine("EHLO client.example"); err != nil {
		t.Fatal(err)
	}
	c.closed()
	if len(g.lines(t, "msg", "session", "peer", "192.0.2.9")) > 0 {
		t.Error("a stranger's PROXY header was believed")
	}
	// The header comes before the handshake.
	c = g.connect(t, "tls", "127.0.5.1")
	if _, err := io.WriteString(c.conn, "PROXY TCP4 192.0.2.10 192.0.2.200 4711 465\r\n"); err != nil {
		t.Fatal(err)
	}
	s := overTLS(t, c, ca)
	if said := s.read(); !strings.HasPrefix(said, "220 ") {
		t.Errorf("the greeting is %q", said)
	}
	s.want("QUIT", "221 ")
	g.logged(t, 1, "msg", "session", "entrance", "tls", "peer", "192.0.2.10")
}

func testXClient(t *testing.T, g *gateway) {
	c := g.hello(t, "proxied", "127.0.6.1")
	if said := c.say("EHLO client.example"); !offers(said, "XCLIENT") {
		t.Errorf("EHLO is answered %q", said)
	}
	c.want("XCLIENT ADDR=192.0.2.20 NAME=far.example HELO=far.example", "220 ")
	c.want("EHLO far.example", "250 ")
	c.mail("a@far.example", "joe@elsewhere.example", "Subject: x\n\nbody\n", "250 ")
	c.want("XCLIENT ADDR=198.51.100.1 NAME=[UNAVAILABLE]", "220 ")
	c.want("EHLO other.example", "250 ")
	c.want("MAIL FROM:<a@other.example>", "250 ")
	c.want("RCPT TO:<joe@elsewhere.example>", "550 5.7.1 ")
	c.want("QUIT", "221 ")
	g.logged(t, 1, "msg", "message", "from", "a@far.example", "peer", "192.0.2.20", "standing", "relay")
	c = g.hello(t, "proxied", "127.0.4.2")
	if said := c.say("EHLO client.example"); offers(said, "XCLIENT") {
		t.Errorf("EHLO is answered %q", said)
	}
	c.want("XCLIENT ADDR=192.0.2.21", "550 5.7.1 ")
	c.want("QUIT", "221 ")
}

func testEarlyTalkers(t *testing.T, g *gateway) {
	c := g.connect(t, "mx", "127.0.4.3")
	if err := c.PrintfLine("EHLO client.example"); err != nil {
		t.Fatal(err)
	}
	if said := c.read(); !strings.HasPrefix(said, "554 5.5.1 ") {
		t.Errorf("an early talker hears %q", said)
	}
	c.closed()
	g.logged(t, 1, "msg", "session", "peer", "127.0.4.3", "ended", "early talker")
	for from, waits := range map[string]bool{"127.0.4.4": true, "127.0.2.1": false} {
		start := time.Now()
		if _, said := g.dial(t, "mx", from); !strings.HasPrefix(said, "220 ") {
			t.Errorf("the greeting is %q", said)
		}
		if took := time.Since(start); took > 280*time.Millisecond != waits {
			t.Errorf("%s is greeted after %v", from, took)
		}
	}
}

// testTranscripts: sessions that the rule matches are written down, without
// passwords and messages.
func testTranscripts(t *testing.T, g *gateway) {
	quiet := g.hello(t, "mx", "127.0.2.2")
	quiet.want("QUIT", "221 ")
	c := g.hello(t, "mx", "127.0.3.1")
	c.mail("a@client.example", "joe@example.org", "Subject: not written\n\nnor this\n", "250 ")
	c.want("QUIT", "221 ")
	u := g.hello(t, "users", "")
	u.want("AUTH PLAIN "+plainLogin(clientSender, clientPassword), "235 ")
	u.want("QUIT", "221 ")
	u = g.hello(t, "users", "")
	u.want("AUTH LOGIN", "334 ")
	u.want(base64.StdEncoding.EncodeToString([]byte(clientSender)), "334 ")
	u.want(base64.StdEncoding.EncodeToString([]byte(clientPassword)), "235 ")
	u.want("QUIT", "221 ")
	read := func(entrance, peer string) (all []string) {
		t.Helper()
		for _, l := range g.logged(t, 1, "msg", "session", "entrance", entrance, "peer", peer) {
			b, err := os.ReadFile(filepath.Join(g.dir, "state", "transcripts", fmt.Sprint(l["session"])+".txt"))
			if err == nil {
				all = append(all, string(b))
			}
		}
		return all
	}
	if all := read("mx", "127.0.2.2"); len(all) > 0 {
		t.Errorf("a session that the rule does not match is written down: %q", all)
	}
	const want = "S: 220 mx.example.org ESMTP\nC: EHLO client.example\nS: 250-mx.example.org\n"
	if all := read("mx", "127.0.3.1"); len(all) != 1 || !strings.HasPrefix(strings.ReplaceAll(all[0], "\r", ""), want) ||
		!strings.Contains(all[0], "\nC: RCPT TO:<joe@example.org>\n") || strings.Contains(all[0], "not written") || strings.Contains(all[0], "nor this") {
		t.Errorf("the transcript is %q", all)
	}
	g.logged(t, 2, "msg", "session", "entrance", "users")
	all := read("users", "127.0.0.1")
	if len(all) != 2 {
		t.Fatalf("%d transcripts", len(all))
	}
	for _, text := range all {
		for _, secret := range []string{clientPassword, base64.StdEncoding.EncodeToString([]byte(clientPassword)), plainLogin(clientSender, clientPassword)} {
			if strings.Contains(text, secret) {
				t.Errorf("the transcript has the password: %q", text)
			}
		}
		if !strings.Contains(text, "\nC: AUTH ") {
			t.Errorf("the transcript is %q", text)
		}
	}
	if i, err := os.Stat(filepath.Join(g.dir, "state", "transcripts")); err != nil || i.Mode().Perm() != 0o700 {
		t.Errorf("the folder of transcripts: %v, %v", i, err)
	}
}

// testLimits: an address, a network and a rate have bounds, the exempt have none.
func testLimits(t *testing.T, g *gateway) {
	greeted := func(entrance, from string) (string, func()) {
		c, said := g.dial(t, entrance, from)
		return said, func() { c.conn.Close() }
	}
	var ends []func()
	for i, from := range []string{"127.0.7.1", "127.0.7.1", "127.0.7.1", "127.0.7.1", "127.0.7.2", "127.0.7.3", "127.0.7.4"} {
		said, end := greeted("limited", from)
		ends = append(ends, end)
		want := "220 "
		if i == 3 || i == 6 { // the fourth of an address, the sixth of a network
			want = "421 4.7.0 "
		}
		if !strings.HasPrefix(said, want) {
			t.Errorf("connection %d, of %s, is greeted %q, want %q", i, from, said, want)
		}
	}
	for range 8 {
		said, end := greeted("limited", "127.0.2.9")
		ends = append(ends, end)
		if !strings.HasPrefix(said, "220 ") {
			t.Errorf("the exempt are greeted %q", said)
		}
	}
	for _, end := range ends {
		end()
	}
	refused := 0
	for range 6 {
		said, end := greeted("rate", "127.0.8.1")
		if end(); strings.HasPrefix(said, "421 4.7.0 ") {
			refused++
		}
	}
	if refused != 2 {
		t.Errorf("%d of 6 connections in a moment are refused, and 4 a minute allowed", refused)
	}
}

// testOtherProtocols: what is said to a web server, or to no server at all.
func testOtherProtocols(t *testing.T, g *gateway) {
	for i, said := range []string{"GET / HTTP/1.1\r\nHost: mx\r\n\r\n", "POST / HTTP/1.1\r\n\r\nMAIL FROM:<a@b.example>\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "SSH-2.0-x\r\n"} {
		c, _ := g.dial(t, "patient", fmt.Sprintf("127.0.10.%d", 10+i))
		if _, err := io.WriteString(c.conn, said); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c.R)
		if err != nil || !strings.HasPrefix(string(b), "554 5.5.1 ") || strings.Count(string(b), "\n") != 1 {
			t.Errorf("%q is answered %q (%v)", said, b, err)
		}
	}
}

// testStruck: bad commands are answered ever more slowly, end the session, and
// after a few of those the gate is closed for a while.
func testStruck(t *testing.T, g *gateway) {
	const from = "127.0.11.1"
	var said string
	for i := range 6 {
		var c *talk
		if c, said = g.dial(t, "patient", from); !strings.HasPrefix(said, "220 ") {
			break
		}
		start := time.Now()
		for range 3 {
			c.want("FOO", "500 ")
		}
		if took := time.Since(start); i == 0 && took < 280*time.Millisecond {
			t.Errorf("three bad commands are answered in %v", took)
		}
		c.want("FOO", "421 4.7.0 ")
		c.closed()
		g.logged(t, i+1, "msg", "session", "peer", from, "ended", "too many errors")
	}
	if !strings.HasPrefix(said, "421 4.7.0 ") {
		t.Errorf("in the end the client is greeted %q", said)
	}
}

// overTLS makes TLS of a connection from its first byte.
func overTLS(t *testing.T, c *talk, ca *authority) *talk {
	t.Helper()
	s := tls.Client(c.conn, ca.trust("mx.example.org"))
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	return newTalk(t, s)
}
