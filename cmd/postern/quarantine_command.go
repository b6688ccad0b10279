package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

func quarantineCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "quarantine",
		Short: "Look at what filters hold, and let it go on or delete it",
		Long: `Look at the messages that filters of the running daemon hold, and let them go on or
delete them. A message in quarantine was taken from its sender, who is not told. It is kept
for quarantine.retention. What an operator holds is not in quarantine, see postern queue.

With --rule a rule chooses messages, as in

    --rule 'hold_filter == "clamav" and age > duration("2h")'
    --rule 'hold_reason contains "macro" and indomain(sender_domain, "example.com")'

It may name what postern queue --help lists; hold_filter and hold_reason are who holds a
message and why.`,
	}
	c.AddCommand(quarantineListCommand(), quarantineShowCommand(), quarantineReleaseCommand(), quarantineDeleteCommand())
	return c
}

const ruleUsage = "a rule that chooses messages, see postern quarantine --help"

// ruleFlag adds --rule, which may be called --match as postern queue has it.
func ruleFlag(c *cobra.Command) *string {
	rule := c.Flags().String("rule", "", ruleUsage)
	c.Flags().StringVar(rule, "match", "", ruleUsage)
	c.Flags().MarkHidden("match") //nolint:errcheck // it is there
	return rule
}

func quarantineListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "list",
		Short: "List the messages in quarantine, oldest first",
		Long:  "List the messages in quarantine, oldest first. With --json each message is one line with all its recipients.",
		Args:  cobra.NoArgs,
	}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON, a message a line")
	rule := ruleFlag(c)
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
		q := admin.QueueQuery{From: *from, Match: *rule, Max: *most}
		t := &quarantineTable{t: tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)}
		put := t.add
		if *asJSON {
			put = func(m *api.QueueMessage) error { return printLine(c.OutOrStdout(), m) }
		} else {
			q.Recipients = 1
		}
		rest, err := client.Quarantine(c.Context(), q, put)
		if err = errors.Join(err, t.t.Flush()); err != nil {
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

// quarantineTable prints messages as they come.
type quarantineTable struct {
	t *tabwriter.Writer
	n int
}

func (q *quarantineTable) add(m *api.QueueMessage) error {
	if q.n == 0 {
		fmt.Fprintln(q.t, "ID\tSINCE\tSIZE\tFILTER\tREASON\tFROM\tTO")
	}
	if q.n++; q.n%tableRows == 0 {
		if err := q.t.Flush(); err != nil {
			return err
		}
	}
	to := "-"
	if len(m.Recipients) > 0 {
		to = "<" + shown(m.Recipients[0].Address) + ">"
	}
	if m.Total > 1 {
		to += fmt.Sprintf(" and %d more", m.Total-1)
	}
	_, err := fmt.Fprintf(q.t, "%s\t%s\t%s\t%s\t%s\t<%s>\t%s\n",
		m.ID, ago(m.Hold.Since, nowOf(m)), amount(m.Size), shown(m.Hold.Filter), cut(shown(m.Hold.Reason), 60), shown(m.Sender), to)
	return err
}

func quarantineShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show a message in quarantine: envelope, reason, filter, trace and header, or the message itself",
		Args:  cobra.ExactArgs(1),
	}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	short := c.Flags().Bool("short", false, "print only the usual fields of the header")
	raw := c.Flags().Bool("raw", false, "print the message as it is stored and nothing else: it may be dangerous")
	c.RunE = asking(dial, func(c *cobra.Command, args []string, client *admin.Client) error {
		if *raw {
			return client.QuarantineRaw(c.Context(), args[0], c.OutOrStdout())
		}
		m, err := client.QuarantineShow(c.Context(), args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printIndented(c.OutOrStdout(), m)
		}
		return printMessage(c.OutOrStdout(), &m, !*short)
	})
	return c
}

// selectFlags adds what chooses messages.
func selectFlags(c *cobra.Command) func(ids []string) (api.QueueSelect, error) {
	rule := ruleFlag(c)
	all := c.Flags().Bool("all", false, "everything in quarantine")
	dry := c.Flags().Bool("dry-run", false, "change nothing, tell what would be changed")
	return func(ids []string) (api.QueueSelect, error) {
		s := api.QueueSelect{IDs: ids, Match: *rule, All: *all, DryRun: *dry, By: operator()}
		if len(ids) == 0 && *rule == "" && !*all {
			return s, errors.New("no message is named: give ids, --rule with a rule, or --all")
		}
		return s, nil
	}
}

const chooseQuarantined = `

Name the messages by ID, by a rule (--rule; with IDs: those of them that match), or
all of them (--all).`

func quarantineReleaseCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "release [ID...]",
		Short: "Let messages go on behind the filter that holds them",
		Long: `Let messages go on: through today's chain of the entrance by which each came, behind the
filter that holds it; with --from beginning with the filter of that name, and with --deliver
without any filter. Then they are queued as new messages, with a whole lifetime before
them, or handed to the next program of that entrance, which runs as quarantine.user and
must exit with 0.

What a later filter refuses, puts off or discards stays in quarantine, with its reason, and
what it quarantines is held for that. Filters marked always judge as in the chain. Filters
that judge before the message, by its client or its recipients, are not asked again. What
a filter of the chain delivery holds has been through its entrance's chain: --deliver has
it leave again. With --dry-run no filter is asked at all. The exit code is 1 if anything that was named stays.` + chooseQuarantined,
	}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	choose := selectFlags(c)
	r := api.QuarantineRelease{}
	c.Flags().StringVar(&r.From, "from", "", "the filter to go on with")
	c.Flags().BoolVar(&r.Deliver, "deliver", false, "no filter is asked any more")
	c.MarkFlagsMutuallyExclusive("from", "deliver")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		if r.QueueSelect, err = choose(args); err != nil {
			return err
		}
		client, err := dial()
		if err != nil {
			return err
		}
		a, err := client.QuarantineRelease(c.Context(), r)
		if err != nil {
			return err
		}
		if *asJSON {
			err = printIndented(c.OutOrStdout(), a)
		} else {
			err = printReleased(c.OutOrStdout(), &a)
		}
		sayUndecided(c.ErrOrStderr(), a.Undecided, a.Why)
		for _, id := range a.Missing {
			fmt.Fprintf(c.ErrOrStderr(), "postern: %s: not in quarantine\n", id)
		}
		if a.Held+a.Partly+len(a.Missing) > 0 {
			return errors.Join(err, silent{})
		}
		return err
	}
	return c
}

// printReleased says what became of messages that were to go on.
func printReleased(w io.Writer, a *api.QuarantineReleased) error {
	var b strings.Builder
	would := ""
	if a.DryRun {
		would = "would be "
	}
	fmt.Fprintf(&b, "%sreleased: %s", would, plural(a.Released, "message"))
	if a.Partly > 0 {
		fmt.Fprintf(&b, "; in part: %d", a.Partly)
	}
	if a.Held > 0 {
		fmt.Fprintf(&b, "; still held: %d", a.Held)
	}
	b.WriteString("\n")
	for i := range a.Messages {
		printResult(&b, &a.Messages[i], a.DryRun)
	}
	if n := a.Released + a.Partly + a.Held - len(a.Messages); n > 0 {
		fmt.Fprintf(&b, "  and %d more\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printResult(b *strings.Builder, r *api.QuarantineResult, dry bool) {
	fmt.Fprintf(b, "  %s: ", r.ID)
	switch {
	case r.Error != "":
		fmt.Fprintf(b, "nothing was done: %s\n", shown(r.Error))
		return
	case dry:
		through := "through no filter"
		if len(r.Filters) > 0 {
			through = "through " + shown(strings.Join(r.Filters, ", "))
		}
		fmt.Fprintf(b, "%s, %s, to %s\n", plural(r.Recipients, "recipient"), through, shown(r.To))
		return
	case r.Gone == 0:
		b.WriteString("still held")
	default:
		fmt.Fprintf(b, "%d of %s to %s", r.Gone, plural(r.Recipients, "recipient"), shown(r.To))
	}
	if len(r.As) > 0 {
		fmt.Fprintf(b, ", as %s", strings.Join(r.As, ", "))
	}
	if r.Copies > 0 {
		fmt.Fprintf(b, ", with %d further from filters", r.Copies)
	}
	b.WriteString("\n")
	if r.Warning != "" {
		fmt.Fprintf(b, "    beware: %s\n", shown(r.Warning))
	}
	for _, h := range r.Held {
		to := "<" + shown(h.Recipients[0]) + ">"
		if n := h.Total; n > 1 {
			to += fmt.Sprintf(" and %d more", n-1)
		}
		fmt.Fprintf(b, "    %s: %s by %s: %s\n", to, doneBy[h.Action], shown(h.Filter), shown(h.Reason))
	}
}

// doneBy says what a filter did to a message that is held still.
var doneBy = map[string]string{"reject": "refused", "defer": "put off", "discard": "would be discarded", "quarantine": "quarantined"}

func quarantineDeleteCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "delete [ID...]",
		Short: "Remove messages in quarantine for good",
		Long:  "Remove messages in quarantine for good. Nobody is told." + chooseQuarantined + " The exit code is 1 if an ID is not in quarantine.",
	}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	choose := selectFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := choose(args)
		if err != nil {
			return err
		}
		client, err := dial()
		if err != nil {
			return err
		}
		n, err := client.QuarantineDelete(c.Context(), s)
		if err != nil {
			return err
		}
		if *asJSON {
			err = printIndented(c.OutOrStdout(), n)
		} else {
			err = printChanged(c.OutOrStdout(), &queueChange{name: "delete", did: "deleted"}, &n)
		}
		sayUndecided(c.ErrOrStderr(), n.Undecided, n.Why)
		for _, id := range n.Missing {
			fmt.Fprintf(c.ErrOrStderr(), "postern: %s: not in quarantine\n", id)
		}
		if len(n.Missing) > 0 {
			return errors.Join(err, silent{})
		}
		return err
	}
	return c
}
