package smtp

import (
	"context"
	"errors"
	"fmt"

	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// ErrCannotAsk is the error of a domain whose mail goes by a transport that knows no
// questions.
var ErrCannotAsk = errors.New("the route to this domain takes no questions")

// Ask asks the server that mail for a domain would go to whether it would take a
// report, mail from nobody, for each of some recipients, and sends none. It returns
// the server's answers to RCPT, in order. Any error means that they are not known:
// that there was no session, that MAIL was refused, that the Gate does not admit it,
// ErrCannotAsk. Addresses, limits and the memory of silent hosts are Deliver's.
func (x *Exit) Ask(ctx context.Context, domain string, recipients ...string) ([]wire.Reply, error) {
	return x.AskFrom(ctx, Source{}, domain, recipients...)
}

// AskFrom is Ask from a source; the zero Source is that of Options.
func (x *Exit) AskFrom(ctx context.Context, from Source, domain string, recipients ...string) ([]wire.Reply, error) {
	to, err := x.locate(ctx, domain)
	if err != nil {
		return nil, err
	}
	job := &Job{Domain: domain, Source: from}
	a, w := &attempt{x: x, job: job, source: job.source(x)}, &walk{x: x, to: to, source: job.source(x)}
	if to.discard {
		return nil, ErrCannotAsk
	}
	err = nil
	defer a.giveBack(nil)
	for range w.most(x.o.MaxSessions) {
		at, ok := w.next(ctx)
		if !ok {
			break
		}
		if at.hop.Transport >= QMTP {
			return nil, ErrCannotAsk
		}
		v, failed := a.newVisit(ctx, to, at)
		var l *link
		if failed == nil {
			l, failed = v.open(ctx)
		}
		if failed != nil {
			err = fmt.Errorf("%s: %w", at, failed)
			continue
		}
		answers, failed := l.c.Ask(ctx, recipients...)
		if failed == nil {
			x.kept.close(ctx, l)
			return answers, nil
		}
		l.c.Close()
		x.kept.close(ctx, l)
		return nil, fmt.Errorf("%s: %w", at, failed)
	}
	if err == nil {
		r := w.nothing()
		err = reply.With(r.Reply, r.Err)
	}
	return nil, err
}
