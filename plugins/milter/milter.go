// Package milter is the filter "milter": a program that speaks the milter
// protocol of Sendmail and Postfix (opendkim, clamav-milter, whatever links
// libmilter) judges and changes mail at each stage.
//
//	[filter.opendkim]
//	kind    = "milter"
//	address = ["unix:/run/opendkim/opendkim.sock"]
//
//	[filter.clamav-milter]
//	kind    = "milter"
//	address = ["tcp:127.0.0.1:7357", "tcp:192.0.2.7:7357"]
//
//	[chain]
//	inbound = ["opendkim", "clamav-milter"]
//
// Several milters are several filters, asked in the order of the chain. The
// addresses of one filter are milters that do the same job.
//
// # When it is asked
//
// In the SMTP server a session has a conversation of its own with each milter,
// which is told of the connection, HELO, sender and each recipient when they come,
// and of DATA, header, end of header, body and end when the message is there. At a
// shim it is told the same from the envelope and the trusted environment, and a
// message that is released from quarantine is told from the start. Recipients that
// others refused it is not told of (SMFIP_RCPT_REJ is not offered), and commands
// that the server does not know never reach a filter (SMFIC_UNKNOWN is never sent).
// Where a message was split for some of its recipients, each part is a transaction.
//
// A local process is localhost, 127.0.0.1, and says HELO localhost, unless it says
// something else. A stranger whose address is not known is 0.0.0.0, as milters take
// a client without one for local. A milter that is to see the mail of some only has a "when".
//
// In the chain "delivery" a milter has one conversation for each message that
// leaves. It may change header and body there; a change of the envelope, and a
// discard, are failures.
//
// # What it is told
//
// What it asks for. Protocol versions 2 to 6 are spoken; whatever a milter wants
// to be spared (SMFIP_NO...) or does not answer (SMFIP_NR_...) is honoured, and so
// are SMFIP_SKIP, SMFIP_HDR_LEADSPC and the lists of macros that it sends
// (SMFIR_SETSYMLIST). Bodies go in pieces of 64 KiB, lines ending in CR LF. Of a
// header field it is told 60,000 bytes at most: libmilter takes no more.
//
// The macros, unless it lists others:
//
//   - connect: j, _, v, {daemon_name} (the entrance), {daemon_addr}, {if_name},
//     {if_addr}, {client_addr}, {client_name}, {client_port}, {client_ptr},
//     {client_resolve}
//   - helo: {tls_version}, {cipher}, {cipher_bits}
//   - mail: i, {auth_type}, {auth_authen}, {auth_author}, {mail_mailer},
//     {mail_host}, {mail_addr}
//   - rcpt: i, {rcpt_mailer}, {rcpt_host}, {rcpt_addr}
//   - data, end of header: i; end of message: i, {msg_id}
//
// What is not known is left out: addresses of ours are what tcpserver's
// environment tells. {auth_type} is PLAIN for whoever logged in, by whatever
// mechanism. "macros" gives others, or other values:
//
//	[filter.opendkim.macros]
//	daemon_name = "ORIGINATING"
//
// # What becomes of the mail
//
//   - reject, tempfail: refused, put off; at rcpt the recipient alone
//   - a reply of its own: one line is made of several; 421 ends the connection
//   - discard: the message is taken and thrown away
//   - accept: this milter has nothing more to say. The filters that follow have
//   - quarantine: the message is held for the postmaster
//   - changes: header fields are added, inserted, changed and deleted, by their
//     number too; sender, recipients and body are replaced. What it does not touch
//     keeps its bytes.
//
// The server's own Received is a field that milters see. The place of an inserted
// field counts from it: 0 is above it, 1 below. Where a local program's message has
// none on top yet, places count as if it were there.
// ESMTP parameters of senders and recipients that a milter gives are not kept. A
// field's control bytes become question marks, and lines that are too long are
// folded. All changes of a milter are made, or none: a milter that fails half-way,
// changes what it did not ask to change, or answers what the protocol does not
// know leaves the message as it was.
//
// # Several, and failing ones
//
// A milter that does not answer in time, or breaks the protocol, costs its share
// of the filter's "timeout"; signs of life (SMFIR_PROGRESS) do not extend it. The
// next address is then told everything from the start. One that failed twice is
// left alone for a while, 5 s at most. If none is left, the mail is put off
// (on_error). A session that loses its milter between two commands takes another
// one, or the same when it is back.
//
// With reuse a connection serves session after session, where a milter can do that
// (SMFIC_QUIT_NC, version 6).
//
// postern explain has milters judge as for mail, with the word explain for the
// macro i: what they themselves remember of it is theirs.
//
// # Why the client is ours
//
// Codes and flags are those of emersion/go-milter; its client is not used. It
// knows no DATA, no QUIT_NC, no list of macros, no addrcpt with parameters, takes
// SKIP for an error, believes masks that nobody offered, lets signs of life extend
// its deadline, and keeps a new body in memory, whatever its size.
package milter

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
)

