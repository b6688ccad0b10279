package smtp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// visit is an attempt at one address.
type visit struct {
	a      *attempt
	target *target
	to     candidate
	policy TLSPolicy
	login  *Credentials
	key    key
}

// newVisit finds out under which conditions an address may be used.
func (a *attempt) newVisit(ctx context.Context, target *target, to candidate) (*visit, error) {
	o := &a.x.o
	v := &visit{a: a, target: target, to: to}
	if o.TLS != nil {
		v.policy = o.TLS(a.job.Domain, to.host)
	}
	if o.Login != nil {
		v.login = o.Login(a.job.Domain, to.host)
	}
	switch {
	case to.hop.Socket != "" && v.policy.Level == Opportunistic:
		v.policy.Level = NoTLS // nobody listens on the way
	case to.hop.Transport == SMTPS:
		v.policy.Implicit = true
		if v.policy.Level == NoTLS {
			v.policy.Level = Required // the route is the nearer word
		}
	}
	if v.login != nil && !v.login.Clear && v.policy.Level == Opportunistic {
		v.policy.Level = Required
	}
	authentic := target.routed || target.authentic
	if o.Assurance != nil {
		var err error
		if v.policy, err = o.Assurance.Assure(ctx, Peer{Domain: a.job.Domain, Host: to.host, Authentic: authentic, Policy: v.policy}); err != nil {
			return v, err
		}
	}
	if a.job.Envelope.RequireTLS && to.hop.Socket == "" && (v.policy.Level == Opportunistic || v.policy.Level == Required) {
		// Whose the host is must be known for certain (RFC 8689 §4.2.1): by the DNS, or
		// because its name is the domain's or below.
		v.policy.Level, v.policy.Names = Verified, []string{a.job.Domain, "." + a.job.Domain}
		if authentic {
			v.policy.Names = append(v.policy.Names, to.host)
		}
	}
	v.key = key{
		place:  place{address: to.address, socket: to.hop.Socket, lmtp: to.hop.Transport == LMTP, source: a.source},
		policy: v.policy.digest(), login: v.login.digest(),
	}
	return v, nil
}

// run delivers over a kept connection or a new one. Recipients that it leaves
// pending are for the next address, with fallback saying why.
func (v *visit) run(ctx context.Context, w *walk) {
	a := v.a
	v.key.group = v.target.group()
	if l := a.x.kept.take(&v.key, v.target.site.Name); l != nil {
		if err := v.takeOver(ctx, l); err != nil {
			a.x.kept.untake(ctx, l)
			v.failed(err, w)
			return
		}
		a.sessions++
		a.miss = nil
		if a.job.Reuses != nil {
			a.job.Reuses()
		}
		if v.session(ctx, l); !a.again {
			return
		}
		// The server had hung up before it heard anything, so this costs nothing, and
		// it will have hung up on others as well.
		a.sessions--
		a.x.kept.drop(&v.key)
	}
	for range 2 { // once more without chunks
		l, err := v.open(ctx)
		if err != nil {
			v.failed(err, w)
			return
		}
		a.sessions++
		if v.session(ctx, l); !a.again {
			return
		}
		a.sessions--
	}
}

// failed notes an address without a session.
func (v *visit) failed(err error, w *walk) {
	a, address := v.a, v.to.name()
	var e *wire.Error
	switch {
	case notNow(err) != nil:
		if a.sessions == 0 && !a.unreached {
			a.fallback = Result{Reply: notAdmitted, NotNow: notNow(err), Err: err}
		}
	case !errors.As(err, &e): // no connection
		a.x.o.Log.Debug("cannot connect", "to", v.to.String(), "error", err)
		fault := sourceFault(err)
		if fault != nil || isHopeless(err) {
			w.hopeless()
		}
		switch {
		case fault != nil:
			if a.sessions == 0 && !a.unreached {
				a.fallback = Result{Reply: noSource(fault), Err: err}
			}
			return
		case a.sessions == 0:
			a.fallback = Result{Reply: noConn, Where: v.to.String(), Err: err}
		}
		a.unreached = true
	case errors.Is(err, errLogin):
		// Other addresses know the same users, and too many failures lock them out.
		a.sessions++
		a.x.o.Log.Error("cannot log in; mail that goes there waits", "to", v.to.String(), "domain", a.job.Domain, "user", v.login.User, "error", err)
		a.settle(v.unheard(e, err, loginFailed(address, said(err))))
	default:
		a.sessions++
		a.fallback = v.unheard(e, err, v.noSession(e, err))
		if a.fallback.Reply.Class == reply.Permanent {
			a.unsuited++
		} else {
			a.unreached = true
		}
		a.x.o.Log.Debug("session failed", "to", v.to.String(), "error", err)
	}
}

// noSession is what it means that a conversation failed before MAIL.
func (v *visit) noSession(e *wire.Error, err error) reply.Reply {
	address := v.to.name()
	needs := v.a.job.Envelope.RequireTLS
	switch {
	case e.Phase == wire.Greeting:
		return greetingFailed(address, said(err))
	case errors.Is(err, errNoTLS) && needs:
		return needsEncryption
	case errors.Is(err, errCertificate) && needs:
		return needsCertificate
	case errors.Is(err, errNoTLS):
		return tlsMissing(address)
	case errors.Is(err, errCertificate):
		return tlsUntrusted(address)
	case e.Phase == wire.Secure:
		return tlsFailed(address, said(err))
	}
	return nameRejected(address, said(err))
}

// unheard is the result of a session that failed before MAIL.
func (v *visit) unheard(e *wire.Error, err error, r reply.Reply) Result {
	if e.Reply.Class() == reply.Temporary && e.Reply.Code != 0 && r.Class == reply.Temporary {
		r.Code, r.Enhanced = e.Reply.Code, e.Reply.Enhanced
	}
	return Result{Reply: r, Said: e.Reply, Where: v.to.String(), Address: v.to.address.Addr(), Phase: e.Phase, Err: err}
}

