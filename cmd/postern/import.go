package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/cmd/postern/move"
)

// importOptions are the flags of postern import.
type importOptions struct {
	move.Options
	into string
	hits float64
	list bool
}

func importCommand() *cobra.Command {
	var o importOptions
	c := &cobra.Command{
		Use:   "import KIND [FILE] [KIND [FILE]]...",
		Short: "Turn the files of simscan, qmail-qfilter, qmail-spp and patched qmails into a configuration",
		Long: `Turn the files by which other filters are told what to do into a configuration of
Postern, which does the same, and print it. The kinds are simcontrol, ssattach,
qfilters, taps, signatures, smtpplugins and rcptchecks: postern import --list tells
what becomes of each, and which are there. Several make one configuration.

Without FILE the kind's file in the control directory is read; of simcontrol the text
rather than simcontrol.cdb, since it has comments. (A file that is named like a kind is
written ./taps.)

In what comes out each file is listed line by line, with its own comments. Below a line
stands NO EQUAL where it did what nothing here does, with what to do instead, and NOTE
where it is done in another way. The configuration has been checked before it is
printed, as postern check does; the filters' defaults are as the old program had them,
so that nothing else is refused.`,
		Example: `  postern import --list
  postern import simcontrol ssattach taps --into /etc/postern/postern.toml
  postern import simcontrol /backup/control/simcontrol.cdb --spam-hits 12
  postern import qfilters /var/qmail/bin/qmail-queue.sh`,
		Args: cobra.ArbitraryArgs,
	}
	f := c.Flags()
	f.BoolVar(&o.list, "list", false, "say what can be imported, and from where")
	f.StringVar(&o.into, "into", "", "write to this file, which must not be there, in place of standard output")
	f.StringVar(&o.Control, "control", move.DefaultControl, "qmail's control directory, where the files are")
	f.StringSliceVar(&o.Clamd, "clamd", nil, "the addresses of clamd, as in filter.clamav.address")
	f.StringSliceVar(&o.Spamd, "spamd", nil, "the addresses of spamd, as in filter.spamassassin.address")
	f.Float64Var(&o.hits, "spam-hits", 0, "the score from which simscan refuses spam where simcontrol does not say it (its --enable-spam-hits)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if f.Changed("spam-hits") {
			o.SpamHits = &o.hits
		}
		if o.list {
			return o.printFormats(c.OutOrStdout())
		}
		return o.run(c.OutOrStdout(), c.ErrOrStderr(), args)
	}
	return c
}

// printFormats lists what can be read.
func (o *importOptions) printFormats(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tOF\tBECOMES\tFILE")
	for _, f := range move.Formats() {
		where, err := move.Find(move.Source{Kind: f.Name}, o.Options)
		if err != nil {
			where = filepath.Join(o.Control, f.Files[0]) + " (not there)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", f.Name, f.Whose, f.What, clean(where))
	}
	return t.Flush()
}

// importSources reads the arguments: kinds, each with a file behind it or not.
func importSources(args []string) (all []move.Source) {
	known := func(name string) bool {
		return slices.ContainsFunc(move.Formats(), func(f move.Format) bool { return f.Name == name })
	}
	for i := 0; i < len(args); i++ {
		s := move.Source{Kind: args[i]}
		if known(args[i]) && i+1 < len(args) && !known(args[i+1]) {
			i++
			s.Path = args[i]
		}
		all = append(all, s)
	}
	return all
}

func (o *importOptions) run(stdout, stderr io.Writer, args []string) error {
	made, err := move.Import(importSources(args), o.Options)
	if err != nil {
		return err
	}
	filters, err := o.check(stderr, made.TOML)
	if err != nil {
		return fmt.Errorf("what was made of %s is no configuration:\n%w", clean(strings.Join(made.Files, ", ")), err)
	}
	if o.into == "" {
		if _, err := stdout.Write(made.TOML); err != nil {
			return err
		}
	} else if err := writeNew(o.into, made.TOML); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "imported %s: %d filters", clean(strings.Join(made.Files, ", ")), filters)
	if made.NoEqual > 0 {
		fmt.Fprintf(stderr, "; NO EQUAL stands there %s: read it", move.Times(made.NoEqual))
	}
	fmt.Fprintln(stderr)
	return nil
}

// check holds a configuration against postern check: by itself, and with what is
// on this host, of which it warns only.
func (o *importOptions) check(stderr io.Writer, b []byte) (filters int, err error) {
	name := o.into
	if name == "" {
		name = "postern.toml"
	}
	options := loadOptions(quietEnv())
	options.Control = filepath.Join(os.DevNull, "control") // there is none
	options.Hostname = func() (string, error) { return "localhost.localdomain", nil }
	conf, err := config.Parse(name, b, options)
	if err != nil {
		return 0, err
	}
	filters = len(conf.Filter)
	if conf, err = config.Parse(name, b, loadOptions(quietEnv())); err != nil {
		fmt.Fprintf(stderr, "warning: postern check will refuse it on this host, until this is mended:\n%s\n", cleanLines(err.Error()))
		return filters, nil
	}
	for _, w := range conf.Warnings {
		fmt.Fprintf(stderr, "warning: %v\n", w)
	}
	return filters, nil
}

// writeNew writes a file that is not there yet.
func writeNew(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already, and is not overwritten: name another file, and take over what you want of it", clean(path))
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path) //nolint:errcheck // half of it would be worse, and the error is told
	}
	return err
}
