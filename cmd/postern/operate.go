package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os/user"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// quietEnv is for reading a configuration without a daemon.
func quietEnv() pipeline.Env {
	return pipeline.Env{Log: slog.New(slog.DiscardHandler), Now: time.Now, Secret: derive(nil)}
}

func checkCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "check",
		Short: "Say everything that is wrong with the configuration",
		Long:  "Read the configuration as the daemon would and say everything that is wrong with it, with file and line.\nOf SMTP entrances it says which versions and ciphers of TLS they offer. Plugins are started for a moment, to ask them.\nThe exit code is 1 if anything is.",
		Args:  cobra.NoArgs,
	}
	file := configFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		conf, plugins, err := loadAsking(*file, pluginLog(c.ErrOrStderr()))
		if err != nil {
			fmt.Fprintln(c.ErrOrStderr(), err)
			return silent{}
		}
		plugins.close()
		for _, w := range conf.Warnings {
			fmt.Fprintf(c.ErrOrStderr(), "warning: %v\n", w)
		}
		found := checkSMTP(conf)
		if !printFindings(found, io.Discard, c.ErrOrStderr()) {
			return silent{}
		}
		fmt.Fprintf(c.OutOrStdout(), "%s is right: %d entrances, %d chains, %d filters\n", clean(*file), len(conf.Listen), len(conf.Chain), len(conf.Filter))
		printFindings(found, c.OutOrStdout(), io.Discard)
		for _, note := range shimNotes() {
			fmt.Fprintln(c.OutOrStdout(), note)
		}
		return nil
	}
	return c
}

func configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show the configuration in force, or what can be configured"}
	show := &cobra.Command{Use: "show", Short: "Print every setting and where it comes from", Args: cobra.NoArgs}
	file := configFlag(show)
	show.RunE = func(c *cobra.Command, _ []string) error {
		conf, plugins, err := loadAsking(*file, pluginLog(io.Discard))
		if err != nil {
			return fmt.Errorf("the configuration is wrong, see postern check:\n%w", err)
		}
		plugins.close()
		t := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
		for _, s := range conf.Effective() {
			fmt.Fprintf(t, "%s\t= %s\t# %s\n", s.Key, s.Value, s.From)
		}
		return t.Flush()
	}
	reference := &cobra.Command{
		Use: "reference", Short: "Print every key that a configuration may have, and what rules may name", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return printReference(c.OutOrStdout()) },
	}
	c.AddCommand(show, reference)
	return c
}

// client finds the daemon's socket: --socket, else the configuration's.
func clientFlags(c *cobra.Command) func() (*admin.Client, error) {
	file := configFlag(c)
	socket := c.Flags().String("socket", "", "the daemon's admin socket (default: the configuration's)")
	return func() (*admin.Client, error) {
		if *socket != "" {
			return admin.NewClient(*socket), nil
		}
		conf, err := config.Load(*file, loadOptions(quietEnv()))
		if err != nil {
			return nil, fmt.Errorf("the configuration is wrong (name the daemon with --socket):\n%w", err)
		}
		return admin.NewClient(conf.Admin.Socket), nil
	}
}

// asking makes a command's work of a function that asks the daemon.
func asking(dial func() (*admin.Client, error), f func(*cobra.Command, []string, *admin.Client) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		return f(c, args, client)
	}
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func statusCommand() *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Print the daemon's state", Args: cobra.NoArgs}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		s, err := client.Status(c.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), s)
		}
		fmt.Fprintf(c.OutOrStdout(), "postern %s, process %d, since %s\nconfiguration %s, generation %d\n", s.Version, s.PID, s.Started, s.Config, s.Generation)
		for _, e := range s.Entrances {
			fmt.Fprintf(c.OutOrStdout(), "entrance %s on %s, %d sessions\n", e.Name, e.Address, e.Sessions)
		}
		return nil
	})
	return c
}

func reloadCommand() *cobra.Command {
	c := &cobra.Command{Use: "reload", Short: "Have the daemon read its configuration again", Args: cobra.NoArgs}
	dial := clientFlags(c)
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		r, err := client.Reload(c.Context())
		if err != nil {
			return fmt.Errorf("the daemon keeps the configuration it had:\n%w", err)
		}
		for _, w := range r.Warnings {
			fmt.Fprintf(c.ErrOrStderr(), "warning: %s\n", w)
		}
		fmt.Fprintf(c.OutOrStdout(), "generation %d is in force\n", r.Generation)
		return nil
	})
	return c
}

func filterCommand() *cobra.Command {
	c := &cobra.Command{Use: "filter", Short: "List the filters, or set their modes while the daemon runs"}
	c.AddCommand(filterListCommand(), filterSetCommand())
	return c
}

func filterListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the filters with their modes", Args: cobra.NoArgs}
	dial := clientFlags(c)
	asJSON := c.Flags().Bool("json", false, "print JSON")
	c.RunE = asking(dial, func(c *cobra.Command, _ []string, client *admin.Client) error {
		all, err := client.Filters(c.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), all)
		}
		t := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "FILTER\tMODE\tCONFIGURED\tUNTIL\tCHAINS")
		for _, f := range all {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", f.Name, f.Mode, f.Configured, f.Until, strings.Join(f.Chains, ", "))
		}
		return t.Flush()
	})
	return c
}

func filterSetCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "set NAME enforce|shadow|off|config",
		Short: "Set a filter's mode without editing the configuration",
		Long: `Set a filter's mode in the running daemon, for --ttl or until it restarts. The log says who did it.

  enforce  its verdicts count
  shadow   it runs, and what it says is only recorded
  off      it does not run
  config   what the configuration says`,
		Args: cobra.ExactArgs(2),
	}
	dial := clientFlags(c)
	ttl := c.Flags().Duration("ttl", 0, "for how long, like 1h; 0 is until the daemon restarts")
	c.RunE = func(c *cobra.Command, args []string) error {
		if *ttl < 0 || *ttl > 0 && *ttl < time.Second {
			return errors.New("--ttl: at least a second")
		}
		client, err := dial()
		if err != nil {
			return err
		}
		by := "unknown"
		if u, err := user.Current(); err == nil {
			by = u.Username
		}
		f, err := client.SetFilter(c.Context(), args[0], api.SetFilter{Mode: args[1], TTL: int64(*ttl / time.Second), By: by})
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s is in mode %s%s\n", f.Name, f.Mode, optional(" until ", f.Until))
		return nil
	}
	return c
}
