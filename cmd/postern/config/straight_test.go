package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStraightNext(t *testing.T) {
	var m makes
	load := func(next string) (*Config, error) {
		return Parse("testdata/x.toml", []byte("hostname = \"mx.example.org\"\ncontrol = \"\"\n[listen.queue]\nnext = \""+next+"\"\n"), m.options())
	}
	c, err := load("qmqp:192.0.2.1 qmqp://b.test:629  smtps:c.test lmtp:unix:/run/lmtp")
	if err != nil {
		t.Fatal(err)
	}
	l := c.Listen["queue"]
	if !slices.Equal(l.Straight(), hops("qmqp:192.0.2.1", "qmqp://b.test:629", "smtps:c.test", "lmtp:unix:/run/lmtp")) || l.Slow < time.Hour {
		t.Errorf("%v %v", l.Straight(), l.Slow)
	}
	for next, want := range map[string]string{
		"qmqp:":                 "needs a host",
		"http://a.test":         "no transport of that name",
		":25":                   "names no host",
		"discard:":              "write \"discard\" to throw",
		"qmqp:a.test c:":        "port must be",
		"qmqp:a.test deliver:x": "port must be a number",
	} {
		if _, err := load(next); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", next, err)
		}
	}
}

// TestQMQPNext: the servers are those of qmail-qmqpc.
func TestQMQPNext(t *testing.T) {
	dir := t.TempDir()
	load := func(servers string) (*Config, error) {
		if err := os.WriteFile(filepath.Join(dir, "qmqpservers"), []byte(servers), 0o644); err != nil {
			t.Fatal(err)
		}
		var m makes
		return Parse("testdata/x.toml", []byte(fmt.Sprintf("hostname = \"mx.example.org\"\ncontrol = %q\n[listen.queue]\nnext = \"qmqp\"\n", dir)), m.options())
	}
	c, err := load("192.0.2.1\n# the second\n192.0.2.2\n\nq.example.org:6280\n2001:db8::1\n")
	if err != nil {
		t.Fatal(err)
	}
	if l := c.Listen["queue"]; !slices.Equal(l.Straight(), hops("qmqp:192.0.2.1", "qmqp:192.0.2.2", "qmqp://q.example.org:6280", "qmqp:2001:db8::1")) || l.Slow < time.Hour {
		t.Errorf("%v", l.Straight())
	}
	if c, err = load(strings.Repeat("192.0.2.1\n", 12)); err != nil || len(c.Listen["queue"].Straight()) != maxHops || len(c.Warnings) == 0 {
		t.Errorf("%v", err)
	}
	for servers, want := range map[string]string{"": "there is no server in control/qmqpservers", "# none\n": "there is no server", "192.0.2.1\nunix:x\n": "qmqpservers:2"} {
		if _, err := load(servers); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", servers, err)
		}
	}
}
