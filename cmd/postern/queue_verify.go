package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
)

func queueVerifyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check the queue",
		Long: `Check what must hold of the queue on disk: nothing is halved, nothing is left behind,
every record can be read. A running daemon does it while mail goes on, and checks its
memory too: the schedule of deliveries does not contradict itself and agrees with the
disk. Without a daemon this command opens the queue itself, which removes what a crash
left behind, as a start of the daemon would.

The exit code is 1 if anything is wrong. A message that is damaged is set aside by
the daemon; postern queue delete ID removes it.`,
		Args: cobra.NoArgs,
	}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		v, err := client.QueueVerify(c.Context())
		if errors.Is(err, admin.ErrNoDaemon) && !c.Flags().Changed("socket") {
			v, err = verifyOffline(c.Context(), c.Flags().Lookup("config").Value.String())
		}
		if err != nil {
			return err
		}
		if *asJSON {
			err = printIndented(c.OutOrStdout(), v)
		} else {
			err = printVerify(c.OutOrStdout(), &v)
		}
		if err == nil && len(v.Problems) > 0 {
			err = silent{}
		}
		return err
	})
	return c
}

// verifyOffline checks the queue of a daemon that does not run.
func verifyOffline(ctx context.Context, file string) (v api.Verify, err error) {
	c, err := config.Load(file, loadOptions(quietEnv()))
	if err != nil {
		return v, fmt.Errorf("the configuration is wrong, see postern check:\n%w", err)
	}
	if _, err := os.Stat(queueDir(c)); err != nil {
		return v, fmt.Errorf("there is no queue to be checked: %w", err)
	}
	if err := dropRoot(c); err != nil { // what is written must stay the daemon's
		return v, err
	}
	state, err := openState(c.State, slog.New(slog.DiscardHandler))
	if err != nil {
		return v, fmt.Errorf("no daemon answers on %s, and yet: %w", c.Admin.Socket, err)
	}
	defer state.Close()
	s, err := openStore(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return v, err
	}
	v, err = admin.Verify(ctx, s)
	return v, errors.Join(err, s.Close())
}

func printVerify(w io.Writer, v *api.Verify) error {
	if len(v.Problems) == 0 {
		_, err := fmt.Fprintln(w, "the queue is sound")
		return err
	}
	for _, p := range v.Problems {
		if _, err := fmt.Fprintln(w, shown(p)); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w, plural(len(v.Problems)+v.More, "problem"))
	return err
}
