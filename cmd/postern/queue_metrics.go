package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
)

func metricsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "metrics",
		Short: "Print the daemon's metrics for Prometheus",
		Long:  "Print the daemon's metrics in Prometheus' text format, as GET /metrics on the admin socket tells\nthem. Beside those below there are those of the Go runtime and the process, go_ and process_.\n\n" + metricsHelp(),
		Args:  cobra.NoArgs,
	}
	dial := clientFlags(c)
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		text, err := client.Metrics(c.Context())
		if err != nil {
			return err
		}
		_, err = c.OutOrStdout().Write(text)
		return err
	})
	return c
}

// metricsHelp lists the metrics with their labels.
func metricsHelp() string {
	var b strings.Builder
	for _, m := range admin.Metrics() {
		name := m.Name
		if len(m.Labels) > 0 {
			name += "{" + strings.Join(m.Labels, ",") + "}"
		}
		fmt.Fprintf(&b, "    %s\n        %s\n", name, m.Help)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
