package config

import (
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
