package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os/user"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/filters/greylist"
)

func greylistCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "greylist",
		Short: "Show and change whom the filter greylist remembers",
		Long: `Show and change what the filter greylist of the running daemon remembers: triplets of client,
sender and recipient that are waiting or have passed, and clients that are known.`,
	}
	c.AddCommand(greylistListCommand(), greylistAllowCommand(), greylistForgetCommand())
	return c
}

// remembering adds the flags of a command that asks what a filter remembers.
func remembering(c *cobra.Command, name string) func() (*admin.ClientSpace, error) {
	dial := clientFlags(c)
	filter := c.Flags().String("filter", name, "the filter's name in the configuration")
	return func() (*admin.ClientSpace, error) {
		client, err := dial()
		if err != nil {
			return nil, err
		}
		by := "unknown"
		if u, err := user.Current(); err == nil {
			by = u.Username
		}
		return client.State(*filter, by), nil
	}
}

// selecting adds the flags that select entries.
func selecting(c *cobra.Command) *greylist.Selection {
	s := &greylist.Selection{}
	c.Flags().StringVar(&s.Client, "client", "", "of this client: an address, a network or a domain")
	c.Flags().StringVar(&s.Sender, "sender", "", "of senders with this in their address")
	c.Flags().StringVar(&s.Recipient, "recipient", "", "of recipients with this in their address")
	c.Flags().StringVar(&s.Kind, "kind", "", "waiting, passed, client or allowed")
	return s
}

// greylistEntry is an entry as JSON has it.
type greylistEntry struct {
	Kind      string `json:"kind"`
	Client    string `json:"client"`
	Sender    string `json:"sender"`
	Recipient string `json:"recipient,omitempty"`
	Good      int    `json:"good,omitempty"`
	First     string `json:"first"`
	Last      string `json:"last"`
	// Left is in seconds.
	Left int64 `json:"left"`
}

func greylistListCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List what is remembered", Args: cobra.NoArgs,
		Long: `List what is remembered: triplets that are waiting or have passed, clients of which some have
come back, and those that were allowed. Senders are shown as they count, a # for each word
that changes.`,
	}
	open, s := remembering(c, greylist.Name), selecting(c)
	asJSON := c.Flags().Bool("json", false, "print JSON, an entry a line")
	most := c.Flags().Int("max", 1000, "how many are listed; 0: all")
	c.RunE = func(c *cobra.Command, _ []string) error {
		space, err := open()
		if err != nil {
			return err
		}
		t := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
		lines := json.NewEncoder(c.OutOrStdout())
		lines.SetEscapeHTML(false)
		if !*asJSON {
			fmt.Fprintln(t, "KIND\tCLIENT\tSENDER\tRECIPIENT\tGOOD\tFIRST\tLAST\tLEFT")
		}
		n := 0
		var broken error
		err = greylist.List(c.Context(), space, *s, func(e greylist.Entry) bool {
			n++
			if *asJSON {
				broken = lines.Encode(greylistEntry{
					e.Kind, e.Client, e.Sender, e.Recipient, e.Good, stamped(e.First), stamped(e.Last), int64(e.Left / time.Second),
				})
			} else {
				_, broken = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n",
					e.Kind, clean(e.Client), party(e, e.Sender), party(e, e.Recipient), e.Good, stamped(e.First), stamped(e.Last), e.Left)
			}
			return broken == nil && (*most == 0 || n < *most)
		})
		return errors.Join(err, broken, t.Flush())
	}
	return c
}

// party is a triplet's address as a table shows it.
func party(e greylist.Entry, address string) string {
	if e.Kind == greylist.Client || e.Kind == greylist.Allowed {
		return "-"
	}
	return cmp.Or(clean(address), "<>")
}

func stamped(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func greylistAllowCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "allow CLIENT", Short: "Have all mail of a client pass", Args: cobra.ExactArgs(1),
		Long: `Have all mail of a client pass the filter, for --for. CLIENT is an address (meant is its /24 or /64),
a network as long as the filter cuts them, or, where the filter has client = "name", the registrable
domain of its host names. For good, write networks or senders into the configuration.`,
	}
	open := remembering(c, greylist.Name)
	ttl := c.Flags().Duration("for", 36*24*time.Hour, "for how long, like 720h")
	c.RunE = func(c *cobra.Command, args []string) error {
		space, err := open()
		if err != nil {
			return err
		}
		name, err := greylist.Allow(c.Context(), space, args[0], time.Now(), *ttl)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s passes until %s\n", clean(name), stamped(time.Now().Add(*ttl)))
		return nil
	}
	return c
}

func greylistForgetCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "forget", Short: "Forget what is remembered", Args: cobra.NoArgs,
		Long: `Forget what the flags select, of all that they say; --all forgets everything. Mail that was
known is new then, and waits.`,
	}
	open, s := remembering(c, greylist.Name), selecting(c)
	all := c.Flags().Bool("all", false, "everything")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if (*s == greylist.Selection{}) != *all {
			return errors.New("say what to forget with --client, --sender, --recipient or --kind, or else --all")
		}
		space, err := open()
		if err != nil {
			return err
		}
		n, err := greylist.Forget(c.Context(), space, *s)
		fmt.Fprintf(c.OutOrStdout(), "%d forgotten\n", n)
		return err
	}
	return c
}
