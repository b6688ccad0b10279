package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/postern-mta/postern/plugins/sdk"
)

// actorOptions are those of the plugin of the scripts.
type actorOptions struct {
	Tag    string   `key:"tag" default:"[seen]" doc:"what is put before the subject"`
	Refuse []string `key:"refuse" doc:"addresses that are refused"`
	Dark   string   `key:"dark" doc:"a client's name that is refused"`
}

// actor is a plugin for the scripts: it tags, refuses, appends to bodies, and
// dies if a message says so. Its argument is its version.
func actor() {
	version := "1"
	if len(os.Args) > 1 {
		version = os.Args[1]
	}
	sdk.Main(sdk.Plugin[actorOptions]{
		Name: "actor", Version: version, Doc: "plays for the tests",
		Needs: sdk.NeedsBody, Edits: sdk.EditsHead | sdk.EditsBody,
		Configure: func(_ context.Context, o *actorOptions, _ sdk.Filter) error {
			if o.Tag == "" {
				return sdk.Wrong("tag", "a tag is not empty")
			}
			return nil
		},
		Helo: func(_ context.Context, o *actorOptions, s *sdk.Session) (sdk.Verdict, error) {
			if o.Dark != "" && s.Helo == o.Dark {
				return sdk.Reject("5.7.1", "we do not know "+s.Helo), nil
			}
			return sdk.Continue(), nil
		},
		Recipient: func(_ context.Context, o *actorOptions, _ *sdk.Transaction, recipient string) (sdk.Verdict, error) {
			for _, r := range o.Refuse {
				if r == recipient {
					return sdk.Reject("5.1.1", "not here").Because("on the list"), nil
				}
			}
			return sdk.Continue(), nil
		},
		Message: func(_ context.Context, o *actorOptions, m *sdk.Message) (sdk.Verdict, error) {
			body, err := io.ReadAll(m.Body())
			if err != nil {
				return sdk.Continue(), err
			}
			switch {
			case strings.Contains(string(body), "die now"):
				os.Exit(3)
			case strings.Contains(string(body), "append here"):
				return sdk.Continue().SetBody(append(body, fmt.Sprintf("appended by version %s\n", version)...)).Because("appended"), nil
			}
			return sdk.Continue().Replace("Subject", o.Tag+" "+m.Get("Subject")).Because(fmt.Sprintf("version %s, %d bytes, uid %d", version, len(body), os.Getuid())), nil
		},
	})
}
