package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestPluginSwapLosesNothing changes a plugin again and again while clients send:
// every message that was answered with 250 arrives, once, and none is put off.
func TestPluginSwapLosesNothing(t *testing.T) {
	const clients, each = 4, 12
	g := newGateway(t)
	postern, err := exec.LookPath("postern")
	if err != nil {
		t.Fatal(err)
	}
	g.env["ACTOR"] = filepath.Join(filepath.Dir(postern), "actor")
	g.start(t, pluginConfig)
	var flow sync.WaitGroup
	for n := range clients {
		flow.Go(func() {
			for i := range each {
				c := g.hello(t, "mx", "")
				c.want("MAIL FROM:<a@example.net>", "250 ")
				c.want("RCPT TO:<joe@example.org>", "250 ")
				c.data(fmt.Sprintf("Subject: number %d-%d.\r\n\r\n%s", n, i, strings.Repeat("x\r\n", 10_000)), "250 ")
				c.want("QUIT", "221 ")
			}
		})
	}
	for version := range 4 {
		g.reload(t, strings.Replace(pluginConfig, `"1"]`, fmt.Sprintf(`"%d"]`, version+2), 1))
	}
	flow.Wait()
	all := strings.Join(g.arrived(t, "joe", clients*each), "\n")
	for n := range clients {
		for i := range each {
			if want := fmt.Sprintf("Subject: [seen] number %d-%d.\n", n, i); strings.Count(all, want) != 1 {
				t.Errorf("%q is %d times in what arrived", want, strings.Count(all, want))
			}
		}
	}
}
