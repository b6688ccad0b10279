package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/host"
	"github.com/postern-mta/postern/plugins/sdk/skeleton"
)

func pluginCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "plugin", Short: "Look at filters that are programs of their own, try them, and begin new ones",
		Long: `A plugin is a filter that is a program of its own, in any language: a table
[plugin.NAME] of the configuration says how to start it, and NAME is a kind of filter
then. These commands start plugins for a moment, as the daemon would, beside those that
it has; they change nothing.`,
	}
	c.AddCommand(pluginListCommand(), pluginCheckCommand(), pluginRunCommand(), pluginNewCommand())
	return c
}

// describedPlugin is one plugin for --json.
type describedPlugin struct {
	Plugin  string           `json:"plugin"`
	Command []string         `json:"command"`
	Filters []string         `json:"filters"`
	Is      host.Description `json:"is"`
}

// describePlugins asks the plugins of a configuration, or those named.
func describePlugins(file string, names []string, stderr io.Writer) ([]describedPlugin, error) {
	c, plugins, err := loadAsking(file, pluginLog(stderr))
	if err != nil {
		return nil, fmt.Errorf("the configuration is wrong:\n%w", err)
	}
	defer plugins.close()
	for _, name := range names {
		if c.Plugin[name] == nil {
			return nil, fmt.Errorf("there is no plugin %q; the configuration has %v", clean(name), sortedKeys(c.Plugin))
		}
	}
	all := []describedPlugin{}
	for _, name := range sortedKeys(c.Plugin) {
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		is, _ := plugins.Describe(name)
		all = append(all, describedPlugin{Plugin: name, Command: c.Plugin[name].Command, Filters: filtersOf(c, name), Is: is})
	}
	return all, nil
}

// filtersOf are the filters of a kind, by name.
func filtersOf(c *config.Config, kind string) (names []string) {
	for _, name := range sortedKeys(c.Filter) {
		if c.Filter[name].Kind == kind {
			names = append(names, name)
		}
	}
	return names
}

func pluginListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the plugins of the configuration, and what they say of themselves", Args: cobra.NoArgs}
	file, asJSON := configFlag(c), c.Flags().Bool("json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, err := describePlugins(*file, nil, c.ErrOrStderr())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), all)
		}
		t := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "PLUGIN\tIS\tSTAGES\tNEEDS\tEDITS\tFILTERS\tDOES")
		for _, p := range all {
			fmt.Fprintf(t, "%s\t%s %s\t%s\t%s\t%s\t%s\t%s\n", p.Plugin, clean(p.Is.Name), clean(p.Is.Version), strings.Join(p.Is.Stages, ","), p.Is.Needs, none(p.Is.Edits), none(p.Filters), clean(p.Is.Doc))
		}
		return t.Flush()
	}
	return c
}

// none is a list for people.
func none(all []string) string {
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, ",")
}

func pluginCheckCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "check [NAME...]", Short: "Start plugins, and say what they are and what their filters can be told",
		Long: `Start the plugins of the configuration, or those named, and say what each is, what it
does, and which keys its filters have. The configuration must be right; what is wrong with
it, or with a plugin, is said with file and line, and the exit code is 1. The sum is that
of the program's file as it is now, for "sha256".`,
	}
	file, asJSON := configFlag(c), c.Flags().Bool("json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		all, err := describePlugins(*file, args, c.ErrOrStderr())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), all)
		}
		for i, p := range all {
			if i > 0 {
				fmt.Fprintln(c.OutOrStdout())
			}
			if err := printPlugin(c.OutOrStdout(), p); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

func printPlugin(w io.Writer, p describedPlugin) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	is := p.Is
	fmt.Fprintf(t, "plugin\t%s\n", p.Plugin)
	fmt.Fprintf(t, "is\t%s %s: %s\n", clean(is.Name), clean(is.Version), clean(is.Doc))
	fmt.Fprintf(t, "command\t%s\n", clean(strings.Join(p.Command, " ")))
	fmt.Fprintf(t, "sha256\t%s\n", is.SHA256)
	fmt.Fprintf(t, "stages\t%s\n", strings.Join(is.Stages, ", "))
	fmt.Fprintf(t, "needs\t%s\n", is.Needs)
	fmt.Fprintf(t, "edits\t%s\n", none(is.Edits))
	fmt.Fprintf(t, "on_error\t%s\n", is.OnError)
	if is.StrangersOnly {
		fmt.Fprintf(t, "judges\tstrangers only\n")
	}
	fmt.Fprintf(t, "filters\t%s\n", none(p.Filters))
	for _, o := range is.Options {
		from := ""
		switch {
		case o.Required:
			from = ", must be written"
		case o.Default != "":
			from = ", default " + o.Default
		}
		fmt.Fprintf(t, "option\t%s (%s%s): %s\n", o.Name, o.Type, clean(from), clean(o.Doc))
	}
	return t.Flush()
}

