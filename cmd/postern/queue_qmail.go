package main

import (
	"bufio"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

func qstatCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "qstat",
		Short: "Count the messages in the queue, in qmail-qstat's words",
		Long:  "Count the messages in the queue, in qmail-qstat's words, for scripts that read them. No message\never waits to be preprocessed here.",
		Args:  cobra.NoArgs,
	}
	dial := clientFlags(c)
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		s, err := client.QueueStats(c.Context())
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "messages in queue: %d\nmessages in queue but not yet preprocessed: 0\n", s.Messages)
		return err
	})
	return c
}

func qreadCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "qread",
		Short: "List the queue in qmail-qread's format",
		Long: `List the queue in qmail-qread's format, for scripts that read it. A message's number is its
id in decimal; "postern queue" takes either. Recipients that leave by another channel
than local are remote.`,
		Args: cobra.NoArgs,
	}
	dial := clientFlags(c)
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		w := bufio.NewWriter(c.OutOrStdout())
		_, err := client.Queue(c.Context(), admin.QueueQuery{}, func(m *api.QueueMessage) error { return qread(w, m) })
		if err != nil {
			return err
		}
		return w.Flush()
	})
	return c
}

// qread writes a message as qmail-qread.c does: a line about it, then those of
// its local recipients, then those of the remote ones; whoever is done with is
// "done".
func qread(w io.Writer, m *api.QueueMessage) error {
	at, err := time.Parse(time.RFC3339, m.Arrival)
	if err != nil {
		return fmt.Errorf("%s: arrival: %w", m.ID, err)
	}
	bouncing := ""
	if m.Bouncing {
		bouncing = " bouncing"
	}
	b := fmt.Appendf(nil, "%s GMT  #%s  %d  <%s> %s\n", at.UTC().Format("2 Jan 2006 15:04:05"), m.Number, m.Size, qmailText(m.Sender), bouncing)
	for _, channel := range [...]string{localChannel, remoteChannel} {
		for i := range m.Recipients {
			r := &m.Recipients[i]
			if (r.Channel == localChannel) != (channel == localChannel) {
				continue
			}
			if r.Status == "delivered" || r.Status == "failed" {
				b = append(b, "  done"...)
			}
			b = fmt.Appendf(b, "\t%s\t%s\n", channel, qmailText(r.Address))
		}
	}
	_, err = w.Write(b)
	return err
}

// qmailText is a text as qmail-qread prints it: every byte that is not
// printable ASCII is an underscore.
func qmailText(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 32 || c > 126 {
			b[i] = '_'
		}
	}
	return string(b)
}
