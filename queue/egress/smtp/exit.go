package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// Resolver answers what an Exit asks the DNS; *resolve.Resolver is one.
type Resolver interface {
	LookupMX(ctx context.Context, domain string) (resolve.MX, error)
	LookupAddrs(ctx context.Context, host string) ([]netip.Addr, error)
}

// Dialer makes connections; *net.Dialer is one.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Options of New. Only Resolver must be set.
type Options struct {
	Resolver Resolver
	// Routes are the hops to which a domain's mail goes in place of its MX, in the
	// order in which they are tried: the next one only if there was no session with
	// the one before. None: the MX, as with a hop that IsMX, whose Port counts. Nil: no
	// routes. What it gives must not change.
	Routes func(domain string) []Hop
	// Couriers speak the transports that are not SMTP's; mail for a hop without one
	// waits.
	Couriers map[Transport]Courier
	// Port is the default port; 25 if it is 0.
	Port uint16
	// Hello is the name given in EHLO.
	Hello string
	// Timeouts of the conversation; ConnectTimeout (default 30 s) for each address.
	Timeouts       wire.Timeouts
	ConnectTimeout time.Duration
	// Source is where the mail of jobs leaves from that name none.
	Source Source
	// Dialer is used in place of the system's; one that is no SourceDialer does not
	// hear of sources.
	Dialer Dialer
	// MaxAddresses (default 5) are tried, and MaxSessions (default 2) connections
	// made, in one attempt.
	MaxAddresses, MaxSessions int
	// MaxRecipients is how many recipients one transaction names; default 100
	// (RFC 5321 §4.5.3.1.8). More are sent in several over the same connection.
	MaxRecipients int
	// Family says which addresses of a host are tried, and in what order.
	Family Family
	// Self tells whether a host or an address is this one: then it and all of the
	// same or a worse preference are left out (RFC 5321 §5.1). The address is the
	// zero Addr while only the name is known, and is asked about for port 25 alone. Nil:
	// nothing is. A loopback address always is, at port 25, unless a route leads there.
	Self func(host string, addr netip.Addr) bool
	// Group is the group that a domain is in: its site is apart from that of others
	// with the same hosts then. "" is none; nil: no domain is in a group.
	Group func(domain string) string
	// RefuseEightBit refuses 8-bit messages to servers without 8BITMIME (5.6.3),
	// and those with UTF-8 in the head to servers without SMTPUTF8 (5.6.7), instead
	// of sending them as they are, which is what qmail does and nearly every
	// server takes.
	RefuseEightBit bool
	// TLS is the policy for a host, of which "" stands for an address alone, to which
	// a domain's mail goes. Nil: opportunistic.
	TLS func(domain, host string) TLSPolicy
	// Assurance knows more about a host's TLS; nil: nobody does.
	Assurance Assurance
	// ClearFor (default 1 h) is for how long a server whose TLS does not work gets
	// mail in clear, where the policy is opportunistic, before it is tried again; and
	// likewise for chunks.
	ClearFor time.Duration
	// Login gives what to log in by at a host; nil, or a nil answer: nothing. What
	// it gives must not change.
	Login func(domain, host string) *Credentials
	// Chunking sends messages as chunks to servers that offer it; see
	// wire.ClientOptions.
	Chunking bool
	// Idle (default 5 s; less than 0: not at all) is for how long a connection is kept
	// for the next message, MaxIdle (default 500) are kept in all, for MaxMessages
	// (default 100, at most what the server says) messages and MaxAge (default
	// 5 min), counted when a message was sent.
	Idle, MaxAge         time.Duration
	MaxIdle, MaxMessages int
	// TLSField is the name of a field that is put on top of what goes out by SMTP or
	// LMTP, and says how the connection is protected; "": there is none.
	TLSField string
	// Gate admits connections and messages; nil admits all.
	Gate Gate
	// Connections is the most connections that a site may have, 0 for no bound. The
	// caller bounds those in use; the Exit closes free ones where one more would be
	// too many, and waits until the server has closed them. Nil: no bound.
	Connections func(site string) int
	// Freed is called when a connection to a site has become free, so that another
	// message may follow at once, of that site or another one at the same address,
	// which is invalid for a socket; nil: nobody is told.
	Freed func(site string, at netip.Addr)
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Shuffle orders what is equal; default rand.Shuffle.
	Shuffle func(n int, swap func(i, j int))
	// Log gets what goes wrong on the way to a result; nil: nothing.
	Log *slog.Logger
}

