package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/rules"
)

// printReference writes every key of the configuration, and what a rule may
// name.
func printReference(w io.Writer) error {
	var b strings.Builder
	for _, k := range config.Reference(kinds()) {
		fmt.Fprintf(&b, "%s (%s", k.Path, k.Type)
		if k.Default != "" {
			fmt.Fprintf(&b, ", default %s", k.Default)
		}
		fmt.Fprintf(&b, ")\n    %s\n", k.Doc)
	}
	writeRules(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeRules lists what the rules about mail may name: the facts, and the
// functions of the language.
func writeRules(b *strings.Builder) {
	b.WriteString(`
RULES

A rule (when) is a condition over facts, joined by and, or, not. It compares with == != < <= > >= in, and text with
contains, startsWith, endsWith and matches (a regular expression). Text stands in double or single quotes, sizes may
be written 50 * MB (KB, MB, GB). A rule may name a fact from the stage on at which it is known: connect, helo, sender,
recipient, message.

Facts:

`)
	for _, f := range pipeline.Facts().Facts() {
		name, kind := f.Name, f.Type
		switch kind {
		case rules.StringFunc:
			name, kind = name+`("NAME")`, rules.String
		case rules.StringsFunc:
			name, kind = name+`("NAME")`, rules.Strings
		}
		fmt.Fprintf(b, "%s (%s, from %s on)\n    %s\n", name, kind, pipeline.Stage(f.Since), f.Doc)
	}
	b.WriteString("\nFunctions:\n\n")
	for _, f := range rules.Functions() {
		fmt.Fprintf(b, "%s\n    %s\n", f.Usage, f.Doc)
	}
}
