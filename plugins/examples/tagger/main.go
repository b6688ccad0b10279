// Tagger is a plugin of Postern that puts a tag before the subject.
package main

import (
	"context"
	"strings"

	"github.com/postern-mta/postern/plugins/sdk"
)

type options struct {
	Tag string `key:"tag" default:"[list]" doc:"what is put before the subject"`
}

var plugin = sdk.Plugin[options]{
	Name: "tagger", Version: "1.0", Doc: "Puts a tag before the subject.",
	Needs:     sdk.NeedsHead,
	Edits:     sdk.EditsHead,
	Configure: check,
	Message:   tag,
}

func main() { sdk.Main(plugin) }

func check(_ context.Context, o *options, _ sdk.Filter) error {
	if strings.TrimSpace(o.Tag) == "" {
		return sdk.Wrong("tag", "it is empty: write a tag like %q", "[list]")
	}
	return nil
}

func tag(_ context.Context, o *options, m *sdk.Message) (sdk.Verdict, error) {
	if strings.Contains(m.Subject(), o.Tag) {
		return sdk.Continue(), nil
	}
	return sdk.Continue().Replace("Subject", o.Tag+" "+m.Get("Subject")).Because("tagged"), nil
}
