package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/pipeline/ingress/auth"
)

// checkpasswordHelperCommand is the process that auth.StartHelper starts before
// the daemon gives up root.
func checkpasswordHelperCommand() *cobra.Command {
	return &cobra.Command{
		Use: "checkpassword-helper OPTIONS", Short: "Run checkpassword programs for the daemon", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return auth.ServeHelper(args[0], slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil)))
		},
	}
}
