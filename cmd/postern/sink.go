package main

import (
	"context"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
)

// discard takes everything and keeps nothing, for measuring.
type discard struct{}

// Submit forgets the messages.
func (discard) Submit(context.Context, []pipeline.Outgoing) (reply.Reply, error) {
	return reply.OK, nil
}

// queueSink is our own queue as the chains' sink.
type queueSink struct{ queue *queue.Queue }

// Submit queues the messages, all or none.
func (s queueSink) Submit(ctx context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	subs, err := submissions(all, time.Now())
	if err != nil {
		return reply.Trouble, err
	}
	ids, err := s.queue.Submit(ctx, subs)
	if err != nil {
		return reply.Of(err), err
	}
	ok := reply.OK
	if len(ids) > 0 {
		ok.Text += " " + ids[0].String()
	}
	return ok, nil
}

// mayReport is promise 8: whether a sender may get a report about a message.
// Our own users may; a stranger only if the policy says so, or the sender's
// domain was verified on the way in.
func mayReport(policy string) func(origin []byte, sender string) bool {
	return func(origin []byte, sender string) bool {
		o, err := pipeline.DecodeOrigin(origin)
		if err != nil {
			return false
		}
		if !o.IsExternal() || policy == "always" {
			return true
		}
		return policy != "never" && verified(o.Results, envelope.Domain(sender))
	}
}

// verifying are the properties in which a method names the domain that it
// vouches for (RFC 8601 §2.7).
var verifying = map[string]string{"spf": "smtp.mailfrom", "dkim": "header.d"}

// verified reports whether SPF or an aligned DKIM signature vouches for a
// sender's domain.
func verified(results []pipeline.AuthResult, domain string) bool {
	if domain == "" {
		return false
	}
	for _, r := range results {
		name, ok := verifying[r.Method]
		if !ok || r.Result != "pass" {
			continue
		}
		for _, p := range r.Props {
			of := p.Value
			if i := strings.LastIndexByte(of, '@'); i >= 0 {
				of = of[i+1:]
			}
			if p.Name == name && (strings.EqualFold(of, domain) || strings.HasSuffix(domain, "."+strings.ToLower(of))) {
				return true
			}
		}
	}
	return false
}
