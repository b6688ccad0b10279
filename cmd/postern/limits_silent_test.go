package main

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// silentNet is a network in which nobody answers.
type silentNet struct{ dials int }

func (n *silentNet) DialContext(context.Context, string, string) (net.Conn, error) {
	n.dials++
	return nil, &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}
}

// TestForgetSilentServers: postern site forget lets servers be tried again that did
// not answer.
func TestForgetSilentServers(t *testing.T) {
	for _, c := range []api.SiteChange{
		{Name: "one.example"}, {Name: "mx.one.example", Level: "site"}, {Name: "192.0.2.25", Level: "address"},
	} {
		r := newLimitsRig(t, zone{"one.example": {"mx.one.example"}}, "")
		var n silentNet
		var err error
		r.exit, err = smtp.New(smtp.Options{Resolver: zone{"one.example": {"mx.one.example"}}, Hello: "mx.example.org", Dialer: &n, Now: func() time.Time { return r.clock }})
		if err != nil {
			t.Fatal(err)
		}
		try := func() {
			r.exit.Deliver(t.Context(), &smtp.Job{Domain: "one.example", Envelope: envelope.To("a@b.example", "r@one.example"), Content: message.FromString("\n")})
		}
		try()
		r.clock = r.clock.Add(2 * time.Minute)
		try()
		if try(); n.dials != 2 {
			t.Fatalf("%d connections were tried, and the last should not have been", n.dials)
		}
		if _, err := r.locate(t.Context(), "one.example"); err != nil {
			t.Fatal(err)
		}
		if done, err := r.Change(t.Context(), "forget", c); err != nil || !done.Changed || len(r.exit.Dead()) != 0 {
			t.Errorf("%+v: %+v %v", c, done, err)
		}
		if try(); n.dials != 3 {
			t.Errorf("%+v: %d connections were tried", c, n.dials)
		}
		if done, err := r.Change(t.Context(), "forget", api.SiteChange{Name: "192.0.2.26", Level: "address"}); err != nil || done.Changed {
			t.Errorf("%+v %v", done, err)
		}
	}
}
