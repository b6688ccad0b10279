// Postern is a filtering mail gateway on qmail's interfaces. This program is
// the daemon (postern serve) and every operator's command; it only joins the
// rooms.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/program"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/worker"
)

// version is set by the Makefile.
var version = "unknown"

// defaultConfig is where the configuration is looked for.
const defaultConfig = "/etc/postern/postern.toml"

func main() {
	worker.Main(jobs()) // a process of the daemon's pool does not return
	program.Main()      // nor does one that starts programs
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program with its arguments; the result is the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	c := rootCommand()
	c.SetArgs(args)
	c.SetOut(stdout)
	c.SetErr(stderr)
	if err := c.ExecuteContext(context.Background()); err != nil {
		if code := exitCode(0); errors.As(err, &code) {
			return int(code)
		}
		if err.Error() != "" {
			fmt.Fprintf(stderr, "postern: %s\n", cleanLines(err.Error()))
		}
		return 1
	}
	return 0
}

// maxErrorLine bounds a line of an error message, in bytes.
const maxErrorLine = 4000

// cleanLines makes each line of a text printable: an error may name a file or
// tell what a program said.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = reply.Clean(line, maxErrorLine)
	}
	return strings.Join(lines, "\n")
}

// silent is an error whose words have been written already.
type silent struct{}

func (silent) Error() string { return "" }

func rootCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "postern",
		Short: "A filtering mail gateway on qmail's interfaces",
		Long: `Postern takes a message in, runs it through an ordered chain of filters, and hands
it on. It stands in for qmail-queue (QMAILQUEUE), so every program that can call
qmail-queue can call it.

Begin with "postern demo", then write a configuration and "postern check" it.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	c.AddCommand(
		serveCommand(), checkCommand(), explainCommand(), mimeCommand(), filterCommand(), statusCommand(), reloadCommand(),
		queueCommand(), quarantineCommand(), queueDirectCommand(), qstatCommand(), qreadCommand(), metricsCommand(), siteCommand(), configCommand(), importCommand(), dkimCommand(), passwordCommand(), greylistCommand(), ratelimitCommand(), rewriteCommand(), checkpasswordHelperCommand(), sinkCommand(), demoCommand(), pluginCommand(), manCommand(), versionCommand(),
	)
	return c
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(c *cobra.Command, _ []string) {
			fmt.Fprintf(c.OutOrStdout(), "postern %s\n", version)
			if info, ok := debug.ReadBuildInfo(); ok {
				fmt.Fprintf(c.OutOrStdout(), "%s\n", info.GoVersion)
			}
		},
	}
}

// configFlag adds --config.
func configFlag(c *cobra.Command) *string {
	return c.Flags().StringP("config", "c", defaultConfig, "the configuration file")
}

// loadOptions are how this program reads its configuration.
func loadOptions(env pipeline.Env) config.Options {
	return config.Options{Kinds: kinds(), Env: env, Shims: ourShims(), HasQueue: true}
}

// ourShims are the places where our own shims may stand: beside this
// program, where make install puts it, and above in lib/postern.
func ourShims() []string {
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	dir := filepath.Dir(self)
	var found []string
	for _, p := range []string{"qmail-queue", "qmail-queue-go", "../lib/postern/qmail-queue", "qmail-remote", "qmail-remote-go", "../lib/postern/qmail-remote"} {
		p = filepath.Join(dir, p)
		if _, err := os.Stat(p); err == nil {
			found = append(found, p)
		}
	}
	return found
}
