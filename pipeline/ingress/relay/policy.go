// Package relay decides who may send where: what a client is to us when it
// connects, which senders are refused, and which recipients a client may name.
//
// It promises that a stranger reaches nothing but the domains that are accepted
// and postmaster; that where no list of them exists, none is; that an address
// which could make a later server pass the message on (user%host@us,
// "user@host"@us, host!user@us) is refused to a stranger at once; and that a
// list which cannot be read is a temporary answer, never a yes and never a no.
//
// The rules are qmail-smtpd's: tcprules with RELAYCLIENT and other variables,
// rcpthosts and morercpthosts.cdb, badmailfrom, localiphost, percenthack.
package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/rules"
)

// RelayClient is the variable that lets a client relay. Its text, mostly empty,
// is appended to each recipient (qmail-smtpd.8).
const RelayClient = "RELAYCLIENT"

// TCPRules say what is assigned to a client. *rules.TCPRules and
// *rules.TCPRulesFile do.
type TCPRules interface {
	Match(rules.TCPClient) (rules.TCPVerdict, error)
}

// Options of a Policy. Only Hostname must be given; a Policy without the rest
// takes mail for postmaster alone.
type Options struct {
	// Hostname is the domain of <postmaster>.
	Hostname string
	// Accepts reports whether strangers may send to a domain (rcpthosts), and Ours
	// whether its mail is our business (locals, virtualdomains). Domains come in
	// any case, without a final dot. Nil: none.
	Accepts, Ours func(domain string) bool
	// MoreHosts are more domains that strangers may send to (morercpthosts.cdb).
	MoreHosts rules.KeySet
	// TCPRules deny clients, and let those relay to whom they assign RELAYCLIENT.
	TCPRules TCPRules
	// Networks and Rule let clients relay: those in one of the networks, and those
	// whom the rule matches, which may name what is known when a client connects.
	Networks []netip.Prefix
	Rule     *rules.Rule
	// BadMailFrom are senders whose mail is refused, whoever the client is.
	BadMailFrom *rules.AddressList
	// LocalHost takes the place of an address literal that is ours (localiphost);
	// default Hostname.
	LocalHost string
	// LocalAddress reports whether an address is ours; nil means that none is.
	LocalAddress func(netip.Addr) bool
	// BareHost is the domain of recipients that have none (envnoathost); default
	// Hostname.
	BareHost string
	// PercentHack are domains of which user%host@domain means user@host.
	PercentHack []string
	// Lot names the settings of a recipient, of which a transaction has one set;
	// nil means that all have the same.
	Lot func(address string) string
}

// Policy decides by its options. It is safe for concurrent use.
type Policy struct {
	o       Options
	percent map[string]bool
}

// New makes a policy. It fails for a rule that names what is not known yet when
// a client connects.
func New(o Options) (*Policy, error) {
	if o.Hostname == "" {
		return nil, errors.New("relay: Options.Hostname is missing")
	}
	if o.Rule != nil && o.Rule.Since() > int(pipeline.AtConnect) {
		return nil, fmt.Errorf("the rule of who may relay, %q, asks for what is not known when a client connects; use ip, rdns and the like", o.Rule)
	}
	if o.LocalHost == "" {
		o.LocalHost = o.Hostname
	}
	if o.BareHost == "" {
		o.BareHost = o.Hostname
	}
	nothing := func(string) bool { return false }
	if o.Accepts == nil {
		o.Accepts = nothing
	}
	if o.Ours == nil {
		o.Ours = nothing
	}
	p := &Policy{o: o, percent: map[string]bool{}}
	for _, d := range o.PercentHack {
		for _, form := range domainForms(d) {
			p.percent[form] = true
		}
	}
	return p, nil
}

// Admit says what the client of a new session is to us, and which variables the
// tcprules assign to it. The environment is the session's with these added. A
// client that they deny is reply.ClientDenied. A standing that the session
// already has stays.
func (p *Policy) Admit(_ context.Context, s *pipeline.Session) (pipeline.Standing, map[string]string, error) {
	ip := s.Peer.Addr().Unmap().WithZone("")
	env, err := p.assigned(s, ip)
	if err != nil {
		return pipeline.Stranger, nil, err
	}
	if s.Standing != pipeline.Stranger {
		return s.Standing, env, nil
	}
	if _, ok := env[RelayClient]; ok {
		return pipeline.Relayed, env, nil
	}
	for _, n := range p.o.Networks {
		if n.Contains(ip) {
			return pipeline.Relayed, env, nil
		}
	}
	if p.o.Rule != nil {
		// A rule without an answer is no answer to the client either: a no would
		// bounce the mail of our own hosts.
		ok, err := p.o.Rule.Match(pipeline.FactsAt(&pipeline.Transaction{Session: s}, message.Message{}))
		if err != nil {
			return pipeline.Stranger, nil, fmt.Errorf("the rule of who may relay: %w", err)
		}
		if ok {
			return pipeline.Relayed, env, nil
		}
	}
	return pipeline.Stranger, env, nil
}

// assigned is the session's environment with what the tcprules add. A client
// without an address, on a Unix socket, has no rules.
func (p *Policy) assigned(s *pipeline.Session, ip netip.Addr) (map[string]string, error) {
	if p.o.TCPRules == nil || !ip.IsValid() {
		return s.Env, nil
	}
	v, err := p.o.TCPRules.Match(rules.TCPClient{IP: ip, Host: s.PeerName})
	switch {
	case err != nil:
		return nil, fmt.Errorf("tcprules: %w", err)
	case v.Deny:
		return nil, reply.With(reply.ClientDenied, fmt.Errorf("denied by the tcprules line of %q", v.Rule))
	case len(v.Env) == 0:
		return s.Env, nil
	}
	env := maps.Clone(s.Env)
	if env == nil {
		env = make(map[string]string, len(v.Env))
	}
	maps.Copy(env, v.Env)
	return env, nil
}

