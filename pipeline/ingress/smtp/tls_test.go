package smtp

import (
	"bufio"
	"crypto/tls"
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

// While there is no certificate nothing is offered that cannot be had, what
// needs TLS is put off and not refused, and a session that has begun finds TLS
// as soon as there is one.
func TestNoCertificateYet(t *testing.T) {
	for mode, want := range map[TLSMode][]string{
		TLSOffer:   {"STARTTLS", "454 4.7.0 ", "MAIL FROM:<a@b.example>", "250 ", "RSET", "250 "},
		TLSRequire: {"STARTTLS", "454 4.7.0 ", "MAIL FROM:<a@b.example>", "454 4.7.0 ", "AUTH PLAIN", "454 4.7.0 "},
	} {
		var ready atomic.Bool
		addr, _, end := socket(t, func(o *Options) { o.TLSMode, o.TLSReady, o.Limits.BadCommands = mode, ready.Load, 1 })
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		say := func(line string) (all string) {
			if line != "" {
				if _, err := c.Write([]byte(line + "\r\n")); err != nil {
					t.Fatal(err)
				}
			}
			for {
				said, err := r.ReadString('\n')
				if all += said; err != nil || len(said) > 3 && said[3] == ' ' {
					return all
				}
			}
		}
		say("")
		if said := say("EHLO c"); strings.Contains(said, "STARTTLS") {
			t.Errorf("%v: offered without a certificate: %q", mode, said)
		}
		for i := 0; i < len(want); i += 2 {
			if said := say(want[i]); !strings.HasPrefix(said, want[i+1]) {
				t.Errorf("%v: %s is answered %q, want %q", mode, want[i], said, want[i+1])
			}
		}
		ready.Store(true)
		if said := say("EHLO c"); !strings.Contains(said, "250-STARTTLS\r\n") {
			t.Errorf("%v: not offered: %q", mode, said)
		}
		if said := say("STARTTLS"); !strings.HasPrefix(said, "220 ") {
			t.Errorf("%v: STARTTLS is answered %q", mode, said)
		}
		if err := tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake(); err != nil { //nolint:gosec // it is our own
			t.Errorf("%v: %v", mode, err)
		}
		c.Close()
		end()
	}
	addr, _, end := socket(t, func(o *Options) { o.TLSMode, o.TLSReady = TLSImplicit, func() bool { return false } })
	defer end()
	if c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}); err == nil { //nolint:gosec // likewise
		t.Error("a handshake without a certificate")
		c.Close()
	}
}
