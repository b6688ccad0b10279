package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/relay"
	"github.com/postern-mta/postern/pipeline/ingress/smtp"
	"github.com/postern-mta/postern/pipeline/ingress/submission"
	"github.com/postern-mta/postern/pipeline/ingress/throttle"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/rules"
)

// smtpSettings is what an SMTP server depends on besides its own table, in a
// form that can be compared.
type smtpSettings struct {
	hostname string
	auth     map[string]config.Auth
	vault    int // its number
	more     string
	control  map[string]string
	senders  string
}

// smtpControl are the control files of one value that an SMTP server asks for.
var smtpControl = []string{"localiphost", "envnoathost", "defaulthost", "defaultdomain", "plusdomain", "idhost"}

func (d *daemon) smtpSettingsOf(c *config.Config, l *config.Listen) smtpSettings {
	s := smtpSettings{hostname: c.Hostname, auth: map[string]config.Auth{}, control: map[string]string{}, more: c.MoreHosts}
	if usesTLS(l) {
		s.vault = d.vault.number
	}
	for _, name := range l.Auth {
		s.auth[name] = *c.Auth[name]
	}
	for _, name := range smtpControl {
		s.control[name] = first(c, name)
	}
	for _, name := range []string{"badmailfrom", "percenthack"} {
		lines, _ := c.Files.Lines(name)
		s.senders += fmt.Sprint(name, lines)
	}
	return s
}

// first is the first line of a control file, "" if there is none.
func first(c *config.Config, name string) string {
	line, _ := c.Files.First(name)
	return line.Text
}

// equipSMTP makes an SMTP server.
func (d *daemon) equipSMTP(c *config.Config, l *config.Listen, listener socket, ch *change) error {
	o := smtp.Options{
		Log: d.log, Listener: listener, Entrance: l.Name, Hostname: c.Hostname, Greeting: greeting(c, l),
		Chains: &d.chains, Chain: l.Chain, Spool: d.spool, Lines: &l.Lines, Ours: d.ours,
		Observe: d.meter.Observe, Report: reporter{d.current.Load, d.spool}.refused,
		AuthPlain: l.AuthClear, RequireTLS: l.RequireTLS, Late: l.Late,
		GreetPause: l.GreetPause, Tarpit: l.Tarpit, Exempt: config.Prefixes(l.Exempt), Proxies: config.Prefixes(l.Proxy), XClient: config.Prefixes(l.XClient),
		Limits: smtp.Limits{
			Sessions: l.Connections, Message: c.Limits.Message, Recipients: min(l.MaxRcpts, c.Limits.Recipients),
			Head: int(c.Limits.Head), Fields: c.Limits.Fields, Messages: orNone(l.MaxMails), BadCommands: l.Errors, Unknown: l.Refused,
		},
		Timeouts:   smtp.Timeouts{Command: l.Timeout, Data: l.Timeout, Transaction: l.Transaction, Judge: d.judge(c, l)},
		Transcript: d.transcripts(c, l), Ident: d.ident,
	}
	var ok1, ok2 bool
	o.Service, ok1 = smtp.ParseService(l.Service)
	o.TLSMode, ok2 = smtp.ParseTLSMode(l.TLS)
	if !ok1 || !ok2 {
		return fmt.Errorf("listen.%s: service %q or tls %q is unknown", l.Name, l.Service, l.TLS)
	}
	if *l.ReverseDNS {
		o.Names = d.resolver
	}
	if ch.gate == nil {
		ch.gate = throttle.New(d.gateOf(l))
	} else {
		ch.gate.Configure(d.gateOf(l))
	}
	o.Gate, o.Strike = ch.gate, ch.gate.Strike
	if err := d.protect(c, l, &o); err != nil {
		return err
	}
	policy, closeRules, err := d.relay(c, l)
	if err != nil {
		return err
	}
	defer func() {
		if ch.server == nil {
			closeRules()
		}
	}()
	o.Relay = policy
	if o.Auth, err = d.logins.of(c, l); err != nil {
		return fmt.Errorf("listen.%s: %w", l.Name, err)
	}
	if o.Service == smtp.Submission {
		mender, err := submission.New(submission.Options{
			Hostname: c.Hostname, DefaultHost: first(c, "defaulthost"), DefaultDomain: first(c, "defaultdomain"),
			PlusDomain: first(c, "plusdomain"), IDHost: first(c, "idhost"),
		})
		if err != nil {
			return fmt.Errorf("listen.%s: %w", l.Name, err)
		}
		o.Mend = mender.Mend
	}
	switch l.Next {
	case config.NextDiscard:
		o.Sink = discard{}
	default:
		o.Sink = cutThrough{d.outward, departure{chains: &d.chains, log: d.log, carry: d.engine.leave.carry}, d.engine.routeOf, queueSink{d.engine.queue}, d.log}
	}
	s, err := smtp.New(o)
	if err != nil {
		return err
	}
	ch.server = smtpServer{s, sync.OnceFunc(closeRules)}
	return nil
}

// smtpServer is a server that gives up its tcprules with its last session.
type smtpServer struct {
	*smtp.Server
	done func()
}

// Serve serves until the last session has ended.
func (s smtpServer) Serve(ctx context.Context) error {
	defer s.done()
	return s.Server.Serve(ctx)
}

