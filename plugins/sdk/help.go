package sdk

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-mta/postern/plugins/wire"
)

// byHand answers somebody who runs the program himself. It gives the exit code.
func (g *program) byHand(args []string, stdout, stderr io.Writer) int {
	flag := ""
	if len(args) > 1 {
		flag = args[1]
	}
	switch flag {
	case "--version", "-version", "-V":
		fmt.Fprintf(stdout, "%s (%s)\n", g.title(), wire.CookieValue)
		return 0
	case "--help", "-help", "-h":
		g.help(stdout, args[0])
		return 0
	}
	fmt.Fprintf(stderr, "%s is a plugin of Postern, a filter of mail; it is Postern that starts it.\n\nTo try it on a saved message:\n\n    postern plugin run %s MESSAGE\n\n%s --help says more.\n",
		g.title(), args[0], args[0])
	return 2
}

func (g *program) title() string { return strings.TrimSpace(g.name + " " + g.version) }

func (g *program) help(w io.Writer, path string) {
	fmt.Fprintf(w, "%s, a plugin of Postern\n\n", g.title())
	if g.doc != "" {
		fmt.Fprintf(w, "%s\n\n", g.doc)
	}
	var at, edits []string
	for _, s := range g.asked() {
		at = append(at, s.String())
	}
	for _, e := range editsWords {
		if g.edits&e.edit != 0 {
			edits = append(edits, e.word)
		}
	}
	fmt.Fprintf(w, "It is asked at the stage %s, needs %s, and edits %s.\n\n", strings.Join(at, ", "), needsWords[g.needs], orNothing(edits))
	if len(g.options) > 0 {
		fmt.Fprint(w, "Options:\n\n")
	}
	for _, o := range g.options {
		fmt.Fprintf(w, "    %-16s %s\n", o.name, o.doc)
		fmt.Fprintf(w, "    %-16s %s; %s\n", "", o.word(), o.fallback())
	}
	if len(g.options) > 0 {
		fmt.Fprintln(w)
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	fmt.Fprintf(w, "In Postern's configuration:\n\n    [plugin.%s]\n    command = [%q]\n\n    [filter.my-%[1]s]\n    kind = \"%[1]s\"\n", g.kind(), path)
	for _, o := range g.options {
		if o.required {
			fmt.Fprintf(w, "    %s = ...\n", o.name)
		}
	}
	fmt.Fprintf(w, "\nTo try it on a saved message:\n\n    postern plugin run %s MESSAGE\n", path)
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

// kind is the plugin's name as a table of the configuration may be called.
func (g *program) kind() string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, g.name)
}

// fallback says what an option is if it is not written.
func (o option) fallback() string {
	text := string(o.unset)
	switch {
	case o.required:
		return "it must be written"
	case o.unset == nil:
		return "none by default"
	case o.wire == wire.OptionType_OPTION_TYPE_DURATION:
		var d time.Duration
		if _, err := fmt.Sscan(text, (*int64)(&d)); err == nil {
			text = fmt.Sprintf("%q", d.String())
		}
	}
	return "by default " + text
}
