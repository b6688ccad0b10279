package main

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// TestOurselves: an address is ours where we listen at port 25 of it, and not because
// it is one of this host's.
func TestOurselves(t *testing.T) {
	asked, now := 0, time.Now()
	var failed error
	interfaces := func() ([]net.Addr, error) {
		asked++
		return []net.Addr{
			&net.IPNet{IP: net.ParseIP("192.0.2.1"), Mask: net.CIDRMask(24, 32)}, &net.IPNet{IP: net.ParseIP("2001:db8::1"), Mask: net.CIDRMask(64, 128)},
		}, failed
	}
	for _, c := range []struct {
		listen, host, address string
		want                  bool
	}{
		{"", "MX.example.org", "", true},
		{"", "other.example", "", false},
		{"", "other.example", "192.0.2.1", false},
		{":25", "other.example", "192.0.2.1", true},
		{":25", "other.example", "::ffff:192.0.2.1", true},
		{":25", "other.example", "2001:db8::1", true},
		{":25", "other.example", "192.0.2.2", false},
		{":25", "other.example", "", false},
		{"[::]:25", "other.example", "2001:db8::1", true},
		{"[::]:25", "other.example", "192.0.2.1", true},
		{"0.0.0.0:25", "other.example", "192.0.2.1", true},
		{"0.0.0.0:25", "other.example", "2001:db8::1", false},
		{"192.0.2.1:25", "other.example", "192.0.2.1", true},
		{"192.0.2.9:25", "other.example", "192.0.2.1", false}, // another server may listen there
		{":587", "other.example", "192.0.2.1", false},
		{"[2001:db8::1]:25", "other.example", "2001:db8::1", true},
	} {
		conf := &config.Config{}
		conf.Hostname = "mx.example.org"
		if c.listen != "" {
			conf.Listen = map[string]*config.Listen{"smtp": listeningAt(c.listen)}
		}
		o := &ourselves{config: func() *config.Config { return conf }, interfaces: interfaces, now: func() time.Time { return now }}
		var address netip.Addr
		if c.address != "" {
			address = netip.MustParseAddr(c.address)
		}
		if got := o.is(c.host, address); got != c.want {
			t.Errorf("listening at %q, %s %s: %v", c.listen, c.host, c.address, got)
		}
	}
	conf := &config.Config{}
	conf.Hostname, conf.Listen = "mx.example.org", map[string]*config.Listen{"smtp": listeningAt(":25")}
	o := &ourselves{config: func() *config.Config { return conf }, interfaces: interfaces, now: func() time.Time { return now }}
	asked = 0
	for range 3 {
		if !o.is("other.example", netip.MustParseAddr("192.0.2.1")) {
			t.Error("not ours")
		}
	}
	if failed = errors.New("no netlink"); asked != 1 {
		t.Errorf("the system was asked %d times", asked)
	}
	now = now.Add(time.Hour)
	if o.is("other.example", netip.MustParseAddr("192.0.2.1")) || asked != 2 {
		t.Error("what cannot be found out is believed for too long")
	}
	// The system's own.
	if mine := (&ourselves{config: o.config}); !mine.is("other.example", netip.MustParseAddr("127.0.0.1")) || mine.is("other.example", netip.MustParseAddr("192.0.2.200")) {
		t.Error("the loopback address is not one of this host's, or one is that is nobody's")
	}
}

func listeningAt(address string) *config.Listen {
	l := &config.Listen{}
	l.Address = address
	return l
}
