package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/queue/limit"
)

func siteCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "site",
		Short: "Look at the limits of what is sent, and change them for a while",
		Long: `Look at the limits of what is sent to other servers, and change them for a while.

A site is the hosts that take a domain's mail, so that all their domains share what these
hosts are given. Limits count for a site, its provider, the groups of the configuration,
the address connected to and our own; the tightest binds. Below them each site has a limit
that follows what its servers answer.`,
	}
	c.AddCommand(siteListCommand(), siteShowCommand(), siteExplainCommand(), siteSourcesCommand(), siteProvidersCommand())
	for i := range siteChanges {
		c.AddCommand(siteChangeCommand(&siteChanges[i]))
	}
	return c
}

// siteChoice is which sites are listed, and in what order.
type siteChoice struct {
	suspended, limited bool
	provider, sort     string
}

// siteOrders are the orders of a list of sites.
var siteOrders = map[string]func(a, b *api.SiteState) int{
	"name":   func(*api.SiteState, *api.SiteState) int { return 0 }, // as they come
	"queued": func(a, b *api.SiteState) int { return cmp.Compare(b.Queued, a.Queued) },
	"open":   func(a, b *api.SiteState) int { return cmp.Compare(b.Connections, a.Connections) },
}

// of are those sites and words of operators that are chosen.
func (c *siteChoice) of(all []api.SiteState, held []api.SiteHeld) ([]api.SiteState, []api.SiteHeld, error) {
	order, ok := siteOrders[c.sort]
	if !ok {
		return nil, nil, fmt.Errorf("--sort %s: use name, queued or open", clean(c.sort))
	}
	sites, words := []api.SiteState{}, []api.SiteHeld{}
	for i := range all {
		s := &all[i]
		suspended := s.Binding != nil && s.Binding.What == suspendedWhat
		if c.provider != "" && s.Provider != c.provider || (c.suspended || c.limited) && !(c.suspended && suspended || c.limited && isLimited(s, held)) {
			continue
		}
		sites = append(sites, *s)
	}
	slices.SortStableFunc(sites, func(a, b api.SiteState) int { return order(&a, &b) })
	for _, h := range held {
		kind := !c.suspended && !c.limited || c.suspended && h.Suspended || c.limited && !h.Suspended
		about := c.provider == "" || h.Level == limit.Provider.String() && h.Name == c.provider ||
			slices.ContainsFunc(sites, func(s api.SiteState) bool { return countsFor(&s, &h) })
		if kind && about {
			words = append(words, h)
		}
	}
	return sites, words, nil
}

func siteListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "list",
		Short: "List the sites that mail was sent to lately, and what operators have said",
		Long: `List the sites that mail was sent to lately, with what was found out about them: the
connections that are open, those that there may be, the number that worked when the
server last refused one (the ceiling), the messages in a time, the recipients that wait, and
what keeps the next connection now, or what the server has answered. Below them stands what
operators have said with postern site limit and suspend.

A site with many hosts is told by the first of them, and long answers are cut; --wide and
--json have all of it, and so has postern site explain.`,
		Args: cobra.NoArgs,
	}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	wide := c.Flags().Bool("wide", false, "print names and reasons in full")
	var chosen siteChoice
	c.Flags().BoolVar(&chosen.suspended, "suspended", false, "only what nothing is sent to")
	c.Flags().BoolVar(&chosen.limited, "limited", false, "only what gets less than is configured, for its answers or by an operator, or is kept by a limit now; with --suspended either")
	c.Flags().StringVar(&chosen.provider, "provider", "", "only the sites of this provider")
	c.Flags().StringVar(&chosen.sort, "sort", "name", "the order: name, queued (the most first) or open (the most first)")
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		all, err := client.SiteStates(c.Context())
		if err != nil {
			return err
		}
		held, err := client.SiteHeld(c.Context())
		if err != nil {
			return err
		}
		if all, held, err = chosen.of(all, held); err != nil {
			return err
		}
		if *asJSON {
			return printIndented(c.OutOrStdout(), struct {
				Sites []api.SiteState `json:"sites"`
				Held  []api.SiteHeld  `json:"held"`
			}{all, held})
		}
		return printSiteStates(c.OutOrStdout(), all, held, *wide, time.Now())
	})
	return c
}

