package main

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manDate stands in the pages, so that making them again changes nothing.
var manDate = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func manCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "man", Short: "Write the manual pages", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return writeMan(dir) },
	}
	c.Flags().StringVar(&dir, "dir", ".", "the directory to write to")
	return c
}

// writeMan writes a page for each command, and one for the configuration.
func writeMan(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root := rootCommand()
	root.DisableAutoGenTag = true
	h := &doc.GenManHeader{Section: "8", Date: &manDate, Source: "Postern", Manual: "Postern"}
	if err := doc.GenManTree(root, h, dir); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString(".TH \"POSTERN.TOML\" \"5\" \"Nov 2026\" \"Postern\" \"Postern\"\n.SH NAME\npostern.toml \\- the configuration of postern\n.SH DESCRIPTION\n.nf\n")
	if err := printReference(&roff{&b}); err != nil {
		return err
	}
	b.WriteString(".fi\n")
	return os.WriteFile(filepath.Join(dir, "postern.toml.5"), []byte(b.String()), 0o644)
}

// roff escapes what roff would take for its own.
type roff struct{ b *strings.Builder }

// Write writes escaped text.
func (r *roff) Write(p []byte) (int, error) {
	for _, line := range strings.SplitAfter(string(p), "\n") {
		line = strings.ReplaceAll(line, `\`, `\\`)
		line = strings.ReplaceAll(line, "-", `\-`)
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			line = `\&` + line
		}
		r.b.WriteString(line)
	}
	return len(p), nil
}

// shimNotes tells which kind the shims beside this program are: a Go twin needs
// more memory than softlimit often leaves it.
func shimNotes() []string {
	var notes []string
	for _, path := range ourShims() {
		if strings.HasSuffix(path, "-go") {
			continue
		}
		f, err := elf.Open(path)
		if err != nil {
			continue
		}
		kind := "the C shim: it runs under any softlimit"
		if f.Section(".gopclntab") != nil || f.Section(".go.buildinfo") != nil {
			kind = "the Go twin: give it at least 1 GB of address space (softlimit -a, ulimit -v), or build with a C compiler"
		}
		f.Close()
		notes = append(notes, fmt.Sprintf("%s is %s", path, kind))
	}
	return notes
}