// Sender refuses a sender that badmailfrom lists, with reply.SenderDenied. The
// empty sender never is.
func (p *Policy) Sender(_ context.Context, _ *pipeline.Session, mail wire.Mail) error {
	if p.o.BadMailFrom.Len() == 0 || mail.Sender == "" {
		return nil
	}
	at := strings.LastIndexByte(mail.Sender, '@') + 1
	forms := []string{mail.Sender}
	if at > 0 {
		domain := strings.TrimSuffix(mail.Sender[at:], ".")
		for _, form := range append(domainForms(domain), domain) {
			forms = append(forms, mail.Sender[:at]+form)
		}
	}
	for _, form := range forms {
		if line, ok := p.o.BadMailFrom.Match(form); ok {
			return reply.With(reply.SenderDenied, fmt.Errorf("badmailfrom lists the sender with %q", line))
		}
	}
	return nil
}

// Recipient says whether a client may send to a recipient, and gives it as it
// goes into the envelope: <postmaster> and other local parts with a domain, a
// literal of ours replaced, a domain without its final dot and, if it is one of
// ours, in the form in which our lists have it, and RELAYCLIENT's text appended.
// The refusal is reply.RelayDenied.
func (p *Policy) Recipient(_ context.Context, s *pipeline.Session, _ string, r envelope.Recipient) (envelope.Recipient, string, error) {
	address, err := p.address(s, r.Address)
	if err == nil && len(address) > envelope.MaxAddress {
		err = reply.With(reply.AddressTooLong, nil)
	}
	if err != nil {
		return r, "", err
	}
	r.Address = address
	lot := ""
	if p.o.Lot != nil {
		lot = p.o.Lot(address)
	}
	return r, lot, nil
}

func (p *Policy) address(s *pipeline.Session, address string) (string, error) {
	local, domain, chosen := p.parts(address)
	if wire.UnquoteLocal(local) == "" {
		// qmail-lspawn drops such mail without a word.
		return "", reply.With(reply.RelayDenied, fmt.Errorf("%q has no local part", address))
	}
	if s.Standing == pipeline.Relayed {
		if text := s.Env[RelayClient]; text != "" {
			return join(local, domain) + text, nil
		}
	}
	if domain == "" {
		if strings.EqualFold(local, "postmaster") {
			return local + "@" + p.o.Hostname, nil // RFC 5321 §4.5.1
		}
		domain, chosen = p.o.BareHost, true
	}
	local, domain = p.hacked(local, domain)
	known, form, err := p.known(domain, chosen)
	if s.Standing != pipeline.Stranger {
		// Whatever is known: it only chooses between two forms of one name.
		return join(local, form), nil
	}
	if why := trick(local); why != "" {
		return "", reply.With(reply.RelayDenied, fmt.Errorf("%q is %s", address, why))
	}
	if err != nil {
		return "", err
	}
	if !known {
		return "", reply.With(reply.RelayDenied, fmt.Errorf("%q is in no domain that strangers may send to", address))
	}
	return join(local, form), nil
}

// parts cuts an address at its last @. A literal of ours is replaced; chosen
// says that the domain is one that we put there.
func (p *Policy) parts(address string) (local, domain string, chosen bool) {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return address, "", false
	}
	local, domain = address[:at], strings.TrimSuffix(address[at+1:], ".")
	if ip, ok := wire.Literal(domain); ok && p.o.LocalAddress != nil && p.o.LocalAddress(ip.Unmap()) {
		return local, p.o.LocalHost, true
	}
	return local, domain, false
}

func join(local, domain string) string {
	if domain == "" {
		return local
	}
	return local + "@" + domain
}

// hacked does what qmail-send does for the domains in percenthack. The result
// is judged as if it had been given.
func (p *Policy) hacked(local, domain string) (string, string) {
	for len(p.percent) > 0 && !strings.HasPrefix(local, `"`) && p.isPercent(domain) {
		i := strings.LastIndexByte(local, '%')
		if i <= 0 || i == len(local)-1 {
			break
		}
		local, domain = local[:i], strings.TrimSuffix(local[i+1:], ".")
	}
	return local, domain
}

func (p *Policy) isPercent(domain string) bool {
	for _, form := range domainForms(domain) {
		if p.percent[form] {
			return true
		}
	}
	return false
}

// known reports whether strangers may send to a domain, and the form in which
// it goes on. A host that we chose ourselves, for a literal or for an address
// without a domain, is also accepted if it is ours (RFC 5321 §4.1.3).
func (p *Policy) known(domain string, chosen bool) (ok bool, form string, err error) {
	if plainASCII(domain) {
		// It goes on as it was written, in its case too.
		ok, err = p.accepts(domain)
		return ok || chosen && p.o.Ours(domain), domain, err
	}
	forms := domainForms(domain)
	for _, form := range forms {
		if ok, err = p.accepts(form); ok {
			return true, form, nil
		} else if err != nil {
			return false, domain, err
		}
	}
	for _, form := range forms {
		if p.o.Ours(form) {
			return chosen, form, nil
		}
	}
	return false, domain, nil
}

func (p *Policy) accepts(domain string) (bool, error) {
	if domain == "" {
		return false, nil
	}
	if p.o.Accepts(domain) {
		return true, nil
	}
	if p.o.MoreHosts == nil {
		return false, nil
	}
	_, ok, err := rules.MatchDomain(p.o.MoreHosts, domain)
	if err != nil {
		err = fmt.Errorf("morercpthosts: %w", err)
	}
	return ok, err
}
