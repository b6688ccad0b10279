package smtp

import (
	"bufio"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Clients that are exempt wait neither for the greeting nor for the answers to
// their mistakes.
func TestExempt(t *testing.T) {
	addr, _, end := socket(t, func(o *Options) {
		o.GreetPause, o.Tarpit, o.TarpitAfter = time.Hour, time.Hour, 1
		o.Exempt = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	defer end()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for _, want := range []string{"220 ", "500 5.5.1 ", "500 5.5.1 "} {
		if said, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(said, want) {
			t.Fatalf("%q (%v), want %q", said, err, want)
		}
		if _, err := c.Write([]byte("FOO\r\n")); err != nil {
			t.Fatal(err)
		}
	}
}