// Name is the filter's kind in the configuration.
const Name = "milter"

// Options are the filter's part of the configuration. Zero values mean the
// defaults, but for Reuse.
type Options struct {
	Address     []string `toml:"address" doc:"milters that do the same job: unix:PATH or tcp:HOST:PORT; local:PATH and inet:PORT@HOST are understood"`
	Connections int      `toml:"connections" doc:"how many conversations are begun with each milter at a time" min:"1"`
	Reuse       bool     `toml:"reuse" doc:"keep connections for later sessions, where the milter can do that"`
	// Macros are further macros, or other values, by their names without braces.
	Macros map[string]string `toml:"macros" doc:"macros that the milter is given besides, or other values; the keys are their names, without braces"`
	Body   int64             `toml:"body" doc:"the largest new body that a milter may write" unit:"bytes" min:"1"`
}

// The defaults, and the bounds of a configuration.
const (
	defaultConnections = 100
	defaultBody        = 64 << 20
	maxBody            = 1 << 31
	maxOwnMacros       = 100
	maxOwnValue        = 500
)

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, func() Options {
		return Options{Connections: defaultConnections, Reuse: true, Body: defaultBody}
	}, New)
}

// Filter is the milter filter. It is safe for concurrent use.
type Filter struct {
	o         Options
	host      string
	spool     message.Spooler
	set       *servers.Set
	pool      *pool
	ownMacros []string // names that no list of ours has
}

// New makes a milter filter. It uses the environment's Host, Spool, Log and Now,
// and asks no milter yet. Its errors say by a method Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	if o.Connections == 0 {
		o.Connections = defaultConnections
	}
	if o.Body == 0 {
		o.Body = defaultBody
	}
	switch {
	case len(o.Address) == 0:
		return nil, pipeline.AtKey("address", fmt.Errorf("it is missing: write where the milter listens, [\"unix:/run/milter.sock\"]"))
	case o.Connections < 0 || o.Connections > servers.MaxConnections:
		return nil, pipeline.AtKey("connections", fmt.Errorf("%d: write a number from 1 to %d", o.Connections, servers.MaxConnections))
	case o.Body < 0 || o.Body > maxBody:
		return nil, pipeline.AtKey("body", fmt.Errorf("%d: write a number from 1 to %d", o.Body, int64(maxBody)))
	}
	f := &Filter{o: o, host: env.Host, spool: env.Spool, pool: &pool{off: !o.Reuse, now: env.Now}}
	if f.pool.now == nil {
		f.pool.now = time.Now
	}
	addresses := make([]string, len(o.Address))
	for i, a := range o.Address {
		addresses[i] = address(a)
	}
	var err error
	if f.set, err = servers.New(addresses, servers.Options{Noun: Name, Connections: o.Connections, Log: env.Log, Now: env.Now}); err != nil {
		return nil, err
	}
	if f.ownMacros, err = ownMacros(o.Macros); err != nil {
		return nil, err
	}
	return f, nil
}

// address understands the form in which milters' own configurations have
// addresses (smfi_setconn).
func address(s string) string {
	kind, rest, _ := strings.Cut(s, ":")
	port, host, split := strings.Cut(rest, "@")
	switch {
	case kind == "local":
		return "unix:" + rest
	case (kind == "inet" || kind == "inet6") && split:
		if strings.Contains(host, ":") {
			host = "[" + strings.Trim(host, "[]") + "]"
		}
		return "tcp:" + host + ":" + port
	}
	return s
}

