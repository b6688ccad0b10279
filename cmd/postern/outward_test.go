package main

import (
	"context"
	"log/slog"
	"testing"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// testOutward is a way out without a daemon.
func testOutward(t *testing.T, text string) *outward {
	t.Helper()
	c, err := config.Parse("postern.toml", []byte("hostname = \"mx.example.org\"\ncontrol = \"\"\n"+text), loadOptions(quietEnv()))
	if err != nil {
		t.Fatal(err)
	}
	out, err := newOutward(c, noDNS{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.close(context.Background()) })
	return out
}
