package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/filters/ratelimit"
)

func ratelimitCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ratelimit",
		Short: "Show and forget what the filter ratelimit has counted",
		Long: `Show and forget what the filter ratelimit of the running daemon has counted lately: messages,
recipients, bytes and attempts, for each limit and for each sender, user or client that it counts by.`,
	}
	c.AddCommand(ratelimitListCommand(), ratelimitForgetCommand())
	return c
}

// counted adds the flags that select what was counted.
func counted(c *cobra.Command) *ratelimit.Selection {
	s := &ratelimit.Selection{}
	c.Flags().StringVar(&s.Limit, "limit", "", "under this limit, by its name, like user/1h")
	c.Flags().StringVar(&s.Subject, "subject", "", "of subjects with this in them, or of an address and its network")
	return s
}

// ratelimitEntry is an entry as JSON has it; times are in seconds.
type ratelimitEntry struct {
	Limit      string  `json:"limit"`
	Subject    string  `json:"subject"`
	Per        float64 `json:"per"`
	Messages   uint64  `json:"messages"`
	Recipients uint64  `json:"recipients"`
	Bytes      uint64  `json:"bytes"`
	Attempts   uint64  `json:"attempts"`
	Last       string  `json:"last"`
	Left       int64   `json:"left"`
}

func ratelimitListCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List what has been counted", Args: cobra.NoArgs,
		Long: `List what has been counted within each limit's time, by limit and subject. What has gone by
is not listed.`,
	}
	open, s := remembering(c, ratelimit.Name), counted(c)
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
			fmt.Fprintln(t, "LIMIT\tSUBJECT\tPER\tMESSAGES\tRECIPIENTS\tBYTES\tATTEMPTS\tLAST\tLEFT")
		}
		n := 0
		var broken error
		err = ratelimit.List(c.Context(), space, *s, time.Now(), func(e ratelimit.Entry) bool {
			n++
			if *asJSON {
				broken = lines.Encode(ratelimitEntry{
					e.Limit, e.Subject, e.Per.Seconds(), e.Messages, e.Recipients, e.Bytes, e.Attempts, stamped(e.Last), int64(e.Left / time.Second),
				})
			} else {
				_, broken = fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n",
					clean(e.Limit), clean(e.Subject), e.Per, e.Messages, e.Recipients, e.Bytes, e.Attempts, stamped(e.Last), e.Left.Round(time.Second))
			}
			return broken == nil && (*most == 0 || n < *most)
		})
		return errors.Join(err, broken, t.Flush())
	}
	return c
}

func ratelimitForgetCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "forget", Short: "Forget what has been counted", Args: cobra.NoArgs,
		Long: `Forget what the flags select, of all that they say; --all forgets everything. Who has used up
a limit may begin anew then.`,
	}
	open, s := remembering(c, ratelimit.Name), counted(c)
	all := c.Flags().Bool("all", false, "everything")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if (*s == ratelimit.Selection{}) != *all {
			return errors.New("say what to forget with --limit or --subject, or else --all")
		}
		space, err := open()
		if err != nil {
			return err
		}
		n, err := ratelimit.Forget(c.Context(), space, *s, time.Now())
		fmt.Fprintf(c.OutOrStdout(), "%d forgotten\n", n)
		return err
	}
	return c
}