// ownMacros are the names of the configured macros that are on no list of ours.
func ownMacros(macros map[string]string) (names []string, err error) {
	if len(macros) > maxOwnMacros {
		return nil, pipeline.AtKey("macros", fmt.Errorf("more than %d macros", maxOwnMacros))
	}
	for name, value := range macros {
		isName := func(c rune) bool {
			return c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
		}
		if name == "" || len(name) > 60 || strings.ContainsFunc(name, isName) {
			return nil, pipeline.AtKey("macros."+name, fmt.Errorf("%q is no name of a macro: write letters, digits and _, without braces", reply.Clean(name, 80)))
		}
		if len(value) > maxOwnValue || reply.Clean(value, maxOwnValue) != value {
			return nil, pipeline.AtKey("macros."+name, fmt.Errorf("write one line of printable ASCII, at most %d bytes", maxOwnValue))
		}
		listed := func(list []string) bool { return slices.Contains(list, canonical(name)) }
		if !slices.ContainsFunc(usual[:], listed) {
			names = append(names, canonical(name))
		}
	}
	slices.Sort(names)
	return names, nil
}

// Traits of a filter that protects, at all stages.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Stages: []pipeline.Stage{
		pipeline.AtConnect, pipeline.AtHelo, pipeline.AtSender, pipeline.AtRecipient, pipeline.AtMessage, pipeline.AtDelivery,
	}}
}

// Open begins a session. The milter hears of it at the first stage.
func (f *Filter) Open(_ context.Context, s *pipeline.Session) (pipeline.Instance, error) {
	return &instance{f: f, s: s}, nil
}

// Close closes the connections that are kept.
func (f *Filter) Close() error {
	f.pool.close()
	return nil
}

// Deliver has the milter judge a message that leaves, in a conversation of its
// own.
func (i *instance) Deliver(ctx context.Context, d *pipeline.Delivery, m message.Message) (pipeline.Verdict, error) {
	s := sessionOf(d.Origin)
	tx := &pipeline.Transaction{ID: d.ID, Session: s, Envelope: d.Envelope, Active: make([]int, len(d.Envelope.Recipients))}
	for n := range tx.Active {
		tx.Active[n] = n
	}
	own := &instance{f: i.f, s: s}
	defer own.Close() //nolint:errcheck // it tells nothing
	v, err := own.Message(ctx, tx, m)
	if err != nil {
		return v, err
	}
	fail := func(what string) (pipeline.Verdict, error) {
		if v.Body != nil {
			v.Body.Release() //nolint:errcheck // the spool sweeps what is left behind
		}
		return pipeline.Verdict{}, fmt.Errorf("it %s a message that leaves, which cannot be (%s)", what, v.Reason)
	}
	refused := func(o pipeline.Verdict) bool { return o.Action == pipeline.Reject || o.Action == pipeline.Defer }
	if n := len(v.Others); n > 0 && n == len(tx.Active) && refused(v.Others[0]) {
		v = v.Others[0] // all of them
		v.Only = nil
	}
	switch {
	case v.Action == pipeline.Discard:
		return fail("discards")
	case slices.ContainsFunc(v.Edits, func(e pipeline.Edit) bool { return e.Kind != pipeline.EditField }):
		return fail("changes the envelope of")
	case len(v.Others) > 0: // here an answer is for all
		return fail("wants some recipients only for")
	}
	v.HangUp = pipeline.StayOn
	return v, nil
}

// sessionOf is the session by which a message came, as far as its origin tells.
func sessionOf(o pipeline.Origin) *pipeline.Session {
	s := &pipeline.Session{
		ID: o.Transaction, Entrance: o.Entrance, Protocol: o.Protocol, Start: o.Received, Standing: pipeline.ParseStanding(o.Standing),
		PeerName: o.PeerName, PeerClaim: o.PeerClaim, PeerTrouble: o.PeerTrouble, Helo: o.Helo, User: o.User, UID: o.UID, TLS: o.TLS,
	}
	if at, err := netip.ParseAddrPort(o.Peer); err == nil {
		s.Peer = at
	} else if a, err := netip.ParseAddr(o.Peer); err == nil {
		s.Peer = netip.AddrPortFrom(a, 0)
	}
	return s
}

var _ interface {
	pipeline.Connecter
	pipeline.Heloer
	pipeline.Senderer
	pipeline.Messager
	pipeline.Deliverer
	pipeline.Resetter
	Recipient(context.Context, *pipeline.Transaction, envelope.Recipient) (pipeline.Verdict, error)
} = (*instance)(nil)