func siteShowCommand() *cobra.Command {
	return explaining("show DOMAIN|SITE", "Show a domain's site: hosts, addresses, groups, and what waits for it",
		`Show the site of a domain, or one that postern site list tells: its hosts and their addresses,
the provider and the groups that it is in, what waits for it, what was found out about it, and
servers that do not answer, with until when they are passed over. See postern site explain for
the limits.`,
		printSite)
}

func siteExplainCommand() *cobra.Command {
	return explaining("explain DOMAIN|SITE", "Say which limits count for a domain, where they come from, and which binds now",
		`Say everything that decides about mail for a domain now: its site, hosts and addresses, what
keeps the next connection or message, since when and why, and what can be done about it; each
limit with where it comes from (the configuration's line, the shipped table, a default, or an
operator), the tightest one (marked with >, or * if it keeps the next one now); what was found
out from the servers' answers and which answers moved it; servers that do not answer, and
suspensions with their reason and end. Instead of a domain there may be a site as postern site
list has it. Nothing is changed by asking.`,
		printSiteExplanation)
}

func explaining(use, short, long string, write func(io.Writer, *api.SiteExplanation, time.Time) error) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1)}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	c.RunE = asking(dial, func(c *cobra.Command, args []string, client *admin.Client) error {
		e, err := client.SiteExplain(c.Context(), args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printIndented(c.OutOrStdout(), e)
		}
		return write(c.OutOrStdout(), &e, time.Now())
	})
	return c
}

func siteSourcesCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "sources",
		Short: "List the addresses that mail leaves from",
		Long: `List the addresses of ours that mail leaves from: the name that each gives in EHLO, the pools
that it is in, its open connections, the day of its warm-up and how many messages it may
send today to each provider, and below them where nothing leaves from it now, with the
reason and the end. See postern site explain for what a domain's mail may leave from.`,
		Args: cobra.NoArgs,
	}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		all, err := client.Sources(c.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printIndented(c.OutOrStdout(), all)
		}
		return printSources(c.OutOrStdout(), all)
	})
	return c
}

func siteProvidersCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "providers",
		Short: "List the known providers with their limits",
		Long: `List the known providers with the limits that all their sites share, as the configuration
leaves them: the table that comes with Postern, and what [provider.NAME] puts in its place.`,
		Args: cobra.NoArgs,
	}
	file := configFlag(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		conf, err := config.Load(*file, loadOptions(quietEnv()))
		if err != nil {
			return fmt.Errorf("the configuration is wrong, see postern check:\n%w", err)
		}
		all := []api.Provider{}
		for _, p := range conf.Providers() {
			all = append(all, api.Provider{Name: p.Name, Match: p.Match, SiteBounds: boundsText(p.Bounds), Source: p.Source})
		}
		if *asJSON {
			return printIndented(c.OutOrStdout(), all)
		}
		return printProviders(c.OutOrStdout(), all)
	}
	return c
}

// siteChange is a command that changes limits.
type siteChange struct {
	name, short, long string
	limits, lasts     bool // whether it takes limits, and a time and reason
}

var siteChanges = [...]siteChange{
	{name: "limit", short: "Put limits over the configured ones for a while", limits: true, lasts: true, long: `Put limits over the configured ones, for --for or until postern site resume. What is not given
stays as it is configured. It takes the place of an earlier limit or suspension. It is written
down before the command ends, and a restart of the daemon changes nothing.`},
	{name: "suspend", short: "Send nothing for a while", lasts: true, long: `Send nothing, for --for or until postern site resume. Connections that are open end as they
would; mail waits in the queue, and no attempt is counted. It is written down before the
command ends, and a restart of the daemon changes nothing.`},
	{name: "resume", short: "Take back a limit or a suspension, also those that answers brought", long: `Take back what postern site limit or suspend did and, for a domain or site, the suspensions
that its servers' answers brought.`},
	{name: "forget", short: "Forget what was found out about a site", long: `Forget what was found out about a domain's site: its limits begin anew, as far as no connection
is open, servers of it that did not answer are not passed over any more, and the DNS is asked
again about the domain and its hosts, so that a changed MX is seen at once. What was forgotten
is told. Of an address only that it did not answer is known.`},
}

