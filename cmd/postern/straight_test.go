package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// TestQmqpcExit is the table of qmail-qmqpc's exit codes.
func TestQmqpcExit(t *testing.T) {
	at := netip.MustParseAddr("192.0.2.1")
	later, never := reply.Make(451, reply.Enhanced{}, "later"), reply.Make(554, reply.Enhanced{}, "never")
	for name, c := range map[string]struct {
		r    smtp.Result
		want uint8
	}{
		"a no":                  {smtp.Result{Reply: never, Remote: true, Phase: wire.Dot, Address: at}, 31},
		"later":                 {smtp.Result{Reply: later, Remote: true, Phase: wire.Dot, Address: at}, 71},
		"timed out":             {smtp.Result{Reply: later, Where: "x", Err: &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}}, 72},
		"our own patience":      {smtp.Result{Reply: later, Where: "x", Err: &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}}, 72},
		"no way there":          {smtp.Result{Reply: later, Where: "x", Err: &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}}, 72},
		"remembered as silent":  {smtp.Result{Reply: later, Err: errors.New("no server has answered lately")}, 72},
		"refused":               {smtp.Result{Reply: later, Where: "x", Err: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}}, 73},
		"greeting failed":       {smtp.Result{Reply: later, Where: "x", Address: at, Phase: wire.Greeting}, 74},
		"connection died":       {smtp.Result{Reply: later, Where: "x", Address: at, Phase: wire.Body, Perhaps: true}, 74},
		"the DNS fails":         {smtp.Result{Reply: later, Err: fmt.Errorf("host x: %w", &net.DNSError{Err: "no", IsTimeout: true})}, 56},
		"no such host":          {smtp.Result{Reply: later}, 56},
		"cannot be carried":     {smtp.Result{Reply: never, Phase: wire.Hello, Address: at}, 31},
		"put off by a filter":   {smtp.Result{Reply: later, Phase: wire.Hello, Address: at, Err: reply.With(later, &keptBack{})}, 71},
		"given up by a filter":  {smtp.Result{Reply: never, Phase: wire.Hello, Address: at, Err: reply.With(never, &keptBack{})}, 31},
		"broken off on our end": {smtp.Result{Reply: later, Err: context.Canceled}, 72},
	} {
		if got := qmqpcExit(c.r); got.QueueExit() != c.want || got.Class != c.r.Reply.Class {
			t.Errorf("%s: exit %d, %+v", name, got.QueueExit(), got)
		}
	}
}

// TestStraight: once the server has a part, the rest is queued and the answer is
// success; before that nothing is.
func TestStraight(t *testing.T) {
	to := func(addresses ...string) pipeline.Outgoing {
		return pipeline.Outgoing{Envelope: envelope.To("a@b.test", addresses...), Message: message.FromString("Subject: x\n\n")}
	}
	held, added := to("held@d.test"), to("copy@d.test")
	held.Hold, added.Copy = "odd", true
	addedBusy := to("busy@d.test")
	addedBusy.Copy = true
	for name, c := range map[string]struct {
		all    []pipeline.Outgoing
		exit   uint8
		sent   int
		queued []string
	}{
		"all":                    {[]pipeline.Outgoing{to("a@d.test", "b@d.test")}, 0, 1, nil},
		"none":                   {[]pipeline.Outgoing{to("no@d.test")}, 31, 0, nil},
		"no and later":           {[]pipeline.Outgoing{to("no@d.test", "busy@d.test")}, 71, 0, nil},
		"some":                   {[]pipeline.Outgoing{to("a@d.test", "no@d.test", "busy@d.test")}, 0, 1, []string{"no@d.test", "busy@d.test"}},
		"a copy":                 {[]pipeline.Outgoing{to("a@d.test"), added}, 0, 2, nil},
		"a copy that fails":      {[]pipeline.Outgoing{addedBusy, to("a@d.test")}, 0, 1, []string{"busy@d.test"}},
		"the copy of a refusal":  {[]pipeline.Outgoing{added, to("no@d.test")}, 31, 0, nil},
		"two, one is put off":    {[]pipeline.Outgoing{to("a@d.test"), to("busy@d.test")}, 0, 1, []string{"busy@d.test"}},
		"two, the first put off": {[]pipeline.Outgoing{to("busy@d.test"), to("a@d.test")}, 71, 0, nil},
		"held":                   {[]pipeline.Outgoing{held}, 0, 0, []string{"held@d.test"}},
		"held beside":            {[]pipeline.Outgoing{to("a@d.test"), held}, 0, 1, []string{"held@d.test"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := smtptest.New(t,
				smtptest.Step{At: smtptest.Rcpt, Match: "no@d.test", Reply: "550 5.1.1 no"}, smtptest.Step{At: smtptest.Rcpt, Match: "busy@d.test", Reply: "450 4.2.1 busy"})
			exit, err := smtp.New(smtp.Options{
				Resolver: noDNS{}, Hello: "mx.example.org",
				Routes: func(string) []smtp.Hop { return []smtp.Hop{{Host: "127.0.0.1", Port: server.AddrPort().Port()}} },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer exit.Close(context.Background())
			chain, err := pipeline.NewChain("delivery", nil, pipeline.ChainOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var chains pipeline.Generations
			if err := chains.Swap(pipeline.NewGeneration(1, chain)); err != nil {
				t.Fatal(err)
			}
			var queued kept
			log := slog.New(slog.DiscardHandler)
			s := &straight{exit: exit, leave: departure{chains: &chains, log: log}, host: "127.0.0.1", queue: &queued, log: log}
			answer, err := s.Submit(t.Context(), c.all)
			if err != nil || answer.QueueExit() != c.exit || len(server.Messages()) != c.sent {
				t.Errorf("%+v %v, %d sent", answer, err, len(server.Messages()))
			}
			var got []string
			for _, o := range queued {
				got = append(got, o.Envelope.Addresses()...)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.queued) {
				t.Errorf("%q are queued", got)
			}
		})
	}
}