func pluginRunCommand() *cobra.Command {
	var f explainFlags
	var set []string
	c := &cobra.Command{
		Use: "run [flags] PLUGIN MESSAGE", Short: "Ask one plugin about a saved message, and show what it says",
		Long: `Start a plugin, ask it about a saved message (- for standard input), and print its
verdict, its edits and the message that comes of them, as postern explain does of a whole
chain. PLUGIN is its name in the configuration, whose filters of this kind are asked; or,
with a slash in it, the path of a program, which needs no configuration: --set then gives
its options, as KEY=VALUE. What the plugin writes goes to standard error.`,
		Args: cobra.ExactArgs(2),
	}
	f.add(c)
	c.Flags().StringArrayVar(&set, "set", nil, "an option of a program that is named by its path, KEY=VALUE; may be repeated")
	c.RunE = func(c *cobra.Command, args []string) error {
		f.plugin, f.log = args[0], pluginLog(c.ErrOrStderr())
		if len(f.to) == 0 {
			f.to = []string{"someone@example.org"}
		}
		if strings.Contains(f.plugin, "/") {
			dir, err := os.MkdirTemp("", "postern-run")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			f.config = filepath.Join(dir, "plugin.toml")
			text, err := loneConfig(dir, f.plugin, set)
			if err == nil {
				err = os.WriteFile(f.config, []byte(text), 0o600)
			}
			if err != nil {
				return err
			}
			f.plugin = lonePlugin
		} else if len(set) > 0 {
			return errors.New("--set is for a program that is named by its path; the options of a plugin of the configuration stand there")
		}
		return runExplain(c.Context(), f, args[1], c.InOrStdin(), c.OutOrStdout())
	}
	return c
}

func pluginNewCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "new NAME", Short: "Begin a plugin in Go: a module that compiles and passes its test",
		Long: `Write the beginnings of a plugin in Go into the directory NAME: a program of a few lines,
its test with a saved message, and a README that says how to build it, try it and put it
into the configuration.`,
		Args: cobra.ExactArgs(1),
	}
	dir := c.Flags().String("dir", "", "the directory, which is made and must be empty if it is there (default: ./NAME)")
	c.RunE = func(c *cobra.Command, args []string) error {
		to := *dir
		if to == "" {
			to = args[0]
		}
		if err := skeleton.Write(to, args[0]); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s is written to %s; begin with its README.md\n", clean(args[0]), clean(to))
		return nil
	}
	return c
}

// lonePlugin is the name of a plugin that no configuration has.
const lonePlugin = "plugin"

// loneConfig is a configuration with nothing but one plugin.
func loneConfig(dir, program string, set []string) (string, error) {
	full, err := filepath.Abs(program)
	if err != nil {
		return "", err
	}
	quote := func(s string) string { return strconv.QuoteToASCII(s) }
	var b strings.Builder
	fmt.Fprintf(&b, "hostname = \"mx.example.org\"\ncontrol = \"\"\ndomains = [\"example.org\"]\nstate = %s\nadmin.socket = %s\n", quote(filepath.Join(dir, "state")), quote(filepath.Join(dir, "admin")))
	fmt.Fprintf(&b, "[listen.queue]\nsocket = %s\nnext = \"discard\"\n", quote(filepath.Join(dir, "queue")))
	fmt.Fprintf(&b, "[plugin.%s]\ncommand = [%s]\n[chain]\ninbound = [%q]\n[filter.%s]\n", lonePlugin, quote(full), lonePlugin, lonePlugin)
	for _, one := range set {
		key, value, ok := strings.Cut(one, "=")
		if !ok || key == "" {
			return "", fmt.Errorf("--set %s: write KEY=VALUE", clean(one))
		}
		var known map[string]any
		if toml.Unmarshal([]byte("x = "+value), &known) != nil {
			value = quote(value)
		}
		fmt.Fprintf(&b, "%s = %s\n", quote(key), value)
	}
	return b.String(), nil
}

// onlyPlugin makes a configuration of one chain, with the filters of a plugin
// only, and names it.
func onlyPlugin(c *config.Config, plugins *commandPlugins, name string) (chain string, err error) {
	if c.Plugin[name] == nil {
		return "", fmt.Errorf("there is no plugin %q; the configuration has %v. A program is named by a path with a slash in it", clean(name), sortedKeys(c.Plugin))
	}
	filters := filtersOf(c, name)
	if len(filters) == 0 {
		return "", fmt.Errorf("the configuration has no filter of the plugin %s: put it into a chain, or write [filter.%s]", name, name)
	}
	if is, ok := plugins.Describe(name); ok && len(is.Stages) == 1 && is.Judges(pipeline.AtDelivery) {
		return "", fmt.Errorf("the plugin %s works on messages that leave only: those are not explained", name)
	}
	c.Chain = map[string][]string{name: filters}
	return name, nil
}
