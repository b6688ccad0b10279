package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/filters/rewrite"
	"github.com/postern-mta/postern/rules"
)

func rewriteCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "rewrite", Short: "Make databases of the filter rewrite's maps",
		Long: `Make databases of the maps of the filter rewrite.`,
	}
	c.AddCommand(rewriteCompileCommand())
	return c
}

func rewriteCompileCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "compile FILE CDB", Short: "Make a constant database of a file of entries", Args: cobra.ExactArgs(2),
		Long: `Read a file of entries, as a map of the filter rewrite has it in "file", and write them as
the constant database for "cdb". What is wrong with the file is told with its line, and the
database that there is stays as it was; patterns are wrong, since no database can hold one.
The database is replaced as a whole, and a daemon that reads it notices within a second. A
new one has mode 0644, one that is replaced keeps its mode.`,
		Example: `  postern rewrite compile /etc/postern/aliases /etc/postern/aliases.cdb`,
	}
	senders := c.Flags().Bool("senders", false, "the file is for a filter with of = \"senders\": one address on each right side")
	c.RunE = func(c *cobra.Command, args []string) error {
		records, err := rewrite.Records(args[0], *senders)
		if err == nil {
			err = replaceCDB(args[1], records)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s: %d entries\n", clean(args[1]), len(records))
		return nil
	}
	return c
}

// replaceCDB writes a database in the place of another one. Who reads meanwhile
// sees either, and so does who reads after a power cut.
func replaceCDB(path string, records []rules.CDBRecord) error {
	mode := fs.FileMode(0o644)
	switch info, err := os.Stat(path); {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("%s is no file", path)
	case err == nil:
		mode = info.Mode().Perm()
	}
	folder := filepath.Dir(path)
	f, err := os.CreateTemp(folder, filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	err = errors.Join(rules.WriteCDB(f, records), f.Chmod(mode), f.Sync())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(folder)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("%s is replaced, but perhaps not yet on the disk: %w", path, err)
	}
	return nil
}