// Shutdown gives the server up, also if it never served.
func (s smtpServer) Shutdown(ctx context.Context) error {
	err := s.Server.Shutdown(ctx)
	if err == nil { // no session is left
		s.done()
	}
	return err
}

// moreHosts is morercpthosts.cdb of the configuration in force: a server
// outlives it.
type moreHosts struct{ d *daemon }

// Has reports whether a domain, or ".domain", stands there.
func (m moreHosts) Has(key string) (bool, error) {
	if more := m.d.lists.Load().more; more != nil {
		return more.Has(key)
	}
	return false, nil
}

// orNone is a limit as the server takes it, where 0 is the default and less than
// that is no limit; in the configuration 0 is none.
func orNone(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// ident names a session of any SMTP entrance: by the time, and by a number that
// no two of this daemon's have.
func (d *daemon) ident() string {
	return strconv.FormatInt(time.Now().UnixMilli(), 36) + "-" + strconv.FormatUint(d.idents.Add(1), 36)
}

// greeting is the text behind our name.
func greeting(c *config.Config, l *config.Listen) string {
	return strings.TrimSpace(strings.TrimPrefix(l.Greeting, c.Hostname))
}

// judge is how long the chain and the commit may take together.
func (d *daemon) judge(c *config.Config, l *config.Listen) time.Duration {
	return c.Deadline(l.Chain) + time.Minute
}

// gateOf are the bounds of an entrance. Who misbehaves finds every gate closed.
func (d *daemon) gateOf(l *config.Listen) throttle.Options {
	return throttle.Options{
		Total: l.Connections, Address: l.PerAddress, Network: l.PerNetwork, AddressRate: l.Rate, IPv6Bits: 48, Penalty: d.penalty,
		Exempt: append(config.Prefixes(l.Exempt), config.Prefixes(l.Proxy)...),
	}
}

// protect gives a server its TLS.
func (d *daemon) protect(c *config.Config, l *config.Listen, o *smtp.Options) error {
	if !usesTLS(l) {
		return nil
	}
	store := d.vault.stores[storeOf(c, l)]
	if store == nil {
		return fmt.Errorf("listen.%s: its certificates were not read", l.Name)
	}
	p := policy(l)
	o.TLSReady = func() bool { return store.Ready(p) }
	var err error
	o.TLS, err = store.Config(p)
	return err
}

// relay is the policy of who may send where, with what closes its files.
func (d *daemon) relay(c *config.Config, l *config.Listen) (p *relay.Policy, done func(), err error) {
	done = func() {}
	o := relay.Options{
		Hostname: c.Hostname, Accepts: func(domain string) bool { return d.current.Load().Accepts(domain) }, Ours: d.ours,
		Rule: l.RelayRule(), BadMailFrom: c.BadMailFrom, LocalHost: first(c, "localiphost"), BareHost: first(c, "envnoathost"),
		LocalAddress: new(relay.Interfaces).Has,
	}
	if c.MoreHosts != "" {
		o.MoreHosts = moreHosts{d}
	}
	percent, _ := c.Files.Lines("percenthack")
	for _, line := range percent {
		o.PercentHack = append(o.PercentHack, line.Text)
	}
	if d.engine != nil {
		o.Lot = func(address string) string { return lotOf(d.engine.routeOf, address) }
	}
	if l.TCPRules != "" {
		file, err := rules.OpenTCPRules(l.TCPRules, rules.FileOptions{Changed: d.told("tcprules", l.TCPRules)})
		if err != nil {
			return nil, done, fmt.Errorf("listen.%s.tcprules: %w", l.Name, err)
		}
		o.TCPRules = file
		done = func() { file.Close() } //nolint:errcheck // it was only read
	}
	if p, err = relay.New(o); err != nil {
		done()
	}
	return p, done, err
}

// told logs that a file was read again, or could not be.
func (d *daemon) told(what, path string) func(error) {
	return func(err error) {
		if err != nil {
			d.log.Error("a file that changed cannot be used; what was read of it before stays in force", "what", what, "file", path, "error", err)
			return
		}
		d.log.Info("a file was read again", "what", what, "file", path)
	}
}

// transcripts gives the sessions that the rule matches a file each.
func (d *daemon) transcripts(c *config.Config, l *config.Listen) func(*pipeline.Session) io.WriteCloser {
	rule := l.TranscriptRule()
	if rule == nil {
		return nil
	}
	dir := filepath.Join(c.State, "transcripts")
	return func(s *pipeline.Session) io.WriteCloser {
		if ok, err := rule.Match(pipeline.FactsAt(&pipeline.Transaction{Session: s}, message.Message{})); !ok || err != nil {
			return nil
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			d.log.Error("no transcript", "error", err)
			return nil
		}
		f, err := os.OpenFile(filepath.Join(dir, s.ID+".txt"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			d.log.Error("no transcript", "error", err)
			return nil
		}
		return &bounded{f, maxTranscript}
	}
}

// maxTranscript bounds one transcript in bytes.
const maxTranscript = 1 << 20

// bounded writes so much and no more, and never fails.
type bounded struct {
	to   io.WriteCloser
	left int
}

// Write writes what there is room for.
func (b *bounded) Write(p []byte) (int, error) {
	if n := min(len(p), b.left); n > 0 {
		b.left -= n
		if _, err := b.to.Write(p[:n]); err != nil {
			b.left = 0
		}
	}
	return len(p), nil
}

// Close closes the file.
func (b *bounded) Close() error { return b.to.Close() }
