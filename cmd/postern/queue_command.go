package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/user"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

func queueCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "queue",
		Short: "Look at the queue and change it",
		Long:  "Look at the queue of the running daemon and change it.\n\n" + ruleHelp(),
	}
	c.AddCommand(
		queueListCommand(), queueShowCommand(), queueCountCommand(), queueSitesCommand(),
		changeCommand(&queueChanges[0]), changeCommand(&queueChanges[1]), changeCommand(&queueChanges[2]), changeCommand(&queueChanges[3]),
		queueVerifyCommand(),
	)
	return c
}

// ruleHelp explains --match with every fact that a rule may name.
func ruleHelp() string {
	var b strings.Builder
	b.WriteString("With --match a rule chooses messages, as in\n\n")
	b.WriteString("    --match 'sender_domain == \"example.org\" and age > duration(\"2h\")'\n")
	b.WriteString("    --match 'any(domains, indomain(#, \"example.com\")) and not held'\n")
	b.WriteString("    --match 'header(\"Subject\") contains \"lottery\"'\n\n")
	b.WriteString("A rule may name:\n\n")
	for _, f := range admin.QueueFacts().Facts() {
		fmt.Fprintf(&b, "    %-14s %s (%s)\n", f.Name, f.Doc, f.Type)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

const matchUsage = "a rule that chooses messages, see postern queue --help"

func queueListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "list",
		Short: "List the messages, oldest first",
		Long:  "List the messages, oldest first. With --json each message is one line with all its recipients.",
		Args:  cobra.NoArgs,
	}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON, a message a line")
	match := c.Flags().String("match", "", matchUsage)
	from := c.Flags().String("from", "", "the first id")
	most := c.Flags().Int("max", 100, "how many at most; 0 is all")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *most < 0 {
			return errors.New("--max: a number from 0 on")
		}
		client, err := dial()
		if err != nil {
			return err
		}
		q := admin.QueueQuery{From: *from, Match: *match, Max: *most}
		t := newQueueTable(c.OutOrStdout())
		put := t.add
		if *asJSON {
			put = func(m *api.QueueMessage) error { return printLine(c.OutOrStdout(), m) }
		} else {
			q.Recipients = 1
		}
		rest, err := client.Queue(c.Context(), q, put)
		if err = errors.Join(err, t.flush()); err != nil {
			return err
		}
		sayUndecided(c.ErrOrStderr(), rest.Undecided, rest.Why)
		if rest.Next != "" && !*asJSON {
			fmt.Fprintf(c.OutOrStdout(), "there is more: --from %s, or --max 0\n", rest.Next)
		}
		return nil
	}
	return c
}

// sayUndecided tells of messages for which a rule had no answer.
func sayUndecided(w io.Writer, n int, why string) {
	if n > 0 {
		fmt.Fprintf(w, "postern: the rule has no answer for %s, which %s left out: %s\n", plural(n, "message"), isAre(n), shown(why))
	}
}

func queueShowCommand() *cobra.Command {
	c := &cobra.Command{Use: "show ID", Short: "Show a message with its whole history", Args: cobra.ExactArgs(1)}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	head := c.Flags().Bool("head", false, "print the whole header")
	c.RunE = asking(dial, func(c *cobra.Command, args []string, client *admin.Client) error {
		m, err := client.QueueShow(c.Context(), args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printIndented(c.OutOrStdout(), m)
		}
		return printMessage(c.OutOrStdout(), &m, *head)
	})
	return c
}

func queueCountCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "count",
		Short: "Count messages and recipients",
		Long: `Count messages and recipients by status, domain, site, sender, channel or hold (who
holds them). Domains, sites and channels count recipients that are not done with.`,
		Args: cobra.NoArgs,
	}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	by := c.Flags().String("by", "status", strings.Join(admin.CountBy(), ", "))
	match := c.Flags().String("match", "", matchUsage)
	most := c.Flags().Int("max", 50, "how many names at most; 0 is 10,000")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *most < 0 {
			return errors.New("--max: a number from 0 on")
		}
		client, err := dial()
		if err != nil {
			return err
		}
		n, err := client.QueueCount(c.Context(), *by, *match, *most)
		if err != nil {
			return err
		}
		if *asJSON {
			return printIndented(c.OutOrStdout(), n)
		}
		sayUndecided(c.ErrOrStderr(), n.Undecided, n.Why)
		return printCounts(c.OutOrStdout(), &n)
	}
	return c
}

func queueSitesCommand() *cobra.Command {
	c := &cobra.Command{Use: "sites", Short: "List the sites that have mail or had some lately", Args: cobra.NoArgs}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		all, err := client.Sites(c.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printIndented(c.OutOrStdout(), all)
		}
		return printSites(c.OutOrStdout(), all)
	})
	return c
}

// queueChange is a command that changes messages.
type queueChange struct {
	name, did, short, long string
	reason                 bool // whether it takes --reason
}

// queueChanges are all of them.
var queueChanges = [...]queueChange{
	{name: "retry", did: "due now", short: "Try deferred recipients now", long: `Try deferred recipients now. After a restart they wait again as long as they had to.`},
	{
		name: "hold", did: "held", short: "Keep messages from being delivered", reason: true,
		long: `Keep messages from being delivered until they are released. Deliveries that are going on end.`,
	},
	{
		name: "release", did: "released", short: "Let held messages go",
		long: `Let held messages go that operators hold. What a filter holds is let go if it is named by
its ID, and goes into the queue without any further filter; neither a rule nor --all
chooses it, see postern quarantine release. Undeliverable messages that are held because
their sender must not be told are tried again.`,
	},
	{
		name: "delete", did: "deleted", short: "Remove messages for good",
		long: `Remove messages for good. Nobody is told. Deliveries that are going on cannot be called
back. A message that is damaged can be deleted by its id.`,
	},
}

const chooseHelp = `

Name the messages by ID, by a rule (--match; with IDs: those of them that match), or
all of them (--all). --dry-run tells what would be changed. The exit code is 1 if an
ID was not there, or not as it had to be.`

func changeCommand(ch *queueChange) *cobra.Command {
	c := &cobra.Command{Use: ch.name + " [ID...]", Short: ch.short, Long: ch.long + chooseHelp}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	s := api.QueueSelect{}
	c.Flags().StringVar(&s.Match, "match", "", matchUsage)
	c.Flags().BoolVar(&s.All, "all", false, "the whole queue")
	c.Flags().BoolVar(&s.DryRun, "dry-run", false, "change nothing, tell what would be changed")
	if ch.reason {
		c.Flags().StringVar(&s.Reason, "reason", "", "why, for whoever looks at the message")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		s.IDs, s.By = args, operator()
		if len(s.IDs) == 0 && s.Match == "" && !s.All {
			return errors.New("no message is named: give ids, --match with a rule, or --all")
		}
		client, err := dial()
		if err != nil {
			return err
		}
		return runChange(c.Context(), client, ch, s, *asJSON, c.OutOrStdout(), c.ErrOrStderr())
	}
	return c
}

func runChange(ctx context.Context, client *admin.Client, ch *queueChange, s api.QueueSelect, asJSON bool, stdout, stderr io.Writer) error {
	n, err := client.QueueChange(ctx, ch.name, s)
	if err != nil {
		return err
	}
	if asJSON {
		err = printIndented(stdout, n)
	} else {
		err = printChanged(stdout, ch, &n)
	}
	sayUndecided(stderr, n.Undecided, n.Why)
	if len(n.Missing) == 0 {
		return err
	}
	for _, id := range n.Missing {
		fmt.Fprintf(stderr, "postern: %s: not in the queue, or there is nothing to %s\n", id, ch.name)
	}
	return errors.Join(err, silent{})
}

// operator is who runs this command, for the daemon's log.
func operator() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}
