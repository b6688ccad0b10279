package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/relay"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// explainFlags are what postern explain is told of a message's origin.
type explainFlags struct {
	config, from, ip, rdns, helo, user, chain, entrance string
	to, shadow                                          []string
	relay, json                                         bool
	// plugin is the one that is asked alone, "" for the whole chain; what it says
	// goes to log.
	plugin string
	log    *slog.Logger
	top    int
}

func explainCommand() *cobra.Command {
	var f explainFlags
	c := &cobra.Command{
		Use:   "explain [flags] MESSAGE | --shadow-report LOG [LOG...]",
		Short: "Say what the chain would do with a saved message, and why",
		Long: `Run the configured chain on a saved message (- for standard input) with the daemon's
own code and without side effects, and print stage by stage what each filter says, why,
how long it takes, what it changes, and what the sender would be answered. Programs of
yours that filters run (rcptcheck, qfilter, spp, plugins) are run, too, as nobody else
knows what they say; POSTERN_EXPLAIN=1 in their environment tells them that it is for
show, and what they do beside their answer is up to them.

With --ip the message comes from the network, else from a local user. It is a stranger's
unless --auth or --relay says otherwise, or, for an SMTP entrance, its own rules about
relaying.

With --shadow-report it reads logs of the daemon (text or JSON, also compressed with gzip;
- for standard input), and tells what the filters in shadow would have done, by filter and by
the sender's domain: how many messages each would have refused, deferred, quarantined,
discarded, accepted for good or changed, for how many the message's fate would have been
another (DIFFERS), what became of them in fact, and examples with their message ids. A filter
is in shadow by mode = "shadow", or since postern filter set NAME shadow. A message counts
once for each filter, by its most severe verdict. Sessions that end before a recipient is
named leave nothing to count.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(f.shadow) > 0 {
				return nil // they are further logs
			}
			return cobra.ExactArgs(1)(c, args)
		},
	}
	f.add(c)
	fl := c.Flags()
	fl.StringVar(&f.chain, "chain", "", "the chain to run (default: the entrance's, by who calls)")
	fl.StringArrayVar(&f.shadow, "shadow-report", nil, "tell what filters in shadow would have done, from this log of the daemon; may be repeated")
	fl.IntVar(&f.top, "top", 10, "how many senders a shadow report lists")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(f.shadow) > 0 {
			return runShadowReport(append(f.shadow, args...), max(f.top, 0), f.json, c.InOrStdin(), c.OutOrStdout())
		}
		return runExplain(c.Context(), f, args[0], c.InOrStdin(), c.OutOrStdout())
	}
	return c
}

// add adds the flags that say where a message comes from.
func (f *explainFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVarP(&f.config, "config", "c", defaultConfig, "the configuration file")
	fl.StringVar(&f.from, "from", "", "envelope sender; empty is the null sender")
	fl.StringArrayVar(&f.to, "to", nil, "envelope recipient; may be repeated")
	fl.StringVar(&f.ip, "ip", "", "the client's address")
	fl.StringVar(&f.rdns, "rdns", "", "the client's host name")
	fl.StringVar(&f.helo, "helo", "", "the name the client gives itself")
	fl.StringVar(&f.user, "auth", "", "the user who logged in")
	fl.BoolVar(&f.relay, "relay", false, "the client may relay (RELAYCLIENT)")
	fl.StringVar(&f.entrance, "entrance", "", "the entrance (default: the first one)")
	fl.BoolVar(&f.json, "json", false, "print JSON")
}

func runExplain(ctx context.Context, f explainFlags, file string, stdin io.Reader, out io.Writer) error {
	// Filters get a glance at the daemon's state and a secret only if we may read
	// it: what they remember and mark cannot change by being explained.
	env := pipeline.Env{Log: slog.New(slog.DiscardHandler), Now: time.Now, Secret: derive(nil)}
	c, err := config.Load(f.config, loadOptions(env))
	if err != nil {
		return fmt.Errorf("the configuration is wrong, see postern check:\n%w", err)
	}
	if env.Resolver, err = newResolver(c); err != nil {
		return err
	}
	pool := &workers{log: env.Log}
	defer pool.close()
	runs := newPrograms(env.Log)
	defer runs.close()
	runs.env = []string{forShow}
	if err := runs.instead(c); err != nil {
		return err
	}
	log := env.Log
	if f.log != nil {
		log = f.log
	}
	plugins, err := openCommandPlugins(runs, log)
	if err != nil {
		return err
	}
	defer plugins.close()
	env.Workers, env.Programs = pool, runs
	secret, noSecret := readSecret(c.State)
	if noSecret == nil {
		env.Secret = derive(secret)
	}
	o, seen := loadOptions(env), &glances{client: admin.NewClient(c.Admin.Socket)}
	o.State, o.Plugins = seen.state, plugins
	if c, err = config.Load(f.config, o); err != nil {
		return err
	}
	if f.plugin != "" {
		if f.chain, err = onlyPlugin(c, plugins, f.plugin); err != nil {
			return err
		}
	}
	tx, listen, err := f.transaction(c)
	if err != nil {
		return err
	}
	chain, closeChains, err := f.pick(c, tx.Session, listen)
	if err != nil {
		return err
	}
	defer closeChains()
	m, err := readExplained(file, stdin, c, listen)
	if err != nil {
		return err
	}
	defer m.Body().Release() //nolint:errcheck // it is in memory
	start := time.Now()
	outcome := chain.Run(ctx, tx, m)
	defer outcome.Release()
	x := explain(tx, chain, m, outcome, time.Since(start))
	x.handOn(listen, m, outcome)
	if err := seen.missed(); err != nil {
		x.Notes = append(x.Notes, fmt.Sprintf("what filters remember is not known here: %s", clean(err.Error())))
	}
	if noSecret != nil && !errors.Is(noSecret, fs.ErrNotExist) {
		x.Notes = append(x.Notes, fmt.Sprintf("marks made by the daemon are not known here: %s: run this as the daemon's user", clean(noSecret.Error())))
	}
	if f.json {
		return x.printJSON(out)
	}
	return x.print(out)
}

// transaction is the session and envelope that the flags describe.
func (f explainFlags) transaction(c *config.Config) (*pipeline.Transaction, *config.Listen, error) {
	listen, err := f.listen(c)
	if err != nil {
		return nil, nil, err
	}
	s := &pipeline.Session{
		ID: "explain", Entrance: listen.Name, Protocol: "qmail-queue", Start: time.Now(), Standing: pipeline.Local,
		PeerName: f.rdns, Helo: f.helo, User: f.user, UID: os.Getuid(), PID: os.Getpid(), Ours: c.Ours,
	}
	if f.ip != "" {
		a, err := netip.ParseAddr(f.ip)
		if err != nil {
			return nil, nil, fmt.Errorf("--ip %s: not an address", clean(f.ip))
		}
		s.Peer, s.UID, s.Standing = netip.AddrPortFrom(a.Unmap(), 0), -1, pipeline.Stranger
	}
	if listen.IsSMTP() {
		if err := admit(c, listen, s); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case f.user != "":
		s.Standing = pipeline.Authenticated
	case f.relay:
		s.Standing = pipeline.Relayed
	}
	if len(f.to) > c.Limits.Recipients {
		return nil, nil, fmt.Errorf("the message would be refused before any filter sees it: %s (exit %d)", reply.TooManyRecipients.SMTP(), reply.TooManyRecipients.QueueExit())
	}
	for _, a := range append([]string{f.from}, f.to...) {
		if len(a) > envelope.MaxAddress || !envelope.ValidBytes(a) {
			return nil, nil, fmt.Errorf("address <%s>: %s", clean(a), reply.BadAddress.Words())
		}
	}
	return &pipeline.Transaction{ID: "explain", Session: s, Envelope: envelope.To(f.from, f.to...)}, listen, nil
}

// admit gives a session what an SMTP entrance knows of it.
func admit(c *config.Config, l *config.Listen, s *pipeline.Session) error {
	s.Protocol, s.UID, s.PID = "smtp", -1, 0
	if l.Service == "lmtp" {
		s.Protocol, s.AnswersEach = "lmtp", true
	}
	if !s.Peer.IsValid() {
		s.Standing = pipeline.Stranger // nobody is local to it
	}
	o := relay.Options{Hostname: c.Hostname, Rule: l.RelayRule()}
	if l.TCPRules != "" {
		file, err := rules.OpenTCPRules(l.TCPRules, rules.FileOptions{})
		if err != nil {
			return fmt.Errorf("listen.%s.tcprules: %w", l.Name, err)
		}
		defer file.Close()
		o.TCPRules = file
	}
	p, err := relay.New(o)
	if err != nil {
		return err
	}
	standing, env, err := p.Admit(context.Background(), s)
	if err != nil {
		return fmt.Errorf("the client would be refused before any filter sees it: %s: %w", reply.Of(err).SMTP(), err)
	}
	s.Standing, s.Env = standing, env
	return nil
}

func (f explainFlags) listen(c *config.Config) (*config.Listen, error) {
	var names []string // of those by which mail comes in
	for _, name := range sortedKeys(c.Listen) {
		if !c.Listen[name].IsRemote() {
			names = append(names, name)
		}
	}
	if f.entrance == "" && len(names) > 0 {
		return c.Listen[names[0]], nil
	}
	if slices.Contains(names, f.entrance) {
		return c.Listen[f.entrance], nil
	}
	return nil, fmt.Errorf("there is no entrance %q; the configuration has %v", f.entrance, names)
}

// pick makes the configured chains and finds the one to run.
func (f explainFlags) pick(c *config.Config, s *pipeline.Session, l *config.Listen) (*pipeline.Chain, func(), error) {
	name := f.chain
	if name == "" {
		name = l.Local
		if s.Peer.IsValid() {
			name = l.Chain
		}
	}
	chains, err := c.Chains(nil, 0)
	if err != nil {
		return nil, nil, err
	}
	closeAll := func() {
		for _, chain := range chains {
			chain.Close() //nolint:errcheck // nothing depends on it
		}
	}
	for _, chain := range chains {
		if chain.Name() == name {
			return chain, closeAll, nil
		}
	}
	closeAll()
	return nil, nil, fmt.Errorf("there is no chain %q; the configuration has %v", name, sortedKeys(c.Chain))
}

// readExplained reads the message within the limits of an entrance.
func readExplained(file string, stdin io.Reader, c *config.Config, l *config.Listen) (message.Message, error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return message.Message{}, err
		}
		defer f.Close()
		in = f
	}
	m, err := message.Read(in, message.Options{Lines: l.Lines, MaxSize: c.Limits.Message, MaxHead: int(c.Limits.Head), MaxFields: c.Limits.Fields})
	var known *reply.Error
	if errors.As(err, &known) {
		return m, fmt.Errorf("the message would be refused before any filter sees it: %s (exit %d): %w", known.Reply.SMTP(), known.Reply.QueueExit(), err)
	}
	return m, err
}
