package main

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// TestKeptFor: connections are kept while there are descriptors for all else.
func TestKeptFor(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	c := &config.Config{}
	c.Listen = map[string]*config.Listen{"mx": {Next: config.NextQueue}}
	for _, left := range []int{-5, 0, 150, 1000, 9000, 100_000} {
		c.Queue.Remote = int(limit.Cur) - ownDescriptors - left
		want := min(max(left/2, 100), 5000)
		if c.Queue.Remote < 0 {
			continue
		}
		if got := keptFor(c); got != want {
			t.Errorf("%d connections are kept where %d descriptors are left, not %d", got, left, want)
		}
	}
}

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
