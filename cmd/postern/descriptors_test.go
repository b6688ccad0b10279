package main

import (
	"os/exec"
	"testing"
)

// TestDescriptors has the daemon started with a soft limit below its hard one: it
// raises it, and tells if that is not enough for its configuration.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	const config = `hostname = "mx.example.org"
control = ""
domains = ["example.org"]
state = "$RUN/state"
admin.socket = "$RUN/admin.sock"
log.format = "json"
[queue]
remote = $REMOTE
low_space = "1 MB"
resolver = ["127.0.0.1:1"]
[listen.mx]
address = "$AT_MX"
next = "queue"
connections = 100
[chain]
inbound = []
`
	for _, c := range []struct {
		remote string
		warned bool
	}{{"800", false}, {"2000", true}} {
		g := newGateway(t)
		g.env["REMOTE"] = c.remote
		file := g.write(t, "postern.toml", config)
		g.run(t, exec.Command("sh", "-c", `ulimit -Sn 200 && ulimit -Hn 2000 && exec postern serve --config "$0"`, file))
		found := false
		for _, line := range g.lines(t, "level", "WARN") {
			if _, ok := line["asks"]; !ok {
				continue
			}
			found = found || line["may"].(float64) > 1900 && line["asks"].(float64) == 3110
		}
		if found != c.warned {
			t.Errorf("with %s deliveries at a time: warned %v, want %v", c.remote, found, c.warned)
		}
	}
}