const changeSiteHelp = `

NAME is a domain, and its site is meant. With --as it is a site, a provider, a group (a table
[site.NAME]), an address or a source.`

func siteChangeCommand(ch *siteChange) *cobra.Command {
	c := &cobra.Command{Use: ch.name + " NAME", Short: ch.short, Long: ch.long + changeSiteHelp, Args: cobra.ExactArgs(1)}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	s := api.SiteChange{}
	fl := c.Flags()
	fl.StringVar(&s.Level, "as", "domain", "what NAME is: domain, site, provider, group, address or source")
	var forTime string
	if ch.lasts {
		fl.StringVar(&forTime, "for", "", "for how long, like 2h or 1d; nothing is until postern site resume")
		fl.StringVar(&s.Reason, "reason", "", "why, for whoever looks at it")
	}
	if ch.limits {
		fl.StringVar(&s.Connections, "connections", "", "the most connections at a time, or none")
		fl.StringVar(&s.ConnectionRate, "connection-rate", "", "the most new connections in a time, like 100/min, or none")
		fl.StringVar(&s.MessageRate, "message-rate", "", "the most messages in a time, like 10/s, or none")
		fl.StringVar(&s.MessagesPerConnection, "messages-per-connection", "", "the most messages over one connection, or none")
		fl.StringVar(&s.RecipientsPerConnection, "recipients-per-connection", "", "the most recipients over one connection, or none")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		s.Name, s.By = args[0], operator()
		if forTime != "" {
			d, err := config.ParseDuration(forTime)
			if err != nil || d < time.Second {
				return fmt.Errorf("--for %s: write a time of a second or more, like 2h or 1d", clean(forTime))
			}
			s.For = int64(d / time.Second)
		}
		if ch.limits && s.SiteBounds == (api.SiteBounds{}) {
			return errors.New("no limit is given: see --connections, --connection-rate, --message-rate, --messages-per-connection and --recipients-per-connection")
		}
		client, err := dial()
		if err != nil {
			return err
		}
		done, err := client.SiteChange(c.Context(), ch.name, s)
		if err != nil {
			return err
		}
		write := func() error { return printSiteChanged(c.OutOrStdout(), ch, &done) }
		if *asJSON {
			write = func() error { return printIndented(c.OutOrStdout(), done) }
		}
		if err := write(); err != nil {
			return err
		}
		return errUnkept(&done)
	}
	return c
}

// changedWords say what a change did, and what if there was nothing to do.
var changedWords = map[string][2]string{
	"limit": {"is limited"}, "suspend": {"is suspended"},
	"resume": {"goes on", "was neither limited nor suspended by anybody"}, "forget": {"is forgotten", "is not known, or has connections open: nothing is forgotten"},
}

func printSiteChanged(w io.Writer, ch *siteChange, done *api.SiteChanged) error {
	words := changedWords[ch.name]
	said := words[0]
	switch {
	case !done.Changed:
		said = words[1]
	case !ch.lasts:
	case done.Until == "":
		said += " until postern site resume"
	default:
		said += " until " + done.Until
	}
	if _, err := fmt.Fprintf(w, "%s %s %s\n", done.Level, clean(done.Name), said); err != nil {
		return err
	}
	return printForgotten(w, done.Forgotten)
}

// errUnkept says that a change will not outlive a restart, if that is so.
func errUnkept(done *api.SiteChanged) error {
	if done.Unkept == "" {
		return nil
	}
	return fmt.Errorf("this holds, but it could not be written down, and a restart of the daemon will forget it: %s", clean(done.Unkept))
}

// printForgotten tells what was forgotten.
func printForgotten(w io.Writer, f *api.SiteForgotten) error {
	if f == nil {
		return nil
	}
	var all []string
	if f.Learned > 0 {
		all = append(all, "what its answers have taught")
	}
	if len(f.Silent) > 0 {
		all = append(all, "that it did not answer: "+clean(strings.Join(f.Silent, ", ")))
	}
	if f.Answers > 0 {
		all = append(all, plural(f.Answers, "answer")+" of the DNS: "+clean(strings.Join(f.Names, ", ")))
	}
	for _, line := range all {
		if _, err := fmt.Fprintln(w, "  "+line); err != nil {
			return err
		}
	}
	return nil
}
