package main

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/message"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue/egress/qmtp"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// outbound are the options of an exit over the network. What is about a domain is
// that of the configuration in force when its mail goes.
func outbound(first *config.Config, current func() *config.Config, resolver smtp.Resolver, log *slog.Logger) smtp.Options {
	o := smtp.Options{
		Resolver: resolver, Log: log, MaxIdle: keptFor(first),
		Routes: func(domain string) []smtp.Hop {
			r, _ := current().RouteOf(domain)
			return r.Hops
		},
		Couriers: map[smtp.Transport]smtp.Courier{
			smtp.QMTP: qmtp.Client{}, smtp.QMQP: qmtp.Client{QMQP: true},
		},
		TLS:         func(domain, _ string) smtp.TLSPolicy { return tlsPolicy(current(), domain) },
		Login:       func(domain, _ string) *smtp.Credentials { return loginFor(current(), domain) },
		Self:        (&ourselves{config: current}).is,
		Connections: func(string) int { return current().Queue.Domain },
	}
	manners(&o, first)
	return o
}

// tlsField is the name of the field for outbound.tls_header.
const tlsField = "X-Postern-TLS"

// leastDot is the least wait for the answer to a whole message: shorter ones make
// duplicates (RFC 5321 §4.5.3.2.6).
const leastDot = 10 * time.Minute

// families are the values of outbound.family.
var families = map[string]smtp.Family{"both": smtp.TakeTurns, "ipv4-first": smtp.IPv4First, "ipv6-first": smtp.IPv6First, "ipv4": smtp.IPv4Only, "ipv6": smtp.IPv6Only}

// manners sets those options of an exit that change with the configuration
// (smtp.Exit.Configure).
func manners(o *smtp.Options, c *config.Config) {
	out := &c.Outbound
	o.Hello, o.RefuseEightBit, o.Chunking = cmp.Or(out.Hello, c.Hostname), out.EightBit == "refuse", out.Chunking
	o.MaxMessages, o.ConnectTimeout = out.Messages, out.Connect
	if o.Idle = out.Keep; o.Idle == 0 {
		o.Idle = -1 * time.Second
	}
	if t := out.Timeout; t > 0 {
		o.Timeouts = wire.Timeouts{Greeting: t, Hello: t, Mail: t, Rcpt: t, Login: t, Data: t, Write: t, Dot: max(t, leastDot)}
	}
	o.Family = families[out.Family]
	if out.TLSTrace {
		o.TLSField = tlsField
	}
}

// tlsPolicy is how connections for a domain are protected.
func tlsPolicy(c *config.Config, domain string) smtp.TLSPolicy {
	var p smtp.TLSPolicy
	if t := c.TLSOf(domain); t != nil {
		p.Level, _ = smtp.ParseTLSLevel(t.Level)
		p.Names, p.Roots, p.Fingerprints = t.Names, t.Roots(), t.SHA256()
	}
	return p
}

// loginFor is what to log in by for a domain's mail; nil for nothing.
func loginFor(c *config.Config, domain string) *smtp.Credentials {
	r, ok := c.RouteOf(domain)
	if !ok || r.User == "" {
		return nil
	}
	return &smtp.Credentials{User: r.User, Password: r.Password, Clear: r.Clear}
}

// carried is a message in the form that a server can carry, as far as it can be
// brought into that. Its body is held.
func carried(c *config.Config, m message.Message, form message.Form, spool message.Spooler) (message.Message, error) {
	if form == message.SevenBit && c.Outbound.EightBit != "send" {
		return m.ToSevenBit(spool)
	}
	m.Body().Retain()
	return m, nil
}
