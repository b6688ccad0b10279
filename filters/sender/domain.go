package sender

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
)

// exchanger is what resolve.Resolver can besides a pipeline.Resolver.
type exchanger interface {
	LookupMX(ctx context.Context, domain string) (resolve.MX, error)
}

// The refusals of a stranger's domain.
var (
	unqualified = reply.Make(550, reply.Enhanced{Subject: 5, Detail: 4}, "the sender's domain is no full host name")
	missing     = reply.Make(550, reply.Enhanced{Subject: 1, Detail: 8}, "the sender's domain does not exist")
	nullMX      = reply.Make(550, reply.Enhanced{Subject: 7, Detail: 27}, "the sender's domain takes no mail")
	untold      = reply.Make(451, reply.Enhanced{Subject: 4, Detail: 3}, "the sender's domain cannot be looked up now, please try again later")
)

// domain judges the domain of a stranger's address.
func (f *Filter) domain(ctx context.Context, sender string) (pipeline.Verdict, error) {
	domain := envelope.Domain(sender)
	if literal, ok := strings.CutPrefix(domain, "["); ok && isLiteral(strings.TrimSuffix(literal, "]")) {
		return pipeline.Verdict{Reason: "an address literal"}, nil
	}
	if !pipeline.IsFQDN(domain) {
		if f.qualified {
			return pipeline.Verdict{Action: pipeline.Reject, Reply: unqualified, Reason: fmt.Sprintf("%q is no full host name", reply.Clean(domain, 200))}, nil
		}
		if domain == "" {
			return pipeline.Verdict{}, nil
		}
	}
	if !f.exists {
		return pipeline.Verdict{}, nil
	}
	if f.resolver == nil {
		return pipeline.Verdict{}, errors.New("there is no resolver")
	}
	answer, why, err := f.lookUp(ctx, domain)
	if err != nil {
		v := pipeline.Verdict{Reason: fmt.Sprintf("the DNS cannot tell about %s: %s", reply.Clean(domain, 200), reply.Clean(err.Error(), 200))}
		if f.trouble {
			v.Action, v.Reply = pipeline.Defer, untold
		}
		return v, ctx.Err()
	}
	if why != "" {
		return pipeline.Verdict{Action: pipeline.Reject, Reply: answer, Reason: reply.Clean(domain, 200) + " " + why}, nil
	}
	return pipeline.Verdict{}, nil
}

// lookUp asks for a domain; why is "" if it takes mail. The error is temporary.
func (f *Filter) lookUp(ctx context.Context, domain string) (answer reply.Reply, why string, err error) {
	if r, ok := f.resolver.(exchanger); ok {
		mx, err := r.LookupMX(ctx, domain)
		switch {
		case isMissing(err):
			return missing, "does not exist", nil
		case err != nil:
			return answer, "", err
		case mx.Null:
			return nullMX, "has a null MX", nil
		case !mx.Implicit && len(mx.Hosts) > 0:
			return answer, "", nil
		case !mx.Implicit:
			return missing, "has no MX that is a host", nil
		}
	}
	switch _, err := f.resolver.LookupHost(ctx, domain); {
	case isMissing(err):
		return missing, "has neither MX nor address", nil
	default:
		return answer, "", err
	}
}

func isMissing(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

// isLiteral reports whether a text is what stands in an address literal (RFC 5321
// §4.1.3).
func isLiteral(s string) bool {
	a, err := netip.ParseAddr(strings.TrimPrefix(s, "ipv6:"))
	return err == nil && a.Zone() == ""
}
