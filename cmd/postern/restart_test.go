package main

import (
	"slices"
	"testing"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// TestLaterSettings: what is told to count from the next start is a setting, and told
// when it has changed.
func TestLaterSettings(t *testing.T) {
	parse := func(text string) *config.Config {
		c, err := config.Parse("postern.toml", []byte("hostname = \"mx.example.org\"\ncontrol = \"\"\n[listen.queue]\nnext = \"queue\"\n"+text), loadOptions(quietEnv()))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := parse("[outbound]\nkeep = \"1s\"\n"), parse("[outbound]\nkeep = \"2s\"\n[queue]\nlocal = 3\nretry = \"qmail 30\"\ndomain = 7\n[bounce]\nexternal = \"never\"\n")
	if got := laterSettings(a, a); len(got) > 0 {
		t.Errorf("nothing has changed but %q", got)
	}
	if got := laterSettings(a, b); !slices.Equal(got, []string{"queue.retry", "queue.local"}) {
		t.Errorf("%q", got)
	}
	for _, key := range startOnly {
		if !slices.ContainsFunc(a.Effective(), func(s config.Setting) bool { return s.Key == key }) {
			t.Errorf("%s is no setting", key)
		}
	}
}