// Job is one message for recipients of one domain.
type Job struct {
	Domain string
	// Envelope holds the sender and the recipients to try. qmail's sender of
	// double bounces goes out as <>. A VERP sender is for the caller to expand
	// (envelope.VERP).
	Envelope envelope.Envelope
	// Content is the message, whose body the caller holds until Deliver returns.
	Content message.Message
	// Prepare, if set, gives the message in the form for a server that can do so
	// much, in place of Content: conversion and signing belong here. It is called
	// once for each connection that gets that far; the caller releases what it
	// made after Deliver has returned.
	Prepare func(context.Context, wire.Capabilities) (message.Message, error)
	// Source is where the message leaves from; zero: Options.Source.
	Source Source
	// Ticket is leave for a connection from there that the caller has got of the Gate
	// already. The Exit sets it to nil if it makes use of it; else it is the caller's.
	Ticket Ticket
	// Reuses, if set, is called when a connection that was free is taken for the job:
	// the Ticket is of no use for that, and others may want it. It may take it away.
	Reuses func()
}

// source is where the job leaves from.
func (j *Job) source(x *Exit) Source {
	if j.Source == (Source{}) {
		return x.o.Source
	}
	return j.Source
}

// Result is what came of one recipient.
type Result struct {
	// Reply says it; its Class decides between delivered, deferred and refused. If
	// Remote is set these are the server's own words, else ours, which are qmail's
	// where the fact is the same.
	Reply  reply.Reply
	Remote bool
	// Said is the server's answer as it came, its Code 0 if there was none; also
	// where Reply is ours because of it.
	Said wire.Reply
	// Where is the server, "mx.example.org [192.0.2.1]", "" if none was tried;
	// Address is the address alone, invalid if there was no connection.
	Where   string
	Address netip.Addr
	// TLS is how the connection was protected.
	TLS TLSState
	// Phase is how far the conversation got.
	Phase wire.Phase
	// Perhaps is set on a deferral if the message may have been delivered.
	Perhaps bool
	// NotNow is set if nothing was tried because the Gate did not admit it.
	NotNow *NotNow
	// Err is the detail for the log; it may be nil. A *SourceError in its chain means
	// that no server could be tried from the job's source.
	Err error
}

// Exit delivers by SMTP. It is safe for concurrent use.
type Exit struct {
	o                Options
	buffers          wire.Buffers
	tickets          tls.ClientSessionCache
	clear, unchunked memory
	faults           memory // sources that the log has heard of lately
	manner           atomic.Pointer[manner]
	kept             kept
	dead             deadHosts
}

// tickets is how many hosts' TLS sessions are remembered.
const tickets = 1000

// New returns an Exit.
func New(o Options) (*Exit, error) {
	if o.Resolver == nil {
		return nil, errors.New("SMTP exit: no resolver is set")
	}
	o.fill()
	x := &Exit{o: o, tickets: tls.NewLRUClientSessionCache(tickets)}
	x.manner.Store(mannerOf(&o))
	x.kept.o, x.dead.o, x.kept.manner = &x.o, &x.o, &x.manner
	return x, nil
}

// fill puts the defaults where nothing is set.
func (o *Options) fill() {
	for _, x := range []struct {
		n   *int
		def int
	}{{&o.MaxAddresses, 5}, {&o.MaxSessions, 2}, {&o.MaxRecipients, 100}, {&o.MaxIdle, 500}, {&o.MaxMessages, 100}} {
		if *x.n <= 0 {
			*x.n = x.def
		}
	}
	for _, x := range []struct {
		d   *time.Duration
		def time.Duration
	}{{&o.ClearFor, time.Hour}, {&o.MaxAge, 5 * time.Minute}} {
		if *x.d <= 0 {
			*x.d = x.def
		}
	}
	if o.Idle == 0 {
		o.Idle = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Port == 0 {
		o.Port = 25
	}
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = 30 * time.Second
	}
	if o.Shuffle == nil {
		o.Shuffle = rand.Shuffle
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dialer == nil {
		o.Dialer = dialer{}
	}
}

// Close ends the connections that are free, and makes those in use end with their
// message; it waits for the first. The Exit can be used on, without keeping
// connections.
func (x *Exit) Close(ctx context.Context) { x.kept.end(ctx) }

// Connections is how many connections to a site are open, and how many of them
// are free.
func (x *Exit) Connections(site string) (open, free int) { return x.kept.count(site) }

// Deliver makes one attempt at a job and returns a Result for each recipient,
// in their order. If ctx ends, what has no answer yet is deferred.
func (x *Exit) Deliver(ctx context.Context, job *Job) []Result {
	a := x.newAttempt(job)
	defer a.giveBack(job.Ticket)
	to, err := x.locate(ctx, job.Domain)
	switch {
	case err != nil:
		a.lost(ctx, err)
	case to.discard:
		a.discard()
	default:
		a.run(ctx, &walk{x: x, to: to, source: a.source})
	}
	return a.results
}