func said(err error) string {
	var e *wire.Error
	if errors.As(err, &e) {
		return e.Reply.String()
	}
	return ""
}

// errNoTLS: the server offers no TLS, and there must be some.
var errNoTLS = errors.New("the server does not offer TLS")

// open makes a connection that is ready for a message. An error holds a
// *wire.Error if there was a connection.
func (v *visit) open(ctx context.Context) (*link, error) {
	x := v.a.x
	x.kept.makeRoom(ctx, v.target.site.Name)
	now := x.o.Now()
	opportunistic := v.policy.Level == Opportunistic && !v.policy.Implicit
	inClear := v.policy.Level == NoTLS || opportunistic && x.clear.has(v.to.address, now)
	l, broken, err := v.converse(ctx, inClear)
	if err == nil || !broken || !opportunistic || ctx.Err() != nil {
		return l, err
	}
	x.clear.hold(v.to.address, now, now.Add(x.o.ClearFor))
	x.o.Log.Warn("TLS does not work with a server; mail goes there in clear for a while, as it would if the server had not offered TLS",
		"to", v.to.String(), "domain", v.a.job.Domain, "for", x.o.ClearFor.String(), "error", err)
	l, _, err = v.converse(ctx, true)
	return l, err
}

// converse connects and goes as far as MAIL. broken is set if it failed because
// of TLS, and not because of what the server thinks of us.
func (v *visit) converse(ctx context.Context, inClear bool) (l *link, broken bool, err error) {
	x := v.a.x
	ticket, err := v.ticket(ctx)
	if err != nil {
		return nil, false, err
	}
	conn, err := v.dial(ctx)
	if err != nil {
		x.dead.noConnection(ctx, v.to, err)
		v.a.missed(ctx, ticket, err)
		return nil, false, err
	}
	m := x.manner.Load()
	l = &link{
		key: v.key, site: v.target.site.Name, ticket: ticket, counts: v.target.site.Name, opened: x.o.Now(), hello: m.helloOf(v.a.source),
		c: wire.NewClient(conn, wire.ClientOptions{
			Hello: m.helloOf(v.a.source), Timeouts: m.timeouts, Buffers: &x.buffers,
			Chunking: m.chunking && !x.unchunked.has(v.to.address, x.o.Now()),
			LMTP:     v.to.hop.Transport == LMTP,
		}),
	}
	x.kept.opened(l)
	if broken, err = v.greet(ctx, l, inClear); err != nil {
		x.dead.noConnection(ctx, v.to, err)
		tellFailed(ctx, ticket, err, broken || errors.Is(err, errNoTLS))
		x.kept.close(ctx, l)
		return nil, broken, err
	}
	x.dead.answers(v.to)
	if ticket != nil {
		ticket.Greeted()
	}
	return l, false, nil
}

func (v *visit) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, v.a.x.manner.Load().connectTimeout)
	defer cancel()
	if path := v.to.hop.Socket; path != "" {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return v.dialTo(ctx)
}

// greet is the conversation up to MAIL.
func (v *visit) greet(ctx context.Context, l *link, inClear bool) (broken bool, err error) {
	x := v.a.x
	if v.policy.Implicit && !inClear {
		if err := l.startTLS(ctx, x, v.policy, v.to.host); err != nil {
			return true, err
		}
	}
	if _, err := l.c.Greet(ctx); err != nil {
		return l.c.TLS() != nil && said(err) == "", err
	}
	if _, err := l.c.Hello(ctx); err != nil {
		return false, err
	}
	if l.c.TLS() == nil && !inClear {
		if broken, err := v.upgrade(ctx, l); err != nil {
			return broken, err
		}
	}
	if v.login != nil {
		if err := v.logIn(ctx, l); err != nil {
			return false, err
		}
	}
	return false, nil
}

// upgrade says STARTTLS if the server offers it, and EHLO again.
func (v *visit) upgrade(ctx context.Context, l *link) (broken bool, err error) {
	missing := &wire.Error{Phase: wire.Secure, Err: errNoTLS}
	if !l.c.Capabilities().Extensions.Has(wire.StartTLS) {
		if v.policy.requires() {
			return false, missing
		}
		return false, nil
	}
	if err := l.startTLS(ctx, v.a.x, v.policy, v.to.host); err != nil {
		if l.c.Usable() && !v.policy.requires() { // it said no (RFC 3207 §4)
			v.a.x.o.Log.Debug("the server refuses TLS that it offers", "to", v.to.String(), "error", err)
			return false, nil
		}
		return true, err
	}
	if _, err := l.c.Hello(ctx); err != nil {
		// A server that did not like the handshake says so now (TLS 1.3).
		return said(err) == "", err
	}
	return false, nil
}

// logIn logs in.
func (v *visit) logIn(ctx context.Context, l *link) error {
	if l.tls.Version == 0 && !v.login.Clear {
		return cannotLogin(errNoClear)
	}
	mechanism, err := v.login.mechanism(l.c.Capabilities().Auth, l.tls.Verified)
	if err != nil {
		return cannotLogin(err)
	}
	if err := l.c.Login(ctx, mechanism); err != nil {
		return cannotLogin(err)
	}
	return nil
}

// isHopeless is true for networks that this machine is not on.
func isHopeless(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// notAssured is the result where it cannot be found out how a host must be
// reached.
func (v *visit) notAssured(err error) Result {
	return Result{Reply: tlsUnknown, Where: v.to.String(), Err: fmt.Errorf("how TLS must be: %w", err)}
}
